"""Filters: a mapping of columns to what they may hold, or a condition in SQL, as one condition for Lance. Pure.

A mapping's values are brought to the column's type and written as literals of that type, so none of them acts as SQL. See `Condition`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.types as t

from latent.errors import QueryError

# SQL; or column → what it may hold:
#   a value            equal to it; on a list column: holds it        {"kind": "method", "tags": "hr"}
#   a list             any of these                                   {"acl": ["hr", "all"], "year": [2019, 2020]}
#   None               null                                           {"deleted_at": None}
#   operators          all of them: gt, gte, lt, lte, ne, in, not_in  {"year": {"gte": 2019, "lt": 2021}}
#   a mapping          of a struct column's fields                    {"author": {"name": "Ada"}}, or {"author.name": "Ada"}
# Dates and times are date, datetime or ISO 8601 strings; without an offset they are UTC.
Condition = str | Mapping[str, Any]

COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
OPERATORS = frozenset([*COMPARISONS, "eq", "ne", "in", "not_in"])
SYMBOLS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "=": "eq", "==": "eq", "!=": "ne", "<>": "ne", "$nin": "not_in"}
QUOTED = r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`"
COMMENT = r"--[^\n]*|/\*(?s:.*?)\*/"
LITERAL = r"'(?:[^']|'')*'"
# Longer and deeper conditions end the process within DataFusion: its stack overflows at some 1,000 chained operators, and each nested NOT doubles the time.
MAX_SQL_CHARS = 100_000
MAX_TERM_WORDS = 200  # between two of AND, OR and comma
MAX_BETWEENS = 100
MAX_NESTING = 16
COMPARED = r"=|==|<>|!=|<=|>=|<|>"


def condition(where: Condition, schema: pa.Schema) -> str:
    """One SQL condition over the columns of a table. Raises QueryError for what is none."""
    if isinstance(where, str):
        return _checked(where, schema)
    parts = [_meets(*_resolved(name, schema), value, name) for name, value in where.items()]
    return " AND ".join(f"({part})" for part in parts) or "true"


def _resolved(name: str, schema: pa.Schema) -> tuple[str, pa.DataType]:
    """A column, or the field of a struct column that dots lead to, as SQL names it, and its type."""
    if name in schema.names:
        return _quoted(name), schema.field(name).type
    for column in (column for column in schema.names if name.startswith(f"{column}.") and t.is_struct(schema.field(column).type)):
        path, kind = _quoted(column), schema.field(column).type
        for step in name[len(column) + 1 :].split("."):
            if not t.is_struct(kind) or kind.get_field_index(step) < 0:
                break
            path, kind = f"{path}.{_quoted(step)}", kind.field(step).type
        else:
            return path, kind
    raise QueryError(f"where {name!r:.80}: no such column; columns: {', '.join(n for n in schema.names if n != 'vector')}")


def _quoted(name: str) -> str:
    if "`" in name:
        raise QueryError(f"where {name!r:.80}: no column with a backtick in its name can be filtered by")
    return f"`{name}`"


def _meets(column: str, kind: pa.DataType, value: Any, name: str) -> str:
    if isinstance(value, Mapping):
        if t.is_struct(kind):
            return _struct_meets(column, kind, value, name)
        return " AND ".join(f"({_operated(column, kind, op, operand, name)})" for op, operand in value.items()) or "true"
    return _operated(column, kind, "in" if _is_list(value) else "eq", value, name)


def _struct_meets(column: str, kind: pa.DataType, value: Mapping[str, Any], name: str) -> str:
    parts = []
    for field, wanted in value.items():
        if kind.get_field_index(field) < 0:
            fields = ", ".join(kind.field(i).name for i in range(kind.num_fields))
            raise QueryError(f"where {name}: no field {field!r:.80}; fields: {fields}")
        parts.append(_meets(f"{column}.{_quoted(field)}", kind.field(field).type, wanted, f"{name}.{field}"))
    return " AND ".join(f"({part})" for part in parts) or "true"


def _operated(column: str, kind: pa.DataType, op: str, operand: Any, name: str) -> str:
    """A column under one operator."""
    op = SYMBOLS.get(op, op.removeprefix("$"))
    if op not in OPERATORS:
        raise QueryError(f"where {name}: no operator {op!r:.80}; expected one of {', '.join(sorted(OPERATORS))}")
    if op in {"in", "not_in"} and not _is_list(operand):
        raise QueryError(f"where {name}: {op} expects a list, got {operand!r:.80}")
    if op in COMPARISONS:
        if _is_many(kind) or operand is None or _is_list(operand):
            raise QueryError(f"where {name}: {op} expects one value and a column of single values, got {operand!r:.80} for {kind}")
        return f"{column} {COMPARISONS[op]} {_literal(operand, kind, name)}"
    met = _any_of(column, kind, operand if _is_list(operand) else [operand], name)
    return f"({met}) IS NOT TRUE" if op in {"ne", "not_in"} else met


def _any_of(column: str, kind: pa.DataType, values: Iterable[Any], name: str) -> str:
    """A column that holds one of these, null among them."""
    values = list(values)
    given = [value for value in values if value is not None]
    parts = [f"{column} IS NULL"] if len(given) < len(values) else []
    if any(isinstance(value, float) and math.isnan(value) for value in given) and t.is_floating(kind):
        parts.append(f"isnan({column})")
        given = [value for value in given if not (isinstance(value, float) and math.isnan(value))]
    if given and _is_many(kind):
        parts.append(f"array_has_any({column}, [{', '.join(_literal(value, kind.value_type, name) for value in given)}])")
    elif given:
        parts.append(f"{column} IN ({', '.join(_literal(value, kind, name) for value in given)})")
    return " OR ".join(parts) or "false"


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _is_many(kind: pa.DataType) -> bool:
    return bool(t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind))


# --- literals ---------------------------------------------------------------------------------------------------------


def _literal(value: Any, kind: pa.DataType, name: str) -> str:
    """A value as a literal of a column's type."""
    if t.is_dictionary(kind):
        kind = kind.value_type
    write = next((write for fits, write in WRITERS if fits(kind)), None)
    if write is None:
        raise QueryError(f"where {name}: a column of type {kind} cannot be filtered by a value")
    try:
        return write(value, kind)
    except (TypeError, ValueError, OverflowError, InvalidOperation, AttributeError):
        raise QueryError(f"where {name}: expected {kind}, got {value!r:.80}") from None


