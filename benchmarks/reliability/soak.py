"""Everything that clients do, all at once and for long: nothing is lost, and nothing is left behind.

All dialects' own requests from tests/golden, batches of 1 to 200, deadlines, bodies that are broken, too large or never
end, clients that hang up. The same seed gives the same requests.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reliability.load import GIVEN_UP, Outcome, Request, closed_loop, ends
from benchmarks.reliability.watch import MIB, Held, Watched, by_label

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
NAME = "golden"  # what the model must be called for the golden requests to find it
MAX_BODY_BYTES = 65_536
OPTIONS = ("--served-model-name", NAME, "--max-body-bytes", str(MAX_BODY_BYTES), "--max-queue-tokens", "10000")
CALLERS = 16
# Over the warmed-up server, and in the second half of the run. A cache of oneDNN's fills by shape, ever slower; what is
# kept of each request would grow at one rate, beyond any bound.
MOST_GROWTH, MOST_LATE_GROWTH = 64 * MIB, 16 * MIB
ALLOWED = {200, 400, 401, 404, 405, 413, 415, 422, 424, 429, 504}
_WORDS = ["the", "coffee", "was", "great", "update", "broke", "everything", "loved", "new", "café", "and", "so"]
_JSON = (("content-type", "application/json"),)


def golden_requests() -> list[Request]:
    """Every request of tests/golden, the refused ones too."""
    requests = []
    for path in sorted(GOLDEN.rglob("*.json")):
        asked = json.loads(path.read_text("utf-8"))["request"]
        body = asked["body"] if isinstance(asked["body"], str) else json.dumps(asked["body"])
        headers = tuple((name.lower(), value) for name, value in asked["headers"].items())
        requests.append(Request(body.encode(), asked["path"], asked["method"], headers))
    return requests


class Mix:
    """Requests without end. Each kind is a method; the table says how often it comes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._golden = golden_requests()
        self.sent: Counter[str] = Counter()
        self._kinds: dict[str, tuple[int, Callable[[], Request]]] = {
            "golden": (50, lambda: self._random.choice(self._golden)),
            "batch": (14, self._batch),
            "deadline": (8, self._deadline),
            "hangs up mid-body": (5, lambda: replace(self._batch(), hangup="mid-body")),
            "hangs up mid-answer": (7, lambda: self._gone("mid-answer")),
            "resets the connection": (3, lambda: self._gone("reset")),
            "broken JSON": (5, self._broken),
            "oversize": (2, lambda: Request(json.dumps({"input": "a " * MAX_BODY_BYTES}).encode())),
            "oversize, chunked": (2, lambda: Request(b'{"input": "' + b"a" * MAX_BODY_BYTES + b'"}', chunked=True)),
            "wrong path": (4, lambda: replace(self._batch(), path=self._random.choice(("/v1/nothing", "/", "/v2/x")))),
        }

    def __iter__(self) -> Iterator[Request]:
        names = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        while True:
            (kind,) = self._random.choices(names, weights)
            self.sent[kind] += 1
            yield self._kinds[kind][1]()

    def _text(self) -> str:
        return " ".join(self._random.choices(_WORDS, k=self._random.randint(1, 40)))

    def _batch(self) -> Request:
        count = int(200 ** self._random.random())
        texts: Any = [self._text() for _ in range(count)]
        path, body = self._random.choice(
            [
                ("/v1/classify", {"input": texts}),
                ("/v1/rerank", {"query": texts[0], "documents": texts}),
                ("/predict", {"inputs": texts}),
                ("/v1/moderations", {"input": texts}),
                ("/pooling", {"input": texts}),
            ]
        )
        return Request(json.dumps(body).encode(), path)

    def _deadline(self) -> Request:
        limit = str(self._random.choice((1, 5, 20, 100, 60_000)))
        return replace(self._batch(), headers=(*_JSON, ("x-request-timeout-ms", limit)))

    def _gone(self, how: Any) -> Request:
        return replace(self._batch(), hangup=how, after=self._random.choice((0.0, 0.001, 0.01, 0.05)))

    def _broken(self) -> Request:
        request = self._batch()
        cut = self._random.randrange(len(request.body))
        return replace(request, body=request.body[:cut] + self._random.choice((b"", b"\xff", b"}", b"\x00")))


