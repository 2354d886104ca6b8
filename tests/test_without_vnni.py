"""int8 on a CPU that has AVX-512 and no VNNI: products as AVX2 has them, and all else in vectors of 16 floats."""

from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from torch import Tensor

from assay.model import compiled, products
from assay.model.batch import pack
from assay.model.layer import Layer
from assay.model.registry import load_model

from .families import NATIVE, sequences_for
from .wide import emulated


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest) -> CDLL:
    if compiled.library() is None:
        pytest.skip("no kernels were compiled, or this CPU has no vectors for them")
    library = emulated(request.config.cache.mkdir("kernels"), vnni=False)
    assert library.assay_use(compiled.WIDEST) == 16
    assert library.assay_lanes8() == 8
    return library


@pytest.mark.parametrize("name", NATIVE)
def test_every_family(name: str, kernels: CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer at a time and product by product are the same bits, and nearly what a CPU with AVX2 alone says."""
    NATIVE[name].save(tmp_path)
    narrow = compiled.library()
    assert narrow is not None
    widest = narrow.assay_lanes()

    def scores(library: CDLL, joined: bool) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "library", lambda: library)
            if not joined:
                patch.setattr(Layer, "of", lambda *_: None)
            assert products.zero8() == 91
            model = load_model(tmp_path, dtype="float32", quantization="int8")
            assert any(getattr(module, "joined", None) is not None for module in model.module.modules()) == joined
            with torch.inference_mode():
                logits: Tensor = model.module(pack(sequences_for(NATIVE[name], count=80)))
            return logits

    together = scores(kernels, True)
    assert torch.equal(together, scores(kernels, False))
    narrow.assay_use(8)
    try:
        alone = scores(narrow, True)
    finally:
        narrow.assay_use(widest)
    apart = (together - alone).abs() / alone.std()
    assert float(apart.median()) < 1e-5
    assert float(apart.max()) < 0.3  # where a last bit has decided to which whole number a float is rounded
