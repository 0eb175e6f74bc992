"""The metadata columns of a table that is there, and the source that it records: changed in place, rows are not touched.

A run that is to keep other columns drops and adds them before it writes a row. A column added is null in every row until its document is written anew: its
key in a document's hash has the version in it, so every document that has a value counts as changed. Cost: the nulls of the smallest fragment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import pyarrow as pa
from lance import LanceDataset, LanceOperation

from latent.errors import SpecMismatch, StoreError, TableBusy, shown
from latent.schemas import COLUMN_KEY, OWN_COLUMNS, is_owned, owned
from latent.store.commits import ATTEMPTS, MESSAGE, PAUSE_S, make_version, refuse_foreign
from latent.store.dataset import SOURCE_KEY
from latent.store.failures import lance_errors
from latent.store.lease import Lease
from latent.store.ownership import Store

log = logging.getLogger("latent")


def source_of(store: Store) -> str | None:
    """The source whose documents the table holds; None where there is no table, or none is recorded."""
    table = store.open()
    return None if table is None else recorded_source(table)


def recorded_source(table: LanceDataset) -> str | None:
    """The source that a version records; None where it records none."""
    told = (table.schema.metadata or {}).get(SOURCE_KEY)
    return told.decode() if told else None


def metadata_fields(store: Store) -> pa.Schema | None:
    """The metadata columns of the table, None where there is no table. Raises SpecMismatch where another program added a column.

    Of a table that records no source, all columns are ours: it is older than the marks.
    """
    table = store.open()
    if table is None:
        return None
    fields = [f for f in table.schema if f.name not in OWN_COLUMNS]
    if recorded_source(table) is None and not any(COLUMN_KEY in (f.metadata or {}) for f in fields):
        return pa.schema([owned(f, 0) for f in fields])
    if foreign := [f.name for f in fields if not is_owned(f)]:
        drop = f"lancedb.connect({shown(store.uri)!r}).open_table({store.name!r}).drop_columns({foreign!r})"
        raise SpecMismatch(
            f"{store.label}: expected no column but its own and those of [source] metadata, got {', '.join(foreign)} from another program, "
            f"which runs would leave empty. Keep it in a table of its own, and drop it here: {drop}"
        )
    return pa.schema(fields)


def adapt(store: Store, lease: Lease, metadata: pa.Schema, source: str, since: int) -> int:
    """Give the table these metadata columns and record this source; returns the newest version. Changes nothing where all is so already.

    `since` is the version that was looked at. Raises StoreError where another program changed rows after it, TableBusy where the lease is lost.
    """
    for attempt in range(ATTEMPTS):
        refuse_foreign(store, store.opened(), since, lease.run_id)
        try:
            return _adapt(store, lease, metadata, source)
        except StoreError as error:  # it may be there nonetheless: look again
            if isinstance(error, TableBusy) or attempt + 1 == ATTEMPTS:
                raise
            log.info("columns, attempt %d: %s", attempt + 1, error)
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def _adapt(store: Store, lease: Lease, metadata: pa.Schema, source: str) -> int:
    """Do what is left to do of it."""
    table = store.opened()
    present = metadata_fields(store) or pa.schema([])
    added = [f for f in metadata if f.name not in present.names]
    dropped = [name for name in present.names if name not in metadata.names]
    if dropped:
        lease.check()
        with lance_errors(f"{store.label}: {', '.join(dropped)} cannot be dropped"):
            table.drop_columns(
                dropped
            )  # a projection: the fence of a successor makes it fail, and no run sees it as a change of rows
        table = store.opened()
    if added:
        lease.check()
        make_version(store, table, _merge(store, table, added), _properties(lease, f"columns added: {_names(added)}"))
        table = store.opened()
    unmarked = {table.lance_schema.field(f.name).id(): f for f in table.schema if f.name in present.names and not is_owned(f)}
    if recorded_source(table) != source or unmarked:
        lease.check()
        marks = {number: _update(owned(field, 0).metadata) for number, field in unmarked.items()}
        update = LanceOperation.UpdateConfig(
            schema_metadata_updates=_update({SOURCE_KEY: source.encode()}), field_metadata_updates=marks
        )
        make_version(store, table, update, _properties(lease, "source recorded"))
    return int(store.opened().version)


def _merge(store: Store, table: LanceDataset, added: Sequence[pa.Field]) -> LanceOperation.BaseOperation:
    """The operation that adds columns of nulls.

    Lance alone knows which field ids are free, and tells them with the columns of one fragment. In the others the columns are absent, which reads as null.
    """
    schema = pa.schema(added)

    def nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch([pa.nulls(batch.num_rows, f.type) for f in schema], schema=schema)

    with lance_errors(f"{store.label}: {_names(added)} cannot be added"):
        fragments = table.get_fragments()
        if not fragments:  # an empty table is written anew
            whole = pa.schema([*table.schema, *schema], metadata=table.schema.metadata)
            return LanceOperation.Overwrite(whole, [])
        smallest = min(fragments, key=lambda f: f.physical_rows)
        widened, merged = smallest.merge_columns(nulls, columns=["doc_id"])
        return LanceOperation.Merge([widened if f is smallest else f.metadata for f in fragments], merged)


def _properties(lease: Lease, message: str) -> dict[str, str]:
    return {"latent.run": lease.run_id, MESSAGE: message}


def _update(pairs: dict[bytes, bytes]) -> LanceOperation.UpdateMap:
    return LanceOperation.UpdateMap({key.decode(): value.decode() for key, value in pairs.items()})


def _names(fields: Sequence[pa.Field]) -> str:
    return ", ".join(f.name for f in fields)
