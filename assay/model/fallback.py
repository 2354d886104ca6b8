"""Every architecture that is not native: transformers' own classification model, run on packed batches without padding.

Knows how to run such a model and when to refuse it; `reference` loads it.
"""

import copy
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import CheckpointError
from assay.labels import activation_for, label_names
from assay.model.batch import PackedBatch
from assay.model.reference import LOAD_ERRORS, architecture_of, first_line, load_reference
from assay.model.registry import LoadedModel

_log = logging.getLogger("assay.model")

_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
# Where positions are relative or absent, and the config names no length: a bound for the memory of attention.
_UNBOUNDED_LENGTH = 8192
_PROBED_LENGTH = 512  # the longest sequence that loading spends time on
# Logits of one sequence alone and in company may differ by this much, relative to the largest (or to 1).
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# These only ask whether two tokens are of one type; their tokenizers give [CLS] type 2.
_COMPARED_TYPES = {"funnel": 3, "xlnet": 3}
# What a model raises at an input that it cannot read.
_INPUT_ERRORS = (IndexError, ValueError, RuntimeError)


def load_fallback(folder: Path, raw: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """A checkpoint that is not native, through transformers. Trunk and head are both in `dtype`.

    Raises CheckpointError for what transformers lacks or cannot load in full, and for models that score the same text
    differently each time.
    """
    architecture = architecture_of(raw)
    model = load_reference(folder, raw, dtype, device)
    vocab_size = _vocab_size(model, architecture)
    max_positions = _max_positions(model)
    module = TransformersClassifier(model)
    _pool_the_last_token(module, vocab_size)
    num_labels = _check_rows(module, architecture, vocab_size, max_positions, _TOLERANCE[dtype])
    return LoadedModel(
        module=module,
        architecture=architecture,
        model_type=str(raw["model_type"]),
        labels=label_names(raw, num_labels),
        activation=activation_for(raw, num_labels),
        max_positions=max_positions,
        vocab_size=vocab_size,
        type_vocab_size=module.type_vocab_size,
        dtype=dtype,
        device=device,
    )


class TransformersClassifier(nn.Module):
    """PackedBatch → logits [seqs, labels], float32. One call for each run of equal-length sequences: no padding.

    together: whether sequences of equal length share a call; False where they would change each other's scores.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.together = True
        config = model.config
        accepted = inspect.signature(model.forward).parameters
        self._takes_mask = "attention_mask" in accepted
        types = _COMPARED_TYPES.get(config.model_type) or getattr(config, "type_vocab_size", None) or 0
        # GPT-2 and others accept token types too, but look them up among the words.
        self.type_vocab_size = int(types) if types > 1 and "token_type_ids" in accepted else 0
        # Encoder-decoders pool at the end-of-text token, and refuse calls in which sequences have unequal counts of it.
        self.eos_token_id = config.eos_token_id if getattr(config, "is_encoder_decoder", False) else None
        # BigBird: a short text switches the model to full attention for good, so later long ones would score otherwise.
        self._switched = [m for m in model.modules() if hasattr(m, "set_attention_type")]

    def forward(self, batch: PackedBatch) -> Tensor:
        out = torch.empty(batch.num_seqs, self.model.config.num_labels, device=batch.input_ids.device)
        first = 0
        for run in batch.runs:
            span = slice(run.start, run.start + run.count * run.length)
            ids = batch.input_ids[span].view(run.count, run.length)
            types = batch.token_type_ids[span].view(run.count, run.length)
            for rows in self._groups(ids):
                out[first + rows] = self._scores(ids[rows], types[rows])
            first += run.count
        return out

    def _groups(self, ids: Tensor) -> list[Tensor]:
        """Rows of ids [count, length] that may share a call, as lists of their indices."""
        every = torch.arange(len(ids), device=ids.device)
        if not self.together:
            return [every[i : i + 1] for i in range(len(ids))]
        if self.eos_token_id is None:
            return [every]
        counts = (ids == self.eos_token_id).sum(dim=1)
        return [every[counts == count] for count in counts.unique()]

    def _scores(self, ids: Tensor, types: Tensor) -> Tensor:
        """`call`, but an input that the model cannot read gets NaN: an error for its own caller and no one else."""
        try:
            return self.call(ids, types)
        except _INPUT_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise  # the device's trouble, not the input's
            if len(ids) > 1:
                return torch.cat([self._scores(ids[i : i + 1], types[i : i + 1]) for i in range(len(ids))])
            _log.info("The model cannot score a sequence of %d tokens: %s", ids.shape[1], first_line(error))
            return torch.full((1, self.model.config.num_labels), float("nan"), device=ids.device)

    def call(self, ids: Tensor, types: Tensor) -> Tensor:
        """ids, types [count, length] → logits [count, labels], in one call of transformers' model."""
        for module in self._switched:
            module.set_attention_type(self.model.config.attention_type)
        inputs = {"input_ids": ids}
        if self._takes_mask:
            inputs["attention_mask"] = torch.ones_like(ids)
        if self.type_vocab_size:
            inputs["token_type_ids"] = types
        logits: Tensor = self.model(**inputs).logits.float()
        if logits.shape[0] != len(ids) or logits.dim() != 2:
            raise CheckpointError(f"The model answers {len(ids)} sequences with logits of shape {list(logits.shape)}.")
        return logits


def _samples(module: TransformersClassifier, vocab_size: int, length: int, count: int = 3) -> Tensor:
    """Random ids [count, length], one count of end-of-text (at the end) where the model pools there, no padding."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(vocab_size, (count, length), generator=generator)
    config = module.model.config.get_text_config()
    special = [getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)]
    special = [token_id for item in special for token_id in (item if isinstance(item, list) else [item])]
    allowed = next(i for i in range(vocab_size) if i not in special)
    for token_id in special:
        if token_id is not None:
            ids[ids == token_id] = allowed
    if module.eos_token_id is not None:
        ids[:, -1] = module.eos_token_id
    return ids.to(module.model.device)


@torch.inference_mode()
def _pool_the_last_token(module: TransformersClassifier, vocab_size: int) -> None:
    """Let decoders pool the true last token, as the native ones do, and take several sequences in one call.

    transformers pools the rightmost token that differs from the pad id, and takes one sequence a call where there is
    none. With -1, which no token is, the rightmost is the last. Only the outermost module gets it: trunks that pad on
    their own (Longformer, BigBird) keep theirs. Kept only where it leaves unpadded sequences' scores untouched.
    """
    model, original = module.model, module.model.config
    if not hasattr(original.get_text_config(), "pad_token_id"):
        return
    ids = _samples(module, vocab_size, length=9)
    alone, types = ids[:1], torch.zeros_like(ids)[:1]
    try:
        before = module.call(alone, types)
        model.config = copy.deepcopy(original)
        model.config.get_text_config().pad_token_id = -1
        if not torch.equal(module.call(alone, types), before):
            model.config = original
    except (*LOAD_ERRORS, IndexError):  # whatever is really wrong, the check of rows says next
        model.config = original


@torch.inference_mode()
def _check_rows(
    module: TransformersClassifier, architecture: str, vocab_size: int, max_positions: int, tolerance: float
) -> int:
    """Score random sequences alone, again, and together; decide `module.together`. Returns the number of labels.

    Raises CheckpointError where the model fails on plain text, answers NaN, or answers differently each time.
    """
    num_labels = 0
    for length in sorted({min(length, max_positions) for length in (5, 9, 34)}):
        ids = _samples(module, vocab_size, length)
        alone, again = (_alone(module, ids, architecture) for _ in range(2))
        allowed = tolerance * max(1.0, float(alone.abs().max()))
        if (change := float((alone - again).abs().max())) > allowed:
            raise CheckpointError(
                f"{architecture} is not deterministic: the same text scored twice differs by {change:.2g} in its "
                "logits, so its scores cannot be trusted."
            )
        num_labels = alone.shape[1]
        if module.together and not _same_together(module, ids, alone, allowed):
            _log.warning("%s: sequences in one call change each other's scores; each runs alone.", architecture)
            module.together = False
    if max_positions <= _PROBED_LENGTH:
        _alone(module, _samples(module, vocab_size, max_positions, count=1), architecture)
    return num_labels


def _alone(module: TransformersClassifier, ids: Tensor, architecture: str) -> Tensor:
    """ids [count, length] → logits [count, labels], a call for each row. Raises CheckpointError where one fails."""
    types = torch.zeros_like(ids)
    try:
        logits = torch.cat([module.call(ids[i : i + 1], types[i : i + 1]) for i in range(len(ids))])
    except (*LOAD_ERRORS, IndexError) as error:
        raise CheckpointError(
            f"transformers' {architecture} cannot score {ids.shape[1]} plain tokens: {first_line(error)}"
        ) from error
    if not torch.isfinite(logits).all():
        raise CheckpointError(f"{architecture} answers NaN or infinity: its weights are broken, or it overflows.")
    return logits


def _same_together(module: TransformersClassifier, ids: Tensor, alone: Tensor, allowed: float) -> bool:
    try:
        return float((module.call(ids, torch.zeros_like(ids)) - alone).abs().max()) <= allowed
    except _INPUT_ERRORS:  # some take one sequence a call and say so
        return False


def _vocab_size(model: Any, architecture: str) -> int:
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError) as error:
        raise CheckpointError(f"{architecture} has no embedding of token ids, so it cannot score text.") from error


def _max_positions(model: Any) -> int:
    """The longest sequence: the config's word for it, less the rows that RoBERTa's kind of positions leaves unused."""
    config = model.config.get_text_config()
    named = [getattr(config, name, None) for name in _LENGTHS]
    limits = [length for length in named if isinstance(length, int) and length > 0][:1]
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf == "position_embeddings" and isinstance(getattr(module, "padding_idx", None), int):
            limits.append(module.weight.shape[0] - module.padding_idx - 1)
    return min(limits, default=_UNBOUNDED_LENGTH)
