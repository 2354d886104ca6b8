"""PromptEncoder against the library it stands on and against transformers, which users compare with."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from assay.classifier import Classifier
from assay.engine.encoder import PromptEncoder
from assay.engine.tokenizer import load_tokenizer
from assay.engine.truncation import longest_first
from assay.errors import AssayError, CheckpointError, ContextLengthError, RequestError
from assay.sequence import Options, Prompt, Sequence, TextPrompt, TokenPrompt
from tests.tiny import bert_vocab, save_bert, save_bert_tokenizer

VOCAB_SIZE = len(bert_vocab())
CLS, SEP = bert_vocab().index("[CLS]"), bert_vocab().index("[SEP]")
MAX_MODEL_LEN = 64
TEXTS = [
    "Loved the new café—coffee was great.",
    "This update broke everything. Frustrating.",
    "the",
    "the " * 40,
    "ÄÖÜ ß 東京 😀",
    "a [SEP] b [CLS] [MASK]",
    "tab\tnewline\nnul\x00end",
]
PAIRS = [("the coffee", "was great"), ("the", "update broke everything so"), ("so new", "the"), ("the [SEP] new", "")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_bert_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pool(folder: Path) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(folder), VOCAB_SIZE, MAX_MODEL_LEN)


@pytest.fixture(scope="module")
def library(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def one(pool: PromptEncoder, prompt: Prompt | str, **options: object) -> Sequence:
    prompts = [TextPrompt(prompt) if isinstance(prompt, str) else prompt]
    (sequence,) = pool.encode(prompts, Options(**options))  # type: ignore[arg-type]
    return sequence


def types(sequence: Sequence) -> list[int]:
    return sequence.token_type_ids or [0] * sequence.num_tokens


# Whole texts


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_single(pool: PromptEncoder, library: Tokenizer, text: str, special: bool) -> None:
    sequence = one(pool, text, add_special_tokens=special)
    assert sequence.token_ids == library.encode(text, add_special_tokens=special).ids
    assert sequence.token_type_ids is None


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("pair", PAIRS)
def test_pair(pool: PromptEncoder, library: Tokenizer, pair: tuple[str, str], special: bool) -> None:
    sequence = one(pool, TextPrompt(*pair), add_special_tokens=special)
    expected = library.encode(*pair, add_special_tokens=special)
    assert sequence.token_ids == expected.ids
    assert types(sequence) == expected.type_ids


def test_special_tokens_frame_the_text(pool: PromptEncoder) -> None:
    ids = one(pool, "the coffee").token_ids
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert one(pool, "the coffee", add_special_tokens=False).token_ids == ids[1:-1]


def test_a_request_keeps_its_order(pool: PromptEncoder, library: Tokenizer) -> None:
    """Texts, pairs and ids in one call: each in its place, with its index, and the request's priority."""
    prompts = [TokenPrompt([5, 6]), TextPrompt("the"), TextPrompt("the", "new"), TokenPrompt([7]), TextPrompt("so")]
    sequences = pool.encode(prompts, Options(priority=3))
    assert [sequence.index for sequence in sequences] == [0, 1, 2, 3, 4]
    assert {sequence.priority for sequence in sequences} == {3}
    expected = [[5, 6], library.encode("the").ids, library.encode("the", "new").ids, [7], library.encode("so").ids]
    assert [sequence.token_ids for sequence in sequences] == expected


def test_no_prompts_no_sequences(pool: PromptEncoder) -> None:
    assert pool.encode([], Options()) == []


async def test_many_at_once_are_the_same_as_one_by_one(pool: PromptEncoder) -> None:
    requests: list[list[Prompt]] = [
        [TextPrompt(f"{text} {i}"), TextPrompt(text, str(i))] for i, text in enumerate(TEXTS * 6)
    ]
    options = Options(truncate_prompt_tokens=20)
    together = await asyncio.gather(*(asyncio.to_thread(pool.encode, prompts, options) for prompts in requests))
    for prompts, sequences in zip(requests, together, strict=True):
        alone = pool.encode(prompts, options)
        assert [(s.token_ids, s.token_type_ids) for s in sequences] == [(s.token_ids, s.token_type_ids) for s in alone]


async def test_an_error_reaches_who_waits(pool: PromptEncoder) -> None:
    with pytest.raises(RequestError):
        await asyncio.to_thread(pool.encode, [TokenPrompt([-1])], Options())


# Truncation

SIDES = ["left", "right"]
a_text = st.lists(st.sampled_from(["the", "coffee", "great", "xyz", "update"]), min_size=1, max_size=14).map(" ".join)


