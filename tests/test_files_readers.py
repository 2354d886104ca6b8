"""Reading files: every format, compressed and not; the numbers of lines; what is wrong with a row, or with a file."""

import gzip
import io
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assay.errors import ConfigError, RequestError
from assay.files.inputs import TextColumns
from assay.files.readers import Reader, choose_text_column, read_rows
from tests.jobs import packed, small_blocks, write

IDS = [1, 2, 3]
TEXTS = ["the coffee", "“so” new, é", "great"]


def texts_of(reader: Reader) -> list[str]:
    return [row.values["text"] for row in reader]


def problems(path: Path, **options: bool) -> dict[int, str]:
    """Line → what is wrong with the row that begins there."""
    found = {}
    for block in read_rows(path, **options).blocks():
        found |= {block.lines[place]: problem for place, problem in block.problems.items()}
    return found


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "tab", "jsonl", "ndjson", "txt", "parquet", "pq"])
def test_every_format(tmp_path: Path, ending: str, codec: str) -> None:
    if codec and ending in ("parquet", "pq"):
        return
    plain = {"tab": "tsv", "ndjson": "jsonl", "pq": "parquet"}.get(ending, ending)
    written = write(tmp_path / f"reviews.{plain}{codec}", {"id": IDS, "text": TEXTS})
    path = written.rename(tmp_path / f"r.{ending}{codec}")
    reader = read_rows(path)
    rows = list(reader)
    assert [row.values["text"] for row in rows] == TEXTS
    assert reader.columns == (("text",) if ending == "txt" else ("id", "text"))
    header = plain in ("csv", "tsv")
    assert [row.line for row in rows] == [n + header for n in IDS]
    if ending != "txt":
        assert [str(row.values["id"]) for row in rows] == ["1", "2", "3"]
    assert texts_of(reader) == TEXTS, "as often as asked for"


def test_the_magic_number_counts_and_not_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(b"text\nhello\n"))
    assert texts_of(read_rows(path)) == ["hello"]


def test_members_and_frames_one_after_another(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "a.csv.zst"):
        path = tmp_path / name
        path.write_bytes(packed(b"text\na\n", path) + packed(b"b\n", path))
        assert texts_of(read_rows(path)) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.zst"])
def test_a_file_that_was_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = packed(b"text\n" + b"".join(b"%d\n" % i for i in range(10_000)), path)
    path.write_bytes(whole[:-7])
    with pytest.raises(RequestError, match="cannot be read on: Truncated"):
        list(read_rows(path))


def test_a_name_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(b"text\nplain\n")
    with pytest.raises(RequestError, match=r"is not compressed, as its name says"):
        read_rows(path)


def test_several_files_and_globs(tmp_path: Path) -> None:
    for name, text in (("b.csv", "second"), ("a.csv", "first"), ("c.tsv", "other")):
        write(tmp_path / name, {"text": [text]})
    assert texts_of(read_rows(str(tmp_path / "*.csv"))) == ["first", "second"]
    assert texts_of(read_rows([tmp_path / "b.csv", tmp_path / "a.csv"])) == ["second", "first"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "d.csv", {"text": ["third"]})
    assert texts_of(read_rows(str(tmp_path / "**" / "*.csv"))) == ["first", "second", "third"]
    with pytest.raises(ConfigError, match="are of different formats"):
        read_rows(str(tmp_path / "*.*sv"))
    with pytest.raises(ConfigError, match="There is no file"):
        read_rows(str(tmp_path / "*.jsonl"))
    with pytest.raises(ConfigError, match=r"is a folder; name its files"):
        read_rows(tmp_path / "deep")


def test_files_whose_columns_differ_in_order_and_not_in_name(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", {"id": [1], "text": ["x"]})
    write(tmp_path / "b.csv", {"text": ["y"], "id": [2]})
    write(tmp_path / "c.csv", {"text": ["z"], "number": [3]})
    assert [row.values for row in read_rows([tmp_path / "a.csv", tmp_path / "b.csv"])] == [
        {"id": "1", "text": "x"},
        {"id": "2", "text": "y"},
    ]
    with pytest.raises(RequestError, match=r"\['id'\] are only in .*a.csv, \['number'\] only in .*c.csv"):
        read_rows([tmp_path / "a.csv", tmp_path / "c.csv"])


def test_stdin_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"text\nhello\n"))))
    reader = read_rows("-", "csv")
    assert texts_of(reader) == ["hello"]
    with pytest.raises(RequestError, match="stdin is a pipe, which can be read only once"):
        list(reader)


def test_a_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"text\nhello\n",))
    writer.start()
    assert texts_of(read_rows(path)) == ["hello"]
    writer.join()


