"""The server under pressure: deadlines, a full queue, a bulk client, a failing input; seen from HTTP."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from assay.errors import AssayError
from assay.sequence import Prediction
from tests.e2e.process import InProcess, in_process
from tests.test_app import gate_before_forward, until
from tests.tiny import save_bert

TIMEOUT = "x-request-timeout-ms"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pressure")
    save_bert(folder, num_hidden_layers=1)
    return folder


async def ask(server: InProcess, text: Any = "great", path: str = "/v1/classify", **headers: str) -> Any:
    key = "inputs" if path == "/predict" else "input"
    return await server.client.post(
        path, json={key: text}, headers={n.replace("_", "-"): v for n, v in headers.items()}
    )


# --- deadlines ---


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/v1/moderations"])
async def test_past_its_deadline_a_request_gets_504_in_its_callers_shape(folder: Path, path: str) -> None:
    async with in_process(folder) as server:
        with gate_before_forward(server) as gate:
            held = asyncio.create_task(ask(server))
            await until(lambda: server.service.engine.load_now()[0] == 1)
            late = await ask(server, path=path, x_request_timeout_ms="50")
            assert late.status_code == 504
            assert "time limit" in late.text
            assert set(late.json()) & {"error"}
            health = await server.client.get("/health")
            assert health.status_code == 200
            gate.set()
            assert (await held).status_code == 200
        assert (await ask(server, path=path, x_request_timeout_ms="60000")).status_code == 200
        metrics = (await server.client.get("/metrics")).text
    assert "assay_sequences_total" in metrics


async def test_the_operators_deadline_and_the_callers(folder: Path) -> None:
    async with in_process(folder, request_timeout=0.05) as server:
        with gate_before_forward(server) as gate:
            patient = asyncio.create_task(ask(server, x_request_timeout_ms="20000"))
            await until(lambda: server.service.engine.load_now()[0] == 1)
            assert (await ask(server)).status_code == 504
            gate.set()
            assert (await patient).status_code == 200


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "soon", "", "٣", "9" * 13])
async def test_a_deadline_that_is_none(folder: Path, value: str) -> None:
    async with in_process(folder) as server:
        response = await server.client.post(
            "/v1/classify", json={"input": "x"}, headers=[(TIMEOUT.encode(), value.encode())]
        )
    assert response.status_code == 400
    assert TIMEOUT in response.json()["message"]


# --- a full queue ---


@pytest.mark.parametrize(("when_full", "status"), [("429", 429), ("503", 503)])
@pytest.mark.parametrize("path", ["/v1/classify", "/predict"])
async def test_a_full_queue_says_when_to_try_again(folder: Path, when_full: str, status: int, path: str) -> None:
    async with in_process(folder, engine={"max_queue_tokens": 40, "when_full": when_full}) as server:
        with gate_before_forward(server) as gate:
            running = asyncio.create_task(ask(server))
            await until(lambda: server.service.engine._worker._running)
            waiting = asyncio.create_task(ask(server, [[5] * 20, [6] * 15]))
            await until(lambda: server.service.engine.load_now()[2] == 35)
            refused = await ask(server, "so new " * 20, path)
            assert (refused.status_code, refused.headers["retry-after"]) == (status, "1")
            assert "full" in refused.text
            gate.set()
            assert [(await call).status_code for call in (running, waiting)] == [200, 200]


async def test_in_line_everybody_is_answered(folder: Path) -> None:
    async with in_process(folder, engine={"max_queue_tokens": 60, "when_full": "wait"}) as server:
        answers = await asyncio.gather(*(ask(server, [[5 + i % 50] * 20, [7] * 20]) for i in range(60)))
    assert {answer.status_code for answer in answers} == {200}


# --- one and the many ---


async def test_one_text_overtakes_ten_thousand(folder: Path) -> None:
    """A bulk request in front does not starve a single one: most of the bulk is still waiting when it is answered."""
    async with in_process(folder, max_request_inputs=20_000) as server:
        engine = server.service.engine
        assert engine is not None
        bulk = asyncio.create_task(ask(server, [[5 + i % 90] * 19 + [5 + i // 90 % 90] for i in range(8_000)]))
        await until(lambda: engine.load_now()[1] > 5_000)
        assert (await ask(server)).status_code == 200
        left = engine.load_now()[1]
        answer = await bulk
    assert left > 2_000, "the single request waited for the bulk"
    assert len(answer.json()["data"]) == 8_000


async def test_health_and_metrics_do_not_wait_behind_inference(folder: Path) -> None:
    async with in_process(folder) as server:
        with gate_before_forward(server):
            held = [asyncio.create_task(ask(server)) for _ in range(20)]
            await until(lambda: server.service.engine.load_now()[0] == 20)
            for path in ("/health", "/ready", "/metrics", "/v1/models", "/get_load"):
                assert (await server.client.get(path)).status_code == 200
            assert not any(call.done() for call in held)
        assert {(await call).status_code for call in held} == {200}


async def test_a_failing_input_fails_its_own_request_alone(folder: Path) -> None:
    async with in_process(folder) as server:
        engine = server.service.engine
        assert engine is not None
        clean = (await ask(server, [6] * 9)).json()["data"][0]["probs"]
        run, started = engine._worker.runner.run, threading.Event()

        def flawed(batch: Any) -> list[Prediction | AssayError]:
            started.wait(5)
            if any(sequence.token_ids[0] == 9 for sequence in batch.sequences):
                raise ValueError("secret")
            return run(batch)

        engine._worker.runner.run = flawed  # type: ignore[method-assign]
        calls = [asyncio.create_task(ask(server, [9 if i == 7 else 6] * 9)) for i in range(12)]
        await until(lambda: engine.load_now()[0] == 12)
        started.set()
        answers = [await call for call in calls]
        assert [answer.status_code for answer in answers] == [500 if i == 7 else 200 for i in range(12)]
        assert "secret" not in answers[7].text
        for i, answer in enumerate(answers):
            assert i == 7 or answer.json()["data"][0]["probs"] == pytest.approx(clean, abs=1e-6)
        assert (await server.client.get("/health")).status_code == 200


async def test_work_of_a_client_that_has_gone_is_dropped(folder: Path) -> None:
    async with in_process(folder) as server:
        engine = server.service.engine
        assert engine is not None
        with gate_before_forward(server):
            running = asyncio.create_task(ask(server))
            await until(lambda: engine._worker._running)
            gone = asyncio.create_task(ask(server, [[5 + i] * 20 for i in range(50)]))
            await until(lambda: engine.load_now()[1] == 50)
            gone.cancel()
            await until(lambda: engine.load_now()[1] == 0)
        assert (await running).status_code == 200
        await until(lambda: engine.load_now()[0] == 0)
    assert engine.load_now() == (0, 0, 0)