@pytest.mark.parametrize("side", SIDES)
@given(text=a_text, limit=st.integers(3, 20), special=st.booleans())
@settings(max_examples=60, deadline=None)
def test_single_is_cut_as_transformers_cuts_it(
    pool: PromptEncoder, oracle: PreTrainedTokenizerFast, side: str, text: str, limit: int, special: bool
) -> None:
    oracle.truncation_side = side
    sequence = one(pool, text, truncate_prompt_tokens=limit, truncation_side=side, add_special_tokens=special)
    assert sequence.token_ids == oracle(text, truncation=True, max_length=limit, add_special_tokens=special).input_ids
    assert sequence.num_tokens <= limit


@pytest.mark.parametrize("side", SIDES)
@given(first=a_text, second=a_text, limit=st.integers(4, 30), special=st.booleans())
@example(first="the " * 5, second="new " * 5, limit=8, special=True)  # a tie with an odd token left
@settings(max_examples=100, deadline=None)
def test_pair_is_cut_as_transformers_cuts_it(
    pool: PromptEncoder, oracle: PreTrainedTokenizerFast, side: str, first: str, second: str, limit: int, special: bool
) -> None:
    oracle.truncation_side = side
    asked = {"truncate_prompt_tokens": limit, "truncation_side": side, "add_special_tokens": special}
    sequence = one(pool, TextPrompt(first, second), **asked)
    expected = oracle(
        first,
        second,
        truncation="longest_first",
        max_length=limit,
        add_special_tokens=special,
        return_token_type_ids=True,
    )
    assert sequence.token_ids == expected.input_ids
    assert types(sequence) == expected.token_type_ids


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 250))
@settings(max_examples=300)
def test_longest_first_takes_tokens_off_the_longer_text(first: int, second: int, room: int) -> None:
    """Against the definition: one token at a time, off the longer one; where both are equal, off the first."""
    cut = [first, second]
    while sum(cut) > room:
        cut[0 if cut[0] >= cut[1] else 1] -= 1
    ours = longest_first(first, second, room)
    assert sum(ours) == min(first + second, room)
    # The rounding of the last token follows the tokenizers library; the test against transformers pins it.
    assert abs(ours[0] - cut[0]) <= 1
    assert ours[0] <= first
    assert ours[1] <= second


@pytest.mark.parametrize("limit", [-1, MAX_MODEL_LEN])
def test_minus_one_is_the_models_length(pool: PromptEncoder, limit: int) -> None:
    sequence = one(pool, "the " * 500, truncate_prompt_tokens=limit)
    assert sequence.num_tokens == MAX_MODEL_LEN
    assert (sequence.token_ids[0], sequence.token_ids[-1]) == (CLS, SEP)


def test_a_text_that_fits_is_not_cut(pool: PromptEncoder) -> None:
    whole = one(pool, "the coffee was great")
    for limit in (whole.num_tokens, whole.num_tokens + 1, -1):
        assert one(pool, "the coffee was great", truncate_prompt_tokens=limit).token_ids == whole.token_ids


@pytest.mark.parametrize("limit", [0, -2, -1000])
def test_lengths_that_are_none_are_refused(pool: PromptEncoder, limit: int) -> None:
    with pytest.raises(RequestError, match=rf"truncate_prompt_tokens is {limit}; it must be -1 .* or at least 1") as no:
        one(pool, "the", truncate_prompt_tokens=limit)
    assert no.value.param == "truncate_prompt_tokens"


def test_truncating_to_more_than_the_model_reads_is_refused(pool: PromptEncoder) -> None:
    with pytest.raises(RequestError) as no:
        one(pool, "the", truncate_prompt_tokens=MAX_MODEL_LEN + 1)
    assert no.value.message == (
        "truncate_prompt_tokens value is greater than max_model_len. Please request a smaller truncation size."
    )
    assert no.value.param == "truncate_prompt_tokens"


@pytest.mark.parametrize(("pair", "limit"), [(None, 1), (None, 2), ("new", 2), ("new", 3)])
def test_no_room_beside_the_special_tokens(pool: PromptEncoder, pair: str | None, limit: int) -> None:
    with pytest.raises(RequestError, match=f"truncate_prompt_tokens is {limit}, which leaves no room"):
        one(pool, TextPrompt("the coffee", pair), truncate_prompt_tokens=limit)


def test_the_smallest_room(pool: PromptEncoder) -> None:
    assert one(pool, "the coffee", truncate_prompt_tokens=3).token_ids == [CLS, 5, SEP]
    assert one(pool, "the coffee", truncate_prompt_tokens=1, add_special_tokens=False).token_ids == [5]


