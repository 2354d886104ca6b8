"""config.json to labels and activation, rule by rule, and over config files of public models."""

import json
from pathlib import Path
from typing import Any

import pytest

from assay.errors import CheckpointError
from assay.labels import activation_for, label_names

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
SOFTMAX = "torch.nn.modules.activation.Softmax"


@pytest.mark.parametrize(
    ("config", "num_labels", "names"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, 2, ("no", "yes")),
        ({"id2label": {"1": "yes", "0": "no"}}, 2, ("no", "yes")),
        ({"id2label": {str(i): f"l{i}" for i in reversed(range(12))}}, 12, tuple(f"l{i}" for i in range(12))),
        ({"id2label": {0: "no", 1: "yes"}}, 2, ("no", "yes")),
        ({"id2label": {"0": 1, "1": 5}}, 2, ("1", "5")),
        ({"id2label": {"0": "same", "1": "same"}}, 2, ("same", "same")),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"x": 0, "y": 1}}, 2, ("a", "b")),
        ({"label2id": {"yes": 1, "no": 0}}, 2, ("no", "yes")),
        ({"id2label": None, "label2id": {"yes": 1, "no": 0}}, 2, ("no", "yes")),
        ({"num_labels": 3}, 3, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 3, "label2id": {}}, 3, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({}, 2, ("LABEL_0", "LABEL_1")),
        ({}, 1, ("Class_0",)),
        ({}, 3, ("Class_0", "Class_1", "Class_2")),
    ],
)
def test_label_names(config: dict[str, Any], num_labels: int, names: tuple[str, ...]) -> None:
    assert label_names(config, num_labels) == names


@pytest.mark.parametrize(
    ("config", "num_labels"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, 3),
        ({"id2label": {"0": "a", "1": "b"}}, 1),
        ({"id2label": {"0": "a", "2": "b"}}, 2),
        ({"id2label": {"1": "a", "2": "b"}}, 2),
        ({"label2id": {"a": 0, "b": 0}}, 2),
    ],
)
def test_names_that_do_not_fit_the_head_are_refused(config: dict[str, Any], num_labels: int) -> None:
    with pytest.raises(CheckpointError, match=rf"head has {num_labels}.*id2label must have the keys 0 to"):
        label_names(config, num_labels)


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"zero": "a", "one": "b"}},
        {"id2label": ["a", "b"]},
        {"label2id": {"a": None, "b": 1}},
        {"label2id": ["a", "b"]},
    ],
)
def test_malformed_names_are_a_checkpoint_error(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(config))):
        label_names(config, 2)


@pytest.mark.parametrize(
    ("config", "num_labels", "activation"),
    [
        # By the number of labels.
        ({}, 1, "sigmoid"),
        ({}, 2, "softmax"),
        ({"problem_type": None}, 3, "softmax"),
        # By problem type.
        ({"problem_type": "regression"}, 1, "none"),
        ({"problem_type": "regression"}, 5, "none"),
        ({"problem_type": "single_label_classification"}, 3, "softmax"),
        ({"problem_type": "single_label_classification"}, 1, "sigmoid"),
        ({"problem_type": "multi_label_classification"}, 28, "sigmoid"),
        ({"problem_type": "multi_label_classification"}, 1, "sigmoid"),
        # By name; a Sigmoid over several labels is element-wise.
        ({"sbert_ce_default_activation_function": IDENTITY}, 1, "none"),
        ({"sbert_ce_default_activation_function": IDENTITY}, 4, "none"),
        ({"sbert_ce_default_activation_function": SIGMOID}, 1, "sigmoid"),
        ({"sbert_ce_default_activation_function": SIGMOID}, 4, "sigmoid"),
        ({"sbert_ce_default_activation_function": SOFTMAX}, 2, "softmax"),
        ({"sbert_ce_default_activation_function": None}, 2, "softmax"),
        ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}, 1, "none"),
        ({"sentence_transformers": {"version": "5.0.0"}}, 1, "sigmoid"),
        ({"sentence_transformers": None}, 1, "sigmoid"),
        # In order: problem type, sentence_transformers, the older key.
        ({"problem_type": "regression", "sentence_transformers": {"activation_fn": SIGMOID}}, 1, "none"),
        (
            {"sentence_transformers": {"activation_fn": SIGMOID}, "sbert_ce_default_activation_function": IDENTITY},
            1,
            "sigmoid",
        ),
        (
            {"problem_type": "multi_label_classification", "sbert_ce_default_activation_function": IDENTITY},
            2,
            "sigmoid",
        ),
    ],
)
def test_activation(config: dict[str, Any], num_labels: int, activation: str) -> None:
    assert activation_for(config, num_labels) == activation


@pytest.mark.parametrize("key", ["sbert_ce_default_activation_function", "sentence_transformers"])
@pytest.mark.parametrize("name", ["os.system", "torch.nn.modules.activation.Tanh", "Sigmoid"])
def test_an_unknown_activation_is_refused_by_name(key: str, name: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        activation_for({key: {"activation_fn": name} if key == "sentence_transformers" else name}, 2)
    assert repr(name) in refusal.value.message
    assert SIGMOID in refusal.value.message


def test_an_unknown_problem_type_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"'ranking'.*regression, single_label_classification"):
        activation_for({"problem_type": "ranking"}, 2)


GO_EMOTIONS = (
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral"
)
REAL = [
    ("cardiffnlp_twitter-roberta-base-sentiment", 3, "LABEL_0 LABEL_1 LABEL_2", "softmax"),
    ("deberta-v3-base_seqcls", 2, "LABEL_0 LABEL_1", "softmax"),  # no names at all; two is transformers' default
    ("distilbert-reward", 1, "LABEL_0", "sigmoid"),
    ("distilbert-sst2", 2, "NEGATIVE POSITIVE", "softmax"),
    ("ms-marco-MiniLM-L-6-v2", 1, "LABEL_0", "none"),  # an explicit Identity
    ("roberta-base-go_emotions", 28, GO_EMOTIONS, "sigmoid"),  # multi-label
    ("ruRoberta-large_toxicity", 2, "LABEL_0 LABEL_1", "softmax"),
]


@pytest.mark.parametrize(("name", "num_labels", "labels", "activation"), REAL)
def test_configs_of_public_models(shared_data: Path, name: str, num_labels: int, labels: str, activation: str) -> None:
    config = json.loads((shared_data / "configs" / name / "config.json").read_text("utf-8"))
    assert label_names(config, num_labels) == tuple(labels.split())
    assert activation_for(config, num_labels) == activation


def test_no_public_config_is_left_out(shared_data: Path) -> None:
    assert {path.parent.name for path in shared_data.glob("configs/*/config.json")} == {row[0] for row in REAL}


def test_an_operator_can_set_what_the_checkpoint_names_badly(tmp_path: Path) -> None:
    """The refusal says: set one with --activation. That must help."""
    from assay.classifier import Classifier
    from tests.tiny import save_bert

    save_bert(tmp_path, num_hidden_layers=1, sbert_ce_default_activation_function="torch.nn.modules.activation.Tanh")
    with pytest.raises(CheckpointError, match="--activation"):
        Classifier(str(tmp_path))
    with Classifier(str(tmp_path), activation="none") as classifier:
        prediction = classifier.classify("the coffee")[0]
    assert prediction.probs == prediction.logits
