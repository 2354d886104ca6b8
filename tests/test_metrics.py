"""What Metrics renders is Prometheus' text format, under names that dashboards may rely on."""

from prometheus_client.parser import text_string_to_metric_families

from assay.metrics import Metrics
from assay.sequence import Timings

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


def test_names_and_values() -> None:
    metrics = Metrics()
    metrics.requests.labels("classify", 200).inc()
    metrics.requests.labels("classify", 200).inc()
    metrics.request_seconds.labels("classify").observe(0.004)
    metrics.errors.labels("queue_full").inc()
    model = metrics.of("m")
    model.sequences.inc(3)
    model.tokens.inc(70)
    model.batch_tokens.observe(70)
    model.batch_sequences.observe(3)
    found = samples(metrics)
    assert found["assay_requests_total"] == {labels(dialect="classify", status="200"): 2}
    assert found["assay_errors_total"] == {labels(type="queue_full"): 1}
    assert found["assay_sequences_total"] == {labels(model="m"): 3}
    assert found["assay_tokens_total"] == {labels(model="m"): 70}
    assert found["assay_request_seconds_count"] == {labels(dialect="classify"): 1}
    assert found["assay_batch_tokens_sum"] == {labels(model="m"): 70}
    assert found["assay_batch_sequences_sum"] == {labels(model="m"): 3}


def test_a_fresh_model_already_shows_its_counts() -> None:
    metrics = Metrics()
    metrics.of("m")
    found = samples(metrics)
    for name in ("assay_sequences_total", "assay_tokens_total", "assay_queue_tokens", "assay_queue_sequences"):
        assert found[name] == {labels(model="m"): 0}
    assert found["assay_batch_tokens_count"] == {labels(model="m"): 0}


def test_stages() -> None:
    metrics = Metrics()
    model = metrics.of("m")
    model.observe_stages(Timings(tokenize=0.25, queue=0.5, inference=2.0))
    model.observe_stages(Timings(tokenize=0.25, queue=0.5, inference=2.0))
    found = samples(metrics)
    assert found["assay_stage_seconds_sum"] == {
        labels(model="m", stage="tokenize"): 0.5,
        labels(model="m", stage="queue"): 1.0,
        labels(model="m", stage="inference"): 4.0,
    }


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
