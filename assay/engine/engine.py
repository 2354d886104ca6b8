"""From prompts to predictions: admission, tokenizing, queue, runner thread, futures, drain. Knows nothing of HTTP.

A request's life: `classify` counts it in → TokenizerPool → Scheduler → Batch → ModelRunner, on a thread of its own →
`_deliver`, back on the event loop → predictions. Every sequence ends in a prediction or an error.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Self

from assay.config import EngineConfig
from assay.engine.runner import Batch, ModelRunner, form
from assay.engine.scheduler import Scheduler
from assay.engine.tokenizer import TokenizerPool, answer_token_ids, load_tokenizer
from assay.errors import (
    AssayError,
    ConfigError,
    InternalError,
    QueueFullError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from assay.metrics import Metrics, ModelMetrics
from assay.model.registry import LoadedModel, load_model
from assay.model.weights import logit_score_ids, resolve
from assay.sequence import Options, Prediction, Prompt, Sequence, TextPrompt, TokenPrompt

_log = logging.getLogger("assay.engine")
_SHUTTING_DOWN = "The engine is shutting down."
_CHARACTERS_PER_TOKEN = 4  # stands for a text's tokens until they are counted


class Engine:
    """One model, scored by one runner thread. Made by `load`, used from one event loop after `start`.

    max_model_len: the longest sequence in tokens. failure: what killed the runner thread, if anything did.
    """

    def __init__(
        self, config: EngineConfig, model: LoadedModel, pool: TokenizerPool, max_model_len: int, metrics: ModelMetrics
    ) -> None:
        self.config = config
        self.model = model
        self.max_model_len = max_model_len
        self.failure: BaseException | None = None
        self._metrics = metrics
        self._pool = pool
        self._runner = ModelRunner(model)
        self._scheduler = Scheduler(config.max_batch_tokens)
        self._waiters: dict[Sequence, _Waiter] = {}
        self._tokenizing = 0  # tokens, as estimated, of prompts that are being tokenized
        self._active = 0  # classify calls that have been accepted and not answered
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        # Guards the scheduler and the three fields below: the loop and the runner thread both take batches.
        self._wake = threading.Condition()
        self._prefetched: Batch | None = None
        self._running = False
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="assay-runner", daemon=True)
        metrics.queue_tokens.set_function(lambda: self._scheduler.num_tokens + self._tokenizing)
        metrics.queue_sequences.set_function(lambda: self._scheduler.num_sequences)

    @classmethod
    def load(cls, config: EngineConfig, metrics: Metrics | None = None) -> Self:
        """Resolve, read and warm up the model. Slow: call it off the event loop. Raises SetupError."""
        folder = resolve(config.model, config.revision, config.allow_pickle)
        adapter = resolve(config.adapter) if config.adapter else None
        text_tokenizer = load_tokenizer(folder, config.chat_template_path)
        answer_ids = answer_token_ids(config.classifier_from_token, text_tokenizer.tokenizer) or logit_score_ids(folder)
        model = load_model(
            folder, config.dtype, config.device, config.activation, adapter, config.allow_pickle, answer_ids
        )
        max_model_len = _max_model_len(config.max_model_len, text_tokenizer.model_max_length, model.max_positions)
        pool = TokenizerPool(
            text_tokenizer,
            model.vocab_size,
            max_model_len,
            config.tokenizer_threads,
            model.type_vocab_size,
            pairs_need_template=answer_ids is not None,
        )
        engine = cls(config, model, pool, max_model_len, (metrics or Metrics()).of(config.served_name))
        engine._runner.warm_up()
        return engine

    def start(self) -> None:
        """Begin to take work, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def available(self) -> bool:
        """Whether new work is taken: neither draining nor dead."""
        return self.failure is None and not self._draining

    async def classify(
        self, prompts: Seq[Prompt], options: Options | None = None, first_index: int = 0
    ) -> list[Prediction]:
        """Score prompts; one prediction each, in order.

        Raises RequestError for what cannot be scored, QueueFullError when too much waits, UnavailableError when the
        engine drains or is dead. When the caller is cancelled, what is not yet on the device is dropped.
        """
        if self.failure is not None:
            raise UnavailableError("The engine has failed and takes no more requests; see the server's log.")
        if self._draining:
            raise UnavailableError("The server is draining and takes no new requests.")
        self._active += 1
        try:
            sequences = await self._tokenize(prompts, self._with_defaults(options or Options()), first_index)
            return await self._score(sequences) if sequences else []
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    def _with_defaults(self, options: Options) -> Options:
        """The operator's word where the request has none."""
        if options.activation == "softmax" and len(self.model.labels) == 1:
            raise RequestError("A softmax over this model's one label is 1 for every text; leave it out.")
        if options.truncate_prompt_tokens is not None or self.config.truncate_prompt_tokens is None:
            return options
        return replace(options, truncate_prompt_tokens=self.config.truncate_prompt_tokens)

    def load_now(self) -> tuple[int, int, int]:
        """Requests accepted and not answered, sequences that wait for the device, and their tokens."""
        return self._active, self._scheduler.num_sequences, self._scheduler.num_tokens + self._tokenizing

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
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.close()
        self._on_loop(self._fail_all, UnavailableError(_SHUTTING_DOWN))

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        """Futures belong to the loop; `close` may come from any thread, and after the loop has gone."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call, *args)

    async def _tokenize(self, prompts: Seq[Prompt], options: Options, first_index: int) -> list[Sequence]:
        started = time.monotonic()
        estimate = sum(min(_estimate(prompt), self.max_model_len) for prompt in prompts)
        self._check_room(estimate)
        self._tokenizing += estimate
        try:
            sequences = await self._pool.encode(prompts, options, first_index)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._stopped and not (task and task.cancelling()):  # by `close`, not by the caller
                raise UnavailableError(_SHUTTING_DOWN) from None
            raise
        finally:
            self._tokenizing -= estimate
        self._check_room(sum(sequence.num_tokens for sequence in sequences))
        now = time.monotonic()
        for sequence in sequences:
            sequence.arrival = now
            sequence.timings.tokenize = now - started
            sequence.activation = options.activation or self.model.activation
        return sequences

    def _check_room(self, num_tokens: int) -> None:
        """Admission: refuse rather than queue without end."""
        limit = self.config.max_queue_tokens
        if num_tokens > limit:
            raise TooLargeError(
                f"The request has about {num_tokens} tokens, more than the whole queue holds ({limit}); split it."
            )
        if self._scheduler.num_tokens + self._tokenizing + num_tokens > limit:
            raise QueueFullError(f"The queue is full ({limit} tokens wait); try again later.")

    async def _score(self, sequences: list[Sequence]) -> list[Prediction]:
        if self.failure is not None:  # it died while the prompts were tokenized
            raise UnavailableError("The engine has failed and takes no more requests; see the server's log.")
        if self._stopped:
            raise UnavailableError(_SHUTTING_DOWN)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), len(sequences))
        self._waiters.update((sequence, waiter) for sequence in sequences)
        with self._wake:
            self._scheduler.add(sequences)
            self._wake.notify()
        self._prefetch()
        try:
            return await waiter.future
        finally:
            if waiter.remaining:
                self._forget(sequences)

    def _forget(self, sequences: Iterable[Sequence]) -> None:
        with self._wake:
            self._scheduler.cancel(sequences)
        for sequence in sequences:
            self._waiters.pop(sequence, None)

    def _prefetch(self) -> None:
        """On the loop: while one batch runs, form the next once it is full. A partial one stays open to newcomers."""
        with self._wake:
            full = self._scheduler.num_tokens >= self.config.max_batch_tokens
            if not (self._running and full and self._prefetched is None):
                return
            sequences = self._scheduler.next_batch()
        try:
            batch = form(sequences)
        except Exception as error:  # an edge: these sequences have left the queue, so nobody else would tell them
            self._die(error)
            return
        with self._wake:
            self._prefetched = batch
            self._wake.notify()

    def _work(self) -> None:
        """The runner thread: take, run, hand back, until stopped. Anything that escapes a batch ends the engine."""
        try:
            while (batch := self._take()) is not None:
                answers = self._runner.run(batch)
                self._on_loop(self._deliver, batch, answers)
        except BaseException as error:  # an edge: whoever waits is told
            _log.critical("The runner thread failed.", exc_info=error)
            self._on_loop(self._die, error)

    def _take(self) -> Batch | None:
        """On the runner thread: the prefetched batch, or what waits; sleeps while there is nothing; None to stop."""
        with self._wake:
            self._running = False
            while not self._stopped:
                if self._prefetched is not None:
                    batch, self._prefetched = self._prefetched, None
                    self._running = True
                    self._on_loop(self._prefetch)
                    return batch
                if sequences := self._scheduler.next_batch():
                    self._running = True
                    self._on_loop(self._prefetch)
                    break
                self._wake.wait()
            else:
                return None
        return form(sequences)

    def _deliver(self, batch: Batch, answers: list[Prediction | AssayError]) -> None:
        """On the loop: hand each answer to its waiter."""
        for sequence, answer in zip(batch.sequences, answers, strict=True):
            waiter = self._waiters.pop(sequence, None)
            if waiter is not None:
                waiter.put(sequence.index, answer)
        self._count(batch)

    def _count(self, batch: Batch) -> None:
        metrics = self._metrics
        metrics.batch_tokens.observe(batch.packed.num_tokens)
        metrics.batch_sequences.observe(len(batch.sequences))
        metrics.tokens.inc(batch.packed.num_tokens)
        metrics.sequences.inc(len(batch.sequences))
        for sequence in batch.sequences:
            metrics.observe_stages(sequence.timings)

    def _die(self, error: BaseException) -> None:
        self.failure = error
        self._fail_all(InternalError("The engine failed while this request was running; see the server's log."))

    def _fail_all(self, error: AssayError) -> None:
        waiters = set(self._waiters.values())
        self._waiters.clear()
        for waiter in waiters:
            waiter.fail(error)


class _Waiter:
    """The future of one classify call, and how many of its answers are still out."""

    def __init__(self, future: "asyncio.Future[list[Prediction]]", count: int) -> None:
        self.future = future
        self.remaining = count
        self._predictions: list[Prediction | None] = [None] * count

    def put(self, index: int, answer: Prediction | AssayError) -> None:
        if isinstance(answer, AssayError):
            self.fail(answer)
        elif not self.future.done():
            self._predictions[index] = answer
            self.remaining -= 1
            if not self.remaining:
                self.future.set_result([p for p in self._predictions if p is not None])

    def fail(self, error: AssayError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _estimate(prompt: Prompt) -> int:
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    if isinstance(prompt, TextPrompt):
        characters = len(prompt.text) + len(prompt.text_pair or "")
    else:
        characters = sum(len(str(message.get("content"))) for message in prompt.messages)
    return characters // _CHARACTERS_PER_TOKEN + 1


def _max_model_len(asked: int | None, tokenizer: int | None, positions: int) -> int:
    """The smallest of what the operator asks, what the tokenizer's config says and what the model can number."""
    if asked is not None and asked > positions:
        raise ConfigError(f"max_model_len is {asked}, but this model reads at most {positions} tokens.")
    return min(n for n in (asked, tokenizer, positions) if n is not None)
