"""config.json to a model: what is inferred, what is refused and in which words, where and how precisely it runs."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from assay.errors import CheckpointError, ConfigError
from assay.model.registry import ARCHITECTURES, load_model
from tests.tiny import load_plain, rewrite_weights, save_bert


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pristine") / "model"
    save_bert(folder, num_hidden_layers=1)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def edit(folder: Path, **changes: Any) -> Path:
    """Alter config.json; None takes a field away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_as_saved(folder: Path) -> None:
    model = load_model(folder)
    assert model.architecture == "BertForSequenceClassification"
    assert model.model_type == "bert"
    assert model.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert model.activation == "softmax"
    assert (model.max_positions, model.type_vocab_size) == (128, 2)
    assert not model.module.training


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], ["Other", "BertForSequenceClassification"]])
def test_architecture_that_is_missing_or_the_bare_trunk_is_inferred(folder: Path, architectures: Any) -> None:
    assert load_model(edit(folder, architectures=architectures)).architecture == "BertForSequenceClassification"


@pytest.mark.parametrize("task", ["BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering"])
def test_another_task_is_refused(folder: Path, task: str) -> None:
    message = refusal(edit(folder, architectures=[task]))
    assert task in message
    assert "sequence classifier" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPT9ForSequenceClassification"], "model_type": "gpt9"},
        {"architectures": None, "model_type": "gpt9"},
        {"architectures": None, "model_type": None},
        {"architectures": ["GPT9ForSequenceClassification"]},
    ],
    ids=str,
)
def test_unknown_architecture_says_where_the_supported_are_listed(folder: Path, changes: dict[str, Any]) -> None:
    message = refusal(edit(folder, **changes))
    assert "assay models" in message
    assert str((changes.get("architectures") or [changes.get("model_type")])[0]) in message


def test_unknown_architecture_without_transformers_lists_what_is_native(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(edit(folder, architectures=["GPT9ForSequenceClassification"], model_type="gpt9"))
    assert all(name in message for name in ARCHITECTURES)
    assert "assay[transformers]" in message


@pytest.mark.parametrize("architectures", ["BertForMaskedLM", 7])
def test_architectures_that_is_no_list(folder: Path, architectures: Any) -> None:
    assert "architectures" in refusal(edit(folder, architectures=architectures))


def test_every_architecture_has_its_family() -> None:
    for module in set(ARCHITECTURES.values()):
        assert callable(import_module(module).blueprint)


def test_a_bare_trunk_without_a_head_is_no_classifier(folder: Path) -> None:
    rewrite_weights(folder, lambda tensors: [tensors.pop(f"classifier.{part}") for part in ("weight", "bias")] and None)
    assert "classifier" in refusal(edit(folder, architectures=["BertModel"]))


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_are_refused(folder: Path, kind: str) -> None:
    assert kind in refusal(edit(folder, position_embedding_type=kind))


def test_absolute_positions_may_be_said(folder: Path) -> None:
    load_model(edit(folder, position_embedding_type="absolute"))


@pytest.mark.parametrize(
    "names", [{"0": "a", "1": "b"}, {"0": "a", "1": "b", "2": "c", "3": "d"}, {"1": "a", "2": "b", "3": "c"}]
)
def test_names_that_do_not_fit_the_head(folder: Path, names: dict[str, str]) -> None:
    message = refusal(edit(folder, id2label=names, label2id=None))
    assert "id2label" in message
    assert "3" in message


@pytest.mark.parametrize("names", [{"a": "b", "c": "d", "e": "f"}, ["a", "b", "c"], "abc"], ids=str)
def test_names_that_are_no_names(folder: Path, names: Any) -> None:
    assert "id2label" in refusal(edit(folder, id2label=names, label2id=None))


def test_the_head_counts_the_labels(folder: Path) -> None:
    """num_labels in the config may lie; the head's rows do not."""
    assert len(load_model(edit(folder, id2label=None, label2id=None, num_labels=9)).labels) == 3


def test_names_in_any_order(folder: Path) -> None:
    model = load_model(edit(folder, id2label={"2": "c", "0": "a", "1": "b"}, label2id=None))
    assert model.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": 3},
        {"hidden_size": "36"},
        {"num_hidden_layers": None},
        {"vocab_size": None},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"layer_norm_eps": "small"},
        {"problem_type": "guesswork"},
    ],
    ids=str,
)
def test_config_that_cannot_be(folder: Path, changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refusal(edit(folder, **changes))


def test_unknown_activation_function(folder: Path) -> None:
    message = refusal(edit(folder, hidden_act="nonsense"))
    assert "nonsense" in message
    assert "gelu" in message


def test_quantized_weights_are_refused(folder: Path) -> None:
    """Silent garbage otherwise: a method we do not know scales its integers in a way we do not know."""
    assert "fbgemm_fp8" in refusal(edit(folder, quantization_config={"quant_method": "fbgemm_fp8"}))


def test_code_in_a_checkpoint_is_never_run(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit('run')")
    load_model(edit(folder, auto_map={"AutoModelForSequenceClassification": "modeling_evil.Evil"}))


def test_a_layer_too_many_in_the_config_is_missing_tensors(folder: Path) -> None:
    assert "missing" in refusal(edit(folder, num_hidden_layers=2))


@pytest.mark.parametrize(
    ("asked", "trunk"),
    [
        ("auto", torch.float32),
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_dtype_on_a_cpu(folder: Path, asked: Any, trunk: torch.dtype) -> None:
    model = load_plain(folder, dtype=asked, device="cpu")
    assert model.dtype == trunk
    assert model.device == torch.device("cpu")
    assert {p.dtype for p in model.module.trunk.parameters()} == {trunk}
    assert {p.dtype for p in model.module.head.parameters()} == {torch.float32}


def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(folder, device="auto").device == torch.device("cpu")
    with pytest.raises(ConfigError, match="CUDA") as caught:
        load_model(folder, device="cuda")
    assert "\n" not in caught.value.message


def test_a_softmax_over_one_label_is_refused(tmp_path: Path) -> None:
    """It would be 1 for every text."""
    save_bert(tmp_path, num_labels=1)
    with pytest.raises(ConfigError, match="one label"):
        load_model(tmp_path, activation="softmax")
    named = {"activation_fn": "torch.nn.modules.activation.Softmax"}
    with pytest.raises(ConfigError, match="--activation sigmoid"):
        load_model(edit(tmp_path, sentence_transformers=named))
    assert load_model(edit(tmp_path, sentence_transformers=named), activation="sigmoid").activation == "sigmoid"
