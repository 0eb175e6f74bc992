"""Values of a source in a column of a type: the same value, or a misfit, never another value."""

# ruff: noqa: DTZ001, C901, PLR0911, PLR0912  (times without a zone are what is tried; the oracle is one ladder on purpose)

from __future__ import annotations

import datetime as dt
import math
import uuid
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent.sources.values import convert

UTC = dt.UTC
SCALARS = [
    *(pa.bool_(), pa.int8(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal128(10, 2), pa.decimal128(38, 0), pa.decimal256(60, 20), pa.string(), pa.binary(), pa.binary(4)),
    *(
        pa.timestamp("s"),
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us"),
        pa.timestamp("us", "Europe/Berlin"),
        pa.date32(),
        pa.date64(),
    ),
    *(pa.time32("s"), pa.time64("us"), pa.duration("s"), pa.duration("us")),
]
kinds = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda kind: pa.list_(kind, 2)),
        st.dictionaries(st.sampled_from("ab"), inner, min_size=1).map(lambda d: pa.struct(list(d.items()))),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
    ),
    max_leaves=3,
)
edges = st.sampled_from(
    [
        0,
        1,
        -1,
        2,
        127,
        128,
        2**31,
        2**53,
        2**53 + 1,
        2**63,
        2**64,
        10**23,
        0.0,
        -0.0,
        1.0,
        2.5,
        4.9,
        0.1,
        1e16,
        1e300,
        math.inf,
        math.nan,
        True,
        False,
        Decimal("1.10"),
        Decimal("1.105"),
        Decimal(5),
        "4.9",
        "5",
        "5.0",
        "007",
        "+5",
        " 5 ",
        "1_0",
        "1e5",
        "٣",
        "-0",
        "nan",
        "1.10",
        "true",
        "True",
        "",
        "x�",
        b"5",
        b"\xff",
        b"\x00abc",
        "2024-01-01",
        "2024-01-01T00:00:00",
        "2024-01-01T00:00:00Z",
        "2024-01-01T00:00:00.1234567",
        "12:00",
        "12:00:00.0000001",
        dt.date(2024, 1, 1),
        dt.time(1, 2, 3, 4),
        dt.timedelta(microseconds=5),
        dt.datetime(2024, 1, 1),
        dt.datetime(2024, 1, 1, 0, 0, 0, 5),
        dt.datetime(2024, 1, 1, tzinfo=UTC),
        uuid.UUID(int=7),
        1700000000,
        dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    ]
)
scalars = st.one_of(
    *(edges, st.none(), st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.binary(max_size=5), st.datetimes()),
    *(st.dates(), st.times(), st.timedeltas(), st.decimals(allow_nan=False, allow_infinity=False), st.uuids()),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=4
)


def means(stored: object, given: object, kind: pa.DataType) -> bool:
    """Whether a stored value says what was given: told apart from `convert` by hand, a type at a time."""
    if given is None or (isinstance(given, dict | list) and not given and not isinstance(stored, dict | list)):
        return stored is None
    if pa.types.is_struct(kind):
        return (given == [] and stored is None) or (
            all(means(stored[f.name], given.get(f.name), f.type) for f in kind)
            and all(key in {f.name for f in kind} or inner in (None, {}, []) for key, inner in given.items())
        )
    if pa.types.is_map(kind):
        pairs = list(given.items()) if isinstance(given, dict) else given
        return len(pairs) == len(stored) and all(
            a[0] == b[0] and means(a[1], b[1], kind.item_type) for a, b in zip(stored, pairs, strict=False)
        )
    if pa.types.is_nested(kind):
        return (
            isinstance(given, list)
            and len(given) == len(stored)
            and all(means(a, b, kind.value_type) for a, b in zip(stored, given, strict=False))
        )
    if isinstance(given, bytes):
        return stored == given or means(stored, given.decode(), kind)
    if isinstance(stored, bool) or isinstance(given, bool):
        return stored is given or (str(given).lower() == str(stored).lower() and isinstance(given, str) ^ isinstance(stored, str))
    if isinstance(stored, str):
        written = (
            given.isoformat()
            if isinstance(given, dt.date | dt.time)
            else format(given, "f")
            if isinstance(given, Decimal)
            else str(given)
        )
        return stored == written
    if isinstance(stored, bytes):
        return stored == (given.bytes if isinstance(given, uuid.UUID) else given.encode())
    if isinstance(given, str):  # written the same again
        narrow = (
            {16: np.float16, 32: np.float32}.get(getattr(kind, "bit_width", 0), float)
            if pa.types.is_floating(kind)
            else lambda v: v
        )
        if isinstance(stored, int | float | Decimal):
            return given in {str(narrow(stored)), str(narrow(stored)).removesuffix(".0") if stored else "0"}
        parsed = type(stored).fromisoformat(given)
        digits = given.partition(".")[2].rstrip("Z").rstrip("0")
        return parsed == stored and len(digits) <= 6 and (not isinstance(stored, dt.datetime) or "T" in given or " " in given)
    if isinstance(given, float) and math.isnan(given):
        return isinstance(stored, float) and math.isnan(stored)
    if isinstance(given, dt.datetime):
        if not isinstance(stored, dt.datetime) or (given.tzinfo is None) != (stored.tzinfo is None):
            return False
        return stored == given if given.tzinfo is None else stored.timestamp() == given.timestamp()
    return (type(stored) is type(given) and stored == given) or (
        isinstance(stored, int | float | Decimal) and isinstance(given, int | float | Decimal) and stored == given
    )


