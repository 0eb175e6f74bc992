"""Values of a source → a column of the table's type. A value that the column would hold as another one is a misfit.

Arrow converts without a word: 4.9 to 4, true to 1, a number to a time in 1970. So each type has a rule for what it takes, and what Arrow
makes of a value is compared with it. Strings fit a type where it would write them the same again. Cost: 0.1 µs a value whose Python type is
the column's own, about 1 µs otherwise.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import functools
import math
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

# What Python and Arrow raise for a value that does not fit a type.
UNFIT = (pa.ArrowException, ArithmeticError, ValueError, TypeError, LookupError, RecursionError)
Rule = Callable[[Any], Any]  # a value as Arrow shall get it; raises one of UNFIT

WHOLE = re.compile(r"-?[1-9][0-9]{0,19}|0")
PLAIN_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# Python cuts what is finer than a microsecond off; so it must be zeros.
TIME = re.compile(r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6}0*)?)?")
TIMESTAMP = re.compile(rf"{DATE.pattern}[T ]{TIME.pattern}(Z|[+-][0-9]{{2}}:?[0-9]{{2}})?")
DIGITS = decimal.Context(prec=80)  # Arrow's decimals have 76


class Converted(NamedTuple):
    """Values as a column."""

    array: pa.Array
    stored: list[Any]  # the same, as Python has them
    misfits: dict[int, object]  # position → value that does not fit; null in the column


def convert(values: Sequence[object], kind: pa.DataType) -> Converted:
    """The values as a column of this type. An object or list without content is null where the type holds none."""
    if set(map(type, values)) <= {type(None), _OWN.get(kind)}:
        with contextlib.suppress(*UNFIT):
            return Converted(pa.array(values, kind), list(values), {})
    rule, misfits, fitted = rule_of(kind), dict[int, object](), list[Any]()
    for i, value in enumerate(values):
        try:
            fitted.append(rule(value))
        except UNFIT:
            misfits[i] = value
            fitted.append(None)
    with contextlib.suppress(*UNFIT):
        array = pa.array(fitted, kind)
        stored = array.to_pylist()
        if stored == fitted:
            return Converted(array, stored, misfits)
    singles = [_stored(value, kind) for value in fitted]
    misfits |= {i: values[i] for i, single in enumerate(singles) if single is None}
    array = pa.concat_arrays([pa.nulls(1, kind) if single is None else single for single in singles])
    return Converted(array, array.to_pylist(), dict(sorted(misfits.items())))


# Types whose values in Python are exactly those of one class.
_OWN = {pa.bool_(): bool, pa.int64(): int, pa.float64(): float, pa.string(): str}


def _stored(value: object, kind: pa.DataType) -> pa.Array | None:
    """One value as a column, None where Arrow makes another of it or none."""
    with contextlib.suppress(*UNFIT):
        array = pa.array([value], kind)
        if _same(array.to_pylist()[0], value):
            return array
    return None


def _same(stored: Any, value: Any) -> bool:
    if isinstance(value, list):
        return isinstance(stored, list) and len(stored) == len(value) and all(map(_same, stored, value))
    if isinstance(value, tuple):
        return isinstance(stored, tuple) and all(map(_same, stored, value))
    if isinstance(value, dict):
        return isinstance(stored, dict) and all(_same(stored.get(key), inner) for key, inner in value.items())
    if isinstance(value, float) and math.isnan(value):
        return isinstance(stored, float) and math.isnan(stored)
    if isinstance(value, dt.datetime) and value.tzinfo:  # by instant: == calls a repeated hour of two zones unequal
        return bool(isinstance(stored, dt.datetime) and stored.astimezone(dt.UTC) == value.astimezone(dt.UTC))
    return bool(stored == value)


@functools.lru_cache(maxsize=256)
def rule_of(kind: pa.DataType) -> Rule:
    """What a type takes."""
    holds_lists = pa.types.is_nested(kind)
    rule = next(make for holds, make in _RULES if holds(kind))(kind)

    def fitted(value: Any) -> Any:
        if value is None or (isinstance(value, dict | list) and not value and not (holds_lists and _is_own(value, kind))):
            return None
        return rule(value)

    return fitted


def _is_own(value: object, kind: pa.DataType) -> bool:
    """Whether an empty object or list is one of a nested type's own values."""
    keyed = pa.types.is_struct(kind) or pa.types.is_map(kind)
    return isinstance(value, dict) == keyed or bool(pa.types.is_map(kind))


# --- one rule a type ------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """Strings of Parquet come as bytes."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    raise TypeError


def _matching(value: Any, pattern: re.Pattern[str]) -> str:
    text = _text(value)
    if not pattern.fullmatch(text):
        raise ValueError
    return text


def _boolean(_: pa.DataType) -> Rule:
    spelled = {"true": True, "false": False, "True": True, "False": False}  # as JSON and as Python write them
    return lambda value: value if isinstance(value, bool) else spelled[_text(value)]


