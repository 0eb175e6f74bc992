"""The columns that the source has, and the types of its metadata: what a table's columns are made of, for ever.

Looks at FILES files from all over the listing, and ROWS rows of them together; of Parquet at the schema alone. A column that nothing was
learned of is looked for in FURTHER_FILES files and FURTHER_ROWS rows more. Costs a few seconds at the most, before the first run.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from latent.errors import FileUnreadable, OtherColumns, SourceError
from latent.schemas import DOCUMENT_FIELDS, LANCE_COLUMNS, OWN_COLUMNS
from latent.sources.documents import damage_named
from latent.sources.formats import FORMATS, PLAIN, format_of
from latent.sources.listing import Origin
from latent.sources.parquet import check_columns, read_schema, stored_type
from latent.sources.records import NESTING, Columns, InvalidRow, lacking
from latent.sources.values import UNFIT, convert, writings
from latent.types import FileState

log = logging.getLogger("latent")
FILES, ROWS = 64, 8_000
FURTHER_FILES, FURTHER_ROWS = 256, 100_000
READERS = 8  # files looked at a time


def metadata_schema(origin: Origin, format: str, columns: Columns, files: Sequence[FileState]) -> pa.Schema:
    """Types of the metadata columns: the narrowest that hold all that was seen.

    Raises SourceError where no file has a column that the settings name.
    """
    if clash := sorted(set(columns.metadata) & (OWN_COLUMNS | LANCE_COLUMNS | {f.name for f in DOCUMENT_FIELDS})):
        raise SourceError(f"metadata: {', '.join(clash)} is the table's own column: rename it in the source, or leave it out")
    tabular = [file for file in files if _kind(format, file) not in PLAIN]
    if not tabular:
        if files and columns.metadata:
            raise SourceError(
                f"{files[0].path}: plain files have no columns; got metadata {columns.metadata}, wanted []: set [source] metadata = []"
            )
        return pa.schema([])
    seen = _Seen(columns)
    for most_files, most_rows in ((FILES, ROWS), (FURTHER_FILES, FURTHER_ROWS)):
        chosen = spread(tabular, most_files)
        for file, found in zip(chosen, _looks(origin, format, columns, chosen, most_rows // len(chosen)), strict=False):
            seen.add(file.path, found)
            if not seen.lacking and not columns.metadata:
                break
        if not seen.lacking and not seen.untyped:
            break
    seen.check()
    return pa.schema([pa.field(name, seen.type_of(name)) for name in columns.metadata])


def require_columns(origin: Origin, format: str, columns: Columns, files: Sequence[FileState]) -> None:
    """Raises SourceError where no file has an id and a text. Opens one file in most cases."""
    problem = None
    for file in spread([file for file in files if _kind(format, file) not in PLAIN], FILES):
        found = _look(origin, format, columns, file, 1)
        if found.problem is None and found.names:
            return
        problem = problem or (found.problem and f"{file.path}: {found.problem}")
    if problem and not any(_kind(format, file) in PLAIN for file in files):
        raise SourceError(problem)


def spread(files: Sequence[FileState], most: int) -> Sequence[FileState]:
    """At most so many of the files, the first and the last among them."""
    if len(files) <= most:
        return files
    return [files[i * (len(files) - 1) // (most - 1)] for i in range(most)]


def _kind(format: str, file: FileState) -> str:
    return (format_of(file.path) or "text") if format == "auto" else format


# --- one file -------------------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """What one file says."""

    names: tuple[str, ...] = ()  # of its columns; none where it has no rows or is damaged
    kinds: tuple[pa.DataType | None, ...] = ()  # of the metadata columns, as Parquet declares them
    values: tuple[list[object], ...] = ()  # of the metadata columns, as JSON holds them
    cells: tuple[list[str], ...] = ()  # of the metadata columns, as CSV holds them
    problem: str | None = None  # why no document can be read from it


def _looks(origin: Origin, format: str, columns: Columns, files: Sequence[FileState], rows: int) -> Iterator[_Look]:
    """One look a file, in order; several at a time where all are wanted."""
    if not columns.metadata:
        yield from (_look(origin, format, columns, file, rows) for file in files)
        return
    with ThreadPoolExecutor(READERS, thread_name_prefix="infer") as pool:
        yield from pool.map(lambda file: _look(origin, format, columns, file, rows), files)


def _look(origin: Origin, format: str, columns: Columns, file: FileState, rows: int) -> _Look:
    try:
        with damage_named(origin, file.path):
            kind, path = _kind(format, file), f"{origin.root}/{file.path}"
            if kind == "parquet":
                schema = read_schema(origin.filesystem, path)
                check_columns(columns, schema)
                kinds = [stored_type(schema.field(name).type) if name in schema.names else None for name in columns.metadata]
                return _Look(tuple(schema.names), kinds=tuple(kinds))
            return _sample(origin, kind, path, columns, rows)
    except OtherColumns as error:
        return _Look(problem=str(error))
    except FileUnreadable:
        return _Look()


def _sample(origin: Origin, kind: str, path: str, columns: Columns, rows: int) -> _Look:
    """The first rows of a file, as far as it is whole."""
    reader, names = FORMATS[kind], dict[str, None]()
    found: tuple[list[object], ...] = tuple([] for _ in columns.metadata)
    for _, raw in itertools.islice(reader.rows(origin.filesystem, path, columns, 0), max(rows, 1)):
        names |= dict.fromkeys(reader.keys_of(raw))
        with contextlib.suppress(InvalidRow):
            for values, value in zip(found, reader.parse(path, columns, raw).metadata, strict=True):
                if value is not None:
                    values.append(value)
    if kind == "csv":
        return _Look(tuple(names), cells=tuple([str(cell) for cell in cells] for cells in found))
    return _Look(tuple(names), values=found)


# --- all files ------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What the files say together."""

    columns: Columns
    names: dict[str, None] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)  # those that could be read and have rows
    problem: str | None = None
    kinds: dict[str, list[pa.DataType]] = field(default_factory=dict)
    values: dict[str, list[object]] = field(default_factory=dict)
    cells: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: str, found: _Look) -> None:
        if found.problem and not self.problem:
            self.problem = f"{path}: {found.problem}"
        if found.names:
            self.files[path] = None
        self.names |= dict.fromkeys(found.names)
        for i, name in enumerate(self.columns.metadata):
            if found.kinds and (kind := found.kinds[i]) is not None:
                self.kinds.setdefault(name, []).append(kind)
            if found.values:
                self.values.setdefault(name, []).extend(found.values[i])
            if found.cells:
                self.cells.setdefault(name, []).extend(found.cells[i])

    @property
    def lacking(self) -> list[str]:
        """Columns that no file has."""
        wanted = dict.fromkeys([self.columns.id, *self.columns.text_columns, *self.columns.metadata])
        return [name for name in wanted if name not in self.names]

    @property
    def untyped(self) -> list[str]:
        """Metadata columns of which nothing says a type."""
        return [
            name for name in self.columns.metadata if not (self.kinds.get(name) or self.values.get(name) or self.cells.get(name))
        ]

    def check(self) -> None:
        """Raises SourceError where no file that was looked at has a column."""
        if not self.files:
            if self.problem:
                raise SourceError(self.problem)
            return  # no file is whole and has rows
        if missing := self.lacking:
            others = f", nor has any other of {len(self.files)} files" if len(self.files) > 1 else ""
            raise SourceError(f"{next(iter(self.files))}: {lacking(missing, list(self.names), others)}")
        for name in self.untyped:
            log.warning("metadata %r: no document that was looked at has a value; its column holds strings", name)

    def type_of(self, name: str) -> pa.DataType:
        """The narrowest type that holds all values; string where they are of several kinds, or there are none."""
        values, cells = self.values.get(name, []), self.cells.get(name, [])
        kinds = [
            *self.kinds.get(name, []),
            *([kind] if (kind := _type_of_values(values)) else []),
            *([_type_of_cells(cells)] if cells else []),
        ]
        if not kinds:
            return pa.string()
        kind = kinds[0]
        for other in kinds[1:]:
            kind = unified(kind, other) or pa.string()
        sampled = [*values, *cells]
        if kind != pa.string() and len(convert(sampled, kind).misfits) > len(convert(sampled, pa.string()).misfits):
            return pa.string()
        return kind


