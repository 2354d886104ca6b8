"""`assay verify` and `assay models`: parity told honestly, and failures that are noticed."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from assay import cli, verify
from assay.errors import CheckpointError, ConfigError
from assay.model.registry import ARCHITECTURES
from tests.tiny import save_bert


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder, id2label={0: "bad", 1: "[fair]", 2: "good"})
    return folder


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_good_checkpoint_passes(checkpoint: Path) -> None:
    found = verify.verify(str(checkpoint))
    assert found.passed
    assert found.architecture == "BertForSequenceClassification"
    assert [row.text for row in found.comparisons] == list(verify.SAMPLES)
    assert 0 < found.max_difference <= found.tolerance == 1e-4
    assert found.agreement == 1
    assert max(row.num_tokens for row in found.comparisons) == 128, "the long sample is cut to the model's length"
    assert found.comparisons[2].same_token_ids


def test_wrong_scores_do_not_pass(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = verify._scores
    monkeypatch.setattr(verify, "_scores", lambda *arguments: good(*arguments) + 2e-4)
    found = verify.verify(str(checkpoint), ["so", "the coffee"])
    assert found.agreement == 1
    assert found.max_difference == pytest.approx(2e-4, rel=0.05)
    assert not found.passed
    monkeypatch.setattr(verify, "_scores", lambda *arguments: good(*arguments).flip(-1))
    assert verify.verify(str(checkpoint), ["so", "the coffee"]).agreement < 1
    monkeypatch.setattr(verify, "_scores", lambda *arguments: good(*arguments) * torch.nan)
    assert not verify.verify(str(checkpoint), ["so"]).passed


def test_half_precision_is_measured_by_its_own_tolerance(checkpoint: Path) -> None:
    found = verify.verify(str(checkpoint), ["so", "the coffee was great"], dtype="bfloat16")
    assert found.dtype == "bfloat16"
    assert found.max_difference > 1e-4
    assert found.tolerance >= 0.15


def test_no_texts(checkpoint: Path) -> None:
    with pytest.raises(ConfigError):
        verify.verify(str(checkpoint), [])


def test_an_architecture_that_transformers_lacks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bert(tmp_path)
    monkeypatch.setattr(verify, "classifiers", lambda: {"gpt2": "GPT2ForSequenceClassification"})
    with pytest.raises(CheckpointError, match="transformers has no BertForSequenceClassification"):
        verify.verify(str(tmp_path))


def test_without_transformers(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'assay\[transformers\]'"):
        verify.verify(str(checkpoint))


def test_the_command(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the update broke everything\n\nso\n", "utf-8")
    code, output = invoke("verify", str(checkpoint), "--text", "loved [b] it", "--texts-file", str(texts))
    assert code == 0
    lines = output.splitlines()
    assert len(lines) == 5, output
    assert lines[1].startswith("loved [b] it")
    assert "labels agree on 100%: the same scores as transformers" in lines[-1]
    good = verify._scores
    monkeypatch.setattr(verify, "_scores", lambda *arguments: good(*arguments) + 1)
    code, output = invoke("verify", str(checkpoint), "--text", "so")
    assert code == 1
    assert "NOT the same" in output


def test_the_command_with_an_empty_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="no texts"):
        invoke("verify", str(checkpoint), "--texts-file", str(tmp_path / "texts.txt"))


def test_models_are_listed() -> None:
    code, output = invoke("models")
    assert code == 0
    native = [line.split()[0] for line in output.splitlines() if line.endswith("natively, packed")]
    assert native == list(ARCHITECTURES)
    assert any(line.startswith("GPT2ForSequenceClassification ") for line in output.splitlines())
    code, output = invoke("models", "--json")
    entries = [json.loads(line) for line in output.splitlines()]
    assert entries[0] == {
        "architecture": "BertForSequenceClassification",
        "family": "bert",
        "kind": "classifier",
        "native": True,
    }
