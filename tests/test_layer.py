"""A layer in one call against the same products, norms and attention one by one: the same bits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.model.batch import PackedBatch, Rows, pack
from assay.model.bert import BertConfig, BertLayer
from assay.model.kernels import Int8, Panels, Plain
from assay.model.layer import Layer
from assay.model.linear import Linear
from assay.model.registry import load_model
from assay.model.room import Room
from assay.sequence import Sequence
from tests.families import NATIVE, sequences_for

pytestmark = pytest.mark.usefixtures("vectors")

SHAPES: dict[str, dict[str, Any]] = {
    "odd": {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 71},
    "narrow mlp": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 7, "hidden_act": "relu"},
    "rows a multiple of 4,096 bytes": {"hidden_size": 1024, "num_attention_heads": 8, "intermediate_size": 2048},
    "rows whose room is larger than a wider one's": {
        "hidden_size": 1024,
        "num_attention_heads": 8,
        "intermediate_size": 1030,
    },
}
LENGTHS = ((1,), (16,), (1, 1, 2, 9), (3, 3, 3, 130), (8, 130, 300))


@pytest.fixture(autouse=True)
def _own(vectors: int) -> Iterator[None]:
    """With as many threads as the longest batch has parts enough for."""
    if not vectors:
        pytest.skip("nothing to compare")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def layer_of(shape: dict[str, Any], kind: type[Panels | Int8] = Panels) -> BertLayer:
    torch.manual_seed(0)
    layer = BertLayer(BertConfig(vocab_size=1, num_hidden_layers=1, max_position_embeddings=512, **shape))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    room = Room()
    for module in layer.modules():
        if isinstance(module, Linear):
            module.prepare(lambda weight, bias, act, _: kind(weight, bias, act, room))
    return layer


def batch_of(lengths: tuple[int, ...]) -> PackedBatch:
    return pack([Sequence([1] * length) for length in lengths])


@pytest.mark.parametrize("kind", [Panels, Int8])
@pytest.mark.parametrize("rows", [None, "first", "last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits(shape: str, rows: Rows | None, kind: type[Panels | Int8]) -> None:
    layer = layer_of(SHAPES[shape], kind)
    for lengths in LENGTHS:
        batch = batch_of(lengths)
        x = torch.randn(batch.num_tokens, SHAPES[shape]["hidden_size"])
        wide = torch.cat([x, x], dim=1)[:, : x.shape[1]]
        layer.joined = None
        expected = layer(x, batch, rows)
        layer.join()
        assert layer.joined is not None
        for given in (x, wide):
            assert torch.equal(layer(given, batch, rows), expected)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", NATIVE)
def test_the_same_bits_of_every_family(
    name: str, quantization: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NATIVE[name].save(tmp_path)
    joined = load_model(tmp_path, dtype="float32", quantization=quantization)
    assert any(getattr(module, "joined", None) is not None for module in joined.module.modules())
    with monkeypatch.context() as patch:
        patch.setattr(Layer, "of", lambda *_: None)
        apart = load_model(tmp_path, dtype="float32", quantization=quantization)
    for count in (1, 7, 80):  # with the last, each thread takes some rows through all that is behind attention
        batch = pack(sequences_for(NATIVE[name], seed=count, count=count))
        with torch.inference_mode():
            assert torch.equal(joined.module(batch), apart.module(batch))


def test_what_it_computes_with_may_be_given_other_places() -> None:
    """The kernel has addresses."""
    layer, batch = layer_of(SHAPES["odd"]), batch_of((9,))
    x = torch.randn(9, 35)
    layer.join()
    expected = layer(x, batch)
    for parameter in layer.parameters():
        parameter.data.zero_()
        parameter.data = torch.ones(parameter.shape)
    assert torch.equal(layer(x, batch), expected)


def test_only_where_all_products_are_our_own() -> None:
    layer = layer_of(SHAPES["odd"])
    layer.mlp.down.kernel = Plain(torch.zeros(35, 71), None)
    layer.join()
    assert layer.joined is None
