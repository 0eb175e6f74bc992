"""Any value of a table → JSON that every strict parser reads.

| value | JSON |
|---|---|
| NaN, infinity | null |
| bytes | text in base64 (RFC 4648) |
| date, time, timestamp | text in ISO 8601 |
| duration | text in ISO 8601, such as P1DT2.5S |
| decimal | text with all its digits |
| UUID, path | text |
| dataclass, mapping | object, its keys as text |
| list, tuple, set, array | array |

Only ASCII is written, so that the answer is valid on an output of any encoding. A lone surrogate, which no encoding takes, becomes U+FFFD.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

_SURROGATE = re.compile("[\ud800-\udfff]")


def to_json(value: object) -> str:
    """The value as one line of JSON. What has no form in JSON is written as its text."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    """The value in types of JSON."""
    match value:
        case Mapping():
            return {_key(key): _plain(each) for key, each in value.items()}
        case list() | tuple() | AbstractSet():
            return [_plain(each) for each in value]
        case np.ndarray() | np.bool_() | np.integer():
            return _plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case str():
            return _well_formed(value)
        case float() | np.floating():
            return float(value) if math.isfinite(value) else None
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case dt.date() | dt.time():
            return value.isoformat()
    return _plain(to_jsonable_python(value, timedelta_mode="iso8601", inf_nan_mode="null", fallback=str))


def _key(key: object) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _well_formed(text: str) -> str:
    """The text, each surrogate that is half of no pair replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if _SURROGATE.search(text) else str(text)
