"""The program that commands are part of: its settings, its errors, its exit codes."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.show import failed, words
from pipeline.errors import Interrupted, PipelineError

SETTING = re.compile(r"--([a-z]+\.[a-z_0-9]+)(?:=(.*))?", re.DOTALL)

overrides: dict[str, Any] = {}  # of this call: filled once by main(), before a command runs

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


def main() -> None:
    """Entry point of the `latent` script."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell without job control starts background jobs with it ignored
        signal.signal(number, signal.default_int_handler)
    arguments = _pull_settings(sys.argv[1:])
    try:
        app(args=arguments, standalone_mode=True)
    except PipelineError as error:
        failed(error, as_json="--json" in arguments)
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        words.print("stopped: nothing was under way that is not safe; run the command again")
        raise SystemExit(130) from None


def _pull_settings(arguments: list[str]) -> list[str]:
    """Take `--section.key value` out of the arguments into `overrides`; values are JSON where they parse as it, else strings."""
    rest, waiting = [], iter(arguments)
    for argument in waiting:
        match = SETTING.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(waiting, None)
        if value is None:
            words.print(f"error: {argument} wants a value")
            raise SystemExit(2)
        overrides[match[1]] = _value(value)
    return rest


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
