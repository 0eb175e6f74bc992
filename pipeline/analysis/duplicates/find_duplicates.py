"""`latent duplicates`: passages that say what another one says already, and passages like no other.

Equal texts are met by their hash. The vectors of all others are put in the order of their cells into a file that is gone afterwards, 1.5 GB for a million of 384 numbers; memory holds
some cells at a time and some 200 bytes a row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import store
from latent.analysis.clustering.cluster_table import SAMPLE
from latent.analysis.duplicates import neighbors as neighbours
from latent.analysis.duplicates.neighbors import Cells
from latent.config import Config
from latent.errors import QueryError
from latent.ingest.resolve import store_of
from latent.ingest.run import quiet
from latent.schemas import REDUNDANT_DOCUMENTS
from latent.store import Store
from latent.types import OnProgress, Progress

CHECKED = 500  # rows that are compared with all, to see how many cells must be looked at
OUTLIERS = 100
TRIED = 10  # times as many are compared with all rows: the strangest are among them
SHOWN = 10


@dataclass(frozen=True)
class Alike:
    """A group, for people: the passage that is kept, and one of those that may go."""

    rows: int
    kept: str
    other: str
    similarity: float


@dataclass(frozen=True)
class Stranger:
    """A passage far from all others."""

    chunk_id: str
    distance: float  # cosine distance to the fifth nearest
    text: str


@dataclass(frozen=True)
class Duplicates:
    """What was found."""

    table_version: int
    rows: int
    similarity: float
    groups: int
    droppable: int  # passages that a kept one stands for
    equal: int  # of these: the very same text
    documents: int  # all of whose passages may go
    pairs_met: float  # share of the pairs so similar that was compared, as an exact comparison of some rows has it, and
    pairs_seen: int  # so many pairs that was seen on
    duplicates_table: str
    outliers_table: str
    largest: Sequence[Alike] = field(repr=False)
    strangest: Sequence[Stranger] = field(repr=False)


def duplicates(config: Config, on_progress: OnProgress = quiet, *, version: int | None = None) -> Duplicates:
    """Find the passages of a version, the newest by default, that are as similar as `[duplicates] similarity` to one that is kept, and the strangest ones; write both tables.

    Raises QueryError where there are too few passages, StoreError.
    """
    place = store_of(config)
    table = place.opened(version)
    store.check_derived(place, "redundant", "duplicates", "outliers")
    version, count, similarity = int(table.version), table.count_rows(), config.duplicates.similarity
    if count <= neighbours.NEIGHBOURS:
        raise QueryError(f"{place.label} has {count} passages: too few to compare, wanted {neighbours.NEIGHBOURS + 1}")
    first = _first_of_text(place, version)
    rows = np.flatnonzero(first == np.arange(count))
    cells = _cells(place, version, rows, on_progress)
    rows = rows[cells.order]
    with tempfile.TemporaryFile() as spill:
        vectors = _spilled(place, version, rows, spill)
        checked = np.random.default_rng(0).permutation(len(rows))[:CHECKED]
        looks = neighbours.looks_for(cells, neighbours.pairs(vectors, checked, similarity))
        found = neighbours.kin(
            vectors, cells, similarity, looks.cells, lambda done: on_progress(Progress("compare", done, len(rows)))
        )
        strange = np.argsort(-found.far, kind="stable")[: TRIED * OUTLIERS]
        far, nearest = neighbours.far_from_all(vectors, strange)
    furthest = np.argsort(-far, kind="stable")[:OUTLIERS]
    outliers = _outliers(place, version, rows[strange[furthest]], far[furthest], rows[nearest[furthest]])
    kept, likeness = np.arange(count), np.ones(count, np.float32)
    kept[rows], likeness[rows] = rows[found.kept], found.similarity
    kept, likeness = kept[first], likeness[first]
    inside = _in_groups(kept, likeness)
    grouped = _grouped(place, version, inside, kept[inside] == inside, likeness[inside])
    spared = _spared(place, version, grouped, similarity)
    told = {"table_version": version, "rows": count, "similarity": similarity, "pairs_met": looks.met, "pairs_seen": looks.pairs}
    alike = grouped.drop_columns(["doc_hash", "kept_doc_id", "kept_doc_hash"])
    store.write_derived(place, {"redundant": spared, "duplicates": alike, "outliers": outliers}, told)
    dropped = grouped.filter(pc.invert(grouped["keep"]))
    return Duplicates(
        table_version=version,
        rows=count,
        similarity=similarity,
        groups=grouped.num_rows - dropped.num_rows,
        droppable=dropped.num_rows,
        equal=count - len(rows),
        documents=int(pc.sum(pc.is_in(spared["doc_id"], value_set=dropped["doc_id"].combine_chunks())).as_py() or 0),
        pairs_met=looks.met,
        pairs_seen=looks.pairs,
        duplicates_table=place.table_name("duplicates"),
        outliers_table=place.table_name("outliers"),
        largest=_largest(place, version, inside, grouped),
        strangest=[Stranger(row["chunk_id"], row["distance"], row["text"]) for row in outliers.to_pylist()[:SHOWN]],
    )


def _first_of_text(place: Store, version: int) -> np.ndarray:
    """Of each row the first one (n,) that has the same text."""
    hashes = pa.chunked_array([batch["chunk_hash"] for batch in store.batches(place, version, ["chunk_hash"])]).combine_chunks()
    first: np.ndarray = pc.index_in(hashes, value_set=hashes).to_numpy()
    return first


def _cells(place: Store, version: int, rows: np.ndarray, on_progress: OnProgress) -> Cells:
    """These rows by cell, in each the longest first: of two that say the same it says more."""
    on_progress(Progress("centres", 0, len(rows)))
    sample = store.rows_at(place, version, store.drawn(place, version, SAMPLE, 0), ["vector"])["vector"].combine_chunks()
    middles = neighbours.centres(store.matrix(sample), len(rows), 0)
    nearest, length, start = [], [], 0
    for batch in store.batches(place, version, ["vector", "char_start", "char_end"]):
        own = _within(rows, start, batch.num_rows)
        nearest.append(neighbours.nearest_cells(store.matrix(batch["vector"])[own], middles))
        length.append(pc.subtract(batch["char_end"], batch["char_start"]).to_numpy()[own])
        start += batch.num_rows
        on_progress(Progress("assign", start, len(rows)))
    return neighbours.in_cells(np.concatenate(nearest), np.concatenate(length))


def _spilled(place: Store, version: int, rows: np.ndarray, file: IO[bytes]) -> np.ndarray:
    """The vectors (n, dim) of these rows in the order given, in a file."""
    dim = place.opened(version).schema.field("vector").type.list_size
    vectors = np.memmap(file, np.float32, "w+", shape=(len(rows), dim))
    order, start = np.argsort(rows), 0
    for batch in store.batches(place, version, ["vector"]):
        own = _within(rows[order], start, batch.num_rows)
        vectors[order[np.searchsorted(rows[order], start + own)]] = store.matrix(batch["vector"])[own]
        start += batch.num_rows
    return vectors


def _within(rows: np.ndarray, start: int, count: int) -> np.ndarray:
    """Which of so many rows from `start` on are among these, which are in order: counted from `start`."""
    some: np.ndarray = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + count)] - start
    return some


def _in_groups(kept: np.ndarray, likeness: np.ndarray) -> np.ndarray:
    """The rows of groups of two or more: the largest group first, in each the kept one first, then the most similar."""
    size = np.bincount(kept, minlength=len(kept))[kept]
    inside = np.flatnonzero(size > 1)
    ordered: np.ndarray = inside[np.lexsort((-likeness[inside], inside != kept[inside], kept[inside], -size[inside]))]
    return ordered


def _grouped(place: Store, version: int, inside: np.ndarray, stands: np.ndarray, likeness: np.ndarray) -> pa.Table:
    ids = store.rows_at(place, version, inside, ["chunk_id", "doc_id", "doc_hash"])
    kept = ids.take(np.maximum.accumulate(np.where(stands, np.arange(len(inside)), 0)))
    return pa.table(
        {
            "group_id": (np.cumsum(stands) - 1).astype(np.int32),
            "chunk_id": ids["chunk_id"],
            "doc_id": ids["doc_id"],
            "doc_hash": ids["doc_hash"],
            "keep": stands,
            "similarity": likeness,
            "kept_chunk_id": kept["chunk_id"],
            "kept_doc_id": kept["doc_id"],
            "kept_doc_hash": kept["doc_hash"],
        }
    )


def _largest(place: Store, version: int, inside: np.ndarray, grouped: pa.Table) -> list[Alike]:
    """The first groups, each with its least similar passage."""
    groups = grouped["group_id"].to_numpy()
    ends = np.searchsorted(groups, np.arange(SHOWN + 1))
    shown = [(first, last - 1) for first, last in pairwise(ends.tolist()) if last > first]
    texts = iter(store.rows_at(place, version, inside[np.array(shown, int).ravel()], ["text"])["text"].to_pylist())
    return [Alike(last + 1 - first, next(texts), next(texts), grouped["similarity"][last].as_py()) for first, last in shown]


def _outliers(place: Store, version: int, strange: np.ndarray, far: np.ndarray, nearest: np.ndarray) -> pa.Table:
    rows = store.rows_at(place, version, strange, ["chunk_id", "doc_id", "text"])
    beside = store.rows_at(place, version, nearest, ["chunk_id"])["chunk_id"]
    return rows.add_column(2, "distance", pa.array(far, pa.float32())).add_column(3, "nearest_chunk_id", beside)


def _spared(place: Store, version: int, grouped: pa.Table, similarity: float) -> pa.Table:
    """Documents of which every passage may go; and those that were found so before, are left out since, and whose like is still there."""
    documents = pa.Table.from_batches(list(store.batches(place, version, ["doc_id", "doc_hash"]))).group_by(["doc_id", "doc_hash"])
    passages = documents.aggregate([([], "count_all")])
    dropped = grouped.filter(pc.invert(grouped["keep"])).group_by(["doc_id", "doc_hash"])
    found = dropped.aggregate([([], "count_all"), ("similarity", "min"), ("kept_doc_id", "list"), ("kept_doc_hash", "list")])
    keys = [pc.binary_join_element_wise(each["doc_id"], each["doc_hash"], "") for each in (found, passages)]
    has = passages["count_all"].take(pc.index_in(keys[0], value_set=keys[1].combine_chunks()))
    found = found.filter(pc.equal(found["count_all"], has))
    found = found.take(pc.sort_indices(found["doc_id"]))
    rows = found.select(["doc_id", "doc_hash", "similarity_min", "kept_doc_id_list", "kept_doc_hash_list"]).rename_columns(
        REDUNDANT_DOCUMENTS.names
    )
    before = store.redundant_documents(place, similarity)
    if before is None:
        return rows
    there = set(zip(passages["doc_id"].to_pylist(), passages["doc_hash"].to_pylist(), strict=True))
    there -= set(zip(rows["doc_id"].to_pylist(), rows["doc_hash"].to_pylist(), strict=True))
    held = pc.is_in(before["doc_id"], value_set=passages["doc_id"].combine_chunks())
    stays = [
        not known and there.issuperset(zip(ids, hashes, strict=True))
        for known, ids, hashes in zip(
            *(each.to_pylist() for each in (held, before["kept_ids"], before["kept_hashes"])), strict=True
        )
    ]
    return pa.concat_tables([rows, before.filter(pa.array(stays, pa.bool_()))])
