"""assay's own kernels against what torch computes, at sizes that do not fill their vectors."""

import math
import shutil

import pytest
import torch

from assay.model import compiled, products
from assay.model.activation import ACTIVATIONS, activation
from assay.model.attention import attention, by_runs
from assay.model.batch import pack
from assay.model.compiled import MARGIN
from assay.model.disentangled import disentangled_attention
from assay.model.kernels import _in_8_bits, has_onednn
from assay.model.room import Room
from assay.sequence import Sequence

pytestmark = pytest.mark.usefixtures("vectors")

SIZES = ((1, 1), (3, 15), (2, 16), (5, 33), (70, 300))


@pytest.fixture(autouse=True)
def _own(vectors: int) -> None:
    if not vectors:
        pytest.skip("nothing to compare")


def test_they_are_compiled_where_they_can_be() -> None:
    """A wheel without them would be slow and nobody would know."""
    if shutil.which("cc") is None or not has_onednn(torch.device("cpu")):
        pytest.skip("no C compiler, or another kind of CPU")
    assert compiled.library() is not None


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    whole, scale = products.quantize(x)
    return whole.int() - products.zero8(), scale[:, None]


@pytest.mark.parametrize(
    "rows_size", [*SIZES, (3, 8), (2, 24), (5, 48), (3, 96), (4, 192), (7, 312), (2, 384), (3, 1152)], ids=str
)
def test_8_bits(rows_size: tuple[int, int]) -> None:
    """Of each row as `spread` has it, which leaves products what they are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows_size, generator=generator) * 3
    x[0] = 0
    whole, scale = quantized(x)
    spread, shares, most = products.spread(x), products.shares(x.shape[1]), products.zero8() - 1
    expected, expected_scale = _in_8_bits(x)
    torch.testing.assert_close(scale, expected_scale * 127 / most)
    if most == 127:
        assert int((whole - (expected.int() - 128)).abs().max()) <= 1  # a product and a sum, rounded once or twice
    assert shares == min(128, x.shape[1] & -x.shape[1]) or (shares == 1 and x.shape[1] % 8)
    assert int(whole.abs().max()) <= most
    assert float((whole * scale - spread).abs().max()) <= float(scale.max()) * 0.51
    torch.testing.assert_close(spread @ spread.T, shares * (x @ x.T), atol=1e-2, rtol=1e-4)
    wide = torch.cat([x, x], dim=1)
    assert torch.equal(quantized(wide[:, : x.shape[1]])[0], whole)


@pytest.mark.parametrize("rows_size", [*SIZES, (3, 8), (5, 48), (40, 384), (9, 1152)], ids=str)
def test_weights_in_8_bits(rows_size: tuple[int, int]) -> None:
    """As inputs, but that sums of four, which AVX2 multiplies and adds in 16 bits, must fit there, and only just."""
    weight = torch.randn(rows_size, generator=torch.Generator().manual_seed(8))
    weight[0] = 0
    whole, scale = products.quantize_weight(weight)
    spread = products.spread(weight)
    assert float((whole * scale[:, None] - spread).abs().max()) <= float(scale.max()) * 0.51
    most = whole.int().abs().amax(dim=1)
    assert int(most.max()) <= 127
    if (inputs := 2 * products.zero8() - 1) == 255:
        assert most[1:].tolist() == [127] * (len(weight) - 1)
        return
    padded = torch.nn.functional.pad(whole.int(), (0, -rows_size[1] % 8)).view(len(weight), -1, 8)
    signs = torch.stack([padded.clamp(min=0), (-padded).clamp(min=0)])
    sums = signs[..., [[0, 1, 4, 5], [2, 3, 6, 7]]].sum(dim=-1).amax(dim=(0, 2, 3))
    assert int(sums.max()) * inputs < 2**15
    assert all(one == 127 or total >= 177 for one, total in zip(most[1:].tolist(), sums[1:].tolist(), strict=True))


@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize("rows_size", SIZES, ids=str)
def test_what_follows_a_product(act: str | None, rows_size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, bias = torch.randn(rows_size, generator=generator) * 4, torch.randn(rows_size[1], generator=generator)
    function, same = activation(act) if act else torch.nn.Identity(), torch.eye(rows_size[1])
    once, twice = products.pack(same, Room()), products.pack(torch.cat([same, same]), Room(), gated=True)
    for given in (None, bias):
        y = x + given if given is not None else x
        exact, beside = function(y.double()), products.beside(torch.cat([bias, bias]), twice.lanes)
        got = products.multiply(x, once, given, act)
        assert float(((got - exact).abs() / (1 + exact.abs())).max()) < 2e-6  # torch's gelu: 1.2e-6
        gated = products.multiply(x, twice, None if given is None else beside, act)
        assert float(((gated - exact * y).abs() / (1 + (exact * y).abs() + y.abs())).max()) < 2e-6


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_no_number_stays_none(act: str) -> None:
    """A broken model is told by its scores; a kernel may not mend them."""
    x = torch.tensor([[math.nan], [1.0], [-2.0]])
    got = products.multiply(x, products.pack(torch.ones(1, 1), Room()), None, act)
    assert got.isnan().tolist() == [[True], [False], [False]]
    for odd in (math.nan, math.inf):
        x = torch.ones(2, 40)
        x[0, 3] = odd
        _, scale = products.quantize(x)
        assert torch.isfinite(scale).tolist() == [False, True]
    q = torch.ones(3, 2, 4)
    q[1, 0, 2] = math.nan
    seen = attention(q, torch.ones(3, 2, 4), torch.ones(3, 2, 4), pack([Sequence([1] * 3)]), scale=1.0)
    assert seen[1, 0].isnan().all()
    assert not seen[[0, 2]].isnan().any()


@pytest.mark.parametrize("head_dim", [4, 32, 64, 80, 128])
def test_long_sequences(head_dim: int) -> None:
    """More queries than a part has, more keys than a panel, with what models of every kind ask for."""
    batch = pack([Sequence([1] * length) for length in (1, 17, 129, 300)])
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(batch.num_tokens, heads, head_dim, generator=generator) for heads in (6, 2, 2))
    for causal in (False, True):
        for window in (None, (64, 64), (128, 0)):
            for softcap in (None, 20.0):
                options = {"scale": head_dim**-0.5, "causal": causal, "window": window, "softcap": softcap}
                got, expected = attention(q, k, v, batch, **options), by_runs(q, k, v, batch, **options)  # type: ignore[arg-type]
                assert float((got - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("head_dim", [1, 7, 64])
@pytest.mark.parametrize("kinds", ["ck", "c", "k"])
def test_attention_by_distance(head_dim: int, kinds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch has it, run by run, and each text the same bits alone, with tables that end where its distances do."""
    batch = pack([Sequence([1] * length) for length in (1, 17, 31, 129, 300)])
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(batch.num_tokens, 3, head_dim, generator=generator) for _ in "qkv")
    width = 2 * (300 + MARGIN) - 1
    tables = [torch.randn(3, head_dim, width, generator=generator) if kind in kinds else None for kind in "ck"]
    for rows in (None, "first", "last"):
        got = disentangled_attention(q, k, v, *tables, batch, 0.3, rows)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "supports", lambda x: False)
            expected = disentangled_attention(q, k, v, *tables, batch, 0.3, rows)
        assert float((got - expected).abs().max()) < 1e-5
        for i, run in enumerate(batch.runs):
            tokens = slice(run.start, run.start + run.length)
            own = slice(300 - run.length, width - 300 + run.length)
            alone = disentangled_attention(
                *(x[tokens] for x in (q, k, v)),
                *(None if table is None else table[..., own].contiguous() for table in tables),
                pack([Sequence([1] * run.length)]),
                0.3,
                rows,
            )
            assert torch.equal(alone, got[tokens] if rows is None else got[i : i + 1])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("rows_size", SIZES, ids=str)
