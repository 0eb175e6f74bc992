"""Files, in folders or stores → their states and documents."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import fs

from latent.config import Source
from latent.errors import FileUnreadable, SourceError, SourceUnreachable
from latent.schemas import owned
from latent.sources import Origin, Reader, list_files, locate, metadata_schema, reading_hash, scan_file
from latent.sources.documents import BATCH_CHARS, BATCH_DOCUMENTS, WORD_CHARS
from latent.sources.jsonl import _lines
from latent.sources.listing import LOCAL_TICK_NS
from latent.types import FileSlice, FileState

ROWS = [
    {"id": "a", "text": "first", "n": 1, "score": 0.5, "tag": "x"},
    {"id": "b", "text": "ünïcode 漢字 🙂", "n": 2, "score": -1.25, "tag": None},
    {"id": "c", "text": 'with "quotes", commas,\nand two lines', "n": None, "score": 3e9, "tag": "z"},
]
TABULAR = ["x.parquet", "x.pq", "x.jsonl", "x.ndjson", "x.jsonl.gz", "x.jsonl.zst", "x.csv", "x.csv.gz", "x.csv.zst"]
LAW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(path: Path, data: bytes) -> Path:
    """The file, stamped long ago, so that a listing does not wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    return path


def encoded(name: str, rows: list[dict[str, object]]) -> bytes:
    """The rows as the file's name tells."""
    if name.endswith((".parquet", ".pq")):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=100)
        return sink.getvalue()
    if ".csv" in name:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    else:
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    return {".gz": gzip.compress, ".zst": lambda d: pa.compress(d, "zstd", asbytes=True)}.get(Path(name).suffix, bytes)(data)


def read(uri: Path | str, fields: pa.Schema | None = None, **source: object) -> pa.Table:
    """All documents at a URI; metadata of the types given, else of the types found."""
    columns = Source(uri=str(uri), **source)
    origin = locate(columns.uri)
    files = list_files(origin, columns.format).files
    fields = metadata_schema(origin, columns.format, columns, files) if fields is None else fields
    reader = Reader(origin, columns.format, columns, fields)
    return pa.Table.from_batches([batch for file in files for batch in reader.batches(file)], schema=reader.schema)


def outcomes(table: pa.Table) -> list[tuple[str | None, str | None]]:
    return list(zip(table["doc_id"].to_pylist(), table["problem"].to_pylist(), strict=True))


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABULAR)
def test_every_format_gives_the_same_documents_for_the_same_content(tmp_path, name):
    metadata = ["n", "score", "tag"]
    got = read(put(tmp_path / name, encoded(name, ROWS)), metadata=metadata)
    assert got.select(["doc_id", "text", *metadata]).to_pylist() == [
        {"doc_id" if key == "id" else key: value for key, value in row.items()} for row in ROWS
    ]
    assert [got.schema.field(m).type for m in metadata] == [pa.int64(), pa.float64(), pa.string()]
    assert got["doc_hash"] == read(put(tmp_path / "same/x.jsonl", encoded("x.jsonl", ROWS)), metadata=metadata)["doc_hash"]
    assert got["problem"].null_count == got.num_rows


