"""Bring indexes up to date, compact, and drop what is kept no longer."""

from __future__ import annotations

import datetime as dt
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import pyarrow as pa

from latent import store
from latent.config import Config
from latent.errors import (
    StoreError,
)
from latent.ingest.resolve import store_of
from latent.schemas import RUNS
from latent.store import FullTextSettings, Lease, Tuning, new_run_id
from latent.types import Report


def record_unchanged(config: Config, report: Report) -> None:
    """Say in the table of runs that a run found nothing to do: `embed` writes nothing then, and a monitor would think that no run came.

    After `maintain`, which fences what an earlier run left undone: a newest run that ended well is taken to have left nothing.
    """
    place = store_of(config)
    if report.run_id is None or report.run_id in store.read_runs(place)["run_id"].to_pylist():
        return
    finished = dt.datetime.now(dt.UTC)
    row = {
        "run_id": report.run_id,
        "status": "done",
        "started_at": finished - dt.timedelta(seconds=report.seconds),
        "finished_at": finished,
        "table_version": report.table_version,
        "report": json.dumps(asdict(report)),
    }
    store.write_runs(place, pa.Table.from_pylist([row], schema=RUNS))


@dataclass(frozen=True)
class MaintenanceResult:
    """What `maintain` did."""

    tuning: Tuning | None  # of vector searches; None: there is no index, every search is exact
    versions_dropped: int  # of all tables
    files_removed: int  # written by runs that never committed them


def maintain(config: Config) -> MaintenanceResult:
    """Indexes, compaction, then what is kept no longer: see `store.version_history`. Raises TableBusy while a run is writing."""
    place = store_of(config)
    place.opened()
    with store.exclusive_writer(place, new_run_id()) as lease:
        orphans = store.orphaned_files(place)
        tuning = update_indexes(config, lease)
        return MaintenanceResult(tuning, *store.vacuum(place, lease, orphans))


def report_as_of_now(config: Config, report: Report) -> Report:
    """The report with the newest version of the table, once indexes have made further ones; so it stands in the table of runs too."""
    place = store_of(config)
    report = replace(report, table_version=int(place.opened().version))
    rows = [row for row in store.read_runs(place).to_pylist() if row["run_id"] == report.run_id]
    with suppress(StoreError):  # a diary: the next run writes it anew
        for row in rows:
            told = {"table_version": report.table_version, "report": json.dumps(asdict(report))}
            store.write_runs(place, pa.Table.from_pylist([row | told], schema=RUNS))
    return report


def update_indexes(config: Config, lease: Lease) -> Tuning | None:
    """Indexes and compaction, as the config wants them. Raises TableBusy where the lease is lost meanwhile."""
    return store.update_indexes(store_of(config), lease, config.index.recall, full_text_settings(config))


def full_text_settings(config: Config) -> FullTextSettings | None:
    index = config.index
    return FullTextSettings(index.language, index.stem, index.stop_words) if index.full_text else None


def searches_lag(config: Config) -> bool:
    """Whether indexes are behind or absent: the run that changed rows was killed before it brought them up to date."""
    place = store_of(config)
    behind = any(index.behind for index in store.indexes(place) if index.kind != "BTree")  # trees may stay a little behind
    return behind or not store.TableReader(place).fully_indexed(full_text=config.index.full_text)
