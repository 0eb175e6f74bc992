"""Where the table stands: what it holds, its versions, its runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from latent import store
from latent.config import Config
from latent.ingest.resolve import resolve_and_check, store_of
from latent.ingest.scan import reasons_of
from latent.monitoring.metrics import LastRun, TableFigures
from latent.store import Store, Tuning, Version
from latent.types import Prompts


@dataclass(frozen=True)
class Status:
    """Where the table stands."""

    table: str
    version: int
    spec: dict[str, object]
    prompts: Prompts
    documents: int
    chunks: int
    files: int
    quarantined: dict[str, int]  # reason → documents
    indexes: list[str]
    tuning: (
        Tuning | None
    )  # of vector searches, with the recall and the milliseconds that maintain measured; None: every search is exact
    runs: list[dict[str, Any]]  # newest first
    versions: list[Version]  # newest first


def status(config: Config, count: int = 10) -> Status:
    """What the table holds, how it is indexed, and its last runs and versions, so many of each."""
    at = resolve_and_check(config)
    table = at.store.opened()
    state = store.load_state(at.store)
    return Status(
        table=at.store.label,
        version=int(table.version),
        spec=asdict(at.spec),
        prompts=at.prompts,
        documents=state.held.num_rows,
        chunks=table.count_rows(),
        files=state.files.num_rows,
        quarantined=reasons_of(state.quarantine),
        indexes=[str(index) for index in store.indexes(at.store)],
        tuning=store.read_tuning(table),
        runs=runs(config, count),
        versions=store.versions(at.store, count),
    )


def runs(config: Config, count: int = 10) -> list[dict[str, Any]]:
    """The last runs of the table, newest first: RUNS with the report read, and the versions of libraries. Empty where there was none yet."""
    rows = store.read_runs(store_of(config))[:count].to_pylist()
    reports = [json.loads(row["report"]) for row in rows]
    return [row | {"report": report, "versions": report.get("versions", {})} for row, report in zip(rows, reports, strict=True)]


def figures(place: Store) -> TableFigures:
    """What monitoring wants to know of a table between runs, from its table of runs. Raises StoreError where there is no table, or the store is away."""
    tuning = store.read_tuning(place.opened())
    over = [row for row in store.read_runs(place).to_pylist() if row["status"] != "running"]
    ended = next((row for row in over if row["finished_at"]), None)
    success = next((row["finished_at"].timestamp() for row in over if row["status"] == "done"), None)
    return TableFigures(
        last_success=success,
        last_run=_last_run(ended) if ended else None,
        recall=tuning.recall if tuning and tuning.nprobes else None,
        recall_wanted=tuning.wanted if tuning and tuning.nprobes else None,
    )


def _last_run(row: dict[str, Any]) -> LastRun:
    report = json.loads(row["report"]) if row["report"] else {}  # none where the run ended before it had the table to itself
    return LastRun(
        status=row["status"],
        ended=row["finished_at"].timestamp(),
        documents=report.get("documents", {}),
        chunks=report.get("chunks", {}),
        tokens=report.get("tokens"),
        seconds=report.get("seconds"),
    )
