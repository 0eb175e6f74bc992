"""`latent map`: the table's passages on a plane, as a table, a picture, and a page to walk about in.

The page is Embedding Atlas (https://apple.github.io/embedding-atlas/), a folder of its own with the data in it: no request leaves the machine.
"""

from __future__ import annotations

import functools
import html
import http.server
import re
import threading
import webbrowser
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.cluster.hierarchy import fcluster, linkage

from latent import interruption, store
from latent.analysis.clustering.cluster_table import cluster
from latent.analysis.projection.coordinates import LEAST, Plane
from latent.config import Config
from latent.errors import ConfigError, QueryError, StoreError
from latent.ingest.resolve import store_of
from latent.ingest.run import quiet
from latent.monitoring.hosts import is_served
from latent.outputs import MARK, require_replaceable
from latent.rendering import printable_line
from latent.schemas import OWN_COLUMNS
from latent.store import Store
from latent.types import OnProgress, Progress

FITTED = 100_000  # rows that the plane is fitted on, in some two minutes on one core; others are placed on it
PAGE_CHARS = 2_000  # of a passage, on the page
LABELS = 30  # on a picture
COLORED = 10  # topics that the page has a color for; it shows all others as one
NO_TOPIC = "(no topic)"
MAP_CHART = "1"  # the map's number among the page's charts: it is the first
MARGIN = 1.1
TITLE = re.compile(r"<title>.*?</title>", re.DOTALL)
# After Okabe & Ito: told apart by the colour-blind. https://jfly.uni-koeln.de/color/
HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F7F7F")
COLOURS = (  # then each lighter, and darker, which the colour-blind see as well as others; after that from the beginning
    *HUES,
    *("#80B9D9", "#F3CF80", "#80CFB9", "#E6BCD3", "#ABDAF4", "#EAAF80", "#DCD480"),  # no lighter grey: noise has it
    *("#00446B", "#8A5F00", "#005F45", "#7A4964", "#346C8C", "#803800", "#6E6500", "#4C4C4C"),
)
NOISE_COLOUR = "#D8D8D8"


@dataclass(frozen=True)
class Map:
    """The table on a plane."""

    table_version: int
    map_table: str
    rows: pa.Table = field(
        repr=False
    )  # chunk_id, x, y, cluster_id, topic, coarse_topic, and `neighbours` where the plane was fitted on all
    regions: Sequence[tuple[float, float, str, int]] = field(repr=False)  # x, y, label, level: the middle of each cluster and group


def draw_map(config: Config, on_progress: OnProgress = quiet, *, version: int | None = None) -> Map:
    """Lay a version, the newest by default, out on a plane, with its clusters, which are made first where there are none of it, and write the table `NAME.map`.

    Raises QueryError where there is too little to draw, ConfigError where umap-learn is missing.
    """
    place = store_of(config)
    table = place.opened(version)
    store.check_derived(place, "map", "clusters", "assignments")
    version, count = int(table.version), table.count_rows()
    if count < LEAST:
        raise QueryError(f"{place.label} has {count} passages: too few for a map, wanted {LEAST}")
    worked = store.read_derived(place, "clusters")
    if worked is None or worked.told["table_version"] != version:
        cluster(config, on_progress, version=version)
    on_progress(Progress("map", 0, count))
    seed = config.cluster.seed
    fitted = store.drawn(place, version, FITTED, seed)
    vectors = store.matrix(store.rows_at(place, version, fitted, ["vector"])["vector"].combine_chunks())
    plane = Plane(vectors, seed, others=len(fitted) < count)
    points = np.empty((count, 2), np.float32)
    points[fitted] = plane.layout.points
    if len(fitted) < count:
        _place_others(place, version, plane, fitted, points, on_progress)
    columns = {"x": points[:, 0], "y": points[:, 1]}
    if len(fitted) == count:
        columns["neighbours"] = pa.array(plane.layout.neighbours.tolist(), pa.list_(pa.int32()))
        columns["distances"] = pa.array(plane.layout.distances.tolist(), pa.list_(pa.float32()))
    return _written(place, version, columns)


