"""Search structures on the table, and search itself, through lancedb, so that any lancedb client can use the same indexes.

Below `EXACT_ROWS` rows every search is exact. Above, maintain builds IVF with 1-bit residual quantisation (RaBitQ, Gao & Long 2024,
https://arxiv.org/abs/2405.12497) and measures how far it must look to hold the stated recall; searches use what was measured.
Rows newer than the index are searched exactly.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import QueryError, StoreError
from pipeline.store.tables import Store, lance_errors

TUNING_KEY = "latent.tuning"
EXACT_ROWS = 50_000  # 384 dimensions: exact search takes some 80 ms here
KEEP_VERSIONS = dt.timedelta(days=14)  # how long a past version can be read; the record of commits lives as long
PROBES = 200  # vectors drawn from the table to measure recall with
EFFORTS = ((20, 5), (40, 10), (80, 20), (160, 40), (320, 80))  # (nprobes, refine_factor), cheapest first
SEED = 20


@dataclass(frozen=True)
class Tuning:
    """How far a search looks, and the recall@10 measured with it."""

    nprobes: int
    refine_factor: int
    recall: float


def maintain(store: Store, recall: float, *, full_text: bool) -> Tuning | None:
    """Bring indexes up to date, merge small fragments, drop versions older than KEEP_VERSIONS. Under the lease.

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
        table.optimize(cleanup_older_than=KEEP_VERSIONS)
        for side in ("files", "runs", "quarantine"):
            if (beside := store.open(side)) is not None:
                beside.cleanup_old_versions(KEEP_VERSIONS)
    return _tune(store, recall) if table.count_rows() >= EXACT_ROWS else None


def read_tuning(store: Store) -> Tuning | None:
    """What maintain measured; None where searches are exact."""
    text = store.opened().metadata.get(TUNING_KEY)
    return Tuning(**json.loads(text)) if text else None


def index_names(store: Store) -> list[str]:
    """Kind and coverage of each index, as 'FTS on text, 0 rows behind'."""
    with lance_errors(f"{store.label}: its indexes cannot be read"):
        table = _connect(store)
        lines = []
        for index in table.list_indices():
            stats = table.index_stats(index.name)
            behind = stats.num_unindexed_rows if stats else "?"
            lines.append(f"{index.index_type} on {', '.join(index.columns)}, {behind} rows behind")
    return lines


def vector_search(store: Store, vector: np.ndarray, k: int, where: str | None, *, exact: bool = False) -> pa.Table:
    """The k nearest rows by cosine, nearest first, all columns but the vector, `_distance` = 1 - cosine. The filter is applied first."""
    table = _connect(store)
    query = table.search(vector, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(k)
    if where:
        query = query.where(where, prefilter=True)
    tuning = None if exact else read_tuning(store)
    # An index whose recall was not measured is not used.
    query = query.nprobes(tuning.nprobes).refine_factor(tuning.refine_factor) if tuning else query.bypass_vector_index()
    columns = [name for name in table.schema.names if name != "vector"]
    try:
        return query.select([*columns, "_distance"]).to_arrow()
    except (ValueError, OSError, RuntimeError) as error:
        if not where:
            raise StoreError(f"{store.label} cannot be searched: {error}") from error
        reason = str(error).splitlines()[0].partition(". Valid fields")[0]
        raise QueryError(f"where {where!r}: {reason}; columns: {', '.join(columns)}") from error


def _connect(store: Store) -> Any:
    """The table as lancedb opens it, at its newest version."""
    import lancedb  # not at import: Ray forks when it starts, and lancedb's runtime should not be there yet

    store.opened()  # says in our words where there is no table
    database = lancedb.connect(store.uri, storage_options=dict(store.storage_options) or None)
    return database.open_table(store.name)


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
