"""What is asked of a model: the labels of texts, or which of two answers was preferred. Knows no metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from assay.errors import ConfigError
from assay.evaluation.compare import check_same_labels
from assay.evaluation.dataset import Columns, Dataset, labelled_columns, pair_columns
from assay.evaluation.metrics import MultiLabel, SingleLabel
from assay.evaluation.mistakes import AnyJudged
from assay.evaluation.pairs import Preference
from assay.evaluation.ranking import Floats
from assay.evaluation.regression import Regression
from assay.evaluation.scoring import Model, Scores, Subject, as_prompts
from assay.evaluation.settings import DataConfig, EvaluationConfig
from assay.evaluation.truth import TASKS, Truth, read_column, read_columns
from assay.files.readers import Reader
from assay.sequence import Prompt, TextPrompt

DEFAULT_THRESHOLD = 0.5


class Task(Protocol):
    """A kind of question. prompts_a_row: how many prompts a row is."""

    @property
    def prompts_a_row(self) -> int: ...

    def check(self, first: Subject, second: Subject | None) -> None:
        """Raises ConfigError where models cannot be asked this, or not be compared."""

    def columns(self, reader: Reader, subject: Subject) -> Columns:
        """Raises ConfigError."""

    def truth(self, data: Dataset, subject: Subject) -> Truth:
        """Raises RequestError for a row without one."""

    def prompts(self, data: Dataset, model: Model) -> tuple[list[Prompt], str]:
        """What the model reads, row after row; and how that was made, where there is a choice."""

    def judge(self, truth: Truth, labels: Sequence[str], subject: Subject, scores: Scores) -> tuple[AnyJudged, Floats]:
        """(scores beside the truth, logits), both of the rows that have a truth. labels: in whose order truth is."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The label of a text, its labels, or its number."""

    read: DataConfig
    config: EvaluationConfig
    prompts_a_row: int = 1

    def check(self, first: Subject, second: Subject | None) -> None:
        if second is None:
            return
        if first.activation != second.activation:
            raise ConfigError(
                f"The first model's scores go through {first.activation}, the second's through {second.activation}; "
                "to compare them, run both with one --activation."
            )
        check_same_labels(first.labels, second.labels)

    def columns(self, reader: Reader, subject: Subject) -> Columns:
        return labelled_columns(reader, self.read, subject.labels)

    def truth(self, data: Dataset, subject: Subject) -> Truth:
        task = TASKS[subject.activation]
        if len(data.columns.labels) > 1:
            return read_columns(data.cells, task, subject.labels)
        cells = data.cells[data.columns.labels[0]]
        skip = self.read.on_error == "skip"
        return read_column(cells, task, subject.labels, self.read.ignore_unknown_labels, skip_missing=skip)

    def prompts(self, data: Dataset, model: Model) -> tuple[list[Prompt], str]:
        return [TextPrompt(*row) for row in data.inputs], ""

    def judge(self, truth: Truth, labels: Sequence[str], subject: Subject, scores: Scores) -> tuple[AnyJudged, Floats]:
        order = [subject.labels.index(labels[place]) for place in truth.judged]
        probs, logits = (values[truth.kept][:, order] for values in (scores.probs, scores.logits))
        match truth.task:
            case "single":
                return SingleLabel(truth.targets, probs), logits
            case "multi":
                return MultiLabel(truth.targets, probs, self._thresholds(subject)[order]), logits
            case _:
                return Regression(truth.targets, probs), logits

    def _thresholds(self, subject: Subject) -> Floats:
        """What was asked for, else a calibration's own, else a half: [labels]."""
        if self.config.threshold is None and subject.thresholds is not None:
            return np.array(subject.thresholds)
        asked = DEFAULT_THRESHOLD if self.config.threshold is None else self.config.threshold
        return np.full(len(subject.labels), asked)


@dataclass(frozen=True, slots=True)
class Preferred:
    """Which of two answers was preferred: the one with the higher score, as a model says that has one score."""

    read: DataConfig
    config: EvaluationConfig
    prompts_a_row: int = 2

    def check(self, first: Subject, second: Subject | None) -> None:
        if self.read.label_columns or self.read.text_column or self.read.text_pair_column:
            raise ConfigError(
                "--chosen-column and --rejected-column say which answer was preferred; leave out --label-column, "
                "--text-column and --text-pair-column, and name the prompt with --prompt-column."
            )
        for subject in (first, second):
            if subject is not None and len(subject.labels) != 1:
                raise ConfigError(
                    f"{subject.name} gives {len(subject.labels)} scores, and a preference is judged by one: take a "
                    "reward model, or another model of one label."
                )

    def columns(self, reader: Reader, subject: Subject) -> Columns:
        return pair_columns(reader, self.config)

    def truth(self, data: Dataset, subject: Subject) -> Truth:
        rows = np.arange(len(data.inputs))
        return Truth("pairs", np.ones(len(rows), dtype=bool), (), rows, "chosen before rejected", {})

    def prompts(self, data: Dataset, model: Model) -> tuple[list[Prompt], str]:
        answers: list[tuple[Any, Any]] = []
        for *prompt, chosen, rejected in data.inputs:
            answers += [(prompt[0] if prompt else None, answer) for answer in (chosen, rejected)]
        return as_prompts(answers, model.has_chat_template())

    def judge(self, truth: Truth, labels: Sequence[str], subject: Subject, scores: Scores) -> tuple[AnyJudged, Floats]:
        """The margins stand in the place of logits."""
        pairs = scores.logits[:, 0].reshape(-1, 2)
        judged = Preference(pairs[:, 0], pairs[:, 1])
        return judged, judged.margins[:, None]
