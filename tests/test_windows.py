"""Long texts in overlapping windows: where they are cut, how their scores become one, and what callers are told."""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay import Classifier, Prediction
from assay.config import EngineConfig
from assay.engine.truncation import window_places
from assay.engine.windows import Combination
from assay.errors import AssayError, ConfigError, ContextLengthError, RequestError
from assay.sequence import Sequence, Span, Window
from tests.e2e.process import in_process
from tests.tiny import save_bert

MAX_LEN = 16
WORDS = ["the", "coffee", "was", "great", "update", "broke", "everything", "loved", "new", "and", "so"]
LONG = " ".join(WORDS[i * 7 % 11] for i in range(60))  # one token a word
WAYS = ("max", "mean", "noisy_or")


# --- where a text is cut ---


@given(
    length=st.integers(1, 300),
    size=st.integers(4, 60),
    share=st.none() | st.floats(0, 0.5),
    first=st.none() | st.integers(0, 20),
)
def test_windows_cover_the_text_evenly(length: int, size: int, share: float | None, first: int | None) -> None:
    alone = [None, *[0] * length, None]
    owners = alone if first is None else [None, *[0] * first, None, *[1] * length, None]
    others = len(owners) - length
    room = size - others
    if room * 4 < size:
        with pytest.raises(RequestError, match="quarter"):
            list(window_places(owners, size, None))
        return
    overlap = None if share is None else int(room * share)
    windows = list(window_places(owners, size, overlap))
    text = [i for i, owner in enumerate(owners) if owner == (0 if first is None else 1)]
    assert sorted({place for _, own in windows for place in own}) == text
    assert {len(own) for _, own in windows} == {min(room, length)}
    for places, own in windows:
        assert own == list(range(own[0], own[-1] + 1))
        assert len(places) == len(own) + others <= size
        assert set(range(len(owners))) - set(text) <= set(places)
    least = room // 4 if overlap is None else overlap
    for (_, before), (_, after) in pairwise(windows):
        assert len(set(before) & set(after)) >= least
        assert before[0] < after[0]
    spare = max(0, length - room)
    assert len(windows) == math.ceil(spare / (room - least)) + 1  # no more than are needed


def test_overlap_has_a_limit() -> None:
    with pytest.raises(RequestError, match="at most half of the 10 tokens"):
        list(window_places([0] * 50, 10, 6))


# --- how scores become one ---

ROWS = [[0.5, -1.0, 2.0], [-3.0, 4.0, 1.5], [0.0, 0.5, -6.0]]


def predictions(rows: list[list[float]], labels: tuple[str, ...], activation: str) -> list[Prediction]:
    functions = {"softmax": lambda x: x.softmax(-1), "sigmoid": lambda x: x.sigmoid(), "none": lambda x: x}
    probs = functions[activation](torch.tensor(rows, dtype=torch.float64)).tolist()
    made = []
    for row, row_probs in zip(rows, probs, strict=True):
        made.append(Prediction(labels[max(range(len(row)), key=row.__getitem__)], row_probs, row, 5))
    return made


def combine(rows: list[list[float]], labels: tuple[str, ...], how: Any, activation: Any, own: Any = None) -> Prediction:
    windows = [Sequence([1], span=Span(i, i + 9)) for i in range(len(rows))]
    made = predictions(rows, labels, activation)
    return Combination(how, labels, activation, own or activation).of(windows, made)


def test_max_of_independent_labels_is_each_labels_largest() -> None:
    prediction = combine(ROWS, ("a", "b", "c"), "max", "sigmoid")
    assert prediction.logits == [0.5, 4.0, 2.0]
    assert prediction.probs == pytest.approx(torch.tensor([0.5, 4.0, 2.0]).sigmoid().tolist())
    assert prediction.label == "b"
    assert prediction.window == Window(1, 3, Span(1, 10))
    assert prediction.num_tokens == 15


