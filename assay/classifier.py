"""The library's face: `Classifier(model).classify(texts)`, synchronous. The engine inside is the server's own."""

import asyncio
import atexit
import threading
from collections.abc import Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from assay.config import EngineConfig
from assay.engine.engine import Engine
from assay.errors import RequestError, UnavailableError
from assay.model.registry import LoadedModel
from assay.sequence import ChatPrompt, Options, Prediction, Prompt, TextPrompt, TokenPrompt

# Prompts handed to the engine at once: enough to fill several batches, few enough to keep memory flat.
_CHUNK = 512


class Classifier:
    """A text classifier, reward model or cross-encoder, loaded and ready.

    model: a folder or a hub id; None is the bundled emotion classifier; or a whole EngineConfig. Further keywords are
        fields of EngineConfig.
    Raises SetupError (CheckpointError, ConfigError) when the model cannot be loaded.
    Holds threads until `close`, or the end of a `with` block, or of the process. May be used from several threads, but
        not in a fork of the process that made it, where those threads are not.
    """

    def __init__(self, model: str | EngineConfig | None = None, **config: Any) -> None:
        if isinstance(model, EngineConfig):
            self._engine = Engine.load(replace(model, **config))
        else:
            self._engine = Engine.load(EngineConfig(**config) if model is None else EngineConfig(str(model), **config))
        self._closed = False
        self._guard = threading.Lock()
        self._loop = _event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="assay-classifier", daemon=True)
        self._thread.start()
        self._loop.call_soon_threadsafe(self._engine.start)
        # A timer of uvloop's that comes due when the interpreter has gone ends the process by SIGSEGV.
        atexit.register(self.close)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of `Prediction.probs`."""
        return self._engine.model.labels

    @property
    def model(self) -> LoadedModel:
        """What was loaded: its labels, activation, architecture, precision and device."""
        return self._engine.model

    def classify(self, inputs: str | Iterable[Any], **options: Any) -> list[Prediction]:
        """Score inputs; one Prediction each, in order.

        inputs: one text; or an iterable of texts, (text, text_pair) tuples, conversations (lists of messages with
            `role` and `content`), or lists of token ids.
        options: fields of Options, e.g. `truncate_prompt_tokens=-1` or `activation="none"`.
        Raises RequestError for an input that cannot be scored, e.g. ContextLengthError for one that is too long.
        """
        prompts = [_prompt(item) for item in ([inputs] if isinstance(inputs, str) else inputs)]
        checked = Options(**options)
        with self._guard:
            if self._closed:
                raise UnavailableError("This classifier is closed.")
            if not self._thread.is_alive():
                raise UnavailableError("This process is a fork of the one that made the classifier; make one here.")
            answer = asyncio.run_coroutine_threadsafe(self._classify(prompts, checked), self._loop)
        return answer.result()

    async def _classify(self, prompts: list[Prompt], options: Options) -> list[Prediction]:
        """Chunk by chunk, the next one tokenized and queued while the last is computed."""
        predictions: list[Prediction] = []
        tasks: list[asyncio.Task[list[Prediction]]] = []  # at most two: the one awaited and the one ahead
        try:
            for start in range(0, len(prompts), _CHUNK):
                chunk = prompts[start : start + _CHUNK]
                tasks.append(asyncio.create_task(self._engine.classify(chunk, options, start)))
                if len(tasks) > 1:
                    predictions += await tasks.pop(0)
            if tasks:
                predictions += await tasks.pop()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return predictions

    def close(self) -> None:
        """Stop the threads. Safe to call twice."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        if not self._thread.is_alive():  # in a fork
            return
        self._engine.close()
        asyncio.run_coroutine_threadsafe(self._engine.drain(), self._loop).result()  # whoever waits hears of it
        asyncio.run_coroutine_threadsafe(_others_done(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which wakes threads sooner, where there is one: on a single text, 2 % of the time (MiniLM)."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _others_done() -> None:
    """Wait for every other task of this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def _prompt(item: Any) -> Prompt:
    if isinstance(item, str):
        return TextPrompt(item)
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return TextPrompt(*item)
    if isinstance(item, list) and item and all(type(token_id) is int for token_id in item):
        return TokenPrompt(item)
    if isinstance(item, list) and item and all(isinstance(message, dict) for message in item):
        return ChatPrompt(item)
    raise RequestError(
        f"An input is of type {type(item).__name__} ({str(item)[:60]!r}); give a str, a (str, str) tuple, "
        "a conversation (list of messages), or a non-empty list of token ids."
    )
