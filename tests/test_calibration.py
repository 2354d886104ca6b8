"""A calibration's file: written whole, read as it was, refused where it is damaged or another model's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.calibration import LabelCalibration, check_fits, read_calibration
from assay.errors import ConfigError
from assay.model.identity import weights_identity
from tests.calibrations import INTERCEPTS, SLOPES, calibration
from tests.tiny import rewrite_weights, save_bert

LABELS = ("bad", "fair", "good")


# --- the file ---


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_it_is_read_as_it_was_written(tmp_path: Path, kind: Any) -> None:
    written = calibration(LABELS, kind, temperature=1.0 if kind == "platt" else 1.7)
    written.write(tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    calibration(LABELS).write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        calibration(LABELS, fitted_on=object()).write(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["c.json"]


def test_slopes_intercepts_and_thresholds_are_of_all_labels_in_order() -> None:
    platt = calibration(LABELS)
    assert (platt.slopes, platt.intercepts) == (SLOPES, INTERCEPTS)
    assert platt.thresholds == (0.3, 0.9, 0.5)
    assert platt.activation == "sigmoid"
    cooled = calibration(LABELS, "temperature", temperature=2.0)
    assert (cooled.slopes, cooled.intercepts, cooled.thresholds) == ((0.5,) * 3, (0.0,) * 3, None)
    assert cooled.activation == "softmax"


# --- what is refused ---


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None], kind: Any = "platt") -> Path:
    path = tmp_path / "c.json"
    calibration(LABELS, kind).write(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="report"), "is no calibration; `assay calibrate DATA"),
        (lambda c: c.update(version=2), "of version 2; this assay reads 1"),
        (lambda c: c.pop("version"), "of version None"),
        (lambda c: c["labels"][1].update(treshold=0.4), "unknown field `treshold` - at `$.labels[1]`"),
        (lambda c: c.update(temprature=2.0), "unknown field `temprature`"),
        (lambda c: c["labels"][0].update(slope=-1), r"Expected `float` >= 1e-06 - at `$.labels[0].slope`"),
        (lambda c: c["labels"][0].update(slope=1e300), "<= 1000000.0 - at `$.labels[0].slope`"),
        (lambda c: c["labels"][0].update(threshold=1.5), "<= 1.0 - at `$.labels[0].threshold`"),
        (lambda c: c["labels"][0].pop("label"), "missing required field `label`"),
        (lambda c: c.pop("model"), "missing required field `model`"),
        (lambda c: c.update(kind="isotonic"), "Invalid enum value 'isotonic'"),
        (lambda c: c.update(temperature=2), "of kind platt has no temperature"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_calibration(changed(tmp_path, change))
    assert message in refusal.value.message
    assert str(tmp_path / "c.json") in refusal.value.message


def test_a_temperature_is_all_that_exclusive_labels_have(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda c: c["labels"][2].update(slope=2), "temperature")
    with pytest.raises(ConfigError, match="no slope or intercept of a label's own, as 'good' has"):
        read_calibration(path)
    path = changed(tmp_path, lambda c: c["labels"][2].update(threshold=0.2), "temperature")
    assert read_calibration(path).thresholds == (0.5, 0.5, 0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be used"), (b"[]", "is no calibration"), (b"\xff", "cannot be used"), (b'{"a": ', "cannot be used")],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refusal:
        read_calibration(path)
    assert "\n" not in refusal.value.message


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.json cannot be read: No such file"):
        read_calibration(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("labels", "activation", "weights", "message"),
    [
        (("bad", "fair"), "sigmoid", "0f", "has 3 labels, and the model 2"),
        (("bad", "so-so", "good"), "sigmoid", "0f", "it has 'fair', and the model 'so-so' in their place"),
        (("good", "fair", "bad"), "sigmoid", "0f", "in another order"),
        (LABELS, "softmax", "0f", "was fitted for sigmoid, and this model's scores go through softmax"),
        (LABELS, "none", "0f", "this model's scores are raw"),
        (LABELS, "sigmoid", "1f", "on another model of these labels, tiny (weights 0f); this one's weights are 1f"),
    ],
)
def test_another_model_is_refused(labels: tuple[str, ...], activation: Any, weights: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        check_fits(calibration(LABELS), Path("c.json"), labels, activation, weights)
    assert message in refusal.value.message


def test_the_model_itself_is_not() -> None:
    check_fits(calibration(LABELS), Path("c.json"), LABELS, "sigmoid", "0f")


def test_a_label_says_why_it_was_left_as_it_is(tmp_path: Path) -> None:
    labels = (*map(LabelCalibration, LABELS[:2]), LabelCalibration("good", note="3 rows have it"))
    calibration(LABELS, labels=labels).write(tmp_path / "c.json")
    assert read_calibration(tmp_path / "c.json").labels[2].note == "3 rows have it"
    assert read_calibration(tmp_path / "c.json").thresholds is None


# --- which weights ---


def test_weights_are_known_wherever_they_lie_and_however_they_are_cut(tmp_path: Path) -> None:
    save_bert(tmp_path / "whole", hidden_size=120, intermediate_size=200)
    save_bert(tmp_path / "cut", hidden_size=120, intermediate_size=200, shard="300KB")
    shutil.copytree(tmp_path / "whole", tmp_path / "elsewhere")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
    known = {weights_identity(tmp_path / folder) for folder in ("whole", "cut", "elsewhere")}
    assert len(known) == 1


@pytest.mark.parametrize(
    "tensor", ["classifier.bias", "bert.encoder.layer.1.attention.self.query.weight", "bert.pooler.dense.weight"]
)
def test_other_weights_are_others(tmp_path: Path, tensor: str) -> None:
    save_bert(tmp_path, hidden_size=400, num_hidden_layers=2)
    before = weights_identity(tmp_path)

    def train(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor] = tensors[tensor] * 1.001

    rewrite_weights(tmp_path, train)
    assert weights_identity(tmp_path) != before
    assert weights_identity(tmp_path, answer_token_ids=(3,)) != weights_identity(tmp_path)
