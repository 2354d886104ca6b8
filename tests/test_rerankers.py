"""Rerankers saved as language models: the score is a difference of two logits, computed without the others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from assay import Classifier, Prediction
from assay.config import TEMPLATES, EngineConfig
from assay.engine.chat import ChatTemplate
from assay.errors import AssayError, CheckpointError, ConfigError, RequestError
from assay.model.weights import logit_score_ids
from assay.sequence import ChatPrompt
from tests.e2e.process import in_process
from tests.tiny import bert_vocab, randomize, save_bert, save_bert_tokenizer

VOCAB = {piece: i for i, piece in enumerate(bert_vocab())}
SIZES = {
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
PAIRS = [("the coffee", "was great"), ("so great", "everything broke and so the update was loved")]
TEMPLATE = "{% for m in messages %}{% if m.role == 'query' %}q : {{ m.content }}{% elif m.role == 'document' %} d : {{ m.content }} ?{% endif %}{% endfor %}"


def save(folder: Path, kind: str = "qwen3", **config: Any) -> PreTrainedModel:
    classes = {
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
        "gemma": (GemmaForCausalLM, GemmaConfig),
        "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    }
    model_class, config_class = classes[kind]
    model = randomize(model_class(config_class(**SIZES | config)), 3)
    model.save_pretrained(folder)
    save_bert_tokenizer(folder, chat_template=TEMPLATE)
    return model


def expected(model: PreTrainedModel, folder: Path, text: str, true: str, false: str | None) -> float:
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return float(logits[VOCAB[true]] - (logits[VOCAB[false]] if false else 0))


def score(folder: Path, inputs: list[Any], **config: Any) -> list[Prediction]:
    with Classifier(str(folder), **config) as classifier:
        return classifier.classify(inputs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("kind", "tokens"), [("qwen3", "broke,great"), ("gemma", "great")])
def test_pairs_score_as_the_language_model_answers(tmp_path: Path, kind: str, tokens: str, tied: bool) -> None:
    model = save(tmp_path, kind, tie_word_embeddings=tied)
    *false, true = tokens.split(",")
    predictions = score(tmp_path, PAIRS, classifier_from_token=tokens)
    for (query, document), prediction in zip(PAIRS, predictions, strict=True):
        reference = expected(model, tmp_path, f"q : {query} d : {document} ?", true, false[0] if false else None)
        assert prediction.logits == pytest.approx([reference], abs=1e-4)
        assert prediction.probs == pytest.approx([1 / (1 + torch.tensor(-reference).exp().item())], abs=1e-5)


def test_a_logit_score_module_says_which_tokens(tmp_path: Path) -> None:
    model = save(tmp_path)
    modules = [
        {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_LogitScore").mkdir()
    config = {"true_token_id": VOCAB["great"], "false_token_id": VOCAB["broke"]}
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps(config))
    (prediction,) = score(tmp_path, PAIRS[:1])
    reference = expected(model, tmp_path, "q : the coffee d : was great ?", "great", "broke")
    assert prediction.logits == pytest.approx([reference], abs=1e-4)


def test_a_language_model_without_answers_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError, match="--classifier-from-token"):
        score(tmp_path, PAIRS)


@pytest.mark.parametrize("tokens", ["", "a,b,c", "greatly,broke", ","])
def test_answers_that_are_no_tokens_are_refused(tmp_path: Path, tokens: str) -> None:
    save(tmp_path)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        score(tmp_path, PAIRS, classifier_from_token=tokens)
    assert isinstance(caught.value, AssayError)


def test_capped_logits_have_no_exact_difference(tmp_path: Path) -> None:
    save(tmp_path, "gemma2")
    with pytest.raises(CheckpointError, match="final_logit_softcapping"):
        score(tmp_path, PAIRS, classifier_from_token="broke,great")


def test_pairs_without_a_template_are_refused_and_texts_are_scored(tmp_path: Path) -> None:
    save(tmp_path)
    save_bert_tokenizer(tmp_path, chat_template="{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    with Classifier(str(tmp_path), classifier_from_token="broke,great") as classifier:
        with pytest.raises(RequestError, match="--chat-template"):
            classifier.classify(PAIRS)
        assert len(classifier.classify(["q : the coffee d : was great ?"])) == 1


def test_a_cut_pair_keeps_the_template(tmp_path: Path) -> None:
    save(tmp_path)
    with Classifier(str(tmp_path), classifier_from_token="broke,great") as classifier:
        (cut,) = classifier.classify([("so " * 60, "great " * 60)], truncate_prompt_tokens=21)
        (same,) = classifier.classify([("so " * 8, "great " * 8)])
    assert (cut.num_tokens, cut.logits) == (21, pytest.approx(same.logits, abs=1e-5))


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_shipped_templates(path: Path) -> None:
    assert EngineConfig(chat_template=path.stem).chat_template_path == path
    template = ChatTemplate(path.read_text("utf-8"), {"bos_token": "<bos>"})
    assert template.reads_pairs
    prompt = ChatPrompt([{"role": "query", "content": "QUERY"}, {"role": "document", "content": "DOCUMENT"}])
    expected = {
        "qwen3-reranker": "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a '
        "web search query, retrieve relevant passages that answer the query\n<Query>: QUERY\n<Document>: DOCUMENT<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "mxbai-rerank-v2": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nquery: QUERY\ndocument: DOCUMENT\nYou are a search relevance expert who evaluates how well "
        "documents match search queries. For each query-document pair, carefully analyze the semantic relationship between "
        "them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n"
        "<|im_start|>assistant\n",
        "bge-reranker-v2-gemma": "<bos>A: QUERY\nB: DOCUMENT\nGiven a query A and a passage B, determine whether the passage "
        "contains an answer to the query by providing a prediction of either 'Yes' or 'No'.",
    }
    assert template.render(prompt) == expected[path.stem]
    with pytest.raises(RequestError, match="roles are"):
        template.render(ChatPrompt([{"role": "user", "content": "hi"}]))


def test_a_system_message_is_the_instruction() -> None:
    template = ChatTemplate((TEMPLATES / "qwen3-reranker.jinja").read_text("utf-8"), {})
    messages = [{"role": role, "content": role.upper()} for role in ("system", "query", "document")]
    assert "<Instruct>: SYSTEM\n<Query>: QUERY\n<Document>: DOCUMENT<|im_end|>" in template.render(ChatPrompt(messages))


SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


@pytest.mark.parametrize(
    ("modules", "config"),
    [
        ("{", {}),
        ("{}", None),
        ("[3]", {}),
        ('[{"type": "x"}]', None),
        (json.dumps([{"type": SCORE}]), {}),
        (json.dumps([{"type": SCORE, "path": "../elsewhere"}]), {}),
        (json.dumps([{"type": SCORE, "path": "score"}]), {}),
        (json.dumps([{"type": SCORE, "path": "score"}]), {"true_token_id": "yes"}),
        (json.dumps([{"type": SCORE, "path": "score"}]), {"false_token_id": 3}),
    ],
)
def test_broken_modules_are_checkpoint_errors_or_none(
    tmp_path: Path, modules: str, config: dict[str, Any] | None
) -> None:
    """config None: nothing there says LogitScore, and nothing is wrong."""
    (tmp_path / "modules.json").write_text(modules)
    if config is None:
        assert logit_score_ids(tmp_path) is None
        return
    (tmp_path / "score").mkdir()
    (tmp_path / "score" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        logit_score_ids(tmp_path)


async def test_an_instruction_reaches_a_template_that_takes_one(tmp_path: Path) -> None:
    """Qwen3-Reranker's prompt: the instruction stands where a system message puts it, and moves the score."""
    save(tmp_path, max_position_embeddings=400)
    options = {"classifier_from_token": "broke,great", "chat_template": "qwen3-reranker"}
    with Classifier(str(tmp_path), **options) as classifier:
        conversation = [("system", "so new"), ("query", "the coffee"), ("document", "was great")]
        messages = [{"role": role, "content": content} for role, content in conversation]
        (expected_score,) = classifier.classify([messages])
    async with in_process(tmp_path, engine=options) as server:
        for path, body in (
            ("/rerank", {"query": "the coffee", "documents": ["was great"], "instruction": "so new"}),
            ("/v1/rerank", {"query": "the coffee", "documents": ["was great"], "instruct": "so new"}),
            ("/score", {"text_1": "the coffee", "text_2": "was great", "instruction": "so new"}),
        ):
            answer = (await server.client.post(path, json=body)).json()
            item = (answer.get("results") or answer["data"])[0]
            got = item.get("relevance_score", item.get("score"))
            assert got == pytest.approx(expected_score.probs[0], abs=1e-6)
            plain = {key: value for key, value in body.items() if not key.startswith("instruct")}
            other = (await server.client.post(path, json=plain)).json()
            item = (other.get("results") or other["data"])[0]
            assert item.get("relevance_score", item.get("score")) != pytest.approx(got, abs=1e-6)


async def test_an_instruction_without_a_place_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, num_labels=1)
    async with in_process(tmp_path) as server:
        body = {"query": "the coffee", "documents": ["was great"], "instruction": "so new"}
        refused = await server.client.post("/rerank", json=body)
    assert refused.status_code == 400
    assert "no place for an instruction" in refused.text


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_requests_own_template_needs_the_operators_trust(tmp_path: Path, trusted: bool) -> None:
    save(tmp_path)
    options = {"classifier_from_token": "broke,great", "trust_request_chat_template": trusted}
    async with in_process(tmp_path, engine=options) as server:
        body = {"messages": [{"role": "user", "content": "was great"}], "chat_template": "so {{ messages[0].content }}"}
        own = await server.client.post("/v1/classify", json=body)
        text = await server.client.post("/v1/classify", json={"input": "so was great", "add_special_tokens": False})
        broken = await server.client.post("/v1/classify", json=body | {"chat_template": "{% for %}"})
    if trusted:
        assert own.json()["data"][0]["probs"] == pytest.approx(text.json()["data"][0]["probs"], abs=1e-6)
        assert "not valid Jinja" in broken.json()["message"]
    else:
        assert "--trust-request-chat-template" in own.json()["message"]
    assert broken.status_code == 400
