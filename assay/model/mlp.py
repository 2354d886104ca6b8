"""Feed-forward blocks. Knows nothing of attention or norms."""

from torch import Tensor, nn

from assay.model.linear import Linear


class MLP(nn.Module):
    """down(act(up x)), or, gated, down(act(gate x) * up x), with gate over up in one: [tokens, hidden] → the same."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, act: str, bias: bool = True, gated: bool = False
    ) -> None:
        super().__init__()
        self.up = Linear(hidden_size, intermediate_size, bias, act, gated)
        self.down = Linear(intermediate_size, hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x))
        return out
