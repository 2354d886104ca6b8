"""What one interactive caller waits while a bulk client keeps the queue full, in units of one batch's time.

    python -m benchmarks.fairness [--model minilm] [--seconds 45]

Bulk: eight requests at a time, 32 texts of 512 tokens each. Interactive: one text of 20 tokens, again and again. One
batch's time is max_batch_tokens over the bulk client's own tokens a second, in the same seconds.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from assay.config import EngineConfig
from benchmarks import workload
from benchmarks.contender import ContenderError, Process
from benchmarks.http_load import LOAD
from benchmarks.models import MODELS, Model, folder_of
from benchmarks.plan import FULL, say
from benchmarks.servers import KINDS, serving

_BULK_CALLERS, _BULK_TEXTS, _LONG, _SHORT = 8, 32, 512, 20


def measure(model: Model, seconds: float, bulk_texts: int = _BULK_TEXTS) -> dict[str, Any]:
    long, short = workload.texts_of([_LONG] * bulk_texts), workload.texts_of([_SHORT] * 32, seed=2)
    kind = KINDS["assay"]
    with ExitStack() as stack:
        server = stack.enter_context(serving("fairness", kind, folder_of(model)))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        crowd, single = (stack.enter_context(Process(LOAD)) for _ in range(2))

        def ask(load: Process, texts: list[list[str]], callers: int, limit: float) -> dict[str, Any]:
            bodies, order = [kind.body(some) for some in texts], [i % len(texts) for i in range(100_000)]
            found: dict[str, Any] = load.ask(
                "load", port=server.port, path=kind.path, bodies=bodies, order=order, callers=callers, seconds=limit
            )
            if set(found["statuses"]) != {"200"}:
                raise ContenderError(f"{callers} callers got {found['statuses']}")
            return found

        one_by_one = [[text] for text in short]
        say(f"{model.name}: one caller alone")
        alone = sorted(ask(single, one_by_one, 1, min(5.0, seconds))["latencies"])
        say(f"{model.name}: one caller among {_BULK_CALLERS} bulk clients")
        bulk = pool.submit(ask, crowd, [long], _BULK_CALLERS, seconds + 2)
        time.sleep(1.0)  # until the queue is full
        waits = sorted(ask(single, one_by_one, 1, seconds)["latencies"])
        answered = bulk.result()
    tokens_per_second = len(answered["answered"]) * bulk_texts * _LONG / answered["seconds"]
    batch = EngineConfig().max_batch_tokens / tokens_per_second
    p50, p99 = waits[len(waits) // 2], waits[min(len(waits) - 1, int(0.99 * len(waits)))]
    return {
        "model": model.name,
        "seconds": seconds,
        "bulk_tokens_per_second": round(tokens_per_second),
        "batch_ms": round(1000 * batch, 1),
        "interactive_requests": len(waits),
        "alone_p50_ms": round(1000 * alone[len(alone) // 2], 2),
        "p50_ms": round(1000 * p50, 1),
        "p99_ms": round(1000 * p99, 1),
        "p50_batches": round(p50 / batch, 2),
        "p99_batches": round(p99 / batch, 2),
    }


def table(report: dict[str, Any]) -> str:
    """For the terminal."""
    return json.dumps(report, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="minilm")
    parser.add_argument("--seconds", type=float, default=FULL.fairness_seconds)
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    arguments = parser.parse_args()
    report = measure(MODELS[arguments.model], arguments.seconds)
    print(table(report))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
