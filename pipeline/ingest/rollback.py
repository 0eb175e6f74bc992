"""Make a table what it was at a version, or when a run had ended."""

from __future__ import annotations

import re
from dataclasses import dataclass

from latent import store
from latent.config import Config
from latent.errors import (
    QueryError,
)
from latent.ingest.maintenance import update_indexes
from latent.ingest.resolve import store_of
from latent.store import Store, new_run_id


@dataclass(frozen=True)
class RollbackResult:
    """What `rollback` did."""

    run_id: str  # of the rollback itself
    restored: int  # the version the table is as it was at
    table_version: int  # the new version that is so
    documents: int
    chunks: int


def rollback(config: Config, to: str) -> RollbackResult:
    """Make the table, file states and quarantine included, what it was at a version, or when a run had ended.

    Nothing is lost by it: the present state stays as a version like the others. Raises QueryError where there is no such run or version, TableBusy.
    """
    place = store_of(config)
    place.opened(any_maker=True)  # also where another program put its own in place of ours
    version = version_of(place, to)
    run_id = new_run_id()
    with store.exclusive_writer(place, run_id, version=version) as lease:
        done = store.restore(place, lease, version, f"rollback to version {version}")
        update_indexes(config, lease)  # those of another model's vectors stay behind
        return RollbackResult(run_id, version, done, store.load_state(place).held.num_rows, place.opened().count_rows())


def version_of(place: Store, to: str) -> int:
    """The version that is meant by its number, or by the run at the end of which it stood. Raises QueryError where there is no such run."""
    rows = store.read_runs(place).to_pylist()
    runs = {row["run_id"]: row["table_version"] for row in rows if row["status"] != "running" and row["table_version"] is not None}
    if to not in runs and not re.fullmatch("[0-9]{1,18}", to):  # Lance counts in 64 bits
        raise QueryError(f"no run {to!r} of {place.label}: give a version's number or a run, 'latent status' lists both")
    return int(runs.get(to, to))