@pytest.mark.parametrize("side", SIDES)
def test_cutting_a_long_pair_short_is_cheap(pool: PromptEncoder, side: str) -> None:
    """The library keeps what it cuts off, for a pair every piece of one text beside every piece of the other."""
    started = time.process_time()
    sequence = one(pool, TextPrompt("a " * 300, "a " * 300), truncate_prompt_tokens=5, truncation_side=side)
    assert sequence.num_tokens == 5
    assert time.process_time() - started < 0.3, "two texts of 600 bytes: milliseconds, or an attack"


@pytest.mark.parametrize(
    ("limit", "side", "kept"),
    [(2, "right", [5, 6]), (2, "left", [8, 9]), (2, None, [5, 6]), (5, "left", [5, 6, 7, 8, 9]), (1, "left", [9])],
)
def test_ids_are_cut(pool: PromptEncoder, limit: int, side: str | None, kept: list[int]) -> None:
    asked = {"truncate_prompt_tokens": limit, "truncation_side": side}
    assert one(pool, TokenPrompt([5, 6, 7, 8, 9]), **asked).token_ids == kept


def test_cutting_ids_leaves_the_callers_list_alone(pool: PromptEncoder) -> None:
    ids = [5, 6, 7]
    one(pool, TokenPrompt(ids), truncate_prompt_tokens=2)
    assert ids == [5, 6, 7]


# Refusals


@pytest.mark.parametrize(
    "prompt", [TextPrompt("the " * 63), TokenPrompt([5] * 65), TextPrompt("the " * 31, "so " * 31)]
)
def test_over_length(pool: PromptEncoder, prompt: Prompt) -> None:
    with pytest.raises(ContextLengthError) as no:
        one(pool, prompt)
    assert no.value.message.startswith(
        "This model's maximum context length is 64 tokens. However, your prompt contains 65 input tokens"
    )
    assert (no.value.status, no.value.param) == (400, "input")


def test_over_length_names_the_input(pool: PromptEncoder) -> None:
    with pytest.raises(ContextLengthError, match="input at index 2"):
        pool.encode([TextPrompt("the"), TokenPrompt([5]), TextPrompt("the " * 99)], Options())


def test_the_longest_that_fits(pool: PromptEncoder) -> None:
    assert one(pool, "the " * 62).num_tokens == MAX_MODEL_LEN
    assert one(pool, TokenPrompt([5] * 64)).num_tokens == MAX_MODEL_LEN


@pytest.mark.parametrize("bad", [-1, -(2**70), VOCAB_SIZE, 2**31, 2**63, 2**70])
def test_ids_out_of_vocabulary(pool: PromptEncoder, bad: int) -> None:
    with pytest.raises(RequestError, match=f"Token id {bad} is out of vocabulary.*0 and {VOCAB_SIZE - 1}") as no:
        one(pool, TokenPrompt([5, bad]))
    assert (no.value.status, no.value.param) == (400, "input")


def test_a_bad_id_is_refused_even_where_it_would_be_cut_off(pool: PromptEncoder) -> None:
    with pytest.raises(RequestError, match="out of vocabulary"):
        one(pool, TokenPrompt([5, 6, VOCAB_SIZE]), truncate_prompt_tokens=2)


def test_first_and_last_id_of_the_vocabulary(pool: PromptEncoder) -> None:
    assert one(pool, TokenPrompt([0, VOCAB_SIZE - 1])).token_ids == [0, VOCAB_SIZE - 1]


@pytest.mark.parametrize("text", ["", " ", "\u200b", "\xad", "\x00"])
def test_text_without_tokens(pool: PromptEncoder, text: str) -> None:
    with pytest.raises(RequestError, match="Input at index 0 is empty: it has no tokens"):
        one(pool, text, add_special_tokens=False)
    assert one(pool, text).token_ids == [CLS, SEP]


def test_no_ids(pool: PromptEncoder) -> None:
    with pytest.raises(RequestError, match="Input at index 0 is empty"):
        one(pool, TokenPrompt([]))


@pytest.mark.parametrize("prompt", [TextPrompt("a \ud800 b"), TextPrompt("\udfff"), TextPrompt("fine", "\ud83d")])
def test_lone_surrogates(pool: PromptEncoder, prompt: Prompt) -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        one(pool, prompt)
    assert one(pool, "\U0001f600 \ufffd").num_tokens > 0


def test_nul(pool: PromptEncoder) -> None:
    assert one(pool, "the\x00 coffee").token_ids == one(pool, "the coffee").token_ids


def test_a_text_whose_token_the_model_has_no_row_for_never_reaches_the_model(folder: Path) -> None:
    """Some tokenizers know more tokens than the embedding has rows; an index error in the model is fatal."""
    try:
        pool = PromptEncoder(load_tokenizer(folder), VOCAB_SIZE - 1, MAX_MODEL_LEN)
        sequence = one(pool, "a" + bert_vocab()[-1].removeprefix("##"))
    except AssayError:
        return
    assert max(sequence.token_ids) < VOCAB_SIZE - 1


