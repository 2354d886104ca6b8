"""Conversations: rendered as transformers renders them, in a sandbox; cut without losing the template's ending."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from assay.engine.chat import ChatTemplate
from assay.engine.conversation import template_source
from assay.engine.encoder import PromptEncoder
from assay.engine.tokenizer import TextTokenizer, load_tokenizer
from assay.errors import CheckpointError, RequestError
from assay.sequence import ChatPrompt, Options, TextPrompt
from tests.tiny import save_bert_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}"
    "{% endgeneration %}{{ eos_token }}{% else %}[{{ m.content | tojson }}]{% endif %}{% endfor %}"
)
TALK = [{"role": "user", "content": "the coffee & <b>"}, {"role": "assistant", "content": "was great  "}]


def by_transformers(source: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    backend = Tokenizer.from_str(json.dumps({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **kwargs)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("source", [CHATML, LLAMA])
@pytest.mark.parametrize("flags", [{}, {"add_generation_prompt": True}, {"continue_final_message": True}])
def test_renders_as_transformers_does(source: str, flags: dict[str, bool]) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(ChatPrompt(TALK, **flags)) == by_transformers(source, TALK, **flags)


def test_the_qwen_template_as_transformers_renders_it(shared_data: Path) -> None:
    config = json.loads((shared_data / "tokenizers/qwen2.5/tokenizer_config.json").read_text())
    template = ChatTemplate(config["chat_template"], {})
    assert template.render(ChatPrompt(TALK)) == by_transformers(config["chat_template"], TALK)


def test_template_kwargs_reach_the_template_and_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ thinking }}{{ messages | length }}", {})
    assert template.render(ChatPrompt(TALK, template_kwargs={"thinking": "no", "messages": []})) == "no2"


def test_template_kwargs_cannot_replace_functions_or_special_tokens() -> None:
    template = ChatTemplate("{{ bos_token }}{{ tools }}{{ documents }}", {"bos_token": "<s>"})
    assert template.render(ChatPrompt(TALK, template_kwargs={"tools": 1, "documents": 2})) == "<s>12"
    for name in ("raise_exception", "strftime_now", "range", "dict", "namespace", "cycler", "joiner", "bos_token"):
        with pytest.raises(RequestError, match=f"chat_template_kwargs holds '{name}'") as caught:
            template.render(ChatPrompt(TALK, template_kwargs={name: "x"}))
        assert caught.value.param == "chat_template_kwargs"


def test_names_of_the_sandbox_itself_are_no_variables() -> None:
    """The compiled template's own names cannot be reached or replaced by those of a request."""
    names = ["budget", "context", "environment", "concat", "shown", "missing", "resolve", "self", "loop", "caller"]
    source = "{% macro f() %}{{ m }}{% endmacro %}{% for m in messages %}{{ loop.index }}{{ m.role ~ 'x' }}{% endfor %}"
    template = ChatTemplate(source + "{{ budget }}{{ environment }}{{ f() }}", {})
    prompt = ChatPrompt(TALK, template_kwargs=dict.fromkeys(names, "v"))
    assert template.render(prompt) == "1userx2assistantxvv"


@pytest.mark.parametrize("arguments", ["", "indent=2", "separators=(',', ':')", "sort_keys=true", "ensure_ascii=true"])
def test_json_is_written_as_transformers_writes_it(arguments: str) -> None:
    source = "{{ messages|tojson(" + arguments + ") }}"
    talk = [{"role": "user", "content": "ü <b> & 'x'"}]
    assert ChatTemplate(source, {}).render(ChatPrompt(talk)) == by_transformers(source, talk)


def test_content_parts_are_joined_and_others_refused() -> None:
    template = ChatTemplate(CHATML, {})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "a\nb" in template.render(ChatPrompt([{"role": "user", "content": parts}]))
    with pytest.raises(RequestError, match="must be text"):
        template.render(ChatPrompt([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ raise_exception('no system messages') }}",
        "{{ messages[9].content.x.y }}",
        "{{ 1 // 0 }}",
        "{{ 'x' + 1 }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_hostile_and_refusing_templates_are_request_errors(source: str) -> None:
    with pytest.raises(RequestError, match="template"):
        ChatTemplate(source, {}).render(ChatPrompt(TALK))


def test_broken_jinja_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="Jinja"):
        ChatTemplate("{% for %}", {})


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    assert template_source(tmp_path, {}) is None
    config = {"chat_template": "config"}
    assert template_source(tmp_path, config) == "config"
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": "d"}]
    assert template_source(tmp_path, {"chat_template": several}) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template_source(tmp_path, config) == "file"
    (tmp_path / "mine.jinja").write_text("mine")
    assert template_source(tmp_path, config, tmp_path / "mine.jinja") == "mine"
    with pytest.raises(CheckpointError, match=r"nowhere\.jinja"):
        template_source(tmp_path, config, tmp_path / "nowhere.jinja")


