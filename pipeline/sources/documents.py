"""Rows → typed Arrow batches of documents, each with its id, text, metadata and hash, or with what is wrong with it."""

from __future__ import annotations

import contextlib
import decimal
import itertools
import json
import math
import re
import reprlib
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from latent.errors import FileUnreadable, SourceUnreachable
from latent.schemas import DOCUMENT_FIELDS, SCANNED_DOCUMENTS, column_key
from latent.sources.charsets import NUL
from latent.sources.formats import DAMAGED, FORMATS, format_of
from latent.sources.listing import Origin, current_state, first_line
from latent.sources.records import Columns, Format, InvalidRow, Record, UnrepresentableValue
from latent.sources.values import convert
from latent.types import FileSlice, FileState, digest

BATCH_DOCUMENTS = 1024
BATCH_CHARS = 8 << 20  # a batch ends past this, so that long documents do not add up
READING = 2  # how documents are made of files; another number has recorded files read again
ID_CHARS = 16_384  # an id stands in each row twice, and in each description of a shard
TEXT_CHARS = 100_000_000  # the Bible has 4 million; a document is held whole, several times over
WORD_CHARS = 1_000_000  # of a text's longest word: longer ones are data taken for text, and no vector tells anything of them
WORD = re.compile(r"\w*")


class Reader:
    """Reads documents in file order.

    Keeps its place in the last file, so that a worker given one shard after another of a compressed file
    decompresses it once, not once a shard.
    """

    def __init__(self, origin: Origin, format: str, columns: Columns, metadata: pa.Schema) -> None:
        self._origin, self._format, self._columns = origin, format, columns
        self._fields = metadata
        self._file: FileState | None = None
        self._rows: Iterator[tuple[int, Any]] = iter(())
        self._next_row = 0

    def batches(self, file: FileState) -> Iterator[pa.RecordBatch]:
        """All documents of a file: DOCUMENT_FIELDS, metadata columns, doc_hash."""
        kind = self._kind(file)
        rows = kind.rows(self._origin.filesystem, self._full(file), self._columns, 0)
        yield from self._batches(file, kind, rows)

    def read(self, piece: FileSlice) -> pa.Table:
        """The wanted rows of a file, as many as are still there."""
        kind = self._kind(piece.file)
        wanted = piece.documents["row"].to_pylist()
        if self._file != piece.file or wanted[0] < self._next_row:
            self._file = piece.file
            self._rows = kind.rows(self._origin.filesystem, self._full(piece.file), self._columns, wanted[0])
        chosen = set(wanted)
        rows = (row for row in _through(self._rows, wanted[-1]) if row[0] in chosen)
        self._next_row = wanted[-1] + 1
        try:
            return pa.Table.from_batches(self._batches(piece.file, kind, rows), schema=self.schema)
        except BaseException:
            self._file = None
            raise

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*DOCUMENT_FIELDS, *self._fields, pa.field("doc_hash", pa.string())])

    def _full(self, file: FileState) -> str:
        return f"{self._origin.root}/{file.path}"

    def _kind(self, file: FileState) -> Format:
        return FORMATS[self._format if self._format != "auto" else format_of(file.path) or "text"]

    def _batches(self, file: FileState, kind: Format, rows: Iterator[tuple[int, Any]]) -> Iterator[pa.RecordBatch]:
        with damage_named(self._origin, file.path):
            batch: list[_Document] = []
            chars = 0
            for row, raw in rows:
                document = _document(row, kind, file.path, self._columns, raw)
                batch.append(document)
                chars += len(document.text or "") + sum(len(cell) for cell in document.metadata if isinstance(cell, bytes | str))
                if len(batch) >= BATCH_DOCUMENTS or chars >= BATCH_CHARS:
                    yield _typed_batch(batch, self._fields, self.schema)
                    batch, chars = [], 0
            if batch:
                yield _typed_batch(batch, self._fields, self.schema)


