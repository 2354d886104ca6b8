"""One request as its connection sees it: whether its body is here, whether its client still is. Knows no HTTP."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from assay.errors import ClientGoneError


class Exchange:
    """Left by the protocol in `scope["exchange"]`, which spares each request a task that waits for its client to go.

    whole: the body is here, to its end. gone: the client has hung up. task: what answers; None: whoever asks.
    """

    __slots__ = ("_working", "gone", "task", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.gone = False
        self.task: asyncio.Task[Any] | None = None
        self._working: asyncio.Task[Any] | None = None

    @staticmethod
    def of(scope: Mapping[str, object]) -> "Exchange":
        """Where no protocol of ours is behind the application, a client that never goes."""
        exchange = scope.get("exchange")
        return exchange if isinstance(exchange, Exchange) else Exchange()

    def leave(self) -> None:
        """The client hangs up: nobody needs the work."""
        self.gone = True
        if self._working is not None:
            self._working.cancel()

    def __enter__(self) -> None:
        """What is awaited in the `with` block ends as soon as the client hangs up. Raises ClientGoneError."""
        self._working = self.task or asyncio.current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._working = self._working, None
        if self.gone and task is not None and isinstance(error, asyncio.CancelledError):
            task.uncancel()
            raise ClientGoneError("The client closed the connection.") from None