def test_a_template_names_the_checkpoint_s_special_tokens(tmp_path: Path) -> None:
    save_bert_tokenizer(tmp_path)
    config = {"chat_template": "{{ bos_token }}{{ sep_token }}d", "bos_token": {"content": "<s>"}, "sep_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = load_tokenizer(tmp_path).chat_template
    assert template is not None
    assert template.render(ChatPrompt([{"role": "user", "content": "hi"}])) == "<s></s>d"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    save_bert_tokenizer(tmp_path)
    return Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


def pool(tokenizer: Tokenizer, source: str | None, suffix_id: int | None = None, limit: int = 64) -> PromptEncoder:
    template = ChatTemplate(source, {"bos_token": "[CLS]"}) if source is not None else None
    return PromptEncoder(TextTokenizer(tokenizer, None, "right", template, suffix_id), 1000, limit)


BRACKETS = "( {% for m in messages %}{{ m.content }} ; {% endfor %})"
LONG = [{"role": "user", "content": "so " * 30}, {"role": "assistant", "content": "great " * 10}]


def test_bos_is_not_doubled(tokenizer: Tokenizer) -> None:
    (sequence,) = pool(tokenizer, BRACKETS).encode([ChatPrompt(TALK[1:])], Options())
    text = "( was great ; )"
    assert sequence.token_ids == tokenizer.encode(text, add_special_tokens=False).ids
    (doubled,) = pool(tokenizer, BRACKETS).encode([ChatPrompt(TALK[1:])], Options(add_special_tokens=True))
    assert doubled.num_tokens == sequence.num_tokens + 2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("limit", [5, 6, 14, 25, 40, 44])
def test_cutting_a_conversation_keeps_the_template(tokenizer: Tokenizer, limit: int, side: Any) -> None:
    options = Options(truncate_prompt_tokens=limit, truncation_side=side)
    (sequence,) = pool(tokenizer, BRACKETS).encode([ChatPrompt(LONG)], options)
    whole = tokenizer.encode("( ; ; )", add_special_tokens=False).ids
    assert limit - 2 < sequence.num_tokens <= limit  # both messages are cut to one length
    assert (sequence.token_ids[0], sequence.token_ids[-2:]) == (whole[0], whole[-2:])
    assert sequence.token_ids.count(whole[1]) == 2


def test_a_limit_below_the_template_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="template alone takes 4 tokens"):
        pool(tokenizer, BRACKETS).encode([ChatPrompt(LONG)], Options(truncate_prompt_tokens=3))


def test_no_template_is_a_clear_refusal(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        pool(tokenizer, None).encode([ChatPrompt(TALK)], Options())


def test_the_reward_token_of_a_config_is_the_suffix(tmp_path: Path) -> None:
    """InternLM2's reward models name it in config.json."""
    save_bert_tokenizer(tmp_path, chat_template=BRACKETS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2", "reward_token_id": 99}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.suffix_id == 99
    (sequence,) = PromptEncoder(loaded, 1000, 64).encode([ChatPrompt(TALK)], Options())
    assert sequence.token_ids[-1] == 99
    with pytest.raises(CheckpointError, match="reward_token_id 99"):
        PromptEncoder(loaded, 99, 64)


def test_a_suffix_token_ends_texts_and_conversations_once(tokenizer: Tokenizer) -> None:
    ours = pool(tokenizer, BRACKETS, suffix_id=99)
    text, chat = ours.encode([TextPrompt("so great"), ChatPrompt(TALK)], Options())
    assert text.token_ids[-1] == chat.token_ids[-1] == 99
    again = pool(tokenizer, BRACKETS, suffix_id=chat.token_ids[-2]).encode([ChatPrompt(TALK)], Options())
    assert again[0].token_ids == chat.token_ids[:-1]
    (cut,) = ours.encode([TextPrompt("so " * 30)], Options(truncate_prompt_tokens=10))
    assert (cut.num_tokens, cut.token_ids[-1]) == (10, 99)


def test_unreadable_templates_are_checkpoint_errors(tmp_path: Path) -> None:
    for several in ([{"name": "default"}], ["default"], [3]):
        with pytest.raises(CheckpointError, match="chat template"):
            template_source(tmp_path, {"chat_template": several})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="chat template"):
        template_source(tmp_path, {})
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        template_source(tmp_path, {}, tmp_path / "chat_template.jinja")


@pytest.mark.parametrize("token_id", ["92527", 1.5, -1, True])
def test_a_reward_token_that_is_no_id_is_refused(tmp_path: Path, token_id: Any) -> None:
    save_bert_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"reward_token_id": token_id}))
    with pytest.raises(CheckpointError, match="reward_token_id"):
        load_tokenizer(tmp_path)
