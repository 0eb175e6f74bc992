"""What documents say, made harmless on a terminal, in Markdown and in JSON."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import re
import sys
import unicodedata
import uuid
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent.flows.reports import summary
from latent.rendering import LineFormatter, markdown_text, printable, printable_line
from latent.serialization import to_json
from latent.types import ChunkCounts, DocumentCounts, Report

# Format characters that show something: number signs of Arabic, Syriac and Kaithi, and what arranges hieroglyphs.
VISIBLE_FORMATS = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
JOINERS = {0x200C, 0x200D}
HOSTILE = "".join(
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) in {"Cc", "Cf", "Zl", "Zp", "Cs"} and chr(code) != "\n"
)
texts = st.text(st.one_of(st.characters(), st.characters(codec=None, categories=["Cs"]), st.sampled_from(HOSTILE)), max_size=40)


def acts(character: str) -> bool:
    """Whether the character does something to a terminal instead of showing something."""
    return unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp", "Cs"} and ord(character) not in VISIBLE_FORMATS | JOINERS


@given(texts)
def test_printable_text_holds_no_character_that_acts(text: str) -> None:
    assert not [character for character in printable(text) if acts(character) and character != "\n"]
    assert not [character for character in printable_line(text) if acts(character)]
    printable_line(text).encode("utf-8")
    assert printable(printable(text)) == printable(text)


def test_every_character_that_acts_becomes_visible_and_no_other_is_changed() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if acts(character) and character not in "\t\n":
            assert printable(f"a{character}b") not in (f"a{character}b", "ab"), hex(code)
        elif unicodedata.category(character)[0] in "LNPS" and code not in {
            0x115F,
            0x1160,
            0x3164,
            0xFFA0,
        }:  # letters that show nothing
            assert printable(character) == character, hex(code)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("txt\u202egpj.exe", "txt\\u202egpj.exe"),
        ("pay\u200bpal", "pay\\u200bpal"),
        ("pay\u200dpal", "pay\\u200dpal"),
        ("\udcff.md", "\\udcff.md"),
        ("a\r\nb\rc\u2028d", "a\nb\\rc\\u2028d"),
        ("a\tb", "a    b"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👩\u200d🔬 नमस्ते", "👩\u200d🔬 नमस्ते"),
        ("[/b] [optional] :smile:", "[/b] [optional] :smile:"),
    ],
)
def test_what_acts_is_shown_by_its_code_and_what_writes_stays(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_line_is_one_line_whatever_it_quotes() -> None:
    record = logging.LogRecord("latent", logging.INFO, "x", 1, "read %s", ("a\n12:00 forged \x1b[2J",), None)
    assert LineFormatter("%(message)s").format(record) == "read a\\n12:00 forged \\x1b[2J"


@given(texts)
def test_markdown_text_is_one_line_without_markup(text: str) -> None:
    shown = markdown_text(text)
    assert not [character for character in shown if acts(character) or character == "\n"]
    rest = shown.replace("\\\\", "")
    assert all(rest[i - 1] == "\\" for i, character in enumerate(rest) if character in "`*_[]<>|#&$")


def test_markdown_links_and_html_of_a_document_are_shown_as_written() -> None:
    assert markdown_text("[x](javascript:1) <b>&lt; https://a www.b\n| c") == (
        "\\[x\\](javascript\\:1) \\<b\\>\\&lt; https\\://a www\\.b \\| c"
    )


def test_a_report_of_a_run_shows_reasons_and_paths_as_text() -> None:
    hostile = "**bold** | <img src=x> [a](b)\n# title \x1b[2J\udcff"
    report = Report("run", 1, DocumentCounts(quarantined=1), ChunkCounts(), 0, 0.0, 0.0, reasons={hostile: 1})
    shown = summary("docs", report, hostile, None)
    shown.encode("utf-8")
    assert "\n# title" not in shown
    assert not re.search(r"(?<!\\)(\*\*|<img|\[a\]|\x1b)", shown)
    assert sum(line.startswith("|") and line.count("|") - line.count("\\|") != 3 for line in shown.splitlines()) == 0


numbers = st.one_of(
    st.floats(),
    st.integers(),
    st.decimals(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.booleans(),
)
scalars = st.one_of(
    numbers, texts, st.binary(max_size=9), st.none(), st.datetimes(), st.dates(), st.times(), st.timedeltas(), st.uuids()
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.one_of(texts, st.integers()), inner, max_size=4)
    ),
    max_leaves=12,
)


def refuse(constant: str) -> None:
    raise ValueError(constant)


@given(values)
def test_every_value_becomes_json_of_ascii_that_strict_parsers_read(value: object) -> None:
    text = to_json({"value": value})
    assert text.isascii()
    assert "\n" not in text
    json.loads(text, parse_constant=refuse)
    orjson.loads(text)  # refuses a lone surrogate too


@dataclass(frozen=True)
class Row:
    name: str
    inner: tuple[object, ...]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        ([math.inf, {"a": -math.inf}], [None, {"a": None}]),
        (np.float32("nan"), None),
        (np.longdouble(1.5), 1.5),
        (b"ab\xff\xfe", "YWL//g=="),
        (Decimal("1.10"), "1.10"),
        (12345678901234567890123, 12345678901234567890123),
        (dt.date(2026, 11, 27), "2026-11-27"),
        (dt.datetime(2026, 11, 27, 2, tzinfo=dt.UTC), "2026-11-27T02:00:00+00:00"),
        (dt.timedelta(days=1, seconds=2.5), "P1DT2.5S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("\ud83d\ude00 \ud800", "😀 �"),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
        ([("key", 1)], [["key", 1]]),
        (np.array([1.5, math.nan]), [1.5, None]),
        (np.datetime64("2026-11-27T02:00:00.000000001"), "2026-11-27T02:00:00.000000001"),
        (Row("a", (b"b", Row("c", ()))), {"name": "a", "inner": ["Yg==", {"name": "c", "inner": []}]}),
        (Path("a/b"), "a/b"),
    ],
)
def test_values_have_one_form_in_json(value: object, written: object) -> None:
    assert json.loads(to_json(value)) == written
