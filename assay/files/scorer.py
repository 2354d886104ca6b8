"""Many prompts to predictions on the caller's threads, the same bits every time. Knows no file and no event loop.

What is scored together depends on the prompts alone, never on the clock: sorted by length, cut by tokens, run one after
another. The server's queue, which takes what is there, cannot promise that.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Self

from msgspec.structs import replace

from assay.config import EngineConfig
from assay.engine.encoder import PromptEncoder
from assay.engine.engine import Engine
from assay.engine.runner import Batch, ModelRunner, form
from assay.engine.windows import Combination
from assay.errors import AssayError, ConfigError, InternalError, RequestError
from assay.files.settings import OnTooLong
from assay.sequence import Options, Prediction, Prompt, Sequence

Answer = Prediction | AssayError


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokenized prompts. errors: of those that have no sequences, by their places."""

    count: int
    sequences: list[Sequence]
    errors: dict[int, AssayError]

    @property
    def num_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self.sequences)


class Scorer:
    """A model, loaded, that scores prompts in order. `encode` and `score` may run in two threads at once."""

    def __init__(
        self,
        runner: ModelRunner,
        encoder: PromptEncoder,
        max_model_len: int,
        max_batch_tokens: int,
        options: Options,
    ) -> None:
        model = runner.model
        self.labels = model.labels
        self.activation = model.activation
        self._runner = runner
        self._encoder = encoder
        self._max_model_len = max_model_len
        self._max_batch_tokens = max_batch_tokens
        self._options = options
        self._combination = (
            Combination(options.window or "none", model.labels, model.activation, model.activation)
            if options.windowed
            else None
        )

    @classmethod
    def load(cls, config: EngineConfig, on_too_long: OnTooLong | None = None) -> Self:
        """on_too_long: None goes by the config: its window, its truncation, else an error. Raises SetupError."""
        options = options_for(config, on_too_long)
        engine = Engine.load(config)
        return cls(engine.runner, engine.encoder, engine.max_model_len, config.max_batch_tokens, options)

    def encode(self, prompts: Seq[Prompt | None]) -> Encoded:
        """None stands for what cannot be scored, and gets neither sequences nor an error."""
        places = [place for place, prompt in enumerate(prompts) if prompt is not None]
        given = [prompt for prompt in prompts if prompt is not None]
        errors: dict[int, AssayError] = {}
        try:
            sequences = self._encoder.encode(given, self._options, any_length=True)
            for sequence in sequences:
                sequence.prompt = places[sequence.prompt]
        except RequestError:  # one is at fault: find out which
            sequences = []
            for place, prompt in zip(places, given, strict=True):
                try:
                    alone = self._encoder.encode([prompt], self._options, any_length=True)
                except RequestError as error:
                    errors[place] = error
                    continue
                for sequence in alone:
                    sequence.prompt = place
                sequences += alone
        fitting: list[Sequence] = []
        for sequence in sequences:
            if 0 < len(sequence.token_ids) <= self._max_model_len:
                sequence.index = len(fitting)
                sequence.activation = self.activation
                fitting.append(sequence)
            else:
                errors[sequence.prompt] = self._wrong_length(sequence.num_tokens)
        return Encoded(len(prompts), fitting, errors)

    def score(self, encoded: Encoded, on_batch: Callable[[int], None] = lambda num_tokens: None) -> list[Answer | None]:
        """One answer a prompt, in order; None for None. on_batch: told the tokens of each batch when it is done."""
        answers: list[Answer | None] = [None] * len(encoded.sequences)
        for batch in self._batches(encoded.sequences):
            for sequence, answer in zip(batch.sequences, self._run(batch), strict=True):
                answers[sequence.index] = answer
            on_batch(batch.packed.num_tokens)
        return self._by_prompt(encoded, answers)

    def _by_prompt(self, encoded: Encoded, answers: list[Answer | None]) -> list[Answer | None]:
        results: list[Answer | None] = [encoded.errors.get(place) for place in range(encoded.count)]
        if self._combination is None:
            for sequence, answer in zip(encoded.sequences, answers, strict=True):
                results[sequence.prompt] = answer
            return results
        for place, windows in groupby(encoded.sequences, key=lambda sequence: sequence.prompt):
            group = list(windows)
            given = [answers[sequence.index] for sequence in group]
            predictions = [answer for answer in given if isinstance(answer, Prediction)]
            if len(predictions) < len(group):
                results[place] = next(answer for answer in given if not isinstance(answer, Prediction))
            else:
                results[place] = self._combination.of(group, predictions)
        return results

    def _batches(self, sequences: list[Sequence]) -> Iterator[Batch]:
        """By length, longest last; within the budget of tokens, which one longer sequence alone may exceed."""
        batch: list[Sequence] = []
        num_tokens = 0
        for length, sequence in sorted(((len(s.token_ids), s) for s in sequences), key=itemgetter(0)):
            if batch and num_tokens + length > self._max_batch_tokens:
                yield form(batch)
                batch, num_tokens = [], 0
            batch.append(sequence)
            num_tokens += length
        if batch:
            yield form(batch)

    def _run(self, batch: Batch) -> Seq[Answer]:
        """A batch that fails is halved until the sequence at fault is alone. Raises what is wrong with the device."""
        try:
            return self._runner.run(batch)
        except Exception as error:  # an edge, as in engine/worker.py: the row at fault is told, and no other
            out_of_memory = self._runner.recover(error)
            if len(batch.sequences) == 1:
                length = batch.sequences[0].num_tokens
                why = "takes more memory than there is" if out_of_memory else f"fails: {type(error).__name__}: {error}"
                return [InternalError(f"Scoring this text of {length} tokens {why}.")]
        half = len(batch.sequences) // 2
        parts = batch.sequences[:half], batch.sequences[half:]
        answers = {sequence: answer for part in parts for sequence, answer in self._halves(part)}
        return [answers[sequence] for sequence in batch.sequences]

    def _halves(self, sequences: list[Sequence]) -> Iterator[tuple[Sequence, Answer]]:
        batch = form(sequences)
        yield from zip(batch.sequences, self._run(batch), strict=True)

    def _wrong_length(self, num_tokens: int) -> AssayError:
        if not num_tokens:
            return RequestError("it is empty: it has no tokens")
        return RequestError(
            f"it has {num_tokens} tokens, and the model reads at most {self._max_model_len}; --on-too-long truncate "
            "cuts such texts, --on-too-long window scores all of them"
        )


def options_for(config: EngineConfig, on_too_long: OnTooLong | None) -> Options:
    """What happens to a text that is too long. Raises ConfigError for settings of which one would be ignored."""
    windowed, cut = config.window != "none", config.truncate_prompt_tokens is not None
    if on_too_long is not None and ((windowed and on_too_long != "window") or (cut and on_too_long != "truncate")):
        other = "--window" if windowed else "--truncate-prompt-tokens"
        raise ConfigError(f"--on-too-long {on_too_long} and {other} are two ways with one long text; choose one.")
    match on_too_long:
        case "truncate":
            return Options(truncate_prompt_tokens=config.truncate_prompt_tokens or -1)
        case "window":
            return Options(window="max" if config.window == "none" else config.window)
        case "error":
            return Options()
    plain = Options(truncate_prompt_tokens=config.truncate_prompt_tokens)
    return plain if config.window == "none" else replace(plain, truncate_prompt_tokens=None, window=config.window)
