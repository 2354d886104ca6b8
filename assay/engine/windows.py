"""Many windows of one text to one prediction: max, mean or noisy-or. Plain numbers; knows no queue and no tensor.

Labels are exclusive (a softmax makes one distribution of them) or independent (a sigmoid each, or raw scores).

- max: exclusive labels take the whole distribution of one window, the least harmless one where a label means harmless
  (labels.harmless) and the surest one where none does; independent labels take each its largest score.
- mean: the mean over the windows, of probabilities and of logits alike.
- noisy_or: the probability that at least one window has the label, were windows independent: 1 - Π(1 - p). For
  independent labels, and for two exclusive ones of which one means harmless.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby

from assay.config import Activation, Windowing
from assay.errors import RequestError
from assay.labels import harmless
from assay.sequence import Prediction, Sequence, Window


@dataclass(frozen=True, slots=True)
class Combination:
    """How windows become one prediction. Raises RequestError for noisy_or where there is no probability to combine.

    activation: what `probs` went through; own_activation: what the model's own are, which says whether labels exclude
    each other where `probs` are raw.
    """

    how: Windowing
    labels: tuple[str, ...]
    activation: Activation
    own_activation: Activation

    def __post_init__(self) -> None:
        if self.how != "noisy_or":
            return
        if self.activation == "none":
            raise RequestError("window noisy_or combines probabilities, and these scores are raw; use max or mean.")
        if self.activation == "softmax" and not self._is_finding:
            raise RequestError(
                "window noisy_or is for labels that do not exclude each other (sigmoid), or for two of which one means "
                f"harmless; this model's {len(self.labels)} labels exclude each other. Use max or mean."
            )

    @property
    def _is_finding(self) -> bool:
        """Two labels: something was found, or nothing was."""
        return len(self.labels) == 2 and sum(harmless(self.labels)) == 1

    @property
    def _exclusive(self) -> bool:
        return "softmax" in (self.activation, self.own_activation if self.activation == "none" else None)

    def of(self, windows: Seq[Sequence], predictions: Seq[Prediction]) -> Prediction:
        """One prediction of the windows of one prompt, in order."""
        if len(predictions) == 1:
            chosen, one = 0, predictions[0]
            label, probs, logits, calibrated = self.labels.index(one.label), one.probs, one.logits, one.calibrated
        else:
            probs, logits, calibrated = self._scores(predictions)
            ranking = (calibrated or logits) if self.how == "max" or self.activation == "none" else probs
            label = max(range(len(ranking)), key=ranking.__getitem__)
            chosen = self._winner(predictions, label)
        span = windows[chosen].span
        return Prediction(
            label=self.labels[label],
            probs=probs,
            logits=logits,
            num_tokens=sum(prediction.num_tokens for prediction in predictions),
            timings=max((prediction.timings for prediction in predictions), key=lambda timings: timings.queue),
            window=None if span is None else Window(chosen, len(predictions), span),
            calibrated=calibrated,
        )

    def _scores(self, predictions: Seq[Prediction]) -> tuple[list[float], list[float], list[float] | None]:
        """Probabilities, logits and calibrated logits of all windows together."""
        if self.how == "max" and self._exclusive:
            one = predictions[self._decisive(predictions)]
            return one.probs, one.logits, one.calibrated
        logits = _by_label([prediction.logits for prediction in predictions])
        calibrated = [prediction.calibrated for prediction in predictions if prediction.calibrated is not None]
        corrected = _by_label(calibrated) if calibrated else None
        if self.how == "noisy_or":
            raw, found = self._noisy_or(logits), self._noisy_or(corrected or logits)
            return found[0], raw[1], found[1] if corrected else None
        together = _mean if self.how == "mean" else max
        probs = [together(row) for row in _by_label([prediction.probs for prediction in predictions])]
        return probs, [together(row) for row in logits], [together(row) for row in corrected] if corrected else None

    def _noisy_or(self, logits: list[tuple[float, ...]]) -> tuple[list[float], list[float]]:
        """Probabilities and their logits, from logits, since 1 - p of a sure window has no digits left."""
        if self.activation == "sigmoid":
            nones = [-math.fsum(map(_softplus, row)) for row in logits]  # log of the probability that no window has it
            return [-math.expm1(none) for none in nones], [_logit_of_rest(none) for none in nones]
        safe = harmless(self.labels).index(True)
        none = -math.fsum(_softplus(found - fine) for found, fine in zip(logits[1 - safe], logits[safe], strict=True))
        probs, combined = [-math.expm1(none)] * 2, [_logit_of_rest(none)] * 2
        probs[safe], combined[safe] = math.exp(none), 0.0
        return probs, combined

    def _winner(self, predictions: Seq[Prediction], label: int) -> int:
        """The window that has most of the label."""
        if self._exclusive:
            if self.how == "max":
                return self._decisive(predictions)
            return _largest([_softmax(prediction.calibrated or prediction.logits)[label] for prediction in predictions])
        return _largest([prediction.logits[label] for prediction in predictions])

    def _decisive(self, predictions: Seq[Prediction]) -> int:
        """Of exclusive labels: the least harmless window, or the surest where no label, or every one, is harmless."""
        rows = [_softmax(prediction.calibrated or prediction.logits) for prediction in predictions]
        safe = harmless(self.labels)
        if any(safe) and not all(safe):
            return _largest([math.fsum(p for p, fine in zip(row, safe, strict=True) if not fine) for row in rows])
        return _largest([max(row) for row in rows])


def combined(sequences: Seq[Sequence], predictions: Seq[Prediction], combination: Combination) -> list[Prediction]:
    """One prediction a prompt, of sequences in order and their predictions."""
    rows = zip(sequences, predictions, strict=True)
    answers = []
    for _, group in groupby(rows, key=lambda row: row[0].prompt):
        windows, scored = zip(*group, strict=True)
        answers.append(combination.of(windows, scored))
    return answers


def _by_label(rows: Seq[list[float]]) -> list[tuple[float, ...]]:
    """A row a window → a row a label."""
    return list(zip(*rows, strict=True))


def _mean(values: Seq[float]) -> float:
    return math.fsum(values) / len(values)


def _largest(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _softmax(logits: Seq[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _softplus(x: float) -> float:
    """log(1 + exp(x)), which is -log(1 - sigmoid(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _logit_of_rest(log_none: float) -> float:
    """The logit of 1 - exp(log_none)."""
    found = -math.expm1(log_none)
    return math.log(max(found, 5e-324)) - log_none
