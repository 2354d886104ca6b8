"""What guardrails' callers are warned of: labels over a threshold that are not safe ones. Knows no caller's shapes."""

from collections.abc import Sequence

from assay.dialects.dialect import Answer, Call, ModelFacts
from assay.errors import RequestError
from assay.labels import harmless
from assay.sequence import Prediction

FLAG_THRESHOLD = 0.5


def check_flags(call: Call, model: ModelFacts) -> None:
    """Raises RequestError for raw scores, to which no threshold applies."""
    if call.prompts and model.activation == "none":
        raise RequestError(
            "The model's scores are not probabilities, so no threshold can flag them. POST /v1/classify."
        )


def thresholds_of(answer: Answer, asked: float | None = None) -> tuple[float, ...]:
    """One for each label: the caller's own for all of them, else the calibration's, else one half."""
    if asked is None and answer.thresholds is not None:
        return answer.thresholds
    return (FLAG_THRESHOLD if asked is None else asked,) * len(answer.labels)


def flagged_labels(
    prediction: Prediction,
    labels: Sequence[str],
    thresholds: Sequence[float],
    safe_labels: Sequence[str | int] = (),
) -> list[bool]:
    """Which labels a guardrail's caller is warned of: each alone, where it is not a safe one and its probability is at
    least its threshold, as in TrustyAI's detector.

    Safe are those of `labels.harmless`, and the caller's own `safe_labels` (names or indexes). What is no guard model,
    say of sentiments, is flagged by whatever it finds.
    """
    flags = []
    rows = zip(labels, prediction.probs, thresholds, harmless(labels), strict=True)
    for index, (label, prob, threshold, safe) in enumerate(rows):
        flags.append(prob >= threshold and not (safe or label in safe_labels or index in safe_labels))
    return flags
