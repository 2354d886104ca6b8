"""One call on a thread that ends with it. Knows no model and no event loop."""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")

_LEAVING_SECONDS = 2.0


def aside(work: Callable[[], Result], name: str) -> Result:
    """The call's result, or what it raises. name: the thread's.

    A process that is to end does not wait for all of it, which may be a download, but for some seconds, since a thread
    that comes back from torch when the interpreter has gone ends the process by SIGABRT.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # an edge: raised again below
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    leave = partial(thread.join, _LEAVING_SECONDS)
    atexit.register(leave)
    thread.start()
    thread.join()  # an interrupt here leaves the thread, and what waits for it
    atexit.unregister(leave)
    return outcome.result()
