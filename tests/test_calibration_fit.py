"""What is fitted: the numbers of scikit-learn and scipy, and sense where data is small, one-sided or separable."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from assay.errors import RequestError
from assay.evaluation.fit import FEWEST, best_threshold, fit, fit_platt, fit_temperature
from assay.evaluation.truth import Task, Truth

LABELS = ("a", "b", "c", "d")


class Raw(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose inputs are its logits."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def fit(self, *_: object) -> "Raw":
        self.classes_ = np.arange(self.classes)
        return self

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0] > 0 if self.classes == 2 else logits.argmax(axis=1)

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits[:, 0] if self.classes == 2 else logits


def exclusive(rows: int, temperature: float, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are so many times too large, and labels drawn by what they should be."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(rows, labels)) * 2
    targets = np.array([rng.choice(labels, p=row) for row in softmax(logits, axis=1)])
    return logits * temperature, targets


def independent(rows: int, slope: float, intercept: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one label, and who has it, by the probability of the corrected logit."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=rows) * 3
    return logits, rng.random(rows) < expit(slope * logits + intercept)


def truth_of(targets: np.ndarray, task: Task = "multi", judged: tuple[int, ...] = (0, 1, 2, 3)) -> Truth:
    return Truth(task, targets, judged, np.arange(len(targets)), "", {})


# --- temperature ---


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_scipys(temperature: float) -> None:
    logits, targets = exclusive(400, temperature)

    def loss(logarithm: float) -> float:
        """Against a row that has another label, spread over all of those, beside the 401 others."""
        log_probs = log_softmax(logits / np.exp(logarithm), axis=1)
        true = log_probs[np.arange(400), targets]
        others = (log_probs.sum(axis=1) - true) / 3
        return float(-(401 * true + others).mean() / 402)

    expected = np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10}).x)
    assert fit_temperature(logits, targets) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_of_many_rows_the_temperature_is_scikit_learns(temperature: float) -> None:
    """It does not smooth; of 20,000 rows the one more does not count."""
    pytest.importorskip("sklearn", minversion="1.8")
    logits, targets = exclusive(20_000, temperature)
    theirs = CalibratedClassifierCV(FrozenEstimator(Raw(4).fit()), method="temperature", ensemble=False)
    inverse = theirs.fit(logits, targets).calibrated_classifiers_[0].calibrators[0].beta_
    assert fit_temperature(logits, targets) == pytest.approx(1 / inverse, rel=1e-3)
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_model_that_is_never_wrong_is_not_made_infinitely_sure(scale: float) -> None:
    targets = np.arange(40) % 4
    logits = np.eye(4)[targets] * scale
    probs = softmax(logits / fit_temperature(logits, targets), axis=1)
    assert probs.max(axis=1) == pytest.approx(41 / 42, rel=1e-6)


def test_scores_that_say_nothing_have_no_temperature() -> None:
    targets = np.arange(40) % 4
    for logits in (np.zeros((40, 4)), -np.eye(4)[targets]):
        with pytest.raises(RequestError, match="Is it the right column"):
            fit_temperature(logits, targets)


def test_a_fit_of_exclusive_labels() -> None:
    logits, targets = exclusive(3000, 3.0)
    fitted = fit(logits, truth_of(targets, "single"), LABELS)
    assert fitted.temperature == fit_temperature(logits, targets)
    assert [(one.label, one.slope, one.intercept, one.threshold) for one in fitted.labels] == [
        (label, 1.0, 0.0, None) for label in LABELS
    ]
    assert fitted.before.log_loss == pytest.approx(log_loss(targets, softmax(logits, axis=1)))
    assert fitted.after.log_loss == pytest.approx(log_loss(targets, softmax(logits / fitted.temperature, axis=1)))
    assert fitted.after.ece < fitted.before.ece / 3
    assert fitted.after.macro_f1 == fitted.before.macro_f1  # what is said first stays first


# --- Platt ---


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.3, -2.5), (2.0, 3.0)])
def test_platts_numbers_are_scikit_learns(slope: float, intercept: float) -> None:
    logits, having = independent(700, slope, intercept)
    theirs = CalibratedClassifierCV(FrozenEstimator(Raw(2).fit()), method="sigmoid", ensemble=False)
    calibrator = theirs.fit(logits[:, None], having.astype(int)).calibrated_classifiers_[0].calibrators[0]
    assert fit_platt(logits, having) == pytest.approx((-calibrator.a_, -calibrator.b_), rel=1e-4)


def test_platts_numbers_are_a_logistic_regressions() -> None:
    """Smoothed targets are rows with weights: each once with the label and once without."""
    logits, having = independent(300, 0.7, -1.0)
    yes, no = having.sum(), (~having).sum()
    wanted = np.where(having, (yes + 1) / (yes + 2), 1 / (no + 2))
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    twice = np.concatenate([logits, logits])[:, None]
    model.fit(twice, np.repeat([1, 0], 300), np.concatenate([wanted, 1 - wanted]))
    assert fit_platt(logits, having) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_separable_data_has_finite_numbers(scale: float) -> None:
    having = np.arange(60) < 15
    slope, intercept = fit_platt(np.where(having, 2.0, 1.0) * scale, having)
    assert expit(slope * 2 * scale + intercept) == pytest.approx(16 / 17)
    assert expit(slope * scale + intercept) == pytest.approx(1 / 47)


# --- thresholds ---


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_has_a_larger_f1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probs = np.round(rng.random(80), seed % 3 + 1)  # with ties
    having = rng.random(80) < probs * 0.4
    found = f1_score(having, probs >= best_threshold(probs, having))
    assert found == pytest.approx(max(f1_score(having, probs >= cut) for cut in np.unique(probs)))


def test_of_equal_thresholds_the_one_nearest_one_half() -> None:
    probs = np.array([0.9, 0.8, 0.45, 0.05])
    assert best_threshold(probs, np.array([True, True, False, False])) == pytest.approx(0.625)
    assert best_threshold(probs, np.array([True, True, True, True])) == pytest.approx(0.025)
    ends = np.array([True, False, False, True])  # one row, or all: F1 is 2/3
    assert best_threshold(np.array([0.9, 0.1, 0.05, 0.02]), ends) == pytest.approx(0.5)
    assert best_threshold(np.array([0.99, 0.97, 0.6, 0.5]), ends) == pytest.approx(0.25)


# --- labels that cannot be fitted ---


def test_a_fit_of_independent_labels() -> None:
    """One is fitted, one never occurs, one has too few rows, one has scores that fall with it."""
    logits, having = independent(500, 0.5, -1.0)
    columns = np.stack([logits, logits, logits, -logits], axis=1)
    few = np.arange(500) < FEWEST - 1
    truth = truth_of(np.stack([having, np.zeros(500, bool), few, having], axis=1))
    fitted = fit(columns, truth, LABELS)
    assert (fitted.labels[0].slope, fitted.labels[0].intercept) == fit_platt(logits, having)
    probs = expit(fitted.labels[0].slope * logits + fitted.labels[0].intercept)
    assert fitted.labels[0].threshold == best_threshold(probs, having)
    assert [(one.slope, one.intercept, one.threshold) for one in fitted.labels[1:]] == [(1.0, 0.0, None)] * 3
    assert [one.note for one in fitted.labels] == [
        None,
        "0 rows have it, and 10 are the least",
        "9 rows have it, and 10 are the least",
        "its scores do not rise with it",
    ]
    assert fitted.after.log_loss < fitted.before.log_loss
    assert fitted.after.macro_f1 >= fitted.before.macro_f1


def test_labels_that_the_data_does_not_speak_of() -> None:
    logits, having = independent(200, 0.5, -1.0)
    fitted = fit(logits[:, None], truth_of(having[:, None], judged=(2,)), LABELS)
    assert [one.note for one in fitted.labels] == [
        "the data does not speak of it" if place != 2 else None for place in range(4)
    ]
    assert fitted.labels[2].slope == fit_platt(logits, having)[0]


def test_the_same_score_everywhere_is_left_as_it_is() -> None:
    having = np.stack([np.arange(40) < 20, np.arange(40) < 20], axis=1)
    logits = np.stack([np.ones(40), having[:, 0] * 1.0], axis=1)
    fitted = fit(logits, truth_of(having, judged=(0, 1)), LABELS[:2])
    assert [one.note for one in fitted.labels] == ["its score is the same in all rows", None]


@pytest.mark.parametrize("task", ["single", "multi"])
def test_tiny_data_is_refused(task: Task) -> None:
    few = FEWEST - 1
    targets = np.arange(few) % 4 if task == "single" else np.eye(4, dtype=bool)[np.arange(few) % 4]
    with pytest.raises(RequestError, match="9 rows are too few"):
        fit(np.zeros((few, 4)), truth_of(targets, task), LABELS)


def test_data_that_fits_no_label_is_refused() -> None:
    targets = np.eye(4, dtype=bool)[np.arange(20) % 4]
    with pytest.raises(RequestError, match="a: 5 rows have it, and 10 are the least"):
        fit(np.zeros((20, 4)), truth_of(targets), LABELS)
