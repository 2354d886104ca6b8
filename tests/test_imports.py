"""What importing torch leaves of the collector of cycles: as it was, but for what the process's owner has frozen."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from assay.imports import importing_torch


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("own_process", [True, False])
def test_the_collector_rests_meanwhile(own_process: bool, enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    frozen = gc.get_freeze_count()
    seen = []

    def fail() -> None:
        with importing_torch(own_process=own_process):
            seen.append(gc.isenabled())
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    assert seen == [False]
    assert gc.isenabled() == enabled
    assert (gc.get_freeze_count() > frozen) == own_process


def test_what_came_is_old_then_and_what_somebody_has_frozen_stays_so() -> None:
    with importing_torch():
        came: list[object] = []
    assert gc.get_freeze_count() == 0
    assert any(one is came for one in gc.get_objects(generation=2))
    gc.freeze()
    frozen = gc.get_freeze_count()
    with importing_torch():
        came_next: list[object] = []
    assert 0 < gc.get_freeze_count() <= frozen
    assert not any(one is came_next for one in gc.get_objects(generation=2))


def test_a_command_runs_with_the_collector_on_and_torch_out_of_its_sight() -> None:
    code = (
        "import gc, assay.cli; assay.cli.app(['models'], standalone_mode=False)\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000 > len(gc.get_objects()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True True"
