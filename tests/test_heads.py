"""Pooling, heads and activations: extremes that overflow a careless softmax, and float32 under any trunk."""

import math

import pytest
import torch
from torch import Tensor, nn

from assay.model.batch import PackedBatch, Rows, pack, pick
from assay.model.blueprint import HeadSpec
from assay.model.heads import POOLS, TextClassifier, activate, build_head
from assay.sequence import Sequence


def packed(*lengths: int) -> PackedBatch:
    return pack([Sequence([1] * length) for length in lengths])


@pytest.mark.parametrize(
    ("logits", "probs"),
    [
        ([-100.0, 5.0], [math.exp(-105.0), 1.0]),
        ([5.0, 1e4], [0.0, 1.0]),
        ([1e4, 5.0], [1.0, 0.0]),
        ([-1e30, 1e30], [0.0, 1.0]),
        ([3e38, 3e38], [0.5, 0.5]),
        ([-3e38, -3e38, -3e38], [1 / 3] * 3),
        ([0.0, math.log(3.0)], [0.25, 0.75]),
        ([7.0], [1.0]),
    ],
    ids=str,
)
def test_softmax_survives_extremes(logits: list[float], probs: list[float]) -> None:
    got = activate(torch.tensor([logits]), "softmax")[0].tolist()
    assert got == pytest.approx(probs, rel=1e-6, abs=1e-40)
    assert sum(got) == pytest.approx(1.0, abs=1e-6)


def test_softmax_is_by_row() -> None:
    """One row's enormous logits must not shift its neighbours': the flaw of a maximum over the whole batch."""
    got = activate(torch.tensor([[1e4, 0.0], [0.0, math.log(3.0)]]), "softmax")
    assert got[1].tolist() == pytest.approx([0.25, 0.75], abs=1e-6)


def test_sigmoid_extremes() -> None:
    got = activate(torch.tensor([[-1e4, -100.0, 0.0, math.log(3.0), 100.0, 1e4]]), "sigmoid")[0].tolist()
    assert got == pytest.approx([0.0, math.exp(-100.0), 0.5, 0.75, 1.0, 1.0], rel=1e-6, abs=1e-40)


def test_none_is_the_identity() -> None:
    logits = torch.tensor([[-1e30, 23.0, 1e-30]])
    assert torch.equal(activate(logits, "none"), logits)


def test_pools_pick_their_tokens() -> None:
    hidden = torch.arange(12.0).view(6, 2)
    batch = packed(1, 2, 3)
    assert POOLS["first"](hidden, batch)[:, 0].tolist() == [0.0, 2.0, 6.0]
    assert POOLS["last"](hidden, batch)[:, 0].tolist() == [0.0, 4.0, 10.0]
    assert POOLS["mean"](hidden, batch)[:, 0].tolist() == [0.0, 3.0, 8.0]


def fill(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def test_head_is_dense_act_out() -> None:
    head = fill(build_head(HeadSpec("first", 4, 3, dense=True, act="tanh")))
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    logits = head(hidden[[0, 2]], packed(2, 3))
    weights = dict(head.named_parameters())
    pooled = hidden[[0, 2]]
    expected = torch.tanh(pooled @ weights["dense.weight"].T + weights["dense.bias"])
    expected = expected @ weights["out.weight"].T + weights["out.bias"]
    assert (logits - expected).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_head_computes_in_float32_over_a_half_trunk(dtype: torch.dtype, pool: str) -> None:
    """The trunk's hidden states are rounded; what the head makes of them is not."""

    class Trunk(nn.Module):
        def forward(self, batch: PackedBatch, rows: Rows | None = None) -> Tensor:
            generator = torch.Generator().manual_seed(2)
            return pick(torch.randn(batch.num_tokens, 8, generator=generator).to(dtype), batch, rows)

    head = fill(build_head(HeadSpec(pool, 8, 3, dense=True, act="tanh")))  # type: ignore[arg-type]
    batch = packed(2, 3)
    trunk = Trunk()
    logits = TextClassifier(trunk, head)(batch)
    assert logits.dtype == torch.float32
    weights = {name: parameter.double() for name, parameter in head.named_parameters()}
    pooled = POOLS[pool](trunk(batch).double(), batch).double()
    expected = torch.tanh(pooled @ weights["dense.weight"].T + weights["dense.bias"])
    expected = expected @ weights["out.weight"].T + weights["out.bias"]
    assert (logits.double() - expected).abs().max() < 1e-5
