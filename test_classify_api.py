"""Checks a running server against the classification API's document, field by field, and prints what it saw.

    python test_classify_api.py [--url http://127.0.0.1:8000] [--api-key KEY]

Standard library only; knows nothing of assay's code. Exit code: 0 all well, 1 something differs, 2 no server answers.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

TEXT = "Loved the new café—coffee was great."  # the document's own example
OTHER = "The update broke everything."
TIMEOUT = 60  # seconds for one answer


@dataclass
class Reply:
    """status: 0 when the connection broke. body: the parsed JSON, or None where it is none."""

    status: int
    text: str
    body: Any = None

    def at(self, *path: str | int) -> Any:
        """The value at a path, or None where the reply has no such place."""
        value = self.body
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    @property
    def results(self) -> list[Any]:
        data = self.at("data")
        return data if isinstance(data, list) else []


@dataclass
class Session:
    """A server, what was counted, and which label each class was seen to have."""

    url: str
    api_key: str | None = None
    model: str = ""
    max_model_len: int | None = None
    passed: int = 0
    failed: int = 0
    labels: dict[int, str] = field(default_factory=dict)

    def title(self, text: str) -> None:
        print(f"\n{text}")

    def check(self, what: str, holds: bool, saw: Any = None) -> bool:
        print(f"  {'✓' if holds else '✗'} {what}" + ("" if holds else f", but saw {_short(saw)}"))
        self.passed += bool(holds)
        self.failed += not holds
        return bool(holds)

    def classify(self, **fields: Any) -> Reply:
        return self.call("POST", "/v1/classify", {"model": self.model, **fields})

    def call(self, method: str, path: str, body: Any = None) -> Reply:
        """Send, print both sides, never raise. A body of bytes goes out as it is, anything else as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body, ensure_ascii=False).encode()
        print(f"  → {method} {path} {_short(data.decode(errors='replace')) if data is not None else ''}".rstrip())
        try:
            reply = self.send(method, path, data)
        except OSError as error:
            reply = Reply(0, f"no answer: {error}")
        print(f"  ← {reply.status} {_short(reply.text)}")
        return reply

    def send(self, method: str, path: str, data: bytes | None) -> Reply:
        """Raises OSError when nobody answers."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                status, raw = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, raw = error.code, error.read()
        text = raw.decode("utf-8", "replace")
        try:
            return Reply(status, text, json.loads(text))
        except ValueError:
            return Reply(status, text)


def _short(value: Any, limit: int = 400) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def check_envelope(s: Session, reply: Reply, inputs: int) -> bool:
    """Every field of the document's response. False when there is nothing further to look at."""
    if not s.check("status is 200", reply.status == 200, reply.status):
        return False
    created = reply.at("created")
    s.check("id starts with classify-", str(reply.at("id")).startswith("classify-"), reply.at("id"))
    s.check('object is "list"', reply.at("object") == "list", reply.at("object"))
    s.check(
        "created is this minute's Unix time in whole seconds",
        _is_int(created) and abs(created - time.time()) < 60,
        created,
    )
    s.check(f"model is {s.model}", reply.at("model") == s.model, reply.at("model"))
    if not s.check(f"data has {_count(inputs, 'result')}", len(reply.results) == inputs, reply.at("data")):
        return False
    indices = [reply.at("data", i, "index") for i in range(inputs)]
    s.check("index counts from 0 in the order of the inputs", indices == list(range(inputs)), indices)
    good = [check_classification(s, reply, i) for i in range(inputs)]  # each of them, not only up to the first bad one
    return all(good)


