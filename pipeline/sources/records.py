"""What all formats share: the columns that are wanted, a row's cells, what is wrong with a row, a file's bytes."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from pyarrow import fs

from latent.errors import FileUnreadable, OtherColumns
from latent.sources import charsets

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
BUFFER_BYTES = 1 << 20
NAMES_SHOWN = 30
NESTING = 16  # of lists and objects in a metadata column; Arrow, Lance and JSON each have a limit of their own


class Columns(Protocol):
    """The part of [source] that decides how rows are read."""

    @property
    def id(self) -> str: ...
    @property
    def text_columns(self) -> list[str]: ...
    @property
    def metadata(self) -> list[str]: ...
    @property
    def delimiter(self) -> str: ...


class Record(NamedTuple):
    """The wanted cells of one row, as they came."""

    id: object
    texts: list[object]
    metadata: list[object]


class InvalidRow(Exception):
    """One row cannot be understood; the message is the reason kept in quarantine."""


class Format(NamedTuple):
    rows: Callable[[fs.FileSystem, str, Columns, int], Iterator[tuple[int, Any]]]  # from a row on
    parse: Callable[[str, Columns, Any], Record]
    keys_of: Callable[[Any], Iterable[str]] = lambda _: ()  # the names of a raw row's columns


class UnrepresentableValue:
    """A cell that Python has no value for: fits no column."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __repr__(self) -> str:
        return self._reason


def record(columns: Columns, cells: dict[str, object]) -> Record:
    """The wanted cells of a row; those that it does not have are null."""
    return Record(cells.get(columns.id), [cells.get(c) for c in columns.text_columns], [cells.get(c) for c in columns.metadata])


def open_raw(filesystem: fs.FileSystem, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed as its name says."""
    codec = COMPRESSED.get(PurePosixPath(path).suffix.lower())
    if codec and filesystem.get_file_info(path).size == 0:
        raise FileUnreadable(f"no bytes, not even the head of a {codec} file")
    return io.BufferedReader(filesystem.open_input_stream(path, compression=codec), BUFFER_BYTES)


def open_bytes(filesystem: fs.FileSystem, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed as its name says; UTF-16 and UTF-32 with a mark as UTF-8, no mark before it.

    Raises FileUnreadable where they are no text.
    """
    stream = open_raw(filesystem, path)
    head = stream.peek(charsets.HEAD_BYTES)[: charsets.HEAD_BYTES]
    if mark := charsets.mark_of(head):
        stream.read(len(mark.mark))
        return stream if mark.encoding == "utf-8" else io.BufferedReader(charsets.Transcoded(stream, mark.encoding), BUFFER_BYTES)
    if reason := charsets.no_text(head):
        raise FileUnreadable(reason)
    return stream


def require(columns: Columns, names: Sequence[str]) -> None:
    """Raises OtherColumns where a file with these columns cannot be read: it has no id or no text, or has a wanted column twice."""
    wanted = [columns.id, *columns.text_columns, *columns.metadata]
    if twice := [name for name in dict.fromkeys(wanted) if list(names).count(name) > 1]:
        raise OtherColumns(f"column {', '.join(map(repr, twice))} stands twice: keep one of them")
    missing = [] if columns.id in names else [columns.id]
    if not set(columns.text_columns) & set(names):
        missing += [name for name in columns.text_columns if name not in missing]
    if missing:
        raise OtherColumns(lacking(missing, names))


def lacking(missing: Iterable[str], names: Sequence[str], others: str = "") -> str:
    """That columns are not there, what is, and which of those may be meant."""
    have = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "") or "none"
    folded = {name.casefold(): name for name in names}
    near = [repr(folded[found[0]]) for name in missing if (found := difflib.get_close_matches(name.casefold(), folded, 1))]
    meant = f" (did you mean {' and '.join(near)}?)" if near else ""
    return f"no column {', '.join(map(repr, missing))}; it has {have}{others}{meant}: set [source] id, text and metadata to columns it has"
