"""A calibration at work: probabilities corrected, raw logits left, flags by label; windows and several models too."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from tokenizers import Tokenizer

from assay import Classifier, Prediction
from assay.config import EngineConfig, ServerConfig
from assay.engine.runner import ModelRunner, form
from assay.engine.windows import Combination
from assay.errors import ConfigError
from assay.sequence import Sequence, Span
from assay.server.app import build_app
from assay.server.service import Service
from tests.calibrations import INTERCEPTS, SLOPES, written
from tests.tiny import WORDS, bert_logits, save_bert

on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")

LABELS = ("bad", "fair", "good")
THRESHOLDS = {"bad": 0.3, "fair": 0.9, "good": 0.5}
TEMPERATURE = 2.5
TEXTS = [f"{a} {b}" for a in WORDS[:8] for b in WORDS[4:12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints `independent`, `exclusive` and `other`, with a calibration beside each of the first two."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed, problem in (
        ("independent", 1, "multi_label_classification"),
        ("exclusive", 1, "single_label_classification"),
        ("other", 2, "multi_label_classification"),
    ):
        save_bert(folder / name, seed=seed, id2label=dict(enumerate(LABELS)), problem_type=problem)
    written(folder / "independent.json", folder / "independent", LABELS)
    written(folder / "exclusive.json", folder / "exclusive", LABELS, "temperature", TEMPERATURE)
    return folder


@pytest.fixture(scope="module")
def logits(folder: Path) -> torch.Tensor:
    """Of TEXTS, as transformers has them: [texts, labels]. The checkpoints' weights are the same."""
    model = save_bert(folder / "again", seed=1)
    tokenizer = Tokenizer.from_file(str(folder / "independent" / "tokenizer.json"))
    return torch.stack([bert_logits(model, tokenizer.encode(text).ids) for text in TEXTS])


@pytest.fixture(scope="module")
def corrected(logits: torch.Tensor) -> torch.Tensor:
    return logits * torch.tensor(SLOPES) + torch.tensor(INTERCEPTS)


@pytest.fixture(scope="module")
def independent(folder: Path) -> Iterator[Classifier]:
    with Classifier(str(folder / "independent"), calibration=str(folder / "independent.json")) as classifier:
        yield classifier


@pytest.fixture(scope="module")
def exclusive(folder: Path) -> Iterator[Classifier]:
    with Classifier(str(folder / "exclusive"), calibration=str(folder / "exclusive.json")) as classifier:
        yield classifier


def close(found: list[list[float]], expected: torch.Tensor) -> bool:
    return bool((torch.tensor(found) - expected).abs().max() < 2e-5)


# --- the library ---


def test_probabilities_of_independent_labels(
    independent: Classifier, logits: torch.Tensor, corrected: torch.Tensor
) -> None:
    predictions = independent.classify(TEXTS)
    assert close([one.probs for one in predictions], corrected.sigmoid())
    assert close([one.logits for one in predictions], logits)
    assert close([one.calibrated or [] for one in predictions], corrected)
    assert [one.label for one in predictions] == [LABELS[place] for place in corrected.argmax(-1).tolist()]
    assert (corrected.argmax(-1) != logits.argmax(-1)).any()  # the corrected one is another, of some texts


def test_probabilities_of_exclusive_labels(exclusive: Classifier, logits: torch.Tensor) -> None:
    predictions = exclusive.classify(TEXTS)
    assert close([one.probs for one in predictions], (logits / TEMPERATURE).softmax(-1))
    assert close([one.logits for one in predictions], logits)
    assert [one.label for one in predictions] == [LABELS[place] for place in logits.argmax(-1).tolist()]


def test_raw_scores_and_other_activations_stay_as_they_are(
    independent: Classifier, exclusive: Classifier, logits: torch.Tensor
) -> None:
    for classifier, activation, probs in (
        (independent, "none", logits),
        (exclusive, "none", logits),
        (independent, "softmax", logits.softmax(-1)),
        (exclusive, "sigmoid", logits.sigmoid()),
    ):
        predictions = classifier.classify(TEXTS, activation=activation)
        assert close([one.probs for one in predictions], probs)
        assert [one.label for one in predictions] == [LABELS[place] for place in logits.argmax(-1).tolist()]
        assert {one.calibrated for one in predictions} == {None}  # type: ignore[comparison-overlap]