def _boolean(value: Any, _: pa.DataType) -> str:
    if not isinstance(value, bool):
        raise TypeError
    return str(value).lower()


def _number(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, bool):
        raise TypeError
    if t.is_integer(kind) and value == int(value):
        value = int(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise OverflowError
        return str(value)
    if t.is_integer(kind) or not math.isfinite(value):
        raise ValueError
    return repr(float(value))


def _decimal(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, bool):
        raise TypeError
    number = Decimal(str(value))
    pa.scalar(number, kind)  # raises where it does not fit
    return f"arrow_cast('{number:f}', 'Decimal128({kind.precision}, {kind.scale})')"


def _string(value: Any, _: pa.DataType) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # raises for half a surrogate pair
    return "'" + value.replace("'", "''") + "'"


def _binary(value: Any, _: pa.DataType) -> str:
    return f"X'{bytes(memoryview(value)).hex()}'"


def _time(value: Any, kind: pa.DataType) -> str:
    if isinstance(value, str):
        value = dt.datetime.fromisoformat(value)
    if not isinstance(value, dt.datetime):
        if not isinstance(value, dt.date):
            raise TypeError
        value = dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001  midnight of the column's own clock
    utc = value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value
    if kind.tz:  # a plain literal is read on the clock of the column's zone, whatever its offset says
        return f"arrow_cast('{utc.isoformat()}Z', 'Timestamp(Microsecond, Some(\"UTC\"))')"
    return f"timestamp '{utc.isoformat()}'"


def _date(value: Any, _: pa.DataType) -> str:
    if (isinstance(value, str) and len(value) > 10) or isinstance(value, dt.datetime):
        return _time(value, pa.timestamp("us"))
    return f"date '{(value if isinstance(value, dt.date) else dt.date.fromisoformat(value)).isoformat()}'"


WRITERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any, pa.DataType], str]], ...] = (
    (t.is_boolean, _boolean),
    (lambda kind: t.is_integer(kind) or t.is_floating(kind), _number),
    (t.is_decimal, _decimal),
    (lambda kind: t.is_string(kind) or t.is_large_string(kind), _string),
    (lambda kind: t.is_binary(kind) or t.is_large_binary(kind), _binary),
    (t.is_timestamp, _time),
    (t.is_date, _date),
)


