r"""Text of documents, ids and paths, made harmless for the place that shows it: a terminal, a log or Markdown.

A control character is a command to the terminal, a bidi control reorders the line around it, and an invisible character makes two ids look the same.
Each of them becomes its escape (`\x1b`, `\u202e`), so that the reader sees that it is there.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
from typing import Any

# Controls but line feed, invisible and bidi characters, line separators, lone surrogates. The joiners stay within scripts and emoji that need them.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|(?<![\u0300-\U0001ffff])[\u200c\u200d]|[\u200c\u200d](?![\u0300-\u1fff\u2030-\U0001ffff])"
)
_MARKUP = re.compile(r"[\\`*_\[\]{}<>|#&~:@$]|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    """The text without anything that acts on a terminal. Line feeds stay, a tab becomes four spaces."""
    plain = text.replace("\r\n", "\n").replace("\t", "    ")
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), plain)


def printable_line(text: str) -> str:
    """As `printable`, on one line: a line feed becomes its escape, so that no text adds a line of its own."""
    return printable(text).replace("\n", "\\n")


def markdown_text(text: str) -> str:
    """The text on one line of Markdown, its markup, links and HTML escaped."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(" ".join(text.split())))


class LineFormatter(logging.Formatter):
    """Formats a log record as one printable line, its time in `zone`; a traceback follows on lines of its own."""

    def __init__(self, fmt: str, datefmt: str | None = None, zone: dt.tzinfo = dt.UTC) -> None:
        super().__init__(fmt, datefmt)
        self._zone = zone

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  logging's name
        return dt.datetime.fromtimestamp(record.created, self._zone).strftime(datefmt or "%Y-%m-%d %H:%M:%S %Z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        return printable_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        return printable(super().formatException(ei))
