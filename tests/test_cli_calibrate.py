"""`assay calibrate`, and what `serve`, `classify` and `evaluate` make of its file; on GoEmotions, what it is worth."""

import csv
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from scipy.special import expit, softmax
from typer.testing import CliRunner

from assay import Classifier
from assay.calibration import read_calibration
from assay.cli import app
from assay.commands.serve import _calibrated
from assay.config import EngineConfig
from assay.errors import ConfigError
from assay.evaluation.calibrate import calibrate
from assay.evaluation.evaluate import Evaluation, evaluate
from assay.evaluation.fit import best_threshold, fit_platt, fit_temperature
from assay.evaluation.metrics import MultiLabel
from assay.evaluation.settings import DataConfig, EvaluationConfig
from assay.files.scorer import Scorer
from tests.calibrations import written
from tests.e2e.process import serving
from tests.tiny import WORDS, save_bert

LABELS = ("bad", "fair", "good")
TEXTS = [" ".join(words) for words in product(WORDS[:12], WORDS[:12], WORDS[3:5])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `single` and `multi`, and beside them labelled texts, of which they are too sure and too unsure."""
    folder = tmp_path_factory.mktemp("calibrate")
    kinds = (("single", "single_label_classification"), ("multi", "multi_label_classification"))
    for name, problem in kinds:
        save_bert(folder / name, id2label=dict(enumerate(LABELS)), problem_type=problem)
    logits = logits_of(folder / "single")
    rng = np.random.default_rng(0)
    drawn = [LABELS[rng.choice(3, p=row)] for row in softmax(logits / 3, axis=1)]
    having = rng.random(logits.shape) < expit(4 * (logits - logits.mean(axis=0)) - 1)
    several = ["|".join(label for label, has in zip(LABELS, row, strict=True) if has) for row in having]
    for name, cells in (("single", drawn), ("multi", several)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(TEXTS, cells, strict=True)])
    return folder


def logits_of(folder: Path) -> np.ndarray:
    with Classifier(str(folder)) as classifier:
        return np.array([prediction.logits for prediction in classifier.classify(TEXTS)])


def labels_in(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["label"] for row in csv.DictReader(file)]


def run(*arguments: str | Path) -> str:
    """What a command prints that must end well."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0, result.output or result.exception
    return result.output


def evaluated(data: Path, read: DataConfig | None = None, **config: Any) -> Evaluation:
    """What `assay evaluate` measures, without its pictures."""

    def watch(name: str, total: int) -> Callable[[int], None]:
        return lambda done: None

    return evaluate([str(data)], EngineConfig(**config), read or DataConfig(), EvaluationConfig(resamples=0), watch)


def value(evaluation: Evaluation, metric: str) -> float:
    return float(evaluation.first.measured.values[metric][0])


# --- the command ---


def test_one_temperature_where_labels_exclude_each_other(model: Path, tmp_path: Path) -> None:
    output = run("calibrate", model / "single.csv", "-m", model / "single", "-o", tmp_path / "c.json")
    found = read_calibration(tmp_path / "c.json")
    targets = np.array([LABELS.index(label) for label in labels_in(model / "single.csv")])
    expected = fit_temperature(logits_of(model / "single"), targets)
    assert found.kind == "temperature"
    assert found.temperature == pytest.approx(expected, rel=1e-4)
    assert found.temperature == pytest.approx(3, rel=0.3)
    assert (found.model.name, found.fitted_on.rows) == (str(model / "single"), len(TEXTS))
    assert f"temperature {found.temperature:.4f}" in output
    assert found.fitted_on.after.ece < found.fitted_on.before.ece / 2


def test_each_labels_own_numbers_where_they_do_not(model: Path, tmp_path: Path) -> None:
    output = run("calibrate", model / "multi.csv", "-m", model / "multi", "-o", tmp_path / "c.json")
    found, logits = read_calibration(tmp_path / "c.json"), logits_of(model / "multi")
    assert found.kind == "platt"
    for place, label in enumerate(LABELS):
        having = np.array([label in cell for cell in labels_in(model / "multi.csv")])
        slope, intercept = fit_platt(logits[:, place], having)
        assert (found.slopes[place], found.intercepts[place]) == pytest.approx((slope, intercept), rel=1e-3)
        assert found.labels[place].threshold == pytest.approx(
            best_threshold(expit(slope * logits[:, place] + intercept), having), abs=1e-4
        )
    assert "3 of 3 labels fitted" in output
    assert found.fitted_on.after.macro_f1 >= found.fitted_on.before.macro_f1


def test_what_is_fitted_is_what_is_served_evaluated_and_written(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    run("calibrate", model / "multi.csv", "-m", model / "multi", "-o", path)
    found = read_calibration(path)
    expected = expit(logits_of(model / "multi") * found.slopes + np.array(found.intercepts))

    evaluation = evaluated(model / "multi.csv", model=str(model / "multi"), calibration=str(path))
    assert np.abs(evaluation.first.judged.probs - expected).max() < 2e-5  # type: ignore[union-attr]
    assert evaluation.first.subject.thresholds == found.thresholds
    for metric in ("log_loss", "ece", "macro_f1"):
        assert value(evaluation, metric) == pytest.approx(getattr(found.fitted_on.after, metric), abs=1e-4)
    plain = evaluated(model / "multi.csv", model=str(model / "multi"))
    for metric in ("log_loss", "ece", "macro_f1"):
        assert value(plain, metric) == pytest.approx(getattr(found.fitted_on.before, metric), abs=1e-6)

    output = tmp_path / "scored.jsonl"
    arguments = ("-m", model / "multi", "--text-column", "text", "--probs", "--logits", "--prefix", "p_")
    run("classify", model / "multi.csv", *arguments, "--calibration", path, "-o", output)
    rows = list(map(json.loads, output.read_text("utf-8").splitlines()))
    probs, logits = ([[row[f"p_{kind}_{label}"] for label in LABELS] for row in rows] for kind in ("prob", "logit"))
    assert np.abs(np.array(probs) - expected).max() < 2e-5
    assert np.abs(np.array(logits) - logits_of(model / "multi")).max() < 2e-5
    assert [row["p_label"] for row in rows] == [LABELS[place] for place in expected.argmax(axis=1)]


def test_labels_without_enough_rows_are_told(model: Path, tmp_path: Path) -> None:
    with (tmp_path / "d.csv").open("w", newline="") as file:
        cells = ["good" if text.startswith("the") else "" for text in TEXTS]
        csv.writer(file).writerows([("text", "label"), *zip(TEXTS, cells, strict=True)])
    output = run("calibrate", tmp_path / "d.csv", "-m", model / "multi", "-o", tmp_path / "c.json")
    assert "1 of 3 labels fitted" in output
    assert "bad is left as it is: 0 rows have it, and 10 are the least" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("single.csv", "-m", "single", "-o", "nowhere/c.json"), "There is no folder"),
        (("single.csv", "-m", "multi", "--activation", "none", "-o", "c.json"), "give"),
        (("single.csv", "-m", "single", "--text-column", "body", "-o", "c.json"), "there is no such column"),
        (("short.csv", "-m", "single", "-o", "c.json"), "2 rows are too few"),
    ],
)
def test_what_cannot_be_done_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "short.csv").write_text("text,label\ngreat,good\nbroke,bad\n")
    for name in ("single.csv", "single", "multi"):
        (tmp_path / name).symlink_to(model / name)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    assert message in str(result.exception)
    assert not (tmp_path / "c.json").exists()


