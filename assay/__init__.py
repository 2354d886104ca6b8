"""assay: text classifiers, reward models and rerankers, served. Importing it is free; `Classifier` loads torch."""

from importlib import import_module
from typing import Any

from assay.errors import AssayError
from assay.imports import importing_torch

__version__ = "0.1.0"
__all__ = ["AssayError", "Classifier", "Options", "Prediction", "__version__"]

_LAZY = {"Classifier": "assay.classifier", "Options": "assay.sequence", "Prediction": "assay.sequence"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with importing_torch():
            globals()[name] = getattr(import_module(_LAZY[name]), name)  # so that this is asked once
        return globals()[name]
    raise AttributeError(f"module 'assay' has no attribute {name!r}")
