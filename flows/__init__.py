"""Prefect's side: thin flows over `latent.ingest.run`, their schedule and their reports.

    server       which server is meant, or one started here
    patience     when a task tries again, and which runs come too late
    ending       how a run is seen that fails, is stopped or killed
    telling      names, progress, logs, events
    reports      what a run did, in Markdown
    embed        the flows of the table: embed, backfill, maintain, nightly
    analyze      the flow of the latent space
    evaluate     the flow that measures answers
    deployments  which of them there are on a server, and when they run; prefect.yaml
    serving      their runs, without a work pool

Importing this package does not import Prefect, which takes seconds: only a run that goes through a flow pays for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent.config import Config, hand_down
from latent.flows.prefect_server import PORT, configured_server, local_server
from latent.ingest.resolve import store_of
from latent.ingest.status import figures
from latent.monitoring import metrics
from latent.monitoring.exposition import shown_at
from latent.types import OnProgress, Report

__all__ = ["ServeInfo", "configured_server", "embed_as_flow", "serve"]


def embed_as_flow(
    config: Path,
    overrides: Mapping[str, Any],
    on_progress: OnProgress,
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    backfill: bool = False,
) -> Report:
    """Run the flow `embed`, or `backfill`, in this process, on the configured server or on one started for as long as it takes.

    Prefect stores a flow's parameters: overrides that may hold credentials reach it as LATENT_ variables instead.
    """
    # The terminal has the bars and the one line of an error; Prefect's own log is on the flow run's page.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with local_server(config.parent):
        from prefect.logging.handlers import APILogHandler

        from latent.flows import embed as flows_of_the_table
        from latent.flows.observability import watcher

        token = watcher.set(on_progress)
        try:
            flow = flows_of_the_table.backfill if backfill else flows_of_the_table.embed
            return flow(
                str(config),
                hand_down(overrides),
                reason="by hand",
                retry_quarantined=retry_quarantined,
                allow_deletions=allow_deletions,
                change_source=change_source,
                sample=sample,
            )
        finally:
            watcher.reset(token)
            APILogHandler().flush()  # while the server is still there


@dataclass(frozen=True)
class ServeInfo:
    """What `serve` keeps alive, and where."""

    server: str  # address of the server and its UI
    nightly: str  # cron
    analyze: str  # cron; empty: only by hand
    timezone: str
    deployment: str


def serve(config: Path, settings: Config, overrides: Mapping[str, Any], on_ready: Callable[[ServeInfo], None]) -> None:
    """Keep the nightly schedule alive until a signal, and show the table's figures at [metrics] listen; starts a server where none is configured, its state below data/.

    Overrides go to its runs as `embed_as_flow` hands them on.
    """
    table = metrics.TableCollector(settings.table.name, lambda: figures(store_of(settings)))
    with shown_at(settings.metrics.listen, metrics.registry_of(table)), local_server(config.parent, PORT) as address:
        from latent.flows.runner import serve_flows

        schedule = settings.schedule
        on_ready(ServeInfo(address, schedule.nightly, schedule.analyze, schedule.timezone, f"nightly/{settings.table.name}"))
        serve_flows(config, settings, hand_down(overrides))
