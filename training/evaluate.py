"""Measure a model folder: thresholds chosen on dev, then both splits scored. Knows folders and splits, not training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification

from training.batches import encode
from training.fit import predict
from training.goemotions import Split
from training.scores import Floats, Scores, best_threshold, best_thresholds, score


@dataclass(frozen=True)
class Report:
    """One model at one threshold for all labels, and at one threshold for each; both chosen on dev."""

    parameters: int
    threshold: float
    dev: Scores
    test: Scores
    thresholds: list[float]
    dev_per_label: Scores
    test_per_label: Scores

    def as_json(self, labels: list[str]) -> dict[str, Any]:
        """Plain data by name of label, numbers rounded to four places."""
        plain = asdict(self)
        plain["thresholds"] = dict(zip(labels, self.thresholds, strict=True))
        for scores in ("dev", "test", "dev_per_label", "test_per_label"):
            plain[scores]["per_label"] = dict(zip(labels, plain[scores]["per_label"], strict=True))
        rounded = _rounded(plain)
        assert isinstance(rounded, dict)
        return rounded


def evaluate(folder: Path, dev: Split, test: Split) -> Report:
    """Load `folder` in float32 as transformers does, without truncating any text below 512 tokens."""
    model = BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def probs_of(split: Split) -> Floats:
        return predict(model, encode(tokenizer, split.texts, split.targets, 512))

    on_dev, dev_targets = probs_of(dev), dev.targets.numpy()
    on_test, test_targets = probs_of(test), test.targets.numpy()
    threshold, thresholds = best_threshold(dev_targets, on_dev), best_thresholds(dev_targets, on_dev)
    return Report(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        threshold=threshold,
        dev=score(dev_targets, on_dev, threshold),
        test=score(test_targets, on_test, threshold),
        thresholds=[float(t) for t in thresholds],
        dev_per_label=score(dev_targets, on_dev, thresholds),
        test_per_label=score(test_targets, on_test, thresholds),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
