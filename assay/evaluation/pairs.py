"""What is measured of pairs of answers of which one was preferred. Knows no model."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from assay.evaluation.metrics import Bools
from assay.evaluation.ranking import Floats


@dataclass
class Preference:
    """Scores of the answers that were chosen and of those that were rejected, [rows] each."""

    chosen: Floats
    rejected: Floats
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = len(self.chosen)

    @property
    def margins(self) -> Floats:
        return self.chosen - self.rejected

    @cached_property
    def losses(self) -> Floats:
        """−log σ(margin): what reward models are trained on (Bradley and Terry 1952)."""
        return np.logaddexp(0, -self.margins)

    def right(self) -> Bools:
        return np.asarray(self.margins > 0)

    def measure(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """A tie counts half: a model that says the same of everything is a coin, not always wrong."""
        total = weights.sum(axis=1)
        wins = (self.margins > 0) + 0.5 * (self.margins == 0)
        values = {
            "accuracy": weights @ wins / total,
            "margin": weights @ self.margins / total,
            "log_loss": weights @ self.losses / total,
        }
        return values, {}
