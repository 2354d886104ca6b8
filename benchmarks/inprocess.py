"""In-process throughput and one-request latency, against the machine's GEMM peak and against peers' engines.

    python -m benchmarks.inprocess --model minilm [--rounds 5] [--only assay,onnx] [--texts 256]

Each contender runs in its own process; rounds go through all of them in turn, the peak first; figures are medians over
rounds. Useful FLOPs are those of benchmarks/flops.py for everyone.
"""

import argparse
import json
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import flops, workload
from benchmarks.contender import Contender, ContenderError, Process
from benchmarks.machine import BFLOAT16, machine
from benchmarks.models import MEASURED, MODELS, Model, folder_of, tokenizer_of
from benchmarks.plan import FULL, SMOKE, Race, say

PEAK = Contender("peak", "peak_worker")
_ASSAY: dict[str, dict[str, Any]] = {
    "assay": {},
    "assay-deterministic": {"deterministic": True},
    "assay-int8": {"quantization": "int8"},
    "assay-bf16": {"dtype": "bfloat16"},
}
_PRECISION = {"assay-int8": "int8", "onnx-int8": "int8", "assay-bf16": "bfloat16"}
CHOICES = (*_ASSAY, "onnx", "onnx-int8", "openvino")
LATENCY_TOKENS = (16, 64, 256)
_COMPARED = 8  # texts whose logits are compared


def contender(name: str, model: Model) -> Contender:
    """One of CHOICES for a model."""
    precision = _PRECISION.get(name, "float32")
    if name in _ASSAY:
        return Contender(name, "assay_worker", "", precision, _ASSAY[name])
    options = {"onnx_type": model.onnx_type, "int8": precision == "int8"}
    peer = "openvino" if name == "openvino" else "onnx"
    return Contender(name, f"{peer}_worker", peer, precision, options)


def measure(model: Model, race: Race, single_seconds: float) -> dict[str, Any]:
    """The report on one model: contender → figures or its problem."""
    folder = folder_of(model)
    texts = workload.texts(race.texts)
    tokens = counted(folder, texts)
    shape = flops.shape_of(folder, model.family)
    gigaflops = sum(flops.flops(shape, length) for length in tokens) / 1e9
    report: dict[str, Any] = {
        "workload": {**workload.describe(texts, tokens), "useful_gflop": round(gigaflops, 1)},
        "tokenizer": tokenizer_of(model),
        "rounds": race.rounds,
    }
    path = workload.saved(model.name, texts)
    singles = dict(zip(LATENCY_TOKENS, workload.texts_of(list(LATENCY_TOKENS), seed=1), strict=True))
    with ExitStack() as stack:
        peak = stack.enter_context(Process(PEAK))
        peak.ask("load", matrices=flops.matrices(shape))
        racers = [_entered(name, model, folder, path, stack) for name in race.contenders]
        peaks = []
        for number in range(race.rounds):
            say(f"{model.name}: round {number + 1} of {race.rounds}")
            peaks.append(peak.ask("peak"))
            ahead = number % len(racers)  # nobody is always the first after the peak
            for racer in racers[ahead:] + racers[:ahead]:
                racer.round(singles, single_seconds)
        report["peak"] = _peak(peaks)
    best = report["peak"]["gflops"]
    report["contenders"] = {racer.contender.name: racer.figures(sum(tokens), gigaflops, best) for racer in racers}
    _compare(racers, report["contenders"])
    return report


def _entered(name: str, model: Model, folder: Path, texts: Path, stack: ExitStack) -> "Racer":
    say(f"{model.name}: {name} loads and warms up")
    return Racer(contender(name, model), folder, texts, stack)


