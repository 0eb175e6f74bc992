"""Rows in, rows out: fragments that nobody sees, and the commit that makes them the table."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset, LanceOperation, Transaction
from lance.fragment import FragmentMetadata

from latent.errors import StoreError
from latent.store.dataset import named, naming, write_side
from latent.store.failures import lance_errors
from latent.store.lease import Lease
from latent.store.ownership import Side, Store
from latent.types import digest

log = logging.getLogger("latent")
ATTEMPTS = 5  # at a commit whose fate is not known, or that conflicts: under the lease, with an index build by another program
PAUSE_S = 0.2  # before the second attempt, twice as long before each that follows
MESSAGE = "lance.commit.message"
CHANGES_ROWS = (
    LanceOperation.Append,
    LanceOperation.Delete,
    LanceOperation.Merge,
    LanceOperation.Overwrite,
    LanceOperation.Restore,
    LanceOperation.Update,
)
ROWS_PER_FRAGMENT = 1 << 20  # Lance's default; shards stay far below


@dataclass(frozen=True)
class TableUpdate:
    """What one commit does: rows, file states and quarantine, all or nothing."""

    fragments: Sequence[str]
    replaced: pa.Array  # doc_ids whose present rows go
    shards: Sequence[str]
    sides: Mapping[Side, pa.Table]  # side tables as they are to be; those left out stay as they are


@dataclass(frozen=True)
class CommitResult:
    """The version that made a change visible."""

    version: int
    rows_added: int
    rows_deleted: int


def write_fragments(store: Store, rows: pa.Table) -> tuple[str, ...]:
    """Write rows as fragments that no version names yet; returns their metadata as JSON. In whatever order the columns stand. Raises StoreError."""
    ordered = rows.select([name for name in store.opened().schema.names if name in rows.column_names])
    return tuple(json.dumps(f.to_json()) for f in written(store, ordered, rows.num_rows))


def written(
    store: Store, rows: pa.Table | pa.RecordBatchReader, count: int, schema: pa.Schema | None = None
) -> list[FragmentMetadata]:
    """Fragments of so many rows, of the table's schema, or of another that the table is to have.

    Raises StoreError where fewer rows arrive than were given (a half-read reader retried inside the writer, lance-ray#5290).
    """
    table = None if schema else store.opened()
    with lance_errors(f"{store.label}: a fragment cannot be written"):
        fragments: list[FragmentMetadata] = lance.fragment.write_fragments(
            rows,
            store.path() if table is None else table,
            schema=schema if table is None else table.schema,
            mode="overwrite" if table is None else "append",  # says what the commit will be; nothing is overwritten here
            max_rows_per_file=ROWS_PER_FRAGMENT,
            enable_stable_row_ids=True,
            storage_options=store.options,
        )
    if (arrived := sum(f.physical_rows for f in fragments)) != count:
        raise StoreError(f"{store.label}: {arrived} rows written of {count}: nothing was committed; run again")
    return fragments


def commit(store: Store, lease: Lease, change: TableUpdate, since: int) -> CommitResult:
    """Make a change the newest version of the table.

    `since` is the version the change was planned on. Raises StoreError where another program changed rows after it, TableBusy where the lease
    is lost; nothing is committed then. The commit carries a name, made of the run and what it changes: where a version after `since` has
    that name, the commit is there already (its answer was lost) and is not made twice.
    """
    names = named(store.opened()) | {side: write_side(store, side, rows) for side, rows in change.sides.items()}
    new = [FragmentMetadata.from_json(text) for text in change.fragments]
    added = sum(f.physical_rows for f in new)
    key = [lease.run_id, sorted(change.shards), sorted(change.replaced.to_pylist()), sorted(names.items())]
    name = digest(json.dumps(key).encode())
    for attempt in range(ATTEMPTS):
        table = store.opened()
        lease.check()  # after the table was opened: whoever takes the lease from here on fences this commit out
        if (version := _since(store, table, since, name)) is not None:
            return CommitResult(version, added, 0)
        try:
            with lance_errors(f"{store.label}: commit failed"):  # what is deleted is a file by itself, written here
                operation, deleted = _replacement(table, new, change.replaced)
                rows = table.count_rows() + added - deleted
            properties = naming(names) | {
                "latent.run": lease.run_id,
                "latent.commit": name,
                "latent.rows": str(rows),
                MESSAGE: f"{added} rows in, {deleted} out",
            }
            version = make_version(store, table, operation, properties)
        except StoreError as error:
            # It may be there nonetheless: look again. A permanent failure ends after a few seconds.
            if attempt + 1 == ATTEMPTS:
                raise
            log.info("commit, attempt %d: %s", attempt + 1, error)
            time.sleep(PAUSE_S * 2**attempt)
            continue
        lease.check()
        return CommitResult(version, added, deleted)
    raise AssertionError("unreachable")


def make_version(store: Store, table: LanceDataset, operation: LanceOperation.BaseOperation, properties: dict[str, str]) -> int:
    """One transaction on the table as it was opened. Raises StoreError; where another came first, from CommitConflictError."""
    with lance_errors(f"{store.label}: commit failed"):
        transaction = Transaction(table.version, operation, transaction_properties=properties)
        options = store.options
        return int(LanceDataset.commit(table, transaction, storage_options=options, max_retries=0).version)


def vectors_of(store: Store, hashes: Sequence[str], version: int | None = None) -> dict[str, np.ndarray]:
    """Vectors the table holds, at a version or now, for texts with these chunk hashes. Missing ones are left out."""
    table = store.open(version=version) if hashes else None
    if table is None:
        return {}
    among = ", ".join(f"'{h}'" for h in hashes)  # hexadecimal digests: nothing to escape
    with lance_errors(f"{store.label} cannot be read"):
        rows = table.to_table(columns=["chunk_hash", "vector"], filter=f"chunk_hash IN ({among})")
    vectors = rows["vector"].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return dict(zip(rows["chunk_hash"].to_pylist(), flat.reshape(-1, vectors.type.list_size), strict=True))


def _since(store: Store, table: LanceDataset, since: int, name: str) -> int | None:
    """The version after `since` that carries this name. Raises StoreError where one changed rows and carries another."""
    for version in range(since + 1, int(table.version) + 1):
        transaction = table.read_transaction(version)
        if (transaction.transaction_properties or {}).get("latent.commit") == name:
            return version
        _refuse_change(store, version, transaction)
    return None


def refuse_foreign(store: Store, table: LanceDataset, since: int, run_id: str) -> None:
    """Raise StoreError where a version after `since` changed rows and is not of this run."""
    for version in range(since + 1, int(table.version) + 1):
        transaction = table.read_transaction(version)
        if (transaction.transaction_properties or {}).get("latent.run") != run_id:
            _refuse_change(store, version, transaction)


def _refuse_change(store: Store, version: int, transaction: Transaction) -> None:
    if isinstance(transaction.operation, CHANGES_ROWS):
        kind = type(transaction.operation).__name__
        raise StoreError(
            f"{store.label} was changed by another program (version {version}, {kind}): nothing more is committed; run again"
        )


def _replacement(table: LanceDataset, new: list[FragmentMetadata], replaced: pa.Array) -> tuple[LanceOperation.BaseOperation, int]:
    """The operation that deletes the rows of these documents and adds the fragments, and how many rows it deletes."""
    removed, updated, deleted = [], [], 0
    for fragment_id, offsets in _addresses(table, replaced).items():
        deleted += len(offsets)
        left = table.get_fragment(fragment_id).delete_rows(offsets)
        if left is None:
            removed.append(fragment_id)
        else:
            updated.append(left)
    return LanceOperation.Update(removed, updated, new), deleted


def _addresses(table: LanceDataset, doc_ids: pa.Array) -> dict[int, list[int]]:
    """Fragment id → offsets of the rows of these documents."""
    if not len(doc_ids):
        return {}
    found = [
        batch["_rowaddr"].filter(pc.is_in(batch["doc_id"], value_set=doc_ids)).to_numpy()
        for batch in table.scanner(columns=["doc_id"], with_row_address=True).to_batches()
    ]
    addresses = np.concatenate(found) if found else np.empty(0, np.uint64)
    fragments, offsets = addresses >> np.uint64(32), addresses & np.uint64(0xFFFFFFFF)
    return {int(f): offsets[fragments == f].tolist() for f in np.unique(fragments)}
