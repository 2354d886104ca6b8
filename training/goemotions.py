"""GoEmotions (Demszky et al., 2020) as texts and a matrix of labels. Knows the file format, not models or tokens."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One of the three splits. `targets` is `[texts, labels]`, float32, 1 where a rater's label survived filtering."""

    texts: list[str]
    targets: Tensor


def read_labels(folder: Path) -> list[str]:
    """The label names, in the order of their ids."""
    return (folder / "labels.txt").read_text(encoding="utf-8").split()


def read_split(folder: Path, name: str) -> Split:
    """Read `train`, `dev` or `test`: text, comma-separated label ids and comment id, tab-separated, quotes literal."""
    num_labels = len(read_labels(folder))
    texts: list[str] = []
    rows: list[list[int]] = []
    with open(folder / f"{name}.tsv", encoding="utf-8", newline="") as file:
        for text, ids, _comment in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts.append(text)
            rows.append([int(id_) for id_ in ids.split(",")])
    targets = torch.zeros(len(texts), num_labels)
    for target, ids_of_row in zip(targets, rows, strict=True):
        target[ids_of_row] = 1.0
    return Split(texts, targets)
