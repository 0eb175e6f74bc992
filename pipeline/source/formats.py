"""Files → rows, one small reader a format.

A reader yields `(row, raw)` in file order, cheaply; `parse` makes a `Record` of the raw rows that are wanted. What is
wrong with one row is a `BadRow`; what is wrong with the file is an `UnreadableFile`; what is wrong with the
settings (a column that is not there) is a `SourceError`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import SourceError, UnreadableFile

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
}
PLAIN = ("text", "markdown")  # a file is a document
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
BUFFER_BYTES = 1 << 20
SAMPLE_ROWS, SAMPLE_BYTES = 100, 8 << 20  # of a JSONL file, in which a wanted key must occur
LINE_BYTES = 512 << 20  # of JSONL at most: what is longer is no line of documents, and would have to be held whole
ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 16 << 20  # of Parquet, whichever is less
NESTING = 16  # of lists and objects in a metadata column; Arrow, Lance and JSON each have a limit of their own


class Columns(Protocol):
    """The part of [source] that decides how rows are read."""

    @property
    def id(self) -> str: ...
    @property
    def text_columns(self) -> list[str]: ...
    @property
    def metadata(self) -> list[str]: ...


class Record(NamedTuple):
    """The wanted cells of one row, as they came."""

    id: object
    texts: list[object]
    metadata: list[object]


class BadRow(Exception):
    """One row cannot be understood; the message is the reason kept in quarantine."""


class Format(NamedTuple):
    rows: Callable[[fs.FileSystem, str, Columns, int], Iterator[tuple[int, Any]]]  # from a row on
    parse: Callable[[str, Columns, Any], Record]


def format_of(path: str) -> str | None:
    """The format that a file's name tells, None if it tells none."""
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        kind = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("jsonl", "csv") else None
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def column_names(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The columns of a parquet, JSONL or CSV file, as its beginning tells."""
    if format_of(path) == "parquet":
        with filesystem.open_input_file(path) as stream:
            return list(pq.read_schema(stream).names)
    with _open(filesystem, path) as stream:
        if format_of(path) == "jsonl":
            return list(dict.fromkeys(key for line in itertools.islice(stream, SAMPLE_ROWS) for key in _keys(line)))
        return next(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")), [])


def _open(filesystem: fs.FileSystem, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed as its name tells."""
    codec = COMPRESSED.get(PurePosixPath(path).suffix.lower())
    if codec and filesystem.get_file_info(path).size == 0:
        raise UnreadableFile(f"no bytes, not even the head of a {codec} file")
    stream = filesystem.open_input_stream(path, compression=codec)
    return io.BufferedReader(stream, BUFFER_BYTES)


def _require(wanted: Iterable[str], present: Iterable[str], path: str) -> None:
    missing = [column for column in wanted if column not in set(present)]
    if missing:
        have = ", ".join(present) or "none"
        raise SourceError(
            f"{path}: no column {', '.join(map(repr, missing))}; it has {have}: set [source] id, text and metadata to columns it has"
        )


# --- parquet --------------------------------------------------------------------------------------------------------


def _parquet_rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, Record]]:
    wanted = [columns.id, *columns.text_columns, *columns.metadata]
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
        _require(wanted, file.schema_arrow.names, path)
        for name in columns.text_columns:
            if not _is_text(kind := file.schema_arrow.field(name).type):
                raise SourceError(f"{path}: column {name!r} holds {kind}, wanted text: set [source] text to a column of text")
        row = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= start:
                row += rows
                continue
            at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE * rows // max(file.metadata.row_group(group).total_byte_size, 1)))
            for batch in file.iter_batches(at_once, row_groups=[group], columns=list(dict.fromkeys(wanted))):
                cells = {name: _cells(_plain(batch[name])) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    yield row + i, _record(columns, {name: values[i] for name, values in cells.items()})
                row += batch.num_rows


class Unfit:
    """A cell that Python has no value for, such as a time beyond the year 9999 or a list of strings that are not UTF-8: fits no column."""

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind

    def __repr__(self) -> str:
        return f"a {self._kind} that is out of range or not UTF-8"


def _cells(column: pa.Array) -> list[Any]:
    """The column's values; those that cannot be are `Unfit`."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError, LookupError):
        if len(column) == 1:
            return [Unfit(column.type)]
        return [cell for i in range(len(column)) for cell in _cells(column.slice(i, 1))]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_null(kind)
    )


def _plain(column: pa.Array) -> pa.Array:
    """Strings as bytes, since a file may claim UTF-8 and hold something else; times as they are stored."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        return column.cast(pa.binary())
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.large_binary())
    kind = stored_type(column.type)
    return column if kind is None or kind == column.type else column.cast(kind, safe=False)