def _place_others(  # noqa: PLR0917
    place: Store, version: int, plane: Plane, fitted: np.ndarray, points: np.ndarray, on_progress: OnProgress
) -> None:
    """Into `points`, one reading of the table."""
    start = 0
    for batch in store.batches(place, version, ["vector"]):
        others = np.setdiff1d(np.arange(start, start + batch.num_rows), fitted)
        if len(others):
            points[others] = plane.place(store.matrix(batch["vector"])[others - start])
        start += batch.num_rows
        on_progress(Progress("map", start, len(points)))


def _written(place: Store, version: int, columns: dict[str, Any]) -> Map:
    """With the cluster of each row and its topic."""
    assigned, clusters = (store.read_derived(place, name) for name in ("assignments", "clusters"))
    if assigned is None or clusters is None or not version == assigned.told["table_version"] == clusters.told["table_version"]:
        raise StoreError(f"{place.label}: its clusters were made anew meanwhile: run 'latent map' again")
    ids = assigned.rows["cluster_id"].to_numpy()
    groups = clusters.rows.select(["cluster_id", "parent", "level", "label"]).to_pylist()
    names = {row["cluster_id"]: row["label"] for row in groups}
    coarse = coarse_topics(clusters.rows, COLORED - bool((ids < 0).any()))
    rows = pa.table(
        {
            "chunk_id": assigned.rows["chunk_id"],
            "cluster_id": ids,
            "topic": [names.get(each, "") for each in ids.tolist()],
            "coarse_topic": [coarse.get(each, "") for each in ids.tolist()],
            **columns,
        }
    )
    store.write_derived(place, {"map": rows}, {"table_version": version})
    points = np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], 1)
    regions, inside = [], {row["cluster_id"]: {row["cluster_id"]} for row in groups}
    for row in sorted(groups, key=lambda row: row["level"]):
        if row["parent"] is not None:
            inside[row["parent"]] |= inside[row["cluster_id"]]
        member = points[np.isin(ids, list(inside[row["cluster_id"]]))]
        if len(member):
            x, y = np.median(member, 0).tolist()
            regions.append((x, y, row["label"], row["level"]))
    return Map(version, place.table_name("map"), rows, regions)


def coarse_topics(clusters: pa.Table, most: int) -> dict[int, str]:
    """Cluster → the name of its topic at a coarse level, of which there are at most so many.

    Of the table of clusters. Where no level has so few, the clusters are grouped by the likeness of their centers, each group named after its largest.
    """
    rows = clusters.select(["cluster_id", "parent", "level", "label", "rows"]).to_pylist()
    sizes = Counter(row["level"] for row in rows)
    label, parent = ({row["cluster_id"]: row[name] for row in rows} for name in ("label", "parent"))
    finest = sorted((row for row in rows if row["level"] == 0), key=lambda row: -row["rows"])
    level = next((level for level in sorted(sizes) if sizes[level] <= most), None)
    if level is not None:
        found = {row["cluster_id"]: row["cluster_id"] for row in finest}
        for _ in range(level):
            found = {cluster: parent[above] for cluster, above in found.items()}
        return {cluster: label[above] for cluster, above in found.items()}
    centers = clusters.filter(pc.equal(clusters["level"], 0)).select(["cluster_id", "centre"]).to_pylist()
    at = {row["cluster_id"]: row["centre"] for row in centers}
    tree = linkage([at[row["cluster_id"]] for row in finest], "average", metric="cosine")
    groups = fcluster(tree, most, "maxclust").tolist()
    first = {group: row["label"] for row, group in reversed(list(zip(finest, groups, strict=True)))}
    others = {group: count - 1 for group, count in Counter(groups).items()}
    names = {group: f"{name} and {others[group]} more" if others[group] else name for group, name in first.items()}
    return {row["cluster_id"]: names[group] for row, group in zip(finest, groups, strict=True)}


