"""The program that commands are part of: its settings, its errors, its exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from latent.cli.output import log_to_terminal
from latent.errors import PipelineError, UsageError, one_line

if TYPE_CHECKING:
    from pydantic import ValidationError

    from latent.config import Config

SETTING = re.compile(r"--([a-z]+\.[a-z_0-9]+(?:\.[^=]+)?)(?:=(.*))?", re.DOTALL)

COMPLETION = "_LATENT_COMPLETE"  # set where a shell asks for completions
TRACEBACK = "LATENT_TRACEBACK"  # set: a fault of the program itself ends it with its traceback


def overrides(ctx: typer.Context) -> dict[str, Any]:
    """Return the settings that flags of this call give: dotted key → value."""
    return dict(ctx.obj or {})


def settings_of(ctx: typer.Context, config: Path, more: Mapping[str, Any] | None = None, *, verbose: bool = False) -> Config:
    """The settings of this call, `more` on top of its flags. From here on log lines reach the terminal."""
    from latent.config import load

    settings = load(config, overrides(ctx) | dict(more or {}))
    log_to_terminal(settings, verbose=verbose)
    return settings


class _Commands(TyperGroup):
    """The commands. Their summaries are wrapped on a narrow terminal, and never cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, self.commands[name].get_short_help_str(limit=1000)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    name="latent",
    help="Keeps a LanceDB table of embeddings true to a body of documents.",
    epilog="Any key of config.toml can be set for one call: --table.name trial --ray.workers 2",
    cls=_Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"latent {version('latent')}\n")
        raise typer.Exit


@app.callback()
def latent(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keeps a LanceDB table of embeddings true to a body of documents."""


ConfigPath = Annotated[Path, typer.Option("--config", help="The settings.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def call(arguments: list[str]) -> int:
    """Run the command; returns its exit code. Raises UsageError if the command line is wrong, besides what the command raises."""
    rest, given = _pull_settings(arguments)
    if not rest and COMPLETION not in os.environ:
        with redirect_stdout(sys.stderr):
            app(["--help"], standalone_mode=False)
        return 2
    streams = sys.stdout, sys.stderr
    try:
        code = int(app(rest, prog_name="latent", standalone_mode=False, obj=given) or 0)
        sys.stdout.flush()
    except SystemExit as end:  # typer ends so by any broken pipe, that of a connection too, and silences both streams
        sys.stdout, sys.stderr = streams
        raise (end.__context__ if isinstance(end.__context__, OSError) else end) from None
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "latent"
        from pydantic import ValidationError

        if isinstance(error.__cause__, ValidationError):
            error.message = _refusal(error.__cause__)
        raise UsageError(f"{command}: {error.format_message().rstrip('.')}. Next: {command} --help") from None
    return code


def _refusal(error: ValidationError) -> str:
    """What is wrong with the value of an option, in our words."""
    from latent.config import expected

    first = error.errors()[0]
    if first["type"] == "value_error":  # of a choice, which names what it takes
        return str(first["ctx"]["error"])
    return f"expected {expected(first)}, got {first['input']!r:.100}"


def unexpected(error: Exception) -> PipelineError:
    """A fault of the program itself, as one line."""
    line = one_line(f"{type(error).__name__}: {error}")
    return PipelineError(f"unexpected {line}. Next: run it again with {TRACEBACK}=1, and report what it prints")


def _pull_settings(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--section.key value` out of the arguments. Returns the others, and the settings."""
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":  # what follows is no option
            rest += [argument, *waiting]
            break
        match = SETTING.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(waiting, None)
        if value is None:
            raise UsageError(f"{argument}: expected a value, got the end of the command line")
        given.setdefault(match[1], []).append(value)
    if not given:
        return rest, {}
    from latent.config import setting

    return rest, {dotted: setting(dotted, values) for dotted, values in given.items()}
