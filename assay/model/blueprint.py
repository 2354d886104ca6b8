"""What a family tells the loader: what to build, and where each tensor of a checkpoint goes. Knows no file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from assay.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""Every tensor of a checkpoint by name, with its shape."""


@dataclass(frozen=True, slots=True)
class Rename:
    """A checkpoint name (a whole-match regular expression) and our name for it, or "" for a tensor that is not used.

    parts: for a fused matrix, the values of the group `part`, in the order in which their rows are joined.
    transform: what is done to a tensor whose rows stand in another order than ours.
    """

    pattern: str
    target: str
    parts: tuple[str, ...] = ()
    transform: Callable[[Tensor], Tensor] | None = None

    def match(self, name: str) -> tuple[str, str] | None:
        """(our name, part) of a checkpoint name, or None if this is not its rule. The part is "" for a whole tensor."""
        found = re.fullmatch(self.pattern, name)
        if found is None:
            return None
        return found.expand(self.target), found.group("part") if self.parts else ""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A head, as data: pool → dense → act → norm → out, where dense with its act, and norm, may be absent.

    gate: sizes of the gate's three layers; the head is then one gated sum over pairs (mean, uncertainty) of scores.
    norm_eps: the epsilon of a LayerNorm before `out`, if there is one.
    """

    pool: Literal["first", "last", "mean"]
    hidden_size: int
    num_labels: int
    dense: bool = False
    act: str | None = None
    dense_bias: bool = True
    norm_eps: float | None = None
    norm_bias: bool = True
    out_bias: bool = True
    gate: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model to build and how to fill it.

    trunk: makes the module that turns a PackedBatch into hidden states [tokens, hidden], or, told which rows are read,
        into those [seqs, hidden].
    type_vocab_size: token types that the embeddings know; 0 where there are none.
    max_positions: the longest sequence that the position scheme can number.
    reward: the score is a raw reward whatever the config says: no activation, one label.
    refused_dtypes: precisions in which this architecture overflows.
    shares_prefixes: a token's hidden state depends on nothing behind it, nor on the length.
    """

    trunk: Callable[[], nn.Module]
    head: HeadSpec
    renames: tuple[Rename, ...]
    vocab_size: int
    type_vocab_size: int
    max_positions: int
    reward: bool = False
    refused_dtypes: tuple[str, ...] = ()
    shares_prefixes: bool = False


Config = TypeVar("Config")


def read_config(kind: type[Config], raw: Mapping[str, Any]) -> Config:
    """Fill a family's config dataclass from config.json. Raises CheckpointError naming a missing or mistyped field."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if raw.get(field.name) is None:
            if field.default is MISSING:
                raise CheckpointError(f"config.json has no {field.name}; this architecture needs it.")
            continue
        value = raw[field.name]
        if field.type is float and type(value) is int:
            value = float(value)
        if type(value) is not field.type:
            expected = getattr(field.type, "__name__", field.type)
            raise CheckpointError(f"config.json: {field.name} is {value!r}; it must be of type {expected}.")
        values[field.name] = value
    return kind(**values)


def num_rows(shapes: Shapes, name: str) -> int:
    """Rows of a tensor: for a head's last matrix, the number of labels. Raises CheckpointError when it is missing."""
    if not shapes.get(name):
        raise CheckpointError(f"The checkpoint has no tensor {name!r}, so it is no classifier of this architecture.")
    return shapes[name][0]
