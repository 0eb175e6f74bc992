"""Tables that are worked out from the main one: each written whole, in one version that tells what it is of. And the reading of the main one for that."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from pipeline.store.tables import Derived, Store, lance_errors

TOLD_KEY = b"latent.told"
ROWS_AT_ONCE = 8192  # 12 MB of vectors of 384 numbers


@dataclass(frozen=True)
class Worked:
    """A derived table at its newest version."""

    rows: pa.Table
    told: Mapping[str, Any]  # what it is of, as its writer said


def write_derived(store: Store, name: Derived, rows: pa.Table, told: Mapping[str, object]) -> None:
    """Put these rows in place of all others."""
    rows = rows.replace_schema_metadata({TOLD_KEY: json.dumps(told).encode()})
    with lance_errors(f"{store.label}: its {name} cannot be written"):
        if store.open(name) is None:
            with contextlib.suppress(FileExistsError):
                lance.write_dataset(rows, store.path(name), mode="create", storage_options=store.options)
                return
        lance.write_dataset(rows, store.path(name), mode="overwrite", storage_options=store.options)


def read_derived(store: Store, name: Derived) -> Worked | None:
    """None where it was never made."""
    table = store.open(name)
    if table is None:
        return None
    with lance_errors(f"{store.label}: its {name} cannot be read"):
        return Worked(table.to_table(), json.loads((table.schema.metadata or {}).get(TOLD_KEY, b"{}")))


def batches(store: Store, version: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """All rows of the main table at a version, some at a time, in its order."""
    with lance_errors(f"{store.label} cannot be read"):
        yield from store.opened(version).scanner(columns=list(columns), batch_size=ROWS_AT_ONCE, scan_in_order=True).to_batches()


def rows_at(store: Store, version: int, places: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Rows of the main table at a version by their places in its order, in the order asked for.

    Reads the columns whole: a million passages in two seconds, where Lance's own `take` wants a millisecond a row.
    """
    wanted, start = np.unique(places), 0
    parts: list[pa.RecordBatch] = []
    for batch in batches(store, version, columns):
        within = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + batch.num_rows)]
        parts.append(batch.take(pa.array(within - start)))
        start += batch.num_rows
    return pa.Table.from_batches(parts).take(np.searchsorted(wanted, places))


def drawn(store: Store, version: int, count: int, seed: int) -> np.ndarray:
    """Places of rows drawn at random, in order; all where there are no more than `count`."""
    rows = store.opened(version).count_rows()
    return np.arange(rows) if rows <= count else np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
