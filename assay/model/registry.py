"""Architecture name → family, imported on demand; a folder → a model ready to score. Knows no tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from assay.calibration import Calibration
from assay.config import Activation, ActivationChoice, Device, DType, Quantization
from assay.errors import CheckpointError, ConfigError
from assay.labels import activation_for, label_names
from assay.model import compiled
from assay.model.adapter import AdaptedCheckpoint
from assay.model.blueprint import Blueprint, Shapes
from assay.model.company import Alone, Apart, Filled, Shared
from assay.model.heads import TextClassifier, build_head
from assay.model.kernels import has_int8
from assay.model.linear import Preparation, Prepared
from assay.model.weights import Checkpoint, Tensors, load, read_json

_DECODER, _BERT = "assay.model.decoder", "assay.model.bert"
_DEBERTA, _MODERNBERT = "assay.model.deberta", "assay.model.modernbert"
# Architecture → the module of its family, whose `blueprint` says what to build.
ARCHITECTURES = {
    "BertForSequenceClassification": _BERT,
    "RobertaForSequenceClassification": _BERT,
    "XLMRobertaForSequenceClassification": _BERT,
    "CamembertForSequenceClassification": _BERT,
    "ElectraForSequenceClassification": _BERT,
    "AlbertForSequenceClassification": _BERT,
    "DistilBertForSequenceClassification": _BERT,
    "DebertaV2ForSequenceClassification": _DEBERTA,
    "ModernBertForSequenceClassification": _MODERNBERT,
    "LlamaForSequenceClassification": _DECODER,
    "MistralForSequenceClassification": _DECODER,
    "Qwen2ForSequenceClassification": _DECODER,
    "Qwen3ForSequenceClassification": _DECODER,
    "GemmaForSequenceClassification": _DECODER,
    "Gemma2ForSequenceClassification": _DECODER,
    "Gemma3TextForSequenceClassification": _DECODER,
    "Phi3ForSequenceClassification": _DECODER,
    "LlamaForCausalLM": _DECODER,
    "MistralForCausalLM": _DECODER,
    "Qwen2ForCausalLM": _DECODER,
    "Qwen3ForCausalLM": _DECODER,
    "GemmaForCausalLM": _DECODER,
    "Gemma2ForCausalLM": _DECODER,
    "Gemma3ForCausalLM": _DECODER,
    "Phi3ForCausalLM": _DECODER,
    "InternLM2ForRewardModel": _DECODER,
    "Qwen2ForRewardModel": _DECODER,
    "Qwen3ForRewardModel": _DECODER,
    "LlamaForSequenceClassificationWithNormal_Weights": _DECODER,
}
# model_type → architecture, for configs whose `architectures` is missing or names the bare trunk.
_MODEL_TYPES = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "albert": "AlbertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "gemma": "GemmaForSequenceClassification",
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "phi3": "Phi3ForSequenceClassification",
}


# What a config would say for an activation that the operator sets.
_PROBLEM_TYPE: dict[ActivationChoice, dict[str, str]] = {
    "none": {"problem_type": "regression"},
    "sigmoid": {"problem_type": "multi_label_classification"},
    "softmax": {"problem_type": "single_label_classification"},
}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what callers must know of it. `module` maps a PackedBatch on `device` to logits [seqs, labels], which
    `calibration` does not touch: whoever makes probabilities of them applies it. `settle` makes short texts faster, in
    a second or so: to be called once nobody waits for the first answer any more.
    """

    module: nn.Module
    architecture: str
    model_type: str
    labels: tuple[str, ...]
    activation: Activation
    max_positions: int
    vocab_size: int
    type_vocab_size: int
    dtype: torch.dtype
    device: torch.device
    quantization: Quantization = "none"
    deterministic: bool = False
    calibration: Calibration | None = None
    settle: Callable[[], None] = lambda: None

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """From which probability each label is flagged; None where no calibration says so."""
        return None if self.calibration is None else self.calibration.thresholds


def load_model(
    folder: Path,
    dtype: DType = "auto",
    device: Device = "auto",
    activation: ActivationChoice = "auto",
    adapter: Path | None = None,
    allow_pickle: bool = False,
    answer_token_ids: tuple[int, ...] | None = None,
    quantization: Quantization = "none",
    deterministic: bool = False,
) -> LoadedModel:
    """Build on `meta`, then fill strictly from the folder, with an adapter merged in if one is given.

    allow_pickle: read `.bin` files, as data only, where there are no safetensors.
    answer_token_ids: a language model whose score is the logit of the last of these tokens, less the first's.
    deterministic: a sequence's logits are the same bits in any company.
    Raises CheckpointError or ConfigError.
    """
    raw: Mapping[str, Any] = read_json(folder / "config.json")
    if activation != "auto":  # the operator's word replaces the config's, even one that would be refused
        raw = {**raw, **_PROBLEM_TYPE[activation]}
    if answer_token_ids is not None:
        raw = {**raw, "answer_token_ids": answer_token_ids}
    architecture = _architecture(raw, adapter is not None)
    if architecture is not None:
        model = _native(architecture, raw, folder, dtype, device, adapter, allow_pickle, quantization, deterministic)
    elif quantization == "int8":
        raise ConfigError(f"quantization int8 is for native architectures only: {', '.join(ARCHITECTURES)}.")
    elif adapter is None:
        model = _fallback(folder, raw, dtype, device, deterministic)
    else:
        raise CheckpointError(f"Adapters are merged into native architectures only: {', '.join(ARCHITECTURES)}.")
    model = model if activation == "auto" else replace(model, activation=activation)
    if model.activation == "softmax" and len(model.labels) == 1:
        raise ConfigError(
            "A softmax over this model's one label is 1 for every text. Take --activation sigmoid, or none."
        )
    return model


