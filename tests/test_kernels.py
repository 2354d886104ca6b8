"""Kernels against the plain product, one with another, and under every native family."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from assay.errors import ConfigError
from assay.model import compiled, products
from assay.model.activation import ACTIVATIONS
from assay.model.batch import pack
from assay.model.kernels import (
    Int8,
    Kernel,
    Pair,
    Panels,
    Plain,
    Prepacked,
    PrepackedInt8,
    fastest,
    has_bfloat16,
    has_int8,
    has_onednn,
)
from assay.model.linear import Linear, Preparation, Prepared
from assay.model.registry import LoadedModel, load_model
from assay.model.room import Room
from assay.sequence import Sequence
from tests.families import NATIVE, sequences_for
from tests.tiny import load_plain, save_bert

pytestmark = [
    pytest.mark.skipif(not has_onednn(torch.device("cpu")), reason="these kernels are for x86 CPUs"),
    pytest.mark.usefixtures("vectors"),
]

SHAPES = ((36, 60), (384, 96), (65, 33))
ROWS = (1, 2, 7, 8, 33, 300)
ROUNDING = 1e-5  # of products whose results are of order 1


def matrices(in_features: int, out_features: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, bias, x), such that x Wᵀ is of order 1."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) / in_features**0.5
    return weight, torch.randn(out_features, generator=generator), torch.randn(rows, in_features, generator=generator)


def made(kernel: str, weight: Tensor, bias: Tensor | None, act: str | None = None, gated: bool = False) -> Kernel:
    """A kernel by its name in KERNELS."""
    match kernel:
        case "plain":
            return Plain(weight, bias, act, gated)
        case "panels":
            if compiled.library() is None:
                pytest.skip("without assay's own kernels")
            return Panels(weight, bias, act, Room(), gated)
        case "int8":
            if compiled.library() is None:
                pytest.skip("without assay's own kernels")
            return Int8(weight, bias, act, Room(), gated)
        case _ if gated:
            halves = zip(weight.chunk(2), (None, None) if bias is None else bias.chunk(2), (act, None), strict=True)
            gate, up = (made(kernel, *half) for half in halves)
            assert isinstance(gate, Prepacked | PrepackedInt8)
            assert isinstance(up, Prepacked | PrepackedInt8)
            return Pair(gate, up)
        case "prepacked int8":
            if not PrepackedInt8.is_exact():
                pytest.skip("oneDNN's product of 8-bit integers is not exact on this CPU")
            return PrepackedInt8(weight, bias, act)
        case _:
            return Prepacked(weight, bias, act, alike=kernel == "prepacked, alike")


KERNELS = ("plain", "panels", "prepacked", "prepacked, alike", "int8", "prepacked int8")
IN_8_BITS = KERNELS[4:]


@pytest.mark.parametrize("kernel", KERNELS[1:4])
@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_plain_product(kernel: str, act: str | None, biased: bool) -> None:
    for shape in SHAPES:
        for rows in ROWS:
            weight, bias, x = matrices(*shape, rows)
            given = bias if biased else None
            expected = Plain(weight, given, act)(x)
            got = made(kernel, weight, given, act)(x)
            assert got.shape == expected.shape
            assert float((got - expected).abs().max()) <= ROUNDING


@pytest.mark.parametrize("shape", [(3072, 64), (1024, 1024), (2000, 2048)], ids=str)
def test_panels_of_many_columns_and_rows(shape: tuple[int, int]) -> None:
    """Sums in several blocks, rows in several parts, and widths whose rows are cached over each other."""
    for rows in (1, 12, 97, 200):
        weight, bias, x = matrices(*shape, rows)
        kernel, exact = made("panels", weight, bias), Plain(weight.double(), bias.double())(x.double())
        got = kernel(x)
        assert float((got - exact).abs().max()) <= ROUNDING
        assert torch.equal(kernel(torch.cat([x, x], dim=1)[:, : shape[0]]), got)
        gated = made("panels", weight, bias, "silu", gated=True)(x)
        exact = Plain(weight.double(), bias.double(), "silu", gated=True)(x.double())
        assert float((gated - exact).abs().max()) <= ROUNDING


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_rows(kernel: str) -> None:
    weight, bias, x = matrices(48, 40, 1)
    assert made(kernel, weight, bias)(x[:0]).shape == (0, 40)


@pytest.mark.parametrize("shape", [(48, 40), (35, 6), (64, 34)], ids=str)
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_gated_product_is_one_times_the_activation_of_another(kernel: str, act: str, shape: tuple[int, int]) -> None:
    for rows in (1, 2, 9, 100):
        weight, bias, x = matrices(*shape, rows)
        for given in (bias, None):
            halves = zip(weight.chunk(2), (None, None) if given is None else given.chunk(2), (act, None), strict=True)
            gate, up = (made(kernel, *half)(x) for half in halves)
            got = made(kernel, weight, given, act, gated=True)(x)
            assert got.shape == (rows, shape[1] // 2)
            assert float((got - gate * up).abs().max()) <= ROUNDING


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_view_that_is_not_contiguous(kernel: str) -> None:
    weight, bias, x = matrices(40, 24, 10)
    wide = torch.cat([x, x], dim=1)[:, :40]
    assert not wide.is_contiguous()
    product = made(kernel, weight, bias)
    assert torch.equal(product(wide), product(x))
    assert torch.equal(product(x.T.contiguous().T), product(x))


@pytest.mark.parametrize("shape", [(384, 1536), (768, 256), (100, 36)])
@pytest.mark.parametrize("act", [None, "gelu", "silu", "tanh"])
@pytest.mark.parametrize("kernel", ["panels", "prepacked, alike", *IN_8_BITS])
def test_a_row_is_the_same_bits_among_any_others(kernel: str, act: str | None, shape: tuple[int, int]) -> None:
    weight, bias, x = matrices(*shape, 301)
    product = made(kernel, weight, bias, act)
    if act and not product.alike:
        pytest.skip("it does not say so")
    whole = product(x)
    for rows in (1, 2, 3, 7, 8, 16, 31, 64, 255):
        for start in (0, 301 - rows):
            assert torch.equal(product(x[start : start + rows]), whole[start : start + rows]), rows


@pytest.mark.parametrize("kernel", IN_8_BITS)
def test_int8_is_close_and_each_row_has_its_own_scale(kernel: str) -> None:
    weight, bias, x = matrices(256, 128, 40)
    x[7] *= 1000  # an outlier's neighbours do not notice
    exact, got = Plain(weight, bias)(x), made(kernel, weight, bias)(x)
    error = (got - exact).square().mean(dim=1).sqrt() / (exact - bias).square().mean(dim=1).sqrt()
    assert float(error.max()) < 0.02
    assert float(error.min()) > 1e-5, "this was not computed in 8 bits"


@pytest.mark.parametrize("kernel", IN_8_BITS)
def test_a_large_float_does_not_take_the_bits_of_its_row(kernel: str) -> None:
    """As in trained models, where the same few features are large in every row."""
    weight, bias, x = matrices(768, 128, 40)
    x[:, 17] = 100
    error = made(kernel, weight, bias)(x) - Plain(weight, bias)(x)
    assert float(error.square().mean().sqrt()) < 0.1  # 0.045; without sharing it 0.23


def by_hand(weight: Tensor, bias: Tensor, act: str | None, x: Tensor) -> Tensor:
    """What our own product of 8-bit integers is, from the integers."""
    whole, scale = products.quantize(x)
    weights, weight_scale = products.quantize_weight(weight)
    y = (whole.double() - products.zero8()) @ weights.double().T * scale[:, None].double()
    return Plain(torch.eye(len(weight)).double(), bias.double(), act)(y * weight_scale / products.shares(x.shape[1]))


@pytest.mark.parametrize("act", [None, "gelu"])
@pytest.mark.parametrize("shape", [*SHAPES, (3072, 40), (1024, 1024), (7, 1)], ids=str)
def test_our_product_in_8_bits_is_that_of_its_integers(shape: tuple[int, int], act: str | None) -> None:
    for rows in (1, 13, 97):
        weight, bias, x = matrices(*shape, rows)
        ours = made("int8", weight, bias, act)(x)
        assert float((ours - by_hand(weight, bias, act, x)).abs().max()) <= ROUNDING


@pytest.mark.parametrize("act", [None, "gelu"])
@pytest.mark.parametrize("shape", [*SHAPES, (3072, 40), (1024, 1024), (7, 1)], ids=str)
def test_both_products_in_8_bits_are_one(shape: tuple[int, int], act: str | None) -> None:
    if compiled.library() is not None and products.zero8() != 128:
        pytest.skip("ours has fewer steps for a row, since it is AVX2's")
    for rows in (1, 13, 97):
        weight, bias, x = matrices(*shape, rows)
        ours, theirs = made("int8", weight, bias, act)(x), made("prepacked int8", weight, bias, act)(x)
        assert float((ours - theirs).abs().max()) <= ROUNDING


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("largest", [1, 2, 4])
@pytest.mark.parametrize("size", [7, 64, 100, 1024, 3072])
def test_8_bits_are_summed_exactly(size: int, largest: int, gated: bool) -> None:
    """In numbers as large as they come: so many of the four weights that AVX2 adds in 16 bits, which cut off what does
    not fit. Two products of 8 bits do not.
    """
    if compiled.library() is None:
        pytest.skip("without assay's own kernels")
    wanted, weights = torch.full((13, size), 127.0), torch.zeros((40, size))
    wanted[1::2] *= -1
    four = [place for place in (0, 1, 4, 5) if place < size][:largest]
    for start in range(0, size - max(four), 8):
        weights[:, [start + place for place in four]] = 127.0
    weights[::3] *= -1
    wanted[:, size // 2 :: 5] = 3
    x, weight = products.spread(wanted), products.spread(weights)  # which spread once more are these, times `shares`
    whole, scale = products.quantize(x)
    assert int(whole.max()) == 2 * products.zero8() - 1
    small, weight_scale = products.quantize_weight(weight)
    if products.zero8() == 128:
        assert int(small.max()) == 127
    else:
        assert int(small[1, :8].clamp(min=0).sum()) >= (127 if largest == 1 else 176)
    exact = (whole.double() - products.zero8()) @ small.double().T * scale[:, None].double()
    exact *= weight_scale.double() / products.shares(size)
    exact = exact[:, :20] * exact[:, 20:] if gated else exact
    got = made("int8", weight, None, gated=gated)(x)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", IN_8_BITS)
def test_int8_of_nothing_but_zeros(kernel: str) -> None:
    weight, bias, x = matrices(32, 16, 3)
    x[1] = 0
    weight[2] = 0
    got = made(kernel, weight, bias)(x)
    assert torch.isfinite(got).all()
    assert torch.equal(got[1], bias)
    assert float(got[0, 2]) == float(bias[2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_no_number_stays_none(kernel: str) -> None:
    weight, bias, x = matrices(32, 16, 3)
    x[1, 5] = float("nan")
    assert made(kernel, weight, bias)(x).isnan().any(dim=1).tolist() == [False, True, False]


def test_weights_are_held_once(tmp_path: Path) -> None:
    """Prepared layers have no parameters any more: the kernel's copy is the only one."""
    save_bert(tmp_path)
    names = {name for name, _ in load_model(tmp_path).module.named_parameters()}
    assert names
    assert not {name for name in names if name.startswith("trunk.layers") and "norm" not in name}
    assert any("qkv" in name for name, _ in load_plain(tmp_path).module.named_parameters())


