"""Weights one behind the other: none over another, and none given back while it is used."""

import gc
from pathlib import Path

import pytest
import torch

from assay.model import room
from assay.model.room import Room


def test_none_lies_over_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CHUNK", 8 * 4096)
    place = Room()
    sizes = [1, 5000, 1024, 3, 40_000, 1024]  # one of them larger than a chunk
    kept = [place.empty(size, torch.float32).fill_(i) for i, size in enumerate(sizes)]
    whole = place.empty(77, torch.int8).fill_(6)
    del place
    gc.collect()
    assert [tensor.shape[0] for tensor in kept] == sizes
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(kept))
    assert bool((whole == 6).all())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in kept)


def test_a_chunk_is_given_back_with_the_last_that_lies_in_it() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    if not Path("/proc/self/statm").is_file():
        pytest.skip("no /proc here")
    before = mapped()
    place = Room()
    one, other = (place.empty(1000, torch.float32) for _ in "ab")
    assert mapped() >= before + room._CHUNK
    del place, one
    assert mapped() >= before + room._CHUNK
    del other
    assert mapped() < before + room._CHUNK
