"""A minute of everything that clients do: every request is accounted for on both sides, and nothing is left behind."""

from pathlib import Path

import pytest

from benchmarks.reliability.__main__ import run_soak
from tests.tiny import save_bert

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_a_minute_of_everything(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=1)
    report = run_soak(tmp_path, seconds=45, warm_up=8)
    assert report["problems"] == [], report
    assert all(report["kinds"].values()), "every kind of request came"
    assert report["ends"]["200"] > 1000
