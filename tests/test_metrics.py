"""What Metrics renders is Prometheus' text format, under names that dashboards may rely on."""

import asyncio
import re
import threading
import time
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from assay import __version__
from assay.dialects import DIALECTS
from assay.engine.engine import Engine
from assay.metrics import MAX_LABELS, Metrics
from assay.sequence import Prediction, Sequence, Timings
from tests.e2e.process import in_process
from tests.tiny import save_bert

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def samples(metrics: Metrics) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert family.documentation, f"{family.name} says nothing of itself"
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def prediction(label: str, timings: Timings | None = None) -> Prediction:
    return Prediction(label, [1.0], [1.0], 5, timings or Timings())


def test_names_and_values() -> None:
    metrics = Metrics()
    metrics.observe_request("classify", 200, 0.004)
    metrics.observe_request("classify", 200, 0.004)
    metrics.observe_request("classify", 503, 0.004)
    metrics.errors.labels("queue_full").inc()
    metrics.of("m").observe_batch(70, [Sequence([1] * 30), Sequence([1] * 30), Sequence([1] * 10)])
    found = samples(metrics)
    assert found["assay_requests_total"] == {
        labels(dialect="classify", status="200"): 2,
        labels(dialect="classify", status="503"): 1,
    }
    assert found["assay_request_seconds_count"] == {
        labels(dialect="classify", status_class="2xx"): 2,
        labels(dialect="classify", status_class="5xx"): 1,
    }
    assert found["assay_errors_total"][labels(type="queue_full")] == 1
    assert found["assay_sequences_total"] == {labels(model="m"): 3}
    assert found["assay_tokens_total"] == {labels(model="m"): 70}
    assert found["assay_padding_tokens_total"] == {labels(model="m"): 0}
    assert found["assay_batch_tokens_sum"] == {labels(model="m"): 70}
    assert found["assay_batch_sequences_sum"] == {labels(model="m"): 3}


def test_padding_is_what_the_device_has_beyond_the_sequences() -> None:
    metrics = Metrics()
    metrics.of("m").observe_batch(80, [Sequence([1] * 30), Sequence([1] * 40)])
    found = samples(metrics)
    assert found["assay_padding_tokens_total"] == {labels(model="m"): 10}
    assert found["assay_tokens_total"] == {labels(model="m"): 70}


def test_every_type_of_error_is_there_from_the_start() -> None:
    found = samples(Metrics())["assay_errors_total"]
    assert set(found.values()) == {0}
    assert {dict(key)["type"] for key in found} >= {"queue_full", "overloaded", "unauthorized", "internal_error"}
    assert labels(type="config_error") not in found, "that one reaches no caller"


def test_the_process_is_described_too() -> None:
    found = samples(Metrics())
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "python_info"):
        assert all(value > 0 for value in found[name].values())
    assert "python_gc_collections_total" in found


def test_a_loaded_model_says_what_it_is() -> None:
    metrics = Metrics()
    metrics.of("m").describe(("a", "b"), architecture="Bert", max_model_len=512)
    facts = labels(model="m", architecture="Bert", max_model_len="512", version=__version__)
    assert samples(metrics)["assay_model_info"] == {facts: 1}


def test_labels_are_counted() -> None:
    metrics = Metrics()
    model = metrics.of("m")
    model.describe(("bad", "good", "fair"))
    model.observe_predictions([prediction("good"), prediction("bad"), prediction("good")])
    model.observe_predictions([])
    assert samples(metrics)["assay_labels_total"] == {
        labels(model="m", label="bad"): 1,
        labels(model="m", label="good"): 2,
        labels(model="m", label="fair"): 0,
    }


def test_a_model_with_thousands_of_labels_does_not_fill_prometheus() -> None:
    metrics = Metrics()
    model = metrics.of("m")
    names = [f"L{i}" for i in range(5000)]
    model.describe(names)
    model.observe_predictions([prediction(name) for name in names])
    found = samples(metrics)["assay_labels_total"]
    assert len(found) == MAX_LABELS + 1
    assert found[labels(model="m", label="L199")] == 1
    assert found[labels(model="m", label="other")] == 5000 - MAX_LABELS
    assert labels(model="m", label="L200") not in found


