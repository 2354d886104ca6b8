"""Attention over a packed batch, one signature for every model. No sequence sees another; knows no projections."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from assay.model import compiled
from assay.model.batch import PackedBatch, Rows, Run

Window = tuple[int, int]
"""How far a token sees to its left and to its right, both inclusive."""

_SOFTCAP_ROWS = 256  # query rows whose scores are held at once where no fused kernel can cap them
_LOCAL_ROWS = 128  # query rows that attend within a window in one call, or a window's side where that is more


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: PackedBatch,
    *,
    scale: float,
    causal: bool = False,
    window: Window | None = None,
    softcap: float | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Attention within each sequence.

    q: [tokens, heads, head_dim], or [seqs, heads, head_dim] where `rows` says which token of each sequence asks.
    k, v: [tokens, kv_heads, head_dim], where kv_heads divides heads (GQA). Returns the shape of q.
    causal: a token sees nothing to its right. softcap: scores become cap * tanh(score / cap), as in Gemma 2.
    All sequences are one call, where there is a kernel for what is asked: assay's own on a CPU, FlashAttention's on a
    GPU. Everywhere else they are `by_runs`, which is the reference for both. Sequences that go on from a shared prefix
    see its keys ahead of their own.
    """
    if compiled.supports(q):
        left, right = window or (None, None)
        return compiled.attend(q, k, v, spans(batch, rows), rows or "all", scale, softcap, left, 0 if causal else right)
    if q.is_cuda and not batch.prefixes and has_varlen(q, window, softcap, rows, causal):
        return by_varlen(q, k, v, batch, scale=scale, causal=causal, window=window, rows=rows)
    return by_runs(q, k, v, batch, scale=scale, causal=causal, window=window, softcap=softcap, rows=rows)


def by_runs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: PackedBatch,
    *,
    scale: float,
    causal: bool = False,
    window: Window | None = None,
    softcap: float | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """As `attention`, with what torch has everywhere, in any precision.

    Each run of equal-length sequences is one dense call, so no token is padding, and a mask is built only where a
    window bites; there, blocks of queries are computed with the keys that they see.
    """
    seen_by_runs, seqs = [], 0
    for run in batch.runs if rows is not None else (*batch.prefixes, *batch.runs):  # in the order of their tokens
        k_run, v_run = _behind_prefix(k, run), _behind_prefix(v, run)
        length = k_run.shape[2]
        if rows is None:
            own, mask, one_sided = run, _mask(length, causal, window, q.device, run.length), causal
        else:  # one query each, so what it sees is a slice
            own, mask, one_sided = Run(seqs, run.count, 1), None, False
            seen = _seen(rows, length, causal, window)
            k_run, v_run = k_run[:, :, seen], v_run[:, :, seen]
        dense = _dense(by_run(q, own), k_run, v_run, mask, one_sided, window, scale, softcap)
        seen_by_runs.append(dense.transpose(1, 2).flatten(0, 1))
        seqs += run.count
    return torch.cat(seen_by_runs) if len(seen_by_runs) > 1 else seen_by_runs[0]


def spans(batch: PackedBatch, rows: Rows | None) -> Iterator[tuple[int, int, int, int]]:
    """Where each sequence lies, and the prefix that it goes on from, in the order of their tokens."""
    for run in batch.runs if rows is not None else (*batch.prefixes, *batch.runs):
        prefix = (0, 0) if run.prefix is None else (run.prefix.start, run.prefix.length)
        for start in range(run.start, run.start + run.count * run.length, run.length):
            yield start, run.length, *prefix


def has_varlen(q: Tensor, window: Window | None, softcap: float | None, rows: Rows | None, causal: bool) -> bool:
    """Whether FlashAttention's varlen kernel computes this: 16 bits, no softcap, heads of a size that it knows.

    It takes one query for the last of its keys, so that a first token's window would lie wrong.
    """
    fits = q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return fits and softcap is None and not (rows == "first" and (causal or window is not None))


