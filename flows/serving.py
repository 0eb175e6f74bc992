"""The deployments: which flows a server runs, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.analyze import analyze
from flows.embed import embed, nightly
from pipeline.config import Config


def serve_flows(config: Path, settings: Config, overrides: Mapping[str, Any]) -> None:
    """Register the flows on the server and run them when they are due, until a signal."""
    parameters = {"config": str(config), "overrides": dict(overrides)}
    # A run that comes while another is under way is cancelled, not queued: the next one sees all changes anyway.
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    schedule = settings.schedule
    served = (
        (nightly, "nightly", schedule.nightly),
        (embed, "by hand", ""),
        (analyze, "scheduled" if schedule.analyze else "by hand", schedule.analyze),
    )
    deployments = [
        each.to_deployment(
            name=settings.table.name,
            schedule=Cron(cron, timezone=schedule.timezone) if cron else None,
            parameters={**parameters, "reason": reason},
            concurrency_limit=alone,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for each, reason, cron in served
    ]
    serve(*cast("list[RunnerDeployment]", deployments), print_starting_message=False)
