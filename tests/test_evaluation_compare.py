"""Two models side by side, and curves over thresholds, against numbers that were computed otherwise."""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from assay.errors import ConfigError
from assay.evaluation.bootstrap import bootstrap
from assay.evaluation.compare import Comparison, Side, check_same_labels, compare, mcnemar, verdict
from assay.evaluation.curves import THRESHOLDS, confusion, coverage, reliability, threshold_curves
from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.mistakes import AnyJudged, worst
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression
from tests.test_evaluation_metrics import multi, single

LABELS = ("a", "b", "c", "d", "e", "f")


def side(judged: AnyJudged, logits: Floats | None = None) -> Side:
    return judged, np.zeros((judged.rows, 1)) if logits is None else logits, bootstrap(judged, 200)


def of_single(targets: list[int], first: list[int], second: list[int]) -> Comparison:
    sides = [SingleLabel(np.array(targets), np.eye(3)[said]) for said in (first, second)]
    return compare(side(sides[0]), side(sides[1]), LABELS[:3])


# Two models


def test_mcnemar_is_the_exact_test() -> None:
    first = np.array([True] * 12 + [False] * 9 + [True] * 1)
    second = np.array([True] * 12 + [True] * 9 + [False] * 1)
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (1, 9)
    assert test.p == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(first, first).p == 1


def test_flips_of_labels_that_exclude_each_other() -> None:
    comparison = of_single([0, 0, 1, 1, 2, 2], first=[0, 0, 1, 2, 0, 2], second=[0, 1, 1, 1, 1, 2])
    flips = comparison.flips
    assert flips is not None
    assert (flips.rows, flips.worse, flips.better, flips.decisions) == (3, 1, 1, 3)
    assert flips.pairs == (("a", "b", 2), ("c", "b", 1))
    assert comparison.score_drift.tolist() == [0, 1, 0, 1, 1, 0]


def test_flips_of_labels_that_do_not() -> None:
    truth = np.array([[True, False], [True, True], [False, False]])
    probs = np.array([[0.9, 0.1], [0.9, 0.4], [0.2, 0.6]])
    other = np.array([[0.9, 0.2], [0.9, 0.6], [0.7, 0.4]])
    first, second = (MultiLabel(truth, values, np.full(2, 0.5)) for values in (probs, other))
    comparison = compare(side(first), side(second), LABELS[:2])
    flips = comparison.flips
    assert flips is not None
    assert (flips.rows, flips.decisions, flips.better, flips.worse) == (2, 3, 1, 0)
    assert set(flips.pairs) == {("not b", "b", 1), ("b", "not b", 1), ("not a", "a", 1)}
    assert comparison.quantiles(comparison.score_drift)["max"] == pytest.approx(0.5)


def test_flips_of_pairs_and_none_of_numbers() -> None:
    first = Preference(np.array([1.0, 2.0, 0.0]), np.array([0.0, 3.0, 0.0]))
    second = Preference(np.array([1.0, 4.0, 0.0]), np.array([2.0, 3.0, 0.0]))
    comparison = compare(side(first), side(second), ())
    assert comparison.flips is not None
    assert (comparison.flips.rows, comparison.flips.worse, comparison.flips.better) == (2, 1, 1)
    numbers = Regression(np.array([[1.0], [2.0]]), np.array([[1.0], [2.5]]))
    comparison = compare(side(numbers), side(numbers), ("x",))
    assert (comparison.flips, comparison.mcnemar) == (None, None)
    assert comparison.differences["mae"].value == 0


def test_the_interval_of_a_difference_is_paired() -> None:
    """Rows that are hard for both models cancel: the difference is known far better than either value."""
    generator = np.random.default_rng(0)
    hard = generator.random(1000) < 0.4
    first = Preference(np.where(hard, -1.0, 1.0), np.zeros(1000))
    better = hard & (generator.random(1000) < 0.05)
    second = Preference(np.where(hard & ~better, -1.0, 1.0), np.zeros(1000))
    gap = compare(side(first), side(second), ()).differences["accuracy"]
    assert gap.value == pytest.approx(better.mean())
    assert 0 < gap.low < gap.value < gap.high < 0.04


def test_the_verdict_names_the_better_one_only_where_chance_does_not_explain_it() -> None:
    truth = [0] * 40
    clear = verdict(of_single(truth, first=[0] * 40, second=[0] * 25 + [1] * 15), "accuracy")
    assert "15 of 40 rows are decided differently (37.50%)" in clear
    assert "0 became right and 15 wrong" in clear
    assert clear.endswith("The first model is better, beyond chance at the 5 % level.")
    unclear = verdict(of_single(truth, first=[0] * 40, second=[0] * 38 + [1] * 2), "accuracy")
    assert unclear.endswith("No difference beyond chance, which is not proof that there is none.")
    alike = verdict(of_single(truth, first=[1] * 40, second=[2] * 40), "accuracy")
    assert alike.endswith("neither model is right where the other is wrong.")


