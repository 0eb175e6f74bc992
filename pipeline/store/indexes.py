"""Search structures on the table, and search itself, through lancedb, so that any lancedb client can use the same indexes.

Below `EXACT_ROWS` rows every search is exact. Above, maintain builds IVF with 1-bit residual quantisation (RaBitQ, Gao & Long 2024,
https://arxiv.org/abs/2405.12497) and measures how far it must look to hold the stated recall; searches use what was measured.
Rows newer than the index are searched exactly.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import QueryError, StoreError
from pipeline.store.tables import Store, lance_errors, one_line

Condition = str | Mapping[str, Any]  # SQL; or column → its value, or a list of those it may have
TUNING_KEY = "latent.tuning"
EXACT_ROWS = 50_000  # 384 dimensions: exact search takes some 80 ms here
NEVER = dt.timedelta(days=36_500)
PROBES = 200  # vectors drawn from the table to measure recall with
EFFORTS = ((20, 5), (40, 10), (80, 20), (160, 40), (320, 80))  # (nprobes, refine_factor), cheapest first
SEED = 20
QUERY_CHARS = 200
EVERY_PART = 1_000_000  # as nprobes: no index has as many
WORDS = re.compile(r"[A-Za-z]{6,40}|\d\d")  # a text with one of these is more than stop words


@dataclass(frozen=True)
class Index:
    """A search structure on the table."""

    kind: str
    columns: tuple[str, ...]
    behind: int | None  # rows newer than it: searched one by one

    def __str__(self) -> str:
        return f"{self.kind} on {', '.join(self.columns)}, {'?' if self.behind is None else self.behind} rows behind"


@dataclass(frozen=True)
class Tuning:
    """How far a search looks, and the recall@10 measured with it."""

    nprobes: int
    refine_factor: int
    recall: float


def update_indexes(store: Store, recall: float, *, full_text: bool) -> Tuning | None:
    """Bring indexes up to date, merge small fragments, and measure. Under the lease.

    Returns the tuning of the vector index, None where searches are exact: the table is small, or no effort holds the recall.
    """
    from lancedb.index import FTS, IvfRq

    with lance_errors(f"{store.label} cannot be maintained"):
        table = _connect(store)
        kinds = {index.index_type: index.name for index in table.list_indices()}
        if full_text and "FTS" not in kinds and table.count_rows():
            table.create_index("text", config=FTS(with_position=False))  # positions break compaction upstream
        if table.count_rows() >= EXACT_ROWS and "IvfRq" not in kinds:
            table.create_index("vector", config=IvfRq(distance_type="cosine"))
        table.optimize(cleanup_older_than=NEVER)  # versions are dropped by `history.clean_up`
    return _tune(store, recall) if table.count_rows() >= EXACT_ROWS else None


def read_tuning(store: Store) -> Tuning | None:
    """What maintain measured; None where searches are exact."""
    text = store.opened().metadata.get(TUNING_KEY)
    return Tuning(**json.loads(text)) if text else None


def indexes(store: Store) -> list[Index]:
    """The indexes of the table."""
    with lance_errors(f"{store.label}: its indexes cannot be read"):
        table = _connect(store)
        stats = [(index, table.index_stats(index.name)) for index in table.list_indices()]
    return [Index(index.index_type, tuple(index.columns), s.num_unindexed_rows if s else None) for index, s in stats]


def missed_by_indexes(store: Store, sample: int) -> list[str]:
    """Rows that a search through an index cannot find, as 'chunk_id (kind)'.

    The vector index is asked for all rows at once, of all its parts; the full-text index for `sample` rows by their own words.
    """
    kinds = {index.kind for index in indexes(store)}
    with lance_errors(f"{store.label}: its indexes cannot be read"):
        table = _connect(store)
        count = table.count_rows()
        missed: list[str] = []
        if "IvfRq" in kinds and count:
            columns = store.opened().to_table(columns=["chunk_id"])["chunk_id"]
            probe = store.opened().take([0], columns=["vector"])["vector"].to_pylist()[0]
            query = table.search(probe, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(count)
            found = query.nprobes(EVERY_PART).select(["chunk_id", "_distance"]).to_arrow()["chunk_id"]
            unseen = columns.filter(pc.invert(pc.is_in(columns, value_set=found.combine_chunks())))
            missed += [f"{name} (vector)" for name in unseen.to_pylist()]
        if "FTS" in kinds and count:
            rows = np.sort(np.random.default_rng(SEED).choice(count, min(sample, count), replace=False)).tolist()
            for row in store.opened().take(rows, columns=["chunk_id", "text"]).to_pylist():
                if WORDS.search(row["text"][:QUERY_CHARS]) and not _finds(table, row["chunk_id"], row["text"][:QUERY_CHARS]):
                    missed.append(f"{row['chunk_id']} (full text)")
    return missed


def _finds(table: Any, chunk_id: str, text: str) -> bool:
    """Whether a full-text search finds a row by its own words."""
    query = table.search(text, query_type="fts").where(_expression({"chunk_id": chunk_id}), prefilter=True).limit(1)
    return bool(query.select(["chunk_id", "_score"]).to_arrow().num_rows)


def vector_search(store: Store, vector: np.ndarray, k: int, where: Condition | None, *, exact: bool = False) -> pa.Table:
    """The k nearest rows by cosine, nearest first, all columns but the vector, `_distance` = 1 - cosine. The filter is applied first.

    Values of a mapping are passed to Lance as values: no SQL is made of them.
    """
    table = _connect(store)
    query = table.search(vector, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(k)
    if where:
        query = query.where(where if isinstance(where, str) else _expression(where), prefilter=True)
    tuning = None if exact else read_tuning(store)
    # An index whose recall was not measured is not used.
    query = query.nprobes(tuning.nprobes).refine_factor(tuning.refine_factor) if tuning else query.bypass_vector_index()
    columns = [name for name in table.schema.names if name != "vector"]
    try:
        return query.select([*columns, "_distance"]).to_arrow()
    except (ValueError, OSError, RuntimeError) as error:
        if not where or "LanceError(IO)" in str(error):
            raise StoreError(f"{store.label} cannot be searched: {one_line(error)}") from error
        reason = one_line(error).partition(". Valid fields")[0]
        raise QueryError(f"where {where!r:.200}: {reason}; columns: {', '.join(columns)}") from error


def _expression(where: Mapping[str, Any]) -> Any:
    """All columns' conditions, as lancedb's typed expression. Raises QueryError for a value that it has no type for."""
    from lancedb.expr import col, lit

    def meets(column: str, value: Any) -> Any:
        try:
            return col(column).isin(value) if isinstance(value, list | tuple | set | frozenset) else col(column) == lit(value)
        except (TypeError, ValueError, OverflowError) as error:
            wanted = f'a string, number, boolean, date or bytes, or a list of such; for null: where="{column} IS NULL"'
            raise QueryError(f"where {column}: got {value!r:.80} ({one_line(error)}), wanted {wanted}") from None

    return functools.reduce(operator.and_, (meets(column, value) for column, value in where.items()))


def _connect(store: Store) -> Any:
    """The table as lancedb opens it, at its newest version."""
    import lancedb  # not at import: Ray forks when it starts, and lancedb's runtime should not be there yet

    store.opened()  # says in our words where there is no table
    with lance_errors(f"{store.label} cannot be opened"):
        return lancedb.connect(store.uri, storage_options=store.options).open_table(store.name)


def _tune(store: Store, recall: float) -> Tuning | None:
    """The least effort that holds the recall on vectors drawn from the table, each asked for its neighbours but itself.

    None where the greatest effort does not: searches stay exact.
    """
    table = store.opened()
    rows = np.sort(np.random.default_rng(SEED).choice(table.count_rows(), PROBES, replace=False))
    probes = np.stack(table.take(rows.tolist(), columns=["vector"])["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    with lance_errors(f"{store.label}: its recall cannot be measured"):
        exact = [_neighbours(store, probe) for probe in probes]
        for nprobes, refine in EFFORTS:
            found = [_neighbours(store, probe, nprobes, refine) for probe in probes]
            measured = float(np.mean([len(a & b) / max(len(a), 1) for a, b in zip(exact, found, strict=True)]))
            tuning = Tuning(nprobes, refine, round(measured, 4)) if measured >= recall else None
            if tuning is not None:
                break
        if read_tuning(store) != tuning:
            table.update_metadata({TUNING_KEY: json.dumps(asdict(tuning)) if tuning else None})
    return tuning


def _neighbours(store: Store, vector: np.ndarray, nprobes: int = 0, refine: int = 0) -> set[str]:
    query = _connect(store).search(vector, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(11)
    query = query.nprobes(nprobes).refine_factor(refine) if nprobes else query.bypass_vector_index()
    return set(query.select(["chunk_id", "_distance"]).to_arrow()["chunk_id"].to_pylist()[1:])