def test_states_are_read_when_scraped() -> None:
    metrics = Metrics()
    state = "loading"
    metrics.of("m").read_state(lambda: state)
    assert samples(metrics)["assay_model_state"][labels(model="m", state="loading")] == 1
    state = "dead"
    assert samples(metrics)["assay_model_state"] == {
        labels(model="m", state=name): float(name == "dead") for name in ("ok", "loading", "draining", "dead")
    }


def test_failures_are_read_when_scraped() -> None:
    metrics = Metrics()
    counts = {"batches": 0, "threads": 0}
    metrics.of("m").read_failures(lambda: counts["batches"], lambda: counts["threads"])
    counts.update(batches=3, threads=1)
    found = samples(metrics)
    assert found["assay_batch_failures_total"] == {labels(model="m"): 3}
    assert found["assay_tokenizer_threads_lost_total"] == {labels(model="m"): 1}


def test_a_fresh_model_already_shows_its_counts() -> None:
    metrics = Metrics()
    metrics.of("m")
    found = samples(metrics)
    for name in ("assay_sequences_total", "assay_tokens_total", "assay_queue_tokens", "assay_queue_sequences"):
        assert found[name] == {labels(model="m"): 0}
    assert found["assay_batch_tokens_count"] == {labels(model="m"): 0}


def test_stages_are_a_requests_means() -> None:
    metrics = Metrics()
    model = metrics.of("m")
    model.describe(("a",))
    model.observe_predictions([prediction("a", Timings(0.25, 0.5, 2.0)), prediction("a", Timings(0.25, 1.5, 4.0))])
    model.observe_predictions([prediction("a", Timings(0.25, 0.5, 2.0))])
    found = samples(metrics)
    assert found["assay_stage_seconds_sum"] == {
        labels(model="m", stage="tokenize"): 0.5,
        labels(model="m", stage="queue"): 1.5,
        labels(model="m", stage="inference"): 5.0,
    }
    assert found["assay_stage_seconds_count"][labels(model="m", stage="queue")] == 2


def test_buckets_hold_what_lies_at_or_below_them() -> None:
    metrics = Metrics()
    for tokens in (16, 17, 2048, 10**6):
        metrics.of("m").batch_tokens.observe(tokens)
    buckets = samples(metrics)["assay_batch_tokens_bucket"]
    assert buckets[labels(model="m", le="16.0")] == 1
    assert buckets[labels(model="m", le="32.0")] == 2
    assert buckets[labels(model="m", le="2048.0")] == 3
    assert buckets[labels(model="m", le="+Inf")] == 4


def test_queue_gauges_are_read_when_scraped() -> None:
    metrics = Metrics()
    waiting = {"tokens": 0, "sequences": 0}
    metrics.of("m").queue_tokens.set_function(lambda: waiting["tokens"])
    metrics.of("m").queue_sequences.set_function(lambda: waiting["sequences"])
    waiting.update(tokens=640, sequences=5)
    assert samples(metrics)["assay_queue_tokens"] == {labels(model="m"): 640}
    assert samples(metrics)["assay_queue_sequences"] == {labels(model="m"): 5}
    waiting.update(tokens=0, sequences=0)
    assert samples(metrics)["assay_queue_tokens"] == {labels(model="m"): 0}


def test_two_servers_in_one_process_do_not_share_counters() -> None:
    one, other = Metrics(), Metrics()
    one.of("m").sequences.inc()
    other.of("m")
    assert samples(other)["assay_sequences_total"] == {labels(model="m"): 0}


# --- on a server ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label={0: "bad", 1: "fair", 2: "good"}, num_hidden_layers=1)
    return folder


