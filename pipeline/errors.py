"""Every error the program raises on purpose, on one page.

Each message is one line: what happened, what was got, what was wanted, what to do next. The only argument is that
string, so an error survives pickling between processes. `PipelineError` and its heirs end a command with exit code 1.
What a library raises for one document ends no command: it becomes a `Failure`, which stands in quarantine.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

REASON_CHARS, TRACEBACK_CHARS = 300, 20_000  # kept in quarantine; an error may quote the whole document


class PipelineError(Exception):
    """Base of all errors with a message meant for the user. Where `transient`, the same call may succeed later."""

    transient: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class ConfigError(PipelineError):
    """A key, type, path or value of config.toml, a flag or a LATENT_ variable is wrong."""


class UsageError(ConfigError):
    """The command line is wrong: an option, an argument, or a setting that a flag gives."""

    exit_code = 2


class SourceError(PipelineError):
    """The source cannot be read as the config describes it."""


class SourceUnreachable(SourceError):
    """The store that holds the source failed."""

    transient = True


class FileUnreadable(SourceError):
    """One file of the source is damaged: it is quarantined whole and its stored documents stay."""


class OtherColumns(FileUnreadable):
    """One file of the source has other columns than the config names. Where no file has them, the config is wrong."""


class ModelError(PipelineError):
    """The model cannot be found, verified or loaded."""


class SpecMismatch(PipelineError):
    """The table holds vectors of another spec than the config asks for."""


class StoreError(PipelineError):
    """The table cannot be opened, read or written."""

    transient = True


class TableMissing(StoreError):
    """There is no table yet."""

    transient = False


class ForeignTable(StoreError):
    """A table of this name was made by another program, or belongs to another table: it is left alone."""

    transient = False


class TableBusy(StoreError):
    """Another run holds the table's lease."""

    transient = False  # the other run does the work


class EngineError(PipelineError):
    """The workers cannot be started, or die whatever they are given."""

    transient = True


class QueryError(PipelineError):
    """A search asks for something the table cannot answer."""


class Interrupted(PipelineError):
    """The run was stopped by a signal; what had been finished is committed."""


def shown(uri: str) -> str:
    """The URI as it may stand in a message: without the credentials it may carry before the host or in its query.

    A secret may hold slashes and the like that were not written as %2F.
    """
    return re.sub(r"//([^/@:]+:.*|[^/@]*)@", "//", uri).partition("?")[0] if "://" in uri else uri


URI_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]*@|(?<=[\w/])\?[^\s'\"]*=[^\s'\"]*")
SECRET_NAMES = re.compile("key|secret|token|password|sas|credential", re.IGNORECASE)


def reason_of(error: BaseException, options: Mapping[str, str]) -> str:
    """One line on why a run ended, as it is kept and shown: without the credentials of URIs and of the store's `options`."""
    text = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    for name, value in options.items():
        if SECRET_NAMES.search(name) and value:
            text = text.replace(value, "…")
    return one_line(URI_SECRETS.sub("", text)) or type(error).__name__


@dataclass(frozen=True)
class Failure:
    """Why one document could not be embedded, as quarantine holds it."""

    reason: str  # one line
    traceback: str | None = None

    @staticmethod
    def of(what: str, error: BaseException) -> Failure:
        """What failed, and the error with its traceback: as text, since an exception keeps all it was raised among in memory."""
        return Failure(one_line(f"{what}: {type(error).__name__}: {error}"), shortened("".join(traceback.format_exception(error))))


def one_line(text: str) -> str:
    """The first line that says something, of at most REASON_CHARS characters."""
    line = next((line for line in text[: 10 * REASON_CHARS].splitlines() if line.strip()), "").strip()
    return line if len(line) <= REASON_CHARS else f"{line[: REASON_CHARS - 1]}…"


def shortened(text: str) -> str:
    """Of a long traceback the beginning and the end, which tell where and what."""
    half = TRACEBACK_CHARS // 2
    return text if len(text) <= TRACEBACK_CHARS else f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
