"""Rows in, rows out: fragments that nobody sees, and the commit that makes them the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset, LanceOperation, Transaction
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata

from pipeline.errors import StoreError
from pipeline.schema import digest
from pipeline.store.lease import Lease
from pipeline.store.tables import Store, lance_errors

ATTEMPTS = 5  # at a commit that conflicts; under the lease only index builds and renewals by hand can
ROWS_PER_FRAGMENT = 1 << 20  # Lance's default; shards stay far below


@dataclass(frozen=True)
class Commit:
    """The version that made fragments visible."""

    version: int
    rows_added: int
    rows_deleted: int


def write_fragments(store: Store, rows: pa.Table) -> tuple[str, ...]:
    """Write rows as fragments that no version names yet; returns their metadata as JSON.

    Raises StoreError where fewer rows arrive than were given (a half-read reader retried inside the writer, lance-ray#5290).
    """
    table = store.opened()
    with lance_errors(f"{store.label}: a fragment cannot be written"):
        fragments = lance.fragment.write_fragments(
            rows,
            table,
            schema=table.schema,
            max_rows_per_file=ROWS_PER_FRAGMENT,
            enable_stable_row_ids=True,
            storage_options=dict(store.storage_options) or None,
        )
    if (written := sum(f.physical_rows for f in fragments)) != rows.num_rows:
        raise StoreError(f"{store.label}: {written} rows written of {rows.num_rows}: nothing was committed; run again")
    return tuple(json.dumps(f.to_json()) for f in fragments)


def commit_rows(
    store: Store, lease: Lease, *, fragments: Iterable[str], replaced: pa.Array, shards: Sequence[str], since: int
) -> Commit:
    """Take all rows of the `replaced` documents (by doc_id) out and the fragments in, as one version.

    Named by the run and its shards: if a version after `since` carries that name, the commit is there already (its answer was lost) and
    is not applied twice. Where another change came between, the deletions are found anew on the newest version.
    """
    new = [FragmentMetadata.from_json(text) for text in fragments]
    added = sum(f.physical_rows for f in new)
    name = digest(json.dumps([lease.run_id, sorted(shards), sorted(replaced.to_pylist())]).encode())
    properties = {
        "latent.run": lease.run_id,
        "latent.commit": name,
        "latent.shards": json.dumps(list(shards)),
        "lance.commit.message": f"latent run {lease.run_id}: {len(shards)} shards, {added} rows in",
    }
    for attempt in range(ATTEMPTS):
        table = store.opened()
        if (version := _applied(table, name, since)) is not None:
            return Commit(version, added, 0)
        operation, deleted = _replacement(table, new, replaced)
        lease.check()
        try:
            with lance_errors(f"{store.label}: commit failed"):
                done = LanceDataset.commit(
                    table,
                    Transaction(table.version, operation, transaction_properties=properties),
                    storage_options=dict(store.storage_options) or None,
                    max_retries=0,
                )
            return Commit(done.version, added, deleted)
        except StoreError as error:
            if attempt + 1 == ATTEMPTS or not isinstance(error.__cause__, CommitConflictError):
                raise
    raise AssertionError("unreachable")


def vectors_of(store: Store, hashes: Sequence[str], versions: Iterable[int | None]) -> dict[str, np.ndarray]:
    """Vectors the table holds, at any of the versions, for texts with these chunk hashes. Missing ones are left out."""
    found: dict[str, np.ndarray] = {}
    for version in versions:
        missing = [h for h in hashes if h not in found]
        table = store.open(version=version) if missing else None
        if table is None:
            continue
        among = ", ".join(f"'{h}'" for h in missing)  # hexadecimal digests: nothing to escape
        with lance_errors(f"{store.label} cannot be read"):
            rows = table.to_table(columns=["chunk_hash", "vector"], filter=f"chunk_hash IN ({among})")
        vectors = rows["vector"].combine_chunks()
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        found.update(zip(rows["chunk_hash"].to_pylist(), flat.reshape(-1, vectors.type.list_size), strict=True))
    return found


def _applied(table: LanceDataset, name: str, since: int) -> int | None:
    """The version after `since` whose transaction carries this name."""
    for version in range(since + 1, table.version + 1):
        transaction = table.read_transaction(version)
        if transaction is not None and (transaction.transaction_properties or {}).get("latent.commit") == name:
            return version
    return None


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
