"""What the routes share: the engine, its name, whether it is loading, ready, draining or dead. Knows no HTTP."""

import time
from collections.abc import Callable

from assay.config import EngineConfig, ServerConfig
from assay.engine.engine import Engine
from assay.errors import ModelNotFoundError, UnavailableError
from assay.metrics import Metrics


class Service:
    """One served model. `load` is called once, off the event loop, and gives the engine."""

    def __init__(self, server: ServerConfig, engine: EngineConfig, load: Callable[..., Engine] = Engine.load) -> None:
        self.config = server
        self.engine_config = engine
        self.name = server.served_model_name or engine.default_name
        self.created = int(time.time())
        self.metrics = Metrics()
        self.engine: Engine | None = None
        self._load = load

    def load(self) -> Engine:
        """Slow; raises SetupError. The caller starts the engine on its loop and sets `engine`."""
        return self._load(self.engine_config, self.metrics)

    @property
    def status(self) -> str:
        """`ok`, or why no work is taken: `loading`, `draining` or `dead`."""
        if self.engine is None:
            return "loading"
        if self.engine.failure is not None:
            return "dead"
        return "ok" if self.engine.available else "draining"

    def engine_for(self, model: str | None) -> Engine:
        """The engine that serves a model's name; None or empty is the served one."""
        if model and model != self.name:
            raise ModelNotFoundError(
                f"The model `{model}` does not exist. This server has `{self.name}`.", param="model"
            )
        if self.engine is None:
            raise UnavailableError("The model is still loading; try again in a moment.")
        return self.engine

    async def drain(self) -> None:
        """Refuse new work and wait until everything accepted is answered."""
        if self.engine is not None:
            await self.engine.drain()
