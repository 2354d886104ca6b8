"""The benchmarks' own arithmetic: FLOPs, lengths, ratios, tables. No peer is installed and nothing is timed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ModernBertConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from assay.config import BUNDLED_MODEL
from benchmarks import contender, flops, machine, plan, quality, ratios, tables, workload
from benchmarks.contender import Contender, ContenderError, Process
from benchmarks.inprocess import CHOICES
from benchmarks.models import MODELS

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_labels": 3,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**TINY),
    "modernbert": ModernBertConfig(**TINY, local_attention=8, classifier_pooling="mean"),
    "decoder": Qwen3Config(**TINY, num_key_value_heads=2, head_dim=8),
}


def shape_of(config: PretrainedConfig, family: str, folder: Path) -> flops.Shape:
    config.save_pretrained(folder)
    return flops.shape_of(folder, family)


def counted_by_torch(config: PretrainedConfig, length: int) -> int:
    """All matrix products of one text through transformers' model, masked pairs and the whole last layer included."""
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    ids = torch.arange(1, length + 1)[None]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", CONFIGS)
def test_flops_are_those_that_torch_counts_less_what_nobody_needs(family: str, tmp_path: Path) -> None:
    config, length = CONFIGS[family], 20
    shape = shape_of(config, family, tmp_path)
    everything = replace(shape, pooled=False, dots=lambda layer, length: 2 * length * length)
    computed = counted_by_torch(config, length)
    scored = (length - 1) * 2 * 24 * 3 if family == "decoder" else 0  # transformers scores every token
    assert computed == flops.flops(everything, length) + scored


def test_the_last_layer_counts_for_the_token_that_the_head_reads(tmp_path: Path) -> None:
    shape = shape_of(CONFIGS["bert"], "bert", tmp_path)
    hidden, inner, length = 24, 40, 20
    one_token = 2 * (2 * hidden * hidden + 2 * hidden * inner) + 2 * 2 * length * hidden
    skipped = flops.flops(replace(shape, pooled=False), length) - flops.flops(shape, length)
    assert skipped == (length - 1) * one_token


def test_a_window_counts_the_pairs_that_it_lets_through(tmp_path: Path) -> None:
    shape = shape_of(CONFIGS["modernbert"], "modernbert", tmp_path)
    for length in (1, 4, 5, 6, 20):
        seen = sum(abs(i - j) <= 4 for i in range(length) for j in range(length))
        assert shape.dots(1, length) == 2 * seen  # a local layer
        assert shape.dots(0, length) == 2 * length * length


def test_distances_of_one_bucket_count_once() -> None:
    distinct = flops._distinct_distances(near=16, longest=64)
    distances = make_log_bucket_position(torch.arange(64), bucket_size=32, max_position=64)
    assert distinct == [len(set(distances[: n + 1].tolist())) for n in range(64)]
    length = 50
    of_each = [distinct[i] + distinct[length - 1 - i] - 1 for i in range(length)]  # to the left, to the right, itself
    assert sum(of_each) == 2 * sum(distinct[:length]) - length


def test_lengths_follow_the_lognormal_however_few() -> None:
    for count in (24, 256):
        drawn = sorted(workload.lengths(count))
        assert len(drawn) == count
        assert 38 <= drawn[count // 2] <= 43
        assert drawn[0] >= workload.SHORTEST
        assert drawn[-1] <= workload.LONGEST
        assert 60 <= sum(drawn) / count <= 68  # exp(1/2) medians, less what is cut off
    assert workload.lengths(24) == workload.lengths(24)
    assert workload.lengths(24) != workload.lengths(24, seed=1)


@pytest.fixture
def bundled_tokenizer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokenizer]:
    """In place of a benchmark model's."""
    monkeypatch.setattr(workload, "folder_of", lambda model: BUNDLED_MODEL)
    workload._tokenizer.cache_clear()
    yield Tokenizer.from_file(str(BUNDLED_MODEL / "tokenizer.json"))
    workload._tokenizer.cache_clear()


def test_texts_have_their_lengths_and_differ(bundled_tokenizer: Tokenizer) -> None:
    wanted = [4] * 100 + [40, 200]
    made = workload.texts_of(wanted)
    assert [len(encoding.ids) for encoding in bundled_tokenizer.encode_batch(made)] == wanted
    assert len(set(made)) == len(wanted)


def race(tokens_per_second: int, **more: Any) -> dict[str, Any]:
    return {
        "precision": "float32",
        "mode": "packed",
        "tokens_per_second": tokens_per_second,
        "gflops": 100.0,
        "share_of_peak": 0.9,
        "latency_ms": {"16": 1.0, "64": 2.0, "256": 4.0},
        "largest_logit_difference": 0.0,
        **more,
    }


WORKLOAD = {"texts": 2, "tokens": 80, "median_tokens": 40, "longest": 44}


