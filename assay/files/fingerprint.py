"""What a job's output depends on, as plain data that can be kept and compared. Knows no output."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.files.sources import is_file, name_of

# A file up to this size is hashed whole; of a larger one, pieces that lie evenly in it, and its time.
_WHOLE = 1 << 22
_PIECES = 64
_PIECE = 1 << 16

_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja")


def input_fingerprint(sources: Sequence[str]) -> dict[str, Any]:
    """Name → what tells whether the file has changed. A pipe's is its own: nothing can be read from it again."""
    return {
        name_of(source): ["file", digest(Path(source))] if is_file(source) else ["pipe", os.urandom(8).hex()]
        for source in sources
    }


def model_fingerprint(folder: Path) -> str:
    """Of the files of a checkpoint, not of where they lie."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        total.update(f"{path.name} {digest(path)}\n".encode())
    return total.hexdigest()


def digest(path: Path) -> str:
    """A hash of a small file's content; of a large one's size, time and pieces."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _WHOLE:
            found.update(file.read())
        else:
            found.update(f"{size} {os.fstat(file.fileno()).st_mtime_ns}".encode())
            for i in range(_PIECES):
                file.seek((size - _PIECE) * i // (_PIECES - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What changed between two fingerprints, in words."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        one, other = before.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, key)
        elif one != other:
            found.append(_in_words(path, key, one, other))
    return found


def _in_words(path: str, key: str, one: Any, other: Any) -> str:
    if path == "input":
        if one is None or other is None:
            return f"{key} is {'an input now' if one is None else 'no input any more'}"
        return f"the input {key} has changed" if one[0] != "pipe" else "what came through a pipe cannot be read again"
    if key in ("model", "adapter"):
        return f"the {key}'s files are others"
    return f"{key} was {one!r} and is {other!r}"
