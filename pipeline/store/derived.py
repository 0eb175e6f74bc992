"""Tables that are worked out from the main one: each written whole, in one version that tells what it is of. And the reading of the main one for that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent.errors import StoreError
from latent.store import codec as codecs
from latent.store.codec import Codec
from latent.store.dataset import create_runs
from latent.store.failures import lance_errors
from latent.store.lease import Lease, new_run_id
from latent.store.ownership import Derived, Store, identity_of, marked

TOLD_KEY = b"latent.told"
CODES_AT_ONCE = 1 << 16
ROWS_AT_ONCE = 8192  # 12 MB of vectors of 384 numbers


@dataclass(frozen=True)
class DerivedTable:
    """A derived table at its newest version."""

    rows: pa.Table
    told: Mapping[str, Any]  # what it is of, as its writer said


def check_derived(store: Store, *names: Derived) -> None:
    """Raise ForeignTable where a table of one of these names is not latent's own: before the work, not behind it."""
    owner = identity_of(store)
    for name in names:
        store.open(name, owner=owner)


def write_derived(store: Store, tables: Mapping[Derived, pa.Table], told: Mapping[str, object]) -> None:
    """Put these rows in place of all others, in this order. Waits for the lease: what was worked out for an hour is not thrown away for a run.

    Raises ForeignTable where a table of such a name is not latent's own; nothing is written then.
    """
    create_runs(store)
    with Lease(store, new_run_id(), patient=True) as lease:
        owner = identity_of(store)
        assert owner is not None
        check_derived(store, *tables)
        for name, rows in tables.items():
            lease.check()
            with lance_errors(f"{store.label}: its {name} cannot be written"):
                lance.write_dataset(
                    marked(rows, owner, {TOLD_KEY: json.dumps(told).encode()}),
                    store.path(name),
                    mode="overwrite",  # makes it where there is none
                    storage_options=store.options,
                )


def read_derived(store: Store, name: Derived) -> DerivedTable | None:
    """None where it was never made. Raises ForeignTable."""
    table = store.open(name)
    if table is None:
        return None
    with lance_errors(f"{store.label}: its {name} cannot be read"):
        return DerivedTable(table.to_table(), json.loads((table.schema.metadata or {}).get(TOLD_KEY, b"{}")))


def redundant_documents(store: Store, similarity: float) -> pa.Table | None:
    """The documents (REDUNDANT_DOCUMENTS) that `latent duplicates` found to say what others say, as far as they are so similar to those. None where it never looked."""
    worked = read_derived(store, "redundant")
    if worked is None:
        return None
    enough = pc.greater_equal(worked.rows["similarity"], pa.scalar(similarity, pa.float32()))
    return worked.rows.filter(enough).replace_schema_metadata(None)


def same_rows(table: lance.LanceDataset, version: int, rows: int) -> bool:
    """Whether a version of the main table holds the same rows as an earlier one, which may be kept no longer, held: so many."""
    return int(table.count_rows()) == rows and not table.count_rows(f"_row_created_at_version > {version}")


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


@dataclass(frozen=True)
class Codes:
    """The table's vectors in fewer bytes."""

    codec: Codec
    rows: pa.Table  # chunk_id, row_id, code
    version: int  # of the table that they are of

    def codes(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """The codes (n, …) of some rows."""
        column = self.rows["code"].slice(start, count).combine_chunks()
        codes: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return codes

    def nearest(self, vector: np.ndarray, k: int, allowed: pa.Array | None = None) -> pa.Array:
        """The row ids of the k codes nearest to a vector (dim,), of those allowed."""
        scores = np.concatenate(
            [self.codec.nearness(self.codes(at, CODES_AT_ONCE), vector) for at in range(0, self.rows.num_rows, CODES_AT_ONCE)]
        )
        ids = self.rows["row_id"].combine_chunks()
        if allowed is not None:
            scores[~pc.is_in(ids, value_set=allowed).to_numpy(zero_copy_only=False)] = -np.inf
            k = min(k, len(allowed))
        best = np.argsort(-scores, kind="stable")[:k]
        return ids.take(best)


def write_codes(store: Store, codec: Codec, rows: pa.Table, version: int) -> None:
    """The codes of all rows at a version, and what makes vectors of them again. The codec first: codes are never there without what reads them."""
    told = {"table_version": version, "codec": codec.name}
    parts = [{"name": name, "shape": array.shape, "values": array.ravel()} for name, array in codecs.arrays(codec)]
    schema = pa.schema([("name", pa.string()), ("shape", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])
    write_derived(store, {"codec": pa.Table.from_pylist(parts, schema=schema), "compressed": rows}, told)


def read_codes(store: Store) -> Codes | None:
    """None where the table was never compressed. Raises StoreError where codes and codec do not go together: they were being written."""
    codes, codec = read_derived(store, "compressed"), read_derived(store, "codec")
    if codes is None or codec is None:
        return None
    if codes.told != codec.told:
        raise StoreError(
            f"{store.label}: its compressed table was being written: run 'latent compress --write {codec.told['codec']}' again"
        )
    found = {row["name"]: np.array(row["values"], np.float32).reshape(row["shape"]) for row in codec.rows.to_pylist()}
    return Codes(codecs.of_arrays(codec.told["codec"], found), codes.rows, codes.told["table_version"])
