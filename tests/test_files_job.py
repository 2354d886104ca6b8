"""A file in, a file out, in this process: scores, order, columns, pairs, bad rows, texts that are too long."""

import io
import json
from itertools import product
from pathlib import Path

import pytest
import torch

from assay.classifier import Classifier
from assay.engine.runner import Batch, ModelRunner
from assay.errors import ConfigError, RequestError
from assay.files import scorer
from tests.jobs import LABELS, TEXTS, Outcome, packed, read, run_job, save_nano, small_blocks, write
from tests.tiny import bert_vocab, rewrite_weights

INPUTS = ["csv", "tsv.gz", "jsonl.zst", "parquet", "txt"]
OUTPUTS = ["csv", "csv.gz", "tsv", "jsonl", "jsonl.zst", "parquet"]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_nano(tmp_path_factory.mktemp("nano"))


def expected(nano: Path, texts: list[str]) -> list[dict[str, float]]:
    """Label → probability of each text, as the library has them."""
    with Classifier(str(nano)) as classifier:
        return [dict(zip(LABELS, p.probs, strict=True)) for p in classifier.classify(texts)]


@pytest.mark.parametrize(("source", "out"), list(product(INPUTS, OUTPUTS)))
def test_every_format_to_every_other(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str
) -> None:
    small_blocks(monkeypatch, 4)
    texts = [text for text in TEXTS[:-1] * 2 if text]
    path = write(tmp_path / f"in.{source}", {"id": list(range(len(texts))), "text": texts})
    done = run_job(path, tmp_path / f"out.{out}", nano)
    assert (done.state.rows, done.state.errors, done.state.done) == (len(texts), 0, True)
    rows = read(tmp_path / f"out.{out}")
    assert [row["text"] for row in rows] == texts
    if source != "txt":
        assert [int(row["id"]) for row in rows] == list(range(len(texts)))
    for row, probs in zip(rows, expected(nano, texts), strict=True):
        assert row["label"] == max(probs, key=probs.__getitem__)
        assert float(row["score"]) == pytest.approx(max(probs.values()), abs=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == [f"out.{out}"]


def test_every_score(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"id": [1, 2], "text": TEXTS[:2]})
    run_job(path, tmp_path / "out.jsonl", nano, probs=True, logits=True, top_k=2, prefix="p_")
    with Classifier(str(nano)) as classifier:
        predictions = classifier.classify(TEXTS[:2])
    for row, prediction in zip(read(tmp_path / "out.jsonl"), predictions, strict=True):
        ranked = sorted(zip(prediction.probs, LABELS, strict=True), reverse=True)
        assert [row["p_label"], row["p_label_2"]] == [ranked[0][1], ranked[1][1]]
        assert [row["p_score"], row["p_score_2"]] == pytest.approx([ranked[0][0], ranked[1][0]], abs=1e-5)
        assert [row[f"p_prob_{label}"] for label in LABELS] == pytest.approx(prediction.probs, abs=1e-5)
        assert [row[f"p_logit_{label}"] for label in LABELS] == pytest.approx(prediction.logits, abs=1e-4)


def test_a_column_of_that_name_is_there_already(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"text": ["great"], "label": ["good"]})
    with pytest.raises(ConfigError, match="The input already has 'label'"):
        run_job(path, tmp_path / "out.csv", nano)
    run_job(path, tmp_path / "out.csv", nano, prefix="predicted_")
    assert list(read(tmp_path / "out.csv")[0]) == ["text", "label", "predicted_label", "predicted_score"]


def test_pairs(nano: Path, tmp_path: Path) -> None:
    pairs = [("the coffee", "was great"), ("so new", "everything broke, and so")]
    path = write(tmp_path / "in.csv", {"q": [q for q, _ in pairs], "a": [a for _, a in pairs]})
    run_job(path, tmp_path / "out.jsonl", nano, text_column="q", text_pair_column="a", logits=True)
    with Classifier(str(nano)) as classifier:
        predictions = classifier.classify(pairs)
    for row, prediction in zip(read(tmp_path / "out.jsonl"), predictions, strict=True):
        assert [row[f"logit_{label}"] for label in LABELS] == pytest.approx(prediction.logits, abs=1e-4)


