"""Architectures that are not native, through transformers: right alone, packed and reordered, or refused."""

import json
import logging
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from assay import Classifier
from assay.engine.runner import ModelRunner, form
from assay.errors import CheckpointError, InternalError
from assay.model import fallback
from assay.model.batch import pack
from assay.model.reference import UNSUPPORTED, classifiers, supported
from assay.model.registry import ARCHITECTURES, LoadedModel, load_model
from assay.sequence import Sequence
from tests.tiny import bert_vocab, randomize, rewrite_weights, save_bert_tokenizer

TOLERANCE = 1e-4
VOCAB = len(bert_vocab())
LENGTHS = (3, 4, 40, 5, 5, 9, 5, 40, 34, 4, 3)

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_POSITIONS = {"max_position_embeddings": 64}
# model_type → what makes it tiny, and the longest sequence that it then reads.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (_GPT, 64),  # no pad token: transformers refuses two sequences in one call
    "gpt_neo": (
        _POSITIONS
        | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 6}
        | {"attention_types": [[["global", "local"], 1]]},
        64,
    ),
    "openai-gpt": (_GPT, 64),  # accepts token types, and would look them up among the words
    "opt": (_SIZES | _POSITIONS | {"ffn_dim": 48, "word_embed_proj_dim": 32}, 64),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, 8192),  # no positions at all
    "falcon": (_SIZES | _POSITIONS, 64),
    "mixtral": (_SIZES | _POSITIONS | {"num_key_value_heads": 2, "num_local_experts": 4}, 64),
    "mpnet": (_SIZES | _POSITIONS, 62),  # RoBERTa's positions
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, 8192),
    "funnel": ({"d_model": 32, "block_sizes": [1, 1], "n_head": 4, "d_head": 8, "d_inner": 48}, 8192),
    "fnet": (_SIZES | _POSITIONS, 64),  # takes no attention mask
    "bart": (_BART | _POSITIONS, 64),
    "t5": (_T5 | {"n_positions": 64}, 64),
    "longformer": (_SIZES | _POSITIONS | {"attention_window": 4, "pad_token_id": 1}, 62),  # pads within its trunk
    "big_bird": (_SIZES | _POSITIONS | {"block_size": 4, "num_random_blocks": 1}, 64),  # switches by length
    "deberta": (_SIZES | _POSITIONS, 64),
}


@pytest.fixture(autouse=True)
def _quiet_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers_logging.disable_progress_bar()


def save(folder: Path, model_type: str, num_labels: int = 3, **changes: Any) -> PreTrainedModel:
    settings = {"vocab_size": VOCAB, "num_labels": num_labels} | MODELS[model_type][0] | changes
    config = AutoConfig.for_model(model_type, **settings)
    model: PreTrainedModel = randomize(AutoModelForSequenceClassification.from_config(config), seed=len(model_type))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_bert_tokenizer(folder)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Set fields of config.json; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def random_sequences(model: PreTrainedModel, max_positions: int, with_types: bool) -> list[Sequence]:
    """Random ids of awkward lengths. Encoder-decoders get their end-of-text token, once or twice."""
    rng = random.Random(7)
    special = [getattr(model.config, name, None) for name in ("eos_token_id", "pad_token_id")]
    eos = special[0] if model.config.is_encoder_decoder else None
    words = [i for i in range(VOCAB) if i not in special]
    sequences = []
    for i, length in enumerate((*LENGTHS, min(max_positions, 64))):
        ids = rng.choices(words, k=length)
        if eos is not None:
            ids[-1] = eos
            ids[0] = eos if i % 3 == 0 else ids[0]
        types = [0] * (length - 1) + [2] if with_types else None
        sequences.append(Sequence(ids, types))
    return sequences


def oracle(model: PreTrainedModel, sequence: Sequence) -> Tensor:
    """transformers on one sequence, alone and unpadded."""
    inputs = {"input_ids": torch.tensor([sequence.token_ids])}
    if model.config.model_type in ("xlnet", "funnel"):  # None and zeros differ here; their tokenizers never give None
        inputs["token_type_ids"] = torch.tensor([sequence.token_type_ids or [0] * sequence.num_tokens])
    if model.config.model_type == "big_bird":  # or it would remember the first short text
        model.base_model.set_attention_type("block_sparse")
    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits[0].float()
    return logits


