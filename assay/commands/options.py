"""Settings to command-line options: each flag is declared once, in config.py. Knows no command."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Annotated, Any, TypeVar, get_origin

import typer

from assay.config import settings

Command = TypeVar("Command", bound=Callable[..., Any])
Config = TypeVar("Config")

# Options whose names are not their settings'.
_FLAGS = {
    "model": ("--model", "-m"),
    "output": ("--output", "-o"),
    "label_columns": ("--label-column",),
    "api_keys": ("--api-key",),
    "allowed_hosts": ("--allowed-host",),
    "cors_origins": ("--cors-origin",),
    "trusted_proxies": ("--trusted-proxy",),
}


def options_of(
    config: Callable[..., Any], only: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> list[Parameter]:
    """An option for each setting of a config, or for `only` these."""
    return [_option(name, config) for name in only or settings(config) if name not in without]


def with_options(*options: Parameter) -> Callable[[Command], Command]:
    """Give a command that takes `**values` these options, as typer reads a signature."""

    def decorate(command: Command) -> Command:
        own = [p for p in signature(command).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        named = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in own] + list(options)
        command.__signature__ = signature(command).replace(parameters=named)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in named}
        return command

    return decorate


def configured(config: Callable[..., Config], values: dict[str, Any], **more: Any) -> Config:
    """The config of what was given on the command line. Raises ConfigError."""
    names = settings(config)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in names}
    return config(**given | more)


def _option(name: str, config: Callable[..., Any]) -> Parameter:
    kind, setting = settings(config)[name]
    default = getattr(config(), name)
    flags = _FLAGS.get(name, (f"--{name.replace('_', '-')}",))  # named, so that a switch has no --no- twin
    show = "the bundled emotions" if name == "model" else default not in (None, (), False)
    repeated = get_origin(kind) is tuple  # typer repeats lists
    plain: Any = list[str] if repeated else kind
    annotation = Annotated[plain, typer.Option(*flags, help=setting.help, show_default=show)]
    return Parameter(
        name, Parameter.KEYWORD_ONLY, default=list(default) if repeated else default, annotation=annotation
    )
