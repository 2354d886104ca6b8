"""Label names, activation, and which labels mean harmless. Knows of tensors only how many labels the head has."""

from collections.abc import Mapping, Sequence
from typing import Any

from assay.config import Activation
from assay.errors import CheckpointError

# The activations that a checkpoint may name by Python path; others are refused, never imported.
_NAMED_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
}

# What guard models call harmless text: in lower case, with spaces for - and _. A label that is not here counts.
_SAFE_NAMES = frozenset(
    {"safe", "benign", "harmless", "unharmful", "clean", "normal", "neutral", "none", "ok", "sfw", "ham", "legit"}
    | {"legitimate", "nontoxic", "nothate", "no injection"}
    | {f"{no} {harm}" for no in ("not", "non") for harm in ("toxic", "hate", "harmful", "offensive", "nsfw", "spam")}
)


def harmless(labels: Sequence[str]) -> list[bool]:
    """Which labels say that nothing was found: those with a usual name for it, and LABEL_0 where LABEL_0 and LABEL_1
    are all there is (two classes without names, of which the second is the finding).
    """
    unnamed = tuple(labels) == ("LABEL_0", "LABEL_1")
    names = [label.strip().lower().replace("-", " ").replace("_", " ") for label in labels]
    return [name in _SAFE_NAMES or (unnamed and index == 0) for index, name in enumerate(names)]


def label_names(config: Mapping[str, Any], num_labels: int) -> tuple[str, ...]:
    """Names of the labels in the order of the head's rows.

    `id2label` (JSON object with string keys) wins, then `label2id` turned round. Without either: `LABEL_i` where
    transformers says so too (the config gives `num_labels`, or there are two labels, its default), else `Class_i`.
    Raises CheckpointError when the names do not fit the head.
    """
    if config.get("id2label") is not None:
        pairs = _entries(config, "id2label")
    elif config.get("label2id"):
        pairs = [(index, name) for name, index in _entries(config, "label2id")]
    else:
        known_count = "num_labels" in config or num_labels == 2
        return tuple(f"{'LABEL' if known_count else 'Class'}_{i}" for i in range(num_labels))
    try:
        names = {int(index): str(name) for index, name in pairs}
    except (TypeError, ValueError):
        raise CheckpointError(
            "config.json: the keys of id2label (or the values of label2id) must be integers."
        ) from None
    if sorted(names) != list(range(num_labels)):
        raise CheckpointError(
            f"config.json names {len(names)} labels (id2label) but the checkpoint's head has {num_labels}; "
            f"id2label must have the keys 0 to {num_labels - 1}."
        )
    return tuple(names[i] for i in range(num_labels))


def _entries(config: Mapping[str, Any], field: str) -> list[tuple[Any, Any]]:
    value = config[field]
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json: {field} is of type {type(value).__name__}; it must be an object.")
    return list(value.items())


def activation_for(config: Mapping[str, Any], num_labels: int) -> Activation:
    """The activation that a checkpoint's config asks for.

    Order as in vLLM: `problem_type`; `sentence_transformers.activation_fn`; `sbert_ce_default_activation_function`;
    sigmoid for one logit, softmax for more. An explicit Sigmoid over several labels is element-wise.
    """
    match config.get("problem_type"):
        case "regression":
            return "none"
        case "multi_label_classification":
            return "sigmoid"
        case "single_label_classification":
            return "softmax" if num_labels > 1 else "sigmoid"
        case None | "":
            pass
        case other:
            raise CheckpointError(
                f"config.json says problem_type {other!r}; allowed are regression, single_label_classification "
                "and multi_label_classification."
            )
    sentence_transformers = config.get("sentence_transformers") or {}
    named = sentence_transformers.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if named is None:
        return "softmax" if num_labels > 1 else "sigmoid"
    if named not in _NAMED_ACTIVATIONS:
        raise CheckpointError(
            f"config.json names the activation {named!r}; allowed are {', '.join(_NAMED_ACTIVATIONS)}. "
            "Set one with --activation none|softmax|sigmoid."
        )
    return _NAMED_ACTIVATIONS[named]