def check_classification(s: Session, reply: Reply, i: int, raw: bool = False) -> bool:
    label, probs, count = (reply.at("data", i, key) for key in ("label", "probs", "num_classes"))
    numbers = isinstance(probs, list) and bool(probs) and all(map(_is_number, probs))
    if not s.check(f"data[{i}].probs is a list of numbers", numbers, probs):
        return False
    if not raw:
        s.check(f"data[{i}].probs lie between 0 and 1", all(0 <= p <= 1 for p in probs), probs)
    s.check(f"data[{i}].num_classes is the number of probs", _is_int(count) and count == len(probs), count)
    s.check(f"data[{i}].label is a name", isinstance(label, str) and bool(label), label)
    best = max(range(len(probs)), key=probs.__getitem__)
    if probs.count(probs[best]) == 1:
        known = s.labels.setdefault(best, label)
        s.check(f"data[{i}].label is the name of the largest ({label})", label == known, (label, known))
    return True


def check_usage(s: Session, reply: Reply, tokens: int | None = None) -> int:
    usage = reply.at("usage")
    if not s.check("usage is an object", isinstance(usage, dict), usage):
        return 0
    prompt = usage.get("prompt_tokens")
    positive = _is_int(prompt) and prompt > 0
    s.check("usage.prompt_tokens is positive", positive, prompt)
    s.check("usage.total_tokens is the same", usage.get("total_tokens") == prompt, usage)
    completion = usage.get("completion_tokens")
    s.check("usage.completion_tokens is 0", _is_int(completion) and completion == 0, usage)
    details = usage.get("prompt_tokens_details", "missing")
    s.check("usage.prompt_tokens_details is null", details is None, details)
    if tokens is not None:
        s.check(f"usage counts {tokens} tokens", prompt == tokens, prompt)
    return prompt if positive else 0


def check_models(s: Session, reply: Reply) -> None:
    s.title("The model")
    print(f"  ← {reply.status} {_short(reply.text)}")
    name, length = reply.at("data", 0, "id"), reply.at("data", 0, "max_model_len")
    s.check("status is 200", reply.status == 200, reply.status)
    if s.check("GET /v1/models names a model", isinstance(name, str) and bool(name), reply.text):
        s.model = name
    if s.check("max_model_len is a positive integer", _is_int(length) and length > 0, length):
        s.max_model_len = length


def check_inputs(s: Session) -> None:
    s.title("The document's request")
    first = s.classify(input=TEXT)
    tokens = 0
    if check_envelope(s, first, 1):
        tokens = check_usage(s, first)
    s.title("A list of texts")
    listed = s.classify(input=[TEXT, OTHER])
    if check_envelope(s, listed, 2) and tokens:
        s.title("The second text alone")
        other = s.classify(input=OTHER)
        check_usage(s, listed, tokens + check_usage(s, other))
        same = _close(listed.at("data", 0, "probs"), first.at("data", 0, "probs"))
        same = same and _close(listed.at("data", 1, "probs"), other.at("data", 0, "probs"))
        s.check("a text scores the same in a list as alone", same, listed.at("data"))
    s.title("Token ids")
    if check_envelope(s, reply := s.classify(input=[5, 6, 7]), 1):
        check_usage(s, reply, 3)
    s.title("Lists of token ids")
    if check_envelope(s, reply := s.classify(input=[[5, 6, 7], [7, 6]]), 2):
        check_usage(s, reply, 5)


def _close(one: Any, other: Any) -> bool:
    return (
        isinstance(one, list)
        and isinstance(other, list)
        and len(one) == len(other)
        and all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))
    )


def check_fields(s: Session) -> None:
    s.title("user, rid and priority")
    reply = s.classify(input=TEXT, user="somebody", rid="my-own-id", priority=3)
    if check_envelope(s, reply, 1):
        s.check("rid is echoed in id", reply.at("id") == "classify-my-own-id", reply.at("id"))
    s.title("Without rid, ids differ")
    ids = [s.classify(input=TEXT).at("id") for _ in range(2)]
    s.check("two requests have two ids", None not in ids and ids[0] != ids[1], ids)
    s.title("A field that nobody knows")
    check_envelope(s, s.classify(input=TEXT, no_such_field={"a": [1]}), 1)


