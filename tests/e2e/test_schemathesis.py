"""Requests that schemathesis makes from /openapi.json, right ones and wrong ones, against real servers: no 500, and
nothing that the document does not say. The same requests every time.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from assay.server.openapi import openapi_document
from assay.server.status import ENDPOINTS
from tests.e2e.process import Server, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

DOCUMENT: dict[str, Any] = json.loads(msgspec.json.encode(openapi_document("tiny", ENDPOINTS)))
for item in DOCUMENT["paths"].values():
    for operation in item.values():  # a time limit of a millisecond is a 504 now and then
        operation["parameters"] = [part for part in operation["parameters"] if "Timeout" not in part.get("$ref", "")]
# Paths that are described alike are one: their handler is the same.
DISTINCT = {
    json.dumps({key: part for key, part in operation.items() if key != "operationId"}): (path, method, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
# Without a body there is nothing to get wrong.
OPERATIONS = [
    (path, method, mode)
    for path, method, operation in DISTINCT.values()
    for mode in (GenerationMode if "requestBody" in operation else [GenerationMode.POSITIVE])
]
EXAMPLES = {"get": 4, "post": 30, "put": 4}  # for each operation, mode and model


@pytest.fixture(scope="module", params=[1, 3], ids=["one label", "multi-label"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tiny")
    kind = {} if request.param == 1 else {"problem_type": "multi_label_classification"}
    save_bert(folder, num_labels=request.param, num_hidden_layers=1, **kind)
    with serving(folder, "--served-model-name", "tiny") as running:
        yield running


@pytest.fixture(scope="module")
def schema() -> Any:
    load_all_checks()
    return schemathesis.openapi.from_dict(DOCUMENT)


def checks(mode: GenerationMode) -> list[Any]:
    names = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
    return CHECKS.get_by_names(names + ["negative_data_rejection"] * (mode is GenerationMode.NEGATIVE))


@pytest.mark.parametrize(
    ("path", "method", "mode"), OPERATIONS, ids=[f"{mode.value} {method} {path}" for path, method, mode in OPERATIONS]
)
def test_any_request(server: Server, schema: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = schema[path][method.upper()]

    @settings(
        max_examples=EXAMPLES[method],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        case.call_and_validate(base_url=server.url, checks=checks(mode), timeout=30)

    ask()