def test_the_norm_of_embeddings(rows_size: tuple[int, int], count: int) -> None:
    rows, size = rows_size
    generator = torch.Generator().manual_seed(7)
    tables = [
        (torch.randn(9, size, generator=generator), torch.randint(9, (2, rows), generator=generator).T[:, 0])
        for _ in range(count)
    ]
    weight, bias = torch.randn(2, size, generator=generator)
    total = sum(table[ids].double() for table, ids in tables)
    assert isinstance(total, torch.Tensor)
    for given in (None, bias):
        exact = torch.nn.functional.layer_norm(
            total, (size,), weight.double(), None if given is None else given.double(), 1e-5
        )
        assert float((compiled.embed(tables, weight, given, 1e-5) - exact).abs().max()) < 1e-5
    for wrong in (-1, 9):
        with pytest.raises(IndexError):
            compiled.embed([*tables[1:], (tables[0][0], torch.full((rows,), wrong))], weight, None, 1e-5)


def test_threads_change_nothing() -> None:
    batch = pack([Sequence([1] * length) for length in (40, 200, 200, 300)])
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(batch.num_tokens, 4, 32, generator=generator) for _ in "qkv")
    before, threads = attention(q, k, v, batch, scale=0.2), torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert torch.equal(attention(q, k, v, batch, scale=0.2), before)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("size", [1, 15, 64, 100])