def title_of(table: str, drawn: Map) -> str:
    """What stands above its picture."""
    return f"{table}, version {drawn.table_version}: {drawn.rows.num_rows:,} passages"


def require_picture(file: Path) -> None:
    """Raises ConfigError for a file that no picture can be written to: asked before the work, not after it."""
    if file.suffix not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"--picture {file}: wanted a name that ends in .png, .svg or .pdf")
    if not file.parent.is_dir():
        raise ConfigError(f"--picture {file}: there is no folder {file.parent}: make it first")
    require_replaceable(file, "--picture")


def picture_metadata(file: Path) -> dict[str, str | None]:
    """Who made a picture, as its format says it; no date in an SVG, so that the same map is the same file."""
    if file.suffix == ".svg":
        return {"Creator": MARK, "Date": None}
    return {"Creator" if file.suffix == ".pdf" else "Software": MARK}


def save_picture(drawn: Map, file: Path, title: str) -> None:
    """The map as PNG, SVG or PDF, by the file's ending: a colour and a name for each cluster, the largest named first. Raises ConfigError."""
    try:
        from adjustText import adjust_text
        from matplotlib import patheffects
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib and adjustText: run 'make space', or pip install 'latent[space]'") from None
    require_picture(file)
    ids, sizes = np.unique(drawn.rows["cluster_id"].to_numpy(), return_counts=True)
    colour = {int(each): COLOURS[place % len(COLOURS)] for place, each in enumerate(ids[np.argsort(-sizes)])} | {-1: NOISE_COLOUR}
    figure = Figure(figsize=(12, 12), layout="constrained")
    axes = figure.add_subplot()
    x, y = drawn.rows["x"].to_numpy(), drawn.rows["y"].to_numpy()
    size = np.clip(40_000 / len(x), 0.4, 25)
    axes.scatter(
        x, y, s=size, c=[colour[each] for each in drawn.rows["cluster_id"].to_pylist()], alpha=0.6, linewidths=0, rasterized=True
    )
    rows_of = Counter({each["values"]: each["counts"] for each in drawn.rows["topic"].value_counts().to_pylist()})
    named = sorted((r for r in drawn.regions if r[3] == 0), key=lambda r: -rows_of[r[2]])[:LABELS]
    outline = [patheffects.withStroke(linewidth=3, foreground="white")]
    texts = [
        axes.text(rx, ry, printable_line(label), fontsize=11, ha="center", va="center", path_effects=outline, parse_math=False)
        for rx, ry, label, _ in named
    ]
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_title(title, loc="left", fontsize=13)
    adjust_text(texts, ax=axes, arrowprops={"arrowstyle": "-", "color": "#444444", "lw": 0.8})
    figure.savefig(file, dpi=150, bbox_inches="tight", metadata=picture_metadata(file))


