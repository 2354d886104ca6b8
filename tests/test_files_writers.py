"""Writing files: what went in comes out, whatever it is, in every format; and the columns that are added."""

import csv
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay.errors import ConfigError, RequestError
from assay.files.added import Added, shortest
from assay.files.arrow import ArrowWriter, write_parquet
from assay.files.blocks import Block
from assay.files.readers import Reader, read_rows
from assay.files.writers import DelimitedWriter, JsonlWriter, Writer
from assay.sequence import Prediction
from tests.jobs import LABELS, read, write

ADDED = Added(LABELS)
PREDICTION = Prediction("fair", [0.25, 0.5, 0.25], [0.0, 0.7, 0.0], 3)
SCORED = {"label": "fair", "score": 0.5}


def written(path: Path, out: Path, added: Added = ADDED, quotes: bool = True) -> bytes:
    """Every row of a file, scored alike, in the format of `out`; which is written too."""
    reader = read_rows(path)
    writer = writer_of(out, reader, added, quotes)
    data = writer.head()
    for block in reader.blocks():
        data += rows(writer, block, added)
    if out.suffix == ".parquet":
        spool = out.with_suffix(".spool")
        spool.write_bytes(data)
        write_parquet(spool, out)
    else:
        out.write_bytes(data)
    return data


def writer_of(out: Path, reader: Reader, added: Added, quotes: bool) -> Writer:
    if out.suffix == ".jsonl":
        return JsonlWriter(added)
    if out.suffix == ".parquet":
        return ArrowWriter(reader, added)
    return DelimitedWriter(reader.columns, added, "," if out.suffix == ".csv" else "\t", quotes)


def rows(writer: Writer, block: Block, added: Added) -> bytes:
    count = len(block.lines)
    return writer.rows(block, added.columns([PREDICTION] * count, [None] * count), range(count))


# --- what went in comes out ---

ODD = st.text(st.characters(codec="utf-8") | st.sampled_from("\",'\t\n\r\\\0\ufeff\u2028 "), max_size=12)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ODD
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3))


@given(table=st.lists(st.tuples(ODD, ODD, ODD), max_size=8))
@settings(max_examples=100, deadline=None)
def test_csv_and_tsv_round_trip(table: list[tuple[str, str, str]]) -> None:
    """As Python's own reader and ours understand it, and once more through ours."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "a.csv"
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("x", "text", "y"), *table])
        data = written(source, Path(folder) / "b.csv")
        parsed = list(csv.reader(io.StringIO(data.decode(), newline="")))
        assert parsed == [["x", "text", "y", "label", "score"], *([*row, "fair", "0.5"] for row in table)]
        again = [row.values for row in read_rows(Path(folder) / "b.csv")]
        assert [(row["x"], row["text"], row["y"]) for row in again] == table
        written(source, Path(folder) / "b.tsv")
        tabbed = [row.values for row in read_rows(Path(folder) / "b.tsv", quotes=True)]
        assert [(row["x"], row["text"], row["y"]) for row in tabbed] == table


@given(objects=st.lists(st.dictionaries(ODD.filter(lambda key: key not in SCORED), NESTED, max_size=4), min_size=1))
@settings(max_examples=40, deadline=None)
def test_jsonl_round_trip(objects: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "a.jsonl"
        source.write_text("".join(json.dumps(one) + "\n" for one in objects), "utf-8")
        data = written(source, Path(folder) / "b.jsonl")
        lines = data.decode().removesuffix("\n").split("\n")
        assert [json.loads(line) for line in lines] == [one | SCORED for one in objects]
        assert [list(json.loads(line)) for line in lines] == [[*one, "label", "score"] for one in objects]


@given(values=st.lists(VALUES, min_size=1, max_size=6))
@example(values=[1.5, (1 << 53) + 1])
@example(values=[1 << 70])
@settings(max_examples=60, deadline=None)
def test_jsonl_to_parquet(values: list[Any]) -> None:
    """Values of one kind stay what they are; mixed ones become JSON."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "a.jsonl"
        source.write_text("".join(json.dumps({"text": "x", "v": value}) + "\n" for value in values), "utf-8")
        written(source, Path(folder) / "b.parquet")
        found = [row["v"] for row in read(Path(folder) / "b.parquet")]
        kinds = {type(value) for value in values if value is not None}
        whole = kinds == {int} and all(abs(value or 0) < 1 << 63 for value in values)
        exact = kinds == {int, float} and all(abs(v or 0) <= 1 << 53 for v in values if type(v) is int)
        if whole or exact or kinds <= {float} or kinds <= {str} or kinds == {bool}:
            assert found == values
        else:
            assert [None if one is None else json.loads(one) for one in found] == values


