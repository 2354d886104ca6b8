"""20,000 requests, one in fifty malformed: each of those has its own refusal, and the others' answers are bit-equal to
those of a run without them.
"""

from pathlib import Path

import pytest

from benchmarks.reliability.__main__ import run_twenty_thousand
from benchmarks.reliability.twenty_thousand import COUNT, ONE_IN
from tests.tiny import save_bert

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def test_twenty_thousand(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=1)
    report = run_twenty_thousand(tmp_path)
    assert report["problems"] == [], report
    assert sum(report["malformed_ends"].values()) == COUNT // ONE_IN
    assert report["largest_difference"] == 0.0
