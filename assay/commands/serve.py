"""`assay serve`: models over HTTP."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from assay.commands.options import configured, options_of, with_options
from assay.config import EngineConfig, ServerConfig, settings
from assay.errors import ConfigError
from assay.imports import importing_torch

_CALIBRATION = settings(EngineConfig)["calibration"][1]


@with_options(*options_of(ServerConfig), *options_of(EngineConfig, without=("model", "name", "calibration")))
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]MODEL]...",
            help="Folders or hub ids; options hold for all.",
            show_default="bundled emotions",
        ),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help=f"{_CALIBRATION.help} Of several models: NAME=FILE for each that has one.",
        ),
    ] = None,
    **values: Any,
) -> None:
    """Serve models over HTTP: POST /v1/classify, and the other callers' paths.

    assay serve

    assay serve unitary/toxic-bert --port 9000

    assay serve ./my-checkpoint --served-model-name sentiment --max-model-len 256

    assay serve sentiment=./my-checkpoint toxic=unitary/toxic-bert
    """
    level = values["log_level"].upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server_config = configured(ServerConfig, values, api_keys=api_keys(values["api_keys"]))
    engine_config = configured(EngineConfig, values)
    with importing_torch(own_process=True):
        from assay.server.access_log import write_access_log
        from assay.server.serve import serve as run

    write_access_log(server_config)
    named = [_named(engine_config, model) for model in models or [engine_config.model]]
    run(server_config, _calibrated(named, calibration or []))


def api_keys(options: list[str] | None) -> tuple[str, ...]:
    """The options, else the environment's. A variable that is set and empty is a mistake, and no open server."""
    if options:
        return tuple(options)
    variable = os.environ.get("ASSAY_API_KEY")
    return () if variable is None else tuple(key.strip() for key in variable.split(","))


def _calibrated(configs: list[EngineConfig], files: list[str]) -> list[EngineConfig]:
    """Each model with its calibration. A file's name alone is the one model's. Raises ConfigError."""
    names = [config.served_name for config in configs]
    found: dict[str, str] = {}
    for argument in files:
        name, equals, path = argument.partition("=")
        if len(configs) == 1 and (not equals or Path(argument).exists()):
            name, path = names[0], argument
        if name not in names or not path or name in found:
            raise ConfigError(
                f"--calibration is {argument!r}; of the models {', '.join(names)} write NAME=FILE, once for each name."
            )
        found[name] = path
    return [replace(config, calibration=found.get(config.served_name)) for config in configs]


def _named(config: EngineConfig, argument: str) -> EngineConfig:
    """`NAME=MODEL`, or a model that is called what it is."""
    name, equals, model = argument.partition("=")
    if not equals or Path(argument).exists():
        return replace(config, model=argument)
    return replace(config, model=model, name=name or None)
