"""What a family tells the loader: what to build, and where each tensor of a checkpoint goes. Knows no file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeVar

from torch import nn

from assay.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""Every tensor of a checkpoint by name, with its shape."""


@dataclass(frozen=True, slots=True)
class Rename:
    """A checkpoint name (a whole-match regular expression) and our name for it.

    parts: for a fused matrix, the values of the group `part`, in the order in which their rows are joined.
    """

    pattern: str
    target: str
    parts: tuple[str, ...] = ()

    def match(self, name: str) -> tuple[str, str] | None:
        """(our name, part) of a checkpoint name, or None if this is not its rule. The part is "" for a whole tensor."""
        found = re.fullmatch(self.pattern, name)
        if found is None:
            return None
        return found.expand(self.target), found.group("part") if self.parts else ""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """A head, as data: pool → dense → act → out. `act` names the function between the two matrices."""

    pool: Literal["first"]
    hidden_size: int
    num_labels: int
    act: str


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model to build and how to fill it.

    trunk: makes the module that turns a PackedBatch into hidden states [tokens, hidden].
    max_positions: the longest sequence that the position scheme can number.
    """

    trunk: Callable[[], nn.Module]
    head: HeadSpec
    renames: tuple[Rename, ...]
    vocab_size: int
    type_vocab_size: int
    max_positions: int


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
    if name not in shapes:
        raise CheckpointError(f"The checkpoint has no tensor {name!r}, so it is no classifier of this architecture.")
    return shapes[name][0]
