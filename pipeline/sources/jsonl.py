"""JSON lines → rows. A line is parsed only where it is wanted."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from pyarrow import fs

from latent.errors import FileUnreadable
from latent.sources.records import NESTING, Columns, Format, InvalidRow, Record, UnrepresentableValue, open_bytes, record, require

SAMPLE_ROWS, SAMPLE_BYTES = 1000, 8 << 20  # in which id and text must occur
LINE_BYTES = 512 << 20  # at most: what is longer is no line of documents, and would have to be held whole
EXACT = 1 << 63  # orjson makes floats of larger whole numbers


def keys_of(lines: Iterable[bytes]) -> list[str]:
    """All keys of these lines' objects, in the order in which they come."""
    return list(dict.fromkeys(key for line in lines for key in _keys(line)))


def _rows(filesystem: fs.FileSystem, path: str, columns: Columns, start: int) -> Iterator[tuple[int, bytes]]:
    with open_bytes(filesystem, path) as stream:
        lines = enumerate(_lines(stream))
        head, size = [], 0
        for row, line in lines:
            head.append((row, line))
            size += len(line)
            if len(head) == SAMPLE_ROWS or size > SAMPLE_BYTES:
                break
        if keys := keys_of(line for _, line in head):
            require(columns, keys)
        for row, line in itertools.chain(head, lines):
            if not line.endswith(b"\n") and len(line) < LINE_BYTES and line.strip() and not _is_json(line):
                raise FileUnreadable(f"cut off in line {row + 1}")
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
        value = orjson.loads(line)
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


def _parse(path: str, columns: Columns, line: bytes) -> Record:
    if len(line) >= LINE_BYTES:
        raise InvalidRow(f"a line of more than {LINE_BYTES} bytes")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as strict:
        try:
            value = json.loads(line, parse_float=_finite)  # lets lone surrogates pass, so that the document can be named
        except (ValueError, RecursionError):
            raise InvalidRow(f"not JSON: {strict}") from None
    if not isinstance(value, dict):
        raise InvalidRow(f"not a JSON object but {type(value).__name__}")
    wanted = [columns.id, *columns.text_columns, *columns.metadata]
    for name in wanted:
        if type(cell := value.get(name)) in _MAY_BE_GIANT and _is_giant(cell):
            value = json.loads(line, parse_float=_finite)
            break
    for name in wanted:
        if line.count(b'"%b"' % name.encode()) > 1:
            value |= {key: UnrepresentableValue(f"key {key!r} stands twice") for key in _twice(line)}
            break
    return record(columns, value)


_MAY_BE_GIANT = frozenset([float, list, dict])  # asked first, since most cells are strings


def _is_giant(value: object, depth: int = 0) -> bool:
    """Whether there is a number in it that may be a whole one and was made a float."""
    if isinstance(value, float):
        return abs(value) >= EXACT
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth <= NESTING and any(type(item) in _MAY_BE_GIANT and _is_giant(item, depth + 1) for item in inner)


def _finite(text: str) -> float | UnrepresentableValue:
    number = float(text)
    return number if math.isfinite(number) else UnrepresentableValue(f"{text}, a number out of range")


class _Object(dict[str, Any]):
    """An object with the keys that it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.twice = {key for key in self if keys.count(key) > 1} if len(self) < len(keys) else set()


def _twice(line: bytes) -> set[str]:
    """The keys that a line's object has twice."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(line, object_pairs_hook=_Object), _Object):
            return value.twice
    return set()


JSONL = Format(_rows, _parse, keys_of=_keys)
