"""The folder that ships: float16 safetensors, config.json, tokenizer.json. Knows the format; nothing of training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

CONFIG_KEYS = (
    "architectures",
    "model_type",
    "problem_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


def export(trained: Path, out: Path) -> None:
    """Round `trained` to float16 and write it to `out`, parameters only (no buffers such as position ids)."""
    model = BertForSequenceClassification.from_pretrained(trained, dtype=torch.float32)
    tensors = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.named_parameters()}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    given = model.config.to_dict() | {"architectures": ["BertForSequenceClassification"]}
    config = {key: given[key] for key in CONFIG_KEYS} | {
        "id2label": {str(id_): label for id_, label in (model.config.id2label or {}).items()},
        "label2id": dict(sorted((model.config.label2id or {}).items(), key=lambda item: item[1])),
        "dtype": "float16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_bytes((trained / "tokenizer.json").read_bytes())
