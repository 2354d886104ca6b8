"""NeMo Guardrails, unmodified and in an environment of its own: its classifier rails with each remote engine."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.foreign import ClientError, Foreign, foreign
from tests.e2e.process import Server, serving
from tests.tiny import save_bert

pytestmark = pytest.mark.slow

LONG = "great " * 300
TEXT = "the coffee"
CONFIG = """
rails:
  config:
    hf_classifier:
      guard:
        engine: {engine}
        model: {model}
        base_url: {url}
        threshold: {threshold}
        blocked_labels: ["{label}"]
  input:
    flows:
      - hf classifier check input $classifier="guard"
"""
# engine → what it calls the second label. KServe's answers have a label's index, not its name.
TOXIC = {"vllm": "toxic", "kserve": "1", "fms": "toxic"}


@pytest.fixture(scope="module")
def nemo() -> Iterator[Foreign]:
    with foreign("nemoguardrails") as running:
        yield running


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guard")
    save_bert(folder, num_labels=2, id2label={0: "safe", 1: "toxic"})
    with serving(f"guard={folder}") as running:
        yield running


@pytest.fixture(scope="module")
def toxic(guard: Server) -> float:
    """What the model says of TEXT; the thresholds of the tests lie on either side of it."""
    (row,) = httpx.post(f"{guard.url}/v1/classify", json={"input": TEXT}).json()["data"]
    probability: float = row["probs"][1]
    assert 0.5 < probability < 0.99
    return probability


# These run in its environment.


async def results(config: str, text: str) -> Any:
    """What the request code of an engine makes of the answer."""
    from nemoguardrails import RailsConfig
    from nemoguardrails.library.hf_classifier.backends import get_backend

    classifiers = RailsConfig.from_content(yaml_content=config).rails.config.hf_classifier
    return await get_backend(classifiers["guard"]).classify(text)


async def outcome(config: str, text: str) -> Any:
    """What a whole application with this one rail does: the status, and what its user reads."""
    from nemoguardrails import LLMRails, RailsConfig

    rails = LLMRails(RailsConfig.from_content(yaml_content=config))
    result = await rails.check_async([{"role": "user", "content": text}])
    return result.status.value, result.content


def config(guard: Server, engine: str, label: str = "", threshold: float = 0.5, model: str = "guard") -> str:
    return CONFIG.format(engine=engine, url=guard.url, label=label or TOXIC[engine], threshold=threshold, model=model)


@pytest.mark.parametrize("engine", TOXIC)
def test_engines_read_the_scores(nemo: Foreign, guard: Server, toxic: float, engine: str) -> None:
    found = {item["label"]: item["score"] for item in nemo.run(results, config(guard, engine), TEXT)}
    assert found.pop(TOXIC[engine]) == pytest.approx(toxic, abs=1e-6)
    assert found == ({"0": pytest.approx(1 - toxic, abs=1e-6)} if engine == "kserve" else {})


@pytest.mark.parametrize("engine", TOXIC)
def test_rails_block_at_the_threshold(nemo: Foreign, guard: Server, toxic: float, engine: str) -> None:
    blocked = ["blocked", "I'm sorry, I can't respond to that."]
    assert nemo.run(outcome, config(guard, engine, threshold=toxic - 0.005), TEXT) == blocked
    assert nemo.run(outcome, config(guard, engine, threshold=toxic + 0.005), TEXT) == ["passed", TEXT]
    assert nemo.run(outcome, config(guard, engine, label="other"), TEXT) == ["passed", TEXT]


@pytest.mark.parametrize("engine", TOXIC)
def test_what_is_not_scored_is_not_let_through(nemo: Foreign, guard: Server, engine: str) -> None:
    """The rail's user reads of an internal error; the request code says why."""
    with pytest.raises(ClientError, match="maximum context length is 128 tokens") as refused:
        nemo.run(results, config(guard, engine), LONG)
    assert refused.value.kinds[0] == "builtins.ValueError"
    status, said = nemo.run(outcome, config(guard, engine), LONG)
    assert (status, said) == ("blocked", "I'm sorry, an internal error has occurred.")


@pytest.mark.parametrize("engine", ["vllm", "kserve"])
def test_an_unknown_model_is_said(nemo: Foreign, guard: Server, engine: str) -> None:
    with pytest.raises(ClientError, match=r"404.*The model `other` does not exist"):
        nemo.run(results, config(guard, engine, model="other"), TEXT)


def test_white_space_passes_only_as_a_detector_sees_it(nemo: Foreign, guard: Server) -> None:
    assert nemo.run(outcome, config(guard, "fms"), " ") == ["passed", " "]
    for engine in ("vllm", "kserve"):
        assert nemo.run(outcome, config(guard, engine), " ")[0] == "blocked"
