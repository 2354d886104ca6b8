"""What slow clients cost the honest ones: latency of one caller alone, and among connections that send a byte a second.

    python -m benchmarks.slow_clients [--model FOLDER] [--slow 200] [--seconds 10]

Both are measured in turns on one server, so that whatever else the machine does falls on both. Knows nothing of answers
but their status; tests/e2e/test_slow_clients.py looks at the scores.
"""

import argparse
import asyncio
import time
from statistics import median, quantiles

import httpx

from tests.e2e.crowd import crowd
from tests.e2e.process import serving

TEXT = "Loved the new café—coffee was great."
TURNS = 3


async def latencies(client: httpx.AsyncClient, seconds: float) -> list[float]:
    """Milliseconds of one request after another."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        response = await client.post("/v1/classify", json={"input": TEXT})
        response.raise_for_status()
        found.append((time.perf_counter() - started) * 1000)
    return found


async def measure(url: str, port: int, slow: int, seconds: float) -> None:
    alone: list[float] = []
    among: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await latencies(client, 1)
        for _ in range(TURNS):
            alone += await latencies(client, seconds / TURNS)
            async with crowd(port, slow, again=True) as clients:
                among += await latencies(client, seconds / TURNS)
                ended = sum(clients.endings.values())
            print(f"{slow} slow clients, of which {ended} were cut off and came back meanwhile")
    for name, found in (("alone", alone), ("among slow clients", among)):
        p99 = quantiles(found, n=100)[98]
        print(f"{name:20} {len(found):6} requests, median {median(found):.2f} ms, p99 {p99:.2f} ms")
    p99 = quantiles(among, n=100)[98] / quantiles(alone, n=100)[98]
    print(f"ratio of latency with to without: median {median(among) / median(alone):.2f}, p99 {p99:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder or hub id; default: the bundled model")
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the two")
    arguments = parser.parse_args()
    options = ("--header-timeout", "2", "--body-timeout", "2", "--access-log", "none")
    with serving(arguments.model, *options) as server:
        asyncio.run(measure(server.url, server.port, arguments.slow, arguments.seconds))


if __name__ == "__main__":
    main()
