"""What people write into label columns, and how it is told when it is not understood."""

from typing import Any

import numpy as np
import pytest

from assay.errors import RequestError
from assay.evaluation.cells import Cell
from assay.evaluation.truth import Task, Truth, read_column, read_columns

LABELS = ("bad", "fair", "good")


def cells(*values: Any) -> list[Cell]:
    return [Cell(f"data.csv, line {i + 2}", value) for i, value in enumerate(values)]


def rows(truth: Truth) -> list[Any]:
    """The labels of each row, by name; or what the targets are."""
    if truth.task == "single":
        return [LABELS[i] for i in truth.targets]
    if truth.task == "multi":
        return [{LABELS[i] for i in np.flatnonzero(row)} for row in truth.targets]
    return [list(map(float, row)) for row in truth.targets]


# One label a row


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["good", "bad", "fair"], "by name"),
        (["Good", "BAD", " fair "], "upper and lower case"),
        (["2", "0", "1"], "by index, 0 to 2"),
        ([2, 0, 1], "by index, 0 to 2"),
        ([2.0, 0.0, 1.0], "by index, 0 to 2"),  # a whole column with one gap, in pandas
        (["2.0", "0.0", "1.0"], "by index, 0 to 2"),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], "lists of 0 and 1"),
        (["[0, 0, 1]", "[1,0,0]", "[0,1,0]"], "lists of 0 and 1"),
        (["['good']", '["bad"]', "['fair']"], "lists of labels, by name"),
    ],
)
def test_one_label_a_row(values: list[Any], told: str) -> None:
    truth = read_column(cells(*values), "single", LABELS)
    assert rows(truth) == ["good", "bad", "fair"]
    assert told in truth.recognised
    assert truth.judged == (0, 1, 2)


def test_names_that_are_numbers_are_names_first() -> None:
    truth = read_column(cells("5", "1", "3"), "single", ("1", "3", "5"))
    assert truth.targets.tolist() == [2, 0, 1]
    assert truth.recognised == "by name"


def test_labels_that_differ_in_case_alone_are_kept_apart() -> None:
    truth = read_column(cells("US", "us"), "single", ("us", "US"))
    assert truth.targets.tolist() == [1, 0]


def test_a_label_with_a_comma_in_its_name_is_one_label() -> None:
    labels = ("food, drink", "travel")
    assert read_column(cells("travel", "food, drink"), "single", labels).targets.tolist() == [1, 0]
    both = read_column(cells("travel|food, drink", "travel"), "multi", labels)
    assert both.targets.tolist() == [[True, True], [False, True]]


# Several labels a row


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["good,bad", "fair", ""], "separated by ','"),
        (["good, bad", "fair", ""], "separated by ','"),
        (["good|bad", "fair", ""], "separated by '|'"),
        (["good;bad", "fair", ""], "separated by ';'"),
        (["2,0", "1", ""], "by index"),  # GoEmotions
        ([["good", "bad"], ["fair"], []], "lists of labels, by name"),
        ([[2, 0], [1], []], "by index"),
        (["['good', 'bad']", "['fair']", "[]"], "lists of labels"),
        ([[1, 0, 1], [0, 1, 0], [0, 0, 0]], "lists of 0 and 1"),
        ([np.array([1, 0, 1]), np.array([0, 1, 0]), np.array([0, 0, 0])], "lists of 0 and 1"),
    ],
)
def test_several_labels_a_row(values: list[Any], told: str) -> None:
    truth = read_column(cells(*values), "multi", LABELS)
    assert rows(truth) == [{"good", "bad"}, {"fair"}, set()]
    assert told in truth.recognised


def test_one_column_a_label() -> None:
    columns = {"good": cells("1", "0", ""), "bad": cells("true", "no", "0")}
    truth = read_columns(columns, "multi", LABELS)
    assert truth.judged == (0, 2)
    assert truth.targets.tolist() == [[True, True], [False, False], [False, False]]
    assert "2 of the model's 3 labels" in truth.recognised