def test_max_of_exclusive_labels_is_the_surest_window_whole() -> None:
    prediction = combine(ROWS, ("a", "b", "c"), "max", "softmax")
    surest = torch.tensor(ROWS).softmax(-1).max(-1).values.argmax().item()
    assert surest == 1
    assert prediction.logits == ROWS[surest]
    assert math.fsum(prediction.probs) == pytest.approx(1)
    assert prediction.window == Window(surest, 3, Span(1, 10))


def test_max_finds_the_needle_among_sure_harmless_windows() -> None:
    """Windows that are surely harmless must not outvote the one that is not."""
    rows = [[9.0, -9.0], [0.1, 0.9], [9.0, -9.0]]
    for labels in (("SAFE", "INJECTION"), ("LABEL_0", "LABEL_1"), ("not-toxic", "toxic")):
        prediction = combine(rows, labels, "max", "softmax")
        assert prediction.label == labels[1]
        assert prediction.logits == [0.1, 0.9]
        assert prediction.window == Window(1, 3, Span(1, 10))
    assert combine(rows, ("cat", "dog"), "max", "softmax").label == "cat"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_mean(activation: str) -> None:
    prediction = combine(ROWS, ("a", "b", "c"), "mean", activation)
    logits = torch.tensor(ROWS, dtype=torch.float64)
    probs = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[activation].mean(0)
    assert prediction.probs == pytest.approx(probs.tolist())
    assert prediction.logits == pytest.approx(logits.mean(0).tolist())
    assert prediction.label == "abc"[int(probs.argmax())]


def test_noisy_or_of_independent_labels() -> None:
    prediction = combine(ROWS, ("a", "b", "c"), "noisy_or", "sigmoid")
    probs = 1 - (1 - torch.tensor(ROWS, dtype=torch.float64).sigmoid()).prod(0)
    assert prediction.probs == pytest.approx(probs.tolist())
    assert prediction.logits == pytest.approx(torch.logit(probs).tolist())


def test_noisy_or_of_a_finding() -> None:
    rows = [[2.0, 1.0], [0.5, 0.1], [3.0, -1.0]]
    fine = torch.tensor(rows, dtype=torch.float64).softmax(-1)[:, 0].prod().item()
    prediction = combine(rows, ("safe", "unsafe"), "noisy_or", "softmax")
    assert prediction.probs == pytest.approx([fine, 1 - fine])
    assert torch.tensor(prediction.logits).softmax(-1).tolist() == pytest.approx([fine, 1 - fine])
    assert prediction.label == "unsafe"
    turned = combine([row[::-1] for row in rows], ("unsafe", "safe"), "noisy_or", "softmax")
    assert turned.probs == pytest.approx([1 - fine, fine])


@pytest.mark.parametrize("size", [40.0, 800.0, 1e5])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_extreme_logits_stay_finite(size: float, way: str, activation: str) -> None:
    for rows in ([[size, -size], [-size, size]], [[-size, size]] * 2, [[-size, -size], [-size, -size]]):
        prediction = combine(rows, ("safe", "unsafe"), way, activation)
        assert all(map(math.isfinite, prediction.probs + prediction.logits))
        assert all(0 <= p <= 1 for p in prediction.probs)