def _type_of_values(values: Sequence[object]) -> pa.DataType | None:
    """The type that Arrow sees in values of JSON. Where it sees several, the one that holds the most values: string, or what some of them have
    in common.
    """
    with contextlib.suppress(*UNFIT):
        return stored_type(pa.array(values).type)
    groups: list[pa.DataType] = []
    for kind in dict.fromkeys(filter(None, map(_type_of_value, values))):
        at, both = next(((i, both) for i, group in enumerate(groups) if (both := unified(group, kind))), (len(groups), kind))
        groups[at : at + 1] = [both]
    if len(groups) == 1:
        return groups[0]
    return min([pa.string(), *groups], key=lambda kind: len(convert(values, kind).misfits))


def _type_of_value(value: object) -> pa.DataType | None:
    """The type of one value, None where it says none or is one that no column holds."""
    with contextlib.suppress(*UNFIT):
        return stored_type(pa.array([value]).type)
    if _is_deeper(value, NESTING):
        return None
    if isinstance(value, list):
        return (item := _type_of_values([item for item in value if item is not None])) and pa.list_(item)
    if isinstance(value, dict):
        with contextlib.suppress(*UNFIT):  # a key may be no Unicode
            return pa.struct([(key, kind) for key, item in value.items() if (kind := _type_of_value(item)) is not None])
    return None