# 20 s: some thousand pairs of a type and values
@settings(max_examples=1500, deadline=None)
@given(kind=kinds, given_values=st.lists(values, min_size=1, max_size=4))
def test_a_stored_value_is_the_given_one_or_the_value_is_a_misfit(kind, given_values):
    got = convert(given_values, kind)
    assert got.array.type == kind
    stored = got.array.to_pylist()
    for i, value in enumerate(given_values):
        if i in got.misfits:
            assert stored[i] is None
        else:
            assert means(stored[i], value, kind), (stored[i], value, kind)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(SCALARS), given_values=st.lists(scalars, min_size=1, max_size=4))
def test_a_value_is_a_misfit_or_not_whatever_its_neighbours(kind, given_values):
    alone = {i for i, value in enumerate(given_values) if convert([value], kind).misfits}
    assert set(convert(given_values, kind).misfits) == alone


STRUCT, LISTS = pa.struct([("k", pa.int64())]), pa.list_(pa.int64())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(
            (pa.int64(), value)
            for value in (4.9, True, "4.9", "+5", "007", Decimal("1.10"), dt.timedelta(1), 2**63, math.nan, "1e3")
        ),
        *((pa.int32(), value) for value in (2**31, 1e10)),
        *((pa.bool_(), value) for value in (5, 0.5, 1, 0, "1", "yes")),
        *((LISTS, value) for value in ([2.7], [True], 5, "5", [["5"]], {"k": 1})),
        *((STRUCT, value) for value in ({"k": 2.7}, {"k": True}, {"k": 1, "j": 2}, [("k", 1)], 5)),
        *((pa.map_(pa.string(), pa.int64()), value) for value in ({"a": 1.5}, {"a": True}, [["a", 1]])),
        *((pa.float64(), value) for value in (2**53 + 1, True, Decimal("0.1"), "3.10", "1e5", "1_000", " 5 ", "٣", "-0")),
        *((pa.float32(), value) for value in (0.1, 1e300, 2**24 + 1)),
        *((pa.decimal128(10, 2), value) for value in (1.1, Decimal("1.105"), "1.1", True, Decimal("1e9"))),
        *((pa.timestamp("us"), value) for value in (1_700_000_000, 1.5, dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=UTC))),
        *((pa.timestamp("us", "UTC"), value) for value in (dt.datetime(2024, 1, 1), "2024-01-01", "2024-01-01T00:00:00")),
        (pa.timestamp("s"), dt.datetime(2024, 1, 1, 0, 0, 0, 1)),
        (pa.timestamp("us"), "2024-01-01T00:00:00.1234567"),
        *((pa.date32(), value) for value in (dt.datetime(2024, 1, 1, 12), dt.datetime(2024, 1, 1), 19_000, "2024-1-1")),
        *((pa.duration("us"), value) for value in (5, "5")),
        *((pa.string(), value) for value in ([1], {"k": 1}, b"\xff", "\ud800")),
        (pa.binary(4), b"abc"),
    ],
    ids=str,
)
def test_a_value_that_the_column_would_alter_is_a_misfit(kind, value):
    got = convert([value], kind)
    assert (got.array.to_pylist(), list(got.misfits)) == ([None], [0])


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    [
        *((pa.int64(), value, 5) for value in (5.0, "5", b"5", Decimal("5.00"))),
        *((pa.float64(), value, 5.0) for value in (5, "5", "5.0", b"5", Decimal(5))),
        (pa.float32(), "0.1", float(np.float32(0.1))),
        (LISTS, [2.0, "3", None], [2, 3, None]),
        (STRUCT, {"k": 2.0, "none": None, "empty": {}}, {"k": 2}),
        (STRUCT, {}, {"k": None}),
        (pa.int64(), {}, None),
        (pa.decimal128(10, 2), "1.10", Decimal("1.10")),
        (pa.decimal128(10, 2), 0.5, Decimal("0.50")),
        (pa.timestamp("us"), "2024-01-01 12:00", dt.datetime(2024, 1, 1, 12)),
        (pa.timestamp("us", "UTC"), b"2024-01-01T02:00:00+02:00", dt.datetime(2024, 1, 1, tzinfo=UTC)),
        (pa.date32(), "2024-01-01", dt.date(2024, 1, 1)),
        (pa.string(), uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (pa.string(), 10**23, "1" + "0" * 23),
        (pa.string(), Decimal("1.10"), "1.10"),
        (pa.string(), True, "true"),
        (pa.bool_(), "false", False),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_stored_where_it_is_the_same(kind, value, stored):
    got = convert([value], kind)
    assert (got.array.to_pylist(), got.stored, got.misfits) == ([stored], [stored], {})
