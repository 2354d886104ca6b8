"""Texts as token ids, and token ids as batches of like lengths. Knows nothing of labels' meaning or of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Tokenized texts with what should be predicted for each: `targets` is `[texts, labels]`, probabilities."""

    token_ids: list[list[int]]
    targets: Tensor


@dataclass(frozen=True)
class Batch:
    """Padded to its longest text: `input_ids` and `attention_mask` `[seqs, longest]`; `rows` are places in the data."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    rows: Tensor


def encode(tokenizer: Tokenizer, texts: list[str], targets: Tensor, max_tokens: int) -> Encoded:
    """Tokenize; a text of more than `max_tokens` loses its tail but keeps its [SEP]."""
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    cut = [ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]] for ids in token_ids]
    return Encoded(cut, targets)


def shuffled(data: Encoded, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Every text once, in random order, but batched with texts of like length so that little is padding."""
    order = torch.randperm(len(data.token_ids), generator=generator).tolist()
    pool = batch_size * 50
    groups: list[list[int]] = []
    for start in range(0, len(order), pool):
        alike = sorted(order[start : start + pool], key=lambda row: len(data.token_ids[row]))
        groups.extend(alike[i : i + batch_size] for i in range(0, len(alike), batch_size))
    for index in torch.randperm(len(groups), generator=generator).tolist():
        yield collate(data, groups[index])


def by_length(data: Encoded, batch_size: int) -> Iterator[Batch]:
    """Every text once, shortest first."""
    order = sorted(range(len(data.token_ids)), key=lambda row: len(data.token_ids[row]))
    for start in range(0, len(order), batch_size):
        yield collate(data, order[start : start + batch_size])


def collate(data: Encoded, rows: list[int]) -> Batch:
    """The chosen texts as one padded batch. [PAD] is id 0 in every vocabulary here."""
    longest = max(len(data.token_ids[row]) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for position, row in enumerate(rows):
        ids = data.token_ids[row]
        input_ids[position, : len(ids)] = torch.tensor(ids)
        attention_mask[position, : len(ids)] = 1
    index = torch.tensor(rows)
    return Batch(input_ids, attention_mask, data.targets[index], index)
