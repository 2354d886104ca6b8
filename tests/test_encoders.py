"""BERT's kin against transformers in float32, on random checkpoints of awkward shapes; and proof that this bites."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from assay import Classifier
from assay.errors import CheckpointError, ContextLengthError
from assay.model import bert
from assay.model.batch import PackedBatch, pack
from assay.model.layer import Layer
from assay.model.registry import LoadedModel, load_model
from assay.sequence import Sequence
from tests.tiny import load_plain, rewrite_weights
from tests.tiny_encoders import AFTER_PAD, KINDS, USABLE, VOCAB_SIZE, encoder_logits, save_encoder, small
from tests.wrong_attention import leaking, wrongly_scaled

pytestmark = pytest.mark.usefixtures("vectors")

TOLERANCE = 1e-4  # against transformers, on logits of order 1
ROUNDING = 2e-5  # against ourselves in other company
BITES = 1e-2  # what a real mistake must exceed


def load(folder: Path) -> LoadedModel:
    return load_model(folder, "float32", "cpu")


def serve(folder: Path, **config: Any) -> Classifier:
    return Classifier(str(folder), dtype="float32", device="cpu", activation="none", **config)


def sequences(types: int, longest: int = USABLE, seed: int = 0) -> list[Sequence]:
    """Random ids, pad tokens among them: one sequence of each length up to the longest, some twice, shuffled."""
    rng = random.Random(seed)
    lengths = [*range(1, longest + 1), 1, 2, 2, longest, longest]
    rng.shuffle(lengths)
    return [
        Sequence(rng.choices(range(VOCAB_SIZE), k=n), sorted(rng.choices(range(max(1, types)), k=n))) for n in lengths
    ]


def scored(model: LoadedModel, batch: list[Sequence] | PackedBatch) -> Tensor:
    """Logits [seqs, labels] of one batch, packed in the order given."""
    with torch.inference_mode():
        logits: Tensor = model.module(batch if isinstance(batch, PackedBatch) else pack(batch))
    return logits


def oracle(model: PreTrainedModel, batch: list[Sequence]) -> Tensor:
    return torch.stack([encoder_logits(model, s.token_ids, s.token_type_ids) for s in batch])


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("roberta", {}),
    "roberta, pad 0": ("roberta", {"pad_token_id": 0, "num_labels": 1}),
    "roberta, pad 7": ("roberta", {"pad_token_id": 7, "num_labels": 2, "layer_norm_eps": 1e-5}),
    "roberta, two types": ("roberta", {"type_vocab_size": 2}),
    "roberta, odd heads": ("roberta", {"hidden_size": 35, "num_attention_heads": 5, "num_labels": 7}),
    "xlm-roberta": ("xlm-roberta", {"num_labels": 7}),
    "xlm-roberta, sharded": ("xlm-roberta", {"shard": "20KB", "hidden_act": "relu"}),
    "camembert": ("camembert", {"num_labels": 1, "pad_token_id": 1}),
    "camembert, gelu_new": ("camembert", {"hidden_act": "gelu_new", "num_labels": 2}),
    "electra": ("electra", {"embedding_size": 36}),
    "electra, narrow embeddings": ("electra", {"embedding_size": 10, "num_labels": 2}),
    "electra, wide embeddings": ("electra", {"embedding_size": 50, "shard": "20KB", "num_labels": 1}),
    "electra, three types": ("electra", {"embedding_size": 9, "type_vocab_size": 3, "hidden_act": "silu"}),
    "electra, one type": ("electra", {"embedding_size": 9, "type_vocab_size": 1, "num_labels": 7}),
    "albert": ("albert", {"embedding_size": 10, "num_labels": 2}),
    "albert, equal sizes": ("albert", {"embedding_size": 36, "num_labels": 1}),
    "albert, groups": ("albert", {"embedding_size": 10, "num_hidden_layers": 5, "num_hidden_groups": 2}),
    "albert, inner layers": ("albert", {"embedding_size": 10, "num_hidden_layers": 2, "inner_group_num": 3}),
    "albert, both": (
        "albert",
        {"embedding_size": 11, "num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2, "num_labels": 7},
    ),
    "albert, one type": ("albert", {"embedding_size": 10, "type_vocab_size": 1, "hidden_act": "gelu", "shard": "9KB"}),
    "distilbert": ("distilbert", {}),
    "distilbert, sinusoidal": ("distilbert", {"sinusoidal_pos_embds": True, "num_labels": 2}),
    "distilbert, odd heads": ("distilbert", {"dim": 35, "n_heads": 5, "num_labels": 7, "shard": "20KB"}),
    "distilbert, relu": ("distilbert", {"activation": "relu", "num_labels": 1, "pad_token_id": 3}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_alone_packed_reordered_and_transformers_agree(tmp_path: Path, shape: str) -> None:
    model_type, settings = SHAPES[shape]
    theirs = save_encoder(tmp_path, model_type, seed=len(shape), **settings)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == ("shard" in settings)
    ours = load(tmp_path)
    assert ours.max_positions == USABLE
    batch = sequences(getattr(theirs.config, "type_vocab_size", 0))

    expected = oracle(theirs, batch)
    packed = scored(ours, batch)
    alone = torch.cat([scored(ours, [sequence]) for sequence in batch])
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).tolist()
    reordered = scored(ours, [batch[i] for i in order])

    assert 0.2 < float(expected.std()) < 20, "logits too small, or too large, for the tolerance to mean anything"
    assert worst(packed, expected) <= TOLERANCE
    assert worst(alone, packed) <= ROUNDING
    assert worst(reordered, packed[order]) <= ROUNDING


# As for BERT: 8 and 11 bits of mantissa over layers of large weights.
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.2), ("float16", 0.025)])
@pytest.mark.parametrize("model_type", KINDS)
def test_half_precision_trunk(tmp_path: Path, model_type: str, dtype: Any, tolerance: float) -> None:
    theirs = save_encoder(tmp_path, model_type, seed=5)
    ours = load_model(tmp_path, dtype=dtype)
    assert {p.dtype for p in load_plain(tmp_path, dtype=dtype).module.trunk.parameters()} == {getattr(torch, dtype)}
    batch = sequences(0)
    error = worst(scored(ours, batch), oracle(theirs, batch))
    assert TOLERANCE < error <= tolerance, error


@pytest.mark.parametrize("model_type", KINDS)
def test_through_the_engine(tmp_path: Path, model_type: str) -> None:
    """Texts, pairs and token ids, from tokenizer to logits, next to transformers' own."""
    theirs = save_encoder(tmp_path, model_type, seed=5)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ids = [s.token_ids for s in sequences(0)]
    texts = ["the coffee was great.", "", "updates, updated!", "so <pad> new <pad>"]
    pairs = [("loved the new café", "coffee was great"), ("", "so"), ("the update", "broke everything")]
    expected = [encoder_logits(theirs, token_ids) for token_ids in ids]
    for text in [(text, None) for text in texts] + pairs:
        encoded = tokenizer(*text, return_token_type_ids=True)
        expected.append(encoder_logits(theirs, encoded["input_ids"], encoded["token_type_ids"]))
    inputs = [*ids, *texts, *pairs]
    with serve(tmp_path) as classifier:
        packed = torch.tensor([p.logits for p in classifier.classify(inputs)])
        backwards = torch.tensor([p.logits for p in classifier.classify(inputs[::-1])])
        alone = torch.tensor([classifier.classify([one])[0].logits for one in inputs[-9:]])
        with pytest.raises(ContextLengthError, match=f"{USABLE} tokens"):
            classifier.classify([[2] * (USABLE + 1)])
    assert worst(packed, torch.stack(expected)) <= TOLERANCE
    assert worst(backwards.flip(0), packed) <= ROUNDING
    assert worst(alone, packed[-9:]) <= ROUNDING