def check_raw_scores(s: Session) -> None:
    s.title("Raw scores")
    usual = s.classify(input=TEXT)
    reply = s.classify(input=TEXT, use_activation=False)
    if not s.check("status is 200", (usual.status, reply.status) == (200, 200), reply.status):
        return
    if not check_classification(s, reply, 0, raw=True):
        return
    raw, probs = reply.at("data", 0, "probs"), usual.at("data", 0, "probs")
    label = usual.at("data", 0, "label")
    s.check("the label is the same", reply.at("data", 0, "label") == label, reply.at("data", 0, "label"))
    if s.check("there are as many", isinstance(probs, list) and len(raw) == len(probs), raw):
        s.check("the largest is the same one", probs[raw.index(max(raw))] == max(probs), raw)
        s.check("they are not the probabilities", raw != probs, raw)


def check_truncation(s: Session) -> None:
    s.title("Truncation to four tokens")
    if check_envelope(s, reply := s.classify(input=f"{TEXT} {OTHER}", truncate_prompt_tokens=4), 1):
        check_usage(s, reply, 4)
    if s.max_model_len is None:
        return
    long = "coffee " * (s.max_model_len + 1)
    s.title("A text that is too long: refused, unless the caller asked to cut it")
    check_error(s, s.classify(input=long), 400)
    if check_envelope(s, reply := s.classify(input=long, truncate_prompt_tokens=-1), 1):
        check_usage(s, reply, s.max_model_len)


def check_errors(s: Session) -> None:
    model = s.model
    post = [
        ("A missing input", {"model": model}, 400),
        ("An input that is a number", {"model": model, "input": 5}, 400),
        ("An input that is an object without a text", {"model": model, "input": {"words": TEXT}}, 400),
        ("A list with a null in it", {"model": model, "input": [TEXT, None]}, 400),
        ("A priority that is a text", {"model": model, "input": TEXT, "priority": "high"}, 400),
        ("An empty text", {"model": model, "input": ""}, 400),
        ("White space only", {"model": model, "input": " \t\n"}, 400),
        ("An empty list", {"model": model, "input": []}, 400),
        ("A list with an empty text", {"model": model, "input": [TEXT, ""]}, 400),
        ("A body that is a list", [TEXT], 400),
        ("A body that is not JSON", b'{"model": "x", "input": ', 400),
        ("No body", b"", 400),
        ("An unknown model", {"model": "no/such-model", "input": TEXT}, 404),
    ]
    for title, body, status in post:
        s.title(title)
        check_error(s, s.call("POST", "/v1/classify", body), status)
    s.title("The wrong method")
    check_error(s, s.call("GET", "/v1/classify"), 405)
    s.title("An unknown path")
    check_error(s, s.call("POST", "/v1/no-such-path", {"input": TEXT}), 404)


def check_error(s: Session, reply: Reply, status: int) -> None:
    """The document's error: a message, a type, and the status again as a number."""
    s.check(f"status is {status}", reply.status == status, reply.status)
    message, kind, code = (reply.at(key) for key in ("error", "type", "code"))
    s.check("error is a message", isinstance(message, str) and bool(message), message)
    s.check("type is a name", isinstance(kind, str) and bool(kind), kind)
    s.check(f"code is {status}", _is_int(code) and code == status, code)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a running server against the classification API's document.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is (%(default)s)")
    parser.add_argument("--api-key", help="sent as a bearer token")
    arguments = parser.parse_args()
    s = Session(arguments.url.rstrip("/"), arguments.api_key)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        models = s.send("GET", "/v1/models", None)
    except OSError as error:
        print(f"No server answers at {s.url} ({error}). Start one with `make serve`, then run this again.")
        return 2
    print(f"The classification API at {s.url}")
    check_models(s, models)
    for part in (check_inputs, check_fields, check_raw_scores, check_truncation, check_errors):
        part(s)
    print(f"\n{_count(s.passed + s.failed, 'check')}: {s.passed} passed, {s.failed} failed.")
    return 1 if s.failed else 0


if __name__ == "__main__":
    sys.exit(main())
