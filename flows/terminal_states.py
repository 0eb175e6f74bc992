"""How a flow run that fails, is cancelled, comes to its time limit or is killed is seen: its progress closed, a summary, a state message with counts.

They are hooks. A run that is killed or cancelled has its hooks called by the runner, with named arguments. What they tell stands in the table of runs.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Flow, FlowRun, State
from prefect.states import Cancelled

from latent.config import load
from latent.flows.observability import artifact_key
from latent.flows.reports import ended
from latent.ingest.resolve import store_of
from latent.ingest.status import runs
from latent.rendering import markdown_text

log = logging.getLogger("latent")
RUNNER_S = 60.0  # within which the runner has called a cancelled run so


def close(flow: Flow | Any, flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001  Prefect's names
    """Close the progress of a run that did not end well, write its summary, and give its state a message with counts."""
    given = flow_run.parameters
    chosen = dict(given.get("overrides") or {})
    chosen |= {key: given[name] for key, name in (("source.uri", "source"), ("table.name", "table")) if given.get(name)}
    settings = load(given.get("config", "config.toml"), chosen)
    since = flow_run.start_time
    row = next((row for row in runs(settings, 5) if since is None or row["started_at"] >= since), None)
    if row is None or row["status"] == "done":
        return
    table = store_of(settings).open()
    committed = table.count_rows(f"run_id = '{row['run_id']}' AND chunk_index = 0") if table is not None else 0
    name, told = settings.table.name, ended(row, committed)
    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        made = {artifact.key: artifact for artifact in client.read_artifacts(artifact_filter=of_run)}
        progress = made.get(artifact_key(f"progress-{name}"))
        if progress is not None and progress.id is not None:
            client.update_artifact(progress.id, ArtifactUpdate(data=progress.data, description=told))
        if artifact_key(f"summary-{name}") not in made:
            client.create_artifact(
                ArtifactCreate(
                    key=artifact_key(f"summary-{name}"),
                    type="markdown",
                    description=f"How far the run of {name} came",
                    data=f"# {name}: {told.split()[0].rstrip(':')}\n\nRun `{row['run_id']}`.\n\n{markdown_text(told)}\n",
                    flow_run_id=flow_run.id,
                )
            )
        if state.is_cancelling():  # the runner sets its own message after the hooks
            threading.Thread(target=_tell_cancelled, args=(flow_run, told), daemon=True).start()
        elif row["status"] == "interrupted" and state.is_crashed():  # by a stop signal: what Prefect calls a crash
            client.set_flow_run_state(flow_run.id, Cancelled(message=told), force=True)
        else:
            again = state.model_copy(update={"message": f"{state.message or state.name} {told}"})
            client.set_flow_run_state(flow_run.id, State(type=again.type, name=again.name, message=again.message), force=True)


def _tell_cancelled(flow_run: FlowRun, told: str) -> None:
    """Give the state a message once the runner has called the run cancelled."""
    deadline = time.monotonic() + RUNNER_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            state = client.read_flow_run(flow_run.id).state
            if state is not None and state.is_cancelled():
                client.set_flow_run_state(flow_run.id, Cancelled(message=told), force=True)
                return
            time.sleep(0.5)