@pytest.mark.parametrize("name", ["b/x.txt", "b/x.text", "x.md", "b/c/x.markdown", "X.MD"])
def test_a_plain_file_is_one_document_named_by_its_path_below_the_root(tmp_path, name):
    put(tmp_path / "docs" / name, "ünïcode\n".encode())
    got = read(tmp_path / "docs")
    same = read(put(tmp_path / "x.jsonl", encoded("x.jsonl", [{"id": "1", "text": "ünïcode\n"}])))
    assert got.select(["row", "doc_id", "text"]).to_pylist() == [{"row": 0, "doc_id": name, "text": "ünïcode\n"}]
    assert got["doc_hash"] == same["doc_hash"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
def test_a_byte_order_mark_is_no_part_of_the_document(tmp_path, name):
    data = b"plain" if name == "x.txt" else encoded(name, [{"id": "1", "text": "plain"}])
    got = read(put(tmp_path / name, b"\xef\xbb\xbf" + data))
    assert (got["text"].to_pylist(), got["problem"].to_pylist()) == (["plain"], [None])


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv"])
def test_a_document_may_be_as_long_as_it_likes(tmp_path, name):
    text = "long " * 100_000
    assert read(put(tmp_path / name, encoded(name, [{"id": "1", "text": text}])))["text"].to_pylist() == [text]


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_whole_numbers_as_ids_become_strings(tmp_path, name):
    assert read(put(tmp_path / name, encoded(name, [{"id": 17, "text": "x"}])))["doc_id"].to_pylist() == ["17"]


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl", "x.csv"])
def test_several_text_columns_are_joined_by_a_blank_line_and_empty_ones_left_out(tmp_path, name):
    rows = [{"id": "1", "title": "T", "body": "B"}, {"id": "2", "title": None, "body": "B"}, {"id": "3", "title": "T", "body": ""}]
    assert read(put(tmp_path / name, encoded(name, rows)), text=["title", "body"])["text"].to_pylist() == ["T\n\nB", "B", "T"]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.binary(), pa.binary_view()]
)
def test_every_kind_of_text_that_parquet_knows_is_text(tmp_path, kind):
    table = pa.table({"id": pa.array(["1"], kind), "text": pa.array(["ü"], kind), "m": pa.array(["z"], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    got = read(tmp_path / "x.parquet", metadata=[] if "binary" in str(kind) else ["m"])
    assert got.drop_columns(["doc_hash", "problem", "row"]).to_pylist()[0].items() >= {"doc_id": "1", "text": "ü"}.items()


def test_times_to_the_nanosecond_are_stored_to_the_microsecond_and_finer_ones_are_misfits(tmp_path):
    times = pa.array([1_700_000_000_123_456_000, 1_700_000_000_123_456_789], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["x", "y"], "at": times}), tmp_path / "x.parquet")
    got = read(tmp_path / "x.parquet", metadata=["at"])
    assert (got["at"].type, got["at"][0].value) == (pa.timestamp("us", "UTC"), 1_700_000_000_123_456)
    assert got["problem"][0].as_py() is None
    assert "finer than a microsecond" in got["problem"][1].as_py()


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_blank_lines_are_no_documents(tmp_path, name):
    head, row = (b"id,text\n", b"1,x\n") if name == "x.csv" else (b"", b'{"id": "1", "text": "x"}\n')
    got = read(put(tmp_path / name, head + b"\n" + row + b"\n"))
    assert outcomes(got) == [("1", None)]


def test_white_space_behind_the_last_line_is_no_damage(tmp_path):
    assert outcomes(read(put(tmp_path / "x.jsonl", b'{"id": "1", "text": "x"}\n  \t'))) == [("1", None)]


@pytest.mark.parametrize("code", ["007", "0x1f", "12e3"])
def test_strings_of_json_stay_strings_whatever_they_look_like(tmp_path, code):
    rows = [{"id": "1", "text": "x", "code": code}]
    names = ["x.jsonl", "y.parquet"]
    tables = [read(put(tmp_path / name, encoded(name, rows)), metadata=["code"]) for name in names]
    assert [t["code"].to_pylist() for t in tables] == [[code], [code]]
    assert tables[0]["doc_hash"] == tables[1]["doc_hash"]


@pytest.mark.parametrize("code", ["007", "0x1f"])
def test_a_cell_of_csv_is_a_number_only_where_nothing_of_it_is_lost(tmp_path, code):
    got = read(put(tmp_path / "x.csv", f"id,text,code\n1,x,{code}\n2,y,12\n".encode()), metadata=["code"])
    assert got["code"].to_pylist() == [code, "12"]


# --- types of metadata ----------------------------------------------------------------------------------------------


def types(folder: Path, **source: object) -> dict[str, pa.DataType]:
    columns = Source(uri=str(folder), **source)
    origin = locate(columns.uri)
    schema = metadata_schema(origin, columns.format, columns, list_files(origin, columns.format).files)
    return {field.name: field.type for field in schema}


@pytest.mark.parametrize(
    "cell",
    [
        "+49123",
        "1" * 23,
        "3.10",
        "1e5",
        "007",
        "-0",
        "1_000",
        "NaN",
        "nan",
        "inf",
        " 5 ",
        "True",
        "٣",
        "5.",
        ".5",
        "0x1f",
        "1,5",
        "2024-01-01",
    ],
)
def test_a_cell_of_csv_that_a_number_would_not_write_again_makes_its_column_one_of_strings(tmp_path, cell):
    put(tmp_path / "x.csv", f'id,text,m\n1,x,"{cell}"\n2,y,7\n'.encode())
    got = read(tmp_path, metadata=["m"])
    assert (got["m"].to_pylist(), got["problem"].null_count) == ([cell, "7"], 2)


@pytest.mark.parametrize(
    ("cells", "stored"),
    [
        (["1", "-5"], [1, -5]),
        (["3", "3.5"], [3.0, 3.5]),
        (["3.0", "0.5"], [3.0, 0.5]),
        (["3", "3.0"], ["3", "3.0"]),
        (["1e+16"], [1e16]),
    ],
)
def test_numbers_of_csv_are_numbers_where_one_program_wrote_them_all(tmp_path, cells, stored):
    put(tmp_path / "x.csv", "\n".join(["id,text,m", *(f"{i},x,{cell}" for i, cell in enumerate(cells))]).encode())
    got = read(tmp_path, metadata=["m"])["m"].to_pylist()
    assert (got, list(map(type, got))) == (stored, list(map(type, stored)))


def test_a_number_of_json_beyond_64_bits_keeps_its_digits(tmp_path):
    put(tmp_path / "x.jsonl", b'{"id": 123456789012345678901234, "text": "x", "m": 123456789012345678901234}\n')
    got = read(tmp_path, metadata=["m"])
    assert got.select(["doc_id", "m"]).to_pylist() == [{"doc_id": "123456789012345678901234", "m": "123456789012345678901234"}]


NOTHING, LATE = {"id": "1", "text": "x", "m": None}, {"id": "2", "text": "y", "m": 2020}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("late", [1, 9, 150, 299])
def test_a_column_without_values_in_the_first_files_has_the_type_that_a_later_file_has(tmp_path, suffix, late):
    for i in range(300):
        put(tmp_path / f"{i:03}{suffix}", encoded(f"x{suffix}", [LATE if i >= late else NOTHING]))
    assert types(tmp_path, metadata=["m"]) == {"m": pa.int64()}


def test_a_column_whose_first_value_comes_after_thousands_of_rows_has_its_type(tmp_path):
    put(tmp_path / "x.jsonl", encoded("x.jsonl", [*[NOTHING] * 9_000, {"id": "3", "text": "z"}, LATE]))
    assert types(tmp_path, metadata=["m"]) == {"m": pa.int64()}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (1, 2.5, pa.float64()),
        (1, "x", pa.string()),
        (True, 1, pa.string()),
        ([1], [2.5], pa.list_(pa.float64())),
        ({"a": 1}, {"a": 2.5, "b": "x"}, pa.struct([("a", pa.float64()), ("b", pa.string())])),
    ],
    ids=["float", "string", "bool", "list", "struct"],
)
def test_files_that_disagree_have_the_type_that_holds_both(tmp_path, suffix, one, other, kind):
    for i, value in enumerate([one, other, one]):
        put(tmp_path / f"{i}{suffix}", encoded(f"x{suffix}", [{"id": str(i), "text": "x", "m": value}]))
    got = read(tmp_path, metadata=["m"])
    assert got.schema.field("m").type.equals(kind)
    assert got["problem"].null_count == 3


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.uint64(), pa.int64(), pa.string()),
        (pa.decimal128(10, 2), pa.decimal128(12, 4), pa.decimal128(12, 4)),
        (pa.decimal128(10, 2), pa.float64(), pa.string()),
        (pa.timestamp("s", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.string()),
        (pa.large_string(), pa.string(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.date32(), pa.timestamp("us"), pa.string()),
    ],
    ids=str,
)
def test_parquet_files_of_two_types_have_the_one_that_holds_both(tmp_path, one, other, kind):
    for name, column in (("a", one), ("b", other)):
        value = "x" if "string" in str(column) else Decimal(1) if "decimal" in str(column) else 1
        cells = pa.array([value], pa.string()).cast(column) if value == "x" else pa.array([value], column)
        pq.write_table(pa.table({"id": [name], "text": ["x"], "m": cells}), tmp_path / f"{name}.parquet")
    got = read(tmp_path, metadata=["m"])
    assert (got.schema.field("m").type, got["problem"].null_count) == (kind, 2)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([[1, None], [None], ["a"]], [["1", None], [None], ["a"]]),
        ([[1, "a"], ["b"]], [["1", "a"], ["b"]]),
        ([{"v": 1}, {"v": "x"}, {"v": 1.5}], [{"v": "1"}, {"v": "x"}, {"v": "1.5"}]),
        ([{"v": True}, {"v": 1}], [{"v": "true"}, {"v": "1"}]),
        ([[{"v": 1}], [{"v": "x", "u": 2}]], [[{"v": "1", "u": None}], [{"v": "x", "u": 2}]]),
        ([[1 << 64], [1]], [["18446744073709551616"], ["1"]]),
    ],
)
def test_lists_and_objects_of_several_kinds_of_values_hold_strings(tmp_path, values, stored):
    rows = [{"id": str(i), "text": "x", "m": value} for i, value in enumerate(values)]
    got = read(put(tmp_path / "x.jsonl", encoded("x.jsonl", rows)), metadata=["m"])
    assert (got["m"].to_pylist(), got["problem"].null_count) == (stored, len(rows))