def test_several_files_in_order(nano: Path, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"in{i}.csv.gz", {"id": [i], "text": ["great"]}) for i in (2, 1, 3)]
    run_job(paths, tmp_path / "a.csv", nano)
    assert [row["id"] for row in read(tmp_path / "a.csv")] == ["2", "1", "3"]
    run_job(str(tmp_path / "in*.csv.gz"), tmp_path / "b.csv", nano)
    assert [row["id"] for row in read(tmp_path / "b.csv")] == ["1", "2", "3"]


def test_batches_are_by_length_and_rows_in_order(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    form = scorer.form
    monkeypatch.setattr(scorer, "form", lambda batch: seen.append([s.num_tokens for s in batch]) or form(batch))
    texts = ["great " * count for count in (9, 1, 7, 3, 30, 2, 8, 4)]
    path = write(tmp_path / "in.txt", {"text": texts})
    done = run_job(path, tmp_path / "out.jsonl", nano, max_batch_tokens=24)
    assert [length for batch in seen for length in batch] == sorted(length for batch in seen for length in batch)
    assert all(sum(batch) <= 24 or len(batch) == 1 for batch in seen)
    assert done.state.tokens == done.watched.tokens == sum(map(sum, seen))
    assert [row["text"] for row in read(tmp_path / "out.jsonl")] == texts


def test_stdin_to_stdout(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = write(tmp_path / "in.csv", {"id": [1, 2], "text": ["great", "so “new”"]})
    run_job(path, tmp_path / "out.csv", nano)
    for data in (path.read_bytes(), packed(path.read_bytes(), Path("x.zst"))):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        run_job("-", "-", nano, input_format="csv")
        assert capsysbinary.readouterr().out == (tmp_path / "out.csv").read_bytes()


def test_what_stdout_gets_of_other_formats(
    nano: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    run_job(write(tmp_path / "a.txt", {"text": ["great"]}), "-", nano)
    assert capsysbinary.readouterr().out.startswith(b"text\tlabel\tscore\ngreat\t")
    run_job(write(tmp_path / "a.jsonl", {"text": ["great"]}), "-", nano)
    assert json.loads(capsysbinary.readouterr().out)["text"] == "great"
    parquet = write(tmp_path / "a.parquet", {"text": ["great"]})
    run_job(parquet, "-", nano, output_format="csv")
    assert capsysbinary.readouterr().out.startswith(b"text,label,score\ngreat,")
    for settings in ({}, {"output_format": "parquet"}):
        with pytest.raises(ConfigError, match="output"):
            run_job(parquet, "-", nano, **settings)


@pytest.mark.parametrize("name", ["out", "out.xlsx", "out.txt", "out.parquet.gz"])
def test_endings_of_outputs_that_say_nothing(nano: Path, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "in.csv", {"text": ["great"]})
    with pytest.raises(ConfigError, match=r"must be .csv|name the output like scores.parquet"):
        run_job(path, tmp_path / name, nano)


# --- bad rows ---

BAD = [
    {"id": 1, "text": "great"},
    {"id": 2, "text": None},
    {"id": 3},
    {"id": 4, "text": 5},
    {"id": 5, "text": ["a"]},
    {"id": 6, "text": " "},
    {"id": 7, "text": "so new"},
    {"id": 8, "text": "great " * 200},
    {"id": 9, "text": "a\ud800b"},
    {"id": 10, "text": "loved"},
]
WHY = {
    2: "'text' is null",
    3: "'text' is null",
    4: "'text' is 5, of type int, and no text",
    5: "'text' is ['a'], of type list, and no text",
    6: "'text' is empty",
    8: "it has 202 tokens, and the model reads at most 128; --on-too-long truncate cuts such texts, --on-too-long "
    "window scores all of them",
    9: "The text holds a lone surrogate (U+D800 to U+DFFF), which is no Unicode character",
}


def bad_rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BAD) + "no JSON\n")
    return path


def test_on_error_stop(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"in\.jsonl, line 2 \(id '2'\): 'text' is null\. --on-error skip leaves"):
        run_job(bad_rows(tmp_path), tmp_path / "out.csv", nano, id_column="id")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_on_error_skip(nano: Path, tmp_path: Path, out: str) -> None:
    done = run_job(bad_rows(tmp_path), tmp_path / out, nano, on_error="skip")
    assert [int(row["id"]) for row in read(tmp_path / out)] == [1, 7, 10]
    assert (done.state.rows, done.state.errors) == (11, 8)
    assert sum(done.state.labels.values()) == 3
    lines = [report.partition(": ")[::2] for report in done.reports]
    assert [where for where, _ in lines] == [f"{tmp_path}/in.jsonl, line {n}" for n in (*WHY, 11)]
    assert [why for _, why in lines[:-1]] == [f"{why}." for why in WHY.values()]
    assert lines[-1][1].startswith("no JSON: ")


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_on_error_null(nano: Path, tmp_path: Path, out: str) -> None:
    run_job(bad_rows(tmp_path), tmp_path / out, nano, on_error="null", probs=True)
    rows = read(tmp_path / out)
    assert len(rows) == 11
    for number, row in enumerate(rows, 1):
        bad = number in WHY or number == 11
        assert all((row[name] in (None, "")) == bad for name in ("label", "score", "prob_bad"))
        assert (row["error"] or "").rstrip(".") == WHY.get(number, row["error"] if bad else "")
    assert "no JSON" in rows[-1]["error"]


def test_a_row_without_an_id_is_called_by_its_line_alone(nano: Path, tmp_path: Path) -> None:
    done = run_job(bad_rows(tmp_path), tmp_path / "out.csv", nano, on_error="skip", id_column="id")
    assert done.reports[0].startswith(f"{tmp_path}/in.jsonl, line 2 (id '2'): ")
    assert done.reports[-1].startswith(f"{tmp_path}/in.jsonl, line 11: no JSON: ")


def test_bad_rows_of_csv(nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2,\n3\n4,\xff\n5,great\n')
    done = run_job(path, tmp_path / "out.csv", nano, on_error="skip")
    assert [row["id"] for row in read(tmp_path / "out.csv")] == ["1", "5"]
    assert [report.split(", line ")[1] for report in done.reports] == [
        "4: 'text' is empty.",
        "5: 1 fields, and 2 columns.",
        "6: byte 1, 0xff, is no UTF-8 (in 'text').",
    ]


def test_rows_of_parquet_are_called_by_number(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 2)
    path = write(tmp_path / "in.parquet", {"text": ["great", "so", "new", None, "was"]})
    done = run_job(path, tmp_path / "out.parquet", nano, on_error="skip")
    assert done.reports == [f"{path}, line 4: 'text' is null."]
    assert [row["text"] for row in read(tmp_path / "out.parquet")] == ["great", "so", "new", "was"]


def test_a_file_without_one_good_row(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"id": [1], "text": [""]})
    for out in ("out.csv", "out.jsonl", "out.parquet", "out.csv.gz"):
        done = run_job(path, tmp_path / out, nano, on_error="skip", text_column="text")
        assert (done.state.rows, done.state.errors, done.state.labels) == (1, 1, {})
        assert read_nothing(tmp_path / out)


def read_nothing(path: Path) -> bool:
    return not path.read_bytes() if path.suffix == ".jsonl" else read(path) == []


def test_a_header_and_no_rows(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"text": []})
    for out in ("out.csv", "out.parquet"):
        assert run_job(path, tmp_path / out, nano).state.rows == 0
        assert read(tmp_path / out) == []


