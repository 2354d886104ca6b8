"""`assay classify` over a file larger than any window: rows a second, and the most memory that it held.

    python -m benchmarks.files [--rows 5000000] [--formats parquet csv] [--output benchmarks/results/files.json]

The model costs next to nothing, so that what is left is the job's own: reading, tokenizing, writing. The command runs
as a process of its own, with one thread for the model: more would only fight over so little. Knows no score.
"""

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from assay.engine.encoder import PromptEncoder
from assay.engine.runner import ModelRunner
from assay.files import scorer
from benchmarks.machine import line, machine
from benchmarks.models import BUILD, REPOSITORY
from tests.jobs import run_job, save_nano
from tests.tiny import WORDS

_PIECE = 50_000
_SMALL = 50_000
_FORMATS = ("parquet", "csv")
Writer = pq.ParquetWriter | pyarrow.csv.CSVWriter


def pieces(rows: int) -> Iterator[pa.RecordBatch]:
    """Some thousand rows at a time: a number, and a text of 1 to 12 words."""
    words = [word for word in WORDS if not word.startswith("##")]
    for start in range(0, rows, _PIECE):
        drawn = random.Random(start)
        count = min(_PIECE, rows - start)
        texts = [" ".join(drawn.choices(words, k=drawn.randint(1, 12))) for _ in range(count)]
        yield pa.record_batch({"id": pa.array(range(start, start + count)), "text": pa.array(texts)})


def generate(path: Path, rows: int) -> None:
    batches = pieces(rows)
    first = next(batches)
    made: Callable[[Path, pa.Schema], Writer] = pq.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    with made(path, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)


def measure(folder: Path, model: Path, form: str, rows: int) -> dict[str, Any]:
    """One file through the command."""
    source, out = folder / f"{rows}.{form}", folder / f"{rows}.out.{form}"
    generate(source, rows)
    command = [sys.executable, "-m", "assay", "classify", str(source), "-m", str(model), "-o", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=said)
        peak = 0.0
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            peak = max(peak, _peak_mib(process.pid))  # not ru_maxrss, which begins with what this process holds
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        said.seek(0)
        summary = said.read()
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise SystemExit(summary)
    written, used = _rows(out), ended[2]
    assert written == rows, f"{written} rows of {rows} came out"
    found = {
        "rows": rows,
        "input_mib": round(source.stat().st_size / 2**20, 1),
        "output_mib": round(out.stat().st_size / 2**20, 1),
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mib": round(peak, 1),
        "said": next(text for text in summary.splitlines() if "rows/s" in text),
    }
    source.unlink()
    out.unlink()
    return found


def _peak_mib(pid: int) -> float:
    """The most that a process has held so far; 0 where it has just ended."""
    for text in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if text.startswith("VmHWM"):
            return int(text.split()[1]) / 1024
    return 0.0


def _rows(path: Path) -> int:
    if path.suffix == ".parquet":
        count: int = pq.ParquetFile(path).metadata.num_rows
        return count
    with path.open("rb") as file:
        return sum(1 for _ in file) - 1


def shares(folder: Path, model: Path) -> dict[str, float]:
    """Microseconds of a CPU a row: tokenizing, the model, and all the rest, which is ours. In this process, after it is
    warm, without the tokenizer's own threads, which no clock of a thread counts."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    gc.set_threshold(100_000)  # as the command does
    spent = {"tokenizing": 0.0, "model": 0.0}
    undo = [
        _timed(PromptEncoder, "encode", "tokenizing", spent),
        _timed(ModelRunner, "run", "model", spent),
        _timed(scorer, "form", "model", spent),
    ]
    source = folder / "shares.csv"
    generate(source, _SMALL)
    run_job(source, folder / "warm.csv", model)
    spent |= dict.fromkeys(spent, 0.0)
    started = time.process_time()
    run_job(source, folder / "shares.out.csv", model)
    total = time.process_time() - started
    for original in undo:
        original()
    spent["the rest"] = total - sum(spent.values())
    return {name: round(seconds / _SMALL * 1e6, 1) for name, seconds in spent.items()}


def _timed(owner: Any, name: str, share: str, spent: dict[str, float]) -> Callable[[], None]:
    """Count the thread's seconds in a function; the answer puts it back."""
    real = getattr(owner, name)

    @wraps(real)
    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.thread_time()
        try:
            return real(*arguments, **options)
        finally:
            spent[share] += time.thread_time() - started

    setattr(owner, name, timed)
    return lambda: setattr(owner, name, real)


def table(report: dict[str, Any]) -> str:
    rows = [
        f"{form:8} {one['rows']:>9,} rows  {one['rows_per_second']:>7,} rows/s  peak {one['peak_rss_mib']:>6} MiB"
        for form, sizes in report["formats"].items()
        for one in (sizes["small"], sizes["large"])
    ]
    return "\n".join([*rows, f"CPU µs a row: {report['cpu_microseconds_per_row']}"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.files", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--formats", nargs="+", choices=_FORMATS, default=_FORMATS)
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "formats": {}}
    print(line(report["machine"]))
    BUILD.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name)
        model = save_nano(folder / "nano")
        report["cpu_microseconds_per_row"] = shares(folder, model)
        for form in arguments.formats:
            small, large = (measure(folder, model, form, rows) for rows in (_SMALL, arguments.rows))
            growth = round(large["peak_rss_mib"] - small["peak_rss_mib"], 1)
            report["formats"][form] = {"small": small, "large": large, "peak_growth_mib": growth}
            print(table(report), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
