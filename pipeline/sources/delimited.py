"""CSV and its kin → rows: cells between commas, semicolons, tabs or bars, as the header says or [source] delimiter sets."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from pyarrow import fs

from latent.errors import FileUnreadable, OtherColumns
from latent.sources.records import BUFFER_BYTES, Columns, Format, InvalidRow, Record, open_bytes, record, require

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEADER_BYTES = 64 << 10
EXCEL_LINE = re.compile("sep=(.)\r?\n")  # before the header

Row = tuple[list[str], list[str]]  # header and cells


def header_of(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The names of the columns."""
    with open_bytes(filesystem, path) as stream:
        head = _head(stream)
        return _names(head, _delimiter(head, path, ()))


def _rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 kB is less than a long document
    stream = open_bytes(filesystem, path)
    head = _head(stream)
    delimiter = columns.delimiter or _delimiter(head, path, {columns.id, *columns.text_columns, *columns.metadata})
    with io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="") as text:
        if EXCEL_LINE.match(head):
            text.readline()
        rows = csv.reader(text, strict=True, delimiter=delimiter)
        try:
            header = next(filter(None, rows), None)  # blank lines may stand before it
            if header is None:
                return
            _require(columns, header, delimiter)
            for row, cells in enumerate(rows):
                if row >= start and cells:
                    yield row, (header, cells)
        except csv.Error as error:
            raise FileUnreadable(f"not CSV at line {rows.line_num}: {error}") from None


def _require(columns: Columns, header: list[str], delimiter: str) -> None:
    try:
        require(columns, header)
    except OtherColumns as error:
        if len(header) > 1 and delimiter in DELIMITERS and not any(set(name) & set(DELIMITERS) for name in header):
            raise  # the header was cut right
        raise OtherColumns(f"{error}, or [source] delimiter to what stands between cells, here {delimiter!r}") from None


def _head(stream: io.BufferedReader) -> str:
    """The beginning of the file, which stays to be read."""
    return stream.peek(BUFFER_BYTES)[:HEADER_BYTES].decode(errors="surrogateescape")


def _delimiter(head: str, path: str, wanted: Collection[str]) -> str:
    """What stands between the names in the header: that which gives most of the wanted ones, and then most at all."""
    if excel := EXCEL_LINE.match(head):
        return excel[1]
    tabs_first = ".tsv" in PurePosixPath(path.lower()).suffixes
    order = sorted(DELIMITERS, key=lambda d: (d != "\t") if tabs_first else 0)

    def merit(delimiter: str) -> tuple[int, int]:
        names = _names(head, delimiter)
        return len(set(names) & set(wanted)), len(names)

    return max(order, key=merit)


def _names(head: str, delimiter: str) -> list[str]:
    """The header's names, none where it is not written with this delimiter."""
    if excel := EXCEL_LINE.match(head):
        head = head[excel.end() :]
    try:
        return next(filter(None, csv.reader(io.StringIO(head, newline=""), strict=True, delimiter=delimiter)), [])
    except csv.Error:
        return []


def _parse(path: str, columns: Columns, raw: Row) -> Record:
    header, cells = raw
    if len(cells) != len(header):
        raise InvalidRow(f"{len(cells)} cells in a row, {len(header)} in the header")
    found = record(columns, dict(zip(header, cells, strict=True)))
    return found._replace(metadata=[cell or None for cell in found.metadata])


CSV = Format(_rows, _parse, keys_of=lambda raw: raw[0])