# --- SQL --------------------------------------------------------------------------------------------------------------


def _checked(where: str, schema: pa.Schema) -> str:
    """A condition in SQL: one only, with ISO 8601 strings as times where they are compared with a column of such.

    It comes in brackets, without comments: Lance's parser takes no notice of what stands after an expression, such as a second condition, or LIMIT 1.
    """
    where = re.sub(f"{QUOTED}|{COMMENT}", lambda found: " " if found[0].startswith(("--", "/*")) else found[0], where)
    outside = re.sub(QUOTED, lambda found: " " * len(found[0]), where)
    end = outside.find(";")
    if end >= 0:
        if where[end + 1 :].strip():
            raise QueryError(f"where {where!r:.200}: expected one condition, got {where[end + 1 :].strip()!r:.80} after ';'")
        where, outside = where[:end], outside[:end]
    _check_size(outside, where)
    temporal = dict(_temporal(schema))
    if not where.strip():
        return where
    if not temporal:
        return f"({where})"
    names = "|".join(sorted(map(re.escape, temporal), key=len, reverse=True))
    column = rf"(?<![\w.`])(?P<{{}}>{names})(?![\w.`])"
    compared = rf"{column.format('left')}(?P<way>\s*(?:{COMPARED})\s*|(?i:\s+(?:NOT\s+)?(?:BETWEEN|IN)\s*\(?\s*))(?P<rest>{LITERAL}(?:\s*(?:,|\b(?i:AND)\b)\s*{LITERAL})*)"
    turned = rf"(?P<first>{LITERAL})(?P<sign>\s*(?:{COMPARED})\s*){column.format('right')}"

    def typed(found: re.Match[str]) -> str:
        if found["left"]:
            literals = re.sub(LITERAL, lambda one: _typed(one[0], temporal[found["left"]]), found["rest"])
            return f"{found['left']}{found['way']}{literals}"
        if found["right"]:
            return f"{_typed(found['first'], temporal[found['right']])}{found['sign']}{found['right']}"
        return found[0]

    return f"({re.sub(f'{turned}|{compared}|{QUOTED}', typed, where)})"


def _check_size(outside: str, where: str) -> None:
    """Raises QueryError for a condition that is too long, too deep, or closes what it has not opened. `outside`: without what is quoted."""
    words = max(len(re.findall(r"\w+|[^\w\s]", term)) for term in re.split(r"(?i:\b(?:and|or)\b)|,", outside))
    depths = list(itertools.accumulate((c in "([") - (c in ")]") for c in outside))
    if min(depths, default=0) < 0:
        raise QueryError(f"where {where!r:.200}: expected an opening bracket for each closing one, got one without")
    for what, got, most in (
        ("characters", len(where), MAX_SQL_CHARS),
        ("words between two of AND, OR and comma", words, MAX_TERM_WORDS),
        ("times BETWEEN", len(re.findall(r"(?i:\bbetween\b)", outside)), MAX_BETWEENS),
        ("nested brackets", max(depths, default=0), MAX_NESTING),
    ):
        if got > most:
            raise QueryError(f"where {where[:80]!r}…: {got:,} {what}, wanted {most:,} at most")


def _temporal(schema: pa.Schema) -> Iterable[tuple[str, pa.DataType]]:
    """Columns of times and fields of struct columns, by each way of writing them."""
    for field in schema:
        yield from _temporal_field(field.name, f"`{field.name}`", field.type)


def _temporal_field(plain: str, quoted: str, kind: pa.DataType) -> Iterable[tuple[str, pa.DataType]]:
    if t.is_timestamp(kind) or t.is_date(kind):
        yield plain, kind
        yield quoted, kind
    if t.is_struct(kind):
        for field in kind:
            yield from _temporal_field(f"{plain}.{field.name}", f"{quoted}.`{field.name}`", field.type)


def _typed(literal: str, kind: pa.DataType) -> str:
    """A quoted string as a literal of a column's type; as it is where it is no time."""
    try:
        return (_date if t.is_date(kind) else _time)(literal[1:-1], kind)
    except ValueError:
        return literal