def save_page(config: Config, drawn: Map, folder: Path) -> None:
    """The map as a page: to zoom, search, filter by metadata, colour by any column, click a point and read its text and its neighbours.

    A folder that any web server can serve, and that asks nothing of others. Raises ConfigError where embedding-atlas is missing.
    """
    require_replaceable(folder, "--html")
    try:
        from embedding_atlas.data_source import DataSource
        from embedding_atlas.options import make_embedding_atlas_props
    except ImportError:
        raise ConfigError("a page needs embedding-atlas: run 'make space', or pip install 'latent[space]'") from None
    place = store_of(config)
    names = place.opened(drawn.table_version).schema.names
    kept = ["doc_id", "text", *(name for name in names if name not in OWN_COLUMNS)]
    # Of a name that begins with __ the page makes no chart, no filter and no line on a card.
    row, x, y, near_column = (_free(name, kept) for name in ("__row", "__x", "__y", "__neighbours"))
    topic, fine = (_free(name, kept) for name in ("topic", "subtopic"))
    rows = store.rows_at(place, drawn.table_version, np.arange(drawn.rows.num_rows), kept)
    told = pa.table(
        {
            row: np.arange(rows.num_rows),
            topic: [name or NO_TOPIC for name in drawn.rows["coarse_topic"].to_pylist()],
            fine: [name or NO_TOPIC for name in drawn.rows["topic"].to_pylist()],
            **{name: rows[name] for name in kept if name != "text"},
            "text": [text[:PAGE_CHARS] for text in rows["text"].to_pylist()],
            x: drawn.rows["x"],
            y: drawn.rows["y"],
        }
    )
    if told[topic].equals(told[fine]):
        told = told.drop_columns([fine])
    if "neighbours" in drawn.rows.column_names:
        near = zip(drawn.rows["neighbours"].to_pylist(), drawn.rows["distances"].to_pylist(), strict=True)
        told = told.append_column(near_column, pa.array([{"ids": ids, "distances": far} for ids, far in near]))
    top = max(level for *_, level in drawn.regions)  # the page counts from the coarsest, which it shows from afar
    labels = [{"x": x, "y": y, "content": label, "level": top - level, "priority": level} for x, y, label, level in drawn.regions]
    neighbours = near_column if near_column in told.column_names else None
    props = make_embedding_atlas_props(row_id=row, x=x, y=y, text="text", labels=labels, neighbors=neighbours)
    props["embeddingViewConfig"] = {"autoLabelEnabled": False}
    props["initialState"] = {"chartStates": {MAP_CHART: {"viewport": _viewport(drawn.rows)}}}
    drawn_as = {"x": x, "y": y, "text": "text", "neighbors": neighbours, "category": topic}
    props["defaultChartsConfig"] = {"embedding": {"data": drawn_as, "title": "Map"}, "exclude": ["doc_id"]}
    colors = iter((*HUES[:-1], *COLOURS[-8:]))
    sizes = Counter(told[topic].to_pylist()).most_common()  # as the page orders them
    shown = [NOISE_COLOUR if name == NO_TOPIC else next(colors) for name, _ in sizes[:COLORED]]
    props["chartTheme"] = {scheme: {"categoryColors": shown} for scheme in ("light", "dark")}
    with as_file(files("embedding_atlas") / "static") as static:
        source = DataSource(f"{place.name} {drawn.table_version}", told.to_pandas(), {"props": props})
        source.export_to_folder(str(static), str(folder))
    index = folder / "index.html"
    head = Template((files(__package__) / "map_head.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title_of(place.name, drawn))
    )
    page = TITLE.sub(lambda _: head, index.read_text(encoding="utf-8"), count=1)
    index.write_text(f"{page}<!-- {MARK} -->\n", encoding="utf-8")


def _viewport(rows: pa.Table) -> dict[str, float]:
    """All points with a margin, in the longer side of the page's map; map_head.html makes of that what the shorter one needs."""
    (left, right), (bottom, top) = ((pc.min_max(rows[name])["min"].as_py(), pc.min_max(rows[name])["max"].as_py()) for name in "xy")
    half = max(right - left, top - bottom, 1e-6) / 2
    return {"x": (left + right) / 2, "y": (bottom + top) / 2, "scale": 1 / half / MARGIN}


def _free(name: str, taken: Sequence[str]) -> str:
    """A column's name that no column of the documents has, whatever the case: DuckDB, which reads them in the page, knows none."""
    while name.casefold() in (each.casefold() for each in taken):
        name += "_"
    return name


def show_page(folder: Path, on_ready: Callable[[str], None], port: int = 0) -> None:
    """Serve a page on loopback and open it in the browser, until Ctrl-C."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        on_ready(url)
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        with interruption.ending_in_order():
            server.serve_forever()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def parse_request(self) -> bool:
        """Refuse a Host header that names another machine."""
        if not super().parse_request():
            return False
        if is_served(self.headers.get("Host", ""), "127.0.0.1"):
            return True
        self.send_error(421, "this host name is not served")
        return False

    def log_message(self, *_: object) -> None:
        """Nothing: a page asks for many files."""
