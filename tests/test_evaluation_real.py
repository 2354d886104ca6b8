"""`assay evaluate` on public data: the bundled model's card, and a classifier and a reward model made on its trunk."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from assay.classifier import Classifier
from assay.config import BUNDLED_MODEL
from tests.test_cli_evaluate import evaluate, write
from tests.tiny import rewrite_weights

pytestmark = pytest.mark.slow


def with_head(
    folder: Path, weight: torch.Tensor, bias: torch.Tensor, labels: list[str], problem_type: str, pooler: bool = True
) -> Path:
    """The bundled model's trunk under another head, as a checkpoint of its own.

    pooler: whether it keeps the one that was trained for emotions; else [CLS] passes it as it is, but for a tenth.
    """
    shutil.copytree(BUNDLED_MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"problem_type": problem_type, "id2label": dict(enumerate(labels))}
    del config["label2id"]
    (folder / "config.json").write_text(json.dumps(config))

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.weight"] = weight.float().contiguous()
        tensors["classifier.bias"] = bias.float()
        if not pooler:
            tensors["bert.pooler.dense.weight"] = 0.1 * torch.eye(config["hidden_size"])
            tensors["bert.pooler.dense.bias"] = torch.zeros(config["hidden_size"])

    rewrite_weights(folder, change)
    return folder


def logits_of(model: Path, inputs: list[Any], **options: Any) -> Any:
    with Classifier(str(model)) as classifier:
        return np.array([prediction.logits for prediction in classifier.classify(inputs, **options)])


def test_goemotions_gives_the_numbers_of_the_model_card(shared_data: Path, tmp_path: Path) -> None:
    card = json.loads((BUNDLED_MODEL / "metrics.json").read_text())["student"]
    data = shared_data / "goemotions" / "test.tsv"
    options = ("--no-header", "--text-column", "column_1", "--label-column", "column_2", "--resamples", "0")
    report, _, shown = evaluate(tmp_path, data, *options, "--threshold", str(card["threshold"]))
    found = {name: value["value"] for name, value in report["model"]["metrics"].items()}
    expected = card["test"]
    assert report["data"]["rows"] == 5427
    assert found["macro_f1"] == pytest.approx(expected["macro_f1"], abs=2e-4)
    assert found["micro_f1"] == pytest.approx(expected["micro_f1"], abs=2e-4)
    assert found["average_precision"] == pytest.approx(expected["macro_average_precision"], abs=2e-4)
    for label, numbers in expected["per_label"].items():
        of_label = report["model"]["labels"][label]
        assert of_label["support"] == numbers["support"]
        for name in ("precision", "recall", "f1"):
            assert of_label[name]["value"] == pytest.approx(numbers[name], abs=0.02)
    assert "labels separated by ',', by index, 0 to 27" in shown


def banking77(path: Path, every: int) -> tuple[list[str], list[str]]:
    """Each `every`th question, so that all intents occur, and the intents."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::every]
    return [row["text"] for row in rows], [row["category"] for row in rows]


def test_banking77_with_a_classifier_on_the_bundled_trunk(shared_data: Path, tmp_path: Path) -> None:
    names = json.loads((shared_data / "banking77" / "categories.json").read_text())
    each = [f"feature {i}" for i in range(384)]
    trunk = with_head(tmp_path / "trunk", torch.eye(384), torch.zeros(384), each, "regression", pooler=False)
    texts, intents = banking77(shared_data / "banking77" / "train.csv", 4)
    targets = np.array([names.index(intent) for intent in intents])
    head = RidgeClassifier(alpha=0.001).fit(logits_of(trunk, texts), targets)
    weight, bias = (10 * torch.tensor(values) for values in (head.coef_, head.intercept_))  # of -1 to 1, for a softmax
    model = with_head(tmp_path / "model", weight, bias, names, "single_label_classification", pooler=False)
    texts, truth = banking77(shared_data / "banking77" / "test.csv", 6)
    data = write(tmp_path / "test.csv", ("text", "category"), list(zip(texts, truth, strict=True)))
    report, page, shown = evaluate(tmp_path, data, "-m", model)
    logits = logits_of(model, texts)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    targets, said = np.array([names.index(intent) for intent in truth]), probs.argmax(axis=1)
    found = {name: value["value"] for name, value in report["model"]["metrics"].items()}
    assert found["accuracy"] > 0.6  # 77 intents
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, said), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(f1_score(targets, said, average="macro"), abs=1e-9)
    assert found["log_loss"] == pytest.approx(log_loss(targets, probs), rel=1e-5)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(targets, probs, multi_class="ovr"), rel=1e-6)
    assert "The 30 labels of lowest F1; report.html has all 77." in shown
    assert all(f"<td>{name}</td>" in page for name in names)


def test_llmbar_with_a_reward_model_of_the_bundled_one(shared_data: Path, tmp_path: Path) -> None:
    """The reward is how much an answer sounds like approval, and how little like disapproval: no good one, but real."""
    rows = json.loads((shared_data / "llmbar" / "LLMBar" / "Natural" / "dataset.json").read_text())
    pairs = [(row["input"], row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows]
    with Classifier() as classifier:
        labels = list(classifier.labels)
    liked, disliked = labels.index("approval"), labels.index("disapproval")
    difference = torch.zeros(1, len(labels))
    difference[0, liked], difference[0, disliked] = 1, -1
    tensors = load_file(BUNDLED_MODEL / "model.safetensors")
    weight, bias = (difference @ tensors[f"classifier.{name}"].float() for name in ("weight", "bias"))
    model = with_head(tmp_path / "model", weight, bias, ["reward"], "regression")
    data = tmp_path / "pairs.jsonl"
    lines = [dict(zip(("prompt", "good", "bad"), pair, strict=True)) for pair in pairs]
    data.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    columns = ("--prompt-column", "prompt", "--chosen-column", "good", "--rejected-column", "bad")
    report, _, _ = evaluate(tmp_path, data, "-m", model, *columns, "--truncate-prompt-tokens", "128")
    scored = [
        logits_of(BUNDLED_MODEL, [(pair[0], pair[side]) for pair in pairs], truncate_prompt_tokens=128)
        for side in (1, 2)
    ]
    rewards = [logits[:, liked] - logits[:, disliked] for logits in scored]
    margins = rewards[0] - rewards[1]
    metrics = report["model"]["metrics"]
    assert report["data"]["rows"] == len(pairs) == 100
    assert metrics["accuracy"]["value"] == (margins > 0).mean()
    assert metrics["margin"]["value"] == pytest.approx(margins.mean(), abs=1e-5)
    assert metrics["accuracy"]["low"] < metrics["accuracy"]["value"] < metrics["accuracy"]["high"]
