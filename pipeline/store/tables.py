"""The main table and those beside it: where they lie, what they hold."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import lance
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.schema import FILES, HELD, OWN_COLUMNS, QUARANTINE, RUNS, Spec, table_schema

SPEC_KEY = b"latent.spec"
Side = Literal["files", "runs", "quarantine"]
SIDES: dict[Side, pa.Schema] = {"files": FILES, "runs": RUNS, "quarantine": QUARANTINE}


@dataclass(frozen=True)
class Store:
    """Where the tables lie. A value: workers get a copy."""

    uri: str
    name: str
    storage_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"table '{self.name}' at {self.uri}"

    def path(self, side: Side | None = None) -> str:
        return f"{self.uri.rstrip('/')}/{self.name}{'_' + side if side else ''}.lance"

    def open(self, side: Side | None = None, version: int | None = None) -> lance.LanceDataset | None:
        """The table at a version, the newest by default; None where there is none yet."""
        with lance_errors(f"{self.label} cannot be opened"):
            try:
                return lance.dataset(self.path(side), version=version, storage_options=dict(self.storage_options) or None)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    def opened(self) -> lance.LanceDataset:
        """The newest version of the main table. Raises StoreError where there is none."""
        if (table := self.open()) is None:
            raise StoreError(f"no {self.label}: run 'latent run' first, or set [table] uri and name")
        return table


def create(store: Store, spec: Spec, metadata: pa.Schema) -> None:
    """Make the tables that are not there yet. The spec stands in the main table's schema metadata."""
    schema = table_schema(spec, metadata).with_metadata({SPEC_KEY: spec.to_json().encode()})
    for side, shape in ((None, schema), *SIDES.items()):
        if store.open(side) is None:
            with lance_errors(f"{store.label} cannot be created"), contextlib.suppress(FileExistsError):
                _write(store, shape.empty_table(), side, mode="create")


def spec_of(store: Store) -> Spec | None:
    """The spec of the vectors in the table; None where there is no table."""
    table = store.open()
    if table is None:
        return None
    if SPEC_KEY not in (table.schema.metadata or {}):
        raise StoreError(f"{store.label} was not made by latent: it holds no spec; set [table] name to a new name")
    return Spec.from_json(table.schema.metadata[SPEC_KEY].decode())


def metadata_fields(store: Store) -> pa.Schema | None:
    """The metadata columns of the table, None where there is no table."""
    table = store.open()
    return None if table is None else pa.schema([f for f in table.schema if f.name not in OWN_COLUMNS])


def held_documents(store: Store) -> pa.Table:
    """What the table holds: HELD, one row a document. Reads three columns, no vectors: about 20 M rows a second."""
    table = store.open()
    if table is None:
        return HELD.empty_table()
    with lance_errors(f"{store.label} cannot be read"):
        return table.to_table(columns=HELD.names, filter="chunk_index = 0").cast(HELD)


def read_side(store: Store, side: Side) -> pa.Table:
    """A table beside the main one, empty where there is none yet."""
    table = store.open(side)
    with lance_errors(f"{store.label} cannot be read"):
        return SIDES[side].empty_table() if table is None else table.to_table().cast(SIDES[side])


def replace_side(store: Store, side: Side, rows: pa.Table, run_id: str) -> None:
    """Put these rows in place of all others, in one version. Under the lease."""
    with lance_errors(f"{store.label}: {side} cannot be written"):
        _write(store, rows.cast(SIDES[side]), side, mode="overwrite", properties={"latent.run": run_id})


def write_run(store: Store, row: pa.Table) -> None:
    """Insert the run, or put it in place of the row with its run_id."""
    table = store.open("runs")
    with lance_errors(f"{store.label}: the run cannot be recorded"):
        if table is not None:
            table.merge_insert("run_id").when_matched_update_all().when_not_matched_insert_all().execute(row.cast(RUNS))


def _write(
    store: Store, rows: pa.Table, side: Side | None, *, mode: str, properties: dict[str, str] | None = None
) -> lance.LanceDataset:
    try:
        return lance.write_dataset(
            rows,
            store.path(side),
            mode=mode,
            enable_stable_row_ids=True,
            storage_options=dict(store.storage_options) or None,
            transaction_properties=properties,
        )
    except OSError as error:
        if "already exists" in str(error):
            raise FileExistsError(str(error)) from error
        raise


@contextlib.contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Lance's OSError and ValueError → StoreError in one line, without the place in Lance's own source."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, FileExistsError):
            raise
        reason = re.sub(r",? ?/\S*\.rs:\d+.*", "", str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise StoreError(f"{what}: {reason}") from error
