"""`latent cluster`: the table's passages in groups that keep their numbers and names from one night to the next.

Centres are found on a sample; then each row of the table, read some thousands at a time, belongs to its nearest. So memory holds the sample and, of each row, its id and three
numbers: some 400 MB for a million rows.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice, pairwise, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import store
from latent.analysis.clustering import algorithm as groups
from latent.analysis.clustering.algorithm import NOISE, Centres
from latent.config import Config
from latent.errors import ConfigError, QueryError, one_line
from latent.ingest.resolve import store_of
from latent.ingest.run import quiet
from latent.store import DerivedTable, Store
from latent.types import OnProgress, Progress

SAMPLE = 100_000  # rows that centres are found on: 150 MB of vectors of 384 numbers
GROWN = 2.0  # times the rows that the number of clusters was chosen for: it is chosen anew
EXEMPLARS = 5
LOOKED_AT = 4 * EXEMPLARS  # nearest rows: those of equal text count once
TITLE_CHARS = 80
WORDS_KEPT = 10


@dataclass(frozen=True)
class Topic:
    """What a labeller is told of a cluster."""

    words: Sequence[str]  # that tell it from the others, the most telling first
    exemplars: Sequence[str]  # the texts nearest to its centre
    rows: int


Labeller = Callable[[Sequence[Topic]], Sequence[str]]


@dataclass(frozen=True)
class Group:
    """A cluster, or at a higher level a group of them: a row of the table of clusters."""

    cluster_id: int
    level: int  # 0: clusters; above: groups of those below
    parent: int | None
    label: str
    words: Sequence[str]
    rows: int
    exemplars: Sequence[str]  # chunk_ids, the nearest to the centre first
    titles: Sequence[str]  # how their texts begin


@dataclass(frozen=True)
class Clustered:
    """What `cluster` did."""

    clusters: int
    noise: int  # rows that belong to none
    silhouette: float | None
    clusters_table: str
    assignments_table: str
    table_version: int
    kept: int  # clusters that were there before
    new: int
    gone: int
    agreement: dict[str, float]  # with given labels, where that was asked for
    groups: Sequence[Group] = field(repr=False)

    def flat(self) -> dict[str, object]:
        """As `--json` prints it."""
        told = asdict(self)
        return (
            {name: told[name] for name in told if name not in {"agreement", "groups"}} | self.agreement | {"groups": told["groups"]}
        )


@dataclass(frozen=True)
class _Of:
    """What is grouped, and how."""

    config: Config
    place: Store
    version: int
    rows: int
    former: DerivedTable | None  # the table of clusters before; None: there was none, or of other vectors
    digest: str  # of the model that made the vectors


def cluster(
    config: Config, on_progress: OnProgress = quiet, *, fresh: bool = False, against: str | None = None, version: int | None = None
) -> Clustered:
    """Group the passages of a version, the newest by default, as `[cluster]` says, and write who belongs where. `fresh`: nothing is taken over from before.
    `against`: a metadata column of labels to compare with.

    Raises QueryError where there is too little to group or no such column, ConfigError where the labeller cannot be had, StoreError.
    """
    of, labeller = _of(config, version, against, fresh=fresh), _labeller(config.cluster.labeller)
    seed = config.cluster.seed
    on_progress(Progress("centres", 0, of.rows))
    places = store.drawn(of.place, of.version, SAMPLE, seed)
    sample = store.rows_at(of.place, of.version, places, ["text", "vector"])
    vectors = store.matrix(sample["vector"].combine_chunks())
    centres = _centres(of, vectors)
    assigned, labels = _assigned(of, centres, against, on_progress)
    found = assigned["cluster_id"].to_numpy()
    numbers = _Numbers(of, centres, assigned)
    told = _groups(of, numbers, assigned, sample["text"].to_pylist(), found[places], labeller)
    _write(of, numbers, assigned, told, centres)
    former = set(numbers.former_sizes(0))
    kept = len(former & {int(number) for number in numbers.of_level[0]})
    return Clustered(
        clusters=len(centres.at),
        noise=int((found == NOISE).sum()),
        silhouette=groups.silhouette(vectors, found[places], seed),
        clusters_table=of.place.table_name("clusters"),
        assignments_table=of.place.table_name("assignments"),
        table_version=of.version,
        kept=kept,
        new=len(centres.at) - kept,
        gone=len(former) - kept,
        agreement=groups.agreement(found.tolist(), labels) if against else {},
        groups=told,
    )


def _of(config: Config, version: int | None, against: str | None, *, fresh: bool) -> _Of:
    place = store_of(config)
    table = place.opened(version)
    store.check_derived(place, "clusters", "assignments")
    rows, wanted = table.count_rows(), config.cluster.number
    columns = [name for name in table.schema.names if name != "vector"]
    if against and against not in columns:
        raise QueryError(f"no column {against!r} in {place.label}: it has {', '.join(columns)}")
    if rows < 3 or (wanted != "auto" and wanted > rows):
        raise QueryError(
            f"{place.label} has {rows} passages: too few for {'clusters' if wanted == 'auto' else f'{wanted} clusters'}"
        )
    spec = store.spec_of(place, int(table.version))
    digest = spec.model_digest if spec else ""
    former = None if fresh else store.read_derived(place, "clusters")
    return _Of(
        config, place, int(table.version), rows, former if former and former.told["model_digest"] == digest else None, digest
    )


def _centres(of: _Of, vectors: np.ndarray) -> Centres:
    """Found anew; or from yesterday's on, where there are as many."""
    settings, former = of.config.cluster, of.former
    if settings.method == "density":
        return groups.density(vectors, None if settings.number == "auto" else settings.number, settings.seed)
    k, start = settings.number, None
    if former is not None and former.told["method"] == "kmeans":
        if k == "auto" and former.told["asked"] == "auto" and of.rows < GROWN * former.told["rows"]:
            k = former.told["number"]
        if k == former.told["number"]:
            start = store.matrix(_level(former.rows, 0)["centre"].combine_chunks())
    return groups.kmeans(vectors, groups.choose_number(vectors, settings.seed) if k == "auto" else k, settings.seed, start)