def test_naughty_strings(shared_data: Path, tmp_path: Path) -> None:
    naughty = json.loads((shared_data / "blns" / "blns.json").read_text("utf-8"))
    assert len(naughty) > 400
    source = write(tmp_path / "a.jsonl", {"text": naughty})
    for name in ("b.csv", "b.jsonl", "b.parquet"):
        written(source, tmp_path / name)
        assert [row["text"] for row in read(tmp_path / name)] == naughty, name
    assert [row["text"] for row in read(tmp_path / "b.csv")] == naughty
    written(source, tmp_path / "b.tsv")
    assert [row.values["text"] for row in read_rows(tmp_path / "b.tsv", quotes=True)] == naughty


def test_a_lone_surrogate_stays_in_json_and_nowhere_else(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "a\\ud800b"}\n')
    assert json.loads(written(source, tmp_path / "b.jsonl"))["text"] == "a\ud800b"
    for name in ("b.csv", "b.parquet"):
        written(source, tmp_path / name)
        assert read(tmp_path / name)[0]["text"] == "a?b"


def test_tsv_without_quotes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"text": ['"so"', "it's"]})
    assert written(source, tmp_path / "b.tsv", quotes=False).splitlines()[1:] == [
        b'"so"\tfair\t0.5',
        b"it's\tfair\t0.5",
    ]
    for text in ("a\tb", "a\nb", "a\rb"):
        source = write(tmp_path / "a.jsonl", {"text": [text]})
        with pytest.raises(RequestError, match="TSV without quotes cannot"):
            written(source, tmp_path / "b.tsv", quotes=False)


# --- Parquet ---


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", "b", "a"], pa.large_string()),
            "kind": pa.array(["x", None, "x"]).dictionary_encode(),
            "when": pa.array([1_700_000_000_123_456_789, None, 0], pa.timestamp("ns", tz="UTC")),
            "amount": pa.array([Decimal("1.50"), None, Decimal(2)], pa.decimal128(10, 2)),
            "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
            "raw": pa.array([b"\xff", b"", None]),
            "place": pa.array([{"x": 1.5}, None, {"x": 2.5}], pa.struct([("x", pa.float32())])),
        },
    ).replace_schema_metadata({"made": "here"})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    written(tmp_path / "a.parquet", tmp_path / "b.parquet")
    found = pq.read_table(tmp_path / "b.parquet")
    assert found.schema.metadata == {b"made": b"here"}
    assert found.drop_columns(["label", "score"]).cast(table.schema).equals(table)
    assert found.schema.field("score").type == pa.float32()
    assert found["label"].to_pylist() == ["fair"] * 3


