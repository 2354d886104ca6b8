"""Random checkpoints, written by transformers as people's are: small, awkward, with weights large enough to matter.

Imports transformers, which the product itself never does on this path.
"""

import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from assay.model.company import Shared
from assay.model.linear import Preparation, Prepared
from assay.model.registry import LoadedModel, load_model

WORDS = [
    "the",
    "coffee",
    "was",
    "great",
    "update",
    "broke",
    "everything",
    "loved",
    "new",
    "café",
    "and",
    "so",
    "##s",
    "##ed",
]
PUNCTUATION = list(".,!?'\"-—:;()[]…")


def bert_vocab() -> list[str]:
    letters = list(string.ascii_lowercase + string.digits + "éäöüß")
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PUNCTUATION, *letters, *(f"##{c}" for c in letters)]


def load_plain(folder: Path, **options: Any) -> LoadedModel:
    """As it comes from the checkpoint, without kernels and company: its weights are parameters a test can change."""
    as_loaded = {"take": lambda *_: None, "end": lambda *_: Prepared(recurring=False, alike=False)}
    with patch.multiple(Preparation, **as_loaded):
        model = load_model(folder, **options)
    return replace(model, module=model.module.module) if isinstance(model.module, Shared) else model


def word_embeddings(model: LoadedModel) -> Tensor:
    """The table, to be spoilt in place."""
    return next(table for name, table in model.module.named_parameters() if name.endswith("word_embeddings.weight"))


def save_bert_tokenizer(folder: Path, **config: Any) -> None:
    """A WordPiece tokenizer.json of some 110 pieces, with BERT's normalizer and templates."""
    vocab = {piece: i for i, piece in enumerate(bert_vocab())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def randomize(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights large enough that a wrong mask, position or token type moves the logits far beyond any tolerance."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            parameter.data = 1 + 0.2 * noise
        elif "embeddings" in name:
            parameter.data = noise
        elif name.endswith("bias"):
            parameter.data = 0.2 * noise
        else:
            parameter.data = 1.5 * noise / parameter.shape[-1] ** 0.5
    return model.eval()


def save_bert(folder: Path, seed: int = 0, num_labels: int = 3, shard: str = "1GB", **config: Any) -> PreTrainedModel:
    """A random BertForSequenceClassification and its tokenizer in `folder`; returns the model for comparison."""
    settings: dict[str, Any] = {
        "vocab_size": len(bert_vocab()),
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 60,
        "max_position_embeddings": 128,
        "num_labels": num_labels,
        "pad_token_id": 0,
    }
    model = randomize(BertForSequenceClassification(BertConfig(**settings | config)), seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    save_bert_tokenizer(folder)
    return model


def bert_logits(model: PreTrainedModel, token_ids: list[int], token_type_ids: list[int] | None = None) -> torch.Tensor:
    """What transformers says of one sequence, alone and unpadded: logits [labels], float32."""
    types = None if token_type_ids is None else torch.tensor([token_type_ids])
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([token_ids]), token_type_ids=types).logits[0].float()
    return logits


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Load model.safetensors as a dict of name → tensor, let `change` alter it in place, and save it again."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
