"""Prompts → scores as arrays, by the same scorer as jobs over files. Knows no truth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.config import Activation, EngineConfig
from assay.engine.conversation import template_source
from assay.engine.engine import Engine
from assay.evaluation.ranking import Floats
from assay.files.scorer import Scorer, options_for
from assay.files.settings import OnTooLong
from assay.model.weights import read_json, resolve
from assay.sequence import ChatPrompt, Prediction, Prompt, TextPrompt

_SLICE = 1024  # prompts between two steps of a progress bar

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """probs, logits: [prompts, labels], NaN where there is an error. errors: by place, why a prompt has no score.

    num_tokens: of all prompts. seconds: from the first prompt to the last score.
    """

    probs: Floats
    logits: Floats
    errors: dict[int, str]
    num_tokens: int
    seconds: float

    def of(self, kept: NDArray[np.bool_]) -> "Scores":
        """Those of some prompts, [prompts]."""
        return replace(self, probs=self.probs[kept], logits=self.logits[kept], errors={})


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is judged, and how it is run. thresholds: a calibration's own, one for each label."""

    name: str
    architecture: str
    dtype: str
    quantization: str
    device: str
    activation: Activation
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] | None
    calibration: str | None

    @property
    def title(self) -> str:
        """Its name, and what is special of how it is run."""
        special = ["int8"] if self.quantization == "int8" else []
        special += [self.dtype] if self.dtype != "float32" else []
        special += ["calibrated"] if self.calibration is not None else []
        return ", ".join([self.name, *special])


class Model:
    """A model, loaded, to be judged. Raises SetupError where it cannot be."""

    def __init__(self, config: EngineConfig, on_too_long: OnTooLong | None = None) -> None:
        engine = Engine.load(config)
        model = engine.model
        options = options_for(config, on_too_long)
        self._scorer = Scorer(engine.runner, engine.encoder, engine.max_model_len, config.max_batch_tokens, options)
        self._config = config
        self.subject = Subject(
            name=config.served_name,
            architecture=model.architecture,
            dtype=str(model.dtype).removeprefix("torch."),
            quantization=config.quantization,
            device=str(model.device),
            activation=model.activation,
            labels=model.labels,
            thresholds=model.thresholds,
            calibration=config.calibration,
        )

    def score(self, prompts: Sequence[Prompt], progress: Progress) -> Scores:
        """progress: is told how many more prompts are done.

        Longest first: neighbours are of like length, and the time left is not underestimated.
        """
        started = time.monotonic()
        order = sorted(range(len(prompts)), key=lambda place: -_length(prompts[place]))
        shape = (len(prompts), len(self.subject.labels))
        scores = Scores(np.full(shape, np.nan), np.full(shape, np.nan), {}, 0, 0.0)
        num_tokens = 0
        for start in range(0, len(order), _SLICE):
            places = order[start : start + _SLICE]
            encoded = self._scorer.encode([prompts[place] for place in places])
            for place, answer in zip(places, self._scorer.score(encoded), strict=True):
                if isinstance(answer, Prediction):
                    scores.probs[place], scores.logits[place] = answer.probs, answer.logits
                else:
                    scores.errors[place] = "it has no score" if answer is None else answer.message
            num_tokens += encoded.num_tokens
            progress(len(places))
        return Scores(scores.probs, scores.logits, scores.errors, num_tokens, time.monotonic() - started)

    def has_chat_template(self) -> bool:
        """Whether the checkpoint, or the operator, has a template for conversations."""
        folder = resolve(self._config.model, self._config.revision, self._config.allow_pickle)
        path = folder / "tokenizer_config.json"
        known = read_json(path) if path.is_file() else {}
        return template_source(folder, known, self._config.chat_template_path) is not None


def _length(prompt: Prompt) -> int:
    """In characters, or near it."""
    match prompt:
        case TextPrompt():
            return len(prompt.text) + len(prompt.text_pair or "")
        case ChatPrompt():
            return sum(len(str(message)) for message in prompt.messages)
        case _:
            return len(prompt.token_ids)


def as_prompts(answers: Sequence[tuple[Any, Any]], templated: bool) -> tuple[list[Prompt], str]:
    """(prompt or None, answer) → what a reward model reads, and how in words. A list is a conversation already."""
    prompts: list[Prompt] = []
    ways = set()
    for prompt, answer in answers:
        made, way = _as_prompt(prompt, answer, templated)
        prompts.append(made)
        ways.add(way)
    return prompts, "; ".join(sorted(ways))


def _as_prompt(prompt: Any, answer: Any, templated: bool) -> tuple[Prompt, str]:
    chat = isinstance(prompt, list) or isinstance(answer, list)
    if chat or (templated and prompt is not None):
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
        after = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return ChatPrompt([*before, *after]), "conversations, by the model's chat template"
    if prompt is None:
        return TextPrompt(answer), "answers alone"
    return TextPrompt(prompt, answer), "pairs of prompt and answer: the model has no chat template"