def test_pairs_of_a_tokenizer_with_types_the_model_has_not(tmp_path: Path) -> None:
    """One type is all a RoBERTa knows, DistilBERT knows none: second halves marked 1 are scored like all others."""
    for model_type in ("roberta", "distilbert"):
        theirs = save_encoder(tmp_path / model_type, model_type)
        batch = [Sequence([5, 6, 7, 8], [0, 0, 1, 1]), Sequence([9], [1])]
        assert worst(scored(load(tmp_path / model_type), batch), oracle(theirs, batch)) <= TOLERANCE


REAL = ("cardiffnlp_twitter-roberta-base-sentiment", "roberta-base-go_emotions", "ruRoberta-large_toxicity")
REAL = (*REAL, "distilbert-sst2", "distilbert-reward", "ms-marco-MiniLM-L-6-v2")


@pytest.mark.parametrize("name", REAL)
def test_real_configs(shared_data: Path, name: str) -> None:
    """Published configs as they are: the right sizes and the right length, whatever they say of `architectures`."""
    raw = json.loads((shared_data / "configs" / name / "config.json").read_text())
    architecture = {"roberta": "Roberta", "distilbert": "DistilBert", "bert": "Bert"}[raw["model_type"]]
    head = "classifier.out_proj.weight" if architecture == "Roberta" else "classifier.weight"
    plan = bert.blueprint(f"{architecture}ForSequenceClassification", raw, {head: (4, 8)})
    assert (plan.head.num_labels, plan.max_positions, plan.vocab_size) == (4, 512, raw["vocab_size"])
    assert plan.type_vocab_size == raw.get("type_vocab_size", 0)
    assert plan.head.hidden_size == raw.get("hidden_size", raw.get("dim"))