def _native(
    architecture: str,
    raw: Mapping[str, Any],
    folder: Path,
    dtype: DType,
    device: Device,
    adapter: Path | None,
    allow_pickle: bool,
    quantization: Quantization,
    deterministic: bool,
) -> LoadedModel:
    checkpoint: Tensors = Checkpoint(folder, allow_pickle)
    if adapter is not None:
        checkpoint = AdaptedCheckpoint(checkpoint, adapter)
    blueprint = _family(architecture)(architecture, raw, checkpoint.shapes)
    num_labels = blueprint.head.num_labels
    # A reward head stays raw: sigmoid(23) rounds to 1.0 in float32 and destroys the ranking.
    labels = ("LABEL_0",) if blueprint.reward and num_labels == 1 else label_names(raw, num_labels)
    torch_device = _device(device)
    torch_dtype = _dtype(dtype, torch_device)
    name = str(torch_dtype).removeprefix("torch.")
    if name in blueprint.refused_dtypes:
        raise ConfigError(f"{architecture} overflows in {name}; use bfloat16 or float32.")
    if quantization == "int8" and (torch_dtype != torch.float32 or not has_int8(torch_device)):
        raise ConfigError(
            f"quantization int8 needs dtype float32 and an x86 CPU, and without AVX512-VNNI also assay's own kernels,"
            f" which are compiled when it is installed where there is a C compiler; this is {torch_device.type} with"
            f" {name}{'' if compiled.library() else ', without those kernels'}."
        )
    with torch.device("meta"):
        module = TextClassifier(blueprint.trunk(), build_head(blueprint.head), blueprint.shares_prefixes)
    preparation = Preparation(quantization == "int8", deterministic)
    load(module, checkpoint, blueprint.renames, torch_dtype, torch_device, preparation.take)
    prepared = preparation.end(module)
    return LoadedModel(
        module=_in_company(module, torch_device, torch_dtype, prepared, quantization, deterministic).eval(),
        architecture=architecture,
        model_type=str(raw.get("model_type", "")),
        labels=labels,
        activation="none" if blueprint.reward else activation_for(raw, num_labels),
        max_positions=blueprint.max_positions,
        vocab_size=blueprint.vocab_size,
        type_vocab_size=blueprint.type_vocab_size,
        dtype=torch_dtype,
        device=torch_device,
        quantization=quantization,
        deterministic=deterministic,
        settle=preparation.room.settle,
    )


def _in_company(
    model: TextClassifier,
    device: torch.device,
    dtype: torch.dtype,
    prepared: Prepared,
    quantization: Quantization,
    deterministic: bool,
) -> nn.Module:
    """With what its kernels want done to a batch.

    A prefix is computed once where that leaves a text's score as it is: to the last bit, where products and attention
    are our own; else in float32 on a CPU, where last bits stay last bits. In fewer bits they become other roundings,
    and other scores for the same text in other company.
    """
    same_bits = prepared.alike and compiled.library() is not None
    in_float32 = device.type == "cpu" and dtype == torch.float32
    shares = model.shares_prefixes and in_float32 and (same_bits or (quantization == "none" and not deterministic))
    module: nn.Module = Filled(model) if prepared.recurring else model
    module = Shared(module) if shares else module
    if deterministic:
        module = Apart(module) if prepared.alike else Alone(module)
    return module


def _architecture(raw: Mapping[str, Any], adapted: bool) -> str | None:
    """The native architecture of a config.json; None where there is none. Under an adapter the base's head is moot."""
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"config.json: architectures is {architectures!r}; it must be a list of names.")
    method = (raw.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        raise CheckpointError(
            f"The weights are quantized ({method}), which is not supported; use the original weights."
        )
    named = [str(name) for name in architectures]
    for name in () if adapted and any("CausalLM" in name for name in named) else named:
        if name in ARCHITECTURES:
            return name
    inferred = _MODEL_TYPES.get(str(raw.get("model_type")))
    if inferred and (adapted or not any("For" in name for name in named)):
        return inferred
    return None


def _fallback(folder: Path, raw: Mapping[str, Any], dtype: DType, device: Device, deterministic: bool) -> LoadedModel:
    torch_device = _device(device)
    load_fallback: Callable[..., LoadedModel] = import_module("assay.model.fallback").load_fallback
    model = load_fallback(folder, raw, _dtype(dtype, torch_device), torch_device)
    _own(model.module)
    module = Alone(model.module) if deterministic else model.module
    return replace(model, module=module.eval(), deterministic=deterministic)


def _own(module: nn.Module) -> None:
    """Copy what transformers has mapped from the checkpoint's files, as weights.tensors_in says. What is tied stays
    tied.
    """
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for parameter in module.parameters():
        if parameter.device.type == "cpu":
            key = (parameter.data_ptr(), parameter.shape)
            if key not in copies:
                copies[key] = parameter.data.clone()
            parameter.data = copies[key]


def _family(architecture: str) -> Callable[[str, Mapping[str, Any], Shapes], Blueprint]:
    blueprint: Callable[[str, Mapping[str, Any], Shapes], Blueprint] = import_module(
        ARCHITECTURES[architecture]
    ).blueprint
    return blueprint


def _device(choice: Device) -> torch.device:
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda' but this machine or this build of torch has no CUDA; use cpu or auto.")
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(choice)


def _dtype(choice: DType, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU; float32 on a CPU, where 16-bit products without AMX run at an eighth of the speed."""
    if choice == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[choice]
