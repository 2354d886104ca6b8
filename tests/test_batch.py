"""pack(): no padding, nothing lost, nothing mixed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.model.batch import Run, pack
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
