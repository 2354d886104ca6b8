"""`assay classify` killed by SIGKILL at random points and run again until it is done: the bytes of an unbroken run.

The killed processes are forked from one that has torch already, so that a random moment falls into the work and not
into the imports; they run the same command line. One more is started as a user starts it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.e2e.process import REPOSITORY, run_assay
from tests.jobs import run_job, save_nano, write

ROWS = 6000
KILLS = 5
SEED = 7
FORMATS = ("in.csv out.csv", "in.tsv.gz out.jsonl.zst", "in.jsonl out.parquet", "in.parquet out.csv.gz")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nano(tmp_path_factory.mktemp("nano"))


def columns(rows: int) -> dict[str, list[object]]:
    """Texts of many lengths; a row in two hundred has none."""
    words = ["the", "coffee", "was", "great", "so", "new", "café", "“everything”"]
    drawn = random.Random(SEED)
    texts = [" ".join(drawn.choices(words, k=drawn.randint(1, 30))) if i % 200 else "" for i in range(rows)]
    return {"id": list(range(rows)), "text": texts}


def command(source: Path, out: Path, nano: Path) -> list[str]:
    how = ["--on-error", "skip", "--text-column", "text", "--probs"]
    return ["classify", str(source), "-m", str(nano), "-o", str(out), *how]


def in_small_blocks(arguments: list[str], stderr: str) -> None:
    """The command line, in a process of its own. A block is 128 rows, and each is committed: many points to die at."""
    from assay.cli import main
    from assay.files import delimited, job, lines, parquet

    for module in (delimited, lines, parquet):
        module.BLOCK_ROWS = 128  # type: ignore[attr-defined]
    job._COMMIT_SECONDS = 0.0
    sys.argv = ["assay", *arguments]
    with Path(stderr).open("a") as file:
        os.dup2(file.fileno(), 2)
        main()


class Processes:
    """Starts processes that have imported everything."""

    def __init__(self, stderr: Path) -> None:
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["assay.files.plan", "assay.cli", "tests.e2e.test_job_killed"])
        self._stderr = stderr

    def run(self, arguments: list[str], seconds: float | None = None) -> tuple[int | None, float]:
        """(exit code, seconds it took); killed after `seconds`."""
        process = self._context.Process(target=in_small_blocks, args=(arguments, str(self._stderr)), daemon=True)
        started = time.monotonic()
        process.start()
        process.join(seconds if seconds is not None else 120)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, time.monotonic() - started


@pytest.mark.alone
def test_killed_at_twenty_random_points(nano: Path, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "stderr")
    processes.run(["--version"])  # so that nobody waits for the imports later
    kills, landed, drawn = 0, 0, random.Random(SEED)
    for pair in FORMATS:
        source, name = pair.split()
        path, out = write(tmp_path / source, columns(ROWS)), tmp_path / name
        whole = tmp_path / f"whole.{name.partition('.')[2]}"
        code, seconds = processes.run(command(path, whole, nano))
        assert code == 0, (tmp_path / "stderr").read_text()
        for _ in range(KILLS):
            code, _ = processes.run(command(path, out, nano), drawn.uniform(0, 1.1 * seconds))
            assert code in (0, -signal.SIGKILL), (tmp_path / "stderr").read_text()
            kills += 1
            landed += code == -signal.SIGKILL
            if code == 0 or out.exists():  # it was done before the moment came: from the beginning again
                assert out.read_bytes() == whole.read_bytes()
                out.unlink()
        code, _ = processes.run(command(path, out, nano))
        assert code == 0, (tmp_path / "stderr").read_text()
        assert out.read_bytes() == whole.read_bytes()
        assert not out.with_name(f"{out.name}.partial").exists()
    assert kills == KILLS * len(FORMATS) == 20
    assert landed >= 10, "most of them came while it worked"
    assert (tmp_path / "stderr").read_text().count("Continued after") >= 5


def test_killed_as_a_user_kills_it(nano: Path, tmp_path: Path) -> None:
    """`python -m assay classify …`, with blocks and commits as they are."""
    path, out, whole = write(tmp_path / "in.csv", columns(20_000)), tmp_path / "out.csv", tmp_path / "whole.csv"
    run_job(path, whole, nano, on_error="skip", text_column="text", probs=True)
    job = tmp_path / "out.csv.partial" / "job.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "assay", *command(path, out, nano)], cwd=REPOSITORY, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (job.exists() and '"blocks": 0' not in job.read_text()):
        time.sleep(0.01)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not out.exists()
    done = run_assay(*command(path, out, nano))
    assert done.returncode == 0
    assert "Continued after" in done.stderr
    assert "20,000 rows" in done.stderr
    assert "100 errors" in done.stderr
    assert out.read_bytes() == whole.read_bytes()
