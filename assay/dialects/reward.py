"""OpenRLHF's reward server: POST /get_reward, one raw scalar for each finished conversation in `query`.

`query` holds prompt and response as the trainer's template and tokenizer wrote them, so nothing is added to it. What is
longer than the model reads is refused, unless the server was started to truncate. Of several models the trainer's URL
names one, http://host:port/v1/models/NAME/get_reward. Knows nothing of the model but that it has one label: one with
more of them gives no single reward.
"""

from typing import Any

import msgspec

from assay.dialects.dialect import Answer, Call, Dialect, Incoming, ModelFacts, decode
from assay.errors import AssayError, RequestError
from assay.sequence import Options, TextPrompt


class RewardRequest(msgspec.Struct):
    """prompts, labels: what a custom reward function would look at; a model has no use for them."""

    query: str | list[str]
    prompts: Any = None
    labels: Any = None


class RewardResponse(msgspec.Struct):
    """scores: what OpenRLHF filters samples by; the rewards again, as it takes them where there are none."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, float]


class ErrorResponse(msgspec.Struct):
    """As OpenRLHF's own server, a FastAPI application; its client reads the status alone."""

    detail: str


def parse(incoming: Incoming) -> Call:
    """An empty list is answered with one: a trainer with several servers gives some of them nothing to do."""
    query = decode(incoming.body, RewardRequest).query
    texts = [query] if isinstance(query, str) else query
    for index, text in enumerate(texts):
        if not text.strip():
            raise RequestError(f"`query` at index {index} is empty or whitespace only.", param="query")
    return Call(
        prompts=[TextPrompt(text) for text in texts],
        options=Options(add_special_tokens=False, activation="none"),
        model=incoming.path.get("model"),
    )


def check(call: Call, model: ModelFacts) -> None:
    if call.prompts and len(model.labels) != 1:
        raise RequestError(
            f"The model is not a reward model: it has {len(model.labels)} labels, and a reward is one number. "
            "POST /v1/classify."
        )


def render(answer: Answer) -> RewardResponse:
    rewards = [prediction.logits[0] for prediction in answer.predictions]
    return RewardResponse(rewards=rewards, scores=rewards, extra_logs={})


def render_error(error: AssayError) -> ErrorResponse:
    return ErrorResponse(error.message)


DIALECT = Dialect(
    name="reward",
    paths=("/get_reward", "/v1/models/{model:path}/get_reward"),
    parse=parse,
    check=check,
    render=render,
    render_error=render_error,
    request=RewardRequest,
    response=RewardResponse,
    error=ErrorResponse,
    summary="One raw reward for each finished conversation (OpenRLHF)",
    example={"query": ["Is the coffee good? Yes, it is great."]},
    example_labels=("reward",),
)