async def run(server: Watched, seconds: float, warm_up: float = 15.0, seed: int = 7) -> dict[str, Any]:
    """The report of one run. The warm-up is the same mix, so that what is measured is growth and not a start."""
    mix = Mix(seed)
    await closed_loop(server.url, mix, CALLERS, warm_up)
    rested = await server.at_rest()
    mix.sent.clear()
    start, before, scrapes = server.held(), await server.metrics(), server.scrapes
    async with server.sampled(max(1.0, seconds / 100)) as samples:
        outcomes = await closed_loop(server.url, mix, CALLERS, seconds)
        rested = await server.at_rest() and rested
        scraped = server.scrapes - scrapes + 1  # the first is counted when it is over, the last not yet
        after = await server.metrics()
    end = await server.settled(start)
    counted = _statuses(after) - _statuses(before)
    counted["200"] -= scraped
    return {
        "seconds": seconds,
        "sent": len(outcomes),
        "kinds": dict(mix.sent),
        **_accounts(outcomes, counted, mix.sent["resets the connection"]),
        **_grown(start, end, samples),
        "queue_empty_afterwards": rested,
    }


def _statuses(samples: dict[str, float]) -> Counter[str]:
    return by_label(samples, "assay_requests_total", "status")


def _accounts(outcomes: list[Outcome], counted: Counter[str], resets: int) -> dict[str, Any]:
    """resets: requests that the server may never have seen, since the kernel throws away what it had not yet read."""
    answered = Counter(str(outcome.end) for outcome in outcomes if isinstance(outcome.end, int))
    total = sum(counted.values())
    return {
        "ends": ends(outcomes),
        "answered": sum(count for status, count in answered.items() if status < "400"),
        "refused": sum(count for status, count in answered.items() if status >= "400"),
        "given_up": sum(outcome.end == GIVEN_UP for outcome in outcomes),
        "server_counted": dict(sorted(counted.items())),
        "server_counted_in_all": total,
        "server_missed": len(outcomes) - total,
        "server_may_have_missed": resets,
        "answers_that_the_server_did_not_count": dict(answered - counted),
    }


def _grown(start: Held, end: Held, samples: list[Held]) -> dict[str, Any]:
    return {
        "rss_start_mib": round(start.rss / MIB, 1),
        "rss_end_mib": round(end.rss / MIB, 1),
        "rss_most_mib": round(max(sample.rss for sample in samples) / MIB, 1),
        "rss_quarters_mib": [round(samples[int(i * (len(samples) - 1) / 4)].rss / MIB, 1) for i in range(5)],
        "threads": [start.threads, end.threads],
        "files": [start.files, end.files],
    }


def problems(report: dict[str, Any]) -> list[str]:
    """What does not hold."""
    strange = set(report["ends"]) - {str(status) for status in ALLOWED} - {GIVEN_UP}
    quarters = report["rss_quarters_mib"]
    held = {
        f"nothing ends as {sorted(strange)}": not strange,
        "sent = answered + refused + given up": report["sent"]
        == report["answered"] + report["refused"] + report["given_up"],
        "the server counted every request": 0 <= report["server_missed"] <= report["server_may_have_missed"],
        "the server counted every answer": not report["answers_that_the_server_did_not_count"],
        "memory is bounded": report["rss_end_mib"] - report["rss_start_mib"] < MOST_GROWTH / MIB,
        "memory is flat": quarters[4] - quarters[2] < MOST_LATE_GROWTH / MIB,
        "no thread is left": report["threads"][1] <= report["threads"][0],
        "no file is left open": report["files"][1] <= report["files"][0],
        "the queue is empty afterwards": report["queue_empty_afterwards"],
    }
    return [name for name, holds in held.items() if not holds]
