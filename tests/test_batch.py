"""pack(): no padding, nothing lost, nothing mixed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.model.batch import Run, pack, recurring_seqs, recurring_tokens
from assay.sequence import Sequence


@st.composite
def a_sequence(draw: st.DrawFn) -> Sequence:
    token_ids = draw(st.lists(st.integers(0, 30_000), min_size=1, max_size=12))
    types = draw(st.none() | st.lists(st.integers(0, 1), min_size=len(token_ids), max_size=len(token_ids)))
    return Sequence(token_ids, types)


@given(st.lists(a_sequence(), min_size=1, max_size=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_pack(sequences: list[Sequence], by_length: bool) -> None:
    if by_length:
        sequences.sort(key=lambda sequence: sequence.num_tokens)
    batch = pack(sequences)
    starts = batch.cu_seqlens.tolist()
    assert batch.num_seqs == len(sequences) == len(starts) - 1
    assert batch.num_tokens == starts[-1] == sum(sequence.num_tokens for sequence in sequences)
    assert starts[0] == 0
    for sequence, start, end in zip(sequences, starts[:-1], starts[1:], strict=True):
        assert batch.input_ids[start:end].tolist() == sequence.token_ids
        assert batch.position_ids[start:end].tolist() == list(range(sequence.num_tokens))
        assert batch.token_type_ids[start:end].tolist() == (sequence.token_type_ids or [0] * sequence.num_tokens)
    for tensor in (batch.input_ids, batch.position_ids, batch.token_type_ids):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (batch.num_tokens,)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_runs_cover_every_token_once(lengths: list[int]) -> None:
    batch = pack([Sequence([7] * length) for length in lengths])
    covered: list[int] = []
    sequence_starts: list[int] = []
    for run in batch.runs:
        covered += range(run.start, run.start + run.count * run.length)
        sequence_starts += range(run.start, run.start + run.count * run.length, run.length)
    assert covered == list(range(batch.num_tokens))
    assert sequence_starts == batch.cu_seqlens[:-1].tolist()
    assert [run.length for run in batch.runs for _ in range(run.count)] == lengths
    assert all(one.length != following.length for one, following in zip(batch.runs, batch.runs[1:], strict=False))


def test_sorted_by_length_each_length_is_one_run() -> None:
    lengths = sorted([3, 1, 3, 2, 1, 3])
    runs = pack([Sequence([1] * length) for length in lengths]).runs
    assert runs == (Run(0, 2, 1), Run(2, 1, 2), Run(4, 3, 3))


def test_to_the_cpu_copies_nothing() -> None:
    batch = pack([Sequence([1, 2, 3])])
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_to_a_gpu_moves_every_tensor() -> None:
    batch = pack([Sequence([1, 2, 3], [0, 1, 1]), Sequence([4])])
    moved = batch.to(torch.device("cuda"))
    for name in ("input_ids", "position_ids", "token_type_ids", "cu_seqlens"):
        assert getattr(moved, name).device.type == "cuda"
        assert getattr(moved, name).tolist() == getattr(batch, name).tolist()
    assert moved.runs == batch.runs


def test_an_empty_sequence_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        pack([Sequence([1]), Sequence([])])


@given(st.lists(a_sequence(), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_filled_keeps_what_is_there_and_has_numbers_that_recur(sequences: list[Sequence]) -> None:
    batch = pack(sequences)
    filled = batch.filled()
    assert recurring_tokens(filled.num_tokens) == filled.num_tokens
    assert recurring_seqs(filled.num_seqs) == filled.num_seqs
    assert filled.runs[: len(batch.runs)] == batch.runs
    for before, after in (
        (batch.input_ids, filled.input_ids),
        (batch.position_ids, filled.position_ids),
        (batch.token_type_ids, filled.token_type_ids),
    ):
        assert torch.equal(after[: len(before)], before)
        assert not after[len(before) :].any()
    lengths = [run.length for run in filled.runs for _ in range(run.count)]
    assert filled.cu_seqlens.tolist() == torch.tensor([0, *lengths]).cumsum(0).tolist()
    assert filled.cu_seqlens[-1] == filled.num_tokens
    assert [run.start for run in filled.runs] == torch.tensor(
        [0, *(run.count * run.length for run in filled.runs)]
    ).cumsum(0).tolist()[:-1]
    assert filled.filled() is filled


def test_numbers_that_recur_are_few_and_near() -> None:
    tokens = {recurring_tokens(n) for n in range(1, 2049)}
    assert {8, 16, 64, 72, 128, 144, 1024, 2048} <= tokens
    assert len(tokens) == 48
    assert all(n <= recurring_tokens(n) <= max(n + 7, n * 9 // 8) for n in range(1, 9000))
    assert sorted({recurring_seqs(n) for n in range(1, 65)}) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]


@given(st.lists(a_sequence(), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_each_and_apart(sequences: list[Sequence]) -> None:
    batch = pack(sequences)
    assert [one.input_ids.tolist() for one in batch.each()] == [sequence.token_ids for sequence in sequences]
    assert [one.cu_seqlens.tolist() for one in batch.each()] == [[0, sequence.num_tokens] for sequence in sequences]
    assert [run.length for run in batch.apart().runs] == [sequence.num_tokens for sequence in sequences]
    assert {run.count for run in batch.apart().runs} == {1}