def test_activations_may_differ_within_a_batch(independent: Classifier) -> None:
    runner = ModelRunner(independent.model)
    kinds: Any = ("sigmoid", "none", "softmax")
    answers = runner.run(form([Sequence([2, 7, 9, 3], activation=kind) for kind in kinds]))
    own, raw, other = (answer for answer in answers if isinstance(answer, Prediction))
    assert own.calibrated == pytest.approx(
        [slope * x + shift for slope, x, shift in zip(SLOPES, raw.logits, INTERCEPTS, strict=True)], abs=1e-5
    )
    assert own.probs == pytest.approx(torch.tensor(own.calibrated).sigmoid().tolist(), abs=1e-6)
    assert raw.probs == raw.logits == own.logits == other.logits
    assert other.probs == pytest.approx(torch.tensor(raw.logits).softmax(-1).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("other", {}, "was fitted on another model of these labels, tiny"),
        ("exclusive", {}, "fitted for sigmoid, and this model's scores go through softmax"),
        ("independent", {"activation": "softmax"}, "fitted for sigmoid, and this model's scores go through softmax"),
        ("independent", {"activation": "none"}, "this model's scores are raw"),
    ],
)
def test_another_models_calibration_is_refused(
    folder: Path, model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Classifier(str(folder / model), calibration=str(folder / "independent.json"), **settings)


def test_another_precision_of_the_same_weights_is_not(folder: Path, logits: torch.Tensor) -> None:
    settings = {"dtype": "bfloat16", "calibration": str(folder / "exclusive.json")}
    with Classifier(str(folder / "exclusive"), **settings) as classifier:
        (prediction,) = classifier.classify("great")
    assert prediction.probs == pytest.approx(
        (torch.tensor(prediction.logits) / TEMPERATURE).softmax(-1).tolist(), abs=1e-6
    )


# --- windows ---

ROWS = [[0.5, -1.0, 2.0], [-3.0, 4.0, 1.5], [0.0, 0.5, -6.0]]


def combine(how: Any, activation: Any, raw_rows: list[list[float]] = ROWS) -> tuple[Prediction, torch.Tensor]:
    """(of rows of logits as windows, their calibrated logits)."""
    raw = torch.tensor(raw_rows, dtype=torch.float64)
    calibrated = raw * torch.tensor(SLOPES) + torch.tensor(INTERCEPTS) if activation == "sigmoid" else raw / 4
    probs = calibrated.sigmoid() if activation == "sigmoid" else calibrated.softmax(-1)
    windows = [Sequence([1], span=Span(i, i + 9)) for i in range(len(raw))]
    rows = zip(probs.tolist(), raw_rows, calibrated.tolist(), strict=True)
    made = [Prediction("bad", prob, row, 5, calibrated=own) for prob, row, own in rows]
    return Combination(how, LABELS, activation, activation).of(windows, made), calibrated


def test_the_largest_of_independent_labels_is_of_calibrated_ones() -> None:
    prediction, calibrated = combine("max", "sigmoid")
    assert prediction.probs == pytest.approx(calibrated.max(0).values.sigmoid().tolist())
    assert prediction.calibrated == pytest.approx(calibrated.max(0).values.tolist())
    assert prediction.logits == [0.5, 4.0, 2.0]
    prediction, _ = combine("max", "sigmoid", [[3.0, 2.0, 0.0], [1.0, 1.0, 0.0]])
    assert prediction.label == "fair"  # of calibrated 0.5, 4.75, 0.25


def test_the_mean_is_of_calibrated_probabilities() -> None:
    prediction, calibrated = combine("mean", "sigmoid")
    assert prediction.probs == pytest.approx(calibrated.sigmoid().mean(0).tolist())
    assert prediction.calibrated == pytest.approx(calibrated.mean(0).tolist())
    assert prediction.logits == pytest.approx(torch.tensor(ROWS, dtype=torch.float64).mean(0).tolist())
    prediction, calibrated = combine("mean", "softmax")
    assert prediction.probs == pytest.approx(calibrated.softmax(-1).mean(0).tolist())


def test_noisy_or_is_of_calibrated_probabilities() -> None:
    prediction, calibrated = combine("noisy_or", "sigmoid")
    probs = 1 - (1 - calibrated.sigmoid()).prod(0)
    assert prediction.probs == pytest.approx(probs.tolist())
    assert prediction.calibrated == pytest.approx(torch.logit(probs).tolist())
    raw = 1 - (1 - torch.tensor(ROWS, dtype=torch.float64).sigmoid()).prod(0)
    assert prediction.logits == pytest.approx(torch.logit(raw).tolist())


def test_the_surest_window_stays_whole() -> None:
    prediction, calibrated = combine("max", "softmax")
    assert prediction.logits == ROWS[1]
    assert prediction.calibrated == calibrated[1].tolist()
    assert prediction.probs == pytest.approx(calibrated[1].softmax(-1).tolist())


@pytest.mark.parametrize("way", ["max", "mean", "noisy_or"])
def test_a_long_text_is_its_windows_calibrated(folder: Path, way: str) -> None:
    """Read in windows by a model without a calibration, the same by hand."""
    text = " ".join(WORDS[i * 7 % 11] for i in range(60))
    settings = {"max_model_len": 16}
    with Classifier(str(folder / "independent"), **settings) as plain:
        (best,) = plain.classify(text, window="max")
    with Classifier(str(folder / "independent"), calibration=str(folder / "independent.json"), **settings) as one:
        (prediction,) = one.classify(text, window=way)
        (raw,) = one.classify(text, window="max", activation="none")
    assert raw.probs == raw.logits == pytest.approx(best.logits, abs=1e-5)
    if way == "max":  # slopes are positive: the largest stays the largest
        corrected = torch.tensor(best.logits) * torch.tensor(SLOPES) + torch.tensor(INTERCEPTS)
        assert prediction.probs == pytest.approx(corrected.sigmoid().tolist(), abs=1e-5)
    else:
        assert all(0 < p < 1 for p in prediction.probs)
        assert prediction.calibrated is not None
        assert all(map(math.isfinite, prediction.calibrated))


# --- over HTTP: two models, of which one is calibrated ---


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    path = str(folder / "independent")
    configs = [
        EngineConfig(path, name="honest", calibration=str(folder / "independent.json")),
        EngineConfig(path, name="plain"),
    ]
    loaded: asyncio.Queue[Exception | None] = asyncio.Queue()
    app = build_app(Service(ServerConfig(), configs), loaded.put_nowait)
    async with app.router.lifespan_context(app):
        assert await asyncio.wait_for(loaded.get(), 30) is None
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@on_the_modules_loop
async def test_classify_answers_corrected_probabilities(
    client: httpx.AsyncClient, logits: torch.Tensor, corrected: torch.Tensor
) -> None:
    for model, expected in (("honest", corrected.sigmoid()), ("plain", logits.sigmoid())):
        data = (await ask(client, "/v1/classify", input=TEXTS, model=model))["data"]
        assert close([item["probs"] for item in data], expected)
        assert [item["label"] for item in data] == [LABELS[place] for place in expected.argmax(-1).tolist()]


@on_the_modules_loop
async def test_raw_logits_are_never_corrected(client: httpx.AsyncClient, logits: torch.Tensor) -> None:
    for model in ("honest", "plain"):
        body = {"input": TEXTS, "model": model, "use_activation": False}
        assert close([item["probs"] for item in (await ask(client, "/v1/classify", **body))["data"]], logits)
    native = await ask(client, "/v1/embeddings", input=TEXTS, model="honest")
    assert close([item["embedding"] for item in native["data"]], logits)


@on_the_modules_loop
async def test_moderations_flag_by_each_labels_threshold(
    client: httpx.AsyncClient, logits: torch.Tensor, corrected: torch.Tensor
) -> None:
    halves = dict.fromkeys(LABELS, 0.5)
    flags = {}
    for model, scores, cuts in (("honest", corrected, THRESHOLDS), ("plain", logits, halves)):
        results = (await ask(client, "/v1/moderations", input=TEXTS, model=model))["results"]
        expected = [
            {label: score >= cuts[label] for label, score in zip(LABELS, row, strict=True)}
            for row in scores.sigmoid().tolist()
        ]
        assert [result["categories"] for result in results] == expected
        assert [result["flagged"] for result in results] == [any(row.values()) for row in expected]
        assert close([list(result["category_scores"].values()) for result in results], scores.sigmoid())
        flags[model] = expected
    # What makes the difference: probabilities between a label's threshold and one half, of either side.
    probs = corrected.sigmoid()
    assert ((probs[:, 0] >= 0.3) & (probs[:, 0] < 0.5)).any()
    assert ((probs[:, 1] >= 0.5) & (probs[:, 1] < 0.9)).any()
    assert flags["honest"] != flags["plain"]


@pytest.mark.parametrize(("params", "cuts"), [({}, THRESHOLDS), ({"threshold": 0.7}, dict.fromkeys(LABELS, 0.7))])
@on_the_modules_loop
async def test_detectors_and_guardrails_take_the_callers_threshold_first(
    client: httpx.AsyncClient, corrected: torch.Tensor, params: dict[str, float], cuts: dict[str, float]
) -> None:
    found = await ask(client, "/api/v1/text/contents", contents=TEXTS, detector_params=params)
    blocked = 0
    for text, detections, row in zip(TEXTS, found, corrected.sigmoid().tolist(), strict=True):
        scores = dict(zip(LABELS, row, strict=True))
        flagged = {label for label, score in scores.items() if score >= cuts[label]}
        assert {detection["detection"] for detection in detections} == flagged
        body = {"texts": [text], "input_type": "request", "additional_provider_specific_params": params}
        verdict = await ask(client, "/beta/litellm_basic_guardrail_api", **body)
        assert verdict["action"] == ("BLOCKED" if flagged else "NONE")
        if flagged:
            worst = max(flagged, key=scores.__getitem__)
            assert verdict["blocked_reason"].startswith(f"{worst}: score ")
            assert f"at threshold {cuts[worst]:g}, in text 0" in verdict["blocked_reason"]
            blocked += 1
    assert 0 < blocked <= len(TEXTS)
