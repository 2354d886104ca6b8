"""Predictions to the columns that a job adds: label, score, and more where asked for. Knows no format and no model."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import pyarrow as pa

from assay.errors import ConfigError
from assay.sequence import Prediction

Values = list[str | float | None]


@dataclass(frozen=True, slots=True)
class Added:
    """Which columns are added. prefix: before each of their names.

    label, score: the label of the largest logit, and its probability; of a model with one label, what it scored.
    top_k: then label_2, score_2, … of the next ones. probs, logits: one column a label, prob_NAME and logit_NAME.
    error: why a row was not scored.
    """

    labels: tuple[str, ...]
    probs: bool = False
    logits: bool = False
    top_k: int = 1
    error: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= len(self.labels):
            raise ConfigError(f"--top-k is {self.top_k}; this model has {len(self.labels)} labels.")
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        if twice:
            raise ConfigError(f"This model has more than one label {min(twice)!r}: no column could tell them apart.")

    @property
    def names(self) -> tuple[str, ...]:
        names = _ranked_names(self.top_k)
        names += [f"prob_{label}" for label in self.labels] if self.probs else []
        names += [f"logit_{label}" for label in self.labels] if self.logits else []
        names += ["error"] if self.error else []
        return tuple(self.prefix + name for name in names)

    def is_text(self, name: str) -> bool:
        """Whether a column holds texts; the others hold float32."""
        return name.removeprefix(self.prefix).startswith(("label", "error"))

    def check_free(self, columns: Seq[str]) -> None:
        """Raises ConfigError where the input has a column of that name."""
        taken = [name for name in self.names if name in columns]
        if taken:
            raise ConfigError(
                f"The input already has {', '.join(map(repr, taken))}; give the columns that are added a prefix, such "
                "as --prefix predicted_."
            )

    def columns(self, predictions: Seq[Prediction | None], errors: Seq[str | None]) -> dict[str, Values]:
        """A column a name. predictions: None for a row that has none, whose values are then None."""
        columns: list[Values] = []
        place_of = {label: place for place, label in enumerate(self.labels)}
        best = [None if prediction is None else place_of[prediction.label] for prediction in predictions]
        for ranked in [best] if self.top_k == 1 else zip(*map(self._ranked, predictions, best), strict=True):
            columns.append([None if place is None else self.labels[place] for place in ranked])
            columns.append(
                shortest(
                    None if prediction is None or place is None else prediction.probs[place]
                    for prediction, place in zip(predictions, ranked, strict=True)
                )
            )
        for wanted, kind in ((self.probs, "probs"), (self.logits, "logits")):
            if wanted:
                nothing = [None] * len(self.labels)
                rows = [nothing if prediction is None else getattr(prediction, kind) for prediction in predictions]
                columns += [shortest(values) for values in zip(*rows, strict=True)]
        if self.error:
            columns.append(list(errors))
        return dict(zip(self.names, columns, strict=True))

    def _ranked(self, prediction: Prediction | None, best: int | None) -> Seq[int | None]:
        """Places of the top labels: the predicted one first, then by probability."""
        if prediction is None:
            return [None] * self.top_k
        probs = prediction.probs
        return [best, *sorted((i for i in range(len(probs)) if i != best), key=lambda i: -probs[i])][: self.top_k]


def shortest(values: Iterable[float | None]) -> Values:
    """float32 numbers as the shortest decimals that name them: 0.9, and not 0.8999999761581421."""
    texts: list[str | None] = pa.array(values, pa.float32()).cast(pa.string()).to_pylist()
    return [None if text is None else float(text) for text in texts]


def _ranked_names(top_k: int) -> list[str]:
    names = ["label", "score"]
    for rank in range(2, top_k + 1):
        names += [f"label_{rank}", f"score_{rank}"]
    return names
