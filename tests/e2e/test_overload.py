"""Ten times the server's capacity, for some seconds: all are answered or refused, memory stays, and it recovers."""

from pathlib import Path

import pytest

from assay.config import BUNDLED_MODEL
from benchmarks.reliability.__main__ import run_overload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not (BUNDLED_MODEL / "model.safetensors").is_file(), reason="the bundled model is not trained"),
]


def test_ten_times_the_capacity(tmp_path: Path) -> None:
    report = run_overload(tmp_path, seconds=8, warm_up=1, capacity=3)
    assert report["problems"] == [], report
