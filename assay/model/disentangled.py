"""DeBERTa's attention by content and distance (He et al. 2021), over a packed batch. Knows no projections.

On a CPU it is one call of assay's own kernels, where there are any; everywhere else run by run, with what torch has.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from assay.model import compiled
from assay.model.attention import by_run, spans
from assay.model.batch import PackedBatch, Rows, Run, pick

_ROWS = 512  # queries whose scores are held at once: memory stays linear in length
_STRIP = 64  # on a CPU, tokens multiplied at once with their distances: more are wasted work, fewer a slow product
_MAX_SCORES = 1 << 20  # scores of short sequences that are held at once


def disentangled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_key: Tensor | None,
    pos_query: Tensor | None,
    batch: PackedBatch,
    scale: float,
    rows: Rows | None = None,
) -> Tensor:
    """Attention within each sequence by scale * (q_i·k_j + q_i·pos_key(i - j) + k_j·pos_query(i - j)).

    q, k, v: [tokens, heads, head_dim]. pos_key, pos_query: [heads, head_dim, 2 * longest - 1], a column for each
    distance, zero midway, and MARGIN more to either side: pos_key's fall, pos_query's rise. Either may be absent. rows:
    which token of each sequence asks, where not all do. Returns the shape of q, or [seqs, heads, head_dim].
    """
    if compiled.supports(q):
        asked = pick(q, batch, rows)
        return compiled.attend(
            asked, k, v, spans(batch, rows), rows or "all", scale, None, query_table=pos_key, key_table=pos_query
        )
    pos_key, pos_query = (None if table is None else table * scale for table in (pos_key, pos_query))
    if rows is not None:
        return _of_rows(q, k, v, pos_key, pos_query, batch, scale, rows)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    strip = _STRIP if q.device.type == "cpu" else _ROWS
    for run in _split(batch.runs, q.shape[1], strip):
        q_run, k_run, v_run, out_run = (by_run(x, run) for x in (q, k, v, out))
        for part in _parts(0, run.length, _ROWS):
            make = q.new_zeros if pos_key is None else q.new_empty
            bias = make((run.count, q.shape[1], part.stop - part.start, run.length))
            if pos_key is not None:
                _write_c2p(bias, q, pos_key, run, part, strip)
            if pos_query is not None:
                _add_p2c(bias, k, pos_query, run, part, strip)
            seen = scaled_dot_product_attention(q_run[:, :, part], k_run, v_run, attn_mask=bias, scale=scale)
            out_run[:, :, part].copy_(seen)
    return out


def _of_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos_key: Tensor | None,
    pos_query: Tensor | None,
    batch: PackedBatch,
    scale: float,
    rows: Rows,
) -> Tensor:
    """The same for one query of each sequence, its first or its last token: [seqs, heads, head_dim]."""
    seen = []
    for run in batch.runs:
        q_run, k_run, v_run = (by_run(x, run) for x in (q, k, v))
        i = 0 if rows == "first" else run.length - 1
        asked = q_run[:, :, i : i + 1]
        bias = q.new_zeros((run.count, q.shape[1], 1, run.length))
        if pos_key is not None:  # it falls: the distance i - j stands j - i behind the midst
            start = pos_key.shape[2] // 2 - i
            bias += asked @ pos_key[..., start : start + run.length]
        if pos_query is not None:
            end = pos_query.shape[2] // 2 + i + 1
            there = pos_query[..., end - run.length : end].flip(2).transpose(1, 2)
            bias += (k_run * there).sum(-1)[:, :, None]
        seen.append(scaled_dot_product_attention(asked, k_run, v_run, attn_mask=bias, scale=scale)[:, :, 0])
    return torch.cat(seen)


def _split(runs: tuple[Run, ...], heads: int, strip: int) -> Iterator[Run]:
    """Runs so short that the scores of one are held at once; sequences longer than a strip one by one."""
    for run in runs:
        size = max(1, _MAX_SCORES // (heads * run.length**2)) if run.length <= strip else 1
        for first in range(0, run.count, size):
            yield Run(run.start + first * run.length, min(size, run.count - first), run.length)


def _parts(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _write_c2p(bias: Tensor, q: Tensor, pos_key: Tensor, run: Run, rows: slice, strip: int) -> None:
    """q_i·pos_key(i - j) into bias [count, heads, rows, length], a strip of queries at a time.

    Queries are multiplied with every distance; score (i, j) then lies j - i columns right of (i, i): a slanted view.
    """
    for part in _parts(rows.start, rows.stop, strip):
        size, furthest = part.stop - part.start, part.stop - 1
        width = size + run.length - 1  # distances from `furthest` down
        there = pos_key[..., pos_key.shape[2] // 2 - furthest :][..., :width]
        products = torch.bmm(_tokens(q, run, part), there)
        target = bias[:, :, part.start - rows.start : part.stop - rows.start]
        strides = (size * width, products.stride(0), width - 1, 1)
        target.copy_(products.as_strided(target.shape, strides, size - 1))


def _add_p2c(bias: Tensor, k: Tensor, pos_query: Tensor, run: Run, rows: slice, strip: int) -> None:
    """k_j·pos_query(i - j) on top of it, a strip of keys at a time, in the same way."""
    for part in _parts(0, run.length, strip):
        size, nearest = part.stop - part.start, rows.start - part.stop + 1
        width = size + rows.stop - rows.start - 1  # distances from `nearest` up
        there = pos_query[..., pos_query.shape[2] // 2 + nearest :][..., :width]
        products = torch.bmm(_tokens(k, run, part), there)
        target = bias[..., part]
        strides = (size * width, products.stride(0), 1, width - 1)
        target += products.as_strided(target.shape, strides, size - 1)


def _tokens(x: Tensor, run: Run, part: slice) -> Tensor:
    """[tokens, heads, head_dim] → [heads, count * part, head_dim]; the part is the whole unless count is 1."""
    start, size = run.start + part.start, run.count * (part.stop - part.start)
    return x[start : start + size].transpose(0, 1)