def test_one_column_a_label_where_they_exclude_each_other() -> None:
    columns = {name: cells(*values) for name, values in zip(LABELS, ("010", "100", "001"), strict=True)}
    assert rows(read_columns(columns, "single", LABELS)) == ["fair", "bad", "good"]


@pytest.mark.parametrize(("value", "has"), [(1, True), ("no", False), ("Toxic", True), (True, True), (0.0, False)])
def test_a_model_with_one_label(value: Any, has: bool) -> None:
    truth = read_column(cells(value), "multi", ("toxic",))
    assert truth.targets.tolist() == [[has]]


# Numbers


def test_numbers() -> None:
    assert rows(read_column(cells("1.5", 2, "-3e-1"), "regression", ("score",))) == [[1.5], [2.0], [-0.3]]


def test_numbers_in_columns() -> None:
    columns = {"good": cells(1, 2), "bad": cells(3, 4)}
    truth = read_columns(columns, "regression", LABELS)
    assert truth.judged == (0, 2)
    assert rows(truth) == [[3, 1], [4, 2]]


# What is left out


def test_unknown_labels_may_be_left_out() -> None:
    truth = read_column(cells("good,new", "new", "bad"), "multi", LABELS, ignore_unknown=True)
    assert rows(truth) == [{"good"}, {"bad"}]
    assert truth.kept.tolist() == [0, 2]
    assert truth.unknown == {"new": 2}


def test_rows_without_a_label_may_be_left_out() -> None:
    assert read_column(cells("good", None, "", "bad"), "single", LABELS, skip_missing=True).kept.tolist() == [0, 3]
    assert read_column(cells("good", None, "", "bad"), "multi", LABELS, skip_missing=True).kept.tolist() == [0, 2, 3]
    assert read_column(cells(1, None, ""), "regression", ("x",), skip_missing=True).kept.tolist() == [0]


@pytest.mark.parametrize(
    ("values", "task", "labels", "complaint"),
    [
        (["good", "new", "newer"], "single", LABELS, "'new', 'newer' in the data are no labels of the model (first in"),
        (["good", "new"], "single", LABELS, "line 3). Its labels are: 'bad', 'fair', 'good'. Correct the data, or"),
        (["good", "fair,bad"], "single", LABELS, "line 3 has 2 labels, 'fair,bad'. The model's labels exclude"),
        (["good", None], "single", LABELS, "line 3 has no label; give it one, or leave it out with --on-error skip"),
        (["good", ""], "single", LABELS, "line 3 has no label"),
        ([[1, 1, 0], [0, 0, 1]], "single", LABELS, "line 2: 2 labels are 1. The model's labels exclude"),
        (["7", "0"], "single", LABELS, "'7' in the data is no label of the model"),
        (["-1", "0"], "multi", LABELS, "'-1' in the data is no label of the model"),
        (["[good", "[0, oops]"], "multi", LABELS, "line 3: '[0, oops]' is no list"),
        ([[["good"]], ["bad"]], "multi", LABELS, "line 2: [['good']] is no list of labels"),
        (["1", "x"], "regression", ("score",), "line 3: the label is 'x'; the model gives numbers"),
        (["1", "nan"], "regression", ("score",), "line 3: the label is 'nan'"),
        (["1"], "regression", LABELS, "The model gives 3 scores (bad, fair, good); give a column for each"),
        (["1", "2"], "multi", ("toxic",), "line 3: the label is '2'; it must be 0 or 1"),
    ],
)
def test_what_is_not_understood_is_told(values: list[Any], task: Task, labels: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(RequestError) as told:
        read_column(cells(*values), task, labels)
    assert complaint in told.value.message


def test_columns_that_are_not_understood_are_told() -> None:
    with pytest.raises(RequestError, match="Columns 'new' are no labels of the model"):
        read_columns({"good": cells(1), "new": cells(0)}, "multi", LABELS)
    with pytest.raises(RequestError, match="has columns for 2 of 3 only"):
        read_columns({"good": cells(1), "bad": cells(0)}, "single", LABELS)
    with pytest.raises(RequestError, match="line 2: the label is 'maybe'; it must be 0 or 1"):
        read_columns({"good": cells("maybe"), "bad": cells(0)}, "multi", LABELS)
