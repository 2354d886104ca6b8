"""Feed-forward blocks. Knows nothing of attention or norms."""

from torch import Tensor, nn

from assay.model.linear import Linear


class MLP(nn.Module):
    """Linear, activation, linear: [tokens, hidden] → [tokens, hidden]."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str) -> None:
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size, act=act)
        self.down = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x))
        return out


class GatedMLP(nn.Module):
    """down(act(gate x) * up x): [tokens, hidden] → [tokens, hidden]."""

    def __init__(self, hidden_size: int, intermediate_size: int, act: str, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = Linear(hidden_size, intermediate_size, bias, act, gated=True)
        self.down = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.gate_up(x))
        return out
