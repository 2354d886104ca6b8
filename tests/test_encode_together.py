"""Several requests tokenized in one call of the library: each gets what it would have got alone, or its own error."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from assay.engine.encoder import PromptEncoder
from assay.engine.tokenizer import load_tokenizer
from assay.errors import AssayError, RequestError
from assay.sequence import Options, Prompt, Sequence, TextPrompt, TokenPrompt
from tests.tiny import save_bert

LIMIT = 12


@pytest.fixture
def encoder(tmp_path: Path) -> PromptEncoder:
    save_bert(tmp_path)
    return PromptEncoder(load_tokenizer(tmp_path), 100, LIMIT, type_vocab_size=2)


REQUESTS: list[tuple[list[Prompt], Options, int]] = [
    ([TextPrompt("loved the new café"), TextPrompt("great")], Options(), 0),
    ([TextPrompt("the update broke everything", "so great")], Options(), 0),
    ([TextPrompt("coffee was great " * 9)], Options(), 3),  # too long
    ([TextPrompt("coffee was great " * 9)], Options(truncate_prompt_tokens=5), 0),
    ([TextPrompt("the coffee was great")], Options(add_special_tokens=False), 0),
    ([TokenPrompt([5, 6, 7])], Options(), 0),
    ([TokenPrompt([5, 600])], Options(), 0),  # out of vocabulary
    ([TextPrompt("broke"), TokenPrompt([5])], Options(), 0),
    ([TextPrompt("everything new")], Options(), 7),
]


def alone(encoder: PromptEncoder, request: tuple[list[Prompt], Options, int]) -> list[Sequence] | AssayError:
    try:
        return encoder.encode(*request)
    except AssayError as error:
        return error


def facts(outcome: list[Sequence] | AssayError) -> object:
    if isinstance(outcome, AssayError):
        return type(outcome), outcome.message
    return [(one.token_ids, one.token_type_ids, one.index, one.prompt) for one in outcome]


def test_each_gets_what_it_would_have_got_alone(encoder: PromptEncoder) -> None:
    together = encoder.encode_together(REQUESTS)
    assert [facts(outcome) for outcome in together] == [facts(alone(encoder, request)) for request in REQUESTS]
    assert [isinstance(outcome, RequestError) for outcome in together].count(True) == 2


def test_their_plain_texts_are_one_call(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = encoder._encode

    def counting(texts: list[str], *args: object, **options: object) -> object:
        if texts:
            calls.append(len(texts))
        return encode(texts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "_encode", counting)
    encoder.encode_together([REQUESTS[0], REQUESTS[8], REQUESTS[0]])
    assert calls == [5]


def test_a_library_that_refuses_one_text_refuses_no_other(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder._encode

    def refusing(texts: list[str], *args: object, **options: object) -> object:
        if "broke" in texts:
            raise RequestError("not this one")
        return encode(texts, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "_encode", refusing)
    good, bad = REQUESTS[0], ([TextPrompt("broke")], Options(), 0)
    first, second, third = encoder.encode_together([good, bad, replace_index(good)])
    assert isinstance(first, list)
    assert isinstance(third, list)
    assert isinstance(second, RequestError)


def replace_index(request: tuple[list[Prompt], Options, int]) -> tuple[list[Prompt], Options, int]:
    prompts, options, _ = request
    return prompts, replace(options), 5
