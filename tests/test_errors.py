"""The tree in the module's docstring is the tree in the code."""

import inspect
import re
from typing import NamedTuple

import pytest

from assay import errors
from assay.errors import AssayError, QueueFullError, RequestError


class Drawn(NamedTuple):
    parent: str
    status: int | None


def drawn_tree() -> dict[str, Drawn]:
    """Each class of the docstring's drawing, with its parent and status; None where the drawing gives none."""
    tree: dict[str, Drawn] = {"AssayError": Drawn("Exception", None)}
    above = ["AssayError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"(?P<indent>[│ ]*)[├└]── (?P<name>\w+)(?: +(?P<status>\d{3}|---))?", line)
        if found is None:
            continue
        depth = len(found["indent"]) // 4 + 1
        status = found["status"]
        tree[found["name"]] = Drawn(above[depth - 1], int(status) if status and status.isdigit() else None)
        above[depth:] = [found["name"]]
    return tree


DRAWN = drawn_tree()
CLASSES = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
}


def test_drawing_and_code_have_the_same_classes() -> None:
    assert len(DRAWN) >= 10, "the drawing could not be read"
    assert set(DRAWN) == set(CLASSES)


@pytest.mark.parametrize("name", DRAWN)
def test_class_is_as_drawn(name: str) -> None:
    parent, status = DRAWN[name]
    assert [base.__name__ for base in CLASSES[name].__bases__] == [parent]
    if status is not None:
        assert CLASSES[name].status == status


def test_every_served_error_has_a_drawn_status() -> None:
    undrawn = {name for name, (_, status) in DRAWN.items() if status is None}
    assert undrawn == {"AssayError", "SetupError", "ConfigError", "CheckpointError"}


def test_types_tell_the_errors_apart() -> None:
    kinds = [kind.type for name, kind in CLASSES.items() if name != "AssayError"]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", kind) for kind in kinds)


@pytest.mark.parametrize("kind", CLASSES.values())
def test_carries_its_message(kind: type[AssayError]) -> None:
    error = kind("what came, what is allowed")
    assert error.message == str(error) == "what came, what is allowed"
    assert error.param is None


def test_param_and_retry_after() -> None:
    assert RequestError("no", param="input").param == "input"
    assert QueueFullError("full").retry_after == 1
    assert QueueFullError("full", retry_after=7).retry_after == 7
