"""A labelled file and a model, or two → what is measured of them. Knows neither a terminal nor a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.config import EngineConfig
from assay.errors import RequestError
from assay.evaluation.bootstrap import Measured, bootstrap, resamples_for
from assay.evaluation.compare import Comparison, compare
from assay.evaluation.dataset import Dataset, open_data, read_dataset
from assay.evaluation.mistakes import AnyJudged
from assay.evaluation.ranking import Floats
from assay.evaluation.scoring import Model, Progress, Scores, Subject
from assay.evaluation.settings import DataConfig, EvaluationConfig, OnError
from assay.evaluation.tasks import Labelled, Preferred, Task
from assay.evaluation.truth import Truth
from assay.files.sources import name_of

Watch = Callable[[str, int], Progress]
"""Is told which model scores, and how many prompts; whom it gives is told how many more are done."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """One model, and what it made of the rows. read_as: how answers became prompts, where there is a choice.

    logits: [rows, labels], of pairs the margins [rows, 1].
    """

    subject: Subject
    judged: AnyJudged
    logits: Floats
    measured: Measured
    num_tokens: int
    seconds: float
    read_as: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """data: rows that have scores, of which `truth.kept` have a truth too and are judged.

    labels: those that are judged; none of pairs. second, comparison: None of one model.
    """

    data: Dataset
    truth: Truth
    labels: tuple[str, ...]
    resamples: int
    first: Assessed
    second: Assessed | None
    comparison: Comparison | None

    @property
    def rows(self) -> int:
        return len(self.truth.kept)

    @property
    def inputs(self) -> list[tuple[Any, ...]]:
        """Of the rows that are judged."""
        return [self.data.inputs[row] for row in self.truth.kept]

    @property
    def places(self) -> list[str]:
        return [self.data.places[row] for row in self.truth.kept]


@dataclass(frozen=True, slots=True)
class _Scored:
    subject: Subject
    scores: Scores
    read_as: str


def evaluate(
    paths: Sequence[str],
    model: EngineConfig,
    read: DataConfig,
    config: EvaluationConfig,
    watch: Watch,
    accept: Callable[[Subject], None] = lambda subject: None,
) -> Evaluation:
    """Raises RequestError for data that cannot be judged, ConfigError and CheckpointError for a model that cannot.

    accept: may refuse the model once it is loaded, before the work.
    """
    task: Task = Preferred(read, config) if config.pairs else Labelled(read, config)
    reader = open_data(paths, read)
    models = [Model(one, read.on_too_long) for one in (model, config.other(model)) if one is not None]
    first, second = models[0].subject, models[1].subject if len(models) > 1 else None
    accept(first)
    task.check(first, second)
    data = read_dataset(reader, task.columns(reader, first), read.on_error)
    task.truth(data, first)  # before the work: a label that is not the model's ends it here
    scored = _with_scores(task, data, [_score(task, data, one, watch) for one in models], read.on_error)
    truth = task.truth(data, first)
    if not len(truth.kept):
        raise RequestError(f"No row of {', '.join(map(name_of, data.sources))} has a label that the model has.")
    labels = tuple(first.labels[place] for place in truth.judged)
    resamples = resamples_for(len(truth.kept), max(1, len(labels)), config.resamples)
    assessed = [_assess(task, truth, first.labels, one, resamples) for one in scored]
    sides = [(one.judged, one.logits, one.measured) for one in assessed]
    return Evaluation(
        data,
        truth,
        labels,
        resamples,
        first=assessed[0],
        second=assessed[1] if second is not None else None,
        comparison=compare(sides[0], sides[1], labels) if second is not None else None,
    )


def _with_scores(task: Task, data: Dataset, scored: list[_Scored], on_error: OnError) -> list[_Scored]:
    """Leave out, of the data and of every model's scores, the rows that one of them could not score."""
    errors: dict[int, str] = {}
    for one in scored:
        for place, why in one.scores.errors.items():
            errors.setdefault(place // task.prompts_a_row, why)
    if not errors:
        return scored
    kept = np.repeat([row not in errors for row in range(len(data.inputs))], task.prompts_a_row)
    data.leave_out(errors, on_error)
    return [replace(one, scores=one.scores.of(kept)) for one in scored]


def _score(task: Task, data: Dataset, model: Model, watch: Watch) -> _Scored:
    prompts, read_as = task.prompts(data, model)
    return _Scored(model.subject, model.score(prompts, watch(model.subject.title, len(prompts))), read_as)


def _assess(task: Task, truth: Truth, labels: Sequence[str], one: _Scored, resamples: int) -> Assessed:
    judged, logits = task.judge(truth, labels, one.subject, one.scores)
    measured = bootstrap(judged, resamples)
    return Assessed(one.subject, judged, logits, measured, one.scores.num_tokens, one.scores.seconds, one.read_as)
