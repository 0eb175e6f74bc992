"""Every error the program raises on purpose, on one page.

Each message is one line: what happened, what was got, what was wanted, what to do next. The only argument is that
string, so an error survives pickling between processes. `PipelineError` and its heirs end a command with exit code 1.
"""

from typing import ClassVar


class PipelineError(Exception):
    """Base of all errors with a message meant for the user. Where `transient`, the same call may succeed later."""

    transient: ClassVar[bool] = False


class ConfigError(PipelineError):
    """A key, type, path or value of config.toml, a flag or a LATENT_ variable is wrong."""


class SourceError(PipelineError):
    """The source cannot be read as the config describes it."""


class SourceUnreachable(SourceError):
    """The store that holds the source failed."""

    transient = True


class UnreadableFile(SourceError):
    """One file of the source is damaged: it is quarantined whole and its stored documents stay."""


class ModelError(PipelineError):
    """The model cannot be found, verified or loaded."""


class SpecMismatch(PipelineError):
    """The table holds vectors of another spec than the config asks for."""


class StoreError(PipelineError):
    """The table cannot be opened, read or written."""

    transient = True


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
