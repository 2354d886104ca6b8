"""One request as its connection sees it: whether its body is here, whether its client still is. Knows no HTTP."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from assay.errors import ClientGoneError

Result = TypeVar("Result")


class Exchange:
    """Left by the protocol in `scope["exchange"]`, which spares each request a task that waits for its client to go.

    whole: the body is here, to its end. gone: the client has hung up.
    """

    __slots__ = ("_working", "gone", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.gone = False
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

    async def unless_gone(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, which ends as soon as the client hangs up. Raises ClientGoneError."""
        task = self._working = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if not self.gone or task is None:
                raise
            task.uncancel()
            raise ClientGoneError("The client closed the connection.") from None
        finally:
            self._working = None
