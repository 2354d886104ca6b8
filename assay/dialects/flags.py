"""What guardrails' callers are warned of: labels over a threshold that are not safe ones. Knows no caller's shapes."""

from collections.abc import Sequence

from assay.dialects.dialect import Call, ModelFacts
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


def flagged_labels(
    prediction: Prediction,
    labels: Sequence[str],
    threshold: float = FLAG_THRESHOLD,
    safe_labels: Sequence[str | int] = (),
) -> list[bool]:
    """Which labels a guardrail's caller is warned of: each alone, where it is not a safe one and its probability is at
    least `threshold`, as in TrustyAI's detector.

    Safe are those of `labels.harmless`, and the caller's own `safe_labels` (names or indexes). What is no guard model,
    say of sentiments, is flagged by whatever it finds.
    """
    flags = []
    for index, (label, prob, safe) in enumerate(zip(labels, prediction.probs, harmless(labels), strict=True)):
        flags.append(prob >= threshold and not (safe or label in safe_labels or index in safe_labels))
    return flags