def _is_deeper(value: object, depth: int) -> bool:
    """Whether lists and objects lie in each other deeper than that."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (depth == 0 or any(_is_deeper(item, depth - 1) for item in inner))


def _type_of_cells(cells: Sequence[str]) -> pa.DataType:
    """Numbers where each cell is what one program writes for its number: 007, +49, 3.10 and 1e5 are codes."""
    if not convert(cells, pa.int64()).misfits:
        return pa.int64()
    numbers = convert(cells, pa.float64())
    if not numbers.misfits and not any(cell.strip("-").isalpha() for cell in cells):  # nan, inf
        for written in zip(*map(writings, numbers.stored), strict=True):
            if list(written) == list(cells):
                return pa.float64()
    return pa.string()


# --- two types ------------------------------------------------------------------------------------------------------


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds what both hold, None where there is none."""
    if one == other:
        return one
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _struct(one, other)
    if pa.types.is_list(one) and pa.types.is_list(other):
        item = _inner(one.value_type, other.value_type)
        return item and pa.list_(item)
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz and other.tz and one.tz != other.tz:
        one, other = pa.timestamp(one.unit, "UTC"), pa.timestamp(other.unit, "UTC")
    pair = {_family(one), _family(other)}
    if pair == {"decimal", "float"} or (pair == {"integer"} and pa.uint64() in (one, other) and _signed(one, other)):
        return None  # Arrow would take what holds not all of both
    with contextlib.suppress(*UNFIT):
        schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    return None


def _struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """All keys of both."""
    kinds = {f.name: f.type for f in one}
    for inner in other:
        kind = _inner(kinds[inner.name], inner.type) if inner.name in kinds else inner.type
        if kind is None:
            return None
        kinds[inner.name] = kind
    return pa.struct(list(kinds.items()))


def _inner(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type of what is nested: string where nothing holds both, as for a column, unless one is nested further."""
    return unified(one, other) or (None if pa.types.is_nested(one) or pa.types.is_nested(other) else pa.string())


def _family(kind: pa.DataType) -> str:
    families = {"integer": pa.types.is_integer, "float": pa.types.is_floating, "decimal": pa.types.is_decimal}
    return next((name for name, holds in families.items() if holds(kind)), str(kind))


def _signed(*kinds: pa.DataType) -> bool:
    return any(map(pa.types.is_signed_integer, kinds))
