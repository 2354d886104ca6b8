"""What guardrails' callers are warned of: labels over a threshold that are not safe ones. Knows no caller's shapes."""

from collections.abc import Sequence

from assay.errors import RequestError
from assay.sequence import Prediction

# What guard models call harmless text: in lower case, with spaces for - and _. A label that is not here counts.
SAFE_LABELS = frozenset(
    {"safe", "benign", "harmless", "unharmful", "clean", "normal", "neutral", "none", "ok", "sfw", "ham", "legit"}
    | {"legitimate", "nontoxic", "nothate", "no injection"}
    | {f"{no} {harm}" for no in ("not", "non") for harm in ("toxic", "hate", "harmful", "offensive", "nsfw", "spam")}
)
FLAG_THRESHOLD = 0.5


def flagged_labels(
    prediction: Prediction,
    labels: Sequence[str],
    threshold: float = FLAG_THRESHOLD,
    safe_labels: Sequence[str | int] = (),
) -> list[bool]:
    """Which labels a guardrail's caller is warned of: each alone, where it is not a safe one and its probability is at
    least `threshold`, as in TrustyAI's detector.

    Safe are the SAFE_LABELS, the caller's own `safe_labels` (names or indexes), and LABEL_0 where LABEL_0 and LABEL_1
    are all there is: two classes without names, of which the second is the finding. What is no guard model, say of
    sentiments, is flagged by whatever it finds. Raises RequestError for raw scores, to which no threshold applies.
    """
    if prediction.probs == prediction.logits:
        raise RequestError(
            "The model's scores are not probabilities, so no threshold can flag them. POST /v1/classify."
        )
    unnamed = tuple(labels) == ("LABEL_0", "LABEL_1")
    flags = []
    for index, (label, prob) in enumerate(zip(labels, prediction.probs, strict=True)):
        name = label.strip().lower().replace("-", " ").replace("_", " ")
        safe = name in SAFE_LABELS or label in safe_labels or index in safe_labels or (unnamed and index == 0)
        flags.append(prob >= threshold and not safe)
    return flags