@pytest.mark.parametrize(
    ("usual", "odd", "kind"),
    [
        ({"a": 1}, "n/a", pa.struct([("a", pa.int64())])),
        ({"a": 1}, [1], pa.struct([("a", pa.int64())])),
        ({"a": 1}, {"a": [1]}, pa.struct([("a", pa.int64())])),
        (["x"], {"a": 1}, pa.list_(pa.string())),
        (["x"], "x", pa.list_(pa.string())),
        (["x"], json.loads("[" * 900 + '1, "a"' + "]" * 900), pa.list_(pa.string())),
        ("x", ["x"], pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [0, 2])
def test_one_odd_value_does_not_keep_the_others_out_of_their_column(tmp_path, usual, odd, kind, at):
    values = [usual] * 3
    values.insert(at, odd)
    rows = [{"id": str(i), "text": "x", "m": value} for i, value in enumerate(values)]
    got = read(put(tmp_path / "x.jsonl", encoded("x.jsonl", rows)), metadata=["m"])
    assert got.schema.field("m").type == kind
    assert [i for i, problem in enumerate(got["problem"].to_pylist()) if problem] == [at]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
@pytest.mark.parametrize("source", [{"metadata": ["yaer"]}, {"text": ["yaer", "text"]}, {"id": "yaer"}, {"text": "yaer"}])
def test_a_key_that_no_file_has_is_one_line_that_names_the_near_one(tmp_path, name, source):
    for i in range(3):
        put(tmp_path / f"{i}{name}", encoded(name, [{"id": str(i), "text": "x", "year": 2020}]))
    with pytest.raises(
        SourceError, match=r"no column 'yaer'; it has id, text, year.*did you mean 'year'.*set \[source\]"
    ) as caught:
        types(tmp_path, **source)
    assert not isinstance(caught.value, FileUnreadable)


# --- one odd file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_column_that_a_whole_file_lacks_is_null_in_it(tmp_path, suffix):
    put(tmp_path / f"a{suffix}", encoded(f"x{suffix}", [{"id": "1", "title": "T", "text": "x", "m": 1}]))
    put(tmp_path / f"b{suffix}", encoded(f"x{suffix}", [{"id": "2", "text": "y"}]))
    got = read(tmp_path, text=["title", "text"], metadata=["m"])
    assert got.select(["doc_id", "text", "m", "problem"]).to_pylist() == [
        {"doc_id": "1", "text": "T\n\nx", "m": 1, "problem": None},
        {"doc_id": "2", "text": "y", "m": None, "problem": None},
    ]


def test_plain_files_beside_tables_have_null_metadata(tmp_path):
    put(tmp_path / "a.md", b"plain")
    put(tmp_path / "b.jsonl", encoded("b.jsonl", [{"id": "1", "text": "x", "m": 1}]))
    assert read(tmp_path, metadata=["m"]).select(["doc_id", "m"]).to_pylist() == [
        {"doc_id": "a.md", "m": None},
        {"doc_id": "1", "m": 1},
    ]


OTHER = [{"key": "1", "body": "x"}]


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.parquet"])
@pytest.mark.parametrize("rows", [OTHER, [{"id": "1", "body": "x"}], [{"key": "1", "text": "x"}]], ids=["both", "text", "id"])
def test_a_file_of_other_columns_is_refused_alone(tmp_path, name, rows):
    put(tmp_path / "a.jsonl", encoded("a.jsonl", ROWS))
    path = put(tmp_path / name, encoded(name, rows))
    types(tmp_path)
    origin = locate(str(tmp_path))
    file = next(f for f in list_files(origin, "auto").files if f.path == path.name)
    with pytest.raises(FileUnreadable, match="no column"):
        list(Reader(origin, "auto", Source(), pa.schema([])).batches(file))


def test_a_parquet_column_of_another_type_refuses_its_file_alone(tmp_path):
    put(tmp_path / "a.parquet", encoded("a.parquet", ROWS))
    put(tmp_path / "b.parquet", encoded("b.parquet", [{"id": "1", "text": 5}]))
    assert types(tmp_path, metadata=["n"]) == {"n": pa.int64()}
    with pytest.raises(FileUnreadable, match="column 'text' holds int64, expected text"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_a_column_that_stands_twice_is_one_line_and_no_choice(tmp_path, name):
    table = pa.Table.from_arrays([pa.array(["1"])] * 3, ["id", "text", "text"])
    if name == "x.csv":
        put(tmp_path / name, b"id,text,text\n1,x,y\n")
    else:
        pq.write_table(table, tmp_path / name)
    with pytest.raises(SourceError, match=f"^{name}: column 'text' stands twice"):
        types(tmp_path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("id,text,text", "column 'text' stands twice: keep one of them"),
        ("ID,Text", "(did you mean 'ID' and 'Text'?): set [source] id, text and metadata to columns it has"),
        ("id:text", "to columns it has, or [source] delimiter to what stands between cells, here ','"),
    ],
)
def test_advice_to_set_the_delimiter_is_given_only_where_cells_may_be_cut_wrongly(tmp_path, header, said):
    with pytest.raises(SourceError) as caught:
        types(put(tmp_path / "x.csv", f"{header}\n".encode() + header.encode()))
    assert str(caught.value).endswith(said)


@pytest.mark.parametrize("head", [b"\n\n", b"\r\n", b"\xef\xbb\xbf\n"])
def test_blank_lines_before_the_header_of_a_csv_are_passed_over(tmp_path, head):
    got = read(put(tmp_path / "x.csv", head + b"id;text\n1;x\n\n2;y\n"))
    assert outcomes(got) == [("1", None), ("2", None)]


def test_a_key_that_stands_twice_in_a_line_of_json_is_the_documents_problem(tmp_path):
    lines = [
        b'{"id": "a", "text": "x", "text": "y"}',
        b'{"id": "b", "text": "z", "m": {"text": 1}}',
        b'{"id": "c", "text": "z", "m": 1, "m": 2}',
    ]
    got = read(put(tmp_path / "x.jsonl", b"\n".join(lines)), pa.schema([("m", pa.string())]), metadata=["m"])
    problems = [problem or "" for _, problem in outcomes(got)]
    assert problems[0] == "key 'text' stands twice"
    assert "key 'm' stands twice" in problems[2]


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (pa.array([b"\0" * 15 + b"\7"], pa.uuid()), ["00000000-0000-0000-0000-000000000007"]),
        (pa.array([5], pa.decimal128(38, 0)), ["5"]),
        (pa.array([5], pa.uint64()), ["5"]),
    ],
    ids=["uuid", "decimal", "uint64"],
)
def test_ids_of_parquet_are_written_as_their_type_writes_them(tmp_path, ids, names):
    listed = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), ids)
    pq.write_table(pa.table({"id": ids, "text": ["x"], "m": ids, "l": listed}), tmp_path / "x.parquet")
    got = read(tmp_path, metadata=["m", "l"])
    assert (got["doc_id"].to_pylist(), outcomes(got)[0][1]) == (names, None)
    assert str(got["m"][0].as_py()) == str(got["l"][0].as_py()[0]) == names[0]


@pytest.mark.parametrize(("kind", "cell", "stored"), [(pa.int64(), "5", 5), (pa.float64(), "0.5", 0.5), (pa.bool_(), "true", True)])
def test_strings_of_parquet_that_spell_a_value_stand_in_a_typed_column(tmp_path, kind, cell, stored):
    pq.write_table(pa.table({"id": ["1", "2"], "text": ["x", "y"], "m": [cell, "many"]}), tmp_path / "x.parquet")
    got = read(tmp_path, pa.schema([("m", kind)]), metadata=["m"])
    assert got["m"].to_pylist() == [stored, None]
    assert got["problem"][1].as_py() == f"metadata column 'm': expected {kind}, got 'many'"


# --- cells ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", list(",;\t|"))
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz"])
def test_what_stands_between_cells_is_seen_in_the_header(tmp_path, delimiter, name):
    data = f'id{delimiter}"text"{delimiter}m\n1{delimiter}"a{delimiter}b"{delimiter}7\n'.encode()
    got = read(put(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data), metadata=["m"])
    assert got.select(["doc_id", "text", "m"]).to_pylist() == [{"doc_id": "1", "text": f"a{delimiter}b", "m": 7}]


def test_a_set_delimiter_is_used_and_a_wrong_one_is_named(tmp_path):
    put(tmp_path / "x.csv", b"id#text\n1#x\n")
    assert read(tmp_path, delimiter="#")["text"].to_pylist() == ["x"]
    with pytest.raises(SourceError, match=r"no column 'id'.*\[source\] delimiter"):
        read(tmp_path)


