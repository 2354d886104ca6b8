"""Random checkpoints of BERT's kin, written by transformers. Knows nothing of assay's own model code."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from tests.tiny import bert_vocab, randomize, save_bert_tokenizer

KINDS: dict[str, tuple[Any, Any]] = {
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification),
    "camembert": (CamembertConfig, CamembertForSequenceClassification),
    "electra": (ElectraConfig, ElectraForSequenceClassification),
    "albert": (AlbertConfig, AlbertForSequenceClassification),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification),
}
AFTER_PAD = ("roberta", "xlm-roberta", "camembert")
USABLE = 20  # tokens that the small position tables can number
VOCAB_SIZE = len(bert_vocab())


def small(model_type: str, **config: Any) -> dict[str, Any]:
    """A config's fields for a small model of this type, with positions for USABLE tokens."""
    if model_type == "distilbert":
        sizes = {"dim": 36, "n_layers": 3, "n_heads": 4, "hidden_dim": 60}
    else:
        sizes = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 60}
    settings = {"vocab_size": VOCAB_SIZE, **sizes, "pad_token_id": 0}
    if model_type in AFTER_PAD:
        settings |= {"type_vocab_size": 1, "pad_token_id": 1}
    settings |= config
    offset = settings["pad_token_id"] + 1 if model_type in AFTER_PAD else 0
    return {"max_position_embeddings": USABLE + offset} | settings


def save_encoder(folder: Path, model_type: str, seed: int = 0, shard: str = "1GB", **config: Any) -> PreTrainedModel:
    """A random classifier of this type and its tokenizer in `folder`; returns the model for comparison."""
    config_class, model_class = KINDS[model_type]
    settings = small(model_type, **{"num_labels": 3, **config})
    model: PreTrainedModel = model_class(config_class(**settings))
    tables = {n: p.detach().clone() for n, p in model.named_parameters() if "position_embeddings" in n}
    randomize(model, seed)
    for name, parameter in model.named_parameters():
        if name.endswith("embeddings_project.weight"):  # no table but a matrix, whatever its name
            parameter.data /= parameter.shape[-1] ** 0.5
        if settings.get("sinusoidal_pos_embds") and name in tables:
            parameter.data = tables[name]
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    if model_type in AFTER_PAD:
        save_roberta_tokenizer(folder, settings["pad_token_id"])
    else:
        save_bert_tokenizer(folder)
    return model


def save_roberta_tokenizer(folder: Path, pad_token_id: int) -> None:
    """A tokenizer.json with RoBERTa's special tokens and pairs (`<s>A</s></s>B</s>`), its pad token where asked."""
    pieces = ["<s>", "</s>", "<unk>", "<mask>", *bert_vocab()[5:]]
    pieces.insert(pad_token_id, "<pad>")
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({}))


def encoder_logits(model: PreTrainedModel, token_ids: list[int], types: list[int] | None = None) -> torch.Tensor:
    """What transformers says of one sequence, alone and unpadded: logits [labels]. Types only where it has two."""
    inputs = {"input_ids": torch.tensor([token_ids])}
    if types is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits[0].float()
    return logits