def test_stdin_needs_a_format() -> None:
    with pytest.raises(ConfigError, match="stdin says no format; say it with --input-format"):
        read_rows("-")


# --- rows ---


def test_quoted_line_ends_blank_lines_and_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,one\r\n')
    rows = list(read_rows(path))
    assert [(row.line, row.values) for row in rows] == [
        (3, {"id": "1", "text": 'two\r\nlines, "quoted"'}),
        (6, {"id": "2", "text": "one"}),
    ]


def test_a_file_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"1,one\n2,two\n")
    rows = list(read_rows(path, header=False))
    assert [(row.line, row.values["column_2"]) for row in rows] == [(1, "one"), (2, "two")]


def test_quotes_in_tsv_are_plain_until_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\n"so\n')
    assert texts_of(read_rows(path)) == ['"so']
    path.write_bytes(b'text\n"so\tnew"\n')
    assert texts_of(read_rows(path, quotes=True)) == ["so\tnew"]


def test_problems_of_delimited_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,fine\n2\n3,a,b\n4,"x"y\n5,\xff\n6,fine\n7,"never closed\n8,x\n')
    found = problems(path)
    assert set(found) == {3, 4, 5, 6, 8}
    assert found[3] == "1 fields, and 2 columns"
    assert found[4] == "3 fields, and 2 columns"
    assert "quotes within a quoted field are doubled" in found[5]
    assert found[6] == "byte 1, 0xff, is no UTF-8 (in 'text')"
    assert found[8] == "a quote that opens here is never closed"
    with pytest.raises(RequestError, match=r"a\.csv, line 3: 1 fields, and 2 columns\."):
        list(read_rows(path))


def test_problems_of_jsonl_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "fine"}\n\n{"text": \n[1]\n{"text": NaN}\n{"text": "\xff"}\n' + b"[" * 100_000 + b'\n{"text": 5}\n'
    )
    found = problems(path)
    assert set(found) == {3, 4, 5, 6, 7}
    assert found[3].startswith("no JSON: ")
    assert found[4] == "a JSON value of type list, where an object is needed"
    assert found[5] == "no JSON: NaN is no number of JSON's"
    assert found[6] == "byte 11, 0xff, is no UTF-8"


FILES = {
    "empty": ("a.csv", b"", "is empty: it has no header"),
    "empty lines": ("a.jsonl", b"\n\n", "is empty: it has no rows"),
    "no line of JSON": ("a.jsonl", b"\nid,text\n1,great\n", "has no columns. Line 2: no JSON: "),
    "a column twice": ("a.csv", b"text,text\nx,y\n", "more than one column 'text'"),
    "UTF-16": ("a.csv", "text\nx\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "a header in Latin-1": ("a.csv", b"t\xebxt\nx\n", "the header is no UTF-8"),
    "a broken header": ("a.csv", b'"te"xt\nx\n', "line 1"),
    "no Parquet": ("a.parquet", b"PAR1 nothing of it", "cannot be read as Parquet"),
}


@pytest.mark.parametrize(("name", "data", "message"), FILES.values(), ids=FILES)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(RequestError, match=message):
        list(read_rows(path))


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.files.sources.MAX_LINE", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" + b"x" * 101)
    with pytest.raises(RequestError, match="has a line of more than"):
        list(read_rows(path))