def test_the_line_that_excel_puts_before_the_header_tells_the_delimiter(tmp_path):
    assert read(put(tmp_path / "x.csv", b"sep=;\r\nid;text\r\n1;a,b\r\n"))["text"].to_pylist() == ["a,b"]


# --- encodings ------------------------------------------------------------------------------------------------------

WIDE = [f"{name}{end}" for name in ("utf-16", "utf-32") for end in ("-le", "-be")]


def marked(text: str, encoding: str) -> bytes:
    return ("\ufeff" + text).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", *WIDE])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv"])
def test_a_text_with_a_mark_is_read_in_the_encoding_that_the_mark_tells(tmp_path, encoding, name):
    text = "ünïcode 漢字 🙂 " * 50_000
    data = text if name == "x.txt" else encoded(name, [{"id": "1", "text": text}]).decode()
    got = read(put(tmp_path / name, marked(data, encoding)))
    assert (got["text"].to_pylist(), got["problem"].null_count) == ([text], 1)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_marked_file_that_ends_within_a_character_is_damaged(tmp_path, name):
    data = encoded(name, [{"id": "1", "text": "x"}]).decode()
    refusal(put(tmp_path / name, marked(data, "utf-16-le")[:-1]))


GERMAN = "Die Straße führt über den Fluß. Größe, Maß und schöne Gärten im Frühling; müde Bären schlafen länger. "
RUSSIAN = "Вчера мы ходили в горы, где светило солнце и пели птицы, а потом пошли домой. Это был хороший день. "


@pytest.mark.parametrize(
    ("text", "encoding"), [(GERMAN, "cp1252"), (RUSSIAN, "iso8859-5"), ("昨日、山に行きました。", "iso2022_jp")]
)
def test_a_text_that_only_one_encoding_makes_sense_of_is_read_in_it(tmp_path, text, encoding):
    assert read(put(tmp_path / "x.txt", (text * 5).encode(encoding)))["text"].to_pylist() == [text * 5]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("hello".encode("utf-16-le"), "not text: it holds NUL"),
        ("hello".encode("utf-32-be"), "not text: it holds NUL"),
        (b"text and\0 more", "not text: it holds NUL"),
        (b"PK\3\4\x14\0zip", "not text: it is a ZIP"),
        (b"%PDF-1.7\nall in ASCII", "not text: it is a PDF"),
        (b"\x89PNG\r\n\x1a\n", "not text: it is a PNG"),
        (gzip.compress(b"x"), "not text: it is gzip"),
        (marked("x", "utf-16-le")[:-1], "text is not UTF-16-LE"),
        ("昨日、私たちは山に行きました。".encode("shift_jis"), "text is not UTF-8"),
        (b"caf\xe9", "text is not UTF-8"),
    ],
    ids=["utf-16", "utf-32", "nul", "zip", "pdf", "png", "gzip", "cut-off", "shift-jis", "short"],
)
def test_a_plain_file_that_is_no_text_is_named_with_what_it_is(tmp_path, data, reason):
    ((name, problem),) = outcomes(read(put(tmp_path / "x.txt", data)))
    assert (name, problem[: len(reason)]) == ("x.txt", reason)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
@pytest.mark.parametrize(
    "data", [b"PK\3\4\x14\0zip", gzip.compress(b"x"), "id,text\n1,x\n".encode("utf-16-le")], ids=["zip", "gzip", "wide"]
)
def test_a_table_of_rows_that_is_no_text_is_refused_whole(tmp_path, name, data):
    assert refusal(put(tmp_path / name, data)).startswith("not text: it")


# --- listing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("", ["a.md", "s/b.md", "s/t/c.md", "z.txt"]),
        ("/", ["a.md", "s/b.md", "s/t/c.md", "z.txt"]),
        ("/**", ["a.md", "s/b.md", "s/t/c.md", "z.txt"]),
        ("/**/*.md", ["a.md", "s/b.md", "s/t/c.md"]),
        ("/*.md", ["a.md"]),
        ("/s/**/*.md", ["b.md", "t/c.md"]),
        ("/*/*.md", ["s/b.md"]),
        ("/[az].*", ["a.md", "z.txt"]),
        ("/a.md", ["a.md"]),
        ("/s/../s", ["b.md", "t/c.md"]),
        ("/none*", []),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_folders_and_globs_name_files_below_their_fixed_part_sorted(tmp_path, scheme, uri, found):
    for name in ("z.txt", "s/t/c.md", "a.md", "s/b.md", ".hidden.md", ".git/d.md", "s/.cache/e.md"):
        put(tmp_path / "docs" / name, b"x")
    assert [f.path for f in list_files(locate(f"{scheme}{tmp_path}/docs{uri}"), "auto").files] == found


def test_a_question_mark_in_a_path_stands_for_one_character(tmp_path):
    for name in ("a.md", "ab.md"):
        put(tmp_path / name, b"x")
    assert [f.path for f in list_files(locate(f"{tmp_path}/?.md"), "auto").files] == ["a.md"]


def test_files_of_unknown_kind_are_told_and_left_out_unless_a_format_is_set(tmp_path):
    for name in ("a.md", "b.pdf", "c.tar.gz", "d", "e.md.gz"):
        put(tmp_path / name, b"x")
    origin = locate(str(tmp_path))
    auto, as_text = list_files(origin, "auto"), list_files(origin, "text")
    assert ([f.path for f in auto.files], auto.ignored) == (["a.md"], ("b.pdf", "c.tar.gz", "d", "e.md.gz"))
    assert ([f.path for f in as_text.files], as_text.ignored) == (["a.md", "b.pdf", "c.tar.gz", "d", "e.md.gz"], ())


