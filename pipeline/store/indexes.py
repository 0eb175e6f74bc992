"""What `maintain` keeps beside the rows, through lancedb, so that any lancedb client uses the same indexes.

Below INDEXED_FROM rows nothing is indexed but words: exact search is as fast. Above:

- **vectors**: IVF with 1-bit residual quantisation (RaBitQ, Gao & Long 2024, https://arxiv.org/abs/2405.12497), or with 8 bits where that cannot be had or does
  not hold the recall; how far searches look is measured (`tuning`). New rows are folded in as they come; the index is trained anew when what it was
  tuned to no longer holds, or when the table has doubled.
- **words**: BM25, in every script (`word_index`). **metadata**: bitmaps for columns of few values, else trees. **ids and hashes**: trees, so that a night's look-ups cost by the change.

Rows newer than an index are searched one by one, so nothing waits for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent.schemas import OWN_COLUMNS
from latent.store.failures import lance_errors
from latent.store.full_text_index import index_words, missed_by_words
from latent.store.full_text_settings import FullTextSettings
from latent.store.lease import Lease
from latent.store.ownership import Store
from latent.store.reader import INDEXED_FROM, TUNING_KEY, TableReader, Tuning, connected, read_tuning
from latent.store.tuning import RecallSample, check, draw, tune

MEASURED_AGAIN = 0.1  # of the rows are new since the last measurement
TRAINED_AGAIN = 2  # times the rows that the index was trained on
PIECES = 8  # of an index, one a fold: merged when there are more
LARGE_FRAGMENT = 50_000  # rows, and
LARGE_SHARE = 0.02  # of the table
DELETED = 0.1
TREE_BEHIND = 0.02  # of the rows: compared one by one
LOOKED_UP = ("doc_id", "chunk_hash")  # by runs, and for what stands around a hit
SAMPLED = 10_000  # rows, to see what a column holds
FEW_VALUES = 500  # among them: a bitmap
LONG = 200  # characters: such texts are not filtered by their value
EVERY_PART = 1_000_000  # as nprobes: no index has as many
SEED = 20


@dataclass(frozen=True)
class Index:
    """A search structure on the table."""

    name: str
    kind: str
    columns: tuple[str, ...]
    behind: int  # rows newer than it: searched one by one
    pieces: int

    def __str__(self) -> str:
        return f"{self.kind} on {', '.join(self.columns)}, {self.behind} rows behind"


def indexes(store: Store) -> list[Index]:
    """The indexes of the table."""
    with lance_errors(f"{store.label}: its indexes cannot be read"):
        table = connected(store)
        stats = [(index, table.index_stats(index.name)) for index in table.list_indices()]
    return [Index(i.name, i.index_type, tuple(i.columns), s.num_unindexed_rows, s.num_indices or 1) for i, s in stats if s]


def update_indexes(store: Store, lease: Lease, recall: float, words: FullTextSettings | None) -> Tuning | None:
    """Merge small fragments, bring all indexes up to date, and measure where that is due. `words` None: no full-text index.

    Costs by what is new, not by the table, but for a measurement, due when a tenth of the rows is new. Returns how vector searches look. Raises TableBusy where the lease is lost meanwhile.
    """
    with lance_errors(f"{store.label} cannot be maintained"):
        _compact(store)
        index_words(store, lease, words)
        _index_values(store)
        _fold_in(store)
        tuning = _index_vectors(store, recall)
        table = store.opened()
        if read_tuning(table) != tuning:
            table.update_metadata({TUNING_KEY: json.dumps(asdict(tuning)) if tuning else None})
    return tuning


def _compact(store: Store) -> None:
    """Small fragments into larger ones. Those that are large already stay as they are, until a tenth of their rows is deleted: each row is written a few times only."""
    table = store.opened()
    large = max(LARGE_FRAGMENT, LARGE_SHARE * table.count_rows())
    fragments = [f for f in table.get_fragments() if f.physical_rows >= large and f.num_deletions < DELETED * f.physical_rows]
    table.optimize.compact_files(excluded_fragment_ids=[f.fragment_id for f in fragments])


def _fold_in(store: Store) -> None:
    """New rows into the indexes: as a piece more, all pieces into one where they are many. A tree is made anew: it is read by lancedb only as lancedb makes it."""
    for index in indexes(store):
        if index.kind == "BTree":
            if index.behind > TREE_BEHIND * store.opened().count_rows():
                from lancedb.index import BTree

                connected(store).create_index(index.columns[0], config=BTree(), replace=True)
        elif index.behind or index.pieces > PIECES:
            merged = index.pieces if index.pieces >= PIECES else 0
            store.opened().optimize.optimize_indices(num_indices_to_merge=merged, index_names=[index.name])


def _index_values(store: Store) -> None:
    """Indexes for conditions and look-ups, where the table is large and the column of a kind that one helps."""
    table = connected(store)
    if table.count_rows() < INDEXED_FROM:
        return
    present = {column for index in table.list_indices() for column in index.columns}
    rows = store.opened()
    wanted = [f for f in rows.schema if f.name not in present and (f.name in LOOKED_UP or f.name not in OWN_COLUMNS)]
    if wanted:
        sample = rows.head(SAMPLED, columns=[f.name for f in wanted])
        for field in wanted:
            if (config := _for_values(field, sample[field.name])) is not None:
                table.create_index(field.name, config=config)


def _for_values(field: pa.Field, sample: pa.ChunkedArray) -> Any:
    """The kind of index that helps conditions on such a column; None where none does."""
    from lancedb.index import Bitmap, BTree, LabelList

    kind = field.type
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return LabelList()
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return None
    if pa.types.is_string(kind) and (pc.mean(pc.utf8_length(sample)).as_py() or 0) > LONG:
        return None
    return Bitmap() if field.name not in LOOKED_UP and pc.count_distinct(sample).as_py() <= FEW_VALUES else BTree()


def _index_vectors(store: Store, recall: float) -> Tuning | None:
    """The vector index, and how far to look in it. None: there is none, the table is small."""
    table = store.opened()
    count = table.count_rows()
    if count < INDEXED_FROM:
        return None
    tuning = read_tuning(table)
    present = [index for index in indexes(store) if "vector" in index.columns]
    if tuning and tuning.wanted == recall and bool(tuning.nprobes) == bool(present):
        new = table.count_rows(f"_row_created_at_version > {tuning.version}")
        if new + abs(count - tuning.rows) < MEASURED_AGAIN * tuning.rows:
            return tuning
    trial = draw(table)
    if present and tuning and count < TRAINED_AGAIN * tuning.trained:
        reading = TableReader(store)
        held = (tuning.wanted == recall and check(reading, trial, tuning)) or tune(reading, trial, recall)
        if held.nprobes:
            return replace(held, trained=tuning.trained)
    return _trained(store, trial, recall)


def _trained(store: Store, trial: RecallSample, recall: float) -> Tuning:
    """A vector index trained on the table as it is: of the first kind that holds the recall and is faster than exact search; else none."""
    from lancedb.index import IvfRq, IvfSq

    table = connected(store)
    for kind in (IvfRq, IvfSq):
        if kind is IvfRq and trial.queries.shape[1] % 8:
            continue  # RaBitQ packs eight dimensions a byte
        table.create_index("vector", config=kind(distance_type="cosine"), replace=True)
        reading = TableReader(store)
        tuning = tune(reading, trial, recall)
        if tuning.nprobes:
            return tuning
    table.drop_index(next(index.name for index in table.list_indices() if "vector" in index.columns))
    return tuning


def missed_by_indexes(store: Store, sample: int) -> list[str]:
    """Rows that a search through an index cannot find, as 'chunk_id (kind)'.

    The vector index is asked for all rows at once, of all its parts; the full-text index for `sample` rows by their own words.
    """
    columns = {column for index in indexes(store) for column in index.columns}
    with lance_errors(f"{store.label}: its indexes cannot be read"):
        table = connected(store)
        count = table.count_rows()
        missed: list[str] = []
        if "vector" in columns and count:
            known = store.opened().to_table(columns=["chunk_id"])["chunk_id"]
            probe = store.opened().take([0], columns=["vector"])["vector"].to_pylist()[0]
            query = table.search(probe, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(count)
            found = query.nprobes(EVERY_PART).select(["chunk_id", "_distance"]).to_arrow()["chunk_id"]
            unseen = known.filter(pc.invert(pc.is_in(known, value_set=found.combine_chunks())))
            missed += [f"{name} (vector)" for name in unseen.to_pylist()]
        if "text" in columns and count:
            rows = np.sort(np.random.default_rng(SEED).choice(count, min(sample, count), replace=False)).tolist()
            texts = store.opened().take(rows, columns=["chunk_id", "text"]).to_pylist()
            missed += [f"{name} (full text)" for name in missed_by_words(store, texts)]
    return missed