def test_a_pair_for_a_model_with_one_token_type_leaves_the_engine_alive(tmp_path: Path) -> None:
    save_bert(tmp_path, num_hidden_layers=1, type_vocab_size=1)
    with Classifier(str(tmp_path)) as classifier:
        pair, alone = classifier.classify([("the", "new"), "the"])
        assert (pair.num_tokens, alone.num_tokens) == (5, 3)


def test_naughty_strings(pool: PromptEncoder, library: Tokenizer, shared_data: Path) -> None:
    strings = json.loads((shared_data / "blns" / "blns.json").read_text("utf-8"))
    assert len(strings) > 500
    options = Options(truncate_prompt_tokens=-1)
    library.enable_truncation(MAX_MODEL_LEN)
    together = pool.encode([TextPrompt(text) for text in strings], options)
    assert len(together) == len(strings)
    for text, sequence in zip(strings, together, strict=True):
        assert sequence.token_ids == library.encode(text).ids
        assert one(pool, TextPrompt("the", text), truncate_prompt_tokens=-1).num_tokens <= MAX_MODEL_LEN
    library.no_truncation()


# Loading


def test_padding_and_truncation_in_the_file_are_switched_off(tmp_path: Path) -> None:
    save_bert_tokenizer(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    baked = Tokenizer.from_file(path)
    baked.enable_truncation(4)
    baked.enable_padding(length=16)
    baked.save(path)
    assert len(Tokenizer.from_file(path).encode("the coffee was great").ids) == 16, "the fixture is to pad and cut"
    pool = PromptEncoder(load_tokenizer(tmp_path), VOCAB_SIZE, MAX_MODEL_LEN)
    assert one(pool, "the coffee was great").num_tokens == 6


@pytest.mark.parametrize(
    ("written", "limit"),
    [(512, 512), (1e30, None), (1000000000000000019884624838656, None), (None, None), (512.0, 512)],
)
def test_model_max_length(tmp_path: Path, written: float | None, limit: int | None) -> None:
    save_bert_tokenizer(tmp_path, model_max_length=written)
    assert load_tokenizer(tmp_path).model_max_length == limit


@pytest.mark.parametrize(
    ("config", "side", "kept"),
    [({}, "right", 5), ({"truncation_side": "right"}, "right", 5), ({"truncation_side": "left"}, "left", 7)],
)
def test_truncation_side_of_the_config(tmp_path: Path, config: dict[str, str], side: str, kept: int) -> None:
    save_bert_tokenizer(tmp_path, **config)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.truncation_side == side
    pool = PromptEncoder(tokenizer, VOCAB_SIZE, MAX_MODEL_LEN)
    assert one(pool, "the coffee was", truncate_prompt_tokens=3).token_ids == [CLS, kept, SEP]
    assert one(pool, TokenPrompt([5, 6, 7]), truncate_prompt_tokens=1).token_ids == [kept]
    # What a request asks for wins.
    assert one(pool, "the coffee was", truncate_prompt_tokens=3, truncation_side="right").token_ids == [CLS, 5, SEP]


def test_tokenizer_config_may_be_missing(tmp_path: Path) -> None:
    save_bert_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.model_max_length, tokenizer.truncation_side) == (None, "right")


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"{}", b"[]", b'{"version":"1.0","model":{"type":"X"}}', b"\xff\xfe"]
)
def test_a_broken_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_a_broken_tokenizer_config(tmp_path: Path, content: str) -> None:
    save_bert_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["bert-base-uncased", "roberta-base"])
def test_tokenizers_of_public_models(shared_data: Path, name: str) -> None:
    """Their own post-processors: RoBERTa's pair has two separators, and its token types are all zero."""
    folder = shared_data / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    oracle = Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.no_padding()
    pool = PromptEncoder(tokenizer, oracle.get_vocab_size(), 512)
    text, pair = "Loved the new café—coffee was great. " * 3, "This update broke everything. Frustrating. 😀"
    for limit in (None, 40, 17, 8):
        oracle.no_truncation()
        if limit is not None:
            oracle.enable_truncation(limit, strategy="longest_first")
        assert one(pool, text, truncate_prompt_tokens=limit).token_ids == oracle.encode(text).ids
        sequence = one(pool, TextPrompt(text, pair), truncate_prompt_tokens=limit)
        assert sequence.token_ids == oracle.encode(text, pair).ids
        assert types(sequence) == oracle.encode(text, pair).type_ids
