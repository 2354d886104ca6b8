"""attention() over runs against a plain reference, one sequence and one head at a time."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from assay.model.attention import attention
from assay.model.batch import PackedBatch, pack, pick
from assay.sequence import Sequence

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 2e-6


def packed(lengths: list[int]) -> PackedBatch:
    return pack([Sequence([1] * length) for length in lengths])


def qkv(tokens: int, heads: int, kv_heads: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, n, head_dim, generator=generator) for n in (heads, kv_heads, kv_heads))  # type: ignore[return-value]


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: list[int],
    scale: float,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax(q kᵀ · scale) v, in float64, sequence by sequence and head by head, the mask spelt out pair by pair."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    groups = q.shape[1] // k.shape[1]
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    for start, end in pairwise(bounds):
        for head in range(q.shape[1]):
            q_one, k_one, v_one = q[start:end, head], k[start:end, head // groups], v[start:end, head // groups]
            scores = q_one.double() @ k_one.double().T * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            for i in range(end - start):
                for j in range(end - start):
                    outside = window is not None and (i - j > window[0] or j - i > window[1])
                    if outside or (causal and j > i):
                        scores[i, j] = -math.inf
            out[start:end, head] = torch.softmax(scores, dim=-1) @ v_one.double()
    return out.float()


def check(lengths: list[int], heads: int = 4, kv_heads: int = 4, head_dim: int = 9, **options: Any) -> None:
    q, k, v = qkv(sum(lengths), heads, kv_heads, head_dim)
    scale = head_dim**-0.5
    got = attention(q, k, v, packed(lengths), scale=scale, **options)
    assert got.shape == q.shape
    assert (got - reference(q, k, v, lengths, scale, **options)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "lengths",
    [[1], [1, 1, 1], [5], [3, 3, 3], [1, 2, 3, 4], [4, 3, 4, 3], [2, 2, 7, 7, 7, 1], [33, 1, 32]],
    ids=str,
)
def test_runs_equal_the_sequences_taken_alone(lengths: list[int]) -> None:
    check(lengths)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=7),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([1, 3, 8]),
    causal=st.booleans(),
    window=st.none() | st.tuples(st.integers(0, 13), st.integers(0, 13)),
    softcap=st.none() | st.sampled_from([0.5, 30.0]),
)
def test_any_lengths_in_any_order(
    lengths: list[int],
    kv_heads: int,
    head_dim: int,
    causal: bool,
    window: tuple[int, int] | None,
    softcap: float | None,
) -> None:
    options: dict[str, Any] = {"causal": causal, "window": window, "softcap": softcap}
    check(lengths, kv_heads=kv_heads, head_dim=head_dim, **options)
    q, k, v = qkv(sum(lengths), 4, kv_heads, head_dim)
    batch = packed(lengths)
    everywhere = attention(q, k, v, batch, scale=0.4, **options)
    for rows in ("first", "last"):  # one query a sequence is that query among all
        alone = attention(pick(q, batch, rows), k, v, batch, scale=0.4, rows=rows, **options)
        assert (alone - pick(everywhere, batch, rows)).abs().max() < TOLERANCE


def test_softcap_over_more_rows_than_one_block() -> None:
    check([70, 300], heads=1, kv_heads=1, head_dim=4, causal=True, softcap=5.0)


def test_a_window_over_more_rows_than_one_block() -> None:
    check([300, 2], heads=1, kv_heads=1, window=(5, 3))
    check([300], heads=2, kv_heads=1, causal=True, window=(150, 0))


def test_a_sequence_sees_no_other() -> None:
    """Every other sequence's keys and values become enormous; this one's output does not move by a bit."""
    lengths = [4, 4, 4, 6]
    q, k, v = qkv(sum(lengths), 2, 2, 5)
    batch = packed(lengths)
    before = attention(q, k, v, batch, scale=0.4)
    for start, end in ((0, 4), (4, 8), (8, 12), (12, 18)):
        others = torch.ones(18, dtype=torch.bool)
        others[start:end] = False
        k_other, v_other = k.clone(), v.clone()
        k_other[others] = 1e4
        v_other[others] = float("nan")
        after = attention(q, k_other, v_other, batch, scale=0.4)
        assert torch.equal(after[start:end], before[start:end])


def test_the_reference_bites() -> None:
    """A leak between two sequences, or a wrong scale, is four orders of magnitude above the tolerance."""
    lengths = [4, 4]
    q, k, v = qkv(8, 2, 2, 5)
    right = reference(q, k, v, lengths, 0.4)
    leaking = attention(q, k, v, packed([8]), scale=0.4)
    wrong_scale = attention(q, k, v, packed(lengths), scale=1.0)
    assert (leaking - right).abs().max() > 1e-2
    assert (wrong_scale - right).abs().max() > 1e-2


def test_strided_views_of_a_fused_projection() -> None:
    """q, k and v are views into one matrix in the models; attention must not mistake their strides."""
    fused = torch.randn(10, 3, 2, 6, generator=torch.Generator().manual_seed(1))
    q, k, v = fused.unbind(1)
    got = attention(q, k, v, packed([3, 3, 4]), scale=0.5)
    assert (got - reference(q, k, v, [3, 3, 4], 0.5)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision_keeps_its_dtype(dtype: torch.dtype, tolerance: float) -> None:
    lengths = [5, 5, 9]
    q, k, v = (x.to(dtype) for x in qkv(19, 4, 2, 8))
    got = attention(q, k, v, packed(lengths), scale=0.35)
    assert got.dtype == dtype
    assert (got.float() - reference(q, k, v, lengths, 0.35)).abs().max() < tolerance
