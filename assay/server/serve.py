"""The process: its socket, its signals, one line when it is ready. Knows no routes.

SIGTERM and SIGINT drain: accepted requests are answered, new ones get 503, then the process ends with 0. A second
signal ends it at once.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from assay import __version__
from assay.config import EngineConfig, ServerConfig
from assay.errors import ConfigError
from assay.server.app import build_app
from assay.server.service import Served, Service

_log = logging.getLogger("assay.server")
_LAST_BYTES_SECONDS = 5  # for answers that are computed and not yet read, and for bodies that never end


def serve(server_config: ServerConfig, engine_configs: Sequence[EngineConfig]) -> None:
    """Serve until told to stop. Raises SetupError when the port is taken or a model cannot be loaded."""
    started = time.monotonic()
    listener = _listen(server_config.host, server_config.port)
    service = Service(server_config, engine_configs)
    failure: list[Exception] = []

    def on_loaded(error: Exception | None) -> None:
        if error is None:
            if not server.should_exit:
                print(_ready_line(service, listener, time.monotonic() - started), flush=True)
        else:
            failure.append(error)
            server.should_exit = True

    config = uvicorn.Config(
        build_app(service, on_loaded),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_BYTES_SECONDS,
        lifespan="on",
    )
    server = _Server(config, service)
    with listener:
        server.run(sockets=[listener])
    if failure:
        raise failure[0]


class _Server(uvicorn.Server):
    """uvicorn, with a drain before its shutdown."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None:  # before startup there is nothing to drain
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._draining is not None:
            self.force_exit = self.should_exit = True
            return
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        timeout = self._service.config.drain_timeout
        try:
            await asyncio.wait_for(self._service.drain(), timeout)
        except TimeoutError:
            _log.warning("Some requests were not answered within the drain timeout of %g s.", timeout)
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port."
        ) from error
    return listener


def _ready_line(service: Service, listener: socket.socket, seconds: float) -> str:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    models = "; ".join(map(_description, service.models))
    return f"assay {__version__} is ready at http://{address}: {models}, {seconds:.1f} s"


def _description(served: Served) -> str:
    model = served.ready().model
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{served.name}, {model.architecture}, {len(model.labels)} labels, {dtype} on {model.device}"
