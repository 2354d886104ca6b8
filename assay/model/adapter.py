"""PEFT adapters for sequence classification, merged into their base as its tensors are read. Knows LoRA and DoRA.

Other PEFT types (prefixes, IA³, …) cannot be merged and are refused. Facts: peft 0.21's checkpoint layout.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import CheckpointError
from assay.model.blueprint import Shapes
from assay.model.weights import Tensors, read_json, tensors_in

_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_(?:(embedding)_)?(A|B|magnitude_vector)(?:\.weight)?")
# Settings of a LoRA that make it something else than W + scale * B A.
_UNMERGEABLE = (
    "fan_in_fan_out",
    "layer_replication",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)


@dataclass(slots=True)
class _Update:
    """What is learnt for one matrix: W + scale * B A, and with a magnitude (DoRA) its rows scaled to that length."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    embedding: bool = False


class AdaptedCheckpoint:
    """A base checkpoint with an adapter merged in: the same shapes and the same iteration as a Checkpoint."""

    def __init__(self, base: Tensors, adapter: Path) -> None:
        self.folder = adapter
        self._base = base
        self._config = _read_config(adapter)
        self._updates: dict[str, _Update] = {}
        self._replaced: dict[str, Tensor] = {}
        for name, tensor in _tensors(adapter / "adapter_model.safetensors"):
            self._sort_in(name.removeprefix(_PREFIX).replace(".base_layer.", "."), tensor)
        self._check()
        self.shapes: Shapes = {**base.shapes, **{name: tuple(t.shape) for name, t in self._replaced.items()}}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one by one: the adapter's own, then the base's, merged where the adapter changes them."""
        yield from self._replaced.items()
        for name, tensor in self._base:
            if name in self._replaced:
                continue
            update = self._updates.get(name.removesuffix(".weight"))
            yield name, tensor if update is None else self._merged(name.removesuffix(".weight"), tensor, update)

    def _sort_in(self, name: str, tensor: Tensor) -> None:
        found = _LORA.fullmatch(name)
        if found is None:
            if "lora_" in name:
                raise CheckpointError(f"{self.folder}: the adapter's tensor {name} is of a kind that cannot be merged.")
            # modules_to_save: the whole tensor, e.g. the head, replaces the base's.
            self._replaced[name.replace(".modules_to_save.", ".").replace(".default.", ".")] = tensor
            return
        target, embedding, part = found.groups()
        update = self._updates.setdefault(target, _Update())
        update.embedding = update.embedding or embedding is not None
        update.parts[part] = tensor

    def _check(self) -> None:
        for target, update in self._updates.items():
            if not {"A", "B"} <= update.parts.keys():
                raise CheckpointError(f"{self.folder}: the adapter has only one half of its update of {target}.")
            if f"{target}.weight" not in self._base.shapes:
                raise CheckpointError(f"{self.folder}: the adapter changes {target}, which the base does not have.")

    def _merged(self, target: str, weight: Tensor, update: _Update) -> Tensor:
        """In float32; the loader rounds to the precision that is served."""
        a, b = update.parts["A"].float(), update.parts["B"].float()
        rank = a.shape[0]
        delta = (b @ a).T if update.embedding else b @ a
        if delta.shape != weight.shape:
            raise CheckpointError(
                f"{self.folder}: the update of {target} is {list(delta.shape)}, the base {list(weight.shape)}."
            )
        merged = weight.float() + self._scale(target, rank) * delta
        if "magnitude_vector" in update.parts:
            norm = torch.linalg.vector_norm(merged, dim=1, keepdim=True)
            merged = merged * (update.parts["magnitude_vector"].float().reshape(-1, 1) / norm)
        return merged

    def _scale(self, target: str, rank: int) -> float:
        """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA; alpha may be set by module."""
        alpha = float(self._config["lora_alpha"])
        for pattern, value in (self._config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", target):
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def base_of(adapter: Path) -> str | None:
    """The base model that an adapter names, if it does."""
    name = _read_config(adapter).get("base_model_name_or_path")
    return str(name) if name else None


def _read_config(adapter: Path) -> Mapping[str, Any]:
    config = read_json(adapter / "adapter_config.json")
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        raise CheckpointError(f"{adapter} is an adapter of type {kind}; supported is LORA (and DoRA).")
    if task != "SEQ_CLS":
        raise CheckpointError(f"{adapter} is an adapter for the task {task}; supported is SEQ_CLS.")
    unsupported = [name for name in _UNMERGEABLE if config.get(name)]
    if unsupported:
        raise CheckpointError(f"{adapter} sets {', '.join(unsupported)}, which cannot be merged into the base.")
    return config


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}; only safetensors adapters are read.")
    yield from tensors_in(path)
