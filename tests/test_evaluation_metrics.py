"""Metrics against scikit-learn and scipy called directly, on the rows as they are and on a bootstrap's resamples."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from assay.evaluation.bootstrap import bootstrap, estimate, resamples_for, weights_of
from assay.evaluation.metrics import BINS, MultiLabel, SingleLabel
from assay.evaluation.mistakes import AnyJudged
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression

ROWS = 240
EXACT = {"rel": 1e-12, "abs": 1e-12}


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def single(labels: int = 5, seed: int = 0) -> SingleLabel:
    """Rounded, so that there are ties."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, labels, ROWS)
    logits = np.round(generator.normal(size=(ROWS, labels)), 1)
    logits[np.arange(ROWS), targets] += 0.7
    return SingleLabel(targets, softmax(logits))


def multi(labels: int = 6, seed: int = 0) -> MultiLabel:
    generator = np.random.default_rng(seed)
    targets = generator.random((ROWS, labels)) < 0.2
    probs = 1 / (1 + np.exp(-np.round(generator.normal(size=(ROWS, labels)) + 2 * targets - 1, 1)))
    return MultiLabel(targets, probs, np.linspace(0.3, 0.6, labels))


def regression(columns: int = 2, seed: int = 0) -> Regression:
    generator = np.random.default_rng(seed)
    targets = np.round(generator.normal(size=(ROWS, columns)), 1)
    return Regression(targets, targets + np.round(generator.normal(size=targets.shape), 1))