def _whole(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, int):
            return value
        if isinstance(value, float | decimal.Decimal):
            if value != (whole := int(value)):
                raise ValueError
            return whole
        return int(_matching(value, WHOLE))

    return fitted


def _float(kind: pa.DataType) -> Rule:
    narrow: Any = {16: np.float16, 32: np.float32}.get(kind.bit_width, float)

    def fitted(value: Any) -> float:
        if isinstance(value, bytes | str):
            text = _text(value)
            with np.errstate(over="ignore"):
                number = narrow(text)
            if text not in writings(number):
                raise ValueError
            return float(number)
        if isinstance(value, bool) or not isinstance(value, float | int | decimal.Decimal):
            raise TypeError
        number = float(value)
        if number != value and not math.isnan(number):
            raise ValueError
        return number

    return fitted


def writings(number: float | np.floating[Any]) -> tuple[str, str]:
    """The two ways in which programs write a number: 3.0 as Python does, 3 as JavaScript does."""
    text = str(number)
    short = text.removesuffix(".0")
    return text, text if short == "-0" else short


def _decimal(kind: pa.DataType) -> Rule:
    unit = decimal.Decimal(1).scaleb(-kind.scale)

    def fitted(value: Any) -> decimal.Decimal:
        if isinstance(value, bool):
            raise TypeError
        text = _matching(value, PLAIN_DECIMAL) if isinstance(value, bytes | str) else None
        given = decimal.Decimal(value if text is None else text)
        number = given.quantize(unit, context=DIGITS)
        if number != given or text not in {None, format(number, "f")}:
            raise ValueError
        return number

    return fitted


def _string(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> str:
        for kinds, write in _WRITERS:
            if isinstance(value, kinds):
                text = write(value)
                text.encode()  # no lone surrogates
                return text
        raise TypeError

    return fitted


# How a column of strings writes what is none; the first that fits.
_WRITERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str]], ...] = (
    ((bytes, str), _text),
    (bool, lambda value: str(value).lower()),
    ((int, float, uuid.UUID), str),
    (decimal.Decimal, lambda value: format(value, "f")),
    ((dt.date, dt.time), lambda value: value.isoformat()),
)


def _bytes(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> bytes:
        if isinstance(value, uuid.UUID):
            return value.bytes
        return value if isinstance(value, bytes) else _text(value).encode()

    return fitted


def _timestamp(kind: pa.DataType) -> Rule:
    def fitted(value: Any) -> dt.datetime:
        time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(_matching(value, TIMESTAMP))
        if (time.tzinfo is None) != (kind.tz is None):
            raise ValueError
        return time if time.tzinfo is None else time.astimezone(dt.UTC)

    return fitted


def _date(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> dt.date:
        if isinstance(value, dt.datetime):
            raise TypeError
        return value if isinstance(value, dt.date) else dt.date.fromisoformat(_matching(value, DATE))

    return fitted


def _time(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> dt.time:
        time = value if isinstance(value, dt.time) else dt.time.fromisoformat(_matching(value, TIME))
        if time.tzinfo:
            raise ValueError
        return time

    return fitted


def _duration(_: pa.DataType) -> Rule:
    def fitted(value: Any) -> dt.timedelta:
        if not isinstance(value, dt.timedelta):
            raise TypeError
        return value

    return fitted


def _struct(kind: pa.DataType) -> Rule:
    rules = {field.name: rule_of(field.type) for field in kind}

    def fitted(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError
        if any(key not in rules and inner not in (None, {}, []) for key, inner in value.items()):
            raise ValueError
        return {key: rule(value.get(key)) for key, rule in rules.items()}

    return fitted


def _map(kind: pa.DataType) -> Rule:
    key_rule, item_rule = rule_of(kind.key_type), rule_of(kind.item_type)

    def fitted(value: Any) -> list[tuple[Any, Any]]:
        pairs = list(value.items()) if isinstance(value, dict) else value
        if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
            raise TypeError
        return [(key_rule(key), item_rule(item)) for key, item in pairs]

    return fitted


def _list(kind: pa.DataType) -> Rule:
    rule = rule_of(kind.value_type)

    def fitted(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError
        return [rule(item) for item in value]

    return fitted


def _other(_: pa.DataType) -> Rule:
    return lambda value: value


_RULES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], Rule]], ...] = (
    (pa.types.is_boolean, _boolean),
    (pa.types.is_integer, _whole),
    (pa.types.is_floating, _float),
    (pa.types.is_decimal, _decimal),
    (lambda kind: kind in (pa.string(), pa.large_string(), pa.string_view()), _string),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind), _bytes),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_date, _date),
    (pa.types.is_time, _time),
    (pa.types.is_duration, _duration),
    (pa.types.is_struct, _struct),
    (pa.types.is_map, _map),
    (pa.types.is_nested, _list),
    (lambda _: True, _other),
)
