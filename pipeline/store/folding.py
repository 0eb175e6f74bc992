"""Text as the full-text index takes it: one form of each word, in every script. Pure.

Passages and queries are folded alike, so that 'brulee' finds 'brûlée', NFD text finds NFC, 'ﬁnance' and 'ＡＢＣ' are found as they are typed, and a
soft hyphen or a vowel point stands in no word's way. Scripts that set no spaces between words (Chinese, Japanese, Thai …) and Korean, which joins
particles to them, become pairs of neighboring characters: a dictionary cuts 清华大学 and 情報処理 so that 大学 and 情報 are not found (measured: 17
of 67 words in 13 sentences), pairs find each string that stands in the text. Costs 0.02 µs a character of
English, 0.5 µs of Chinese.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable

# Marks that a reader may leave out: accents, and the points of Hebrew, Arabic and Syriac. Not those that make another letter: voiced kana, vowels, viramas.
OPTIONAL_MARK_CLASSES = frozenset([*range(10, 37), *range(202, 241)])
_MARKS = "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.combining(c) in OPTIONAL_MARK_CLASSES)
OPTIONAL_MARKS = re.compile(f"(?!(?<=и)\u0306)[{re.escape(_MARKS)}]")  # й is no и: stems depend on it

# Letters that Unicode does not decompose, and other forms of a letter.
LETTERS = str.maketrans(
    {"ı": "i", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe"}
    | {"ى": "ي", "ی": "ي", "ک": "ك", "ة": "ه", "ـ": None}
)
CJK = "\u1100-\u11ff\u3005-\u3007\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
SOUTH_EAST_ASIAN = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
SPACELESS = re.compile(f"[{CJK}]+|[{SOUTH_EAST_ASIAN}]+")
ASCII_WORDS = str.maketrans({chr(i): " " for i in range(128) if not chr(i).isalnum()})


def _separators() -> dict[int, str | None]:
    """What stands between words becomes a space; format characters such as the soft hyphen vanish, but for the space of no width."""
    table: dict[int, str | None] = {}
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))
        if kind == "Cf":
            table[code] = " " if code == 0x200B else None
        elif kind[0] in "PSZC" and kind not in {"Cs", "Co", "Cn"}:
            table[code] = " "
        elif kind == "Nd" and code > 0x7F:
            table[code] = str(unicodedata.decimal(chr(code)))
    return table


SEPARATORS = _separators()
_CUT = "".join(re.escape(c) for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M" and not c.isalpha())
CUT = re.compile(f"[{_CUT}]")  # Lance's tokenizer cuts words of Indic scripts at such marks
WORDS_KEPT, KEPT_CHARS = 20_000, 32  # a few MB


def folded(text: str) -> str:
    """The text in lower case, without compatibility forms, format characters, punctuation, accents and optional points."""
    return _by_word(text, _folded_word)


def index_form(text: str, *, accents: bool) -> str:
    """A passage as the index takes it. `accents`: words are there both with and without them, since stems of the language depend on them."""
    return _by_word(text, _indexed_accents if accents else _indexed)


def query_form(text: str, *, accents: bool) -> str:
    """A query as the index is asked it."""
    return _by_word(text, _asked_accents if accents else _asked)


def _by_word(text: str, form: Callable[[str], str]) -> str:
    """The text with each word in its form. Most words are ASCII, or were met before."""
    if text.isascii():
        return text.translate(ASCII_WORDS).lower()
    return " ".join(word.translate(ASCII_WORDS).lower() if word.isascii() else form(word) for word in text.split())


def _normalized_word(word: str) -> str:
    """Lower case, without compatibility forms, format characters and punctuation; accents stay."""
    plain = unicodedata.normalize("NFKC", word).casefold().translate(SEPARATORS)
    return unicodedata.normalize("NFKC", plain)


def _bare(plain: str) -> str:
    """Without accents and optional points."""
    if plain.isascii():
        return plain
    return unicodedata.normalize("NFC", OPTIONAL_MARKS.sub("", unicodedata.normalize("NFD", plain))).translate(LETTERS)


def _with_accents(word: str) -> str:
    """Each word, and its bare form where that is another."""
    forms = ((part, _bare(part)) for part in _normalized_word(word).split())
    return " ".join(part if part == bare else f"{part} {bare}" for part, bare in forms)


def _kept(form: Callable[[str], str]) -> Callable[[str], str]:
    """A form that remembers words, but not the clauses of scripts without spaces."""
    remembered = functools.lru_cache(WORDS_KEPT)(form)
    return lambda word: remembered(word) if len(word) <= KEPT_CHARS else form(word)


@_kept
def _folded_word(word: str) -> str:
    return _bare(_normalized_word(word))


@_kept
def _indexed(word: str) -> str:
    return _spaced(_folded_word(word), characters=True)


@_kept
def _indexed_accents(word: str) -> str:
    return _spaced(_with_accents(word), characters=True)


def _asked(word: str) -> str:
    return _spaced(_folded_word(word), characters=False)


def _asked_accents(word: str) -> str:
    return _spaced(_with_accents(word), characters=False)


def _spaced(text: str, *, characters: bool) -> str:
    """Text whose scripts without spaces are pairs of characters; in a passage also `characters`, for queries of one."""
    if text.isascii():
        return text
    spaced = SPACELESS.sub(lambda run: _pairs(run[0], characters=characters), text)
    return spaced if spaced.isascii() else " ".join(_token(word) if CUT.search(word) else word for word in spaced.split())


def _pairs(run: str, *, characters: bool) -> str:
    codes = [_code(character) for character in run]
    pairs = [f"{one}{other}q" for one, other in itertools.pairwise(codes)]
    if characters or not pairs:
        pairs += [f"{code}q" for code in codes]
    return f" {' '.join(pairs)} "


def _token(characters: str) -> str:
    """A word of ASCII for them, which no tokenizer cuts and no stemmer shortens."""
    return "".join(map(_code, characters)) + "q"


@functools.cache
def _code(character: str) -> str:
    return f"q{ord(character):x}"
