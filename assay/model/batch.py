"""What a model sees: sequences of any length laid end to end, no padding. Knows nothing of text, requests or queues."""

from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby
from typing import Literal

import torch
from torch import Tensor

from assay.sequence import Sequence

Rows = Literal["first", "last"]
"""One token of each sequence, where a head reads no other."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring sequences of equal length: tokens start … start + count * length.

    prefix: the tokens that all of them go on from, where those are laid out once, elsewhere.
    """

    start: int
    count: int
    length: int
    prefix: "Run | None" = None


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A packed batch. Models see only this.

    input_ids, position_ids, token_type_ids: int64 [tokens]; positions count from 0 in each sequence.
    cu_seqlens: int64 [seqs + 1], the first token of each sequence, then the number of tokens.
    runs: the sequences grouped by equal length, in order; kept on the host.
    prefixes: what several sequences go on from, ahead of all of them: each computed, none a sequence (model/prefix.py).
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    cu_seqlens: Tensor
    runs: tuple[Run, ...]
    prefixes: tuple[Run, ...] = ()

    @property
    def num_seqs(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    def apart(self) -> "PackedBatch":
        """The same, with each sequence a run of its own."""
        runs = [replace(run, start=run.start + i * run.length, count=1) for run in self.runs for i in range(run.count)]
        return replace(self, runs=tuple(runs))

    def each(self) -> Iterator["PackedBatch"]:
        """Each sequence as a batch."""
        assert not self.prefixes, "a sequence without its prefix is another one"
        for run in self.apart().runs:
            tokens = slice(run.start, run.start + run.length)
            yield PackedBatch(
                self.input_ids[tokens],
                self.position_ids[tokens],
                self.token_type_ids[tokens],
                self.cu_seqlens.new_tensor([0, run.length]),
                (Run(0, 1, run.length),),
            )

    def filled(self) -> "PackedBatch":
        """With meaningless sequences behind it, where it needs them for numbers of tokens and sequences that recur."""
        tokens, seqs = recurring_tokens(self.num_tokens), recurring_seqs(self.num_seqs)
        if (tokens, seqs) == (self.num_tokens, self.num_seqs):
            return self
        more = recurring_seqs(self.num_seqs + 1) - self.num_seqs
        extra = recurring_tokens(self.num_tokens + more) - self.num_tokens
        nothing = self.input_ids.new_zeros(extra)
        first = self.num_tokens + extra - more + 1  # all but one are of one token
        ends = torch.arange(first, first + more, device=nothing.device)
        ones = (Run(first, more - 1, 1),) if more > 1 else ()
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, nothing]),
            position_ids=torch.cat([self.position_ids, nothing]),
            token_type_ids=torch.cat([self.token_type_ids, nothing]),
            cu_seqlens=torch.cat([self.cu_seqlens, ends]),
            runs=(*self.runs, Run(self.num_tokens, 1, extra - more + 1), *ones),
        )

    def to(self, device: torch.device) -> "PackedBatch":
        if device.type == "cpu":
            return self
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            token_type_ids=self.token_type_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
        )


def recurring_tokens(count: int) -> int:
    """The next of 8, 16, … 64, and from there of eight to each doubling: few numbers, at most an eighth too large."""
    return _next(count, max(8, _octave(count) // 8))


def recurring_seqs(count: int) -> int:
    """The next of 1, 2, 4, 8, and from there of two to each doubling."""
    return _next(count, _octave(count)) if count <= 8 else _next(count, _octave(count) // 2)


def _octave(count: int) -> int:
    """The largest power of two below it, or 1."""
    return 1 << max(0, (count - 1).bit_length() - 1)


def _next(count: int, step: int) -> int:
    return -(-count // step) * step


def pick(x: Tensor, batch: PackedBatch, rows: Rows | None) -> Tensor:
    """[tokens, ...] → [seqs, ...], the first or the last token of each sequence; all of x where rows is None.

    The last is the true last token, as vLLM and SGLang pool; transformers skips back over tokens that equal the pad id.
    """
    match rows:
        case None:
            return x
        case "first":
            assert not batch.prefixes, "the first token of a sequence is its prefix's"
            return x[batch.cu_seqlens[:-1]]
        case "last":
            return x[batch.cu_seqlens[1:] - 1]


def pack(sequences: Seq[Sequence]) -> PackedBatch:
    """Lay sequences end to end in the order given. Sorted by length, they give the fewest and longest runs."""
    lengths = [sequence.num_tokens for sequence in sequences]
    assert min(lengths) > 0, "a batch needs sequences, and a sequence needs tokens"
    ids, positions, counting = array("q"), array("q"), array("q", range(max(lengths)))
    for sequence in sequences:
        ids.fromlist(sequence.token_ids)
        positions += counting[: sequence.num_tokens]
    if any(s.token_type_ids for s in sequences):
        types = _tensor(array("q", chain.from_iterable(s.token_type_ids or [0] * s.num_tokens for s in sequences)))
    else:
        types = torch.zeros(sum(lengths), dtype=torch.int64)
    return PackedBatch(
        input_ids=_tensor(ids),
        position_ids=_tensor(positions),
        token_type_ids=types,
        cu_seqlens=_tensor(array("q", [0, *accumulate(lengths)])),
        runs=runs_of(lengths),
    )


def _tensor(integers: "array[int]") -> Tensor:
    """int64. `torch.tensor` reads a list ten times as slowly."""
    return torch.frombuffer(integers, dtype=torch.int64)


def runs_of(lengths: list[int], start: int = 0, prefix: Run | None = None) -> tuple[Run, ...]:
    """Sequences of these lengths, laid end to end from this token on, all of them going on from this prefix."""
    runs: list[Run] = []
    for length, same in groupby(lengths):
        count = len([*same])
        runs.append(Run(start, count, length, prefix))
        start += count * length
    return tuple(runs)
