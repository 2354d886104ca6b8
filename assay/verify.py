"""Does a checkpoint score as transformers says? Both score the same token ids; tokenizers are compared apart.

Knows nothing of printing.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.config import Device, DType
from assay.engine.encoder import PromptEncoder
from assay.engine.runner import ModelRunner, form
from assay.engine.tokenizer import load_tokenizer
from assay.errors import CheckpointError, ConfigError
from assay.model.reference import classifiers, load_reference, load_reference_tokenizer
from assay.model.registry import LoadedModel, load_model
from assay.model.weights import read_json, resolve
from assay.sequence import Options, Prediction, Sequence, TextPrompt

SAMPLES = (
    "Loved the new café—coffee was great.",
    "This update broke everything. Frustrating.",
    "ok",
    "?",
    "Not bad, but I would not go so far as to call it good either.",
    "The invoice of 2024-02-29 says $1,234.56; I paid 1 234,56 € (VAT 19 %).",
    "I'm over the moon 🎉🎉 — best day ever!!! 😭❤️",
    "Das Gerät läuft nicht mehr, très déçu, 本当に残念です, очень жаль.",
    "def mean(xs):\n    return sum(xs) / len(xs)  # ZeroDivisionError on []",
    "SELECT * FROM users WHERE name = 'Robert''); DROP TABLE students;--'",
    "  spaces   and\ttabs\nand new lines  ",
    "Call me at +1 (555) 010-9999 or write to jane.doe@example.com, http://example.com/a?b=c#d",
    "It was the kind of evening that people remember: the rain had stopped, the street smelled of warm stone, and "
    "somebody played a piano badly behind an open window. " * 6,
)
"""Short, long, other scripts, emoji, numbers, code."""

# The largest |Δlogit| that passes, by assay's precision; in half precision relative to the largest logit, or to 1.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1.5e-1}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One text, scored twice. `same_token_ids` is None where transformers has no tokenizer for the checkpoint."""

    text: str
    num_tokens: int
    label: str
    reference_label: str
    difference: float
    same_token_ids: bool | None

    @property
    def agrees(self) -> bool:
        return self.label == self.reference_label


@dataclass(frozen=True, slots=True)
class Verification:
    """What came out. tolerance: the largest difference that passes. tokenizer_problem: why none was compared."""

    architecture: str
    dtype: str
    tolerance: float
    comparisons: tuple[Comparison, ...]
    tokenizer_problem: str | None

    @property
    def max_difference(self) -> float:
        """The largest |Δlogit|; NaN where any is."""
        differences = [comparison.difference for comparison in self.comparisons]
        return math.nan if any(map(math.isnan, differences)) else max(differences)

    @property
    def agreement(self) -> float:
        """The share of texts with the same label, 0 to 1."""
        return sum(comparison.agrees for comparison in self.comparisons) / len(self.comparisons)

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.tolerance and self.agreement == 1


def verify(
    model: str,
    texts: Seq[str] = SAMPLES,
    *,
    revision: str | None = None,
    dtype: DType = "float32",
    device: Device = "auto",
) -> Verification:
    """Score texts with assay, packed together, and with transformers, one at a time, unpadded and in float32.

    Texts that are too long for the model are cut. Raises SetupError where the model cannot be loaded, transformers is
    not installed, or it has no such architecture (reward models).
    """
    if not texts:
        raise ConfigError("There are no texts to compare; give at least one.")
    folder = resolve(model, revision)
    known = classifiers()
    ours = load_model(folder, dtype, device)
    if ours.architecture not in known.values():
        raise CheckpointError(f"transformers has no {ours.architecture}, so there is nothing to compare {model} with.")
    reference = load_reference(folder, read_json(folder / "config.json"), torch.float32, torch.device("cpu"))
    sequences, limit = _tokenize(folder, texts, ours)
    logits, expected = _scores(ours, sequences), _reference_scores(reference, ours, sequences)
    same_ids, tokenizer_problem = _same_token_ids(folder, texts, sequences, limit)
    dtype_name = str(ours.dtype).removeprefix("torch.")
    scale = 1.0 if dtype_name == "float32" else max(1.0, float(expected.abs().max()))
    comparisons = tuple(
        Comparison(
            text=text,
            num_tokens=sequence.num_tokens,
            label=ours.labels[int(row.argmax())],
            reference_label=ours.labels[int(expected_row.argmax())],
            difference=float((row - expected_row).abs().max()),
            same_token_ids=same,
        )
        for text, sequence, row, expected_row, same in zip(texts, sequences, logits, expected, same_ids, strict=True)
    )
    return Verification(ours.architecture, dtype_name, _TOLERANCE[dtype_name] * scale, comparisons, tokenizer_problem)


def _tokenize(folder: Path, texts: Seq[str], model: LoadedModel) -> tuple[list[Sequence], int]:
    """A sequence for each text, cut to the model's length, and that length."""
    text_tokenizer = load_tokenizer(folder)
    limit = min(text_tokenizer.model_max_length or model.max_positions, model.max_positions)
    encoder = PromptEncoder(text_tokenizer, model.vocab_size, limit, type_vocab_size=model.type_vocab_size)
    return encoder.encode([TextPrompt(text) for text in texts], Options(truncate_prompt_tokens=-1)), limit


def _scores(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    """Logits [seqs, labels] of one packed batch, as the engine runs it; NaN where it answers with an error."""
    batch = form(sequences)
    answers = dict(zip(map(id, batch.sequences), ModelRunner(model).run(batch), strict=True))
    rows = [answers[id(sequence)] for sequence in sequences]
    nothing = [math.nan] * len(model.labels)
    return torch.tensor([row.logits if isinstance(row, Prediction) else nothing for row in rows])


@torch.inference_mode()
def _reference_scores(reference: Any, model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    """Logits [seqs, labels] of transformers, a call for each sequence."""
    rows = []
    for sequence in sequences:
        inputs = {"input_ids": torch.tensor([sequence.token_ids])}
        if model.type_vocab_size > 1:
            inputs["token_type_ids"] = torch.tensor([sequence.token_type_ids or [0] * sequence.num_tokens])
        rows.append(reference(**inputs).logits[0].float())
    return torch.stack(rows)


def _same_token_ids(
    folder: Path, texts: Seq[str], sequences: list[Sequence], limit: int
) -> tuple[list[bool | None], str | None]:
    """For each text, whether transformers' tokenizer gives our ids; or None for all, and why."""
    try:
        tokenizer = load_reference_tokenizer(folder)
    except CheckpointError as error:
        return [None] * len(sequences), error.message
    theirs = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
    return [sequence.token_ids == ids for sequence, ids in zip(sequences, theirs, strict=True)], None
