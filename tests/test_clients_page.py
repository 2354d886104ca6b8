"""docs/clients.md, run: Python in the environment that its client needs, LiteLLM's guardrails as LiteLLM reads them.

A block after `<!-- not run: reason -->` is left out; one after `<!-- in: client -->` runs in that client's environment.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay.config import BUNDLED_MODEL
from tests.e2e.foreign import VARIABLES, ClientError, foreign, python
from tests.e2e.process import REPOSITORY, Server, serving
from tests.test_readme import assert_same_text
from tests.tiny import save_bert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BUNDLED_MODEL / "model.safetensors").is_file(), reason="the bundled model is not there"),
]

PAGE = (REPOSITORY / "docs" / "clients.md").read_text("utf-8")
CALM, ANGRY = "Thank you so much!", "This update broke everything. Frustrating."


@dataclass(frozen=True)
class Fence:
    """note: what the comment before it says. answer: the text fence right after it."""

    line: int
    note: str
    language: str
    text: str
    answer: str | None


def fences() -> list[Fence]:
    pattern = (
        r"(?:<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
        r"(?=(?:\n\n```text\n(?P<answer>.*?)^```$)?)"
    )
    return [
        Fence(
            PAGE.count("\n", 0, found.start()) + 1,
            found["note"] or "",
            found["language"],
            found["text"],
            found["answer"],
        )
        for found in re.finditer(pattern, PAGE, re.MULTILINE | re.DOTALL)
        if found["language"] != "text"
    ]


FENCES = fences()
EXAMPLES = [fence for fence in FENCES if fence.language == "python"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """Those of the page's first lines, by the address that stands there."""
    folder: Path = tmp_path_factory.mktemp("reranker")
    save_bert(folder, num_labels=1)
    with serving(None) as emotions, serving(folder, "--served-model-name", "reranker") as reranker:
        yield {"http://127.0.0.1:8000": emotions, "http://127.0.0.1:8001": reranker}


def on_this_machine(text: str, servers: dict[str, Server]) -> str:
    for address, server in servers.items():
        text = text.replace(address, server.url)
    return text


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(EXAMPLES) >= 6
    assert all(fence.answer is not None for fence in EXAMPLES), "an example without its answer shows nothing"
    for fence in FENCES:
        if fence.language != "python":
            assert fence.note == "guardrails" or fence.note.startswith("not run: "), f"line {fence.line}"


@pytest.mark.parametrize("fence", EXAMPLES, ids=lambda fence: f"line {fence.line}")
def test_example(fence: Fence, servers: dict[str, Server]) -> None:
    client = fence.note.removeprefix("in: ")
    interpreter = str(python(client)) if client else sys.executable
    result = subprocess.run(
        [interpreter, "-c", on_this_machine(fence.text, servers)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(VARIABLES if client else {})},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert fence.answer is not None
    assert_same_text(result.stdout, fence.answer)


# --- LiteLLM's guardrails; `guarded` runs in its environment ---


async def guarded(settings: dict[str, Any], text: str) -> Any:
    """What a guardrail of the proxy's configuration makes of a text: nothing, or its exception."""
    import importlib

    from litellm.types.guardrails import LitellmParams

    hooks = {"generic_guardrail_api": "generic_guardrail_api", "ibm_guardrails": "ibm_guardrails"}
    hook = hooks.get(settings["litellm_params"]["guardrail"], "openai")
    module = importlib.import_module(f"litellm.proxy.guardrails.guardrail_hooks.{hook}")
    guardrail = module.initialize_guardrail(LitellmParams(**settings["litellm_params"]), settings)
    if hook == "ibm_guardrails":
        data = {"messages": [{"role": "user", "content": text}]}
        await guardrail.async_pre_call_hook(None, None, data, "completion")
    else:
        await guardrail.apply_guardrail(inputs={"texts": [text]}, request_data={}, input_type="request")


def test_guardrails(servers: dict[str, Server]) -> None:
    (written,) = (fence.text for fence in FENCES if fence.note == "guardrails")
    guardrails = yaml.safe_load(on_this_machine(written, servers))["guardrails"]
    assert [settings["guardrail_name"] for settings in guardrails] == ["anger", "detector", "moderation"]
    with foreign("litellm") as litellm:
        for settings in guardrails:
            with pytest.raises(ClientError, match=r"(?i)anger"):
                litellm.run(guarded, settings, ANGRY)
        for settings in guardrails[:2]:
            litellm.run(guarded, settings, CALM)
        with pytest.raises(ClientError, match="gratitude"):  # whatever is found is flagged, as the page says
            litellm.run(guarded, guardrails[2], CALM)
