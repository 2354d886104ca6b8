"""The runner thread: takes batches from the scheduler, runs them, hands the answers on. Knows no request and no future.

A batch that fails is split until the one sequence at fault is alone, and only that one gets the error. When the device
itself no longer works, which one more small batch tells, the thread ends and says so.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable

from assay.engine.runner import Batch, ModelRunner, form
from assay.engine.scheduler import Scheduler
from assay.errors import AssayError, InternalError
from assay.sequence import Prediction, Sequence

_log = logging.getLogger("assay.engine")

Answers = list[Prediction | AssayError]

_JOIN_SECONDS = 5.0


class Worker:
    """One thread, one runner, one queue.

    Called on the thread: on_taken() when a batch has left the queue; on_answers(batch, answers); on_death(error) when
    the thread ends by itself. `add`, `wake`, `prefetch` and `cancel` are for the event loop.
    failures: forward passes that failed.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        on_taken: Callable[[], None],
        on_answers: Callable[[Batch, Answers], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.prefetched: Batch | None = None
        self.stopped = False
        self.failures = 0
        self._on_taken = on_taken
        self._on_answers = on_answers
        self._on_death = on_death
        self._wake = threading.Condition()  # guards the scheduler, `prefetched`, `stopped` and `_running`
        self._running = False
        self._thread = threading.Thread(target=self._work, name="assay-runner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue the sequences of one request. The thread, if it sleeps, hears of them with `wake`.

        A batch that was formed ahead is given up where they come before it: they are to wait for one batch, not two.
        """
        with self._wake:
            self.scheduler.add(sequences, ahead=self.prefetched is not None)
            if self.prefetched is not None and self.scheduler.is_overtaken(self.prefetched.sequences):
                self.scheduler.put_back(self.prefetched.sequences)
                self.prefetched = None

    def wake(self) -> None:
        """There is something in the queue."""
        with self._wake:
            self._wake.notify()
        self.prefetch()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """Nobody waits for these any more; what is not on the device yet is not computed."""
        with self._wake:
            self.scheduler.cancel(sequences)

    def prefetch(self) -> None:
        """While one batch runs, form the next once it is full. A partial one stays open to newcomers.

        The thread, should it want one meanwhile, waits for this batch: were another cut first, this one could no longer
        be put back.
        """
        with self._wake:
            full = self.scheduler.num_tokens >= self.scheduler.max_batch_tokens
            if not (self._running and full and self.prefetched is None):
                return
            sequences = self.scheduler.next_batch(time.monotonic())
            if not sequences:
                return
            try:
                self.prefetched = form(sequences)
            except Exception as error:  # an edge: these sequences have left the queue, so nobody else would tell them
                self._on_death(error)
                return
            self._wake.notify()

    def close(self) -> None:
        """Stop after the batch that runs; a device that hangs is not waited for."""
        with self._wake:
            self.stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        try:
            while (batch := self._take()) is not None:
                self._on_answers(batch, self._answers(batch))
        except BaseException as error:  # an edge: whoever waits is told
            _log.critical("The runner thread failed: %s.\n%s", type(error).__name__, _frames(error))
            self._on_death(error)

    def _take(self) -> Batch | None:
        """What was prefetched, or what waits; sleeps while there is nothing; None to stop."""
        with self._wake:
            self._running = False
            while not self.stopped:
                batch, self.prefetched = self.prefetched, None
                sequences = _live(batch) if batch is not None else self.scheduler.next_batch(time.monotonic())
                if sequences:
                    self._running = True
                    self._on_taken()
                    break
                if batch is None:
                    self._wake.wait()
            else:
                return None
        return batch if batch is not None and len(batch.sequences) == len(sequences) else form(sequences)

    def _answers(self, batch: Batch) -> Answers:
        """One answer for each sequence, in the batch's order. Raises what is wrong with the device itself."""
        try:
            return self.runner.run(batch)
        except Exception as error:  # an edge: the caller of the one sequence at fault is told, and nobody else
            self.failures += 1
            out_of_memory = self.runner.recover(error)
            if len(batch.sequences) == 1:
                _log.error("A forward pass failed: %s.\n%s", type(error).__name__, _frames(error))
                return [_failure(batch.sequences[0], out_of_memory)]
        half = len(batch.sequences) // 2
        return [
            answer for part in (batch.sequences[:half], batch.sequences[half:]) for answer in self._answers(form(part))
        ]


def _live(batch: Batch) -> list[Sequence]:
    """Without those whose callers gave up since the batch was formed."""
    now = time.monotonic()
    return [sequence for sequence in batch.sequences if not sequence.cancelled and sequence.deadline > now]


def _failure(sequence: Sequence, out_of_memory: bool) -> InternalError:
    if out_of_memory:
        return InternalError(f"Scoring this input of {sequence.num_tokens} tokens takes more memory than there is.")
    return InternalError("The model failed on this input; the server's log has the details.")


def _frames(error: BaseException) -> str:
    """Where it happened, without the message, which may quote a caller's text."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()