class Racer:
    """A contender that is loaded and warm, and what was measured of it. One that fails says why and is out."""

    def __init__(self, contender: Contender, folder: Path, texts: Path, stack: ExitStack) -> None:
        self.contender = contender
        self.problem = ""
        self.facts: dict[str, Any] = {}
        self.passes: list[dict[str, float]] = []
        self.latencies: dict[int, list[float]] = {}
        self.logits: list[list[float]] = []
        try:
            if contender.precision == "bfloat16" and not BFLOAT16 & set(machine()["multiplies_with"]):
                raise ContenderError(f"this CPU has none of {', '.join(sorted(BFLOAT16))}")
            self.process = stack.enter_context(Process(contender))
            options = dict(contender.options)
            self.facts = self.process.ask("load", model=str(folder), texts=str(texts), options=options)
            self.logits = self.process.ask("logits", count=_COMPARED)
            self._warm_up()
        except ContenderError as error:
            self._out(error)

    def _warm_up(self) -> None:
        """Half a pass, twice, in every mode that it has. The fastest alone goes into the rounds."""
        modes = self.facts.pop("modes")
        tried = {mode: min(self.process.ask("score", mode=mode, every=2)["seconds"] for _ in "ab") for mode in modes}
        self.mode = min(tried, key=tried.__getitem__)
        self.facts["mode"] = self.mode
        self.facts["modes_tried_seconds"] = {mode: round(seconds, 3) for mode, seconds in tried.items()}

    def round(self, singles: dict[int, str], seconds: float) -> None:
        if self.problem:
            return
        try:
            self.passes.append(self.process.ask("score", mode=self.mode))
            for tokens, text in singles.items():
                taken = self.process.ask("latency", text=text, seconds=seconds)
                self.latencies.setdefault(tokens, []).append(median(taken))
        except ContenderError as error:
            self._out(error)

    def figures(self, tokens: int, gigaflops: float, peak: float) -> dict[str, Any]:
        if self.problem:
            return {"problem": self.problem}
        all_seconds = [one["seconds"] for one in self.passes]
        seconds = median(all_seconds)
        return {
            "precision": self.contender.precision,
            **self.facts,
            "tokens_per_second": round(tokens / seconds),
            "gflops": round(gigaflops / seconds, 1),
            "share_of_peak": round(gigaflops / seconds / peak, 3),
            "cpu_seconds": round(median(one["cpu_seconds"] for one in self.passes), 2),
            "spread": round(max(all_seconds) / min(all_seconds), 2),
            "latency_ms": {str(n): round(1000 * median(values), 2) for n, values in self.latencies.items()},
        }

    def _out(self, error: ContenderError) -> None:
        self.problem = str(error)
        say(f"{self.contender.name} did not run: {error}")


def _peak(rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """The fastest of all kernels, matrices and rows, each the median over rounds."""
    medians = [{**same[0], "gflops": median(one["gflops"] for one in same)} for same in zip(*rounds, strict=True)]
    best = max(medians, key=lambda one: one["gflops"])
    by_matrix: dict[str, float] = {}
    for one in medians:
        name = "×".join(map(str, one["matrix"]))
        by_matrix[name] = max(by_matrix.get(name, 0.0), round(one["gflops"], 1))
    return {**best, "gflops": round(best["gflops"], 1), "best_by_matrix": by_matrix}


def _compare(racers: list[Racer], contenders: dict[str, Any]) -> None:
    """How far each contender's logits lie from the first's: a speed counts only where the scores are the same."""
    reference = racers[0].logits
    for racer in racers:
        if racer.logits and reference and not racer.problem:
            pairs = zip(chain(*racer.logits), chain(*reference), strict=True)
            contenders[racer.contender.name]["largest_logit_difference"] = round(max(abs(a - b) for a, b in pairs), 8)


def counted(folder: Path, texts: list[str]) -> list[int]:
    """Tokens of each text by the model's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def table(report: dict[str, Any]) -> str:
    """For the terminal."""
    lines = [f"peak {report['peak']['gflops']} GFLOP/s ({report['peak']['kernel']}); {report['workload']}"]
    for name, one in report["contenders"].items():
        if "problem" in one:
            lines.append(f"{name:20} did not run: {one['problem']}")
            continue
        lines.append(
            f"{name:20} {one['mode']:22} {one['tokens_per_second']:7} tokens/s  {one['gflops']:6} GFLOP/s  "
            f"{one['share_of_peak']:6.1%} of the peak  (spread {one['spread']})  "
            f"one request, ms by tokens: {one['latency_ms']}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inprocess", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append", help="may be repeated; default: all of real size")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--texts", type=int, help="of one pass")
    parser.add_argument("--only", help=f"contenders, comma-separated, of {', '.join(CHOICES)}")
    parser.add_argument("--output", type=Path, help="write the reports to this JSON file")
    arguments = parser.parse_args()
    reports = {}
    for model in arguments.model or MEASURED:
        race = {**FULL.races, **SMOKE.races}[model]
        names = tuple(arguments.only.split(",")) if arguments.only else race.contenders
        race = replace(
            race, contenders=names, rounds=arguments.rounds or race.rounds, texts=arguments.texts or race.texts
        )
        reports[model] = measure(MODELS[model], race, FULL.single_seconds)
        print(f"{model}\n{table(reports[model])}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(reports, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
