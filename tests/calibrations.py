"""Calibrations made by hand, for checkpoints that a test has made."""

from collections.abc import Sequence
from pathlib import Path

from assay.calibration import Calibration, FittedOn, Kind, LabelCalibration, ModelIdentity, Quality
from assay.model.identity import weights_identity

SLOPES, INTERCEPTS, THRESHOLDS = (0.5, 2.0, 1.25), (-1.0, 0.75, 0.25), (0.3, 0.9, None)


def calibration(
    names: Sequence[str], kind: Kind = "platt", temperature: float = 1.0, weights: str = "0f", **more: object
) -> Calibration:
    """Of the numbers above for three labels, or of one temperature."""
    fitted = tuple(map(LabelCalibration, names))
    if kind == "platt":
        fitted = tuple(map(LabelCalibration, names, SLOPES, INTERCEPTS, THRESHOLDS))
    before, after = Quality(0.7, 0.2, 0.4), Quality(0.5, 0.1, 0.5)
    fields = {
        "format": "assay calibration",
        "version": 1,
        "model": ModelIdentity("tiny", weights),
        "kind": kind,
        "labels": fitted,
        "fitted_on": FittedOn(("dev.csv",), 40, before, after),
        "temperature": temperature,
    }
    return Calibration(**fields | more)  # type: ignore[arg-type]


def written(path: Path, model: Path, labels: Sequence[str], kind: Kind = "platt", temperature: float = 1.0) -> Path:
    """The file of such a calibration for a checkpoint."""
    calibration(labels, kind, temperature, weights_identity(model)).write(path)
    return path
