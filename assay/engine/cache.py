"""Predictions that were made before, by what was scored. Knows no queue, no future and no model.

A cache belongs to one engine, which is one model at one revision with one calibration, so no key names them. No text
and no token is kept: a key is the digest of a sequence's content.
"""

import hashlib
from array import array
from collections import OrderedDict
from sys import getsizeof

from assay.sequence import Prediction, Sequence

_Entry = tuple[str, bytes, bytes, bytes | None]  # label; probs, logits and calibrated logits as float64

# What an entry takes beyond its objects: its share of the dict's tables, also when they have just grown, and what the
# allocator rounds up. The test holds it against tracemalloc.
_TABLES = 192


class ResultCache:
    """The least recently used is dropped first. Called from one thread.

    max_bytes: what keys, scores and tables may take; 0 keeps nothing. num_bytes: what they take.
    hits, misses: of `get`.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, sequence: Sequence) -> Prediction | None:
        """What was answered before, to the last bit, with lists of its own and the timings of this sequence."""
        if not self.max_bytes:
            return None
        key = _key(sequence)
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        label, probs, logits, calibrated = entry
        return Prediction(
            label,
            _floats(probs),
            _floats(logits),
            sequence.num_tokens,
            sequence.timings,
            calibrated=None if calibrated is None else _floats(calibrated),
        )

    def put(self, sequence: Sequence, prediction: Prediction) -> None:
        """Keep it, unless it is kept already, or larger than all that may be kept."""
        if not self.max_bytes:
            return
        key = _key(sequence)
        if key in self._entries:
            return
        calibrated = None if prediction.calibrated is None else _bytes(prediction.calibrated)
        entry = prediction.label, _bytes(prediction.probs), _bytes(prediction.logits), calibrated
        size = _size(key, entry)
        if size > self.max_bytes:
            return
        self._entries[key] = entry
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= _size(*self._entries.popitem(last=False))


def _key(sequence: Sequence) -> bytes:
    return hashlib.sha256(sequence.content).digest()


def _bytes(scores: list[float]) -> bytes:
    return array("d", scores).tobytes()


def _floats(scores: bytes) -> list[float]:
    return array("d", scores).tolist()


def _size(key: bytes, entry: _Entry) -> int:
    """In memory. The label is the model's own text, and takes nothing."""
    _, probs, logits, calibrated = entry
    last = 0 if calibrated is None else getsizeof(calibrated)
    return _TABLES + getsizeof(key) + getsizeof(entry) + getsizeof(probs) + getsizeof(logits) + last
