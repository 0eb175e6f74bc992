"""The program that commands are part of: its settings, its errors, its exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.show import log_to_terminal
from pipeline.config import Config, load, setting
from pipeline.errors import UsageError

SETTING = re.compile(r"--([a-z]+\.[a-z_0-9]+(?:\.[^=]+)?)(?:=(.*))?", re.DOTALL)

_overrides: ContextVar[Mapping[str, Any]] = ContextVar("overrides")


def overrides() -> dict[str, Any]:
    """The settings that flags of this call give: dotted key → value."""
    return dict(_overrides.get())


def settings_of(config: Path, more: Mapping[str, Any] | None = None, *, verbose: bool = False) -> Config:
    """The settings of this call, `more` on top of its flags. From here on log lines reach the terminal."""
    settings = load(config, overrides() | dict(more or {}))
    log_to_terminal(settings, verbose=verbose)
    return settings


app = typer.Typer(
    name="latent",
    help="Keeps a LanceDB table of embeddings true to a body of documents.",
    epilog="Any key of config.toml can be set for one call: --table.name trial --ray.workers 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Option("--config", help="The settings.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def call(arguments: list[str]) -> int:
    """Run the command; returns its exit code. Raises UsageError if the command line is wrong, besides what the command raises."""
    rest, given = _pull_settings(arguments)
    _overrides.set(given)
    if not rest:
        with redirect_stdout(sys.stderr):
            app(["--help"], standalone_mode=False)
        return 2
    try:
        return int(app(rest, prog_name="latent", standalone_mode=False) or 0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "latent"
        raise UsageError(f"{command}: {error.format_message().rstrip('.')}. Next: {command} --help") from None


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
    return rest, {dotted: setting(dotted, values) for dotted, values in given.items()}