def test_scores_that_are_no_numbers_cost_their_rows_only(nano: Path, tmp_path: Path) -> None:
    """One embedding overflows: the row that uses it has no score, its batch's others have theirs."""
    broken = save_nano(tmp_path / "broken")
    place = bert_vocab().index("coffee")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bert.embeddings.word_embeddings.weight"][place] = 3e38  # finite, and its square is not

    rewrite_weights(broken, spoil)
    path = write(tmp_path / "in.csv", {"text": ["great", "the coffee", "new"]})
    done = run_job(path, tmp_path / "out.csv", broken, on_error="skip")
    assert [row["text"] for row in read(tmp_path / "out.csv")] == ["great", "new"]
    assert "not finite numbers" in done.reports[0]


def test_a_text_that_breaks_the_model_is_told_and_no_other(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ModelRunner.run

    def fails_on_seven(self: ModelRunner, batch: Batch) -> object:
        if any(s.num_tokens == 7 for s in batch.sequences):
            raise RuntimeError("no kernel for seven")
        return run(self, batch)

    monkeypatch.setattr(ModelRunner, "run", fails_on_seven)
    path = write(tmp_path / "in.csv", {"text": ["great", "new", "great " * 5, "so", "was was"]})
    done = run_job(path, tmp_path / "out.csv", nano, on_error="skip")
    assert done.reports == [f"{path}, line 4: Scoring this text of 7 tokens fails: RuntimeError: no kernel for seven."]
    assert len(read(tmp_path / "out.csv")) == 4


# --- too long ---


def long_texts(tmp_path: Path) -> Path:
    return write(tmp_path / "in.csv", {"text": ["great", "great " * 100 + "coffee " * 100]})


def too_long(nano: Path, tmp_path: Path, **settings: object) -> Outcome:
    return run_job(long_texts(tmp_path), tmp_path / "out.jsonl", nano, logits=True, **settings)


def logits_of(row: dict[str, float]) -> list[float]:
    return [row[f"logit_{label}"] for label in LABELS]


@pytest.mark.parametrize("on_too_long", [None, "error"])
def test_too_long_is_an_error(nano: Path, tmp_path: Path, on_too_long: str | None) -> None:
    with pytest.raises(RequestError, match=r"line 3: it has 202 tokens, and the model reads at most 128"):
        too_long(nano, tmp_path, on_too_long=on_too_long)


@pytest.mark.parametrize("settings", [{"on_too_long": "truncate"}, {"truncate_prompt_tokens": -1}], ids=str)
def test_too_long_is_cut(nano: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    done = too_long(nano, tmp_path, **settings)
    with Classifier(str(nano)) as classifier:
        prediction = classifier.classify("great " * 100 + "coffee " * 100, truncate_prompt_tokens=-1)[0]
    assert logits_of(read(tmp_path / "out.jsonl")[1]) == pytest.approx(prediction.logits, abs=1e-4)
    assert done.state.tokens == 3 + 128


@pytest.mark.parametrize(("settings", "how"), [({"on_too_long": "window"}, "max"), ({"window": "mean"}, "mean")])
def test_too_long_is_scored_in_windows(nano: Path, tmp_path: Path, settings: dict[str, object], how: str) -> None:
    done = too_long(nano, tmp_path, **settings)
    with Classifier(str(nano)) as classifier:
        prediction = classifier.classify("great " * 100 + "coffee " * 100, window=how)[0]
    row = read(tmp_path / "out.jsonl")[1]
    assert row["label"] == prediction.label
    assert logits_of(row) == pytest.approx(prediction.logits, abs=1e-4)
    assert done.state.tokens == 3 + prediction.num_tokens > 202


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"on_too_long": "error", "truncate_prompt_tokens": 8}, "--truncate-prompt-tokens"),
        ({"on_too_long": "error", "window": "mean"}, "--window"),
        ({"on_too_long": "truncate", "window": "mean"}, "--window"),
        ({"on_too_long": "window", "truncate_prompt_tokens": 8}, "--truncate-prompt-tokens"),
    ],
    ids=str,
)
def test_two_ways_with_a_long_text(nano: Path, tmp_path: Path, settings: dict[str, object], other: str) -> None:
    with pytest.raises(ConfigError, match=f"--on-too-long {settings['on_too_long']} and {other} are two ways"):
        too_long(nano, tmp_path, **settings)


def test_a_shorter_limit(nano: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", {"text": ["great", "great " * 10]})
    done = run_job(path, tmp_path / "out.csv", nano, on_too_long="truncate", max_model_len=8)
    assert done.state.tokens == 3 + 8
    done = run_job(path, tmp_path / "b.csv", nano, on_too_long="truncate", truncate_prompt_tokens=5)
    assert done.state.tokens == 3 + 5
