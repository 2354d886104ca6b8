"""Weights one behind the other: none over another, and none given back while it is used."""

import gc
import platform
import re
from pathlib import Path

import pytest
import torch

from assay.model import memory, room
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


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc here")
def test_weights_are_moved_into_large_pages() -> None:
    place = Room()
    weights = place.empty(4 << 20, torch.float32).copy_(torch.arange(4 << 20))
    if large_at(weights.data_ptr()) > 0:
        pytest.skip("this system has large pages for everything")
    place.settle()
    assert torch.equal(weights, torch.arange(4 << 20, dtype=torch.float32))
    if "[never]" in memory._LARGE_PAGES.read_text():
        pytest.skip("this system has no large pages")
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 1):
        pytest.skip("this system moves them when it likes")
    assert large_at(weights.data_ptr()) >= 12 << 20


def large_at(address: int) -> int:
    """Bytes in large pages of the mapping that an address lies in."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif found and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("nothing is mapped there")


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="no /proc here")
def test_an_operator_who_wants_no_large_pages_gets_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    switch = tmp_path / "enabled"
    switch.write_text("always madvise [never]\n")
    monkeypatch.setattr(memory, "_LARGE_PAGES", switch)
    place = Room()
    weights = place.empty(4 << 20, torch.float32).fill_(1)
    before = large_at(weights.data_ptr())
    place.settle()
    assert large_at(weights.data_ptr()) == before