@pytest.mark.parametrize("name", [name for name in REAL if "MiniLM" not in name])
def test_real_configs_around_small_models(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Their own words, with sizes that fit into a test, and all their positions."""
    raw = json.loads((shared_data / "configs" / name / "config.json").read_text())
    sizes = small(raw["model_type"], pad_token_id=raw["pad_token_id"])
    sizes["max_position_embeddings"] = raw["max_position_embeddings"]
    theirs = save_encoder(tmp_path, raw["model_type"], **sizes, num_labels=len(raw.get("id2label", "ab")))
    (tmp_path / "config.json").write_text(json.dumps(raw | sizes))
    ours = load(tmp_path)
    assert ours.architecture == type(theirs).__name__
    assert ours.max_positions == 512
    assert ours.labels == tuple(raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"}).values())
    batch = [Sequence([5] * n) for n in (512, 511, 3)]
    assert worst(scored(ours, batch), oracle(theirs, batch)) <= TOLERANCE


@pytest.mark.parametrize("model_type", KINDS)
def test_architecture_by_model_type(tmp_path: Path, model_type: str) -> None:
    theirs = save_encoder(tmp_path, model_type)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load(tmp_path).architecture == type(theirs).__name__


@pytest.mark.parametrize("model_type", KINDS)
def test_fields_that_a_config_leaves_out(model_type: str) -> None:
    config_class, model_class = KINDS[model_type]
    family = bert.FAMILIES[bert.ARCHITECTURES[model_class.__name__]]
    theirs = config_class()
    given = {}
    if model_type in AFTER_PAD:  # sizes must be given, as for BERT
        given = {k: v for k, v in small(model_type).items() if k not in ("pad_token_id", "type_vocab_size")}
        theirs = config_class(**given)
    ours = bert.read_bert(given, family)
    checked = {*bert._FIELDS_OF_ALL, *family.defaults} - family.fixed.keys()
    assert checked
    for name in checked:
        assert getattr(ours, name) == getattr(theirs, family.renamed.get(name, name)), name
    assert not family.fixed.get("type_vocab_size")


@pytest.mark.parametrize("model_type", KINDS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5, "n_heads": 5}, "num_attention_heads 5"),
        ({"max_position_embeddings": 0}, "max_position_embeddings 0"),
        ({"hidden_act": "sine", "activation": "sine"}, "sine"),
        ({"vocab_size": VOCAB_SIZE + 1}, "misshapen"),
    ],
    ids=str,
)
def test_refusals(tmp_path: Path, model_type: str, changes: dict[str, Any], words: str) -> None:
    save_encoder(tmp_path, model_type)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(CheckpointError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in caught.value.message


LEFT_OVERS = {
    "roberta": ["roberta.pooler.dense.weight", "roberta.embeddings.position_ids", "lm_head.dense.bias"],
    "xlm-roberta": ["roberta.pooler.dense.bias", "lm_head.bias"],
    "electra": ["discriminator_predictions.dense.weight", "generator_predictions.dense.bias", "generator_lm_head.bias"],
    "albert": ["predictions.bias", "sop_classifier.classifier.weight", "albert.embeddings.position_ids"],
    "distilbert": ["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"],
}


@pytest.mark.parametrize("model_type", LEFT_OVERS)
def test_left_overs_of_pretraining_are_ignored_and_no_others(tmp_path: Path, model_type: str) -> None:
    theirs = save_encoder(tmp_path, model_type)
    rewrite_weights(tmp_path, lambda tensors: tensors.update({n: torch.ones(2) for n in LEFT_OVERS[model_type]}))
    batch = sequences(0, longest=4)
    assert worst(scored(load(tmp_path), batch), oracle(theirs, batch)) <= TOLERANCE
    rewrite_weights(tmp_path, lambda tensors: tensors.update({"classifier.stray.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"left over: classifier\.stray\.weight"):
        load(tmp_path)


def test_a_trunk_without_its_head_is_no_classifier(tmp_path: Path) -> None:
    save_encoder(tmp_path, "roberta")
    rewrite_weights(tmp_path, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("classifier")])
    with pytest.raises(CheckpointError, match=r"classifier\.out_proj\.weight"):
        load(tmp_path)


# From here on: each feature broken once, and seen.


def broken_score(folder: Path, model_type: str, **config: Any) -> float:
    """How far our (broken) score is from transformers'."""
    theirs = save_encoder(folder, model_type, **config)
    batch = sequences(getattr(theirs.config, "type_vocab_size", 0))
    return worst(scored(load(folder), batch), oracle(theirs, batch))


def _from_zero(pad_token_id: int, batch: PackedBatch) -> Tensor:
    return batch.position_ids


def _from_pad(pad_token_id: int, batch: PackedBatch) -> Tensor:
    return batch.position_ids + pad_token_id


def _pad_tokens_counted(pad_token_id: int, batch: PackedBatch) -> Tensor:
    return batch.position_ids + pad_token_id + 1


def _running_on(pad_token_id: int, batch: PackedBatch) -> Tensor:
    return torch.arange(batch.num_tokens) % USABLE + pad_token_id + 1


@pytest.mark.parametrize("model_type", AFTER_PAD)
@pytest.mark.parametrize("positions", [_from_zero, _from_pad, _pad_tokens_counted, _running_on])
def test_bites_on_wrong_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, positions: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(bert, "positions_after", positions)
    assert broken_score(tmp_path, model_type) > BITES


@pytest.mark.parametrize("model_type", ["electra", "albert", "distilbert"])
@pytest.mark.parametrize("sinusoidal", [False, True])
def test_bites_on_shifted_positions(tmp_path: Path, model_type: str, sinusoidal: bool) -> None:
    theirs = save_encoder(tmp_path, model_type, sinusoidal_pos_embds=sinusoidal)
    batch = sequences(0)
    packed = pack(batch)
    shifted = replace(packed, position_ids=(packed.position_ids + 1) % USABLE)
    assert worst(scored(load(tmp_path), shifted), oracle(theirs, batch)) > BITES


@pytest.mark.parametrize("model_type", ["electra", "albert", "roberta"])
def test_bites_on_lost_token_types(tmp_path: Path, model_type: str) -> None:
    theirs = save_encoder(tmp_path, model_type, type_vocab_size=2)
    batch = sequences(2)
    untyped = pack([Sequence(sequence.token_ids) for sequence in batch])
    assert worst(scored(load(tmp_path), untyped), oracle(theirs, batch)) > BITES


@pytest.mark.parametrize(
    ("model_type", "act"), [("roberta", "gelu"), ("electra", "tanh"), ("albert", "relu"), ("distilbert", "gelu")]
)
def test_bites_on_a_wrong_activation_in_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, act: str
) -> None:
    family = bert.FAMILIES[model_type]
    monkeypatch.setitem(bert.FAMILIES, model_type, replace(family, head=(family.head[0], act, family.head[2])))
    assert broken_score(tmp_path, model_type) > BITES


