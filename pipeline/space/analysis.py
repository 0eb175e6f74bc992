"""All of it, one after another, for whoever wants it each week: what changed since the last time, clusters, near-duplicates, a map. Where no row changed there is nothing to do."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline import store
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.run import quiet
from pipeline.space.changes import save_report
from pipeline.space.clusters import Clustered, cluster
from pipeline.space.drift import Drift, drift
from pipeline.space.duplicates import Duplicates, duplicates
from pipeline.space.maps import draw_map, save_picture, title_of
from pipeline.survey import OnProgress, store_of

log = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Analysis:
    """What was found."""

    table_version: int
    changes: Drift | None  # since the last time; None: this is the first, or that version is kept no longer
    clusters: Clustered
    duplicates: Duplicates
    files: list[Path]  # the change report, where there is a last time, and the map's picture; none without the extra `space`


def analyze(config: Config, on_progress: OnProgress = quiet) -> Analysis | None:
    """Bring what is worked out from the table up to date with it; None where it is. Files go to `[analyze] folder`, each named after table and version.

    Raises StoreError, and QueryError where the table is too small.
    """
    place = store_of(config)
    table = place.opened()
    worked = store.read_derived(place, "duplicates")  # the last of it all
    last = int(worked.told["table_version"]) if worked else None
    if worked and last and store.same_rows(table, last, worked.told["rows"]):
        return None
    changes = drift(config, str(last), on_progress) if last and place.open(version=last) is not None else None
    clustered, alike = cluster(config, on_progress), duplicates(config, on_progress)
    return Analysis(int(table.version), changes, clustered, alike, _drawn(config, changes, on_progress))


def _drawn(config: Config, changes: Drift | None, on_progress: OnProgress) -> list[Path]:
    """The change report and the map's picture; none, and a warning, where what draws them is missing."""
    name, files = config.table.name, list[Path]()
    try:
        drawn = draw_map(config, on_progress)
        if changes is not None:
            files.append(Path(config.analyze.folder) / f"{name}-{changes.table_version}-changes.html")
            save_report(changes, name, files[-1])
        files.append(Path(config.analyze.folder) / f"{name}-{drawn.table_version}-map.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        save_picture(drawn, files[-1], title_of(name, drawn))
    except ConfigError as error:
        log.warning("no map and no report: %s", error)
        return []
    return files
