"""The varlen kernel's path against the dense one: on a GPU with the kernel, elsewhere with a plain double of it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.model.attention import attention, by_varlen, has_varlen
from assay.model.batch import PackedBatch, pack, pick
from assay.sequence import Sequence

LENGTHS = [1, 5, 5, 17, 40, 64]
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "causal window": {"causal": True, "window": (7, 0)},
    "window": {"window": (6, 6)},
    "first token": {"rows": "first"},
    "last token": {"rows": "last", "causal": True},
    "last token, window": {"rows": "last", "causal": True, "window": (7, 0)},
}


def inputs(heads: int, kv_heads: int, dtype: torch.dtype, device: str) -> tuple[PackedBatch, list[Tensor]]:
    batch = pack([Sequence([1] * length) for length in LENGTHS]).to(torch.device(device))
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch.num_tokens, n, 16, generator=generator) for n in (heads, kv_heads, kv_heads)]
    return batch, [x.to(device, dtype) for x in made]


def double(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **options: Any
) -> Tensor:
    """What torch's documentation says of varlen_attn: queries stand at the end of their keys, -1 is without a bound."""
    out = torch.empty_like(query)
    left, right = (math.inf if side < 0 else side for side in options["window_size"])
    groups = query.shape[1] // key.shape[1]
    assert options["enable_gqa"] == (groups > 1)
    assert (max_q, max_k) == tuple(int(cu.diff().max()) for cu in (cu_q, cu_k))
    for i in range(len(cu_q) - 1):
        qs, ks = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
        q, k, v = (x.float().transpose(0, 1) for x in (query[qs], key[ks], value[ks]))
        scores = q @ k.repeat_interleave(groups, 0).transpose(1, 2) * options["scale"]
        place = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
        distance = place - torch.arange(k.shape[1])
        scores.masked_fill_((distance > left) | (-distance > right), -math.inf)
        out[qs] = (scores.softmax(-1) @ v.repeat_interleave(groups, 0)).transpose(0, 1).to(out.dtype)
    return out


def compare(case: dict[str, Any], heads: int, kv_heads: int, dtype: torch.dtype, device: str, tolerance: float) -> None:
    batch, (q, k, v) = inputs(heads, kv_heads, dtype, device)
    q = pick(q, batch, case.get("rows"))
    dense = attention(q.float(), k.float(), v.float(), batch, scale=0.25, **case)
    varlen = by_varlen(q, k, v, batch, scale=0.25, **case)
    assert varlen.shape == dense.shape
    assert float((varlen.float() - dense).abs().max()) <= tolerance


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_the_double_is_asked_for_what_the_dense_path_computes(
    name: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", double)
    compare(CASES[name], 6, kv_heads, torch.float32, "cpu", 2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_computes_what_the_dense_path_does(name: str, kv_heads: int, dtype: torch.dtype) -> None:
    compare(CASES[name], 6, kv_heads, dtype, "cuda", 0.03)


def test_what_has_no_kernel_takes_the_dense_path() -> None:
    asked: Callable[..., bool] = lambda q, window=None, softcap=None, rows=None, causal=False: has_varlen(  # noqa: E731
        q, window, softcap, rows, causal
    )
    half = torch.empty(1, 2, 64, dtype=torch.bfloat16)
    assert asked(half)
    assert asked(half, rows="last", causal=True, window=(5, 0))
    assert not asked(half.float())
    assert not asked(half, softcap=50.0)
    assert not asked(half[..., :63])
    assert not asked(half, rows="first", window=(5, 5))