def a_report() -> dict[str, dict[str, Any]]:
    head = {"machine": machine.machine(), "plan": "full", "seconds": 1}
    point = {"requests_per_second": 10.0, "p50_ms": 1.0, "p99_ms": 2.0, "load_cpu_share": 0.02}
    ours, theirs = {**point, "tokens_per_second": 300.0}, {**point, "tokens_per_second": 100.0}
    both = {"callers": 64, "share_of_what_the_load_generator_leaves": 0.96}
    contenders = {
        "assay": race(1000),
        "assay-int8": race(1900, precision="int8"),
        "assay-deterministic": race(950),
        "onnx": race(500, mode="2 at once", latency_ms={"16": 2.0, "64": 2.0, "256": 3.0}),
        "openvino": {"problem": "RuntimeError: no such layer"},
    }
    bert = {"workload": WORKLOAD, "peak": {"gflops": 170.0}, "rounds": 3, "contenders": contenders}
    return {
        "throughput": {**head, "models": {"bert-base": bert, "qwen3-0.6b": {"problem": "killed"}}},
        "http": {
            **head,
            "model": "minilm",
            "rounds": 1,
            "workload": WORKLOAD,
            "servers": {"assay": {"1": ours, "64": ours}, "infinity-torch": {"1": theirs, "64": theirs}},
            "problems": {"infinity-onnx": "pip: no matching distribution"},
            "http_against_in_process": both,
        },
        "quality": {**head, "skipped": "no data"},
        "front": {**head, "problem": "64 callers got {'503': 1}"},
    }


def test_ratios_are_of_like_with_like_and_say_whether_they_reach_the_aim() -> None:
    found = {one.name: one for one in ratios.ratios(a_report())}
    assert found["bert-base: float32, share of the GEMM peak"].value == 90
    assert found["bert-base: throughput over the best of them"].value == 2.0
    assert found["bert-base: throughput over the best of them"].aim == 1.2
    assert found["bert-base: one request of 16 tokens, speed over ONNX Runtime"].reached
    assert not found["bert-base: one request of 256 tokens, speed over ONNX Runtime"].reached
    assert found["bert-base: int8 over our float32"].value == 1.9
    assert found["bert-base: throughput that --deterministic keeps"].value == 95
    assert found["bert-base: throughput that --deterministic keeps"].reached is None
    assert found["behind HTTP, 64 callers: throughput over Infinity (torch)"].value == 3.0
    assert found["behind HTTP, 64 callers: share of in-process tokens/s"].reached
    assert not [name for name in found if "openvino" in name or "front" in name]


def test_the_page_names_everything_that_did_not_run() -> None:
    peers = {"onnx": {"onnxruntime": "1.0"}, "openvino": {"problem": "pip: no wheel"}}
    report = a_report()
    report["throughput"]["note"] = "on a busy day."
    page = tables.document(report, peers, "../../README.md")
    assert "- throughput: on a busy day.\n" in page
    assert "[benchmarks/README.md](../../README.md)" in page
    _, _, problems = page.partition("## Did not run")
    for part in (
        "openvino: pip: no wheel",
        "throughput, bert-base, openvino: RuntimeError: no such layer",
        "throughput, qwen3-0.6b: killed",
        "http, infinity-onnx: pip: no matching distribution",
        "front: 64 callers got {'503': 1}",
    ):
        assert f"- {part}\n" in problems
    assert "Not measured: no data." in page
    assert "| onnx (2 at once) | float32 | 500 |" in page
    for line in page.splitlines():
        assert "None" not in line
    widths = [line.count("|") for line in page.splitlines() if line.startswith("| assay")]
    assert widths == [10] * 3 + [8] * 2


def test_every_plan_names_models_and_contenders_that_there_are() -> None:
    for one in (plan.FULL, plan.QUICK, plan.SMOKE):
        assert {one.served, one.fairness, one.footprint, *one.races} <= set(MODELS)
        assert all(set(race.contenders) <= set(CHOICES) for race in one.races.values())
        assert one.served_texts >= max(one.callers)  # no text is asked for twice at once
    assert {"minilm", "bert-base", "deberta-v3-base", "modernbert-base", "qwen3-0.6b"} == set(plan.FULL.races)


def test_quality_counts_labels_that_change_sides() -> None:
    targets = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    plain = [[4.0, -4.0], [-4.0, 4.0], [4.0, -4.0], [-4.0, 4.0]]
    found = quality.compare(targets, plain, plain)
    assert (found["top_label_flips"], found["decision_flips"], found["macro_f1"]["float32"]) == (0, 0, 1.0)
    found = quality.compare(targets, plain, [[-4.0, 4.0], *plain[1:]])
    assert (found["top_label_flips"], found["decision_flips"]) == (0.25, 0.25)
    assert found["macro_f1"]["difference"] < 0


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Contender]:
    """A contender that does what this code says."""
    monkeypatch.setattr(contender, "_WORKERS", tmp_path)
    monkeypatch.setattr(contender, "BUILD", tmp_path)
    (tmp_path / "lines.py").write_text((Path(contender.__file__).parent / "workers" / "lines.py").read_text())

    def write(code: str) -> Contender:
        (tmp_path / "some_worker.py").write_text(code)
        return Contender("some", "some_worker")

    return write


def test_a_contender_answers_and_tells_its_problems(worker: Callable[[str], Contender]) -> None:
    code = "from lines import answer\nanswer({'double': lambda number: print('a library talks') or 2 * number, "
    code += "'fail': lambda: [][0]})\n"
    with Process(worker(code)) as process:
        assert process.ask("double", number=4) == 8
        with pytest.raises(ContenderError, match="IndexError: list index out of range"):
            process.ask("fail")
        assert process.ask("double", number=5) == 10


def test_a_contender_that_ends_leaves_its_last_words(worker: Callable[[str], Contender]) -> None:
    code = "import sys\nsys.stderr.write('ImportError: no such engine\\nbye\\n')\nsys.exit(3)\n"
    with Process(worker(code)) as process, pytest.raises(ContenderError, match="ended with 3: ImportError: no such"):
        process.ask("load")


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    plot(a_report()["http"], tmp_path / "http.svg")
    assert (tmp_path / "http.svg").read_text().count("<use ") >= 4  # the points, ours and theirs
