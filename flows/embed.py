"""The flows of the table. Each calls one use-case of `pipeline.run` and tells Prefect what came of it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging.handlers import APILogHandler
from prefect.runtime import flow_run

from pipeline import run
from pipeline.config import load
from pipeline.errors import PipelineError
from pipeline.schema import Progress, Report
from pipeline.survey import OnProgress

UPDATE_S = 2.0  # between two updates of the progress artifact; one costs 17 ms
RETRIES_S = [30.0, 120.0]  # before the second and the third try

# Who else wants to see the progress of a flow run in this process: the terminal's bars.
watcher: ContextVar[OnProgress] = ContextVar("watcher", default=run.quiet)


def _transient(_task: object, _task_run: object, state: Any) -> bool:
    """Whether a failure may pass: a store or a worker's, not a wrong setting's."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PipelineError) and error.transient


def run_name() -> str:
    parameters = flow_run.parameters
    return f"{flow_run.flow_name}-{Path(parameters['config']).resolve().parent.name}-{parameters['reason']}-{time.strftime('%Y%m%d-%H%M%S')}"


@task(
    name="embed",
    retries=2,
    retry_delay_seconds=RETRIES_S,
    retry_condition_fn=_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def embed_table(config: str, overrides: Mapping[str, Any], *, retry_quarantined: bool, allow_empty: bool) -> Report:
    """The use-case, with an artifact that moves."""
    settings = load(config, overrides)
    with logs_to_prefect(), progress_artifact(settings.table.name) as on_progress:
        return run.embed(settings, on_progress, retry_quarantined=retry_quarantined, allow_empty=allow_empty)


@flow(name="embed", flow_run_name=run_name, validate_parameters=False)
def embed(
    config: str = "config.toml",
    overrides: Mapping[str, Any] | None = None,
    reason: str = "by hand",
    *,
    retry_quarantined: bool = False,
    allow_empty: bool = False,
) -> Report:
    """Bring a table up to date with its source."""
    report = embed_table(config, overrides or {}, retry_quarantined=retry_quarantined, allow_empty=allow_empty)
    name = load(config, overrides).table.name
    create_markdown_artifact(
        summary(name, report, reason), key=artifact_key(f"summary-{name}"), description=f"What the run did to {name}"
    )
    return report


@flow(name="maintain", flow_run_name=run_name, validate_parameters=False)
def maintain(config: str = "config.toml", overrides: Mapping[str, Any] | None = None, reason: str = "by hand") -> None:  # noqa: ARG001  names the run
    """Indexes, compaction, old versions."""
    with logs_to_prefect():
        run.maintain(load(config, overrides))


@flow(name="nightly", flow_run_name=run_name, validate_parameters=False)
def nightly(config: str = "config.toml", overrides: Mapping[str, Any] | None = None, reason: str = "nightly") -> None:
    """Embed, then maintain."""
    embed(config, overrides, reason)
    maintain(config, overrides, reason)


def summary(table: str, report: Report, reason: str) -> str:
    """The run's report in Markdown."""
    d, c = report.documents, report.chunks
    return "\n".join(
        [
            f"# {table}: {reason}",
            "",
            f"Run `{report.run_id}`, table version {report.table_version}, {report.seconds:.1f} s.",
            "",
            "| documents | |",
            "|---|---:|",
            *(f"| {what} | {count} |" for what, count in asdict(d).items()),
            "",
            "| chunks | |",
            "|---|---:|",
            *(f"| {what} | {count} |" for what, count in asdict(c).items()),
            "",
            f"{report.tokens} tokens, {report.tokens_per_second:.0f} a second, on {report.workers} workers.",
            f"Summed over workers: {report.read_seconds:.1f} s reading, {report.encode_seconds:.1f} s encoding, {report.write_seconds:.1f} s writing.",
            f"{report.files_opened} files opened, {report.files_unchanged} unchanged, {report.files_refused} unreadable, {report.files_ignored} of another kind.",
        ]
    )


def artifact_key(text: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def progress_artifact(table: str) -> Iterator[OnProgress]:
    """Passes progress on to the watcher, and every UPDATE_S to an artifact."""
    seen_by = watcher.get()
    artifact = cast("UUID", create_progress_artifact(0.0, key=artifact_key(f"progress-{table}"), description="starting"))
    updated = time.monotonic()

    def on_progress(moment: Progress) -> None:
        nonlocal updated
        seen_by(moment)
        if moment.phase == "done" or time.monotonic() - updated >= UPDATE_S:
            share = 100.0 * moment.documents / moment.total if moment.total else 0.0
            told = f"{moment.phase}: {moment.documents} of {moment.total or '?'} documents, {moment.tokens} tokens, {moment.quarantined} quarantined"
            update_progress_artifact(artifact, 100.0 if moment.phase == "done" else share, description=told)
            updated = time.monotonic()

    yield on_progress


@contextmanager
def logs_to_prefect() -> Iterator[None]:
    """The pipeline's log lines go to the flow run's page."""
    logger, handler = logging.getLogger("pipeline"), APILogHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
