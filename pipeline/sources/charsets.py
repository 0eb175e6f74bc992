"""Bytes → text, where they are text: UTF-8, UTF-16 and UTF-32 with a mark, ISO-2022-JP, and what charset-normalizer detects without a rival."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from typing import NamedTuple

from charset_normalizer import from_bytes

HEAD_BYTES = 16
DETECTION_BYTES = 1 << 20  # of a file; detection reads it once for each of some 90 encodings
JAPANESE_MAIL = re.compile(rb"\x1b\$[@AB]")  # where ISO-2022-JP turns to two bytes a character; all of them are valid UTF-8 too
NUL = "not text: it holds NUL characters"


class Mark(NamedTuple):
    """The byte order mark that a text begins with."""

    mark: bytes
    encoding: str


MARKS = (
    Mark(codecs.BOM_UTF8, "utf-8"),
    Mark(codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's does
    Mark(codecs.BOM_UTF32_BE, "utf-32-be"),
    Mark(codecs.BOM_UTF16_LE, "utf-16-le"),
    Mark(codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What files that are no text begin with; no text begins so.
SIGNATURES = {
    rb"PK(\x03\x04|\x05\x06|\x07\x08)": "a ZIP archive or office document",
    rb"%PDF-\d": "a PDF",
    rb"\x89PNG\r\n": "a PNG image",
    rb"\xff\xd8\xff": "a JPEG image",
    rb"GIF8[79]a": "a GIF image",
    rb"RIFF.{4}(WEBP|WAVE|AVI )": "a RIFF file",
    rb"\x1f\x8b": "gzip",
    rb"BZh[1-9]1AY&SY": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an office document",
    rb"\x7fELF": "a program",
    rb"SQLite format 3\x00": "a SQLite database",
    rb"PAR1[\x00-\x1f\x80-\xff]": "Parquet",
}


def mark_of(head: bytes) -> Mark | None:
    """The byte order mark, if there is one."""
    return next((mark for mark in MARKS if head.startswith(mark.mark)), None)


def no_text(head: bytes) -> str | None:
    """Why what begins so is no text."""
    for signature, kind in SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return f"not text: it is {kind}"
    return NUL if b"\0" in head[:4] else None  # UTF-16 and UTF-32 without a mark


def decode(data: bytes) -> str:
    """The text, without its mark. Raises ValueError with the reason where it is none, or in an encoding that is not sure."""
    if mark := mark_of(data[:HEAD_BYTES]):
        try:
            return data[len(mark.mark) :].decode(mark.encoding)
        except UnicodeError as error:
            raise ValueError(f"text is not {mark.encoding.upper()}, as its mark says: {error}") from None
    if reason := no_text(data[:HEAD_BYTES]) or (NUL if b"\0" in data else None):
        raise ValueError(reason)
    if JAPANESE_MAIL.search(data):
        with contextlib.suppress(UnicodeError):
            return data.decode("iso2022_jp_2")
    try:
        return data.decode()
    except UnicodeError as error:
        if (text := _detected(data)) is not None:
            return text
        raise ValueError(f"text is not UTF-8: {error}: save it as UTF-8") from None


def _detected(data: bytes) -> str | None:
    """The text in the one encoding that it can be in, None where there are several or none.

    Two encodings that give the same text are one. A text is believed only where the library knows its language.
    """
    if len(data) > DETECTION_BYTES:
        return None
    found = from_bytes(data)
    best = found.best()
    return str(best) if best is not None and len(found) == 1 and best.coherence > 0 else None


class Transcoded(io.RawIOBase):
    """A stream of text in another encoding as UTF-8. Raises UnicodeError where it is not in that encoding."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        super().__init__()
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            data = self._stream.read1(len(buffer))
            self._rest = self._decoder.decode(data, final=not data).encode()
            if not data:
                break
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
