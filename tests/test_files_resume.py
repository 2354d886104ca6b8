"""A job that ends anywhere and is run again: the same bytes. What has changed is noticed, and two runs do not meet.

Here the ends are exceptions at every point where the job touches the disk; tests/e2e/test_job_killed.py sends SIGKILL.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from assay.errors import AssayError, ConfigError, RequestError
from assay.files.fingerprint import digest
from assay.files.scorer import Scorer
from assay.files.unfinished import State, Unfinished
from tests.jobs import Watched, planned, run_job, save_nano, small_blocks, write

TEXTS = [f"the coffee was {'so ' * (i % 7)}{'great' if i % 3 else 'new'}" for i in range(22)]
COLUMNS = {"id": list(range(22)), "text": TEXTS}


class Died(BaseException):
    """As if the process had ended here: nothing catches it but the test."""


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nano(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def _many_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is four rows, and each is committed; not to the disk, which nobody pulls the plug of here."""
    small_blocks(monkeypatch, 4)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("assay.files.job._COMMIT_SECONDS", 0)


@pytest.fixture(autouse=True)
def _models_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "load", staticmethod(_load))


_load = cache(Scorer.load)


def die_in(monkeypatch: pytest.MonkeyPatch, name: str, countdown: int, after: bool) -> Callable[[], bool]:
    """Let the process "end" at a call of Unfinished's; the answer says whether it came to that."""
    left = [countdown]
    real = getattr(Unfinished, name)

    def dies(self: Unfinished, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Died
        result = real(self, *arguments)
        if left[0] == 0:
            raise Died
        return result

    monkeypatch.setattr(Unfinished, name, dies)
    return lambda: left[0] <= 0


def run_until_it_dies(path: Path, out: Path, nano: Path, **settings: Any) -> None:
    """Without what a `with` block does at its end, which a killed process does not do either."""
    plan = planned(path, out, nano, **settings)
    unfinished = plan.open()
    assert unfinished is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unfinished, "__exit__", lambda self, *error: self.close())
        plan.run(unfinished, Watched())


@pytest.mark.parametrize("out", ["out.csv", "out.tsv.gz", "out.jsonl.zst", "out.parquet"])
@pytest.mark.parametrize(
    ("name", "after"), [("append", 0), ("append", 1), ("commit", 0), ("commit", 1), ("publish", 0)]
)
def test_whatever_happens_the_bytes_are_the_same(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, name: str, after: int
) -> None:
    path = write(tmp_path / "in.csv", COLUMNS)
    run_job(path, tmp_path / f"whole.{out.partition('.')[2]}", nano)
    whole = (tmp_path / f"whole.{out.partition('.')[2]}").read_bytes()
    for countdown in range(1, 100):
        with monkeypatch.context() as patch:
            died = die_in(patch, name, countdown, bool(after))
            try:
                run_until_it_dies(path, tmp_path / out, nano)
            except Died:
                assert not (tmp_path / out).exists(), "it is there only when it is whole"
        if not died():
            break
        done = run_job(path, tmp_path / out, nano)
        assert (tmp_path / out).read_bytes() == whole
        assert done.state.rows == sum(done.state.labels.values()) == len(TEXTS)
        (tmp_path / out).unlink()
    assert countdown > (1 if name == "publish" else 5)
    assert not (tmp_path / f"{out}.partial").exists()


