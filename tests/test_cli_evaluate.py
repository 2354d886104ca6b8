"""`assay evaluate` from end to end on tiny models: a file in, a table, report.json and report.html out."""

import csv
import json
import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk
from typer.testing import CliRunner

from assay.classifier import Classifier
from assay.cli import app
from assay.evaluation import extra
from tests.test_cli import fails, run
from tests.tiny import WORDS, save_bert

LABELS = {0: "bad", 1: "fair", 2: "good"}
ROWS = 60
EXACT = {"rel": 1e-9, "abs": 1e-9}


def texts(count: int = ROWS) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS[:12], k=rng.randrange(1, 9))) for _ in range(count)]


TEXTS = texts()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of every kind."""
    folder = tmp_path_factory.mktemp("models")
    tiny: dict[str, Any] = {"num_hidden_layers": 1}
    save_bert(folder / "single", id2label=LABELS, **tiny)
    save_bert(folder / "other", id2label={0: "good", 1: "bad", 2: "fair"}, seed=1, **tiny)
    save_bert(folder / "multi", id2label=LABELS, problem_type="multi_label_classification", **tiny)
    save_bert(folder / "reward", num_labels=1, problem_type="regression", **tiny)
    return folder


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def evaluate(tmp_path: Path, *arguments: str | Path) -> tuple[dict[str, Any], str, str]:
    """(report.json, report.html, what the terminal shows)"""
    code, output = run("evaluate", *map(str, arguments), "-o", str(tmp_path / "out"))
    assert code == 0, output
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    return report, (tmp_path / "out" / "report.html").read_text("utf-8"), output


def values(metrics: dict[str, Any], *names: str) -> list[float]:
    return [metrics[name]["value"] for name in names]


def probs_of(model: Path, inputs: Sequence[Any] = TEXTS) -> Any:
    with Classifier(str(model)) as classifier:
        return np.array([prediction.probs for prediction in classifier.classify(inputs)])


def single_data(folder: Path) -> tuple[str, list[str]]:
    truth = [LABELS[i % 3] for i in range(ROWS)]
    return write(folder / "single.csv", ("text", "label"), list(zip(TEXTS, truth, strict=True))), truth


# The kinds of models


def test_labels_that_exclude_each_other(models: Path, tmp_path: Path) -> None:
    data, truth = single_data(tmp_path)
    report, page, shown = evaluate(tmp_path, data, "-m", models / "single")
    probs = probs_of(models / "single")
    names = list(LABELS.values())
    said = [names[i] for i in probs.argmax(axis=1)]
    metrics = report["model"]["metrics"]
    assert values(metrics, "accuracy", "macro_f1", "micro_f1", "log_loss", "roc_auc") == pytest.approx(
        [
            sk.accuracy_score(truth, said),
            sk.f1_score(truth, said, average="macro"),
            sk.f1_score(truth, said, average="micro"),
            sk.log_loss(truth, probs / probs.sum(axis=1, keepdims=True), labels=names),
            sk.roc_auc_score(truth, probs / probs.sum(axis=1, keepdims=True), multi_class="ovr", labels=names),
        ],
        rel=1e-6,
    )
    assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    counts = sk.confusion_matrix(truth, said, labels=names).tolist()
    assert report["model"]["confusion"] == {"labels": names, "counts": counts}
    assert report["task"] == "single"
    assert report["data"]["rows"] == ROWS
    assert [report["model"]["labels"][name]["support"] for name in names] == [20, 20, 20]
    assert f"{metrics['accuracy']['value']:.4f}" in shown
    for title in ("Confusion matrix", "Reliability", "Threshold", "Scores by label", "Worst mistakes"):
        assert f"<h2>{title}</h2>" in page
    wrong = [i for i in range(ROWS) if said[i] != truth[i]]
    worst = max(wrong, key=lambda i: -probs[i, names.index(truth[i])])
    assert report["mistakes"][0]["texts"] == [TEXTS[worst]]
    assert report["mistakes"][0]["place"] == f"{data}, line {worst + 2}"
    assert len(report["mistakes"]) == min(50, len(wrong))


def test_labels_that_do_not_exclude_each_other(models: Path, tmp_path: Path) -> None:
    flags = np.array([[i % 2, i % 3 == 0, i % 5 == 0] for i in range(ROWS)], dtype=bool)
    rows = [(text, "|".join(LABELS[j] for j in np.flatnonzero(row))) for text, row in zip(TEXTS, flags, strict=True)]
    data = write(tmp_path / "multi.csv", ("text", "labels"), rows)
    report, page, shown = evaluate(tmp_path, data, "-m", models / "multi", "--threshold", "0.4")
    probs = probs_of(models / "multi")
    said = probs >= 0.4
    assert values(report["model"]["metrics"], "exact_match", "macro_f1", "micro_f1", "roc_auc") == pytest.approx(
        [
            sk.accuracy_score(flags, said),
            sk.f1_score(flags, said, average="macro"),
            sk.f1_score(flags, said, average="micro"),
            sk.roc_auc_score(flags, probs),
        ],
        **EXACT,
    )
    assert report["model"]["thresholds"] == {"bad": 0.4, "fair": 0.4, "good": 0.4}
    precision = sk.precision_score(flags, said, average=None, zero_division=0)
    found = [report["model"]["labels"][name]["precision"]["value"] for name in LABELS.values()]
    assert found == pytest.approx(list(precision), **EXACT)
    assert "labels separated by '|'" in shown
    assert "<h2>Thresholds by label</h2>" in page


def test_a_column_for_each_label(models: Path, tmp_path: Path) -> None:
    rows = [(text, i % 2, i % 3 == 0) for i, text in enumerate(TEXTS)]
    data = write(tmp_path / "columns.csv", ("text", "good", "bad"), rows)
    options = ("--label-column", "good", "--label-column", "bad")
    report, _, _ = evaluate(tmp_path, data, "-m", models / "multi", *options)
    assert report["data"]["labels"] == ["bad", "good"]
    probs = probs_of(models / "multi")[:, [0, 2]]
    truth = np.array([(i % 3 == 0, i % 2) for i in range(ROWS)], dtype=bool)
    expected = sk.average_precision_score(truth, probs)
    assert report["model"]["metrics"]["average_precision"]["value"] == pytest.approx(expected, **EXACT)


def test_numbers(models: Path, tmp_path: Path) -> None:
    truth = [i % 7 - 3.5 for i in range(ROWS)]
    data = write(tmp_path / "numbers.csv", ("text", "label"), list(zip(TEXTS, truth, strict=True)))
    report, page, shown = evaluate(tmp_path, data, "-m", models / "reward")
    scores = probs_of(models / "reward")[:, 0]
    assert values(report["model"]["metrics"], "pearson", "spearman", "mae") == pytest.approx(
        [pearsonr(truth, scores)[0], spearmanr(truth, scores)[0], np.abs(truth - scores).mean()], **EXACT
    )
    assert "Pearson correlation" in shown
    assert "<h2>Largest errors</h2>" in page


def test_preference_pairs(models: Path, tmp_path: Path) -> None:
    chosen, rejected = TEXTS[:30], TEXTS[30:]
    rows = list(zip(reversed(TEXTS[:30]), chosen, rejected, strict=True))
    data = write(tmp_path / "pairs.csv", ("prompt", "good", "bad"), rows)
    columns = ("--prompt-column", "prompt", "--chosen-column", "good", "--rejected-column", "bad")
    report, page, shown = evaluate(tmp_path, data, "-m", models / "reward", *columns)
    scores = [probs_of(models / "reward", [(row[0], row[side]) for row in rows])[:, 0] for side in (1, 2)]
    margins = scores[0] - scores[1]
    assert values(report["model"]["metrics"], "accuracy", "margin", "log_loss") == pytest.approx(
        [(margins > 0).mean(), margins.mean(), np.log1p(np.exp(-margins)).mean()], rel=1e-6
    )
    assert report["model"]["read_as"] == "pairs of prompt and answer: the model has no chat template"
    assert "30 pairs of" in shown
    assert "<h2>Margins</h2>" in page
    worst = int(np.argmin(margins))
    assert report["mistakes"][0]["texts"] == list(rows[worst])


def test_conversations_go_through_the_models_template(models: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }} . {% endfor %}")
    rows = [{"prompt": "the coffee", "chosen": "was great", "rejected": [{"role": "assistant", "content": "broke"}]}]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    columns = ("--prompt-column", "prompt", "--chosen-column", "chosen", "--rejected-column", "rejected")
    report, _, _ = evaluate(tmp_path, data, "-m", models / "reward", *columns, "--chat-template", template)
    rendered = ["the coffee . was great . ", "the coffee . broke . "]
    with Classifier(str(models / "reward")) as classifier:  # a template writes the special tokens itself, or none
        good, bad = [one.logits[0] for one in classifier.classify(rendered, add_special_tokens=False)]
    assert report["model"]["metrics"]["margin"]["value"] == pytest.approx(good - bad, **EXACT)
    assert report["model"]["read_as"] == "conversations, by the model's chat template"


# Two models


def test_two_models_whose_labels_stand_in_another_order(models: Path, tmp_path: Path) -> None:
    data, truth = single_data(tmp_path)
    report, page, shown = evaluate(tmp_path, data, "-m", models / "single", "--compare", models / "other")
    first, second = probs_of(models / "single"), probs_of(models / "other")[:, [1, 2, 0]]
    names = list(LABELS.values())
    said = [[names[i] for i in probs.argmax(axis=1)] for probs in (first, second)]
    assert report["compared"]["metrics"]["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, said[1]))
    right = np.array([[word == true for word, true in zip(side, truth, strict=True)] for side in said])
    comparison = report["comparison"]
    assert comparison["flips"]["rows"] == sum(a != b for a, b in zip(*said, strict=True))
    assert comparison["mcnemar"]["only_first"] == int((right[0] & ~right[1]).sum())
    assert comparison["mcnemar"]["only_second"] == int((~right[0] & right[1]).sum())
    assert comparison["score_drift"]["max"] == pytest.approx(np.abs(first - second).max(), abs=1e-6)
    gap = comparison["differences"]["accuracy"]
    assert gap["value"] == pytest.approx(right[1].mean() - right[0].mean())
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert comparison["verdict"] in " ".join(shown.split())
    assert "Drift between the two models" in page


def test_two_precisions_of_one_model(models: Path, tmp_path: Path) -> None:
    data, _ = single_data(tmp_path)
    report, page, _ = evaluate(tmp_path, data, "-m", models / "single", "--compare-quantization", "int8")
    assert report["compared"]["title"] == f"{models / 'single'}, int8"
    assert 0 < report["comparison"]["score_drift"]["max"] < 0.1
    assert f"Compared with {models / 'single'}, int8" in page


def test_a_model_compared_with_itself(models: Path, tmp_path: Path) -> None:
    data, _ = single_data(tmp_path)
    report, _, shown = evaluate(tmp_path, data, "-m", models / "single", "--compare", models / "single")
    assert report["comparison"]["flips"]["rows"] == 0
    assert report["comparison"]["mcnemar"]["p"] == 1
    assert set(values(report["comparison"]["differences"], "accuracy", "log_loss", "ece")) == {0}
    assert "neither model is right where the other is wrong" in " ".join(shown.split())


def test_a_comparison_is_a_line_a_metric_on_a_narrow_terminal(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = single_data(tmp_path)
    monkeypatch.chdir(models)
    arguments = ("evaluate", data, "-m", "single", "--compare-quantization", "int8", "-o", str(tmp_path / "out"))
    for columns, intervals in (("80", 1), ("120", 3)):
        shown = CliRunner().invoke(app, arguments, env={"COLUMNS": columns, "TERM": "dumb"}).output
        line = next(line for line in shown.splitlines() if line.startswith("calibration error (ECE)"))
        assert line.count("[") == line.count("]") == intervals
        assert len(re.findall(r"\d\.\d{4}", line)) == 3 + 2 * intervals
        assert ("first: single; second: single, int8" in shown.splitlines()) == (columns == "80")


# Rows that cannot be judged


def test_rows_that_cannot_be_used_are_left_out_when_asked(models: Path, tmp_path: Path) -> None:
    long = "coffee " * 200
    rows = [(TEXTS[0], "good"), (long, "bad"), ("", "bad"), (TEXTS[1], ""), (TEXTS[2], "fair")]
    data = write(tmp_path / "bad.csv", ("text", "label"), rows)
    report, page, shown = evaluate(tmp_path, data, "-m", models / "single", "--on-error", "skip")
    assert report["data"]["rows"] == 2
    assert [line.partition(": ")[0].rpartition(" ")[2] for line in report["data"]["skipped"]] == ["4", "3"]
    assert report["data"]["left_out"] == 1
    assert "3 rows are left out" in shown
    assert "2 rows could not be used" in page


def test_pairs_of_which_one_answer_is_too_long_are_left_out_whole(models: Path, tmp_path: Path) -> None:
    long = "coffee " * 200
    rows = [("the", "great"), ("great", long), (long, "so"), ("was", "new")]
    data = write(tmp_path / "pairs.csv", ("good", "bad"), rows)
    columns = ("--chosen-column", "good", "--rejected-column", "bad", "--on-error", "skip")
    report, _, _ = evaluate(tmp_path, data, "-m", models / "reward", *columns)
    assert report["data"]["rows"] == 2
    assert [line.partition(": ")[0] for line in report["data"]["skipped"]] == [f"{data}, line 3", f"{data}, line 4"]
    scores = probs_of(models / "reward", ["the", "great", "was", "new"])[:, 0]
    expected = (scores[0] - scores[1] + scores[2] - scores[3]) / 2
    assert report["model"]["metrics"]["margin"]["value"] == pytest.approx(expected, rel=1e-6)


def test_long_texts_are_cut_when_asked(models: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "long.csv", ("text", "label"), [("coffee " * 200, "bad"), ("the", "good")])
    report, _, _ = evaluate(tmp_path, data, "-m", models / "single", "--on-too-long", "truncate")
    assert report["data"]["rows"] == 2
    assert report["model"]["num_tokens"] == 128 + 3


def test_rows_without_any_label_of_the_models(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "other.csv", ("text", "label"), [("great", "new"), ("so", "newer")])
    line = fails(capsys, monkeypatch, "evaluate", data, "-m", str(models / "single"), "--ignore-unknown-labels")
    assert line == f"assay: No row of {data} has a label that the model has."


def test_no_intervals(models: Path, tmp_path: Path) -> None:
    data, _ = single_data(tmp_path)
    report, page, _ = evaluate(tmp_path, data, "-m", models / "single", "--resamples", "0", "--mistakes", "2")
    assert report["model"]["metrics"]["accuracy"]["low"] is None
    assert "bootstrap" not in page
    assert len(report["mistakes"]) == 2


@pytest.mark.parametrize(
    ("header", "row", "options", "complaint"),
    [
        ("text,label", "great,good", ("-m", "absent/model", "--device", "cpu"), "absent/model"),
        ("text,label", "great,new", (), "'new' in the data is no label of the model (first in"),
        ("text,stars", "great,good", (), "Say which column holds the label, with --label-column"),
        ("text,label", "great,good", ("--label-column", "x"), "--label-column is 'x', and there is no such column"),
        ("a,b,label", "great,so,good", (), "Say which column holds the text, with --text-column"),
        ("text,label", ",good", (), "line 2: 'text' is empty. --on-error skip leaves such rows out."),
        ("text,label", "coffee " * 200 + ",good", (), "line 2: it has 202 tokens, and the model reads at most 128"),
        ("text,label", "", (), "there is no row to judge"),
        ("text,label", "a,good", ("--chosen-column", "text"), "both --chosen-column and --rejected-column"),
        ("a,b", "x,y", ("--chosen-column", "a", "--rejected-column", "b"), "gives 3 scores, and a preference is"),
        ("a,b", "x,y", ("--prompt-column", "a"), "--prompt-column goes with --chosen-column"),
        ("text,label", "great,good", ("--compare", "{models}/multi"), "through softmax, the second's through sigmoid"),
        ("text,label", "great,good", ("--threshold", "1.5"), "threshold is 1.5; it must be a number between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    header: str,
    row: str,
    options: tuple[str, ...],
    complaint: str,
) -> None:
    data = tmp_path / "data.csv"
    data.write_text(f"{header}\n{row}\n")
    given = [option.replace("{models}", str(models)) for option in options]
    model = [] if "-m" in given else ["-m", str(models / "single")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = fails(capsys, monkeypatch, "evaluate", str(data), *model, *given, "-o", str(tmp_path / "out"))
    assert complaint in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_told_before_the_work(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = single_data(tmp_path)
    line = fails(capsys, monkeypatch, "evaluate", data, "-m", "absent/model", "-o", data)
    assert line == f"assay: {data} is a file, and the reports go into a folder; name another with -o."


def test_other_labels_cannot_be_compared(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bert(tmp_path / "model", id2label={0: "bad", 1: "fair", 2: "best"}, num_hidden_layers=1)
    data, _ = single_data(tmp_path)
    options = ("-m", str(models / "single"), "--compare", str(tmp_path / "model"))
    line = fails(capsys, monkeypatch, "evaluate", data, *options)
    assert "only the first has 'good', only the second 'best'" in line


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "matplotlib" else object())
    data, _ = single_data(tmp_path)
    line = fails(capsys, monkeypatch, "evaluate", data)
    assert line == "assay: `assay evaluate` needs matplotlib: pip install 'assay[evaluate]'"


# The page


class Links(HTMLParser):
    """Tags of a page, and whatever it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_texts_and_labels_are_shown_and_not_run(tmp_path: Path) -> None:
    nasty = {0: "<script>alert(1)</script>", 1: "$\\frac{", 2: "日本語 & <b>"}
    save_bert(tmp_path / "model", id2label=nasty, num_hidden_layers=1)
    rows = [(f"<img src=x onerror=alert({i})> {{{{ 7 * 7 }}}} {text}", nasty[i % 3]) for i, text in enumerate(TEXTS)]
    data = write(tmp_path / "nasty.csv", ("text", "label"), rows)
    options = ("--label-column", "label", "--on-too-long", "truncate")
    _, page, _ = evaluate(tmp_path, data, "-m", tmp_path / "model", *options)
    links = Links(page)
    assert "script" not in links.tags
    assert len(links.loads) == 4
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.loads)
    assert "&lt;img src=x onerror=alert(" in page
    assert "{{ 7 * 7 }}" in page
    assert "日本語 &amp; &lt;b&gt;" in page
    assert re.search(r"default-src 'none'", page)
