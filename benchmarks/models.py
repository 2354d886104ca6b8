"""Models of real size with random weights, as checkpoints that every contender can load. Knows not how they are run.

They are written once into build/bench/models, by transformers, with a real tokenizer where one is at hand.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build" / "bench"
_TOKENIZERS = REPOSITORY.parent / "shared" / "data" / "tokenizers"
_BUNDLED = REPOSITORY / "assay" / "bundled" / "emotions"
_LABELS = 28  # as many as GoEmotions has


@dataclass(frozen=True, slots=True)
class Model:
    """config: what transformers is told, by its own names. tokenizer: a folder of real ones. family: a FLOP formula.

    onnx_type: what onnxruntime.transformers calls the graph that it fuses; "" where it knows none.
    """

    name: str
    model_type: str
    tokenizer: str
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    onnx_type: str = ""


def _bert(layers: int, hidden: int) -> dict[str, Any]:
    return {
        "vocab_size": 30522,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
    }


MODELS = {
    model.name: model
    for model in (
        Model("minilm", "bert", "bert-base-uncased", "bert", _bert(6, 384), "bert"),
        Model("bert-base", "bert", "bert-base-uncased", "bert", _bert(12, 768), "bert"),
        Model(
            "deberta-v3-base",
            "deberta-v2",
            "bert-base-uncased",
            "deberta",
            {
                **_bert(12, 768),
                "vocab_size": 128100,
                "type_vocab_size": 0,
                "layer_norm_eps": 1e-7,
                "relative_attention": True,
                "position_buckets": 256,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "pos_att_type": "p2c|c2p",
                "position_biased_input": False,
                "max_relative_positions": -1,
                "pooler_hidden_size": 768,
                "pooler_dropout": 0,
                "pooler_hidden_act": "gelu",
            },
        ),
        Model("modernbert-base", "modernbert", "roberta-base", "modernbert", {"classifier_pooling": "mean"}),
        Model(
            "qwen3-0.6b",
            "qwen3",
            "qwen2.5",
            "decoder",
            {
                "vocab_size": 151936,
                "hidden_size": 1024,
                "intermediate_size": 3072,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 40960,
                "rope_theta": 1e6,
                "pad_token_id": 151643,
            },
        ),
        # For the smoke run: every step, nothing measured.
        Model("tiny", "bert", "bert-base-uncased", "bert", _bert(2, 48), "bert"),
    )
}
MEASURED = tuple(name for name in MODELS if name != "tiny")


def folder_of(model: Model) -> Path:
    """The model's checkpoint, written if it is not there yet."""
    folder = BUILD / "models" / model.name
    done = folder / "made.json"
    wanted = {"config": model.config, "tokenizer": _source(model)[1]}
    if not done.is_file() or json.loads(done.read_text("utf-8")) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(model, folder)
        done.write_text(json.dumps(wanted), "utf-8")
    return folder


def tokenizer_of(model: Model) -> str:
    """Which tokenizer the checkpoint has, for the results."""
    return _source(model)[1]


def _source(model: Model) -> tuple[Path, str]:
    real = _TOKENIZERS / model.tokenizer
    return (real, model.tokenizer) if real.is_dir() else (_BUNDLED, "the bundled model's, embeddings at full size")


def _write(model: Model, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    source, _ = _source(model)
    torch.manual_seed(0)
    config = AutoConfig.for_model(model.model_type, num_labels=_LABELS, **model.config)
    module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    module.save_pretrained(folder)
    _write_tokenizer(source, folder)


def _write_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.json, made of vocabulary and merges where the source has none, and what transformers 4 and 5 read."""
    from transformers import AutoTokenizer

    if (source / "tokenizer.json").is_file():
        shutil.copy(source / "tokenizer.json", folder / "tokenizer.json")
    else:
        AutoTokenizer.from_pretrained(source).backend_tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = (folder / "tokenizer.json").read_text("utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": next(name for name in ("[PAD]", "<pad>", "<|endoftext|>") if json.dumps(name)[1:-1] in vocabulary),
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
