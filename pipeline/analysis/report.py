"""All of it, one after another, for whoever wants it each week: what changed since the last time, clusters, near-duplicates, a map; all of one version. Where neither a row nor a
setting changed there is nothing to do. What it was done for stands in the table `NAME.analysis`, written last: cut short, it is done again, against the same last time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from latent import store
from latent.analysis.clustering.cluster_table import Clustered, cluster
from latent.analysis.drift.change_report import save_report
from latent.analysis.drift.compare_versions import Drift, drift
from latent.analysis.duplicates.find_duplicates import Duplicates, duplicates
from latent.analysis.projection.map_table import draw_map, save_picture, title_of
from latent.config import Config
from latent.errors import ConfigError, QueryError
from latent.ingest.resolve import store_of
from latent.ingest.run import quiet
from latent.store import Store
from latent.types import OnProgress, Progress

log = logging.getLogger("latent")


@dataclass(frozen=True)
class Analysis:
    """What was found."""

    table_version: int
    changes: (
        Drift | None
    )  # since the last time; None: this is the first, no row changed, or that version is kept no longer or has vectors of another model
    clusters: Clustered
    duplicates: Duplicates
    files: list[Path]  # the change report, where there is a last time, and the map's picture; none without the extra `space`


def analyze(config: Config, on_progress: OnProgress = quiet) -> Analysis | None:
    """Bring what is worked out from the table up to date with it; None where it is. Files go to `[analyze] folder`, each named after table and version.

    Raises StoreError, and QueryError where the table is too small.
    """
    place = store_of(config)
    table = place.opened()
    store.check_derived(place, "analysis", "clusters", "assignments", "redundant", "duplicates", "outliers", "map")
    version, rows = int(table.version), table.count_rows()
    settings = {"cluster": config.cluster.model_dump(), "duplicates": config.duplicates.model_dump()}
    last = store.read_derived(place, "analysis")
    changed = last is None or not store.same_rows(table, last.told["table_version"], last.told["rows"])
    if last and not changed and last.told["settings"] == settings:
        return None
    changes = _changes(config, place, last.told["table_version"], version, on_progress) if last and changed else None
    clustered = cluster(config, on_progress, version=version)
    alike = duplicates(config, on_progress, version=version)
    files = _drawn(config, version, changes, on_progress)
    told = {"table_version": version, "rows": rows, "settings": settings}
    store.write_derived(place, {"analysis": pa.table({"table_version": [version]})}, told)
    on_progress(Progress("done", rows, rows))
    return Analysis(version, changes, clustered, alike, files)


def _changes(config: Config, place: Store, last: int, version: int, on_progress: OnProgress) -> Drift | None:
    """Since the last time; None, and a warning, where the two cannot be compared."""
    if place.open(version=last) is None:
        return None
    try:
        return drift(config, str(last), on_progress, until=str(version))
    except QueryError as error:
        log.warning("no change report: %s", error)
        return None


def _drawn(config: Config, version: int, changes: Drift | None, on_progress: OnProgress) -> list[Path]:
    """The change report and the map's picture; none, and a warning, where what draws them is missing."""
    name, files = config.table.name, list[Path]()
    try:
        drawn = draw_map(config, on_progress, version=version)
        if changes is not None:
            files.append(Path(config.analyze.folder) / f"{name}-{changes.table_version}-changes.html")
            save_report(changes, name, files[-1], config.schedule.zone)
        files.append(Path(config.analyze.folder) / f"{name}-{drawn.table_version}-map.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        save_picture(drawn, files[-1], title_of(name, drawn))
    except ConfigError as error:
        log.warning("no map and no report: %s", error)
        return []
    return files
