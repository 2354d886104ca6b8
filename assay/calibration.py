"""A correction of one model's scores: read from a file, checked, written. Knows no tensor, and not how it is fitted.

Label by label, calibrated logit = slope × logit + intercept, before the activation: slope = 1 / temperature for labels
that exclude each other (Guo et al. 2017), slope and intercept of each label's own for those that do not (Platt 1999).
Slopes are positive, so that no label's order of texts changes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from assay.config import Activation
from assay.errors import ConfigError

VERSION = 1
DEFAULT_THRESHOLD = 0.5
"""Of a label that has none of its own."""

Kind = Literal["temperature", "platt"]
KINDS: dict[Activation, Kind] = {"softmax": "temperature", "sigmoid": "platt"}
"""What is fitted, by the activation whose probabilities are corrected. There are none where there is no activation."""

_Slope = Annotated[float, Meta(ge=1e-6, le=1e6)]
_Intercept = Annotated[float, Meta(ge=-1e6, le=1e6)]
_Probability = Annotated[float, Meta(ge=0, le=1)]
_SHOWN = 3  # labels that a message names


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A misspelt field of a file that was edited by hand is an error, and no setting without effect."""


class LabelCalibration(_Frozen, frozen=True):
    """One label. threshold: the probability from which on it is flagged. note: why it was left as it is."""

    label: str
    slope: _Slope = 1.0
    intercept: _Intercept = 0.0
    threshold: _Probability | None = None
    note: str | None = None


class ModelIdentity(_Frozen, frozen=True):
    """name: for people. weights: a hash over tensors (model/identity.py)."""

    name: str
    weights: str


class Quality(_Frozen, frozen=True):
    """As `assay evaluate` measures them. macro_f1: with the thresholds of that moment."""

    log_loss: float
    ece: float
    macro_f1: float


class FittedOn(_Frozen, frozen=True):
    """The files, how many of their rows, and what the rows themselves say of the scores before and after."""

    data: tuple[str, ...]
    rows: int
    before: Quality
    after: Quality


class Calibration(_Frozen, frozen=True):
    """A calibration file, as it stands on the disk. labels: all of the model's, in its order."""

    format: Literal["assay calibration"]
    version: Literal[1]
    model: ModelIdentity
    kind: Kind
    labels: tuple[LabelCalibration, ...]
    fitted_on: FittedOn
    temperature: _Slope = 1.0

    @property
    def activation(self) -> Activation:
        """The one whose probabilities it corrects; it says nothing of what another makes of the same logits."""
        return next(activation for activation, kind in KINDS.items() if kind == self.kind)

    @property
    def slopes(self) -> tuple[float, ...]:
        return tuple(one.slope / self.temperature for one in self.labels)

    @property
    def intercepts(self) -> tuple[float, ...]:
        return tuple(one.intercept for one in self.labels)

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """One for each label, or None where no label has its own."""
        if all(one.threshold is None for one in self.labels):
            return None
        return tuple(DEFAULT_THRESHOLD if one.threshold is None else one.threshold for one in self.labels)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def read_calibration(path: Path) -> Calibration:
    """Raises ConfigError that says what is wrong with the file, and where in it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The calibration {path} cannot be read: {error.strerror or error}.") from error
    try:
        head = msgspec.json.decode(content)
        if not isinstance(head, dict) or head.get("format") != "assay calibration":
            raise ConfigError(f"{path} is no calibration; `assay calibrate DATA -m MODEL -o FILE` makes one.")
        if head.get("version") != VERSION:
            raise ConfigError(
                f"{path} is a calibration of version {head.get('version')!r}; this assay reads {VERSION}. Fit it anew."
            )
        calibration = msgspec.json.decode(content, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"The calibration {path} cannot be used: {error}.") from error
    _check_kind(calibration, path)
    return calibration


def _check_kind(calibration: Calibration, path: Path) -> None:
    """The parameters of one kind, and none of the other."""
    if calibration.kind == "platt" and calibration.temperature != 1:
        raise ConfigError(f"{path}: a calibration of kind platt has no temperature; each label has its slope.")
    corrected = [one.label for one in calibration.labels if (one.slope, one.intercept) != (1, 0)]
    if calibration.kind == "temperature" and corrected:
        raise ConfigError(
            f"{path}: a calibration of kind temperature has one for all labels, and no slope or intercept of a label's "
            f"own, as {_listed(corrected)} {'has' if len(corrected) == 1 else 'have'}."
        )


def check_fits(
    calibration: Calibration, path: Path, labels: Sequence[str], activation: Activation, weights: str
) -> None:
    """Raises ConfigError where it was fitted for other labels, another activation, or another model's weights."""
    name = calibration.model.name
    _check_labels([one.label for one in calibration.labels], labels, f"The calibration {path}, fitted on {name},")
    if activation == "none":
        raise ConfigError(
            f"The calibration {path} corrects probabilities, and this model's scores are raw (activation none)."
        )
    if activation != calibration.activation:
        raise ConfigError(
            f"The calibration {path} was fitted for {calibration.activation}, and this model's scores go through "
            f"{activation}. Serve with --activation {calibration.activation}, or fit one for {activation}."
        )
    if weights != calibration.model.weights:
        raise ConfigError(
            f"The calibration {path} was fitted on another model of these labels, {name} (weights "
            f"{calibration.model.weights}); this one's weights are {weights}. Fit one with `assay calibrate`."
        )


def _check_labels(own: list[str], labels: Sequence[str], which: str) -> None:
    if own == list(labels):
        return
    missing = [label for label in labels if label not in own]
    strange = [label for label in own if label not in labels]
    if len(own) != len(labels):
        why = f"has {len(own)} labels, and the model {len(labels)}"
    elif missing or strange:
        why = f"is for other labels: it has {_listed(strange)}, and the model {_listed(missing)} in their place"
    else:
        why = "has the model's labels in another order"
    raise ConfigError(f"{which} {why}. Fit one with `assay calibrate`.")


def _listed(names: Sequence[Any]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
