"""The process: its signals, its limits, one line when it is ready. Knows no routes.

SIGTERM and SIGINT drain: accepted requests are answered, new ones get 503, then the process ends with 0. A second
signal ends it at once.
"""

import asyncio
import gc
import logging
import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from assay import __version__
from assay.config import EngineConfig, ServerConfig
from assay.server.app import build_app
from assay.server.listener import BACKLOG, address_of, listening, tls_context
from assay.server.outbox import Turn
from assay.server.protocol import LINGER_SECONDS, SPARE_CONNECTIONS, EdgeProtocol
from assay.server.service import Served, Service

_log = logging.getLogger("assay.server")
_LAST_BYTES_SECONDS = 5  # for answers that are computed and not yet read
_OTHER_FILES = 256  # that a process has open beside its connections


def serve(server_config: ServerConfig, engine_configs: Sequence[EngineConfig]) -> None:
    """Serve until told to stop. Raises SetupError when the port is taken or a model cannot be loaded."""
    started = time.monotonic()
    tls = tls_context(server_config)
    failure: list[Exception] = []
    with listening(server_config) as listener:
        service = Service(server_config, engine_configs)

        def on_loaded(error: Exception | None) -> None:
            if error is not None:
                failure.append(error)
                server.should_exit = True
            elif not server.should_exit:
                _spare_the_collector()
                _say(_ready_line(service, listener, time.monotonic() - started))

        config = uvicorn.Config(
            build_app(service, on_loaded),
            http=EdgeProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the application reads them
            timeout_graceful_shutdown=_LAST_BYTES_SECONDS + 2,
            lifespan="on",
        )
        server = _Server(config, service, tls)
        _allow_connections(server_config.max_connections)
        server.run(sockets=[listener])
    if failure:
        raise failure[0]


class _Server(uvicorn.Server):
    """uvicorn, with a drain before its shutdown, and limits on its connections."""

    def __init__(self, config: uvicorn.Config, service: Service, tls: ssl.SSLContext | None) -> None:
        super().__init__(config)
        self._service = service
        self._tls = tls
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._hurried = False  # by a second signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn listens with no limit of ours, TLS handshakes least of all, so it is given nothing to listen on."""
        self._loop = loop = asyncio.get_running_loop()
        await super().startup([])
        limits, turn = self._service.config, Turn(loop)

        def connected() -> EdgeProtocol:
            state = self.lifespan.state
            return EdgeProtocol(self.config, self.server_state, state, limits, self._service.metrics, turn)

        for listener in sockets or []:
            unix = listener.family is socket.AF_UNIX
            timeouts = (limits.header_timeout, LINGER_SECONDS) if self._tls else (None, None)
            create = loop.create_unix_server if unix else loop.create_server
            self.servers.append(
                await create(
                    connected,
                    sock=listener,
                    ssl=self._tls,
                    backlog=BACKLOG,
                    ssl_handshake_timeout=timeouts[0],
                    ssl_shutdown_timeout=timeouts[1],
                )
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn waits, then cancels, but what writes to a client that does not read outlives that: cut it off."""
        seconds = 0 if self._hurried else _LAST_BYTES_SECONDS
        cutting = asyncio.get_running_loop().call_later(seconds, self._cut_off)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None:  # before startup there is nothing to drain
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._draining is not None:
            self._hurried = self.should_exit = True
            self._cut_off()
            return
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        timeout = self._service.config.drain_timeout
        try:
            await asyncio.wait_for(self._service.drain(), timeout)
        except TimeoutError:
            _log.warning("Some requests were not answered within the drain timeout of %g s.", timeout)
        self.should_exit = True


def _allow_connections(wanted: int) -> None:
    """Raise this process's limit on open files to what the connections need, as far as the system lets it."""
    needed = wanted + SPARE_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return
    allowed = needed if hard == unlimited else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning(
            "This process may open %d files, too few for --max-connections %d; raise the limit (ulimit -n), or choose "
            "at most %d.",
            *(allowed, wanted, max(1, allowed - SPARE_CONNECTIONS - _OTHER_FILES)),
        )


def _spare_the_collector() -> None:
    """What is there now stays: torch's hundreds of thousands of objects, which a full collection walks for 0.2 s while
    nobody is answered. And requests leave no cycles: to look for some after every 700 objects took 7 % of their time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def _say(line: str) -> None:
    """On stdout. A disk that is full, or a reader who has left, is no reason to stop serving."""
    try:
        print(line, flush=True)
    except OSError as error:
        _log.warning("The ready line cannot be written to stdout: %s.", error.strerror or error)
        nowhere = os.open(os.devnull, os.O_WRONLY)  # else what print has left in its buffer fails again at the end
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _ready_line(service: Service, listener: socket.socket, seconds: float) -> str:
    address = address_of(service.config, listener)
    models = "; ".join(map(_description, service.models))
    return f"assay {__version__} is ready at {address}: {models}, {seconds:.1f} s"


def _description(served: Served) -> str:
    model = served.ready().model
    dtype = str(model.dtype).removeprefix("torch.") if served.config.quantization == "none" else "int8"
    labels = f"{len(model.labels)} labels" + ("" if model.calibration is None else ", calibrated")
    return f"{served.name}, {model.architecture}, {labels}, {dtype} on {model.device}"
