"""What the routes share: the models served, and whether they load, are ready, drain or are dead. Knows no HTTP."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from assay.config import EngineConfig, ServerConfig
from assay.engine.engine import Engine
from assay.errors import ConfigError, ModelNotFoundError, UnavailableError
from assay.metrics import Metrics


@dataclass(slots=True)
class Served:
    """One model: its name, its settings, and its engine once that is loaded."""

    config: EngineConfig
    engine: Engine | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.config.served_name

    @property
    def available(self) -> bool:
        """Whether it takes work."""
        return self.engine is not None and self.engine.available

    @property
    def state(self) -> str:
        """`ok`, or why it takes no work: `loading`, `draining` or `dead`."""
        if self.engine is None:
            return "loading"
        if self.engine.failure is not None:
            return "dead"
        return "ok" if self.engine.available else "draining"

    def ready(self) -> Engine:
        """The engine. Raises UnavailableError while it loads."""
        if self.engine is None:
            raise UnavailableError("The model is still loading; try again in a moment.")
        return self.engine


class Service:
    """The models of one process; the first is the default. `load` makes an engine, slowly, off the event loop.

    Raises ConfigError when two models have one name.
    """

    def __init__(
        self,
        server: ServerConfig,
        engines: EngineConfig | Sequence[EngineConfig],
        load: Callable[..., Engine] = Engine.load,
    ) -> None:
        configs = [engines] if isinstance(engines, EngineConfig) else list(engines)
        if server.served_model_name is not None:
            if len(configs) > 1:
                raise ConfigError("served_model_name names one model; with several, write NAME=MODEL for each.")
            configs = [replace(configs[0], name=server.served_model_name)]
        self.config = server
        self.models = [Served(config) for config in configs]
        names = [served.name for served in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(f"Two models have the same name: {', '.join(names)}. Write NAME=MODEL for each.")
        self.created = int(time.time())
        self.metrics = Metrics()
        for served in self.models:
            self.metrics.of(served.name).read_state(partial(getattr, served, "state"))
        self._load = load

    @property
    def default(self) -> Served:
        return self.models[0]

    @property
    def engine(self) -> Engine | None:
        """The default model's engine."""
        return self.default.engine

    @property
    def engines(self) -> list[Engine]:
        """Every engine that is loaded."""
        return [served.engine for served in self.models if served.engine is not None]

    def load(self, served: Served) -> Engine:
        """Slow; raises SetupError. The caller starts the engine on its loop and sets `served.engine`."""
        return self._load(served.config, self.metrics)

    @property
    def status(self) -> str:
        """`ok`, or why no work is taken: `loading`, `draining` or `dead`. One dead model is enough."""
        if len(self.engines) < len(self.models):
            return "loading"
        if any(engine.failure is not None for engine in self.engines):
            return "dead"
        return "ok" if all(engine.available for engine in self.engines) else "draining"

    def serving(self, model: str | None, any_model: bool = False) -> Served:
        """The model of a name; None or empty is the default. Raises ModelNotFoundError.

        any_model: a name that is not served means the default too.
        """
        if not model:
            return self.default
        for served in self.models:
            if served.name == model:
                return served
        if any_model:
            return self.default
        names = ", ".join(f"`{served.name}`" for served in self.models)
        raise ModelNotFoundError(f"The model `{model}` does not exist. This server has {names}.", param="model")

    async def drain(self) -> None:
        """Refuse new work and wait until everything accepted is answered."""
        for engine in self.engines:
            engine.refuse()
        for engine in self.engines:
            await engine.drain()