def test_labels_may_stand_in_another_order_and_not_be_others() -> None:
    check_same_labels(("a", "b"), ("b", "a"))
    with pytest.raises(ConfigError, match="only the first has 'b', only the second none"):
        check_same_labels(("a", "b"), ("a",))


# Curves


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_curves_are_what_scikit_learn_says_at_each_threshold(threshold: float) -> None:
    judged = multi()
    curves = threshold_curves(judged.probs, judged.targets)
    place = int(np.flatnonzero(threshold == THRESHOLDS)[0])
    said = judged.probs >= threshold
    expected = sk.precision_recall_fscore_support(judged.targets, said, average=None, zero_division=np.nan)
    np.testing.assert_allclose(curves.precision[place], expected[0])
    np.testing.assert_allclose(curves.recall[place], expected[1])
    f1 = sk.f1_score(judged.targets, said, average=None, zero_division=0)
    np.testing.assert_allclose(curves.f1[place], f1)
    assert curves.macro_f1[place] == pytest.approx(f1.mean())
    assert curves.micro_f1[place] == pytest.approx(sk.f1_score(judged.targets, said, average="micro"))


def test_a_label_is_given_at_its_threshold() -> None:
    judged = MultiLabel(np.array([[True], [False]]), np.array([[0.5], [0.49]]), np.array([0.5]))
    assert judged.decided.tolist() == [[True], [False]]
    assert threshold_curves(judged.probs, judged.targets).f1[50, 0] == 1


def test_the_best_threshold_is_the_best_of_all() -> None:
    judged = multi()
    best = threshold_curves(judged.probs, judged.targets).best()
    scores = [sk.f1_score(judged.targets, judged.probs >= t, average="macro") for t in THRESHOLDS]
    assert best == {"threshold": THRESHOLDS[int(np.argmax(scores))], "macro_f1": pytest.approx(max(scores))}
    assert threshold_curves(judged.probs, np.zeros_like(judged.targets)).best() is None


def test_coverage() -> None:
    judged = SingleLabel(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.05, 0.95]]))
    curve = coverage(judged)
    at = {threshold: round(100 * threshold) for threshold in (0.5, 0.65, 0.93, 1.0)}
    assert [curve.answered[place] for place in at.values()] == [1, 0.75, 0.25, 0]
    assert [curve.right[place] for place in list(at.values())[:3]] == [0.75, 1, 1]
    assert np.isnan(curve.right[at[1.0]])


def test_reliability_adds_up_to_the_calibration_error() -> None:
    judged = single()
    bins = reliability(judged)
    known = bins.count > 0
    gaps = np.abs(bins.confidence - bins.true_share)[known] * bins.count[known]
    assert bins.count.sum() == judged.rows
    assert gaps.sum() / judged.rows == pytest.approx(bootstrap(judged, 0).values["ece"][0])


def test_confusion() -> None:
    judged = single(3)
    table = confusion(judged, LABELS[:3])
    assert table.counts.tolist() == sk.confusion_matrix(judged.targets, judged.predicted).tolist()
    one = multi(1)
    table = confusion(one, ("toxic",))
    assert table.labels == ("not toxic", "toxic")
    assert table.counts.tolist() == sk.confusion_matrix(one.targets[:, 0], one.decided[:, 0]).tolist()
    assert table.support.tolist() == table.counts.sum(axis=1).tolist()


# Mistakes


def test_the_worst_mistakes_come_first_and_what_is_right_not_at_all() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.01, 0.99], [0.4, 0.6]])
    judged = SingleLabel(np.array([0, 0, 0, 1]), probs)
    inputs = [("fine",), ("wrong",), ("x" * 3000,), ("fine",)]
    found = worst(judged, ("no", "yes"), inputs, ["line 2", "line 3", "line 4", "line 5"], 10)
    assert [(one.place, one.truth, one.said) for one in found] == [
        ("line 4", "no (0.010)", "yes (0.990)"),
        ("line 3", "no (0.200)", "yes (0.800)"),
    ]
    assert found[0].cost == pytest.approx(-np.log(0.01))
    assert found[0].texts[0] == "x" * 2000 + " …"


def test_mistakes_of_several_labels_name_all_of_them() -> None:
    judged = MultiLabel(np.array([[True, False]]), np.array([[0.2, 0.3]]), np.full(2, 0.5))
    (mistake,) = worst(judged, ("a", "b"), [("text",)], ["line 2"], 1)
    assert (mistake.truth, mistake.said) == ("a (0.200)", "none")


def test_a_conversation_is_shown_by_its_turns() -> None:
    judged = Preference(np.array([0.0]), np.array([2.0]))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (mistake,) = worst(judged, (), [(turns, "bye")], ["line 2"], 1)
    assert mistake.texts == ("user: hi\nassistant: yo", "bye")
    assert (mistake.truth, mistake.said) == ("chosen 0", "rejected 2")