def stored_type(kind: pa.DataType, depth: int = 0) -> pa.DataType | None:
    """The type that a column of this one has in the table: times to the microsecond that Python holds, in a zone that it knows.

    None where the type says nothing (null, an object without keys) or is nested too deep.
    """
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or depth > NESTING:
        return None
    if pa.types.is_struct(kind):
        fields = [field.with_type(inner) for field in kind if (inner := stored_type(field.type, depth + 1)) is not None]
        return pa.struct(fields) if fields else None
    if pa.types.is_list(kind):
        item = stored_type(kind.value_type, depth + 1)
        return item and pa.list_(kind.value_field.with_type(item))
    return _stored_scalar(kind)


def _stored_scalar(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us" if kind.unit == "ns" else kind.unit, kind.tz and _known_zone(kind.tz))
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(kind) else kind


def _known_zone(zone: str) -> str:
    """The time zone, UTC in place of one that is not known here: the instants are the same."""
    try:
        pa.scalar(0, pa.timestamp("us", zone)).as_py()
    except (LookupError, ValueError):
        return "UTC"
    return zone


def _parquet_record(path: str, columns: Columns, raw: Record) -> Record:
    return raw


# --- jsonl ----------------------------------------------------------------------------------------------------------


def _jsonl_rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, bytes]]:
    with _open(filesystem, path) as stream:
        lines = enumerate(_lines(stream))
        head, size = [], 0
        for row, line in lines:
            head.append((row, line))
            size += len(line)
            if len(head) == SAMPLE_ROWS or size > SAMPLE_BYTES:
                break
        keys = dict.fromkeys(key for _, line in head for key in _keys(line))
        if keys:
            _require([columns.id, *columns.text_columns], keys, path)
        for row, line in itertools.chain(head, lines):
            if row == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901 the mark some editors write
            if not line.endswith(b"\n") and len(line) < LINE_BYTES and line.strip() and not _is_json(line):
                raise UnreadableFile(f"cut off in line {row + 1}")
            if row >= start and line.strip():
                yield row, line


def _lines(stream: io.BufferedReader, most: int = LINE_BYTES) -> Iterator[bytes]:
    """The lines; of one that is longer than `most` only its beginning of that length."""
    while line := stream.readline(most):
        rest = line
        while len(rest) == most and not rest.endswith(b"\n"):
            rest = stream.readline(most)
        yield line


def _keys(line: bytes) -> list[str]:
    try:
        value = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return []
    return list(value) if isinstance(value, dict) else []


def _is_json(line: bytes) -> bool:
    """Whether the line is whole, if perhaps not in UTF-8."""
    try:
        json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _jsonl_record(path: str, columns: Columns, line: bytes) -> Record:
    if len(line) >= LINE_BYTES:
        raise BadRow(f"a line of more than {LINE_BYTES} bytes")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as strict:
        try:
            value = json.loads(line)  # lets lone surrogates pass, so that the document can be named
        except (ValueError, RecursionError):
            raise BadRow(f"not JSON: {strict}") from None
    if not isinstance(value, dict):
        raise BadRow(f"not a JSON object but {type(value).__name__}")
    return _record(columns, value)


# --- csv ------------------------------------------------------------------------------------------------------------


def _csv_rows(
    filesystem: fs.FileSystem, path: str, columns: Columns, start: int
) -> Iterator[tuple[int, tuple[list[str], list[str]]]]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 kB is less than a long document
    with io.TextIOWrapper(_open(filesystem, path), "utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                return
            _require([columns.id, *columns.text_columns, *columns.metadata], header, path)
            for row, cells in enumerate(rows):
                if row >= start and cells:
                    yield row, (header, cells)
        except csv.Error as error:
            raise UnreadableFile(f"not CSV at line {rows.line_num}: {error}") from None


def _csv_record(path: str, columns: Columns, raw: tuple[list[str], list[str]]) -> Record:
    header, cells = raw
    if len(cells) != len(header):
        raise BadRow(f"{len(cells)} cells in a row, {len(header)} in the header")
    record = _record(columns, dict(zip(header, cells, strict=True)))
    return record._replace(metadata=[cell or None for cell in record.metadata])


# --- plain files ----------------------------------------------------------------------------------------------------


def _text_rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, bytes]]:
    if columns.metadata:
        raise SourceError(
            f"{path}: plain files have no columns; got metadata {columns.metadata}, wanted []: set [source] metadata = []"
        )
    if start == 0:
        with _open(filesystem, path) as stream:
            yield 0, stream.read()


def _text_record(path: str, columns: Columns, data: bytes) -> Record:
    return Record(path, [data.removeprefix(b"\xef\xbb\xbf")], [])


def _record(columns: Columns, cells: dict[str, object]) -> Record:
    return Record(cells.get(columns.id), [cells.get(c) for c in columns.text_columns], [cells.get(c) for c in columns.metadata])


FORMATS: dict[str, Format] = {
    "parquet": Format(_parquet_rows, _parquet_record),
    "jsonl": Format(_jsonl_rows, _jsonl_record),
    "csv": Format(_csv_rows, _csv_record),
    "text": Format(_text_rows, _text_record),
    "markdown": Format(_text_rows, _text_record),
}

# What the decoders raise for a damaged file. Bare OSError is told apart in `documents`: it is the network's error too.
DAMAGED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError, zlib.error, UnicodeError)
