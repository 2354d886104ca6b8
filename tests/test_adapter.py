"""PEFT adapters merged as they are read give the logits that peft itself gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from assay import Classifier
from assay.errors import CheckpointError
from tests.tiny import bert_vocab, randomize, save_bert, save_bert_tokenizer

# peft asks transformers for a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = [[2, 7, 30, 41, 9, 3], [2, 11, 3], [5, 6, 7, 8, 9, 10, 11, 12]]


def adapted(base: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    """Wrap, randomise what peft added, save; returns the wrapped model."""
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", lora_alpha=7, **settings))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + noise if "magnitude" in name else 0.5 * noise
    model.save_pretrained(folder)
    return model.eval()


def check(base: Path, adapter: Path, model: PreTrainedModel) -> None:
    with Classifier(str(base), adapter=str(adapter)) as classifier:
        ours = torch.tensor([prediction.logits for prediction in classifier.classify(IDS)])
    with torch.no_grad():
        theirs = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in IDS])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    with torch.no_grad(), model.disable_adapter():
        plain = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in IDS])
    assert (plain - theirs).abs().max() > 1e-2, "the adapter must matter for this test to mean anything"


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3},
        {"r": 4, "use_rslora": True},
        {"r": 3, "use_dora": True},
        {"r": 3, "target_modules": ["query", "dense", "word_embeddings"]},
        {"r": 3, "rank_pattern": {"layer.1.attention.self.query": 5}, "alpha_pattern": {r"layer\.0\..*\.value": 2}},
        {"r": 2, "alpha_pattern": {"query": 11}},
    ],
    ids=str,
)
def test_bert(tmp_path: Path, settings: dict[str, Any]) -> None:
    save_bert(tmp_path / "base")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    check(tmp_path / "base", tmp_path / "adapter", adapted(model, tmp_path / "adapter", **settings))


def test_a_pre_classifier_is_saved_by_substring(tmp_path: Path) -> None:
    config = DistilBertConfig(
        vocab_size=len(bert_vocab()), dim=24, n_heads=2, n_layers=2, hidden_dim=40, num_labels=3, pad_token_id=0
    )
    base = randomize(DistilBertForSequenceClassification(config), 1)
    base.save_pretrained(tmp_path / "base")
    save_bert_tokenizer(tmp_path / "base")
    model = adapted(base, tmp_path / "adapter", r=3, target_modules=["q_lin", "v_lin"])
    assert any("pre_classifier" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    check(tmp_path / "base", tmp_path / "adapter", model)


def test_a_language_model_as_base_gets_its_head_from_the_adapter(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(bert_vocab()),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    base = randomize(LlamaForCausalLM(config), 1)
    base.save_pretrained(tmp_path / "base")
    save_bert_tokenizer(tmp_path / "base")
    model = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3, pad_token_id=None)
    check(tmp_path / "base", tmp_path / "adapter", adapted(model, tmp_path / "adapter", r=2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    save_bert(folder / "base")
    model = BertForSequenceClassification.from_pretrained(folder / "base")
    adapted(model, folder / "adapter", r=3)
    return folder


def refusal(saved: Path, tmp_path: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> str:
    """The error after an adapter's config and tensors are changed (None removes one)."""
    adapter = tmp_path / "adapter"
    shutil.copytree(saved / "adapter", adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | (config or {})
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    state = load_file(adapter / "adapter_model.safetensors")
    for part, tensor in tensors.items():
        name = next(name for name in state if part in name)
        del state[name]
        if tensor is not None:
            state[name] = tensor
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Classifier(str(saved / "base"), adapter=str(adapter))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_cannot_be_merged_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    assert "IA3" in refusal(saved, tmp_path / "a", {"peft_type": "IA3"})
    assert "CAUSAL_LM" in refusal(saved, tmp_path / "b", {"task_type": "CAUSAL_LM"})
    assert "fan_in_fan_out" in refusal(saved, tmp_path / "c", {"fan_in_fan_out": True})
    assert "one half" in refusal(saved, tmp_path / "d", lora_A=None)
    assert "update of" in refusal(saved, tmp_path / "e", lora_B=torch.zeros(5, 3))
    assert "misshapen" in refusal(saved, tmp_path / "f", **{"classifier.weight": torch.zeros(3, 5)})


def test_an_adapter_for_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    save_bert(tmp_path / "smaller", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="base does not have"):
        Classifier(str(tmp_path / "smaller"), adapter=str(saved / "adapter"))


def test_a_folder_without_an_adapter_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        Classifier(str(saved / "base"), adapter=str(saved / "base"))
