"""Parquet → rows. Columns are read a part of a row group at a time; each cell as Python has it, or `UnrepresentableValue`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from latent.errors import OtherColumns
from latent.sources.records import NESTING, Columns, Format, Record, UnrepresentableValue, record, require

ROWS_AT_ONCE, BYTES_AT_ONCE = 1024, 16 << 20  # whichever is less
STRING = pa.string()


def read_schema(filesystem: fs.FileSystem, path: str) -> pa.Schema:
    """The file's columns, from its footer."""
    with filesystem.open_input_file(path) as stream:
        return pq.read_schema(stream)


def check_columns(columns: Columns, schema: pa.Schema) -> None:
    """Raises OtherColumns where id or text are not there, not of text, or twice."""
    require(columns, schema.names)
    for name in columns.text_columns:
        if name in schema.names and not _is_text(kind := schema.field(name).type):
            raise OtherColumns(f"column {name!r} holds {kind}, expected text: set [source] text to a column of text")


def _rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, Record]]:
    with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
        check_columns(columns, file.schema_arrow)
        wanted = [columns.id, *columns.text_columns, *columns.metadata]
        present = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
        row = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows <= start:
                row += rows
                continue
            at_once = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE * rows // max(file.metadata.row_group(group).total_byte_size, 1)))
            for batch in file.iter_batches(at_once, row_groups=[group], columns=present):
                cells = {name: _cells(batch[name]) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    yield row + i, record(columns, {name: values[i] for name, values in cells.items()})
                row += batch.num_rows


def _cells(column: pa.Array) -> list[Any]:
    """The column's values, those that cannot be as `UnrepresentableValue`: a time beyond the year 9999, finer than a microsecond, a list of no UTF-8."""
    try:
        return list(_plain(column).to_pylist())
    except (pa.ArrowException, OverflowError, ValueError, LookupError):
        if len(column) == 1:
            return [UnrepresentableValue(f"a {column.type} that is out of range, finer than a microsecond, or not UTF-8")]
        return [cell for i in range(len(column)) for cell in _cells(column.slice(i, 1))]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return _bare(kind) in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.null(),
    )


def _plain(column: pa.Array) -> pa.Array:
    """Strings as bytes, since a file may claim UTF-8 and hold something else; times as they are stored."""
    if isinstance(column.type, pa.BaseExtensionType) and column.type != pa.uuid():
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        return column.cast(pa.binary())
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.large_binary())
    kind = stored_type(column.type, uuid=pa.uuid())
    return column if kind is None or kind == column.type else column.cast(kind)


def _bare(kind: pa.DataType) -> pa.DataType:
    """An extension type's storage."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def stored_type(kind: pa.DataType, depth: int = 0, uuid: pa.DataType = STRING) -> pa.DataType | None:
    """The type that a column of this one has in the table: times to the microsecond that Python holds, in a zone that it knows; UUIDs as
    they are written.

    None where the type says nothing (null, an object without keys) or is nested too deep.
    """
    if kind == pa.uuid():
        return uuid
    kind = _bare(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind) or depth > NESTING:
        return None
    if pa.types.is_struct(kind):
        fields = [field.with_type(inner) for field in kind if (inner := stored_type(field.type, depth + 1, uuid)) is not None]
        return pa.struct(fields) if fields else None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = stored_type(kind.value_type, depth + 1, uuid)
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


def _parse(path: str, columns: Columns, raw: Record) -> Record:
    return raw


PARQUET = Format(_rows, _parse)
