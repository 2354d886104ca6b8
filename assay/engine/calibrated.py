"""A model and the calibration that was fitted on it, brought together. Knows no engine."""

from dataclasses import replace
from pathlib import Path

from assay.calibration import check_fits, read_calibration
from assay.config import EngineConfig
from assay.engine.tokenizer import answer_token_ids, load_tokenizer
from assay.model.identity import weights_identity
from assay.model.registry import LoadedModel
from assay.model.weights import logit_score_ids, resolve


def calibrated(model: LoadedModel, config: EngineConfig) -> LoadedModel:
    """The model with the calibration that the operator names, or as it is. Raises ConfigError where they do not fit."""
    if config.calibration is None:
        return model
    path = Path(config.calibration)
    calibration = read_calibration(path)
    check_fits(calibration, path, model.labels, model.activation, identity_of(config))
    return replace(model, calibration=calibration)


def identity_of(config: EngineConfig) -> str:
    """Which weights a config means, wherever they lie and however they are run. Raises CheckpointError."""
    folder = resolve(config.model, config.revision, config.allow_pickle)
    adapter = resolve(config.adapter) if config.adapter else None
    answer_ids = logit_score_ids(folder)
    if config.classifier_from_token is not None:
        answer_ids = answer_token_ids(config.classifier_from_token, load_tokenizer(folder).tokenizer)
    return weights_identity(folder, adapter, config.allow_pickle, answer_ids)