@pytest.mark.parametrize("uri", ["{}/none", "{}/none/*.md", "nonsense://bucket/x"])
def test_a_source_that_is_not_there_is_one_line_that_names_it(tmp_path, uri):
    with pytest.raises(SourceError, match=r"^source .*check \[source\] uri") as caught:
        locate(uri.format(tmp_path))
    assert uri.format(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_rewritten_after_its_listing_has_another_state_even_with_as_many_bytes(tmp_path):
    origin = locate(str(tmp_path))
    states = []
    for text in ("one", "two"):
        (tmp_path / "a.md").write_text(text)
        states.append(list_files(origin, "auto").files[0])
        assert time.time_ns() - states[-1].modified >= LOCAL_TICK_NS  # the clock that stamps files has moved on
    assert states[0].size == states[1].size
    assert states[0] != states[1]


def test_a_folder_with_brackets_in_its_name_is_found_by_its_name(tmp_path):
    folder = "notes [old]"
    put(tmp_path / folder / "a.md", b"x")
    assert [f.path for f in list_files(locate(f"{tmp_path}/{folder}"), "auto").files] == ["a.md"]
    assert [f.path for f in list_files(locate(f"{tmp_path}/{folder}/*.md"), "auto").files] == ["a.md"]


def test_a_link_back_to_its_own_folder_doubles_no_document(tmp_path):
    put(tmp_path / "docs/a.md", b"x")
    (tmp_path / "docs/latest").symlink_to(tmp_path / "docs")
    assert [f.path for f in list_files(locate(f"{tmp_path}/docs"), "auto").files] == ["a.md"]


@pytest.mark.parametrize(
    "links",
    [
        {"latest": ".", "stable": "."},
        {"a/b": "../b", "b/a": "../a"},
        {"a/up": "..", "b/up": "..", "c": "a"},
        {"self": "self", "x": "y", "y": "x"},
    ],
)
def test_links_that_lead_back_end_and_name_each_file_by_its_own_path(tmp_path, links):
    for name in ("a/x.md", "b/y.md"):
        put(tmp_path / name, b"x")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    paths = [f.path for f in list_files(locate(str(tmp_path)), "auto").files]
    assert {"a/x.md", "b/y.md"} <= set(paths)
    assert len(paths) <= 4


def test_many_links_to_one_folder_name_its_files_once_more_and_not_once_a_link(tmp_path):
    put(tmp_path / "real/a.md", b"x")
    for i in range(30):
        (tmp_path / f"link{i}").symlink_to("real")
    assert [f.path for f in list_files(locate(str(tmp_path)), "auto").files] == ["link0/a.md", "real/a.md"]


def test_a_link_to_a_folder_that_begins_with_a_dot_is_the_only_way_to_its_files(tmp_path):
    put(tmp_path / "..2026/a.md", b"x")  # as Kubernetes mounts a ConfigMap
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.md").symlink_to("..data/a.md")
    (tmp_path / "now").symlink_to("..2026")
    assert [f.path for f in list_files(locate(str(tmp_path)), "auto").files] == ["a.md", "now/a.md"]


def test_a_file_whose_name_is_not_utf8_is_named_escaped_and_its_neighbours_are_listed(tmp_path):
    put(tmp_path / "a.md", b"x")
    for name in (b"caf\xe9.md", b"b\xff/b.md", b"caf\xe9.pdf"):
        put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), b"x")
    listing = list_files(locate(str(tmp_path)), "auto")
    assert [f.path for f in listing.files] == ["a.md"]
    assert set(listing.unreadable) == {"b\\xff/b.md", "caf\\xe9.md"}
    assert listing.ignored == ("caf\\xe9.pdf",)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("/**/*.{md,txt}", ["a.md", "s/b.md", "s/t/c.md", "z.txt"]),
        ("/{a,z}.*", ["a.md", "z.txt"]),
        ("/s/{b.md,t/*.{md,txt}}", ["b.md", "t/c.md"]),
        ("/{s/t,s}/*.md", ["s/b.md", "s/t/c.md"]),
        ("/{a}.md", []),
    ],
)
def test_braces_stand_for_any_of_what_they_hold(tmp_path, scheme, uri, found):
    for name in ("z.txt", "s/t/c.md", "a.md", "s/b.md", "y.pdf"):
        put(tmp_path / "docs" / name, b"x")
    assert [f.path for f in list_files(locate(f"{scheme}{tmp_path}/docs{uri}"), "auto").files] == found


@pytest.mark.parametrize("name", ["a {draft}.md", "a [1].md", "{a,b}.md"])
def test_a_file_with_brackets_or_braces_in_its_name_is_found_by_its_name(tmp_path, name):
    put(tmp_path / name, b"x")
    assert [f.path for f in list_files(locate(f"{tmp_path}/{name}"), "auto").files] == [name]


def test_a_folder_that_may_not_be_read_stops_the_listing_and_loses_no_file(tmp_path):
    put(tmp_path / "a.md", b"x")
    put(tmp_path / "s/b.md", b"x")
    (tmp_path / "s").chmod(0)
    try:
        if os.access(tmp_path / "s", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(SourceError, match="cannot be listed"):
            list_files(locate(str(tmp_path)), "auto")
    finally:
        (tmp_path / "s").chmod(0o700)


# --- what is wrong with a row ---------------------------------------------------------------------------------------


def jsonl(line: bytes) -> bytes:
    return b'{"id": "a", "text": "x"}\n' + line + b'\n{"id": "c", "text": "z"}\n'


def cells(line: bytes) -> bytes:
    return b"id,text\na,x\n" + line + b"\nc,z\n"


def columns(id: object, text: object, kinds: tuple[pa.DataType, pa.DataType] = (pa.string(), pa.string())) -> bytes:
    sink = io.BytesIO()
    id_kind, text_kind = kinds
    pq.write_table(pa.table({"id": pa.array(["a", id, "c"], id_kind), "text": pa.array(["x", text, "z"], text_kind)}), sink)
    return sink.getvalue()


def mislabelled() -> bytes:
    """A parquet column that claims to be UTF-8 and is not."""
    text = pa.array([b"x", b"\xff", b"z"], pa.binary())
    sink = io.BytesIO()
    claimed = pa.StringArray.from_buffers(3, text.buffers()[1], text.buffers()[2])
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": claimed}), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "doc_id", "problem"),
    [
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": null}'), "b", "text is null", id="jsonl-null"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b"}'), "b", "text is null", id="jsonl-no-text"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": ""}'), "b", "text is empty", id="jsonl-empty"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": " \\n\\u00a0"}'), "b", "text is empty", id="jsonl-white"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": 3}'), "b", "text is of type int", id="jsonl-number"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": "\\ud800"}'), "b", "text is not UTF-8", id="jsonl-surrogate"),
        pytest.param("x.jsonl", jsonl(b'{"id": "\\ud800", "text": "y"}'), None, "id is not UTF-8", id="jsonl-id-surrogate"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": "\xff"}'), None, "not JSON", id="jsonl-bytes"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": '), None, "not JSON", id="jsonl-malformed"),
        pytest.param("x.jsonl", jsonl(b'{"id": "b", "text": ' + b"[" * 99_999), None, "not JSON", id="jsonl-deep"),
        pytest.param("x.jsonl", jsonl(b'["b", "y"]'), None, "not a JSON object but list", id="jsonl-list"),
        pytest.param("x.jsonl", jsonl(b'{"id": null, "text": "y"}'), None, "id is null", id="jsonl-id-null"),
        pytest.param("x.jsonl", jsonl(b'{"text": "y"}'), None, "id is null", id="jsonl-id-missing"),
        pytest.param("x.jsonl", jsonl(b'{"id": ["b"], "text": "y"}'), None, "id is of type list", id="jsonl-id-list"),
        pytest.param("x.jsonl", jsonl(b'{"id": 1.5, "text": "y"}'), None, "id is of type float", id="jsonl-id-fraction"),
        pytest.param("x.jsonl", jsonl(b'{"id": true, "text": "y"}'), None, "id is of type bool", id="jsonl-id-truth"),
        pytest.param("x.jsonl", jsonl(b'{"id": "", "text": "y"}'), None, "id is empty", id="jsonl-id-empty"),
        pytest.param("x.csv", cells(b"b,"), "b", "text is empty", id="csv-empty"),
        pytest.param("x.csv", cells(b'b," \t"'), "b", "text is empty", id="csv-white"),
        pytest.param("x.csv", cells(b"b,\xff"), "b", "text is not UTF-8", id="csv-bytes"),
        pytest.param("x.csv", cells(b"\xff,y"), None, "id is not UTF-8", id="csv-id-bytes"),
        pytest.param("x.csv", cells(b",y"), None, "id is empty", id="csv-id-empty"),
        pytest.param("x.csv", cells(b"b"), None, "1 cells in a row, 2 in the header", id="csv-too-few"),
        pytest.param("x.csv", cells(b"b,y,y"), None, "3 cells in a row, 2 in the header", id="csv-too-many"),
        pytest.param("x.parquet", columns("b", None), "b", "text is null", id="parquet-null"),
        pytest.param("x.parquet", columns("b", " \n"), "b", "text is empty", id="parquet-white"),
        pytest.param("x.parquet", columns("b", b"\xff", (pa.string(), pa.binary())), "b", "text is not UTF-8", id="parquet-bytes"),
        pytest.param("x.parquet", mislabelled(), "b", "text is not UTF-8", id="parquet-mislabelled"),
        pytest.param("x.parquet", columns(None, "y"), None, "id is null", id="parquet-id-null"),
        pytest.param("x.parquet", columns(b"\xff", "y", (pa.binary(), pa.string())), None, "id is not UTF-8", id="parquet-id"),
    ],
)
def test_a_bad_row_is_named_with_its_reason_and_its_neighbours_stay(tmp_path, name, data, doc_id, problem):
    got = read(put(tmp_path / name, data))
    (first, bad, last) = outcomes(got)
    assert (first, last) == (("a", None), ("c", None))
    assert bad[0] == doc_id
    assert bad[1].startswith(problem)
    assert got["text"].to_pylist() == ["x", None, "z"]
    assert [h is None for h in got["doc_hash"].to_pylist()] == [False, doc_id is None, False]