@pytest.mark.parametrize(
    ("labels", "activation", "message"),
    [(("a", "b"), "softmax", "exclude each other"), (("a", "b"), "none", "raw"), (("s", "safe", "x"), "softmax", "3")],
)
def test_noisy_or_needs_probabilities_of_findings(labels: tuple[str, ...], activation: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Combination("noisy_or", labels, activation, activation)


def test_raw_scores_of_exclusive_labels_come_from_the_same_window() -> None:
    raw = combine(ROWS, ("a", "b", "c"), "max", "none", own="softmax")
    assert raw.probs == raw.logits == ROWS[1]


# --- through the engine ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows")
    save_bert(folder, max_position_embeddings=MAX_LEN, problem_type="multi_label_classification")
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Iterator[Classifier]:
    with Classifier(str(folder)) as classifier:
        yield classifier


def ids_of(classifier: Classifier, text: str) -> list[int]:
    return classifier._engine._encoder._tokenizer.encode(text).ids


@pytest.mark.parametrize("way", WAYS)
def test_a_long_text_is_its_windows_combined(classifier: Classifier, way: str) -> None:
    """60 words, windows of 14 that share at least 3: their ids scored one by one, and combined by hand."""
    (prediction,) = classifier.classify(LONG, window=way)
    ids = ids_of(classifier, LONG)
    cls, words, sep = ids[:1], ids[1:-1], ids[-1:]
    assert len(words) == 60
    count = math.ceil((60 - 14) / (14 - 3)) + 1
    starts = [46 * i // (count - 1) for i in range(count)]
    alone = classifier.classify([cls + words[start : start + 14] + sep for start in starts])
    probs = torch.tensor([one.probs for one in alone], dtype=torch.float64)
    expected = {"max": probs.amax(0), "mean": probs.mean(0), "noisy_or": 1 - (1 - probs).prod(0)}[way]
    assert prediction.probs == pytest.approx(expected.tolist(), abs=1e-6)
    assert prediction.num_tokens == 16 * count
    assert prediction.window is not None
    assert prediction.window.count == count
    assert prediction.window.index == probs[:, classifier.labels.index(prediction.label)].argmax().item()
    span = prediction.window.span
    start = starts[prediction.window.index]
    assert LONG[span.start : span.end].split() == LONG.split()[start : start + 14]


def test_the_span_scored_alone_gives_the_label_its_score(classifier: Classifier) -> None:
    (prediction,) = classifier.classify(LONG, window="max", window_size=12, window_overlap=2)
    assert prediction.window is not None
    span = prediction.window.span
    (alone,) = classifier.classify(LONG[span.start : span.end])
    assert alone.num_tokens == 12
    assert max(prediction.probs) == pytest.approx(max(alone.probs), abs=1e-6)


def test_characters_are_code_points(classifier: Classifier) -> None:
    text = "😀 café … " * 12
    (prediction,) = classifier.classify(text, window="max")
    assert prediction.window is not None
    span = prediction.window.span
    assert 0 <= span.start < span.end <= len(text)
    (alone,) = classifier.classify(text[span.start : span.end])
    assert max(prediction.probs) == pytest.approx(max(alone.probs), abs=1e-6)


def test_a_text_that_fits_scores_as_ever(classifier: Classifier) -> None:
    plain = classifier.classify(["the coffee was great", "so new"])
    windowed = classifier.classify(["the coffee was great", "so new"], window="noisy_or")
    for one, other, text in zip(plain, windowed, ("the coffee was great", "so new"), strict=True):
        assert (one.label, one.num_tokens) == (other.label, other.num_tokens)
        assert one.probs == pytest.approx(other.probs, abs=1e-6)
        assert one.window is None
        assert other.window == Window(0, 1, Span(0, len(text)))


def test_long_and_short_texts_keep_their_places(classifier: Classifier) -> None:
    texts = ["so new", LONG, "the coffee was great", LONG + " broke", "and"]
    together = classifier.classify(texts, window="max")
    assert len(together) == 5
    for text, prediction in zip(texts, together, strict=True):
        (alone,) = classifier.classify(text, window="max")
        assert alone.probs == pytest.approx(prediction.probs, abs=1e-6)
        assert alone.window == prediction.window


def test_a_pairs_first_text_is_in_every_window(classifier: Classifier) -> None:
    (prediction,) = classifier.classify([("so great", LONG)], window="max")
    assert prediction.window is not None
    span = prediction.window.span
    (alone,) = classifier.classify([("so great", LONG[span.start : span.end])])
    assert alone.num_tokens == MAX_LEN
    assert max(prediction.probs) == pytest.approx(max(alone.probs), abs=1e-6)
    with pytest.raises(RequestError, match="quarter"):
        classifier.classify([("so great " * 6, LONG)], window="max")


def test_token_ids_are_scored_as_they_are(classifier: Classifier) -> None:
    with pytest.raises(ContextLengthError):
        classifier.classify([[5] * 40], window="max")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "median"}, "must be one of none, max, mean, noisy_or"),
        ({"window": "max", "truncate_prompt_tokens": -1}, "send one"),
        ({"window": "max", "window_size": 17}, "between 1 and the model's length, 16"),
        ({"window": "max", "window_size": 0}, "between 1"),
        ({"window": "max", "window_size": 2}, "quarter"),
        ({"window": "max", "window_overlap": -1}, "negative"),
        ({"window": "max", "window_overlap": 8}, "at most half"),
        ({"window_size": 8}, "need a window"),
        ({"window": "none", "window_overlap": 8}, "need a window"),
    ],
)
def test_refused(classifier: Classifier, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        classifier.classify(LONG, **options)


def test_the_operators_word_and_the_requests(folder: Path) -> None:
    with Classifier(str(folder), window="mean") as classifier:
        (by_default,) = classifier.classify(LONG)
        (asked,) = classifier.classify(LONG, window="mean")
        (cut,) = classifier.classify(LONG, truncate_prompt_tokens=-1)
        assert by_default.probs == asked.probs
        assert (by_default.window is not None, cut.window, cut.num_tokens) == (True, None, MAX_LEN)
        with pytest.raises(ContextLengthError):
            classifier.classify(LONG, window="none")
    with Classifier(str(folder), truncate_prompt_tokens=-1) as classifier:
        (windowed,) = classifier.classify(LONG, window="mean")
        assert windowed.probs == pytest.approx(asked.probs, abs=1e-6)
    with pytest.raises(ConfigError, match="choose one"):
        EngineConfig(window="max", truncate_prompt_tokens=-1)


def test_more_windows_than_the_queue_holds_are_refused(folder: Path) -> None:
    with Classifier(str(folder), max_queue_tokens=200) as classifier, pytest.raises(AssayError, match="queue"):
        classifier.classify(LONG * 20, window="max")


# --- what callers are told ---


async def test_the_answer_names_the_window(tmp_path: Path) -> None:
    save_bert(tmp_path, max_position_embeddings=MAX_LEN)
    async with in_process(tmp_path) as server:
        body = {"input": [LONG, "so new"], "window": "mean", "window_size": 10, "window_overlap": 4}
        answer = (await server.client.post("/v1/classify", json=body)).json()
        plain = (await server.client.post("/v1/classify", json={"input": "so new"})).json()
        refused = await server.client.post("/v1/classify", json={"input": LONG})
    first, second = answer["data"]
    assert first["window"]["count"] == math.ceil((60 - 8) / 4) + 1
    assert set(first["window"]) == {"index", "count", "start", "end"}
    assert second["window"] == {"index": 0, "count": 1, "start": 0, "end": 6}
    assert "window" not in plain["data"][0]
    assert answer["usage"]["prompt_tokens"] == 10 * first["window"]["count"] + 4
    assert refused.status_code == 400
    assert "window" in refused.json()["message"]


async def test_a_reranker_takes_the_best_passage(tmp_path: Path) -> None:
    save_bert(tmp_path, max_position_embeddings=MAX_LEN, num_labels=1)
    async with in_process(tmp_path) as server:
        body = {"query": "so", "documents": [LONG, "new coffee"], "window": "max"}
        results = (await server.client.post("/v1/rerank", json=body)).json()["results"]
        best = next(result for result in results if result["index"] == 0)
        passage = LONG[best["window"]["start"] : best["window"]["end"]]
        alone = await server.client.post("/v1/rerank", json={"query": "so", "documents": [passage]})
    assert best["relevance_score"] == pytest.approx(alone.json()["results"][0]["relevance_score"], abs=1e-6)