def scan_file(reader: Reader, origin: Origin, file: FileState, index: int) -> pa.Table:
    """Id, hash and length of each document in a file (SCANNED_DOCUMENTS); `index` is the file's place in the listing.

    Raises FileUnreadable where the file is damaged or changes while it is read.
    """
    scanned = []
    for batch in reader.batches(file):
        chars = pa.compute.fill_null(pa.compute.utf8_length(batch["text"]), 0)
        columns = {
            "file": pa.array([index] * batch.num_rows, pa.int32()),
            "row": batch["row"],
            "doc_id": batch["doc_id"],
            "doc_hash": batch["doc_hash"],
            "chars": chars.cast(pa.int64()),
            "problem": batch["problem"],
        }
        scanned.append(pa.RecordBatch.from_arrays([columns[f.name] for f in SCANNED_DOCUMENTS], schema=SCANNED_DOCUMENTS))
    if current_state(origin, file.path) != file:
        raise FileUnreadable("it changed while it was read")
    return pa.Table.from_batches(scanned, schema=SCANNED_DOCUMENTS)


def reading_hash(format: str, columns: Columns, fields: pa.Schema) -> str:
    """Name the settings that a file was read with: a file read with others counts as changed. The order of the metadata columns is none of them.

    `fields`: the metadata columns as the table has them. One that was dropped and added again is another column.
    """
    settings = [READING, format, columns.id, columns.text_columns, columns.delimiter, sorted(map(column_key, fields))]
    return digest(json.dumps(settings).encode())


# --- one document ---------------------------------------------------------------------------------------------------


SHORT = reprlib.Repr()  # quotes of a long or deep value a part, and computes no more
SHORT.maxstring = SHORT.maxother = 80


class _Document(NamedTuple):
    row: int
    id: str | None
    text: str | None
    metadata: list[object]
    problem: str | None


def _document(row: int, kind: Format, path: str, columns: Columns, raw: object) -> _Document:
    try:
        record = kind.parse(path, columns, raw)
        name = _identity(record.id)
    except InvalidRow as bad:
        return _Document(row, None, None, [None] * len(columns.metadata), str(bad))
    try:
        return _Document(row, name, _text(record), record.metadata, None)
    except InvalidRow as bad:
        return _Document(row, name, None, record.metadata, str(bad))


def _identity(value: object) -> str:
    if isinstance(value, bytes | str):
        name = _unicode(value, "id")
    elif isinstance(value, uuid.UUID) or _is_whole(value):
        name = str(value)
    elif isinstance(value, UnrepresentableValue):
        raise InvalidRow(f"id: {value!r}")
    else:
        raise InvalidRow(
            "id is null" if value is None else f"id is of type {type(value).__name__}, wanted a string or a whole number"
        )
    if not name:
        raise InvalidRow("id is empty")
    if len(name) > ID_CHARS:
        raise InvalidRow(f"id has {len(name)} characters, wanted at most {ID_CHARS}")
    return name


