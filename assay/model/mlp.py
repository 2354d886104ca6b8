"""Feed-forward blocks and the activation functions that configs name. Knows nothing of attention or norms."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import CheckpointError
from assay.model.linear import Linear

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


class MLP(nn.Module):
    """Linear, activation, linear: [tokens, hidden] → [tokens, hidden]."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str) -> None:
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size)
        self.down = Linear(intermediate_size, hidden_size)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class GatedMLP(nn.Module):
    """down(act(gate x) * up x), gate and up in one matrix: [tokens, hidden] → [tokens, hidden] (Shazeer 2020)."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, bias)
        self.down = Linear(intermediate_size, hidden_size, bias)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(self.act(gate) * up)
        return out