def prepared(layer: Linear) -> Prepared:
    preparation = Preparation()
    preparation.take("trunk", layer)
    return preparation.end(layer)


def test_what_cannot_be_prepacked_stays_plain() -> None:
    half = torch.ones(4, 4, dtype=torch.float16)
    for weight in (half, torch.ones(4, 4, device="meta"), torch.ones(4, 4, dtype=torch.bfloat16)):
        kernel = fastest(weight, None, None, False, int8=False, alike=False, room=Room())
        assert isinstance(kernel, Prepacked) is (weight.dtype == torch.bfloat16 and has_bfloat16())
    layer = Linear(4, 4)
    layer.weight = torch.nn.Parameter(half, requires_grad=False)
    assert prepared(layer) == Prepared(recurring=False, alike=False)
    assert layer.weight is not None


def test_gated_linear_before_and_after() -> None:
    layer = Linear(24, 20, True, "silu", gated=True)
    weight, bias, x = matrices(24, 40, 6)
    assert layer.weight is not None
    assert layer.bias is not None
    layer.weight.data, layer.bias.data = weight, bias
    gate, up = (x @ weight.T + bias).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    assert float((layer(x) - expected).abs().max()) <= ROUNDING
    assert prepared(layer).alike is (compiled.library() is not None)
    assert layer.weight is None
    assert float((layer(x) - expected).abs().max()) <= ROUNDING


