"""Where the table stands: what it holds, its versions, its runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pipeline import store
from pipeline.config import Config
from pipeline.schema import Prompts
from pipeline.store import Tuning, Version
from pipeline.survey import reasons_of, scene, store_of


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
    at = scene(config)
    table = at.store.opened()
    state = store.state_of(at.store)
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
    """The last runs of the table, newest first: RUNS with the report read. Empty where there was none yet."""
    rows = store.read_runs(store_of(config))[:count].to_pylist()
    return [row | {"report": json.loads(row["report"])} for row in rows]