def forward(model: LoadedModel, sequences: list[Sequence]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.module(pack(sequences))
    return logits


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("model_type", MODELS)
def test_alone_packed_reordered_and_transformers_agree(tmp_path: Path, model_type: str) -> None:
    assert classifiers()[model_type] not in ARCHITECTURES, "native now: choose another"
    theirs = save(tmp_path, model_type)
    ours = load_model(tmp_path)
    assert isinstance(ours.module, fallback.TransformersClassifier)
    assert (ours.max_positions, ours.vocab_size) == (MODELS[model_type][1], VOCAB)
    assert len(ours.labels) == 3
    assert ours.module.together

    sequences = random_sequences(theirs, ours.max_positions, with_types=model_type in ("xlnet", "funnel"))
    by_length = sorted(sequences, key=lambda sequence: sequence.num_tokens)
    expected = torch.stack([oracle(theirs, sequence) for sequence in sequences])
    alone = torch.cat([forward(ours, [sequence]) for sequence in sequences])
    reordered = forward(ours, by_length)[[by_length.index(sequence) for sequence in sequences]]

    assert 0.1 < float(expected.std()) < 20, "logits too small or too large for the tolerance to mean anything"
    assert forward(ours, sequences).dtype == torch.float32
    assert worst(forward(ours, sequences), expected) <= TOLERANCE
    assert worst(alone, expected) <= TOLERANCE
    assert worst(reordered, expected) <= TOLERANCE


@pytest.mark.parametrize("pad_token_id", [None, 5])
def test_decoders_pool_the_true_last_token_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pad_token_id: int | None
) -> None:
    theirs = save(tmp_path, "gpt2", pad_token_id=pad_token_id)
    ours = load_model(tmp_path)
    ends_in_pad = [Sequence([7, 8, 9, 5]), Sequence([7, 8, 5, 5]), Sequence([7, 8, 9, 9])]
    calls: list[int] = []
    call = fallback.TransformersClassifier.call
    monkeypatch.setattr(
        fallback.TransformersClassifier,
        "call",
        lambda self, ids, types: calls.append(len(ids)) or call(self, ids, types),
    )
    got = forward(ours, ends_in_pad)
    assert calls == [3]
    theirs.config.pad_token_id = None  # then transformers, too, takes the last one
    assert worst(got, torch.stack([oracle(theirs, sequence) for sequence in ends_in_pad])) <= TOLERANCE


def test_text_to_prediction_on_the_same_engine(tmp_path: Path) -> None:
    theirs = save(tmp_path, "gpt2", id2label={0: "bad", 1: "fair", 2: "good"})
    with Classifier(str(tmp_path)) as classifier:
        texts = ["the coffee was great", "so", "the update broke everything!"]
        predictions = classifier.classify([*texts, [4, 5, 6]])
    assert classifier.labels == ("bad", "fair", "good")
    for prediction in predictions:
        assert prediction.label == classifier.labels[prediction.logits.index(max(prediction.logits))]
        assert sum(prediction.probs) == pytest.approx(1, abs=1e-5)
    assert torch.tensor(predictions[-1].logits) == pytest.approx(oracle(theirs, Sequence([4, 5, 6])), abs=TOLERANCE)


def test_half_precision(tmp_path: Path) -> None:
    theirs = save(tmp_path, "gpt2")
    ours = load_model(tmp_path, dtype="bfloat16")
    assert ours.dtype == torch.bfloat16
    sequences = random_sequences(theirs, 64, with_types=False)
    expected = torch.stack([oracle(theirs, sequence) for sequence in sequences])
    assert TOLERANCE < worst(forward(ours, sequences), expected) < 0.15


