"""The flows of the table. Each calls one use-case of `latent.ingest.run` and tells Prefect what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from latent import interruption
from latent.config import load
from latent.flows.observability import artifact_key, logs_to_prefect, progress_artifact, run_name, tell
from latent.flows.reports import QUARANTINE_SHARE, maintenance_summary, quarantined_share, summary
from latent.flows.retries import BACKFILL_S, NIGHT_S, SHORT_S, missed, patient
from latent.flows.terminal_states import close
from latent.ingest import backfill as low_priority
from latent.ingest import maintenance, run
from latent.ingest.maintenance import MaintenanceResult
from latent.ingest.resolve import store_of
from latent.store import read_tuning
from latent.types import Report

ENDINGS: dict[str, Any] = {"on_failure": [close], "on_cancellation": [close], "on_crashed": [close]}


@patient("embed")
def embed_table(
    config: str,
    overrides: Mapping[str, Any],
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    backfill: bool = False,
) -> Report:
    """The use-case, or that with a backfill's manners, with an artifact that moves."""
    settings, work = load(config, overrides), low_priority.backfill if backfill else run.embed
    with interruption.noted(), logs_to_prefect(), progress_artifact(settings.table.name) as on_progress:
        return work(
            settings,
            on_progress,
            retry_quarantined=retry_quarantined,
            allow_deletions=allow_deletions,
            change_source=change_source,
            sample=sample,
        )


@patient("maintain")
def maintain_table(config: str, overrides: Mapping[str, Any]) -> MaintenanceResult:
    """The use-case."""
    with logs_to_prefect():
        return maintenance.maintain(load(config, overrides))


@flow(name="embed", flow_run_name=run_name, validate_parameters=False, timeout_seconds=NIGHT_S, **ENDINGS)
def embed(
    config: str = "config.toml",
    overrides: Mapping[str, Any] | None = None,
    reason: str = "by hand",
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
) -> Report:
    """Bring a table up to date with its source."""
    report = embed_table(
        config,
        overrides or {},
        retry_quarantined=retry_quarantined,
        allow_deletions=allow_deletions,
        change_source=change_source,
        sample=sample,
    )
    _tell_embedded(config, overrides, reason, report)
    return report


@flow(name="backfill", flow_run_name=run_name, validate_parameters=False, timeout_seconds=BACKFILL_S, **ENDINGS)
def backfill(
    config: str = "config.toml",
    overrides: Mapping[str, Any] | None = None,
    reason: str = "by hand",
    *,
    source: str = "",
    table: str = "",
    workers: int | None = None,
    rate: float | None = None,
    sample: float = 1.0,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
) -> Report:
    """Embed a large source, with manners: at most `rate` tokens a second on `workers` workers, of the documents the share `sample`.

    What is left out is as the config says. Credentials in a source's address belong in LATENT_ variables: Prefect stores parameters.
    """
    wanted = {"source.uri": source, "table.name": table, "ray.workers": workers, "backfill.tokens_per_second": rate}
    chosen = {**(overrides or {}), **{key: value for key, value in wanted.items() if value}}
    report = embed_table.with_options(name="backfill")(
        config,
        chosen,
        retry_quarantined=retry_quarantined,
        allow_deletions=allow_deletions,
        change_source=change_source,
        sample=sample,
        backfill=True,
    )
    _tell_embedded(config, chosen, reason, report)
    return report


@flow(name="maintain", flow_run_name=run_name, validate_parameters=False, timeout_seconds=SHORT_S)
def maintain(config: str = "config.toml", overrides: Mapping[str, Any] | None = None, reason: str = "by hand") -> None:  # noqa: ARG001  names the run
    """Indexes, compaction, old versions."""
    _tell_maintained(config, overrides, maintain_table(config, overrides or {}))


@flow(name="nightly", flow_run_name=run_name, validate_parameters=False, timeout_seconds=NIGHT_S, **ENDINGS)
def nightly(
    config: str = "config.toml", overrides: Mapping[str, Any] | None = None, reason: str = "by hand"
) -> Report | State[None]:
    """Embed, then maintain."""
    if (documents_to_skip := missed()) is not None:
        return documents_to_skip
    report = embed_table(config, overrides or {})
    try:
        done = maintain_table(config, overrides or {})
        report = maintenance.report_as_of_now(load(config, overrides), report)
    finally:
        _tell_embedded(config, overrides, reason, report)
    _tell_maintained(config, overrides, done)
    maintenance.record_unchanged(load(config, overrides), report)
    return report


def _tell_embedded(config: str, overrides: Mapping[str, Any] | None, reason: str, report: Report) -> None:
    settings = load(config, overrides)
    name, tuning = settings.table.name, read_tuning(store_of(settings).opened())
    create_markdown_artifact(
        summary(name, report, reason, tuning), key=artifact_key(f"summary-{name}"), description=f"What the run did to {name}"
    )
    much = quarantined_share(report.documents) > QUARANTINE_SHARE
    tell("latent.run.ended", name, asdict(report), quarantine="high" if much else "low")


def _tell_maintained(config: str, overrides: Mapping[str, Any] | None, done: MaintenanceResult) -> None:
    name, tuning = load(config, overrides).table.name, done.tuning
    create_markdown_artifact(
        maintenance_summary(name, done), key=artifact_key(f"maintenance-{name}"), description=f"How {name} was maintained"
    )
    low = tuning is not None and tuning.recall < tuning.wanted
    tell("latent.maintained", name, asdict(done), recall="low" if low else "held")
