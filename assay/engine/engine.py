"""From prompts to predictions: admission, tokenizing, queue, worker, futures, drain. Knows nothing of HTTP.

A request's life: `classify` → Admission → PromptEncoder → Scheduler → Batch → ModelRunner, on the worker's thread →
`_deliver`, back on the event loop → predictions. Every sequence ends in a prediction or an error.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Self, TypeVar

from msgspec.structs import replace

from assay.config import EngineConfig
from assay.engine.admission import Admission, estimated_tokens
from assay.engine.aside import aside
from assay.engine.cache import ResultCache
from assay.engine.encoder import PromptEncoder
from assay.engine.loading import load
from assay.engine.runner import Batch, ModelRunner
from assay.engine.scheduler import Scheduler
from assay.engine.threads import Later, Threads
from assay.engine.waiter import Waiter
from assay.engine.windows import Combination, combined
from assay.engine.worker import Worker
from assay.errors import AssayError, DeadlineError, InternalError, RequestError, UnavailableError
from assay.metrics import Metrics, ModelMetrics
from assay.model.memory import give_back_freed_memory
from assay.model.registry import LoadedModel
from assay.sequence import ChatPrompt, Options, Prediction, Prompt, Sequence

Result = TypeVar("Result")

_log = logging.getLogger("assay.engine")
_DEFAULTS = Options()
_SETTLING_SECONDS = 1.0  # from the start on: who waits for the first answer has it by then


class Engine:
    """One model, scored by one worker. Made by `load`, used from one event loop after `start`.

    max_model_len: the longest sequence in tokens. failure: what ended the engine, if anything did.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: LoadedModel,
        encoder: PromptEncoder,
        max_model_len: int,
        metrics: ModelMetrics,
    ) -> None:
        self.config = config
        self.model = model
        self.max_model_len = max_model_len
        self.failure: BaseException | None = None
        self._metrics = metrics
        self._encoder = encoder
        self._threads = Threads(
            config.tokenizer_threads,
            "assay-tokenizer",
            config.tokenizer_timeout,
            on_lost=self._tokenizers_lost,
            together=encoder.encode_together,
        )
        self._scheduler = Scheduler(config.max_batch_tokens)
        self._admission = Admission(config.max_queue_tokens, config.when_full, lambda: self._scheduler.num_tokens)
        self._worker = Worker(
            ModelRunner(model),
            self._scheduler,
            on_taken=lambda: self._on_loop(self._taken),
            on_answers=lambda batch, answers: self._on_loop(self._deliver, batch, answers),
            on_death=lambda error: self._on_loop(self._die, error),
        )
        self._settling = Later(_SETTLING_SECONDS, model.settle, "assay-pages")
        self._cache = ResultCache(config.max_cache_bytes)
        self._waiters: dict[Sequence, Waiter] = {}
        self._active = 0  # classify calls that have been accepted and not answered
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        self._waking = False  # the worker hears of the queue at the end of this turn of the loop
        metrics.queue_tokens.set_function(lambda: self._scheduler.num_tokens + self._admission.tokenizing)
        metrics.queue_sequences.set_function(lambda: self._scheduler.num_sequences)
        metrics.queue_limit_tokens.set(config.max_queue_tokens)
        metrics.line_requests.set_function(lambda: self._admission.waiting)
        metrics.requests_in_flight.set_function(lambda: self._active)
        metrics.read_failures(lambda: self._worker.failures, lambda: self._threads.lost)
        metrics.read_cache(lambda: self._cache.hits, lambda: self._cache.misses, lambda: self._cache.num_bytes)
        facts = {"architecture": model.architecture, "dtype": str(model.dtype).removeprefix("torch.")}
        metrics.describe(model.labels, **facts, device=model.device, max_model_len=max_model_len)

    @classmethod
    def load(cls, config: EngineConfig, metrics: Metrics | None = None) -> Self:
        """Resolve, read and warm up the model. Slow: call it off the event loop. Raises SetupError.

        On a thread that ends, since OpenMP keeps a team of threads for each one that computes, and where there are more
        of them than cores, all of them sleep between two steps: a text of 16 tokens then takes twice as long.
        """
        return aside(lambda: cls._load(config, metrics), "assay-load")

    @classmethod
    def _load(cls, config: EngineConfig, metrics: Metrics | None) -> Self:
        model, encoder, max_model_len = load(config)
        give_back_freed_memory()
        engine = cls(config, model, encoder, max_model_len, (metrics or Metrics()).of(config.served_name))
        engine._worker.runner.warm_up()
        return engine

    def start(self) -> None:
        """Begin to take work, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        self._settling.start()

    @property
    def encoder(self) -> PromptEncoder:
        """With `runner`, for who scores on threads of its own and never starts this engine: jobs over files."""
        return self._encoder

    @property
    def runner(self) -> ModelRunner:
        return self._worker.runner

    @property
    def available(self) -> bool:
        """Whether new work is taken: neither draining nor dead."""
        return self.failure is None and not self._draining

    async def classify(
        self,
        prompts: Seq[Prompt],
        options: Options | None = None,
        first_index: int = 0,
        deadline: float = math.inf,
    ) -> list[Prediction]:
        """Score prompts; one prediction each, in order.

        first_index: what messages call the first prompt. deadline: when to give up, on the monotonic clock.
        Raises RequestError for what cannot be scored, QueueFullError when too much waits, DeadlineError past the
        deadline, UnavailableError when the engine drains or is dead. When the caller is cancelled or too late, what is
        not yet on the device is dropped.
        """
        self._check_available()
        if self._draining:
            raise UnavailableError("The server is draining and takes no new requests.")
        self._active += 1
        try:
            options = self._with_defaults(options or _DEFAULTS)
            if deadline == math.inf:
                return await self._classify(prompts, options, first_index, deadline)
            async with asyncio.timeout_at(deadline):
                return await self._classify(prompts, options, first_index, deadline)
        except TimeoutError:
            raise DeadlineError("The request was not answered within its time limit.") from None
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _classify(
        self, prompts: Seq[Prompt], options: Options, first_index: int, deadline: float
    ) -> list[Prediction]:
        combination = self._combination(options) if options.windowed else None
        sequences = await self._tokenize(prompts, options, first_index)
        for sequence in sequences:
            sequence.deadline = deadline
        predictions = await self._score(sequences) if sequences else []
        if combination:
            predictions = combined(sequences, predictions, combination)
        self._metrics.observe_predictions(predictions)
        return predictions

    def _check_available(self) -> None:
        if self.failure is not None:
            raise UnavailableError("The engine has failed and takes no more requests; see the server's log.")

    def _with_defaults(self, options: Options) -> Options:
        """The operator's word where the request has none."""
        if options.activation == "softmax" and len(self.model.labels) == 1:
            raise RequestError("A softmax over this model's one label is 1 for every text; leave it out.")
        if self.config.priority_order == "lower-first" and options.priority:
            options = replace(options, priority=-options.priority)
        if options.windowed or options.truncate_prompt_tokens is not None:
            return options
        cut, window = self.config.truncate_prompt_tokens, options.window or self.config.window
        if cut is None and window == "none":
            return options
        return replace(options, truncate_prompt_tokens=cut, window=window)

    def _combination(self, options: Options) -> Combination:
        """How windows become one prediction."""
        activation = options.activation or self.model.activation
        return Combination(options.window or "none", self.model.labels, activation, self.model.activation)

    async def with_tokenizer(self, call: Callable[[PromptEncoder], Result], num_tokens: int) -> Result:
        """`call` in one of the tokenizer's threads, admitted as so many tokens to score. Raises as `classify` does."""
        self._check_available()
        await self._admission.enter(num_tokens)
        try:
            return await self._threads.run(call, self._encoder)
        finally:
            self._admission.leave(num_tokens)

    def load_now(self) -> tuple[int, int, int]:
        """Requests accepted and not answered, sequences that wait for the device, and their tokens."""
        return self._active, self._scheduler.num_sequences, self._scheduler.num_tokens + self._admission.tokenizing

    def refuse(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    async def drain(self) -> None:
        """Refuse new work; return when everything accepted is answered."""
        self.refuse()
        while self._active:
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Stop the threads. Whatever still waits is told so; drain first to leave nobody waiting."""
        self._draining = True
        shutting_down = UnavailableError("The engine is shutting down.")
        self._settling.give_up()
        self._worker.close()
        self._threads.close(shutting_down)
        self._on_loop(self._fail_all, shutting_down)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        """Futures belong to the loop; `close` may come from any thread, and after the loop has gone."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)

    async def _tokenize(self, prompts: Seq[Prompt], options: Options, first_index: int) -> list[Sequence]:
        """Sequences that have their room in the queue until `_score` puts them there."""
        started = time.monotonic()
        longest = self.config.max_queue_tokens + 1 if options.windowed else self.max_model_len
        estimate = estimated_tokens(prompts, longest)
        await self._admission.enter(estimate)
        admitted = time.monotonic()
        try:
            if ChatPrompt in map(type, prompts):  # a template takes longer than its tokens
                sequences = await self._threads.run(self._encoder.encode, prompts, options, first_index)
            else:
                sequences = await self._threads.run_together(estimate, prompts, options, first_index)
        finally:
            self._admission.leave(estimate)
        now = time.monotonic()
        for sequence in sequences:
            sequence.arrival = now
            sequence.timings.tokenize = now - admitted
            sequence.timings.queue = admitted - started
            sequence.activation = options.activation or self.model.activation
        return sequences

    async def _score(self, sequences: list[Sequence]) -> list[Prediction]:
        self._check_running()
        waiter = Waiter(asyncio.get_running_loop().create_future(), sequences)
        shared = len(sequences) - len(waiter.out)
        for sequence in [*waiter.out]:
            if (known := self._cache.get(sequence)) is not None:
                waiter.put(sequence, known)
        if waiter.out:
            await self._queue([*waiter.out], waiter)
        try:
            predictions = await waiter.future
        finally:
            if waiter.out:
                self._forget([*waiter.out])
        if shared:
            self._metrics.shared_sequences.inc(shared)
        return predictions

    async def _queue(self, sequences: list[Sequence], waiter: Waiter) -> None:
        num_tokens = sum([sequence.num_tokens for sequence in sequences])
        if not self._admission.has_room(num_tokens, at_front=True):
            await self._admission.enter(num_tokens, at_front=True)
            self._admission.leave(num_tokens)  # those in line hear of it when these are queued
            self._check_running()
        self._waiters.update(dict.fromkeys(sequences, waiter))
        self._worker.add(sequences)
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_worker)

    def _check_running(self) -> None:
        """It may have died, or been closed, while the prompts were tokenized or stood in line."""
        self._check_available()
        if self._worker.stopped:
            raise UnavailableError("The engine is shutting down.")

    def _wake_worker(self) -> None:
        """At the end of this turn of the loop, so that what came together is computed together."""
        self._waking = False
        self._worker.wake()

    def _forget(self, sequences: Iterable[Sequence]) -> None:
        self._worker.cancel(sequences)
        for sequence in sequences:
            self._waiters.pop(sequence, None)
        self._admission.wake()

    def _taken(self) -> None:
        """On the loop: a batch has left the queue."""
        self._worker.prefetch()
        self._admission.wake()

    def _deliver(self, batch: Batch, answers: list[Prediction | AssayError]) -> None:
        """On the loop: hand each answer to its waiter."""
        for sequence, answer in zip(batch.sequences, answers, strict=True):
            waiter = self._waiters.pop(sequence, None)
            if isinstance(answer, Prediction):
                self._cache.put(sequence, answer)
            if waiter is not None:
                waiter.put(sequence, answer)
        self._metrics.observe_batch(batch.packed.num_tokens, batch.sequences)

    def _tokenizers_lost(self) -> None:
        _log.critical("Too many tokenizer threads hang; the engine takes no more requests.")
        self._die(InternalError("Its tokenizer hangs."))

    def _die(self, error: BaseException) -> None:
        self.failure = error
        self._fail_all(InternalError("The engine failed while this request was running; see the server's log."))

    def _fail_all(self, error: AssayError) -> None:
        waiters = set(self._waiters.values())
        self._waiters.clear()
        for waiter in waiters:
            waiter.fail(error)
        self._admission.dismiss(error)
