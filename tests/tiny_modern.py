"""Random DeBERTa and ModernBERT checkpoints, written by transformers, and the scores of ours and of theirs."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
)

from assay.engine.runner import ModelRunner, form
from assay.model.batch import pack
from assay.model.registry import LoadedModel
from assay.sequence import Prediction, Sequence
from tests.tiny import bert_vocab, randomize, save_bert_tokenizer


def save_deberta(
    folder: Path, seed: int = 0, num_labels: int = 3, shard: str = "1GB", **config: Any
) -> PreTrainedModel:
    """Shaped like deberta-v3, with buckets so small that texts of 40 tokens leave the exact ones and reach the last."""
    settings: dict[str, Any] = {
        "vocab_size": len(bert_vocab()),
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 60,
        "max_position_embeddings": 64,
        "max_relative_positions": 24,
        "position_buckets": 8,
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "num_labels": num_labels,
    }
    config = {name: value for name, value in (settings | config).items() if value is not None}
    return _save(DebertaV2ForSequenceClassification(DebertaV2Config(**config)), folder, seed, shard)


def save_modernbert(
    folder: Path, seed: int = 0, num_labels: int = 3, shard: str = "1GB", **config: Any
) -> PreTrainedModel:
    """Shaped like ModernBERT, with a window so narrow that most of a text of 40 tokens lies outside it."""
    settings: dict[str, Any] = {
        "vocab_size": len(bert_vocab()),
        "hidden_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 28,
        "max_position_embeddings": 64,
        "local_attention": 8,
        "num_labels": num_labels,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    model = ModernBertForSequenceClassification(ModernBertConfig(**settings | config))
    return _save(model, folder, seed, shard)


def _save(model: PreTrainedModel, folder: Path, seed: int, shard: str) -> PreTrainedModel:
    """DeBERTa's relative embeddings are named like embeddings and their norm like a norm: `randomize` reaches both."""
    randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    save_bert_tokenizer(folder)
    return model


def some_sequences(max_len: int, types: int = 1, seed: int = 0) -> list[Sequence]:
    """Random ids, some thirty sequences from one token to exactly `max_len`, shuffled, many lengths several times."""
    rng = random.Random(seed)
    lengths = [*range(1, 13), *range(13, max_len, 4), 1, 7, 7, 7, 20, 20, max_len, max_len]
    rng.shuffle(lengths)
    size = len(bert_vocab())
    return [
        Sequence([rng.randrange(size) for _ in range(n)], sorted(rng.randrange(types) for _ in range(n)))
        for n in lengths
    ]


def theirs_of(model: PreTrainedModel, sequences: list[Sequence]) -> Tensor:
    """What transformers says of each sequence, alone and unpadded: logits [seqs, labels], float32."""
    rows = []
    for sequence in sequences:
        inputs = {"input_ids": torch.tensor([sequence.token_ids])}
        if model.config.model_type == "deberta-v2":
            inputs["token_type_ids"] = torch.tensor([sequence.token_type_ids or [0] * sequence.num_tokens])
        with torch.inference_mode():
            rows.append(model(**inputs).logits[0].float())
    return torch.stack(rows)


def ours_of(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    """Logits [seqs, labels] of one batch as the engine forms it, in the order given."""
    batch = form(sequences)
    answers = dict(zip(map(id, batch.sequences), ModelRunner(model).run(batch), strict=True))
    rows = []
    for sequence in sequences:
        answer = answers[id(sequence)]
        assert isinstance(answer, Prediction)
        rows.append(answer.logits)
    return torch.tensor(rows)


def reordered(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    """The same, packed in another order, not sorted by length: logits in the order given."""
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: Tensor = model.module(pack([sequences[i] for i in order.tolist()]))
    return logits[order.argsort()]


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())
