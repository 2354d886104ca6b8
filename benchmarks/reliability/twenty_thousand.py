"""Twenty thousand requests, one in fifty of them malformed: each has its own answer, and the good ones' are the same
to the last bit as in a run without the bad ones.

A batch's composition moves the last bits of a float32 sum, and which requests share a batch is a matter of timing. So
the server runs with `--deterministic`; what batching changes without it is measured apart, by the same two runs.
"""

import itertools
import json
import math
from collections import Counter
from typing import Any

from benchmarks.reliability.load import Outcome, Request, closed_loop, ends
from benchmarks.reliability.watch import Watched, total

COUNT = 20_000
ONE_IN = 50
CALLERS = 32
DETERMINISTIC = ("--deterministic",)
_WORDS = ["the", "coffee", "was", "great", "update", "broke", "everything", "loved", "new", "café", "and", "so"]

# Name → body, status, a part of the message that only this mistake has.
MALFORMED: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "it is empty"),
    "no JSON": (b"hello", 400, "not valid JSON"),
    "cut off": (b'{"input": "hel', 400, "not valid JSON"),
    "no UTF-8": (b'{"input": "\xff"}', 400, "not UTF-8"),
    "lone surrogate": (b'{"input": "\\ud800"}', 400, "surrogate"),
    "a list": (b"[1]", 400, "object"),
    "number": (b'{"input": 5}', 400, "input"),
    "object": (b'{"input": {"a": 1}}', 400, "input"),
    "null": (b'{"input": null}', 400, "input"),
    "no input": (b"{}", 400, "input"),
    "empty": (b'{"input": ""}', 400, "empty"),
    "empty list": (b'{"input": []}', 400, "at least one"),
    "empty in a list": (b'{"input": ["a", ""]}', 400, "empty"),
    "negative id": (b'{"input": [5, -1]}', 400, "-1"),
    "id beyond the vocabulary": (b'{"input": [5, 99999]}', 400, "99999"),
    "id with a fraction": (b'{"input": [5, 1.5]}', 400, "input"),
    "over length": (json.dumps({"input": "great " * 600}).encode(), 400, "602 input tokens"),
    "text for a number": (b'{"input": "a", "priority": "high"}', 400, "priority"),
    "unknown model": (b'{"input": "a", "model": "nobody"}', 404, "nobody"),
}


def _named(body: bytes, number: int) -> Request:
    """Its number is its id, so that an answer shows whose it is."""
    return Request(body, headers=(("content-type", "application/json"), ("x-request-id", f"number-{number}")))


def good(number: int) -> Request:
    """A text, a list of texts or token ids, of many lengths; the same number gives the same request."""
    words = [_WORDS[(number * 7 + i * (1 + number % 5)) % len(_WORDS)] for i in range(1 + number % 23)]
    body: Any = " ".join(words)
    if number % 3 == 1:
        body = [body, " ".join(reversed(words))]
    elif number % 3 == 2:
        body = [5 + (number + i * 3) % 90 for i in range(1 + number % 31)]
    return _named(json.dumps({"input": body}).encode(), number)


def mixed(count: int) -> list[Request]:
    """One in fifty is malformed, each time in the next way."""
    bodies = itertools.cycle(MALFORMED.values())
    return [_named(next(bodies)[0], i) if i % ONE_IN == ONE_IN // 2 else good(i) for i in range(count)]


def is_bad(number: int) -> bool:
    return number % ONE_IN == ONE_IN // 2


def differences(first: Outcome, second: Outcome) -> float:
    """The largest |Δ| of two answers' probabilities; 0 where the answers are the same to the last bit.

    infinity: they differ in more than numbers.
    """
    one, other = (json.loads(outcome.body) for outcome in (first, second))
    rows = [[item.pop("probs") for item in answer["data"]] for answer in (one, other)]
    one.pop("created"), other.pop("created")
    if one != other or [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return math.inf
    return max(abs(a - b) for pair in zip(*rows, strict=True) for a, b in zip(*pair, strict=True))


async def run(server: Watched, count: int = COUNT) -> dict[str, Any]:
    """The clean run, then the same requests with the bad ones among them; and what differs."""
    numbers = [number for number in range(count) if not is_bad(number)]
    clean = await closed_loop(server.url, map(good, numbers), CALLERS)
    before, scrapes = await server.metrics(), server.scrapes
    outcomes = await closed_loop(server.url, mixed(count), CALLERS)
    after = await server.metrics()
    counted = total(after, "assay_requests_total") - total(before, "assay_requests_total") - (server.scrapes - scrapes)
    deltas = [
        differences(outcomes[number], alone) if outcomes[number].end == alone.end == 200 else math.inf
        for number, alone in zip(numbers, clean, strict=True)
    ]
    bad = [(expected, outcome) for expected, outcome in zip(itertools.cycle(MALFORMED), _bad(outcomes), strict=False)]
    return {
        "sent": len(outcomes),
        "clean_ends": ends(clean),
        "good_ends": ends(outcome for number, outcome in enumerate(outcomes) if not is_bad(number)),
        "malformed_ends": ends(outcome for _, outcome in bad),
        "malformed_without_their_own_refusal": dict(Counter(name for name, outcome in bad if not _own(name, outcome))),
        "answers_under_another_id": sum(
            outcome.headers.get("x-request-id") != f"number-{number}" for number, outcome in enumerate(outcomes)
        ),
        "server_counted": int(counted),
        "good_answers_that_differ": sum(delta > 0 for delta in deltas),
        "largest_difference": max(deltas),
    }


def _bad(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for number, outcome in enumerate(outcomes) if is_bad(number)]


def _own(name: str, outcome: Outcome) -> bool:
    """Whether it is the refusal of this very mistake."""
    _, status, words = MALFORMED[name]
    if outcome.end != status:
        return False
    refusal = json.loads(outcome.body)
    return refusal["code"] == status and words in refusal["message"]


def problems(report: dict[str, Any], deterministic: bool) -> list[str]:
    """What does not hold."""
    sent = report["sent"]
    bad = sum(is_bad(number) for number in range(sent))
    held = {
        "every good request is answered": report["good_ends"] == report["clean_ends"] == {"200": sent - bad},
        "every malformed one is refused": sum(report["malformed_ends"].values()) == bad
        and all(status.startswith("4") for status in report["malformed_ends"]),
        "each has its own refusal": not report["malformed_without_their_own_refusal"],
        "nobody got another's answer": report["answers_under_another_id"] == 0,
        "the server counted every request": report["server_counted"] == sent,
        "the good answers are bit-equal": not deterministic or report["good_answers_that_differ"] == 0,
        "batching moves the last bits only": report["largest_difference"] < 1e-5,
    }
    return [name for name, holds in held.items() if not holds]