def test_an_input_that_the_model_cannot_read_is_an_error_for_it_alone(tmp_path: Path) -> None:
    """BART pools at the end-of-text token: without one there is no score, and the neighbours keep theirs."""
    theirs = save(tmp_path, "bart")
    ours = load_model(tmp_path)
    eos = theirs.config.eos_token_id
    good, bad = Sequence([5, 6, 7, eos]), Sequence([5, 6, 7, 8])
    batch = form([bad, good])
    answers = dict(zip(map(id, batch.sequences), ModelRunner(ours).run(batch), strict=True))
    assert isinstance(answers[id(bad)], InternalError)
    assert torch.tensor(answers[id(good)].logits) == pytest.approx(oracle(theirs, good), abs=TOLERANCE)  # type: ignore[union-attr]


class _Mixing(nn.Module):
    """Lets every row of a call see the first, as a careless model might."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + 0.5 * hidden[:1]


def _after_embeddings(monkeypatch: pytest.MonkeyPatch, extra: nn.Module) -> None:
    """Models that load from now on run `extra` after their word embeddings."""
    load_reference = fallback.load_reference

    def load(*arguments: Any) -> Any:
        model = load_reference(*arguments)
        model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: extra(out))
        return model

    monkeypatch.setattr(fallback, "load_reference", load)


def test_a_model_whose_rows_depend_on_each_other_runs_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, "gpt2")
    _after_embeddings(monkeypatch, _Mixing())
    with caplog.at_level(logging.WARNING, "assay"):
        ours = load_model(tmp_path)
    assert isinstance(ours.module, fallback.TransformersClassifier)
    assert not ours.module.together
    assert "each runs alone" in caplog.text
    sequences = [Sequence([4, 5, 6]), Sequence([7, 8, 9]), Sequence([4, 5, 6, 7])]
    alone = torch.cat([forward(ours, [sequence]) for sequence in sequences])
    assert worst(forward(ours, sequences), alone) == 0
    ours.module.together = True
    assert worst(forward(ours, sequences), alone) > 1e-2, "the rows do not depend on each other: no test"


# --- refusals ---


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert "\n" not in error.value.message
    return error.value.message


def test_a_model_that_answers_differently_each_time(tmp_path: Path) -> None:
    """Reformer hashes at random."""
    settings = {
        "attn_layers": ["lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "lsh_attn_chunk_length": 8,
        "feed_forward_size": 48,
        "attention_head_size": 8,
        "num_buckets": 4,
        "is_decoder": False,
    }
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": VOCAB, "num_labels": 3} | _POSITIONS
    config = AutoConfig.for_model("reformer", **settings, **sizes)
    randomize(AutoModelForSequenceClassification.from_config(config), 0).save_pretrained(tmp_path)
    assert "not deterministic" in refusal(tmp_path)


def test_broken_weights(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    rewrite_weights(tmp_path, lambda tensors: tensors["score.weight"].fill_(float("nan")))
    assert "NaN" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "names"), [("gpt2", ["score.weight"]), ("mpnet", ["classifier.out_proj.weight"]), ("bart", ["x"])]
)
def test_a_missing_tensor_is_named_and_never_random(tmp_path: Path, model_type: str, names: list[str]) -> None:
    save(tmp_path, model_type)
    missing = names if names != ["x"] else ["classification_head.dense.bias", "model.decoder.layers.1.fc1.weight"]
    rewrite_weights(tmp_path, lambda tensors: [tensors.pop(name) for name in missing] and None)
    message = refusal(tmp_path)
    assert all(f"missing: {name}" in message for name in missing)


def test_a_trunk_without_a_head(tmp_path: Path) -> None:
    save(tmp_path, "gpt2").base_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2Model"]
    assert "missing: score.weight" in refusal(tmp_path)


def test_a_left_over_tensor_is_named_and_known_ones_are_ignored(tmp_path: Path) -> None:
    theirs = save(tmp_path, "gpt2")
    known = ("lm_head.weight", "transformer.h.0.attn.masked_bias", "transformer.h.0.attn.bias", "position_ids")
    rewrite_weights(tmp_path, lambda tensors: tensors.update({name: torch.zeros(2) for name in known}))
    sequence = Sequence([4, 5, 6])
    assert worst(forward(load_model(tmp_path), [sequence])[0], oracle(theirs, sequence)) <= TOLERANCE
    rewrite_weights(tmp_path, lambda tensors: tensors.update({"transformer.h.7.ln_1.weight": torch.zeros(2)}))
    assert "left over: transformer.h.7.ln_1.weight" in refusal(tmp_path)


def test_a_misshapen_tensor(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    rewrite_weights(tmp_path, lambda tensors: tensors.update({"transformer.ln_f.weight": torch.zeros(2)}))
    assert "misshapen: transformer.ln_f.weight is [2], should be [32]" in refusal(tmp_path)


def test_the_head_says_how_many_labels_there_are(tmp_path: Path) -> None:
    theirs = save(tmp_path, "gpt2", num_labels=7)
    edit_config(tmp_path, id2label=None, label2id=None)
    ours = load_model(tmp_path)
    assert ours.labels == tuple(f"Class_{i}" for i in range(7))
    sequence = Sequence([4, 5, 6])
    assert worst(forward(ours, [sequence])[0], oracle(theirs, sequence)) <= TOLERANCE
    edit_config(tmp_path, id2label={"0": "bad", "1": "good"})
    assert "id2label" in refusal(tmp_path)


@pytest.mark.parametrize(
    "named",
    ["GPT2LMHeadModel", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering", "LlamaForTokenClassification"],
)
def test_what_is_no_sequence_classifier(tmp_path: Path, named: str) -> None:
    save(tmp_path, "gpt2")
    edit_config(tmp_path, architectures=[named])
    message = refusal(tmp_path)
    assert named in message
    assert "no sequence classifier" in message


def test_a_name_that_does_not_fit_its_model_type(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    edit_config(tmp_path, architectures=["GPT2ForSequenceClassificationWithGate"])
    assert "GPT2ForSequenceClassificationWithGate" in refusal(tmp_path)


@pytest.mark.parametrize("model_type", sorted(UNSUPPORTED))
def test_models_that_need_more_than_text(tmp_path: Path, model_type: str) -> None:
    edit_config_from_nothing = {"model_type": model_type, "architectures": [classifiers()[model_type]]}
    (tmp_path / "config.json").write_text(json.dumps(edit_config_from_nothing))
    assert UNSUPPORTED[model_type] in refusal(tmp_path)


def test_quantized_weights(tmp_path: Path) -> None:
    save(tmp_path, "gpt2")
    edit_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in refusal(tmp_path)


@pytest.mark.parametrize("known", [False, True], ids=["a type of its own", "a type that transformers knows"])
def test_code_from_a_checkpoint_is_never_run(tmp_path: Path, known: bool) -> None:
    theirs = save(tmp_path, "gpt2")
    marker = tmp_path / "it_ran"
    (tmp_path / "modeling_evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\nEvilConfig = Evil\n"
    )
    code = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModel": "modeling_evil.Evil",
        "AutoModelForSequenceClassification": "modeling_evil.Evil",
    }
    edit_config(tmp_path, auto_map=code)
    if known:  # transformers' own code fills every tensor, so it is what runs
        sequence = Sequence([4, 5, 6])
        assert worst(forward(load_model(tmp_path), [sequence])[0], oracle(theirs, sequence)) <= TOLERANCE
    else:
        edit_config(tmp_path, model_type="evil", architectures=["EvilForSequenceClassification"])
        assert "auto_map" in refusal(tmp_path)
    assert not marker.exists()


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "gpt2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(tmp_path)
    assert "pip install 'assay[transformers]'" in message
    assert "BertForSequenceClassification" in message
    assert {entry.architecture for entry in supported()} == set(ARCHITECTURES)


def test_what_is_listed() -> None:
    listed = {entry.architecture: entry for entry in supported()}
    assert len(listed) == len(supported())
    assert listed["BertForSequenceClassification"].native
    assert listed["InternLM2ForRewardModel"].kind == "reward model"
    assert listed["GPT2ForSequenceClassification"].family == "gpt2"
    assert not listed["GPT2ForSequenceClassification"].native
    assert "TapasForSequenceClassification" not in listed
