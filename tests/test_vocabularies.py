"""Tokenizers built from vocab.txt and from vocab.json + merges.txt give the ids that transformers' own classes give."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer, Qwen2Tokenizer

from assay.engine.tokenizer import load_tokenizer
from assay.errors import CheckpointError

TEXTS = [
    "Loved the new café—coffee was great.",
    "It's 3.14159, isn't it?  Two  spaces,\ttabs\nand\r\nlines…",
    "ÀÉÎÕÜ naïve façade — 数学は難しい 한국어 עברית ไทย",
    "😂🤣 [MASK] <mask> </s> <|im_start|>user<|im_end|>\n",
    "don't DON'T we'll I'm x2 10000000",
    " leading and trailing ",
    "e\u0301 combining",
]


def folder_of(source: Path, target: Path, names: list[str], **config: object) -> Path:
    for name in names:
        shutil.copy(source / name, target / name)
    if "tokenizer_config.json" not in names:
        (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("lower", [True, False])
def test_bert_from_vocab_txt(shared_data: Path, tmp_path: Path, lower: bool) -> None:
    source = shared_data / "tokenizers" / "bert-base-uncased"
    folder = folder_of(source, tmp_path, ["vocab.txt"], tokenizer_class="BertTokenizer", do_lower_case=lower)
    ours = load_tokenizer(folder).tokenizer
    theirs = BertTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    pair = ours.encode(TEXTS[0], TEXTS[1])
    expected = theirs(TEXTS[0], TEXTS[1])
    assert (pair.ids, pair.type_ids) == (expected["input_ids"], expected["token_type_ids"])


def test_bert_from_vocab_txt_equals_its_tokenizer_json(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "bert-base-uncased"
    folder = folder_of(source, tmp_path, ["vocab.txt"])
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))  # no tokenizer_class: by the model type
    ours, original = load_tokenizer(folder).tokenizer, Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == original.encode(text).ids


def test_qwen2_from_merges(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "qwen2.5"
    folder = folder_of(source, tmp_path, ["vocab.json", "merges.txt", "tokenizer_config.json"])
    ours = load_tokenizer(folder).tokenizer
    theirs = Qwen2Tokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.encode("<|im_start|>").ids == [151644]
    assert len(ours.encode("the end").ids) == 2  # Qwen adds nothing


def test_roberta_from_merges(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "roberta-base"
    folder = folder_of(source, tmp_path, ["vocab.json", "merges.txt"], tokenizer_class="RobertaTokenizer")
    ours = load_tokenizer(folder).tokenizer
    original = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == original.encode(text).ids
    assert ours.encode("a b", "c d").ids == original.encode("a b", "c d").ids


def test_an_added_token_with_another_id_is_refused(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "tokenizers" / "qwen2.5"
    folder = folder_of(source, tmp_path, ["vocab.json", "merges.txt", "tokenizer_config.json"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["151999"] = config["added_tokens_decoder"].pop("151664")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="151999"):
        load_tokenizer(folder)


def test_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "FunnyTokenizer"}))
    with pytest.raises(CheckpointError, match="FunnyTokenizer"):
        load_tokenizer(tmp_path)


def test_a_folder_without_any_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(CheckpointError, match="vocabulary files"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_is_converted_by_transformers(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("the coffee was great and the update broke everything\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=50,
        model_type="bpe",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    ours = load_tokenizer(tmp_path).tokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    for text in ("the coffee was great", "everything broke and the update was"):
        assert ours.encode(text, add_special_tokens=False).ids == pieces.encode(text)
        assert ours.encode(text).ids == theirs(text)["input_ids"]