async def test_no_label_comes_from_a_request(folder: Path) -> None:
    secret = "Zanzibar"
    async with in_process(folder, served_model_name="tiny") as running:
        client = running.client
        headers = {"X-Request-Id": secret, "User-Agent": secret, "detector-id": secret, "traceparent": secret}
        for path in (
            f"/{secret}",
            f"/v1/models/{secret}",
            f"/v2/models/{secret}/infer",
            f"/v1/models/{secret}:predict",
        ):
            await client.get(path, headers=headers)
            await client.post(path, json={"inputs": secret}, headers=headers)
        for body in ({"input": secret, "model": secret}, {"input": secret, "user": secret}, {secret: secret}):
            await client.post("/v1/classify", json=body, headers=headers)
        await client.post("/v1/moderations", json={"input": secret, "model": secret})
        await client.request(secret, "/v1/classify", headers=headers)
        found = samples(running.service.metrics)
    known = {"other", *(dialect.name for dialect in DIALECTS)}
    values: dict[str, set[str]] = {}
    for rows in found.values():
        for name, value in chain.from_iterable(rows):
            values.setdefault(name, set()).add(value)
    assert values["dialect"] <= known
    assert values["model"] == {"tiny"}
    assert values["label"] == {"bad", "fair", "good"}
    assert all(re.fullmatch("[1-5][0-9][0-9]", status) for status in values["status"])
    assert values["status_class"] <= {"1xx", "2xx", "3xx", "4xx", "5xx"}
    assert secret not in running.service.metrics.render().decode()


async def test_a_server_says_what_it_serves_and_how_it_is(folder: Path) -> None:
    async with in_process(folder, served_model_name="tiny", engine={"max_queue_tokens": 640}) as running:
        await running.classify(input=["great", "coffee"])
        found = samples(running.service.metrics)
        (info,) = found["assay_model_info"]
        assert dict(info) == {
            "model": "tiny",
            "architecture": "BertForSequenceClassification",
            "dtype": "float32",
            "device": "cpu",
            "max_model_len": "128",
            "version": __version__,
        }
        assert found["assay_queue_limit_tokens"] == {labels(model="tiny"): 640}
        assert sum(found["assay_labels_total"].values()) == 2
        assert found["assay_model_state"][labels(model="tiny", state="ok")] == 1
        running.service.engines[0].refuse()
        assert samples(running.service.metrics)["assay_model_state"][labels(model="tiny", state="draining")] == 1


async def test_a_model_that_loads_says_so(folder: Path) -> None:
    gate = threading.Event()

    def slow(*arguments: Any) -> Engine:
        gate.wait(20)
        return Engine.load(*arguments)

    async with in_process(folder, load=slow, wait=False, served_model_name="tiny") as running:
        assert samples(running.service.metrics)["assay_model_state"][labels(model="tiny", state="loading")] == 1
        gate.set()


async def test_a_failed_forward_is_counted_and_death_is_a_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with in_process(folder, served_model_name="tiny") as running:
        engine = running.service.engines[0]
        monkeypatch.setattr(engine._worker.runner, "run", Mock(side_effect=RuntimeError))
        assert (await running.classify(input="great")).status_code == 500
        found = samples(running.service.metrics)
    assert found["assay_batch_failures_total"][labels(model="tiny")] >= 1
    assert found["assay_model_state"][labels(model="tiny", state="dead")] == 1


async def test_requests_in_flight(folder: Path) -> None:
    async with in_process(folder, served_model_name="tiny") as running:
        gate = threading.Event()
        module = running.service.engines[0].model.module
        handle = module.register_forward_pre_hook(lambda *_: gate.wait(20) and None)
        tasks = [asyncio.create_task(running.classify(input="great")) for _ in range(2)]
        deadline = time.monotonic() + 10
        try:
            while samples(running.service.metrics)["assay_requests_in_flight"][labels(model="tiny")] != 2:
                assert time.monotonic() < deadline, "waited in vain"
                await asyncio.sleep(0.01)
        finally:
            gate.set()
            handle.remove()
        assert [(await task).status_code for task in tasks] == [200, 200]
        assert samples(running.service.metrics)["assay_requests_in_flight"] == {labels(model="tiny"): 0}