@pytest.mark.parametrize("before", [0, 1, WORD_CHARS // 2 - 1, WORD_CHARS // 2, WORD_CHARS // 2 + 1, WORD_CHARS])
@pytest.mark.parametrize(("length", "problem"), [(WORD_CHARS, None), (WORD_CHARS + 1, f"text holds a word of {WORD_CHARS + 1}")])
def test_a_word_is_data_from_one_length_on_wherever_it_stands(tmp_path, before, length, problem):
    ((_, got),) = outcomes(read(put(tmp_path / "x.txt", b" " * before + b"x" * length + b" end")))
    assert (got and got.partition(" characters")[0]) == problem


@pytest.mark.parametrize(("data", "problem"), [(b"", "text is empty"), (b" \n", "text is empty"), (b"\xff", "text is not UTF-8")])
def test_a_plain_file_without_readable_text_is_named_with_its_reason(tmp_path, data, problem):
    ((name, reason),) = outcomes(read(put(tmp_path / "x.txt", data)))
    assert (name, reason.partition(":")[0]) == ("x.txt", problem)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_metadata_value_that_does_not_fit_its_column_is_the_documents_problem(tmp_path, name):
    rows = [{"id": i, "text": "x", "n": n} for i, n in (("a", "1"), ("b", "many"), ("c", None))]
    got = read(put(tmp_path / name, encoded(name, rows)), pa.schema([("n", pa.int64())]), metadata=["n"])
    assert got["n"].to_pylist() == [1, None, None]
    assert got["problem"].to_pylist()[::2] == [None, None]
    assert got["problem"][1].as_py() == "metadata column 'n': expected int64, got 'many'"
    assert got["text"].to_pylist() == ["x", None, "x"]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ms", "UTC"), pa.date32()])
def test_a_time_beyond_the_year_9999_takes_no_other_document_with_it(tmp_path, kind):
    far = pa.array([1, 2_000_000_000 if kind == pa.date32() else 2**60, 3], pa.int32() if kind == pa.date32() else pa.int64())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "at": far.view(kind)}), tmp_path / "x.parquet")
    got = outcomes(read(tmp_path / "x.parquet", metadata=["at"]))
    assert [name for name, problem in got if problem is None or name == "b"] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["row", "problem"])
def test_a_metadata_column_may_be_called_like_a_column_that_only_readers_know(tmp_path, name):
    path = put(tmp_path / "x.jsonl", encoded("x.jsonl", [{"id": "1", "text": "x", name: "mine"}]))
    source, origin = Source(metadata=[name]), locate(str(path))
    (file,) = list_files(origin, "auto").files
    with contextlib.suppress(SourceError):  # to refuse the name is an answer too
        fields = metadata_schema(origin, "auto", source, [file])
        assert scan_file(Reader(origin, "auto", source, fields), origin, file, 0)["problem"].to_pylist() == [None]


# --- what is wrong with a file --------------------------------------------------------------------------------------


def refusal(path: Path, **source: object) -> str:
    with pytest.raises(FileUnreadable) as caught:
        read(path, **source)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_gzip_is_refused_whole_with_a_reason(tmp_path):
    data = encoded("x.jsonl.gz", ROWS)
    assert "Truncated" in refusal(put(tmp_path / "x.jsonl.gz", data[:-9]))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_file_cut_off_anywhere_is_refused_and_never_read_in_part(tmp_path, name):
    data = encoded(name, [{"id": str(i), "text": f"text {i}"} for i in range(30)])
    for end in range(1, len(data), 1 + len(data) // 150):
        refusal(put(tmp_path / name, data[:end]))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz", "x.jsonl.zst", "x.csv.zst", "x.parquet"])
def test_a_file_of_no_bytes_is_damage_where_the_format_has_a_header(tmp_path, name):
    refusal(put(tmp_path / name, b""))


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_file_of_no_bytes_holds_no_documents_where_the_format_has_no_header(tmp_path, name):
    assert read(put(tmp_path / name, b"")).num_rows == 0


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.jsonl", b'{"id": "a", "text": "x"}\n{"id": "b", "te', "cut off in line 2"),
        ("x.jsonl", b'{"id": "a", "text": "x"}\n{"id": "b", "text": ' + b"[" * 99_999, "cut off in line 2"),
        ("x.csv", b'id,text\na,x\nb,"never closed\n', "not CSV at line 3"),
        ("x.jsonl.gz", b'{"id": "a", "text": "x"}\n', "inflate"),
        ("x.jsonl.zst", b'{"id": "a", "text": "x"}\n', "decompress"),
        ("x.parquet", b"PAR1 is how it begins, and how it ends: PAR1", "Parquet"),
    ],
    ids=["jsonl", "jsonl-deep", "csv-quote", "gz", "zst", "parquet"],
)
def test_a_damaged_file_is_refused_whole_with_a_reason(tmp_path, name, data, reason):
    assert reason.lower() in refusal(put(tmp_path / name, data)).lower()


