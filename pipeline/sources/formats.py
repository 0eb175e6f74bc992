"""Files → rows, one small reader a format.

A reader yields `(row, raw)` in file order, cheaply; `parse` makes a `Record` of the raw rows that are wanted. What is
wrong with one row is a `InvalidRow`; what is wrong with the file is an `FileUnreadable`, and `OtherColumns` where it lacks id or text.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from latent.sources import charsets
from latent.sources.delimited import CSV, header_of
from latent.sources.jsonl import JSONL, SAMPLE_ROWS, keys_of
from latent.sources.parquet import PARQUET, read_schema
from latent.sources.records import COMPRESSED, Columns, Format, Record, UnrepresentableValue, open_bytes, open_raw

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
}
PLAIN = ("text", "markdown")  # a file is a document


def format_of(path: str) -> str | None:
    """The format that a file's name tells, None if it tells none."""
    suffixes = [s.lower() for s in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        kind = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind in ("jsonl", "csv") else None
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def column_names(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The columns of a parquet, JSONL or CSV file, as its beginning tells."""
    kind = format_of(path)
    if kind == "parquet":
        return list(read_schema(filesystem, path).names)
    if kind == "csv":
        return header_of(filesystem, path)
    with open_bytes(filesystem, path) as stream:
        return keys_of(itertools.islice(stream, SAMPLE_ROWS))


def _text_rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, bytes]]:
    if start == 0:
        with open_raw(filesystem, path) as stream:
            yield 0, stream.read()


def _text_record(path: str, columns: Columns, data: bytes) -> Record:
    """A plain file has no columns: its metadata is null."""
    text: str | UnrepresentableValue
    try:
        text = charsets.decode(data)
    except ValueError as error:
        text = UnrepresentableValue(str(error))
    return Record(path, [text], [None] * len(columns.metadata))


TEXT = Format(_text_rows, _text_record)
FORMATS: dict[str, Format] = {"parquet": PARQUET, "jsonl": JSONL, "csv": CSV, "text": TEXT, "markdown": TEXT}

# What the decoders raise for a damaged file. Bare OSError is told apart in `documents`: it is the network's error too.
DAMAGED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError, zlib.error, UnicodeError)
