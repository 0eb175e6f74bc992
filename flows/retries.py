"""When a task tries again, when a flow gives up, and when a run that is due comes too late to be worth it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run, task_run
from prefect.states import Cancelled

from latent.errors import PipelineError, reason_of

RETRIES_S = [30.0, 120.0]  # before the second and the third try
HOUR_S = 3600.0
# A run that hangs must not keep the next night's from starting; a backfill may take weeks, and goes on where it was cut off.
NIGHT_S, BACKFILL_S, SHORT_S = 20 * HOUR_S, 30 * 24 * HOUR_S, 6 * HOUR_S
MISSED_S = HOUR_S  # so late a scheduled run is left out: the next one sees all changes anyway

P = ParamSpec("P")
R = TypeVar("R")


def patient(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that tries again where the failure may pass: a store's or a worker's, not a wrong setting's."""

    def decorate(work: Callable[P, R]) -> Task[P, R]:
        @wraps(work)
        def tried(*given: P.args, **named: P.kwargs) -> R:
            try:
                return work(*given, **named)
            except Exception as error:  # Prefect itself says it of the last try only, at a level that is shown
                get_run_logger().error("try %d of %d failed: %s", task_run.run_count, 1 + len(RETRIES_S), reason_of(error, {}))
                raise

        return task(
            name=name,
            retries=len(RETRIES_S),
            retry_delay_seconds=RETRIES_S,
            retry_condition_fn=_transient,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(tried)

    return decorate


def _transient(_task: object, _task_run: object, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, PipelineError) and error.transient


def missed() -> State[None] | None:
    """Catch-up is off: the state in which a scheduled run ends that starts MISSED_S after it was due; None where it may go on.

    A server keeps what it could not start, and hands all of it out when someone asks again.
    """
    late = dt.datetime.now(dt.UTC) - flow_run.scheduled_start_time
    if flow_run.parameters.get("reason") != "scheduled" or flow_run.run_count > 1 or late.total_seconds() < MISSED_S:
        return None
    return Cancelled(
        name="Missed",
        message=f"due {late.total_seconds() / HOUR_S:.1f} h ago, when nobody was there to start it: the next run sees all changes",
    )