def test_a_whole_last_line_needs_no_line_feed(tmp_path):
    assert outcomes(read(put(tmp_path / "x.jsonl", encoded("x.jsonl", ROWS)[:-1])))[-1] == ("c", None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_damaged_file_does_not_keep_the_types_of_metadata_from_being_found(tmp_path, name):
    put(tmp_path / name, encoded(name, ROWS)[:-10])
    put(tmp_path / "b.jsonl", encoded("b.jsonl", ROWS))
    source, origin = Source(metadata=["n"]), locate(str(tmp_path))
    assert metadata_schema(origin, "auto", source, list_files(origin, "auto").files).field("n").type == pa.int64()


class Disturbed(Reader):
    """A reader during whose work somebody writes to the file."""

    path: Path
    write: Callable[[Path], object]

    def batches(self, file: FileState) -> Iterator[pa.RecordBatch]:
        yield from super().batches(file)
        self.write(self.path)


@pytest.mark.parametrize(
    "write",
    [lambda p: p.write_bytes(p.read_bytes() + b"\n"), lambda p: os.utime(p, (2, 2)), lambda p: p.unlink()],
    ids=["grown", "touched", "gone"],
)
def test_a_file_that_changes_while_it_is_sighted_is_refused(tmp_path, write):
    path = put(tmp_path / "x.jsonl", encoded("x.jsonl", ROWS))
    origin = locate(str(path))
    (file,) = list_files(origin, "auto").files
    reader = Disturbed(origin, "auto", Source(), pa.schema([]))
    reader.path, reader.write = path, write
    with pytest.raises(FileUnreadable, match="changed while it was read"):
        scan_file(reader, origin, file, 0)


def test_a_sighting_holds_id_hash_and_length_of_each_document_and_no_text(tmp_path):
    path = put(tmp_path / "x.jsonl", encoded("x.jsonl", [*ROWS, {"id": "d", "text": None}]))
    origin = locate(str(path))
    (file,) = list_files(origin, "auto").files
    reader = Reader(origin, "auto", Source(), pa.schema([]))
    seen = scan_file(reader, origin, file, 7)
    assert seen.drop_columns("doc_hash").to_pylist() == [
        {"file": 7, "row": i, "doc_id": row["id"], "chars": len(row["text"]), "problem": None} for i, row in enumerate(ROWS)
    ] + [{"file": 7, "row": 3, "doc_id": "d", "chars": 0, "problem": "text is null"}]
    assert seen["doc_hash"] == read(path)["doc_hash"]


# --- what is wrong with the settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "source", "said"),
    [
        ("x.parquet", ROWS, {"text": "body"}, ["'body'", "it has id, text, n, score, tag"]),
        ("x.jsonl", ROWS, {"text": "body"}, ["'body'", "it has id, text, n, score, tag"]),
        ("x.csv", ROWS, {"id": "key"}, ["'key'", "it has id, text, n, score, tag"]),
        ("x.csv", ROWS, {"metadata": ["year"]}, ["'year'", "it has id, text, n, score, tag"]),
        ("x.parquet", ROWS, {"metadata": ["year"]}, ["'year'", "it has id, text, n, score, tag"]),
        ("x.parquet", ROWS, {"text": "n"}, ["'n' holds int64", "expected text"]),
        ("x.jsonl", ROWS, {"metadata": ["vector"]}, ["vector", "the table's own column"]),
        ("x.jsonl", ROWS, {"metadata": ["_score"]}, ["_score", "the table's own column"]),
        ("x.md", ROWS, {"metadata": ["n"]}, ["['n']", "plain files have no columns"]),
    ],
)
def test_a_setting_that_does_not_fit_the_files_is_one_line_that_tells_what_they_have(tmp_path, name, rows, source, said):
    with pytest.raises(SourceError) as caught:
        read(put(tmp_path / name, encoded(name, rows)), **source)
    assert not isinstance(caught.value, FileUnreadable)
    assert all(words in str(caught.value) for words in said)
    assert "\n" not in str(caught.value)


def named(format: str, source: Source, version: int = 0) -> str:
    """The reading's hash, of a table with the source's metadata columns, added at a version."""
    return reading_hash(format, source, pa.schema([owned(pa.field(name, pa.string()), version) for name in source.metadata]))


def test_other_settings_of_reading_have_another_name():
    ways = [("auto", Source()), ("csv", Source()), ("auto", Source(id="key")), ("auto", Source(text=["id", "text"]))]
    ways += [("auto", Source(metadata=["n"])), ("auto", Source(text=["text", "id"]))]
    assert len({named(format, source) for format, source in ways}) == len(ways)
    assert named("auto", Source(uri="elsewhere")) == named("auto", Source())


def test_metadata_columns_in_another_order_are_read_alike():
    assert named("auto", Source(metadata=["a", "b"])) == named("auto", Source(metadata=["b", "a"]))


def test_a_metadata_column_that_was_dropped_and_added_again_is_another_reading():
    assert named("auto", Source(metadata=["a"])) != named("auto", Source(metadata=["a"]), version=7)


# --- what a document's hash sees ------------------------------------------------------------------------------------


def hashed(folder: Path, row: str, fields: pa.Schema) -> str:
    path = put(folder / "x.jsonl", f'{{"id": "1", {row}}}\n'.encode())
    return read(path, fields, metadata=["m"])["doc_hash"][0].as_py()


NUMBER, STRING = pa.schema([("m", pa.float64())]), pa.schema([("m", pa.string())])


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        ('"text": "x"', '"text": "x "', STRING),
        ('"text": "x", "m": "a"', '"text": "x", "m": "b"', STRING),
        ('"text": "x", "m": ""', '"text": "x", "m": null', STRING),
        ('"text": "x", "m": 0', '"text": "x", "m": null', NUMBER),
        ('"text": "x", "m": NaN', '"text": "x", "m": null', NUMBER),
        ('"text": "x", "m": Infinity', '"text": "x", "m": -Infinity', NUMBER),
        ('"text": "x"', '"text": null', STRING),
    ],
)
def test_a_change_of_text_or_of_a_metadata_value_changes_the_documents_hash(tmp_path, before, after, fields):
    assert hashed(tmp_path, before, fields) != hashed(tmp_path, after, fields)


def test_metadata_columns_in_another_order_leave_the_documents_hash(tmp_path):
    put(tmp_path / "x.jsonl", b'{"id": "1", "text": "x", "a": 1, "b": 2}\n{"id": "2", "text": "x", "a": 2, "b": 1}\n')
    hashes = read(tmp_path, metadata=["a", "b"])["doc_hash"].to_pylist()
    assert read(tmp_path, metadata=["b", "a"])["doc_hash"].to_pylist() == hashes
    assert len(set(hashes)) == 2


def test_a_change_of_another_column_does_not_change_the_documents_hash(tmp_path):
    assert hashed(tmp_path, '"text": "x", "m": "a", "other": 1', STRING) == hashed(tmp_path, '"m": "a", "text": "x"', STRING)


# --- reading a part -------------------------------------------------------------------------------------------------

