"""The command line: help, classify, and errors of one line without a traceback."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from assay import __version__
from assay.cli import app, main
from tests.e2e.process import run_assay
from tests.tiny import save_bert

LABELS = {0: "bad", 1: "fair", 2: "good"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_bert(folder, id2label=LABELS)
    return folder


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint, for a test to break."""
    return shutil.copytree(tiny, tmp_path / "broken")


def run(*arguments: str) -> tuple[int, str]:
    """(exit code, output) of a command that ends well or with a usage error."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line on stderr of a command that must fail with exit code 1."""
    monkeypatch.setattr("sys.argv", ["assay", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main()
    printed = capsys.readouterr()
    assert exit_info.value.code == 1
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("assay: ")
    return lines[0]


# --- the process ---


@pytest.mark.parametrize(("cores", "setting"), [({0}, "false"), ({0, 1}, None)])
def test_on_one_core_the_tokenizers_library_starts_no_thread(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], setting: str | None
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: cores)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setattr("sys.argv", ["assay", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ.get("TOKENIZERS_PARALLELISM") == setting


# --- help ---


def test_help_names_the_commands() -> None:
    code, output = run("--help")
    assert code == 0
    assert "serve" in output
    assert "classify" in output


def test_version() -> None:
    assert run("--version") == (0, f"assay {__version__}\n")


def test_serve_help_names_every_flag_and_its_default() -> None:
    code, output = run("serve", "--help")
    assert code == 0
    for flag in (
        "--host",
        "--port",
        "--served-model-name",
        "--revision",
        "--max-model-len",
        "--dtype",
        "--device",
        "--activation",
        "--max-batch-tokens",
        "--max-queue-tokens",
        "--max-cache-bytes",
        "--drain-timeout",
        "--log-level",
    ):
        assert flag in output
    assert "127.0.0.1" in output
    assert "8000" in output
    assert str(Path.cwd()) not in output


def test_classify_help() -> None:
    code, output = run("classify", "--help")
    assert code == 0
    assert all(flag in output for flag in ("--text", "--model", "-m", "--json", "--top"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["serve", "--no-such-flag"],
        ["serve", "--port", "eighty"],
        ["serve", "x", "--dtype", "float13"],
        ["classify"],
        ["classify", "--text"],
        ["classify", "--text", "x", "--top", "-1"],
        ["classify", "--text", "x", "--activation", "relu"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert "Traceback" not in output


# --- classify ---


def test_classify_draws_bars(tiny: Path) -> None:
    code, output = run("classify", "-m", str(tiny), "--text", "the coffee was great")
    assert code == 0
    assert "the coffee was great" in output
    rows = [re.fullmatch(r"(bad|fair|good) +(\d[.]\d{4}) *(█*) *", line) for line in output.splitlines()]
    found = [(row[1], float(row[2]), len(row[3])) for row in rows if row]
    assert sorted(name for name, _, _ in found) == sorted(LABELS.values())
    assert [prob for _, prob, _ in found] == sorted((prob for _, prob, _ in found), reverse=True)
    assert sum(prob for _, prob, _ in found) == pytest.approx(1, abs=1e-3)
    assert all(bar == pytest.approx(30 * prob, abs=0.51) for _, prob, bar in found)


def test_classify_shows_as_many_labels_as_asked(tiny: Path) -> None:
    _, output = run("classify", "-m", str(tiny), "--text", "great", "--top", "1")
    assert sum(label in output for label in LABELS.values()) == 1


def test_classify_as_json(tiny: Path) -> None:
    texts = ["Loved the new café—coffee was great.", "so [bold]new[/bold]", "great"]
    code, output = run("classify", "-m", str(tiny), "--json", *(part for text in texts for part in ("--text", text)))
    assert code == 0
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["text"] for row in rows] == texts
    for row in rows:
        assert set(row) == {"text", "label", "probs"}
        assert list(row["probs"]) == list(LABELS.values())
        assert sum(row["probs"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probs"], key=row["probs"].__getitem__)


def test_classify_prints_a_text_as_it_is(tiny: Path) -> None:
    """Brackets in a text are no markup."""
    for text in ("so [bold]new[/bold]", "[/nothing] was opened", "great :smile:"):
        code, output = run("classify", "-m", str(tiny), "--text", text)
        assert code == 0
        assert text in output


def test_classify_raw_logits_have_no_bars(tiny: Path) -> None:
    code, output = run("classify", "-m", str(tiny), "--activation", "none", "--text", "great coffee", "--json")
    assert code == 0
    assert sum(json.loads(output)["probs"].values()) != pytest.approx(1, abs=1e-3)


# --- errors: one line on stderr, exit code 1 ---


@pytest.mark.parametrize("command", [["serve", "MODEL", "--port", "0"], ["classify", "-m", "MODEL", "--text", "x"]])
def test_there_is_no_such_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    missing = str(tmp_path / "nothing")
    line = fails(capsys, monkeypatch, *(missing if part == "MODEL" else part for part in command))
    assert missing in line


BROKEN = {
    "no tokenizer": ("tokenizer.json", None, "tokenizer.json"),
    "broken tokenizer": ("tokenizer.json", "{", "tokenizer.json"),
    "no config": ("config.json", None, "config.json"),
    "broken config": ("config.json", "{", "config.json"),
    "config is a list": ("config.json", "[]", "config.json"),
    "no weights": ("model.safetensors", None, "model.safetensors"),
    "broken weights": ("model.safetensors", "junk", "model.safetensors"),
    "index without a map": ("model.safetensors.index.json", "{}", "model.safetensors.index.json"),
    "index that names a missing file": (
        "model.safetensors.index.json",
        '{"weight_map": {"a": "b.safetensors"}}',
        "b.s",
    ),
    "index that leads elsewhere": ("model.safetensors.index.json", '{"weight_map": {"a": 5}}', "index"),
    "broken tokenizer config": ("tokenizer_config.json", "nonsense", "tokenizer_config.json"),
}


@pytest.mark.parametrize(("file", "content", "named"), BROKEN.values(), ids=BROKEN)
def test_broken_checkpoints(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: Path,
    file: str,
    content: str | None,
    named: str,
) -> None:
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(content)
    assert named in fails(capsys, monkeypatch, "classify", "-m", str(broken), "--text", "x")


def test_truncated_weights_and_weights_that_are_no_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: Path
) -> None:
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in fails(capsys, monkeypatch, "classify", "-m", str(broken), "--text", "x")
    path.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")  # the last number of the file, in float32, is NaN now
    assert "not finite" in fails(capsys, monkeypatch, "classify", "-m", str(broken), "--text", "x")


def test_an_unknown_rope_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: Path
) -> None:
    config = {
        "architectures": ["LlamaForSequenceClassification"],
        "rope_scaling": {"rope_type": "spiral", "factor": 2.0},
    }
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    assert "spiral" in fails(capsys, monkeypatch, "classify", "-m", str(broken), "--text", "x")


BROKEN_CONFIGS = {
    "an unknown architecture": {"architectures": ["NoSuchModel"], "model_type": "none"},
    "a hidden size that is not the weights'": {"hidden_size": 40},
    "one layer more than there is": {"num_hidden_layers": 4},
    "a text for a number": {"hidden_size": "36"},
    "too few labels": {"id2label": {"0": "a"}},
    "labels that are no numbers": {"id2label": {"zero": "a", "one": "b", "two": "c"}},
    "labels as a list": {"id2label": ["a", "b", "c"]},
    "zero heads": {"num_attention_heads": 0},
    "negative layers": {"num_hidden_layers": -1},
    "an unknown problem": {"problem_type": "riddle"},
    "architectures as a number": {"architectures": 5},
}


@pytest.mark.parametrize("change", BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_broken_configs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: Path, change: dict[str, object]
) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | change))
    fails(capsys, monkeypatch, "classify", "-m", str(broken), "--text", "x")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--port", "65536"], "65536"),
        (["--port", "-1"], "-1"),
        (["--max-batch-tokens", "0"], "max_batch_tokens"),
        (["--max-queue-tokens", "-5"], "max_queue_tokens"),
        (["--max-model-len", "0"], "max_model_len"),
        (["--drain-timeout", "-1"], "drain_timeout"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--host", "203.0.113.1"], "203.0.113.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path, options: list[str], named: str
) -> None:
    settings = options if "--port" in options else [*options, "--port", "0"]
    assert named in fails(capsys, monkeypatch, "serve", str(tiny), *settings)


def test_max_model_len_beyond_the_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    line = fails(capsys, monkeypatch, "classify", "-m", str(tiny), "--max-model-len", "129", "--text", "x")
    assert "129" in line
    assert "128" in line


def test_port_in_use(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = fails(capsys, monkeypatch, "serve", str(tiny), "--port", port)
    assert port in line
    assert "--port" in line


def test_a_text_that_is_too_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    line = fails(capsys, monkeypatch, "classify", "-m", str(tiny), "--text", "coffee " * 200)
    assert "maximum context length is 128" in line


@pytest.mark.slow
def test_as_a_process(tiny: Path, tmp_path: Path) -> None:
    """What the others do in this process, once for real: streams and exit codes."""
    good = run_assay("classify", "-m", str(tiny), "--text", "great", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["label"] in LABELS.values()
    bad = run_assay("classify", "-m", str(tmp_path), "--text", "great")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert len(bad.stderr.splitlines()) == 1
