"""A labelled file and a model → the calibration that is fitted to it. Knows no formula and no terminal."""

from collections.abc import Sequence
from dataclasses import replace

from assay.calibration import KINDS, Calibration, FittedOn, ModelIdentity
from assay.config import EngineConfig
from assay.engine.calibrated import identity_of
from assay.errors import ConfigError
from assay.evaluation.evaluate import Watch, evaluate
from assay.evaluation.fit import fit
from assay.evaluation.scoring import Subject
from assay.evaluation.settings import DataConfig, EvaluationConfig
from assay.files.sources import name_of


def calibrate(paths: Sequence[str], model: EngineConfig, read: DataConfig, watch: Watch) -> tuple[Calibration, str]:
    """And how the labels were read, in words.

    Raises RequestError for data to which nothing can be fitted, ConfigError for a model without probabilities.
    """
    plain, config = replace(model, calibration=None), EvaluationConfig(resamples=0)
    evaluation = evaluate(paths, plain, read, config, watch, accept=_check_probabilities)
    subject = evaluation.first.subject
    fitted = fit(evaluation.first.logits, evaluation.truth, subject.labels)
    calibration = Calibration(
        format="assay calibration",
        version=1,
        model=ModelIdentity(subject.name, identity_of(model)),
        kind=KINDS[subject.activation],
        labels=fitted.labels,
        fitted_on=FittedOn(tuple(map(name_of, evaluation.data.sources)), evaluation.rows, fitted.before, fitted.after),
        temperature=fitted.temperature,
    )
    return calibration, evaluation.truth.recognised


def _check_probabilities(subject: Subject) -> None:
    if subject.activation not in KINDS:
        raise ConfigError(
            f"{subject.name} gives raw scores (activation none), and a calibration corrects probabilities. Where they "
            "are meant as logits, say so with --activation softmax or sigmoid."
        )