def reference_ece(probs: Floats, truth: Floats) -> float:
    """Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    for i in range(BINS):
        inside = (probs > i / BINS) & (probs <= (i + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(probs[inside].mean() - truth[inside].mean())
    return total


def reference_of_single(judged: SingleLabel, rows: Floats) -> dict[str, float]:
    targets, probs = judged.targets[rows], judged.probs[rows]
    labels = range(probs.shape[1])
    said = probs.argmax(axis=1)
    one_hot = targets[:, None] == np.arange(probs.shape[1])
    return {
        "accuracy": sk.accuracy_score(targets, said),
        "macro_f1": sk.f1_score(targets, said, average="macro", labels=np.unique(targets)),
        "micro_f1": sk.f1_score(targets, said, average="micro"),
        "roc_auc": np.mean([sk.roc_auc_score(one_hot[:, i], probs[:, i]) for i in labels]),
        "average_precision": np.mean([sk.average_precision_score(one_hot[:, i], probs[:, i]) for i in labels]),
        "log_loss": sk.log_loss(targets, probs, labels=list(labels)),
        "brier": sk.brier_score_loss(targets, probs if len(labels) > 2 else probs[:, 1], labels=list(labels)),
        "ece": reference_ece(probs.max(axis=1), said == targets),
    }


def reference_of_multi(judged: MultiLabel, rows: Floats) -> dict[str, float]:
    targets, probs = judged.targets[rows], judged.probs[rows]
    said = probs >= judged.thresholds
    columns = [(targets[:, i], probs[:, i]) for i in range(targets.shape[1])]
    several = len(columns) > 1  # one column is two classes to scikit-learn, and the second is meant
    return {
        "exact_match": sk.accuracy_score(targets, said),
        "macro_f1": sk.f1_score(targets, said, average="macro" if several else "binary"),
        "micro_f1": sk.f1_score(targets, said, average="micro" if several else "binary"),
        "roc_auc": sk.roc_auc_score(targets, probs, average="macro"),
        "average_precision": sk.average_precision_score(targets, probs, average="macro"),
        "log_loss": np.mean([sk.log_loss(truth, column) for truth, column in columns]),
        "brier": np.mean([sk.brier_score_loss(truth, column) for truth, column in columns]),
        "ece": np.mean([reference_ece(column, truth) for truth, column in columns]),
    }


def reference_of_regression(judged: Regression, rows: Floats) -> dict[str, float]:
    targets, scores = judged.targets[rows], judged.scores[rows]
    columns = list(zip(targets.T, scores.T, strict=True))
    return {
        "pearson": np.mean([pearsonr(*column).statistic for column in columns]),
        "spearman": np.mean([spearmanr(*column).statistic for column in columns]),
        "mae": sk.mean_absolute_error(targets, scores),
        "rmse": sk.root_mean_squared_error(targets, scores),
    }


def reference_of_pairs(judged: Preference, rows: Floats) -> dict[str, float]:
    chosen, rejected = judged.chosen[rows], judged.rejected[rows]
    probs = 1 / (1 + np.exp(rejected - chosen))
    return {
        "accuracy": np.mean((chosen > rejected) + (chosen == rejected) / 2),
        "margin": chosen.mean() - rejected.mean(),
        "log_loss": sk.log_loss(np.ones(len(rows)), probs, labels=[0, 1]),
    }


def pairs(seed: int = 0) -> Preference:
    generator = np.random.default_rng(seed)
    return Preference(np.round(generator.normal(0.3, 1, ROWS), 1), np.round(generator.normal(0, 1, ROWS), 1))


Reference = Callable[[Any, Any], dict[str, float]]

CASES: list[tuple[AnyJudged, Reference]] = [
    (single(5), reference_of_single),
    (single(2), reference_of_single),
    (multi(), reference_of_multi),
    (multi(1), reference_of_multi),
    (regression(), reference_of_regression),
    (pairs(), reference_of_pairs),
]


@pytest.mark.parametrize(("judged", "reference"), CASES)
def test_values_are_those_of_scikit_learn(judged: AnyJudged, reference: Reference) -> None:
    measured = bootstrap(judged, 0).estimates()
    expected = reference(judged, np.arange(ROWS))
    assert {name: estimate.value for name, estimate in measured.items()} == pytest.approx(expected, **EXACT)
    assert all(np.isnan(estimate.low) and np.isnan(estimate.high) for estimate in measured.values())


@pytest.mark.parametrize(("judged", "reference"), CASES)
def test_a_resample_is_worth_what_scikit_learn_says_of_its_rows(judged: AnyJudged, reference: Reference) -> None:
    measured = bootstrap(judged, 3)
    weights = np.concatenate(list(weights_of(ROWS, 3)))
    for resample, counts in enumerate(weights, 1):
        expected = reference(judged, np.repeat(np.arange(ROWS), counts.astype(int)))
        assert {name: values[resample] for name, values in measured.values.items()} == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("judged", [single(), multi()])
def test_labels_are_those_of_scikit_learn(judged: SingleLabel | MultiLabel) -> None:
    truth = judged.truth if isinstance(judged, SingleLabel) else judged.targets
    expected = sk.precision_recall_fscore_support(truth, judged.decided, average=None)
    each = bootstrap(judged, 0).each
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert each[name][0] == pytest.approx(values, **EXACT)
    for label in range(truth.shape[1]):
        column = truth[:, label], judged.probs[:, label]
        assert each["roc_auc"][0, label] == pytest.approx(sk.roc_auc_score(*column), **EXACT)
        assert each["average_precision"][0, label] == pytest.approx(sk.average_precision_score(*column), **EXACT)


def test_a_label_that_no_row_has_is_not_in_the_means() -> None:
    judged = multi()
    judged.targets[:, 2] = False
    rest = [0, 1, 3, 4, 5]
    measured = bootstrap(judged, 0)
    assert np.isnan(measured.each["roc_auc"][0, 2])
    assert np.isnan(measured.each["average_precision"][0, 2])
    expected = sk.f1_score(judged.targets[:, rest], judged.decided[:, rest], average="macro")
    assert measured.values["macro_f1"][0] == pytest.approx(expected, **EXACT)
    expected = sk.roc_auc_score(judged.targets[:, rest], judged.probs[:, rest])
    assert measured.values["roc_auc"][0] == pytest.approx(expected, **EXACT)


def test_what_does_not_vary_correlates_with_nothing() -> None:
    targets = np.full((ROWS, 1), 0.1)
    measured = bootstrap(Regression(targets, np.random.default_rng(0).normal(size=(ROWS, 1))), 10).estimates()
    assert np.isnan(measured["pearson"].value)
    assert np.isnan(measured["spearman"].low)
    assert measured["mae"].value > 0


def test_a_probability_of_zero_costs_no_infinity() -> None:
    judged = SingleLabel(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert judged.losses[0] == pytest.approx(sk.log_loss([0], [[0.0, 1.0]], labels=[0, 1]))


# Intervals


def test_the_same_data_has_the_same_intervals() -> None:
    first, second = bootstrap(multi(), 50).estimates(), bootstrap(multi(), 50).estimates()
    assert first == second


def test_pieces_are_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.evaluation.bootstrap._CELLS", 7 * ROWS)
    weights = list(weights_of(ROWS, 16))
    assert [len(piece) for piece in weights] == [7, 7, 2]
    assert all((piece.sum(axis=1) == ROWS).all() for piece in weights)
    assert len(np.unique(np.concatenate(weights), axis=0)) == 16


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(2000) < 0.7
    judged = Preference(right.astype(float), 1 - right.astype(float))
    accuracy = bootstrap(judged, 2000).estimates()["accuracy"]
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / len(right))
    assert accuracy.value == right.mean()
    assert accuracy.low == pytest.approx(right.mean() - half, abs=0.003)
    assert accuracy.high == pytest.approx(right.mean() + half, abs=0.003)


def test_the_interval_of_the_calibration_error_holds_the_true_one() -> None:
    """Probabilities that come true as often as they say: no percentile of the resamples is near the true error, 0."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(20):
        high = generator.uniform(0.5, 1, 2000)
        truth = np.where(generator.random(2000) < high, 0, 1)
        judged = SingleLabel(truth, np.stack([high, 1 - high], axis=1))
        measured = bootstrap(judged, 200)
        ece = measured.estimates()["ece"]
        assert np.quantile(measured.values["ece"][1:], 0.025) > 0.01
        assert ece.low <= ece.value <= ece.high
        covered += ece.low < 0.005
    assert covered >= 15


def test_the_difference_of_two_calibration_errors_may_be_negative() -> None:
    values = np.array([-0.02, -0.04, -0.03, -0.02])
    assert estimate("ece", values, difference=True).high < 0.01
    assert estimate("ece", values, difference=True).low < -0.005
    assert estimate("accuracy", values, difference=True).low == pytest.approx(-0.0395)


def test_a_rare_label_may_be_missing_from_a_resample() -> None:
    judged = multi()
    judged.targets[:, 0] = False
    judged.targets[0, 0] = True
    with warnings.catch_warnings(action="error"):
        measured = bootstrap(judged, 40)
    assert np.isnan(measured.each["roc_auc"][:, 0]).any()
    assert not any(np.isnan(values).any() for values in measured.values.values())


def test_large_data_gets_fewer_resamples_unless_asked() -> None:
    assert resamples_for(1000, 10, None) == 1000
    assert resamples_for(500_000, 28, None) == 200
    assert resamples_for(500_000, 28, 5000) == 5000
    assert resamples_for(1000, 10, 0) == 0
