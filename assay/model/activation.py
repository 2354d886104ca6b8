"""The activation functions that configs name. Knows nothing of layers."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from assay.errors import CheckpointError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": Tensor.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function that a config's `hidden_act` names. Raises CheckpointError for an unknown name."""
    if name not in ACTIVATIONS:
        raise CheckpointError(f"config.json names the activation {name!r}; supported are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]
