"""What Prefect shows of a run while it lasts and when it has ended: its name, a progress artifact, log lines, events.

An update of the artifact costs 17 ms, an event none of the run's time: another thread sends it, and where no one takes events it is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from latent import interruption
from latent.config import load
from latent.errors import PipelineError
from latent.ingest import run
from latent.rendering import LineFormatter
from latent.serialization import to_json
from latent.types import OnProgress, Progress

UPDATE_S = 2.0  # between two updates of the progress artifact

# Who else wants to see the progress of a flow run in this process: the terminal's bars.
watcher: ContextVar[OnProgress] = ContextVar("watcher", default=run.quiet)


def run_name() -> str:
    """Such as 'nightly docs: scheduled 2026-11-25 02:00 CET', in the schedule's time zone. Sorted by name, runs are in order of table, reason, and time."""
    given = flow_run.parameters
    try:
        settings = load(given.get("config", "config.toml"), given.get("overrides"))
        table, zone = given.get("table") or settings.table.name, settings.schedule.zone
    except PipelineError:  # the run itself fails of it, and says so
        table, zone = "?", ZoneInfo("UTC")
    due = flow_run.scheduled_start_time.astimezone(zone)
    return f"{flow_run.flow_name} {table}: {given.get('reason', 'by hand')} {due:%Y-%m-%d %H:%M %Z}"


def artifact_key(text: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def progress_artifact(table: str) -> Iterator[OnProgress]:
    """Passes progress on to the watcher, and every UPDATE_S to an artifact."""
    seen_by = watcher.get()
    artifact = cast("UUID", create_progress_artifact(0.0, key=artifact_key(f"progress-{table}"), description="starting"))
    updated, last = time.monotonic(), Progress("scan")

    def on_progress(moment: Progress) -> None:
        nonlocal updated, last
        last = moment
        seen_by(moment)
        if moment.phase == "done" or time.monotonic() - updated >= UPDATE_S:
            update_progress_artifact(artifact, _share(moment), description=told(moment))
            updated = time.monotonic()

    try:
        yield on_progress
    except BaseException as error:
        word = "failed" if isinstance(error, Exception) else "stopped"
        with contextlib.suppress(Exception):  # the error is what is to be seen
            update_progress_artifact(artifact, _share(last), description=told(replace(last, phase=word, seconds_left=None)))
        raise


def _share(moment: Progress) -> float:
    """Percent done."""
    return 100.0 if moment.phase == "done" else 100.0 * moment.documents / moment.total if moment.total else 0.0


def told(moment: Progress) -> str:
    """Where a run is, and how long it will still take where that is known."""
    counts = f"{moment.documents} of {moment.total or '?'} documents, {moment.tokens} tokens, {moment.quarantined} quarantined"
    left = "" if moment.seconds_left is None or moment.phase == "done" else f", about {_rounded(moment.seconds_left)} left"
    return f"{moment.phase}: {counts}{left}"


def _rounded(seconds: float) -> str:
    units = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"))
    return next((f"{seconds / size:.1f} {name}" for size, name in units if seconds >= size), f"{seconds:.0f} s")


def _no_crash(record: logging.LogRecord) -> bool:
    """Say of a run that was stopped what it committed: Prefect calls it a crash."""
    text = str(record.msg)
    if text.startswith("Crash detected!") and re.search("termination signal|interrupt signal|CancelledError", text):
        record.msg, record.args, record.levelno, record.levelname = interruption.message(), (), logging.WARNING, "WARNING"
    return True


@contextmanager
def logs_to_prefect() -> Iterator[None]:
    """The pipeline's log lines go to the flow run's page."""
    logger, handler = logging.getLogger("latent"), APILogHandler()
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_no_crash)
    handler.setFormatter(LineFormatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def tell(event: str, table: str, payload: Mapping[str, Any], **verdicts: str) -> None:
    """An event of the table, for automations. They see no payload, only a resource's labels: a verdict they are to act on is one, `latent.<name>`."""
    labels = {f"latent.{name}": verdict for name, verdict in verdicts.items()}
    resource = {"prefect.resource.id": f"latent.table.{table}", "prefect.resource.name": table, **labels}
    emit_event(event, resource, payload=json.loads(to_json(payload)))