def test_a_parquet_file_whose_pages_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(1000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    with pytest.raises(RequestError, match="cannot be read after row 0"):
        list(read_rows(path))


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Arrow does not look; one such value costs its own row and no other."""
    path = tmp_path / "a.parquet"
    data = pa.array([b"fine", b"\xff", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": data}), path)
    reader = read_rows(path)
    _, found = TextColumns.of(reader, None, None, None).prompts(next(reader.blocks()))
    assert found == {1: "'text' is b'\\xff', of type bytes, and no text", 2: "'text' is null"}


def test_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 4)
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt"):
        path = write(tmp_path / name, {"text": [f"text {i}" for i in range(10)]})
        assert [len(block.lines) for block in read_rows(path).blocks()] == [4, 4, 2]
    for module in ("delimited", "lines", "parquet"):
        monkeypatch.setattr(f"assay.files.{module}.BLOCK_BYTES", 100)
        monkeypatch.setattr(f"assay.files.{module}.BLOCK_ROWS", 1000)
    for name in ("b.csv", "b.jsonl", "b.txt"):
        path = write(tmp_path / name, {"text": ["x" * 60] * 10})
        assert [len(block.lines) for block in read_rows(path).blocks()] == [2] * 5


def test_how_far_it_is(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.gz", "c.parquet"):
        path = write(tmp_path / name, {"text": TEXTS * 10_000})
        reader = read_rows(path)
        assert reader.num_bytes == path.stat().st_size
        reached = [reader.bytes_read for _ in reader.blocks()]
        assert reached == sorted(reached)
        assert reached[0] <= reader.num_bytes
        assert reader.bytes_read == reader.num_bytes


# --- the column with the text ---


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["text"], "text"),
        (["whatever"], "whatever"),
        (["id", "sentence"], "sentence"),
        (["id", "remarks", "label"], "remarks"),
        (["date", "stars", "Review"], "Review"),
        (["", "q"], "q"),
    ],
)
def test_the_only_candidate(columns: list[str], chosen: str) -> None:
    assert choose_text_column(columns, None) == chosen


@pytest.mark.parametrize("columns", [["a", "b"], ["text", "comment"], ["id", "label"], ["text", "body", "id"]])
def test_more_than_one_candidate_or_none(columns: list[str]) -> None:
    with pytest.raises(ConfigError, match="Say which column holds the text, with --text-column") as raised:
        choose_text_column(columns, None)
    assert all(repr(name) in raised.value.message for name in columns)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="--text-column is 'txt', and there is no such column"):
        choose_text_column(["a", "b"], "txt")
    with pytest.raises(ConfigError, match="say so with --no-header"):
        choose_text_column(["1", "I loved it"], None)


def test_an_empty_part_of_jsonl(tmp_path: Path) -> None:
    full, empty = write(tmp_path / "full.jsonl", {"text": ["great", "new"]}), tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    for paths in ([full, empty], [empty, full]):
        reader = read_rows(paths)
        assert reader.columns == reader.texts == ("text",)
        assert [row.values["text"] for row in reader] == ["great", "new"]
    with pytest.raises(RequestError, match="is empty: it has no rows"):
        read_rows([empty, empty])


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", r"'\\t'")])
def test_a_table_with_another_separator_is_not_one_column(tmp_path: Path, mark: str, shown: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id{mark}text\n1{mark}great\n")
    with pytest.raises(ConfigError, match=f"seem to be separated by {shown}"):
        TextColumns.of(read_rows(path), None, None, None)
    assert TextColumns.of(read_rows(path), f"id{mark}text", None, None).text == f"id{mark}text"
    assert TextColumns.of(read_rows(path, header=False), None, None, None).text == "column_1"


def test_csv_as_many_spreadsheets_write_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id;text\n1;"great; really, great"\n2;bad\n')
    reader = read_rows(path, delimiter=";")
    assert reader.columns == ("id", "text")
    assert [row.values["text"] for row in reader] == ["great; really, great", "bad"]


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_a_delimiter_that_is_none(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;great\n")
    with pytest.raises(ConfigError, match="it must be one character"):
        read_rows(tmp_path / "a.csv", delimiter=delimiter)


def test_a_delimiter_is_for_csv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tgreat\n")
    with pytest.raises(ConfigError, match="that is for CSV; the input is tsv"):
        read_rows(tmp_path / "a.tsv", delimiter=";")


def test_no_column_of_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [1, 2], "label": [0, 1]})
    with pytest.raises(ConfigError, match=r"No column is left that holds texts; .* are: 'text', 'label'"):
        TextColumns.of(read_rows(path), None, None, None)


def test_only_columns_of_text_are_candidates(tmp_path: Path) -> None:
    columns = {"stars": [5, 4], "remarks": ["a", "b"], "when": [1.5, 2.5]}
    for name in ("a.parquet", "a.jsonl"):
        chosen = TextColumns.of(read_rows(write(tmp_path / name, columns)), None, None, None)
        assert (chosen.text, chosen.guessed) == ("remarks", True)
    with pytest.raises(ConfigError, match="Say which column"):
        TextColumns.of(read_rows(write(tmp_path / "a.csv", columns)), None, None, None)


def test_columns_of_a_pair(tmp_path: Path) -> None:
    reader = read_rows(write(tmp_path / "a.csv", {"key": [1], "q": ["a"], "answer": ["b"]}))
    chosen = TextColumns.of(reader, None, "answer", "key")
    assert (chosen.text, chosen.text_pair, chosen.row_id, chosen.guessed) == ("q", "answer", "key", True)
    with pytest.raises(ConfigError, match="Both texts of a pair are in 'q'"):
        TextColumns.of(reader, "q", "q", None)
    with pytest.raises(ConfigError, match="--id-column is 'x', and there is no such column"):
        TextColumns.of(reader, "q", None, "x")
