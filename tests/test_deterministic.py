"""`deterministic`: the same bits for a sequence's logits and probabilities alone, packed, reordered, in any batch."""

import random
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from assay import Classifier
from assay.config import BUNDLED_MODEL, Quantization
from assay.engine.runner import ModelRunner, form
from assay.model import compiled
from assay.model.company import Alone, Apart
from assay.model.kernels import has_int8, has_onednn
from assay.model.registry import load_model
from assay.sequence import Prediction, Sequence
from tests.families import NATIVE, sequences_for
from tests.tiny import randomize, save_bert_tokenizer

pytestmark = pytest.mark.usefixtures("vectors")

Scored = list[tuple[list[float], list[float]]]


def scored(runner: ModelRunner, sequences: list[Sequence]) -> Scored:
    """(logits, probs) in the order given."""
    for sequence in sequences:
        sequence.activation = "sigmoid"
    batch = form(sequences)
    answers = dict(zip(map(id, batch.sequences), runner.run(batch), strict=True))
    rows = []
    for sequence in sequences:
        answer = answers[id(sequence)]
        assert isinstance(answer, Prediction)
        rows.append((answer.logits, answer.probs))
    return rows


def assert_same_bits(runner: ModelRunner, sequences: list[Sequence], rounds: int = 6) -> None:
    alone = [scored(runner, [sequence])[0] for sequence in sequences]
    rng = random.Random(0)
    for _ in range(rounds):
        chosen = rng.sample(range(len(sequences)), rng.randint(2, len(sequences)))
        packed = scored(runner, [sequences[i] for i in chosen])
        assert packed == [alone[i] for i in chosen]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("name", NATIVE)
def test_every_family(name: str, quantization: Quantization, tmp_path: Path) -> None:
    if quantization == "int8" and not has_int8(torch.device("cpu")):
        pytest.skip("no exact product of 8-bit integers here")
    NATIVE[name].save(tmp_path, num_labels=5)
    model = load_model(tmp_path, dtype="float32", quantization=quantization, deterministic=True)
    alike = has_onednn(torch.device("cpu")) and (quantization == "none" or compiled.library() is not None)
    assert isinstance(model.module, Apart if alike else Alone)
    assert_same_bits(ModelRunner(model), sequences_for(NATIVE[name]))


def test_what_has_no_such_kernels_runs_one_by_one(tmp_path: Path) -> None:
    NATIVE["bert"].save(tmp_path / "half")
    half = load_model(tmp_path / "half", dtype="float16", deterministic=True)
    assert isinstance(half.module, Alone)
    assert_same_bits(ModelRunner(half), sequences_for(NATIVE["bert"], count=8), rounds=2)
    config = GPT2Config(vocab_size=90, n_positions=64, n_embd=36, n_layer=2, n_head=4, num_labels=3, pad_token_id=0)
    randomize(GPT2ForSequenceClassification(config), 0).save_pretrained(tmp_path / "gpt2")
    save_bert_tokenizer(tmp_path / "gpt2")
    foreign = load_model(tmp_path / "gpt2", deterministic=True)
    assert isinstance(foreign.module, Alone)
    rng = random.Random(0)
    texts = [Sequence(rng.choices(range(1, 90), k=n)) for n in (3, 9, 9, 20)]
    assert_same_bits(ModelRunner(foreign), texts, rounds=2)


def test_real_texts_in_batches_of_every_size() -> None:
    """Of real size in width, so that products are cut into the blocks that real ones are."""
    texts = [("Loved the new café—coffee was great. " * (1 + i % 7))[: 12 + 9 * i] for i in range(40)]
    with Classifier(str(BUNDLED_MODEL), deterministic=True) as one:
        alone = [one.classify(text)[0] for text in texts]
    with Classifier(str(BUNDLED_MODEL), deterministic=True, max_batch_tokens=700) as other:
        together = other.classify(texts[::-1])[::-1]
    assert [p.logits for p in alone] == [p.logits for p in together]
    assert [p.probs for p in alone] == [p.probs for p in together]