def test_parquet_to_text(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["a"]),
        "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "zoned": pa.array([datetime(2024, 5, 1, 12, 0, tzinfo=UTC)], pa.timestamp("us", tz="UTC")),
        "day": pa.array([date(2024, 5, 1)]),
        "lasts": pa.array([1500], pa.duration("ms")),
        "amount": pa.array([Decimal("1.50")]),
        "raw": pa.array([b"\xff\x00"]),
        "tags": pa.array([["ä", None]]),
        "nan": pa.array([float("nan")]),
        "sure": pa.array([True]),
        "nothing": pa.array([None], pa.int64()),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    written(tmp_path / "a.parquet", tmp_path / "b.csv")
    texts = {
        "when": "2023-11-14T22:13:20.123456789",
        "zoned": "2024-05-01T12:00:00.000000Z",
        "day": "2024-05-01",
        "lasts": "1500",
        "amount": "1.50",
        "raw": "/wA=",
        "tags": '["ä", null]',
        "nan": "nan",
        "sure": "true",
        "nothing": "",
        "text": "a",
    }
    assert read(tmp_path / "b.csv") == [texts | {"label": "fair", "score": "0.5"}]
    written(tmp_path / "a.parquet", tmp_path / "b.jsonl")
    kept = {"lasts": 1500, "tags": ["ä", None], "nan": None, "sure": True, "nothing": None}
    assert read(tmp_path / "b.jsonl") == [texts | kept | SCORED]


def test_what_a_table_has_no_place_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.files.lines.BLOCK_ROWS", 1)
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "x", "n": 1}\n{"text": "y", "other": 2}\n')
    for name in ("b.csv", "b.parquet"):
        with pytest.raises(RequestError, match=r"line 2 has the key 'other', which none of the first rows has"):
            written(source, tmp_path / name)
    source.write_text('{"text": "x", "n": 1}\n{"text": "y", "n": "many"}\n')
    with pytest.raises(RequestError, match=r"line 2: 'n' is 'many', and int64 in the first rows. Write .jsonl."):
        written(source, tmp_path / "b.parquet")


# --- the columns that are added ---


def test_names_of_added_columns() -> None:
    assert ADDED.names == ("label", "score")
    every = Added(LABELS, probs=True, logits=True, top_k=2, error=True, prefix="p_")
    assert every.names == tuple(
        f"p_{name}"
        for name in (
            *("label", "score", "label_2", "score_2", "prob_bad", "prob_fair", "prob_good"),
            *("logit_bad", "logit_fair", "logit_good", "error"),
        )
    )
    columns = every.columns([PREDICTION, None], [None, "why"])
    assert columns["p_label"] == ["fair", None]
    assert columns["p_label_2"] == ["bad", None], "of equals, the first"
    assert columns["p_prob_fair"] == [0.5, None]
    assert columns["p_logit_fair"] == [0.7, None]
    assert columns["p_error"] == [None, "why"]
    assert [name for name in every.names if every.is_text(name)] == ["p_label", "p_label_2", "p_error"]


def test_top_k_is_by_probability_and_the_label_first() -> None:
    columns = Added(LABELS, top_k=3).columns([Prediction("good", [0.1, 0.3, 0.6], [0.0, 1.0, 2.0], 3)], [None])
    assert columns == {
        "label": ["good"],
        "score": [0.6],
        "label_2": ["fair"],
        "score_2": [0.3],
        "label_3": ["bad"],
        "score_3": [0.1],
    }


def test_numbers_are_as_short_as_float32_is() -> None:
    wide = [0.8999999761581421, 1 / 3, None, 1e-20, 0.0]
    assert shortest(wide) == [0.9, 0.33333334, None, 1e-20, 0.0]
    assert pa.array(shortest(wide), pa.float32()).equals(pa.array(wide, pa.float32()))


def test_added_columns_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="--top-k is 4; this model has 3 labels"):
        Added(LABELS, top_k=4)
    with pytest.raises(ConfigError, match="more than one label 'a'"):
        Added(("a", "b", "a"))
    with pytest.raises(ConfigError, match="already has 'label'; give the columns that are added a prefix"):
        ADDED.check_free(["text", "label"])
    Added(LABELS, prefix="x_").check_free(["text", "label"])


def test_an_object_that_has_a_key_of_ours_later(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "x"}\n{"text": "y", "score": 1}\n')
    with pytest.raises(ConfigError, match="already has 'score'"):
        written(source, tmp_path / "b.jsonl")
