"""The README's examples, run: Python as it is, commands against a real server, answers compared with what is printed.

A block after `<!-- not run: reason -->` is left out. Knows no example: a new one is run like the others.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from assay.config import BUNDLED_MODEL
from tests.e2e.process import REPOSITORY, Server, serving

README = REPOSITORY / "README.md"
LOCAL_URL = "http://127.0.0.1:8000"
ANSWERS = ("json", "text")
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Block:
    """A fence. answer: the json or text fence that comes after it, before any other."""

    line: int
    language: str
    text: str
    run: bool
    answer: "Block | None" = None


def blocks(markdown: str) -> list[Block]:
    """The runnable fences, in order."""
    fences = [
        Block(markdown.count("\n", 0, found.start()) + 1, found["language"], found["text"], found["comment"] is None)
        for found in re.finditer(
            r"(?P<comment><!-- not run: .+? -->\s*)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
            markdown,
            re.MULTILINE | re.DOTALL,
        )
    ]
    return [
        Block(block.line, block.language, block.text, block.run, after if after and after.language in ANSWERS else None)
        for block, after in zip(fences, [*fences[1:], None], strict=True)
        if block.run and block.language not in ANSWERS
    ]


def _readiness() -> str:
    """Why the examples cannot be run yet, or nothing."""
    if not (BUNDLED_MODEL / "model.safetensors").is_file():
        return "the bundled model is not there"
    if not README.is_file() or "TBD" in README.read_text("utf-8"):
        return "the README is not written"
    return ""


EXAMPLES = blocks(README.read_text("utf-8")) if README.is_file() else []
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_readiness()), reason=_readiness() or "ready")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """What `make serve` starts, on a free port."""
    with serving(None) as running:
        yield running


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, check=False)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


def run_line(line: str, server: Server) -> str:
    """One command of a bash block, on this machine's terms; what it prints."""
    words = shlex.split(line, comments=True)
    match words:
        case []:
            return ""
        case ["make", target]:
            assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), line
            return ""
        case ["curl", *rest]:
            return run(["curl", "-sS", *(word.replace(LOCAL_URL, server.url) for word in rest)])
        case ["assay" | ".venv/bin/assay", "serve", *rest]:
            model, *options = rest if rest and not rest[0].startswith("-") else [None, *rest]
            if "--port" in options:
                place = options.index("--port")
                del options[place : place + 2]
            with serving(model, *options) as other:
                return other.ready
        case ["assay" | ".venv/bin/assay", *rest]:
            return run([sys.executable, "-m", "assay", *rest])
        case ["python" | ".venv/bin/python", "test_classify_api.py"]:
            return run([sys.executable, "test_classify_api.py", "--url", server.url])
        case ["python" | ".venv/bin/python", *rest]:
            return run([sys.executable, *rest])
    raise AssertionError(f"no idea how to run {line!r}; mark the block with <!-- not run: reason -->")


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda block: f"line {block.line} {block.language}")
def test_example(block: Block, server: Server) -> None:
    if block.language == "python":
        printed = run([sys.executable, "-c", block.text.replace(LOCAL_URL, server.url)])
    else:
        assert block.language == "bash", f"a fence of {block.language} is neither run nor marked as not run"
        printed = "".join(run_line(line, server) for line in block.text.replace("\\\n", " ").splitlines())
    if block.answer is not None and block.answer.language == "json":
        assert_same_json(json.loads(printed), json.loads(block.answer.text))
    elif block.answer is not None:
        assert_same_text(printed, block.answer.text)


def assert_same_json(found: Any, written: Any, place: str = "$") -> None:
    """Field by field, in the same order; ids and times differ from run to run."""
    if place == "$.id":
        assert re.fullmatch(r"\w+-[0-9a-f]{32}", found)
        assert re.fullmatch(r"\w+-[0-9a-f]{32}", written)
    elif place.endswith("created"):
        assert type(found) is type(written) is int
    elif isinstance(written, dict):
        assert list(found) == list(written), place
        for key in written:
            assert_same_json(found[key], written[key], f"{place}.{key}")
    elif isinstance(written, list):
        assert len(found) == len(written), place
        for i, (one, other) in enumerate(zip(found, written, strict=True)):
            assert_same_json(one, other, f"{place}[{i}]")
    elif isinstance(written, float):
        assert found == pytest.approx(written, abs=TOLERANCE), place
    else:
        assert (type(found), found) == (type(written), written), place


def assert_same_text(found: str, written: str) -> None:
    """The same words; numbers with a fraction within the tolerance; bars and white space as they fall."""
    pattern = re.compile(r"(\d+\.\d+)")
    found_parts, written_parts = (pattern.split(re.sub(r"[\s█]+", " ", text).strip()) for text in (found, written))
    assert found_parts[::2] == written_parts[::2]
    for one, other in zip(found_parts[1::2], written_parts[1::2], strict=True):
        assert float(one) == pytest.approx(float(other), abs=TOLERANCE)
