"""Golden files of a dialect: requests and their whole answers, numbers masked. Knows no dialect.

A file holds a request and a response. Where the response has a placeholder, as `<score>`, whatever fits it will do.
"""

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import httpx

Fits = Mapping[str, Callable[[Any], bool]]

# What most dialects need: `<score>` is what an activation gives, `<number>` what a head gives.
USUAL: dict[str, Callable[[Any], bool]] = {
    "<score>": lambda value: type(value) is float and 0 <= value <= 1,
    "<number>": lambda value: type(value) is float and isfinite(value),
    "<message>": lambda value: isinstance(value, str) and len(value) > 10,
}


def load(folder: str) -> dict[str, Any]:
    """The files of tests/golden/<folder>, by name."""
    paths = sorted((Path(__file__).parent / "golden" / folder).glob("*.json"))
    assert paths, f"no golden files in {folder}"
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


def masked(value: Any, golden: Any, fits: Fits) -> Any:
    """The value, with the golden file's placeholder wherever it fits that placeholder."""
    if isinstance(golden, str) and golden in fits:
        return golden if fits[golden](value) else value
    if isinstance(golden, dict) and isinstance(value, dict):
        return {key: masked(item, golden.get(key), fits) for key, item in value.items()}
    if isinstance(golden, list) and isinstance(value, list) and len(golden) == len(value):
        return [masked(*pair, fits) for pair in zip(value, golden, strict=True)]
    return value


async def check(client: httpx.AsyncClient, golden: Any, fits: Fits) -> httpx.Response:
    """Send the request; the status, the body with the order of its fields, and the headers named must be as written."""
    request, expected = golden["request"], golden["response"]
    body = request["body"]
    content = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    response = await client.request(
        request["method"], request["path"], headers=request["headers"], content=content.encode()
    )
    assert response.status_code == expected["status"], response.text
    assert response.headers["content-type"] == "application/json"
    seen = masked(response.json(), expected["body"], fits)
    assert json.dumps(seen, indent=1) == json.dumps(expected["body"], indent=1)
    wanted = expected.get("headers", {})
    assert {name: masked(response.headers.get(name), value, fits) for name, value in wanted.items()} == wanted
    return response
