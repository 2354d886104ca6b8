"""The figures that decide: ratios of what one run measured, beside what was aimed at. Knows reports, no measure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ratio:
    """aim: at least, or at most where `at_most`; None where it is only told. unit: after the figure."""

    name: str
    value: float
    aim: float | None = None
    at_most: bool = False
    unit: str = "×"

    @property
    def reached(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim


def ratios(reports: dict[str, Report]) -> list[Ratio]:
    """Of the parts that were measured: part → its report."""
    return [
        ratio
        for part, of in _OF_PART.items()
        if part in reports and "problem" not in reports[part]
        for ratio in of(reports[part])
    ]


def _throughput(report: Report) -> Iterator[Ratio]:
    for model, found in report["models"].items():
        ran = {name: one for name, one in found.get("contenders", {}).items() if "problem" not in one}
        if "assay" not in ran:
            continue
        own = ran["assay"]
        yield Ratio(f"{model}: float32, share of the GEMM peak", 100 * own["share_of_peak"], 85, unit=" %")
        peers = {name: ran[name] for name in ("onnx", "openvino") if name in ran}
        for name, peer in peers.items():
            yield Ratio(f"{model}: throughput over {_TITLES[name]}", _over(own, peer))
        if peers:
            fastest = max(peers.values(), key=lambda one: one["tokens_per_second"])
            aim = 1.2 if model == "bert-base" else 1.3
            yield Ratio(f"{model}: throughput over the best of them", _over(own, fastest), aim)
        if "onnx" in ran:
            for tokens, ms in own["latency_ms"].items():
                faster = ran["onnx"]["latency_ms"][tokens] / ms if ms else 0.0
                yield Ratio(f"{model}: one request of {tokens} tokens, speed over ONNX Runtime", faster, 1.0)
        yield from _of_ours(model, ran)


def _of_ours(model: str, ran: Report) -> Iterator[Ratio]:
    own = ran["assay"]
    if "assay-int8" in ran:
        aim = 1.4 if model == "minilm" else 1.8
        yield Ratio(f"{model}: int8 over our float32", _over(ran["assay-int8"], own), aim)
        if "onnx-int8" in ran:
            over = _over(ran["assay-int8"], ran["onnx-int8"])
            yield Ratio(f"{model}: int8 over ONNX Runtime's int8", over, 1.7)
    if "assay-deterministic" in ran:
        kept = 100 * _over(ran["assay-deterministic"], own)
        yield Ratio(f"{model}: throughput that --deterministic keeps", kept, unit=" %")
    if "assay-bf16" in ran:
        yield Ratio(f"{model}: bfloat16 over our float32", _over(ran["assay-bf16"], own))


def _http(report: Report) -> Iterator[Ratio]:
    both = report.get("http_against_in_process")
    if both:
        share = 100 * both["share_of_what_the_load_generator_leaves"]
        yield Ratio(f"behind HTTP, {both['callers']:g} callers: share of in-process tokens/s", share, 95, unit=" %")
    at = {name: by["64"] for name, by in report["servers"].items() if "64" in by}
    own = at.pop("assay", None)
    if own is None:
        return
    for name, peer in at.items():
        aim = 2.5 if name == "infinity-torch" else None
        yield Ratio(f"behind HTTP, 64 callers: throughput over {_TITLES[name]}", _over(own, peer), aim)
    if at:
        fastest = max(at.values(), key=lambda one: one["tokens_per_second"])
        yield Ratio("behind HTTP, 64 callers: throughput over the best of them", _over(own, fastest), 1.3)


def _front(report: Report) -> Iterator[Ratio]:
    quiet = report["requests"]["no access log"]
    single, many = quiet["1 text"]["requests_per_second"], quiet["32 texts"]["requests_per_second"]
    yield Ratio("HTTP front on one core, no model: requests of one text", single, 8000, unit="/s")
    bare = report["requests"]["bare uvicorn"]["1 text"]["requests_per_second"]
    yield Ratio("HTTP front on one core, no model: of what a bare uvicorn answers", 100 * single / bare, unit=" %")
    yield Ratio("HTTP front on one core, no model: texts, 32 a request", 32 * many, 4000, unit="/s")


def _fairness(report: Report) -> Iterator[Ratio]:
    name = "one caller of 20 tokens under a bulk load: p99"
    yield Ratio(name, report["p99_batches"], 2.0, at_most=True, unit=" batches' time")


def _footprint(report: Report) -> Iterator[Ratio]:
    weights = report["weights_mib"]
    for name, held in report["memory_mib"].items():
        aim = 350 if name == "rest" else None
        yield Ratio(f"{report['model']}: memory beyond the weights, {name}", held - weights, aim, True, " MiB")
    start = report["start_seconds"]["difference"]
    yield Ratio(f"{report['model']}: start to first answer, beyond torch and reading", start, 1.0, True, " s")


def _quality(report: Report) -> Iterator[Ratio]:
    if "skipped" in report:
        return
    yield Ratio("int8: texts whose best label changes", 100 * report["top_label_flips"], 0.5, True, " %")
    yield Ratio("int8: label decisions that change", 100 * report["decision_flips"], 0.5, True, " %")
    yield Ratio("int8: macro-F1, distance from float32's", abs(report["macro_f1"]["difference"]), 0.005, True, "")


def _over(one: Report, other: Report) -> float:
    return float(one["tokens_per_second"] / other["tokens_per_second"])


_TITLES = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "infinity-torch": "Infinity (torch)",
    "infinity-onnx": "Infinity (ONNX)",
    "pipeline-fastapi": "transformers pipeline + FastAPI",
}
_OF_PART = {
    "throughput": _throughput,
    "http": _http,
    "front": _front,
    "fairness": _fairness,
    "footprint": _footprint,
    "quality": _quality,
}
