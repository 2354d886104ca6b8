"""/docs in a real browser: it shows the paths, an example is tried and answered, and no other host is asked."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.e2e.process import serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --remote-debugging-port=0 about:blank"


class Page:
    """A tab of a browser, by its debugging protocol. events: what it has reported so far."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self._numbers = count(1)

    def do(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(30))
            if message.get("id") == number:
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        return (self.do("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

    def until(self, script: str, seconds: float = 60.0) -> Any:
        """The script's value, once it has one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"within {seconds} s the page had no {script}")


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    assert CHROMIUM is not None
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, f"--user-data-dir={folder}", *FLAGS.split()], stdout=log, stderr=log)
        try:
            port = _debugging_port(folder)
            tabs = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(20)


def _debugging_port(folder: Path, seconds: float = 60.0) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        file = folder / "DevToolsActivePort"
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError(f"the browser did not start:\n{(folder / 'log').read_text()[-2000:]}")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_an_example_is_tried_and_nobody_else_is_asked(tmp_path: Path) -> None:
    save_bert(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "browser").mkdir()
    with (
        serving(tmp_path / "model", "--served-model-name", "tiny") as server,
        browser(tmp_path / "browser") as page,
    ):
        for domain in ("Page", "Network", "Log", "Runtime"):
            page.do(f"{domain}.enable")
        page.do("Page.navigate", url=f"{server.url}/docs")
        page.until("document.querySelectorAll('.opblock').length > 40")
        operation = "document.querySelector('#operations-classify-post_v1_classify')"
        page.run(f"{operation}.querySelector('.opblock-summary-control').click()")
        page.until(f"{operation}.querySelector('.execute') !== null")
        page.run(f"{operation}.querySelector('.execute').click()")
        answer = f"{operation}.querySelector('.live-responses-table .response')"
        text = page.until(f"{answer} && {answer}.innerText")
    assert '"object": "list"' in text
    assert '"label": "LABEL_' in text
    asked = [
        event["params"]["request"]["url"] for event in page.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert f"{server.url}/v1/classify" in asked
    assert [url for url in asked if not url.startswith((f"{server.url}/", "data:"))] == []
    complaints = [event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
    assert complaints == []