def logits_of(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.module(pack(sequences))
    return logits


@pytest.mark.parametrize("name", NATIVE)
def test_every_family_scores_the_same_on_every_kernel(name: str, tmp_path: Path) -> None:
    """transformers is compared with in each family's own tests, on the kernels that this machine has."""
    NATIVE[name].save(tmp_path)
    sequences = sequences_for(NATIVE[name])
    plain = logits_of(load_plain(tmp_path, dtype="float32"), sequences)
    prepacked = logits_of(load_model(tmp_path, dtype="float32"), sequences)
    alike = logits_of(load_model(tmp_path, dtype="float32", deterministic=True), sequences)
    assert float(plain.std()) > 0.1
    assert float((plain - prepacked).abs().max()) <= 1e-4
    assert float((plain - alike).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", NATIVE)
def test_int8_of_every_family(name: str, tmp_path: Path) -> None:
    """Random weights as large as these are the worst case; a trained model is measured in the benchmarks."""
    if not has_int8(torch.device("cpu")):
        pytest.skip("no exact product of 8-bit integers here")
    NATIVE[name].save(tmp_path)
    sequences = sequences_for(NATIVE[name])
    exact = logits_of(load_model(tmp_path, dtype="float32"), sequences)
    model = load_model(tmp_path, dtype="float32", quantization="int8")
    assert model.quantization == "int8"
    error = float((logits_of(model, sequences) - exact).square().mean().sqrt() / exact.std())
    assert 1e-4 < error < 0.25


def test_int8_is_refused_where_it_cannot_be(tmp_path: Path, vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path)
    with pytest.raises(ConfigError, match="dtype float32"):
        load_model(tmp_path, dtype="bfloat16", quantization="int8")
    monkeypatch.setattr(PrepackedInt8, "is_exact", lambda: False)
    if vectors:
        assert load_model(tmp_path, quantization="int8").quantization == "int8"
    else:
        with pytest.raises(ConfigError, match=r"AVX512-VNNI.*without those kernels"):
            load_model(tmp_path, dtype="float32", quantization="int8")
