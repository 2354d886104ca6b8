"""The bundled emotion classifier: its files, its answers to obvious sentences, its parity with transformers."""

import json
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from assay.classifier import Classifier
from assay.config import BUNDLED_MODEL

pytestmark = pytest.mark.skipif(
    not (BUNDLED_MODEL / "model.safetensors").is_file(), reason="the bundled model has not been trained yet"
)

# Sentence → the label that any reader would give it.
EXPECTED = {
    "Thank you so much for your help, I really appreciate it!": "gratitude",
    "I hate you, this makes me so angry!": "anger",
    "I'm terrified, I was so scared last night.": "fear",
    "I am so happy today, what a joyful day!": "joy",
    "I'm so sad, I can't stop crying.": "sadness",
    "Wow, I did not expect that at all!": "surprise",
    "Great job, you are an amazing artist.": "admiration",
    "How does this work? I am curious what happens next.": "curiosity",
    "I'm so sorry, I apologize for what I did.": "remorse",
    "Haha that is hilarious, lol!": "amusement",
    "I don't understand, this is so confusing.": "confusion",
    "I love you so much, my love.": "love",
    "The meeting is on Tuesday at the town hall.": "neutral",
    "I hope you get better soon.": "optimism",
    "That is disgusting, gross.": "disgust",
}
DOCUMENTS_TEXT = "Loved the new café—coffee was great."
LARGEST = 20_000_000  # bytes
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier() as classifier:
        yield classifier


@pytest.mark.parametrize("text", EXPECTED)
def test_obvious_sentences(classifier: Classifier, text: str) -> None:
    (prediction,) = classifier.classify(text)
    assert prediction.label == EXPECTED[text]


def test_the_documents_own_text_is_liked(classifier: Classifier) -> None:
    (prediction,) = classifier.classify(DOCUMENTS_TEXT)
    assert prediction.label in {"admiration", "joy", "love", "approval", "excitement"}


def test_labels_and_activation(classifier: Classifier) -> None:
    assert len(classifier.labels) == len(set(classifier.labels)) == 28
    assert {"neutral", *EXPECTED.values()} <= set(classifier.labels)
    assert classifier._engine.model.activation == "sigmoid"
    (prediction,) = classifier.classify(DOCUMENTS_TEXT)
    assert prediction.probs == pytest.approx(torch.tensor(prediction.logits).sigmoid().tolist(), abs=1e-6)


def test_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in BUNDLED_MODEL.iterdir()}
    assert sum(files.values()) <= LARGEST
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)


def test_weights_are_float16() -> None:
    with safe_open(BUNDLED_MODEL / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_config_says_what_it_is() -> None:
    config = json.loads((BUNDLED_MODEL / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["problem_type"] == "multi_label_classification"


def test_model_card_names_data_and_licences() -> None:
    card = (BUNDLED_MODEL / "README.md").read_text()
    for word in ("GoEmotions", "CC BY 4.0", "Apache", "F1"):
        assert word in card


def test_parity_with_transformers(classifier: Classifier) -> None:
    texts = [*EXPECTED, DOCUMENTS_TEXT, "", "a" * 300, "日本語 🙂 naïve CAFÉ"]
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    model = AutoModelForSequenceClassification.from_pretrained(BUNDLED_MODEL, dtype=torch.float32).eval()
    for text, prediction in zip(texts, classifier.classify(texts), strict=True):
        encoded = tokenizer(text, return_tensors="pt")
        assert prediction.num_tokens == encoded["input_ids"].shape[1]
        with torch.inference_mode():
            logits = model(**encoded).logits[0]
        assert (torch.tensor(prediction.logits) - logits).abs().max() <= TOLERANCE
