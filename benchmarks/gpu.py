"""The engine on a CUDA device: tokens/s, share of the matmul peak, latency. One command, within ten minutes.

    python -m benchmarks.gpu [--model bert-base] [--output benchmarks/results/gpu.json]

Three speeds of each model in bfloat16, on the same texts: batches formed beforehand through the model alone, token ids
through the whole engine, and texts. The peak is the fastest matrix product of the model's own shapes, measured in the
same rounds. Exit code 2 where there is no CUDA device.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from assay import Classifier
from assay.config import Device
from assay.engine.runner import form
from assay.sequence import Sequence
from benchmarks import flops, workload
from benchmarks.inprocess import LATENCY_TOKENS
from benchmarks.machine import line, machine
from benchmarks.models import MODELS, Model, folder_of
from benchmarks.plan import say

DEFAULT = ("minilm", "bert-base", "modernbert-base", "qwen3-0.6b")
_TEXTS = 4096
_BATCH_TOKENS = 32_768
_PEAK_ROWS = (8192, 32_768)
_SINGLES = 50  # requests of each length, in each round


def measure(
    model: Model, device: Device = "cuda", texts: int = _TEXTS, rounds: int = 5, batch_tokens: int = _BATCH_TOKENS
) -> dict[str, Any]:
    """device: a CPU serves to try the steps."""
    folder = folder_of(model)
    content = workload.texts(texts)
    shape = flops.shape_of(folder, model.family)
    dtype = "bfloat16" if device == "cuda" else "float32"
    classifier = Classifier(str(folder), device=device, dtype=dtype, max_batch_tokens=batch_tokens)
    with classifier:
        ids = _ids(folder, content)
        lengths = [len(one) for one in ids]
        gigaflops = sum(flops.flops(shape, length) for length in lengths) / 1e9
        ways: dict[str, Callable[[], Any]] = {
            "model alone": _model_alone(classifier, ids, batch_tokens),
            "token ids": lambda: classifier.classify(ids),
            "texts": lambda: classifier.classify(content),
        }
        singles = {n: workload.texts_of([n], seed=1)[0] for n in LATENCY_TOKENS}
        for work in ways.values():
            work()
        peaks: list[float] = []
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        latencies: dict[int, list[float]] = {n: [] for n in singles}
        for number in range(rounds):
            say(f"{model.name}: round {number + 1} of {rounds}")
            peaks.append(_peak(shape, classifier.model.dtype, classifier.model.device))
            for name, work in ways.items():
                seconds[name].append(_seconds(work))
            for n, text in singles.items():
                latencies[n] += [_seconds(lambda text=text: classifier.classify(text)) for _ in range(_SINGLES)]  # type: ignore[misc]
        apart = _distance(classifier, folder, content[:8])
    peak = median(peaks)
    return {
        "dtype": dtype,
        "max_batch_tokens": batch_tokens,
        "workload": {**workload.describe(content, lengths), "useful_gflop": round(gigaflops, 1)},
        "rounds": rounds,
        "peak_tflops": round(peak / 1000, 2),
        "ways": {name: _figures(sum(lengths), gigaflops, median(taken), peak) for name, taken in seconds.items()},
        "latency_ms": {str(n): round(1000 * median(taken), 3) for n, taken in latencies.items()},
        "largest_logit_difference_from_float32": apart,
    }


def _ids(folder: Path, texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _model_alone(classifier: Classifier, ids: list[list[int]], batch_tokens: int) -> Callable[[], None]:
    """The runner over batches that are formed already, longest texts together: what no queue could better."""
    runner = classifier._engine.runner
    groups: list[list[Sequence]] = [[]]
    for one in sorted(ids, key=len):
        if sum(sequence.num_tokens for sequence in groups[-1]) + len(one) > batch_tokens:
            groups.append([])
        groups[-1].append(Sequence(one))
    batches = [form(group) for group in groups]

    def run() -> None:
        for batch in batches:
            runner.run(batch)

    return run


def _peak(shape: flops.Shape, dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the fastest product of the model's matrices, medians of ten."""
    best = 0.0
    for size_in, size_out in flops.matrices(shape):
        weight = torch.randn(size_in, size_out, dtype=dtype, device=device)
        for rows in _PEAK_ROWS if device.type == "cuda" else (256,):
            x = torch.randn(rows, size_in, dtype=dtype, device=device)
            out = torch.empty(rows, size_out, dtype=dtype, device=device)
            taken = [_seconds(lambda x=x, w=weight, out=out: _multiply(x, w, out, device)) for _ in range(11)][1:]  # type: ignore[misc]
            best = max(best, 10 * 2 * rows * size_in * size_out / median(taken) / 1e9)
    return best


def _multiply(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, device: torch.device) -> None:
    """Ten times, so that a launch costs nothing beside them."""
    for _ in range(10):
        torch.mm(x, weight, out=out)
    if device.type == "cuda":
        torch.cuda.synchronize()


def _distance(classifier: Classifier, folder: Path, texts: list[str]) -> float:
    """From the same engine in float32 on the CPU: a speed counts only where the scores are the same."""
    with Classifier(str(folder), device="cpu") as reference:
        pairs = zip(classifier.classify(texts), reference.classify(texts), strict=True)
        apart = (abs(a - b) for one, two in pairs for a, b in zip(one.logits, two.logits, strict=True))
        return float(round(max(apart), 5))


def _figures(tokens: int, gigaflops: float, seconds: float, peak: float) -> dict[str, float]:
    return {
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(gigaflops / seconds / 1000, 2),
        "share_of_peak": round(gigaflops / seconds / peak, 3),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = perf_counter()
    work()
    return perf_counter() - started


def table(model: str, report: dict[str, Any]) -> str:
    """For the terminal."""
    lines = [f"{model}: peak {report['peak_tflops']} TFLOP/s in {report['dtype']}; {report['workload']}"]
    lines += [
        f"  {name:12} {one['tokens_per_second']:10,} tokens/s {one['tflops']:8} TFLOP/s {one['share_of_peak']:6.1%}"
        for name, one in report["ways"].items()
    ]
    apart = report["largest_logit_difference_from_float32"]
    return "\n".join([*lines, f"  one request, ms by tokens: {report['latency_ms']}; logits from float32's: {apart}"])


def _device() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30), "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append", help=f"may be repeated; default: {DEFAULT}")
    parser.add_argument("--batch-tokens", type=int, default=_BATCH_TOKENS)
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device and a build of torch for it; here is none.", file=sys.stderr)
        sys.exit(2)
    report: dict[str, Any] = {"machine": machine(), "gpu": _device(), "models": {}}
    print(f"{report['gpu']}; {line(report['machine'])}", flush=True)
    for name in arguments.model or DEFAULT:
        report["models"][name] = measure(MODELS[name], batch_tokens=arguments.batch_tokens)
        print(table(name, report["models"][name]), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
