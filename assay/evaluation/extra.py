"""The libraries of the extra `evaluate`, looked for before any work is done. Knows nothing of what they are for."""

from importlib.util import find_spec

from assay.errors import ConfigError

_LIBRARIES = {"numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def require_extra(command: str) -> None:
    """Raises ConfigError that says what to install."""
    missing = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"`assay {command}` needs {', '.join(missing)}: pip install 'assay[evaluate]'")