@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("step", list(range(6)))
def test_an_end_between_the_last_steps(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, step: int
) -> None:
    """From the moment OUT has its name until the folder is gone."""
    path = write(tmp_path / "in.csv", COLUMNS)
    unlinked = []
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if len(unlinked) == step:
            raise Died
        unlinked.append(self)
        real(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        try:
            run_until_it_dies(path, tmp_path / out, nano)
        except Died:
            assert step < 5
    whole = (tmp_path / out).read_bytes()
    if (tmp_path / f"{out}.partial" / "job.json").exists():
        assert run_job(path, tmp_path / out, nano).state.rows == len(TEXTS)
    else:  # nothing tells any more that it was ours
        with pytest.raises(ConfigError, match="exists; remove it"):
            run_job(path, tmp_path / out, nano)
    assert (tmp_path / out).read_bytes() == whole


def interrupted(nano: Path, tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    """(input, output) of a job that ended after two blocks."""
    path, out = write(tmp_path / "in.csv", COLUMNS), tmp_path / "out.csv"
    plan = planned(path, out, nano, **settings)
    unfinished = plan.open()
    assert unfinished is not None
    with unfinished:
        pieces = plan.job.pieces(unfinished.state, Watched())
        for _ in range(3):
            unfinished.append(next(pieces))
            unfinished.commit()
        pieces.close()
    return path, out


def test_it_continues_and_does_not_begin_anew(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    assert json.loads((tmp_path / "out.csv.partial" / "job.json").read_text())["state"]["rows"] == 8
    plan = planned(path, out, nano)
    unfinished, watched = plan.open(), Watched()
    assert unfinished is not None
    assert unfinished.resumed
    plan.run(unfinished, watched)
    run_job(path, tmp_path / "whole.csv", nano)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert watched.tokens < unfinished.state.tokens, "the first blocks were not scored again"


def test_what_was_written_after_the_last_commit_does_not_count(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    with (tmp_path / "out.csv.partial" / "data").open("ab") as data:
        data.write(b"half a ro")
    (tmp_path / "out.csv.partial" / "job.json.new").write_text('{"half')
    run_job(path, out, nano)
    run_job(path, tmp_path / "whole.csv", nano)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_skipped_rows_do_not_bring_the_header_twice(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in.csv", {"text": [""] * 12 + ["great"]})
    with monkeypatch.context() as patch:
        die_in(patch, "commit", 2, after=True)  # right after the header
        with pytest.raises(Died):
            run_until_it_dies(path, tmp_path / "out.csv", nano, on_error="skip")
    run_job(path, tmp_path / "out.csv", nano, on_error="skip")
    assert (tmp_path / "out.csv").read_text().count("text,label,score") == 1


# --- what has changed ---


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "--probs": ({"probs": True}, "--probs was False and is True"),
    "--top-k": ({"top_k": 2}, "--top-k was 1 and is 2"),
    "--prefix": ({"prefix": "p_"}, "--prefix was '' and is 'p_'"),
    "--max-batch-tokens": ({"max_batch_tokens": 5}, "--max-batch-tokens was 2048 and is 5"),
    "--activation": ({"activation": "none"}, "--activation was 'auto' and is 'none'"),
    "--on-too-long": ({"on_too_long": "window"}, "--on-too-long was None and is 'window'"),
    "--on-error null": ({"on_error": "null"}, "--on-error null was False and is True"),
    "--text-column": ({"text_column": "id"}, "the text column was 'text' and is 'id'"),
    "--no-header": ({"no_header": True, "text_column": "column_2"}, "--no-header was False and is True"),
    "--output-format": ({"output_format": "tsv"}, "the output's format was ['csv', None] and is ['tsv', None]"),
    "--input-format": ({"input_format": "text"}, "the input's format was 'csv' and is 'text'"),
}


@pytest.mark.parametrize(("settings", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_settings_are_refused(nano: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path, out = interrupted(nano, tmp_path)
    before = (tmp_path / "out.csv.partial" / "data").read_bytes()
    with pytest.raises(ConfigError) as raised:
        run_job(path, out, nano, **settings)
    assert message in raised.value.message
    assert "Put that back to continue it, or start anew with --overwrite" in raised.value.message
    assert (tmp_path / "out.csv.partial" / "data").read_bytes() == before
    run_job(path, out, nano)


def test_settings_that_change_no_byte_are_not(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    moved = shutil.copytree(nano, tmp_path / "elsewhere")
    settings = {"text_column": "text", "id_column": "id", "on_error": "skip", "overwrite": True}
    assert run_job(path, out, moved, **settings).watched.tokens < run_job(path, tmp_path / "b.csv", nano).watched.tokens


def test_a_changed_input_is_refused(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    text = path.read_text()
    path.write_text(text.replace("coffee", "COFFEE", 1))
    with pytest.raises(ConfigError, match=rf"the input {path} has changed"):
        run_job(path, out, nano)
    path.write_text(text)
    run_job(path, out, nano)


def test_other_inputs_are_refused(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    other = write(tmp_path / "other.csv", COLUMNS)
    with pytest.raises(ConfigError, match=r"other.csv is an input now"):
        run_job([path, other], out, nano)
    with pytest.raises(ConfigError, match=r"in.csv is no input any more"):
        run_job([other], out, nano)


def change_weights(folder: Path) -> None:
    save_nano(folder, seed=1)


def change_labels(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] |= {"0": "awful"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [change_weights, change_labels])
def test_a_changed_model_is_refused(nano: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    path, out = interrupted(nano, tmp_path)
    other = shutil.copytree(nano, tmp_path / "other")
    change(other)
    with pytest.raises(ConfigError, match="the model's files are others"):
        run_job(path, out, other)
    run_job(path, out, other, overwrite=True)


def test_an_input_that_changes_while_it_is_read(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", COLUMNS)
    plan = planned(path, tmp_path / "out.csv", nano)
    with path.open("a") as file:
        file.write("22,more\n")
    with pytest.raises(RequestError, match=r"While it was read, the input .* has changed; start anew with --overwrite"):
        plan.run(plan.open(), Watched())
    assert not (tmp_path / "out.csv").exists()
    run_job(path, tmp_path / "out.csv", nano, overwrite=True)


def test_large_files_are_told_apart_by_their_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte between the pieces that are looked at."""
    monkeypatch.setattr("assay.files.fingerprint._WHOLE", 1 << 12)
    monkeypatch.setattr("assay.files.fingerprint._PIECE", 1)
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 16))
    before = digest(path)
    os.utime(path, ns=(1, 1))
    assert digest(path) != before
    monkeypatch.setattr("assay.files.fingerprint._WHOLE", 1 << 20)
    before = digest(path)
    os.utime(path, ns=(2, 2))
    assert digest(path) == before, "a small one is its content"


def test_a_pipe_cannot_be_continued(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = {"input": {"stdin": ["pipe", "one"]}}
    with Unfinished(tmp_path / "out.csv", fingerprint, False) as unfinished:
        unfinished.append(b"x")
        unfinished.state.blocks = 1
        unfinished.commit()
    with pytest.raises(ConfigError, match="what came through a pipe cannot be read again"):
        Unfinished(tmp_path / "out.csv", {"input": {"stdin": ["pipe", "other"]}}, False)


# --- two runs, full disks, and what is in the way ---


def test_two_runs_at_once(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", COLUMNS)
    first = planned(path, tmp_path / "out.csv", nano)
    unfinished = first.open()
    with pytest.raises(ConfigError, match=r"Another run is writing .*out\.csv; wait for it"):
        run_job(path, tmp_path / "out.csv", nano)
    first.run(unfinished, Watched())
    with pytest.raises(ConfigError, match="exists; remove it, or replace it with --overwrite"):
        run_job(path, tmp_path / "out.csv", nano)


def test_a_run_that_ends_while_another_waits_at_its_door(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at OUT and the lock, another run finishes: its output is not written over."""
    path, out = write(tmp_path / "in.csv", COLUMNS), tmp_path / "out.csv"
    late, real, finished = planned(path, out, nano, prefix="late_"), fcntl.flock, []

    def flock(lock: Any, how: int) -> None:
        if not finished:
            finished.append(lock)
            run_job(path, out, nano)
        real(lock, how)

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigError, match="exists; remove it"):
        late.open()
    assert out.read_text().startswith("id,text,label,score")
    assert not (tmp_path / "out.csv.partial").exists()


@pytest.mark.parametrize("writes", [1, 3])
def test_a_full_disk(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    path = write(tmp_path / "in.csv", COLUMNS)
    left, real = [writes], Unfinished.append

    def append(self: Unfinished, piece: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "append", append)
        with pytest.raises(OSError, match="No space left"):
            run_job(path, tmp_path / "out.csv", nano)
    assert not (tmp_path / "out.csv").exists()
    assert (tmp_path / "out.csv.partial").exists() == (writes > 2), "what has no row in it is taken away"
    run_job(path, tmp_path / "out.csv", nano)
    run_job(path, tmp_path / "whole.csv", nano)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_outputs_that_cannot_be_written(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", COLUMNS)
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    cases: list[tuple[Path, type[Exception], str]] = [
        (tmp_path / "folder.csv", ConfigError, "is a folder; name a file in it"),
        (tmp_path / "none" / "out.csv", ConfigError, "There is no folder"),
        (tmp_path / "pipe.csv", ConfigError, "is no regular file"),
        (Path("/proc/out.csv"), OSError, "/proc/out.csv.partial"),
        (path, ConfigError, "is both input and output"),
        (tmp_path / ".." / tmp_path.name / "in.csv", ConfigError, "is both input and output"),
    ]
    for out, error, message in cases:
        with pytest.raises(error, match=message):
            run_job(path, out, nano)
    assert path.exists()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_killed_while_it_cleaned_up_and_its_output_removed(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is done, and nothing of it is left: from the beginning again."""
    path, out = write(tmp_path / "in.csv", COLUMNS), tmp_path / name

    def killed(self: Unfinished) -> None:
        self.data.unlink(missing_ok=True)
        self.close()

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "remove", killed)
        run_job(path, out, nano)
    assert (tmp_path / f"{name}.partial" / "job.json").exists()
    first = out.read_bytes()
    out.unlink()
    run_job(path, out, nano)
    assert out.read_bytes() == first
    assert not (tmp_path / f"{name}.partial").exists()


def test_overwrite(nano: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "in.csv", COLUMNS), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists; remove it, or replace it with --overwrite"):
        run_job(path, out, nano)
    assert out.read_text() == "mine"
    assert not (tmp_path / "out.csv.partial").exists()
    run_job(path, out, nano, overwrite=True)
    assert out.read_text().startswith("id,text,label,score")


def test_what_is_damaged(nano: Path, tmp_path: Path) -> None:
    path, out = interrupted(nano, tmp_path)
    folder = tmp_path / "out.csv.partial"
    whole = (folder / "data").read_bytes()
    (folder / "data").write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match="is shorter than it was left; start anew with --overwrite"):
        run_job(path, out, nano)
    (folder / "job.json").write_text("{")
    with pytest.raises(ConfigError, match=r"is damaged .*; remove .*out\.csv\.partial to start anew"):
        run_job(path, out, nano)
    shutil.rmtree(folder)
    run_job(path, out, nano)
    out.unlink()
    interrupted(nano, tmp_path)
    (folder / "data").unlink()
    run_job(path, out, nano, overwrite=True)
    run_job(path, tmp_path / "whole.csv", nano)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_row_that_stops_the_job_can_be_skipped_from_there(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"text": [*TEXTS, "", "great"]})
    with pytest.raises(AssayError, match="line 24: 'text' is empty"):
        run_job(path, tmp_path / "out.csv", nano)
    done = run_job(path, tmp_path / "out.csv", nano, on_error="skip")
    assert (done.state.rows, done.state.errors) == (24, 1)
    assert done.watched.tokens < done.state.tokens


def test_a_folder_that_is_left_without_work_is_no_hindrance(tmp_path: Path) -> None:
    with Unfinished(tmp_path / "out.csv", {"a": 1}, False) as unfinished:
        unfinished.commit()
        unfinished.state = State()
    assert not (tmp_path / "out.csv.partial").exists()