MIXED = ["a", 1, 0.5, 123_456_789_012, True, None, "2", -0.0]  # what people put into one column
MANY = [{"id": f"d{i}", "text": f"text {i}", "m": MIXED[i % 8]} for i in range(1200)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 documents as two kinds of file; of the JSONL some lines are blank or bad."""
    folder = tmp_path_factory.mktemp("many")
    lines = [json.dumps(row).encode() for row in MANY]
    lines[7], lines[100], lines[1030] = b"", b'{"id": "bad"', b'{"id": "d1030", "text": null, "m": 3}'
    put(folder / "x.jsonl.gz", gzip.compress(b"\n".join(lines)))
    put(folder / "x.parquet", encoded("x.parquet", [row | {"m": i} for i, row in enumerate(MANY)]))
    return folder


def piece(file: FileState, rows: Iterable[int]) -> FileSlice:
    return FileSlice(file, pa.table({"row": pa.array(rows, pa.int64())}))


# Rows beside each other, over the edges of row groups and batches, and far apart.
rows = st.one_of(st.integers(0, 9), st.integers(96, 104), st.integers(1020, 1032), st.integers(0, 1198))


@LAW
@given(
    name=st.sampled_from(["x.jsonl.gz", "x.parquet"]),
    parts=st.lists(st.lists(rows, min_size=1, max_size=5, unique=True).map(sorted), min_size=1, max_size=6),
)
def test_any_rows_read_in_any_slices_are_those_of_the_whole_file(many, name, parts):
    source, origin = Source(metadata=["m"]), locate(str(many / name))
    (file,) = list_files(origin, "auto").files
    fields = pa.schema([("m", pa.string() if name == "x.jsonl.gz" else pa.int64())])
    whole = pa.Table.from_batches(Reader(origin, "auto", source, fields).batches(file))
    there = set(whole["row"].to_pylist())
    reader = Reader(origin, "auto", source, fields)
    for rows in [kept for part in parts if (kept := [row for row in part if row in there])]:
        wanted = whole.filter(pa.compute.is_in(whole["row"], value_set=pa.array(rows, pa.int64())))
        assert reader.read(piece(file, rows)).to_pylist() == wanted.to_pylist()


def test_a_reader_goes_from_file_to_file_and_back(tmp_path):
    for name in ("a.jsonl", "b.csv", "c.md"):
        put(tmp_path / name, b"plain" if name == "c.md" else encoded(name, ROWS))
    origin = locate(str(tmp_path))
    a, b, c = list_files(origin, "auto").files
    reader = Reader(origin, "auto", Source(), pa.schema([]))
    ids = [reader.read(piece(*way))["doc_id"].to_pylist() for way in ((a, [0]), (b, [2]), (a, [1, 2]), (c, [0]), (c, [0]))]
    assert ids == [["a"], ["c"], ["b", "c"], ["c.md"], ["c.md"]]


def test_rows_that_are_gone_since_are_left_out(tmp_path):
    path = put(tmp_path / "x.jsonl", encoded("x.jsonl", ROWS))
    origin = locate(str(path))
    (file,) = list_files(origin, "auto").files
    put(path, encoded("x.jsonl", ROWS[:2]))
    assert Reader(origin, "auto", Source(), pa.schema([])).read(piece(file, [1, 2]))["doc_id"].to_pylist() == ["b"]


# --- how much is read -----------------------------------------------------------------------------------------------


class Counted(io.FileIO):
    """A local file that counts the bytes asked for."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


class Metered(fs.FSSpecHandler):
    """Local files through fsspec, counted."""

    def open_input_stream(self, path: str) -> pa.PythonFile:
        self.file = Counted(path)
        return pa.PythonFile(self.file, mode="r")

    open_input_file = open_input_stream


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_the_first_batch_arrives_before_the_file_is_read(tmp_path, name):
    rows = [{"id": str(i), "text": os.urandom(1000).hex()} for i in range(8000)]
    size = put(tmp_path / name, encoded(name, rows)).stat().st_size
    meter = Metered(fsspec.filesystem("file"))
    origin = Origin(fs.PyFileSystem(meter), str(tmp_path), name)
    (file,) = list_files(origin, "auto").files
    batches = Reader(origin, "auto", Source(), pa.schema([])).batches(file)
    assert next(batches).num_rows == BATCH_DOCUMENTS
    assert 0 < meter.file.taken < size / 2
    assert sum(batch.num_rows for batch in batches) == 8000 - BATCH_DOCUMENTS


def test_long_documents_do_not_add_up_in_a_batch(tmp_path):
    rows = [{"id": str(i), "text": "x " * (BATCH_CHARS // 6)} for i in range(7)]
    path = put(tmp_path / "x.jsonl", encoded("x.jsonl", rows))
    origin = locate(str(path))
    (file,) = list_files(origin, "auto").files
    sizes = [batch.num_rows for batch in Reader(origin, "auto", Source(), pa.schema([])).batches(file)]
    assert max(sizes) <= 4
    assert sum(sizes) == 7


@pytest.mark.parametrize("held", ["text", "metadata"])
def test_long_cells_of_parquet_are_not_all_read_at_once(tmp_path, held):
    rows = [{"id": str(i), "text": "x", "m": "x"} | {"text" if held == "text" else "m": f"{i + 10} " * 700_000} for i in range(24)]
    put(tmp_path / "x.parquet", encoded("x.parquet", rows))
    origin = locate(str(tmp_path))
    (file,) = list_files(origin, "auto").files
    counted, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(counted)
    try:
        batches = Reader(origin, "auto", Source(metadata=["m"]), pa.schema([("m", pa.string())])).batches(file)
        assert sum(batch.num_rows for batch in batches) == 24
    finally:
        pa.set_memory_pool(usual)
    assert counted.max_memory() < 1.8 * 24 * 3 * 700_000  # the row group and a part of it, not the group twice


def test_of_a_line_without_end_only_a_part_is_held_and_the_next_line_is_whole():
    stream = io.BufferedReader(io.BytesIO(b"short\n" + b"x" * 100 + b"\nexact" + b"y" * 14 + b"\nlast"))
    assert list(_lines(stream, most=20)) == [b"short\n", b"x" * 20, b"exact" + b"y" * 14 + b"\n", b"last"]


# --- stores ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """An object store in memory."""
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/bucket", recursive=True)


def test_a_store_is_listed_and_read_as_a_folder_is(tmp_path, bucket):
    for name in ("a.jsonl.gz", "s/b.parquet", "s/c.csv", "s/d.md", "s/e.pdf", ".f.md"):
        data = b"plain" if name.endswith(("md", "pdf")) else encoded(name, ROWS)
        put(tmp_path / name, data)
        bucket.pipe(f"/bucket/{name}", data)
    places = [
        locate(str(tmp_path)),
        Origin(fs.SubTreeFileSystem(str(tmp_path.parent), fs.LocalFileSystem()), tmp_path.name, ""),
        Origin(fs.PyFileSystem(fs.FSSpecHandler(bucket)), "/bucket", ""),
    ]
    listings = [list_files(origin, "auto") for origin in places]
    tables = [
        [pa.Table.from_batches(Reader(origin, "auto", Source(), pa.schema([])).batches(file)) for file in listing.files]
        for origin, listing in zip(places, listings, strict=True)
    ]
    assert [f.path for f in listings[0].files] == ["a.jsonl.gz", "s/b.parquet", "s/c.csv", "s/d.md"]
    assert all([(f.path, f.size) for f in g.files] == [(f.path, f.size) for f in listings[0].files] for g in listings)
    assert all(listing.ignored == ("s/e.pdf",) for listing in listings)
    assert tables[0] == tables[1] == tables[2]


class Failing(fs.FSSpecHandler):
    """A store whose connection breaks in the middle of a file."""

    def open_input_stream(self, path: str) -> pa.PythonFile:
        start = io.BytesIO(self.fs.cat(path)[:30])

        class Breaking(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def read(self, size: int = -1) -> bytes:
                if data := start.read(size):
                    return data
                raise OSError("connection reset by peer")

        return pa.PythonFile(Breaking(), mode="r")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz"])
def test_a_broken_connection_is_the_stores_failure_and_no_damage_to_the_file(bucket, name):
    bucket.pipe(f"/bucket/{name}", encoded(name, ROWS))
    origin = Origin(fs.PyFileSystem(Failing(bucket)), "/bucket", name)
    (file,) = list_files(origin, "auto").files
    with pytest.raises(SourceUnreachable, match="connection reset by peer") as caught:
        list(itertools.chain(Reader(origin, "auto", Source(), pa.schema([])).batches(file)))
    assert caught.value.transient
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet"])
def test_a_file_cut_off_in_a_store_is_damage_and_no_failure_of_the_store(bucket, name):
    bucket.pipe(f"/bucket/{name}", encoded(name, ROWS)[:-9])
    origin = Origin(fs.PyFileSystem(fs.FSSpecHandler(bucket)), "/bucket", name)
    (file,) = list_files(origin, "auto").files
    with pytest.raises(FileUnreadable):
        list(Reader(origin, "auto", Source(), pa.schema([])).batches(file))
