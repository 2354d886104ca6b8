"""assay's own kernels in C (assay/csrc), where they were compiled and the CPU has AVX2 or AVX-512, on float32 tensors.

They are compiled when the package is installed, if there is a C compiler; nothing needs them. Knows no model; who calls
has made sure that `supports` says yes.
"""

import ctypes
import logging
from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Which = Literal["all", "first", "last"]
"""Which tokens of a sequence ask."""

_log = logging.getLogger("assay.model")
WHICH: dict[Which, int] = {"all": 0, "first": 1, "last": 2}
WIDEST = 16  # floats of a vector
MARGIN = 32  # columns of no meaning to either side of a table by distance, which vectors reach into
ANYWHERE = 1 << 40  # further than any sequence is long

# p: an address, n: an int64, i: an int, f: a float; then what comes back.
_SIGNATURES = {
    "assay_use": ("i", "i"),
    "assay_lanes": ("", "i"),
    "assay_lanes8": ("", "i"),
    "assay_attend": ("pppp nnnnnn pn i ff nn ppn", "i"),
    "assay_normalize": ("pn nn p ff p", "-"),
    "assay_normalize_sum": ("pn pn nn i pp ff i p", "-"),
    "assay_embed": ("ppp nnn pp f p", "i"),
    "assay_turn": ("p nn nnn p ff pp n", "-"),
    "assay_pack": ("i p nn p", "-"),
    "assay_multiply": ("i pnn pnn p ii pn", "i"),
    "assay_layer": ("pppn pp ppn pni pp", "i"),
    "assay_layer_room": ("pnn", "n"),
    "assay_row8": ("i n", "n"),
    "assay_zero8": ("i", "i"),
    "assay_quantize": ("i p nnn pn p", "-"),
    "assay_quantize_weight": ("i p nn pp", "-"),
    "assay_column8": ("i n", "n"),
    "assay_pack8": ("i p nn pp", "-"),
    "assay_multiply8": ("i pn pn ppp nn p ii pn", "-"),
}
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
    "-": None,
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not compiled or the CPU has no vectors for them."""
    found = find_spec("assay._kernels")
    if found is None or found.origin is None:
        _log.info("assay's kernels were not compiled: everything is computed by torch, and slower.")
        return None
    try:  # OpenMP's names are found in torch's own library of it, which is in the process by now
        loaded = load(found.origin)
    except (OSError, AttributeError) as error:  # another OpenMP, or what an older version has compiled
        _log.warning("assay's kernels do not load (%s): everything is computed by torch, and slower.", error)
        return None
    return loaded if loaded.assay_use(WIDEST) else None


def load(file: str) -> ctypes.CDLL:
    """Kernels from a file, before anybody has said how wide their vectors are. Raises OSError and AttributeError."""
    loaded = ctypes.CDLL(file)
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
        function.restype = _TYPES[result]
    return loaded


def supports(x: Tensor) -> bool:
    """Whether there are kernels for such a tensor."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def kernels() -> ctypes.CDLL:
    """For who knows that there are some."""
    loaded = library()
    assert loaded is not None, "who calls has asked whether there are any"
    return loaded


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Iterable[tuple[int, int, int, int]],
    which: Which,
    scale: float,
    softcap: float | None,
    left: int | None = None,
    right: int | None = None,
    query_table: Tensor | None = None,
    key_table: Tensor | None = None,
) -> Tensor:
    """Attention within each sequence, as model/attention.py has it, in one call. Returns the shape of q.

    q: [tokens, heads, head_dim], or [seqs, heads, head_dim] unless all ask. spans: of each sequence, its first token
    and length, then its prefix's, or zeros. left, right: how far a token sees; None is to the end. query_table,
    key_table: as model/disentangled.py has them, not scaled. A query's result depends on its own sequence alone, to the
    last bit. Raises MemoryError.
    """
    q, k, v = (x if x.stride(1) == x.shape[2] and x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    flat = array("q", [number for span in spans for number in span])
    out = torch.empty(q.shape)
    failed = kernels().assay_attend(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        q.shape[1],
        k.shape[1],
        q.shape[2],
        flat.buffer_info()[0],
        len(flat) // 4,
        WHICH[which],
        scale,
        softcap or 0.0,
        ANYWHERE if left is None else left,
        ANYWHERE if right is None else right,
        *tables_at(query_table, key_table),
    )
    if failed:
        raise MemoryError("attention found no memory for its scores")
    return out


def tables_at(*tables: Tensor | None) -> tuple[int | None, ...]:
    """Where each has its distance 0, and how far a float of a head lies behind the one before."""
    rows = {(table.stride(), table.shape) for table in tables if table is not None}
    if not rows:
        return *(None for _ in tables), 0
    ((head, row, column), shape) = rows.pop()
    assert not rows
    assert (head, column) == (shape[1] * row, 1)
    return *(None if table is None else table.data_ptr() + 4 * (shape[2] // 2) for table in tables), row


def normalize(x: Tensor, weight: Tensor, eps: float, more: float) -> Tensor:
    """x / rms(x) * (weight + more), over the last dimension of [rows, size]."""
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty(x.shape)
    kernels().assay_normalize(x.data_ptr(), x.stride(0), *x.shape, weight.data_ptr(), eps, more, y.data_ptr())
    return y


def normalize_sum(
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    centred: bool = True,
    more: float = 0.0,
    keep: bool = False,
) -> Tensor:
    """The layer norm of a + b, over the last dimension of [rows, size], or what `normalize` makes of it where it is not
    centred. keep: a becomes the sum.
    """
    b = b if b.stride(1) == 1 else b.contiguous()
    y = torch.empty(a.shape)
    assert a.shape == b.shape
    assert a.stride(1) == 1
    kernels().assay_normalize_sum(
        a.data_ptr(),
        a.stride(0),
        b.data_ptr(),
        b.stride(0),
        *a.shape,
        centred,
        weight.data_ptr(),
        address(bias),
        eps,
        more,
        keep,
        y.data_ptr(),
    )
    return y


def embed(tables: Seq[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The layer norm of the sum of rows: of each table [ids, size] those that its ids, int64 [rows], name.

    Raises IndexError for an id that names none.
    """
    ids = [ids.contiguous() for _, ids in tables]
    assert all(table.is_contiguous() for table, _ in tables)
    at, of, sizes = (
        array("q", numbers)
        for numbers in (
            [table.data_ptr() for table, _ in tables],
            [one.data_ptr() for one in ids],
            [table.shape[0] for table, _ in tables],
        )
    )
    rows, size = len(ids[0]), tables[0][0].shape[1]
    y = torch.empty((rows, size))
    failed = kernels().assay_embed(
        *(numbers.buffer_info()[0] for numbers in (at, of, sizes)),
        len(tables),
        rows,
        size,
        weight.data_ptr(),
        address(bias),
        eps,
        y.data_ptr(),
    )
    if failed:
        raise IndexError("an id is beyond the embeddings")
    return y


def turn(
    x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None = None, eps: float = 0.0, more: float = 0.0
) -> None:
    """model/rotary.py's rotate: x [tokens, heads, head_dim], in place, by cos and sin [tokens, dim]. weight: of a norm
    of each head ahead of it, as `normalize` has it.
    """
    assert x.stride(2) == 1
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    kernels().assay_turn(
        x.data_ptr(),
        x.stride(0),
        x.stride(1),
        *x.shape,
        address(weight),
        eps,
        more,
        cos.data_ptr(),
        sin.data_ptr(),
        cos.shape[1],
    )