def _is_whole(value: object) -> bool:
    """Whether this is of a type of whole numbers: decimals without a fraction are."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, decimal.Decimal) and value.as_tuple().exponent == 0
    )


def _text(record: Record) -> str:
    for value in record.texts:
        if isinstance(value, UnrepresentableValue):
            raise InvalidRow(repr(value))
        if not isinstance(value, bytes | str | None):
            raise InvalidRow(f"text is of type {type(value).__name__}, wanted a string")
    parts = [_unicode(value, "text") for value in record.texts if isinstance(value, bytes | str)]
    if not parts:
        raise InvalidRow("text is null")
    text = "\n\n".join(part for part in parts if part)
    if not text.strip():
        raise InvalidRow("text is empty")
    if "\0" in text:
        raise InvalidRow(NUL)
    if len(text) > TEXT_CHARS:
        raise InvalidRow(f"text has {len(text)} characters, wanted at most {TEXT_CHARS}: split the document")
    if length := _length_of_giant(text):
        raise InvalidRow(f"text holds a word of {length} characters, wanted at most {WORD_CHARS}: no text but data")
    return text


def _length_of_giant(text: str) -> int:
    """The length of the first word of more than WORD_CHARS, 0 where there is none. Looks at a place of each half that length."""
    half = WORD_CHARS // 2
    for at in range(0, len(text), half):
        behind = _word(text, at)
        if behind >= half and (length := _word(text[max(at - half, 0) : at][::-1], 0) + behind) > WORD_CHARS:
            return length
    return 0


def _word(text: str, at: int) -> int:
    """How many characters of one word stand there."""
    word = WORD.match(text, at)
    return word.end() - at if word else 0


def _unicode(value: bytes | str, what: str) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode()
        value.encode()  # lone surrogates, and the stand-ins for bytes of CSV that were no UTF-8
    except UnicodeError as error:
        raise InvalidRow(f"{what} is not UTF-8: {error}") from None
    return value


# --- a batch --------------------------------------------------------------------------------------------------------


def _typed_batch(documents: list[_Document], fields: pa.Schema, schema: pa.Schema) -> pa.RecordBatch:
    problems = [d.problem for d in documents]
    texts = [d.text for d in documents]
    columns, cells = [], list[list[object]]()
    for i, field in enumerate(fields):
        column = convert([d.metadata[i] for d in documents], field.type)
        columns.append(column.array)
        cells.append(column.stored)
        for at, value in column.misfits.items():
            problems[at] = problems[at] or f"metadata column {field.name!r}: expected {field.type}, got {_quoted(value)}"
            texts[at] = None
    keys = [column_key(field) for field in fields]
    rows = zip(*cells, strict=True) if cells else itertools.repeat(())
    hashes = [
        _hash(text, dict(zip(keys, values, strict=True)), problem) if document.id is not None else None
        for document, text, values, problem in zip(documents, texts, rows, problems, strict=False)
    ]
    own = ([d.row for d in documents], [d.id for d in documents], texts, problems)
    arrays = [pa.array(v, f.type) for v, f in zip(own, DOCUMENT_FIELDS, strict=True)]
    return pa.RecordBatch.from_arrays([*arrays, *columns, pa.array(hashes, pa.string())], schema=schema)


def _hash(text: str | None, metadata: dict[str, object], problem: str | None) -> str:
    """Hash a document's content. In whatever order its metadata columns stand, and however many of them are null, it is the same."""
    cells = [(key, _finite(cell)) for key, cell in sorted(metadata.items()) if cell is not None]
    return digest(orjson.dumps([text, cells, problem], default=str))


def _finite(cell: object) -> object:
    """JSON has no NaN and no infinity: orjson writes null for all of them, and they must hash apart."""
    return repr(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _quoted(value: object) -> str:
    """A part of the value; strings of Parquet as strings, though they come as bytes."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeError):
            value = value.decode()
    return SHORT.repr(value)


def _through(rows: Iterator[tuple[int, Any]], last: int) -> Iterator[tuple[int, Any]]:
    """Rows up to and with `last`; leaves the iterator right behind it."""
    for row in rows:
        yield row
        if row[0] >= last:
            return


# How Arrow's stores, and the network before them, speak of their own failures. Any other OSError is what a decoder finds in damaged bytes.
STORE_WORDS = re.compile("AWS Error|google::cloud|Azure Error|connection|timed? ?out", re.IGNORECASE)
SHORTER = "HTTP status 416"  # nothing lies where the next part was: the object was replaced by a shorter one


@contextlib.contextmanager
def damage_named(origin: Origin, path: str) -> Iterator[None]:
    """What a reader or decoder raises for a file → FileUnreadable where the file is at fault, SourceUnreachable where the store is."""
    try:
        yield
    except DAMAGED as error:
        raise FileUnreadable(first_line(error)) from None
    except OSError as error:
        if SHORTER in str(error):
            raise FileUnreadable("it changed while it was read") from None
        if origin.local or isinstance(error, FileNotFoundError | PermissionError) or not STORE_WORDS.search(str(error)):
            raise FileUnreadable(first_line(error)) from None
        raise SourceUnreachable(f"{path}: the store failed: {first_line(error)}") from None
