"""Any dialect's request: body → dialect → parse → check → engine → render. Knows no dialect's shapes."""

import math
import time

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from assay.dialects.dialect import Answer, Dialect, Incoming, ModelFacts, choose
from assay.errors import RequestError, TooLargeError
from assay.server.body import json_response, read_body
from assay.server.exchange import Exchange
from assay.server.failure import Failures
from assay.server.observation import Observation
from assay.server.service import Service


class Scoring:
    """The dialects of one path, as an ASGI application."""

    def __init__(self, service: Service, failures: Failures, dialects: tuple[Dialect, ...]) -> None:
        self._service = service
        self._failures = failures
        self._dialects = dialects
        self._methods = sorted({method for dialect in dialects for method in dialect.methods})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An edge: whatever goes wrong, the caller is told."""
        try:
            response = await self._answer(scope, receive)
        except Exception as error:
            response = self._failures.answer(scope, error)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        scope["dialect"] = self._dialects[0]
        if scope["method"] not in self._methods:
            raise HTTPException(405, headers={"Allow": ", ".join(self._methods)})
        config = self._service.config
        observation: Observation = scope["observation"]
        limit = _time_limit(observation.fields.get(b"x-request-timeout-ms"), config.request_timeout)
        body = await read_body(scope, receive, config)
        dialect = scope["dialect"] = choose(self._dialects, body)
        call = dialect.parse(Incoming(body, scope.get("path_params", {}), observation.fields))
        request_id = observation.named(call.request_id)
        observation.prompts = call.prompts
        served = self._service.serving(call.model, call.any_model)
        observation.model = served.name
        engine = served.ready()
        if len(call.prompts) > config.max_request_inputs:
            raise TooLargeError(
                f"The request has {len(call.prompts)} inputs; at most {config.max_request_inputs} are allowed. "
                "Split it.",
                param="input",
            )
        if dialect.check is not None:
            activation = call.options.activation or engine.model.activation
            dialect.check(call, ModelFacts(served.name, engine.model.labels, activation))
        observation.scoring = time.monotonic()
        with Exchange.of(scope):
            predictions = await engine.classify(call.prompts, call.options, deadline=observation.started + limit)
        observation.predictions = predictions
        answer = Answer(
            call=call,
            predictions=predictions,
            labels=engine.model.labels,
            model=served.name,
            request_id=request_id,
            created=int(time.time()),
            seconds=time.monotonic() - observation.started,
            thresholds=engine.model.thresholds,
        )
        return json_response(dialect.render(answer), 200, dialect.headers(answer), observation.timing_headers())


def _time_limit(header: bytes | None, default: float | None) -> float:
    """Seconds that the request may take: the caller's word, else the operator's, else no end."""
    if header is None:
        return math.inf if default is None else default
    if not (header.isdigit() and len(header) <= 12 and int(header) > 0):
        given = header.decode("latin-1")
        raise RequestError(f"The header x-request-timeout-ms is {given!r}; it must be whole milliseconds, 1 or more.")
    return int(header) / 1000