def _assigned(of: _Of, centres: Centres, against: str | None, on_progress: OnProgress) -> tuple[pa.Table, list[object]]:
    """chunk_id, cluster_id (a row of centres, or NOISE), strength, outlier of every row; and the labels to compare with."""
    parts: list[pa.RecordBatch] = []
    labels: list[object] = []
    done = 0
    for batch in store.batches(of.place, of.version, ["chunk_id", "vector", *([against] if against else [])]):
        found = groups.belong(store.matrix(batch["vector"]), centres)
        columns = {"chunk_id": batch["chunk_id"], "cluster_id": found.cluster, "strength": found.strength, "outlier": found.outlier}
        parts.append(pa.record_batch(columns))
        labels += batch[against].to_pylist() if against else []
        on_progress(Progress("assign", done := done + batch.num_rows, of.rows))
    return pa.Table.from_batches(parts), labels


class _Numbers:
    """The numbers of clusters and of the groups above them: those of before where they are the same still, else new ones, never given before."""

    def __init__(self, of: _Of, centres: Centres, assigned: pa.Table) -> None:
        self._former = of.former.rows.select(["cluster_id", "level", "parent", "rows"]).to_pylist() if of.former else []
        was = store.read_derived(of.place, "assignments") if of.former else None
        both = groups.tally(was.rows.select(["chunk_id", "cluster_id"]), assigned.select(["chunk_id", "cluster_id"])) if was else {}
        self.next_id = int(of.former.told["next_id"]) if of.former else 0
        self.ladder = [np.arange(len(centres.at), dtype=np.int32), *groups.levels(centres.at)]  # by level: the group of each centre
        self.of_level = [self._numbered(level, group, both) for level, group in enumerate(self.ladder)]

    def parent(self, level: int, centre: int) -> int | None:
        """The number of the group at the level above that a centre is in."""
        return int(self.of_level[level + 1][self.ladder[level + 1][centre]]) if level + 1 < len(self.ladder) else None

    def former_sizes(self, level: int) -> dict[int, int]:
        """Of the groups that there were at a level."""
        return {row["cluster_id"]: row["rows"] for row in self._former if row["level"] == level}

    def _numbered(self, level: int, group: np.ndarray, both: Mapping[tuple[int, int], int]) -> np.ndarray:
        """The number of each group of a level."""
        then = {number: place for place, number in enumerate(self.former_sizes(level))}
        counts = np.zeros((int(group.max()) + 1, len(then)))
        for (now, was), rows in both.items():
            above = self._above(was, level)
            if now != NOISE and above in then:
                counts[group[now], then[above]] += rows
        same = groups.match(counts, counts.sum(1), counts.sum(0)) if then else {}
        names = list(then)
        numbers = np.empty(len(counts), np.int32)
        for each in range(len(counts)):
            numbers[each] = names[same[each]] if each in same else self._new()
        return numbers

    def _new(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _above(self, cluster_id: int, level: int) -> int | None:
        """The group of a former cluster at a level."""
        parents = {row["cluster_id"]: row["parent"] for row in self._former}
        above: int | None = cluster_id
        for _ in range(level):
            above = parents.get(above) if above is not None else None
        return above


def _groups(  # noqa: PLR0917
    of: _Of, numbers: _Numbers, assigned: pa.Table, texts: list[str], found: np.ndarray, labeller: Labeller
) -> list[Group]:
    """All levels, the coarsest first; within one the largest first. `texts`, `found`: of the sample. Names are kept where the same labeller gave them."""
    same = of.former is not None and of.former.told.get("labeller", "") == _told_of(of.config)
    known = {row["cluster_id"]: row["label"] for row in of.former.rows.to_pylist()} if of.former and same else {}
    sizes = np.bincount(assigned["cluster_id"].to_numpy() + 1, minlength=len(numbers.ladder[0]) + 1)[1:]
    terms = groups.terms_of(texts, stop_words=of.config.index.language == "English")
    nearest = _nearest(of, assigned, len(sizes))
    told, topics = list[Group](), list[Topic]()
    for level, group in enumerate(numbers.ladder):
        ids = numbers.of_level[level]
        words = groups.words_of(terms, np.where(found == NOISE, NOISE, group[found]), len(ids))
        for each, number in enumerate(ids.tolist()):
            within = sorted(np.flatnonzero(group == each), key=lambda centre: -sizes[centre])
            in_turn = chain.from_iterable(zip_longest(*(nearest[centre].items() for centre in within)))
            like = dict(islice(filter(None, in_turn), EXEMPLARS))
            topics.append(Topic(words[each], list(like.values()), int(sizes[within].sum())))
            told.append(
                Group(
                    number,
                    level,
                    numbers.parent(level, int(within[0])),
                    known.get(number, ""),
                    words[each][:WORDS_KEPT],
                    topics[-1].rows,
                    list(like),
                    [" ".join(text.split())[:TITLE_CHARS] for text in like.values()],
                )
            )
    if unnamed := [place for place, each in enumerate(told) if not each.label]:
        for place, label in zip(unnamed, labeller([topics[place] for place in unnamed]), strict=True):
            told[place] = replace(told[place], label=label)
    return sorted(told, key=lambda each: (-each.level, -each.rows, each.cluster_id))


def _labels(topics: Sequence[Topic]) -> list[str]:
    """The most telling words; where there are none, how the passage nearest to the centre begins."""
    return [groups.label(topic.words) or next(iter(topic.exemplars), "")[:TITLE_CHARS] for topic in topics]


def _nearest(of: _Of, assigned: pa.Table, count: int) -> list[dict[str, str]]:
    """For each cluster the passages nearest to its centre: chunk_id → text, no text twice."""
    member = assigned["cluster_id"].to_numpy()
    order = np.lexsort((assigned["outlier"].to_numpy(), member))
    starts = np.searchsorted(member[order], np.arange(count + 1))
    places = [order[start:end][:LOOKED_AT] for start, end in pairwise(starts)]
    rows = iter(store.rows_at(of.place, of.version, np.concatenate(places), ["chunk_id", "text"]).to_pylist())
    found: list[dict[str, str]] = []
    for some in places:
        by_text: dict[str, str] = {}
        for row in islice(rows, len(some)):
            by_text.setdefault(row["text"], row["chunk_id"])
        found.append({chunk_id: text for text, chunk_id in islice(by_text.items(), EXEMPLARS)})
    return found


def _write(of: _Of, numbers: _Numbers, assigned: pa.Table, told: list[Group], centres: Centres) -> None:
    """The assignments first: a table of clusters never tells of rows that are not there yet."""
    settings = of.config.cluster
    properties = {
        "table_version": of.version,
        "rows": of.rows,
        "model_digest": of.digest,
        "method": settings.method,
        "asked": settings.number,
        "number": len(centres.at),
        "seed": settings.seed,
        "next_id": numbers.next_id,
        "labeller": _told_of(of.config),
    }
    given = np.append(numbers.of_level[0], NOISE)  # the last one for noise
    ids = pa.array(given[assigned["cluster_id"].to_numpy()], pa.int32())
    at = {int(number): place for place, number in enumerate(numbers.of_level[0])}
    rows = [asdict(each) | {"share": each.rows / of.rows} for each in told]
    for row in rows:
        place = at[row["cluster_id"]] if row["level"] == 0 else None
        row |= {
            "centre": None if place is None else centres.at[place],
            "reach": None if place is None else float(centres.reach[place]),
        }
    clusters = pa.Table.from_pylist(rows, schema=_schema(centres.at.shape[1]))
    store.write_derived(of.place, {"assignments": assigned.set_column(1, "cluster_id", ids), "clusters": clusters}, properties)


def _schema(dim: int) -> pa.Schema:
    texts = pa.list_(pa.string())
    return pa.schema(
        [
            pa.field("cluster_id", pa.int32(), nullable=False),
            pa.field("level", pa.int32(), nullable=False),
            ("parent", pa.int32()),
            ("label", pa.string()),
            ("words", texts),
            ("rows", pa.int64()),
            ("share", pa.float64()),
            ("exemplars", texts),
            ("titles", texts),
            ("centre", pa.list_(pa.float32(), dim)),  # of clusters only
            ("reach", pa.float32()),  # greatest cosine distance of a member; 2: every row belongs to its nearest
        ]
    )


def _level(rows: pa.Table, level: int) -> pa.Table:
    return rows.filter(pc.equal(rows["level"], level)).sort_by("cluster_id")


def _told_of(config: Config) -> str:
    """The labeller's name without its folder: moved elsewhere, it is the same one."""
    return Path(config.cluster.labeller).name


def _labeller(named: str) -> Labeller:
    """The function that a config names; without one, words. It gets Topics and gives a name for each."""
    if not named:
        return _labels
    path, _, name = named.rpartition(":")
    folder, module = os.path.split(path)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)  # as Python does for a script: it may import what lies beside it
    try:
        found: Labeller = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001  whatever somebody's own module raises
        raise ConfigError(
            f"[cluster] labeller = {named!r}: {one_line(str(error))}: wanted module:function that can be imported, beside the config file or installed"
        ) from None

    def asked(topics: Sequence[Topic]) -> list[str]:
        try:
            labels = [str(label) for label in found(topics)]
        except Exception as error:
            raise ConfigError(one_line(f"[cluster] labeller = {named!r} failed: {type(error).__name__}: {error}")) from error
        if len(labels) != len(topics):
            raise ConfigError(f"[cluster] labeller = {named!r}: {len(labels)} names for {len(topics)} topics: wanted one for each")
        return labels

    return asked
