"""`assay classify INPUT -o OUT` as a person sees it: what is said, when, and where; and how it ends."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from assay.cli import main
from assay.commands.progress import JobProgress
from assay.files.unfinished import State, Unfinished
from tests.e2e.process import run_assay
from tests.jobs import LABELS, read, save_nano, small_blocks, write

Assay = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nano(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def assay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Assay:
    def run(*arguments: object) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        monkeypatch.setattr("sys.argv", ["assay", "classify", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_what_is_said(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"id": [1, 2, 3], "remarks": ["great", "", "so new"]})
    out = tmp_path / "out.csv"
    code, stdout, stderr = assay(path, "-m", nano, "-o", out, "--on-error", "skip", "--id-column", "id")
    assert (code, stdout) == (0, "")
    guessed, bad, summary, speed, *labels = stderr.splitlines()
    assert guessed == "The text is taken from column 'remarks'."
    assert bad == f"{path}, line 3 (id '2'): 'remarks' is empty."
    assert summary == f"3 rows, 7 tokens, 1 errors → {out}"
    assert re.fullmatch(r"[\d,]+ rows/s, [\d,]+ tokens/s", speed)
    assert sum(int(line.split()[0]) for line in labels) == 2
    assert {line.split()[1] for line in labels} <= set(LABELS)
    assert "\x1b" not in stderr, "no bar and no colour where there is no terminal"


def test_a_column_that_is_named_is_not_talked_about(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"id": [1], "remarks": ["great"]})
    assert "is taken from" not in assay(path, "-m", nano, "-o", tmp_path / "a.csv", "--text-column", "remarks")[2]
    path = write(tmp_path / "in.txt", {"text": ["great"]})
    assert "is taken from" not in assay(path, "-m", nano, "-o", tmp_path / "b.csv")[2]


def test_columns_are_listed(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"title": ["a"], "story": ["b"]})
    code, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv")
    assert code == 1
    assert stderr == (
        "assay: Say which column holds the text, with --text-column. The columns are: 'title', 'story'.\n"
    )


def test_a_bad_row_ends_it_in_one_line(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"text": ["great", ""]})
    path.write_text('text\ngreat\n"never closed\n')
    code, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv")
    assert code == 1
    assert stderr == (
        f"assay: {path}, line 3: a quote that opens here is never closed. --on-error skip leaves such rows out, "
        "--on-error null keeps them.\n"
    )


def test_many_bad_rows_are_counted(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"text": ["", *["great"] * 2, *[""] * 49]})
    _, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv", "--on-error", "null")
    assert stderr.count("'text' is empty.") == 20
    assert "… and 30 more rows without a score." in stderr
    assert "52 rows, 6 tokens, 50 errors" in stderr


def test_an_error_message_is_no_markup(assay: Assay, nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"text": [["[bold]x[/bold]"], "great"]})
    _, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "o.csv", "--on-error", "skip", "--text-column", "text")
    assert "'text' is ['[bold]x[/bold]'], of type list, and no text." in stderr


@pytest.mark.slow
def test_to_stdout(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"text": ["great"]})
    done = run_assay("classify", str(path), "-m", str(nano))
    assert json.loads(done.stdout)["label"] in LABELS
    assert "1 rows, 3 tokens, 0 errors → -" in done.stderr


def test_it_is_interrupted_and_continued(
    assay: Assay, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch, 2)
    path = write(tmp_path / "in.csv", {"text": ["great", "so"] * 4})
    real, calls = Unfinished.append, []

    def interrupted(self: Unfinished, piece: bytes) -> None:
        calls.append(piece)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, piece)
        self.commit()

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "append", interrupted)
        code, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv")
    assert (code, stderr) == (130, "Stopped. The same command continues it.\n")
    code, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv")
    assert code == 0
    assert stderr.startswith("Continued after 4 rows.\n8 rows, 24 tokens")
    assert len(read(tmp_path / "out.csv")) == 8


def test_a_full_disk_is_told(assay: Assay, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in.csv", {"text": ["great"]})

    def full(self: Unfinished) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Unfinished, "commit", full)
    code, _, stderr = assay(path, "-m", nano, "-o", tmp_path / "out.csv")
    assert code == 1
    assert stderr.splitlines() == [
        "Stopped. The same command continues it.",
        "assay: [Errno 28] No space left on device",
    ]


@pytest.mark.slow
def test_a_full_disk_under_stdout(nano: Path, tmp_path: Path) -> None:
    """/dev/full is Linux's own."""
    path = write(tmp_path / "in.csv", {"text": ["great"]})
    command = [sys.executable, "-m", "assay", "classify", str(path), "-m", str(nano)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["in.csv", "--text", "x"], ["in.csv", "--on-error", "panic"], []], ids=str)
def test_usage_errors(assay: Assay, arguments: list[str]) -> None:
    code, _, stderr = assay(*arguments)
    assert code == 2
    assert "Traceback" not in stderr


# --- the bar ---


def test_the_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    terminal = Console(file=seen, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("assay.commands.progress.Console", lambda stderr: terminal)
    with JobProgress(1000, State(rows=50)) as progress:
        for i in range(1, 6):
            progress.scored(4000)
            progress.written(State(rows=50 + 20 * i), 100 * i)
        progress.bad_row("in.csv, line 7: 'text' is null.")
        progress._bar.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.getvalue())
    assert "50%" in shown
    assert "150 rows" in shown
    assert re.search(r"[\d,]+ rows/s, [\d,]+ tokens/s", shown)
    assert re.search(r"\d:\d\d:\d\d", shown), "the time that is left"
    assert "in.csv, line 7: 'text' is null." in shown


def test_the_speed_is_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = JobProgress(0, State(rows=1_000_000))
    progress.scored(500)
    progress.written(State(rows=1_000_020), 0)
    now[0] += 10
    assert progress.speed() == "2 rows/s, 50 tokens/s"


def test_rare_labels_are_counted_together(capsys: pytest.CaptureFixture[str]) -> None:
    progress = JobProgress(0, State())
    progress.summarize(State(rows=3, labels={f"label_{i:02}": 30 - i for i in range(25)}), "out.csv")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 + 20 + 1
    assert lines[2].split() == ["30", "label_00"]
    assert lines[-1].split() == ["40", "in", "5", "more", "labels"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--text", "x", "-o", "out.csv", "--top-k", "2"), "--output, --top-k: only of files"),
        (("in.csv", "--json"), "--top and --json are for --text"),
        (("in.csv", "--top", "2"), "--top and --json are for --text"),
    ],
    ids=str,
)
def test_options_of_the_other_way_are_not_ignored(
    assay: Assay, nano: Path, arguments: tuple[str, ...], told: str
) -> None:
    code, stdout, stderr = assay("-m", nano, *arguments)
    assert (code, stdout) == (2, "")
    assert told in re.sub(r"[\s│]+", " ", stderr)
