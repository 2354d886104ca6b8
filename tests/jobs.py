"""Jobs over files in this process: a tiny model, files of every format, one call a job. Knows no expectations."""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.commands.options import configured
from assay.config import EngineConfig
from assay.files.plan import Plan, plan
from assay.files.readers import read_rows
from assay.files.settings import JobConfig
from assay.files.unfinished import State
from tests.tiny import save_bert

LABELS = ("bad", "fair", "good")
TEXTS = [
    "the coffee was great",
    "so new, and the update broke everything",
    "loved it",
    "café — ‘great’ “coffee”",
    "great " * 40,
    "a\tb",
]
_MODULES = ("delimited", "lines", "parquet")


def save_nano(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A model that costs next to nothing; it reads at most 128 tokens."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    save_bert(folder, seed, id2label=dict(enumerate(LABELS)), **sizes | config)
    return folder


def small_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Cut files into blocks of so many rows."""
    for module in _MODULES:
        monkeypatch.setattr(f"assay.files.{module}.BLOCK_ROWS", rows)


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """A file in the format of its ending, written by libraries that are not ours or by hand."""
    rows = list(zip(*columns.values(), strict=True))
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        pq.write_table(pa.table(columns), path)
        return path
    if name.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]
    elif name.endswith(".csv"):
        lines = [",".join(map(_quoted, row)) for row in [tuple(columns), *rows]]
    elif name.endswith(".tsv"):
        lines = ["\t".join(map(str, row)) for row in [tuple(columns), *rows]]
    else:
        lines = [str(row[-1]) for row in rows]
    path.write_bytes(packed("".join(line + "\n" for line in lines).encode(), path))
    return path


def packed(data: bytes, path: Path) -> bytes:
    """Compressed as the path's ending says."""
    if path.suffix == ".gz":
        return gzip.compress(data)
    found: bytes = pa.compress(data, codec="zstd", asbytes=True) if path.suffix == ".zst" else data
    return found


def _quoted(value: Any) -> str:
    return '"' + str(value).replace('"', '""') + '"'


@dataclass
class Watched:
    """A watcher that keeps what it is told."""

    reports: list[str] = field(default_factory=list)
    tokens: int = 0
    bytes_read: int = 0

    def scored(self, num_tokens: int) -> None:
        self.tokens += num_tokens

    def bad_row(self, report: str) -> None:
        self.reports.append(report)

    def written(self, state: State, bytes_read: int) -> None:
        self.bytes_read = bytes_read


@dataclass
class Outcome:
    state: State
    watched: Watched

    @property
    def reports(self) -> list[str]:
        return self.watched.reports


def planned(inputs: Path | str | list[Path], out: Path | str, model: Path, **settings: Any) -> Plan:
    """settings: of EngineConfig and of JobConfig, by name."""
    values = settings | {"model": str(model), "output": str(out)}
    names = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
    return plan(names, configured(EngineConfig, values), configured(JobConfig, values))


def run_job(inputs: Path | str | list[Path], out: Path | str, model: Path, **settings: Any) -> Outcome:
    """`assay classify INPUTS -m MODEL -o OUT`, without a terminal."""
    job, watched = planned(inputs, out, model, **settings), Watched()
    return Outcome(job.run(job.open(), watched), watched)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a job wrote."""
    return [row.values for row in read_rows(path)]