def test_a_model_of_raw_scores_is_refused_before_any_text_is_scored(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "encode", None)
    with pytest.raises(ConfigError, match="gives raw scores"):
        calibrate(
            [str(model / "single.csv")],
            EngineConfig(model=str(model / "single"), activation="none"),
            DataConfig(label_columns=("label",)),
            lambda name, prompts: lambda done: None,
        )


# --- serve: whose file it is ---


def test_a_file_is_the_one_models_or_names_its_model() -> None:
    one, two = EngineConfig("m/one"), EngineConfig("m/two", name="two")

    def files(configs: list[EngineConfig], *given: str) -> list[str | None]:
        return [config.calibration for config in _calibrated(configs, list(given))]

    assert files([one], "c.json") == ["c.json"]
    assert files([one], "m/one=c.json") == ["c.json"]
    assert files([one, two], "two=c.json") == [None, "c.json"]
    assert files([one, two], "two=c.json", "m/one=d.json") == ["d.json", "c.json"]
    assert files([one, two]) == [None, None]
    for wrong in (["c.json"], ["three=c.json"], ["two="], ["two=c.json", "two=d.json"]):
        with pytest.raises(ConfigError, match="write NAME=FILE"):
            files([one, two], *wrong)
    with pytest.raises(ConfigError, match="write NAME=FILE"):
        files([one], "c.json", "d.json")


@pytest.mark.slow
def test_a_server_with_two_models_corrects_the_one(model: Path) -> None:
    path = written(model / "served.json", model / "multi", LABELS)
    models = (f"honest={model / 'multi'}", "--calibration", f"honest={path}")
    with serving(f"plain={model / 'multi'}", *models) as server:
        assert "3 labels, float32" in server.ready
        assert "3 labels, calibrated, float32" in server.ready
        probs = {}
        for name in ("plain", "honest"):
            answer = httpx.post(f"{server.url}/v1/classify", json={"input": "great", "model": name}).json()
            probs[name] = answer["data"][0]["probs"]
    logits = np.log(np.array(probs["plain"])) - np.log1p(-np.array(probs["plain"]))
    found = read_calibration(path)
    assert probs["honest"] == pytest.approx(list(expit(logits * found.slopes + np.array(found.intercepts))), abs=1e-5)


# --- the bundled model on GoEmotions ---

ROWS = 1000


@pytest.mark.slow
def test_fitted_on_goemotions_dev_it_is_better_calibrated_on_test(shared_data: Path, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        lines = (shared_data / "goemotions" / f"{split}.tsv").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.tsv").write_text("".join(lines[:ROWS]), "utf-8")
    columns = ("--no-header", "--text-column", "column_1", "--label-column", "column_2")
    print(run("calibrate", tmp_path / "dev.tsv", *columns, "-o", tmp_path / "c.json"))
    read = DataConfig(text_column="column_1", label_columns=("column_2",), no_header=True)
    evaluation = evaluated(tmp_path / "test.tsv", read, calibration=str(tmp_path / "c.json"))
    raw = MultiLabel(evaluation.truth.targets, expit(evaluation.first.logits), np.full(28, 0.5))
    measured, _ = raw.measure(np.ones((1, ROWS)))
    before = {metric: float(values[0]) for metric, values in measured.items()}
    after = {metric: value(evaluation, metric) for metric in before}
    for metric in ("ece", "log_loss", "macro_f1"):
        print(f"{metric} on test: {before[metric]:.4f} → {after[metric]:.4f}")
    assert after["ece"] < before["ece"] / 2
    assert after["log_loss"] < before["log_loss"] * 0.8
    assert after["macro_f1"] > before["macro_f1"] - 0.02