@pytest.mark.parametrize("model_type", ["roberta", "electra", "albert", "distilbert"])
def test_bites_on_a_wrong_activation_in_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    family = bert.FAMILIES[model_type]
    monkeypatch.setitem(bert.FAMILIES, model_type, replace(family, fixed={**family.fixed, "hidden_act": "relu"}))
    assert broken_score(tmp_path, model_type) > BITES


def test_tolerance_tells_one_gelu_from_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ by 5e-4 at most: ALBERT's is the tanh approximation, the others' is exact."""
    family = bert.FAMILIES["albert"]
    monkeypatch.setitem(bert.FAMILIES, "albert", replace(family, fixed={**family.fixed, "hidden_act": "gelu"}))
    assert broken_score(tmp_path, "albert") > 2 * TOLERANCE


@pytest.mark.parametrize("order", [(0,) * 6, (0, 1) * 3, (2, 3, 2, 3, 0, 1), (0, 1, 2, 3, 2, 3), (1, 0, 1, 0, 3, 2)])
def test_bites_on_layers_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    shape = {"num_hidden_layers": 3, "num_hidden_groups": 2, "inner_group_num": 2}
    assert broken_score(tmp_path, "albert", **shape) <= TOLERANCE
    assert bert.BertConfig(60, 36, 3, 4, 60, 20, num_hidden_groups=2, inner_group_num=2).layer_order == (
        *(0, 1, 0, 1),
        *(2, 3),
    )
    monkeypatch.setattr(bert.BertConfig, "layer_order", property(lambda config: order))
    assert broken_score(tmp_path, "albert", **shape) > BITES


@pytest.mark.parametrize("model_type", ["roberta", "electra", "albert", "distilbert"])
@pytest.mark.parametrize("broken", [leaking, wrongly_scaled])
def test_bites_on_wrong_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, broken: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(Layer, "of", lambda *_: None)  # a layer in one call has its attention to itself
    monkeypatch.setattr(bert, "attention", broken)
    assert broken_score(tmp_path, model_type) > BITES
