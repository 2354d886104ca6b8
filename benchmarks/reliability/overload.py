"""Ten times what the server can do: who is served is served in time, everybody else is told to come back.

First the capacity is measured by callers who wait for their answers; then the same requests come at ten times that
rate, whether answers come or not.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.reliability.load import (
    LOST,
    TIMEOUT,
    Client,
    Outcome,
    Request,
    closed_loop,
    ends,
    open_loop,
    percentile,
)
from benchmarks.reliability.watch import MIB, Held, Watched, total

TOKENS = 64  # of each input
INPUTS = 4  # of each request
MOST_GROWTH = 96 * MIB  # connections, bodies and the allocator's slack; a leak per request would pass it in seconds
P99_FACTOR = 10  # of the bound: generous, for a machine that has other work; the figure itself is in the report
BATCH_TOKENS = 2048  # the default of --max-batch-tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """queue_tokens: the server's --max-queue-tokens, which it was started with. seconds: of the overload."""

    queue_tokens: int
    seconds: float = 20.0
    warm_up: float = 3.0
    capacity: float = 6.0
    times: float = 10.0


def request(index: int) -> Request:
    """Token ids, so that what is admitted is what is counted; no two requests the same."""
    ids = [[5 + (index * 7 + row * 3 + column) % 60 for column in range(TOKENS)] for row in range(INPUTS)]
    return Request(json.dumps({"input": ids}).encode())


def measured_queue(url: str, seconds: float = 3.0) -> int:
    """Tokens that a server scores in about one and a half seconds: a queue that is worth having."""
    started = time.monotonic()
    outcomes = asyncio.run(closed_loop(url, map(request, range(100_000)), callers=8, seconds=seconds))
    rate = len(outcomes) / (time.monotonic() - started)
    return max(4 * INPUTS * TOKENS, int(1.5 * rate * INPUTS * TOKENS))


async def run(server: Watched, plan: Plan) -> dict[str, Any]:
    """The report of one run."""
    url, numbers = server.url, map(request, range(1_000_000))
    await closed_loop(url, numbers, callers=8, seconds=plan.warm_up)
    started = time.monotonic()
    alone = await closed_loop(url, numbers, callers=8, seconds=plan.capacity)
    capacity = len(alone) / (time.monotonic() - started)
    assert {outcome.end for outcome in alone} == {200}, ends(alone)
    offered = plan.times * capacity
    before = await server.metrics()
    async with server.sampled() as samples:
        started = time.monotonic()
        outcomes, unsent = await open_loop(url, request, offered, plan.seconds)
        lasted = time.monotonic() - started
    after = await server.metrics()
    return {
        "capacity_requests_per_second": round(capacity, 1),
        "offered_requests_per_second": round(offered, 1),
        "generator_could_not_send": unsent,
        **_figures(plan, outcomes, capacity, lasted),
        "server_counted": int(_counted(after) - _counted(before)),
        **_memory(samples),
        **await _recovery(server),
    }


def _counted(samples: dict[str, float]) -> float:
    return total(samples, "assay_requests_total", 'dialect="classify"')


def _figures(plan: Plan, outcomes: list[Outcome], capacity: float, lasted: float) -> dict[str, Any]:
    served = [outcome.seconds for outcome in outcomes if outcome.end == 200]
    refused = [outcome.seconds for outcome in outcomes if outcome.end == 429]
    told = [outcome for outcome in outcomes if outcome.end == 429 and "retry-after" in outcome.headers]
    per_second = len(served) / lasted
    # The last one admitted waits for the whole queue, the batch that runs and the one that is formed ahead.
    bound = (plan.queue_tokens + 2 * BATCH_TOKENS) / (per_second * INPUTS * TOKENS) if served else 0.0
    return {
        "sent": len(outcomes),
        "ends": ends(outcomes),
        "refusals_with_retry_after": len(told),
        "goodput_over_capacity": round(per_second / capacity, 2),
        "bound_seconds": round(bound, 2),
        "served_p50_seconds": round(percentile(served, 0.5), 2),
        "served_p99_seconds": round(percentile(served, 0.99), 2),
        "served_p99_over_bound": round(percentile(served, 0.99) / bound, 2) if bound else None,
        "refused_p50_seconds": round(percentile(refused, 0.5), 3),
        "refused_p99_seconds": round(percentile(refused, 0.99), 3),
    }


def _memory(samples: list[Held]) -> dict[str, Any]:
    return {
        "rss_start_mib": round(samples[0].rss / MIB, 1),
        "rss_most_mib": round(max(sample.rss for sample in samples) / MIB, 1),
        "rss_growth_mib": round((max(sample.rss for sample in samples) - samples[0].rss) / MIB, 1),
        "threads_most_minus_start": max(sample.threads for sample in samples) - samples[0].threads,
    }


async def _recovery(server: Watched) -> dict[str, Any]:
    empty = await server.at_rest()
    client = Client(server.url)
    outcome = await client.send(request(1))
    await client.close()
    return {
        "queue_empty_afterwards": empty,
        "first_request_afterwards": outcome.end,
        "first_request_seconds": round(outcome.seconds, 3),
    }


def problems(report: dict[str, Any]) -> list[str]:
    """What does not hold; nothing here is an absolute time."""
    held: dict[str, Callable[[], bool]] = {
        "every request is answered or refused": lambda: set(report["ends"]) <= {"200", "429"},
        "none is lost": lambda: not {LOST, TIMEOUT} & set(report["ends"]),
        "some are served": lambda: report["ends"].get("200", 0) > 0,
        "some are refused": lambda: report["ends"].get("429", 0) > 0,
        "every refusal says when to come back": lambda: (
            report["refusals_with_retry_after"] == report["ends"].get("429", 0)
        ),
        "the server counted what was sent": lambda: report["server_counted"] == report["sent"],
        "memory is flat": lambda: report["rss_growth_mib"] * MIB < MOST_GROWTH,
        "the served did not wait for ever": lambda: (report["served_p99_over_bound"] or 0) < P99_FACTOR,
        "the queue is empty afterwards": lambda: report["queue_empty_afterwards"],
        "the next request is served": lambda: report["first_request_afterwards"] == 200,
    }
    return [name for name, holds in held.items() if not holds()]