def test_norms_and_rotations_of_strided_heads(size: int) -> None:
    generator = torch.Generator().manual_seed(4)
    whole = torch.randn(7, 5, size, generator=generator)
    weight = torch.randn(size, generator=generator)

    def normed(x: torch.Tensor, more: float) -> torch.Tensor:
        return x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6) * (weight + more).double()

    for more in (0.0, 1.0):
        for x in (whole[:, 2], whole[2].T.contiguous().T):
            assert float((compiled.normalize(x, weight, 1e-6, more) - normed(x, more)).abs().max()) < 2e-6
    dim = size // 2 * 2
    cos, sin = torch.randn(7, dim, generator=generator), torch.randn(7, dim, generator=generator)
    for given in (None, weight):
        x, expected = whole.clone(), whole.double()
        heads = x[:, 1:4].double() if given is None else normed(x[:, 1:4], 1.0)
        left, right = heads[..., : dim // 2], heads[..., dim // 2 : dim]
        turned = heads[..., :dim] * cos[:, None] + torch.cat((-right, left), dim=-1) * sin[:, None]
        expected[:, 1:4] = torch.cat((turned, heads[..., dim:]), dim=-1)
        compiled.turn(x[:, 1:4], cos, sin, given, 1e-6, 1.0)
        assert float((x - expected).abs().max()) < 5e-6


@pytest.mark.parametrize("rows_size", SIZES, ids=str)
def test_the_norm_of_a_sum(rows_size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(rows_size[0], rows_size[1] + 3, generator=generator)[:, : rows_size[1]] + 1 for _ in "ab")
    weight, bias = torch.randn(2, rows_size[1], generator=generator)
    for given in (None, bias):
        exact = torch.nn.functional.layer_norm(
            (a + b).double(), a.shape[1:], weight.double(), None if given is None else given.double(), 1e-5
        )
        assert float((compiled.normalize_sum(a, b, weight, given, 1e-5) - exact).abs().max()) < 5e-6
    total = a + b
    exact = total.double() * torch.rsqrt(total.double().square().mean(-1, keepdim=True) + 1e-5) * (weight + 1).double()
    got = compiled.normalize_sum(a, b, weight, None, 1e-5, centred=False, more=1.0, keep=True)
    assert float((got - exact).abs().max()) < 5e-6
    assert torch.equal(a, total)
