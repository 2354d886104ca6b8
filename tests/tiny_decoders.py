"""Random decoder checkpoints of every family, their config.json in older spellings, and what transformers says of them.

Knows nothing of assay's own model code.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import randomize

VOCAB = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "num_labels": 3,
}
# Family → the stem of transformers' class names, and what must be set for the family's own features to bite.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 14}),
    "gemma": ("Gemma", {"head_dim": 10}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 10, "sliding_window": 7, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5},
    ),
    "gemma3_text": ("Gemma3Text", {"head_dim": 10, "sliding_window": 7, "query_pre_attn_scalar": 5}),
    "phi3": ("Phi3", {}),
}


def save_decoder(folder: Path, family: str, seed: int = 0, shard: str = "1GB", **config: Any) -> PreTrainedModel:
    """A random …ForSequenceClassification in `folder`; returns the model for comparison."""
    stem, own = FAMILIES[family]
    settings = getattr(transformers, f"{stem}Config")(**BASE | own | config)
    model = randomize(getattr(transformers, f"{stem}ForSequenceClassification")(settings), seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


Saved = Callable[[str], tuple[Path, PreTrainedModel]]
"""A case's name → its folder, and transformers' model."""


def saved_once(cases: Mapping[str, tuple[str, dict[str, Any]]], new_folder: Callable[[str], Path]) -> Saved:
    """Cases, as (family, config): each is written when it is first asked for."""
    done: dict[str, tuple[Path, PreTrainedModel]] = {}

    def get(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in done:
            family, config = cases[name]
            folder = new_folder("decoder")
            done[name] = folder, save_decoder(folder, family, seed=len(done), **config)
        return done[name]

    return get


def reload(folder: Path, family: str) -> PreTrainedModel:
    """The checkpoint as transformers reads it, config.json and all."""
    stem, _ = FAMILIES[family]
    model: PreTrainedModel = getattr(transformers, f"{stem}ForSequenceClassification").from_pretrained(
        folder, dtype="auto"
    )
    return model.eval()


def logits_by_transformers(model: PreTrainedModel, token_ids: list[int], pad_token_id: int | None = None) -> Tensor:
    """One sequence, alone and unpadded: logits [labels], float32. A fresh copy, since rope by length keeps state.

    With no pad_token_id, transformers pools the true last token.
    """
    model = copy.deepcopy(model)
    model.config.pad_token_id = pad_token_id
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0].float()
    return logits


def rewrite_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` alter config.json in place."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    change(config)
    path.write_text(json.dumps(config), "utf-8")


def to_v4(config: dict[str, Any], type_key: str = "rope_type") -> None:
    """Spell config.json as transformers 4 did: theta and scaling apart, no layer types, nothing nested."""
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config["torch_dtype"] = config.pop("dtype", "float32")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if config["model_type"] == "phi3":
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {type_key: kind, **rope}