def by_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: PackedBatch,
    *,
    scale: float,
    causal: bool = False,
    window: Window | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """As `attention`, in one call; the same bits for a sequence in any company (num_splits=1)."""
    from torch.nn.attention.varlen import varlen_attn  # brings the compiler with it: a second and 70 MiB

    keys = batch.cu_seqlens.to(torch.int32)
    longest = max(run.length for run in batch.runs)
    if rows is None:
        queries, most = keys, longest
    else:
        queries, most = torch.arange(batch.num_seqs + 1, dtype=torch.int32, device=keys.device), 1
    left, right = window or (-1, -1)
    seen = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        queries,
        keys,
        most,
        longest,
        scale=scale,
        window_size=(left, 0 if causal else right),
        enable_gqa=q.shape[1] != k.shape[1],
        num_splits=1,
    )
    assert isinstance(seen, Tensor), "nothing else was asked for"
    return seen


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: Window | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Equal lengths: q [count, heads, queries, head_dim], k and v [count, kv_heads, length, head_dim]; the queries are
    those of the last places.
    """
    if softcap is None and mask is not None and window is not None and q.shape[2] > 2 * _LOCAL_ROWS:
        return _local(q, k, v, mask, window, scale)
    if softcap is None:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    if causal and mask is None:
        mask = _mask(k.shape[2], True, None, q.device, q.shape[2], always=True)
    return _capped(q, k, v, mask, scale, softcap)


def _local(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: Window, scale: float) -> Tensor:
    """Attention within a window, a block of queries at a time, each with the keys that any of them sees."""
    (left, right), queries, before = window, q.shape[2], k.shape[2] - q.shape[2]
    size = max(_LOCAL_ROWS, left, right)
    blocks = []
    for start in range(0, queries, size):
        rows = slice(start, start + size)
        seen = slice(max(0, before + start - left), before + start + size + right)
        blocks.append(
            scaled_dot_product_attention(
                q[:, :, rows],
                k[:, :, seen],
                v[:, :, seen],
                attn_mask=mask[rows, seen],
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        )
    return torch.cat(blocks, dim=2)


def _seen(rows: Rows, length: int, causal: bool, window: Window | None) -> slice:
    """The places that the first or the last token of a sequence sees."""
    if rows == "first":
        right = 0 if causal else length if window is None else window[1]
        return slice(0, min(length, right + 1))
    return slice(0 if window is None else max(0, length - 1 - window[0]), length)


def by_run(x: Tensor, run: Run) -> Tensor:
    """One run's view of a packed tensor: [tokens, heads, dim] → [count, heads, length, dim]."""
    tokens = x[run.start : run.start + run.count * run.length]
    return tokens.view(run.count, run.length, *x.shape[1:]).transpose(1, 2)


def _behind_prefix(x: Tensor, run: Run) -> Tensor:
    """As by_run, with the prefix that the run goes on from ahead of each sequence."""
    own = by_run(x, run)
    return own if run.prefix is None else torch.cat([by_run(x, run.prefix).expand(run.count, -1, -1, -1), own], dim=2)


def _mask(
    length: int, causal: bool, window: Window | None, device: torch.device, queries: int, always: bool = False
) -> Tensor | None:
    """True where the last so many of these places attend, [queries, length]; None where a plain (or plainly causal)
    call says the same.
    """
    left, right = window or (length, length)
    right = 0 if causal else right
    if not always and queries == length and left >= length - 1 and (causal or right >= length - 1):
        return None
    position = torch.arange(length, device=device)
    distance = position[length - queries :, None] - position[None, :]
    return (distance <= left) & (-distance <= right)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention with soft-capped scores, a block of query rows at a time so that memory stays linear in length."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    blocks = []
    for start in range(0, q.shape[2], _SOFTCAP_ROWS):
        rows = slice(start, start + _SOFTCAP_ROWS)
        scores = softcap * torch.tanh(q[:, :, rows] @ k.transpose(-1, -2) * (scale / softcap))
        if mask is not None:
            scores = scores.masked_fill(~mask[rows], float("-inf"))
        blocks.append(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v)
    return torch.cat(blocks, dim=2)
