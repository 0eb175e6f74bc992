"""The main table and those beside it: how they are made, what they hold.

A version of the main table names, in its transaction's properties, the versions of `files` and `quarantine` that belong to it. So rows, file states
and quarantine change in one instant, with the main table's commit. A side table's own newest version may be ahead for a moment, or after a crash.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import lance
import pyarrow as pa

from latent.errors import StoreError
from latent.schemas import FILES, QUARANTINE, RUNS, STORED_DOCUMENTS, table_schema
from latent.store.failures import lance_errors
from latent.store.ownership import (
    DERIVED,
    NAMED,
    SIDES,
    SPEC_KEY,
    TABLE_KEY,
    Side,
    Store,
    drop_tables,
    identity_of,
    mark_of,
    marked,
)
from latent.types import Spec, digest

FORMER_KEY = b"latent.former"  # specs that the table had before it was migrated
SOURCE_KEY = b"latent.source"  # whose documents the table holds
QUERY_SETTINGS_KEY = b"latent.queries"  # how queries are put to the model
CANARY_KEY = (
    "latent.canary."  # in the metadata of the table of runs, one a model and precision: a table that is rolled back finds its own
)
NAMING = "latent.side."  # property of a commit: the version of a side table that belongs to it


@dataclass(frozen=True)
class QuerySettings:
    """How queries are put to the model, where the config does not say: it decides no vector of the table, so it is no part of the spec."""

    revision: str = ""
    query_prompt: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def create(store: Store, spec: Spec, metadata: pa.Schema, query_settings: QuerySettings, source: str) -> None:
    """Make the main table, unless it is there. Spec, source and identity stand in its schema metadata. Under the lease.

    What a main table that is gone left behind says nothing of the new one: file states and quarantine are emptied, derived tables dropped, runs kept
    without their versions. The table of runs, which is there by now, tells what is its own.
    """
    if store.open() is not None:
        return
    owner = mark_of(opened_runs(store))
    assert owner is not None
    for side in NAMED:
        store.open(side, owner=owner)  # refused before anything is written
    _forget(store, owner)
    words = {
        TABLE_KEY: owner.encode(),
        SPEC_KEY: spec.to_json().encode(),
        QUERY_SETTINGS_KEY: query_settings.to_json().encode(),
        SOURCE_KEY: source.encode(),
    }
    schema = table_schema(spec, metadata).with_metadata(words)
    names = {side: write_side(store, side, SIDES[side].empty_table(), owner) for side in NAMED}
    with lance_errors(f"{store.label} cannot be created"), contextlib.suppress(FileExistsError):
        _write(store, schema.empty_table(), None, mode="create", properties=naming(names))


def create_runs(store: Store, version: int | None = None) -> None:
    """Make the table of runs, which holds the lease, unless it is there. Raises ForeignTable where main table or side tables are not latent's own.

    `version`: of the main table that is to be gone back to, whatever the newest one is.
    """
    owner = identity_of(store, version)
    if store.open("runs", owner=owner) is not None:
        return
    for side in NAMED:
        store.open(side, owner=owner)
    with lance_errors(f"{store.label} cannot be created"), contextlib.suppress(FileExistsError):
        _write(store, marked(RUNS.empty_table(), owner or uuid.uuid4().hex), "runs", mode="create")


def opened_runs(store: Store) -> lance.LanceDataset:
    """The table of runs. Raises StoreError."""
    if (table := store.open("runs")) is None:
        raise StoreError(f"{store.label}: its table of runs is gone; run again")
    return table


def _forget(store: Store, owner: str) -> None:
    """Derived tables of a main table that is gone, its canaries and the versions of its runs: they would be taken for the next one's."""
    left = [name for name in DERIVED if (table := store.open(name, any_maker=True)) is not None and mark_of(table) == owner]
    drop_tables(store, left)
    kept = opened_runs(store)
    if canaries := {key: None for key in kept.metadata if key.startswith(CANARY_KEY)}:
        with lance_errors(f"{store.label} cannot be created"):
            kept.update_metadata(canaries)
    runs = read_runs(store)
    write_runs(
        store, runs.set_column(runs.schema.get_field_index("table_version"), "table_version", pa.nulls(len(runs), pa.int64()))
    )


def spec_of(store: Store, version: int | None = None) -> Spec | None:
    """The spec of the vectors in the table, at its newest version by default; None where there is no table."""
    table = store.open(version=version)
    if table is None:
        return None
    return Spec.from_json(table.schema.metadata[SPEC_KEY].decode())


def query_settings_of(store: Store) -> QuerySettings:
    """How queries are put to the model that made the table's vectors."""
    told = (store.opened().schema.metadata or {}).get(QUERY_SETTINGS_KEY)
    return QuerySettings(**json.loads(told)) if told else QuerySettings()


def canary_of(store: Store, spec: Spec) -> str | None:
    """The vectors of fixed texts that were kept with the spec, as JSON; None if there are none yet."""
    runs = store.open("runs")
    text = runs.metadata.get(_canary_key(spec)) if runs else None
    return str(text) if text else None


def write_canary(store: Store, spec: Spec, canary: str) -> None:
    """Keep the vectors of fixed texts. Under the lease."""
    with lance_errors(f"{store.label}: the canary cannot be recorded"):
        if (runs := store.open("runs")) is not None:
            runs.update_metadata({_canary_key(spec): canary})


def _canary_key(spec: Spec) -> str:
    return CANARY_KEY + digest(f"{spec.model_digest} {spec.precision}".encode())


def former_specs(table: lance.LanceDataset) -> list[Spec]:
    """The specs that the table had before it was migrated to its present one."""
    return [Spec(**each) for each in json.loads((table.schema.metadata or {}).get(FORMER_KEY, b"[]"))]


@dataclass(frozen=True)
class State:
    """What the table and those beside it hold at one version: one instant of it all."""

    version: int | None  # None: there is no table yet
    held: pa.Table  # STORED_DOCUMENTS, one row a document
    files: pa.Table  # FILES
    quarantine: pa.Table  # QUARANTINE


def load_state(store: Store) -> State:
    """The newest state. Reads three columns of the main table, no vectors: about 20 M rows a second."""
    table = store.open()
    if table is None:
        return State(None, STORED_DOCUMENTS.empty_table(), FILES.empty_table(), QUARANTINE.empty_table())
    with lance_errors(f"{store.label} cannot be read"):
        held = table.to_table(columns=STORED_DOCUMENTS.names, filter="chunk_index = 0").cast(STORED_DOCUMENTS)
    names, owner = named(table), mark_of(table)
    return State(int(table.version), held, *(read_side(store, side, names, owner) for side in NAMED))


def named(table: lance.LanceDataset) -> dict[Side, int]:
    """The versions of the side tables that belong to this version of the main table: named by the newest commit up to it.

    None named (another program cleaned the commit away): nothing is known of any file, so the next run reads all of them again.
    """
    properties = properties_of(table, naming_version(table)) or {}
    return {side: int(properties[NAMING + side]) for side in NAMED if NAMING + side in properties}


def naming_version(table: lance.LanceDataset) -> int:
    """The newest version up to this one whose commit names side tables; this one where there is none."""
    for version in range(int(table.version), 0, -1):
        properties = properties_of(table, version)
        if properties is None:
            break
        if NAMING + "files" in properties:
            return version
    return int(table.version)


def properties_of(table: lance.LanceDataset, version: int) -> dict[str, str] | None:
    """The properties of the transaction that made a version; None where it is cleaned away."""
    with lance_errors(f"version {version} cannot be read"):
        try:
            transaction = table.read_transaction(version)
        except OSError as error:
            if "was not found" in str(error):
                return None
            raise
    return dict((transaction.transaction_properties if transaction else None) or {})


def rows_committed(table: lance.LanceDataset) -> int | None:
    """How many rows the table had after the newest commit of a run; None where that is not known."""
    rows = (properties_of(table, naming_version(table)) or {}).get("latent.rows")
    return int(rows) if rows else None


def naming(versions: Mapping[Side, int]) -> dict[str, str]:
    """Properties with which a commit names the side tables that belong to it."""
    return {NAMING + side: str(version) for side, version in versions.items()}


def read_side(store: Store, side: Side, names: Mapping[Side, int], owner: str | None = None) -> pa.Table:
    """A side table at the version named; empty where none is. `owner`: its mark, where it is known."""
    table = store.open(side, names[side], owner=owner) if side in names else None
    with lance_errors(f"{store.label} cannot be read"):
        return SIDES[side].empty_table() if table is None else table.to_table().cast(SIDES[side])


def write_side(store: Store, side: Side, rows: pa.Table, owner: str | None = None) -> int:
    """Put these rows in place of all others; returns the version, which counts once a commit names it. Under the lease. Raises ForeignTable."""
    owner = owner or identity_of(store)
    assert owner is not None
    rows = marked(rows.cast(SIDES[side]), owner)
    with lance_errors(f"{store.label}: {side} cannot be written"):
        if store.open(side, owner=owner) is None:
            with contextlib.suppress(FileExistsError):
                return int(_write(store, rows, side, mode="create").version)
        return int(_write(store, rows, side, mode="overwrite").version)


def read_runs(store: Store) -> pa.Table:
    """The table of runs (RUNS), newest first."""
    table = store.open("runs")
    with lance_errors(f"{store.label}: its runs cannot be read"):
        rows = RUNS.empty_table() if table is None else table.to_table()
    for column in RUNS:
        if column.name not in rows.schema.names:  # an earlier version of latent made the table
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    return rows.select(RUNS.names).cast(RUNS).sort_by([("started_at", "descending"), ("run_id", "descending")])


def drop_versions(table: lance.LanceDataset, versions: Sequence[int]) -> int:
    """Drop versions of a table, but for those with a tag; returns how many went. Under the lease."""
    if not versions:
        return 0
    return int(table.cleanup_old_versions(versions=list(versions), error_if_tagged_old_versions=False).old_versions)


def write_runs(store: Store, rows: pa.Table) -> None:
    """Insert runs, or put them in place of those with their run_id."""
    table = store.open("runs")
    with lance_errors(f"{store.label}: the run cannot be recorded"):
        if table is not None and rows.num_rows:
            if missing := [column for column in RUNS if column.name not in table.schema.names]:
                table.add_columns(missing)  # an earlier version of latent made it
            table.merge_insert("run_id").when_matched_update_all().when_not_matched_insert_all().execute(rows.cast(RUNS))


def _write(
    store: Store, rows: pa.Table, side: Side | None, *, mode: str, properties: dict[str, str] | None = None
) -> lance.LanceDataset:
    try:
        return lance.write_dataset(
            rows,
            store.path(side),
            mode=mode,
            enable_stable_row_ids=True,
            storage_options=store.options,
            transaction_properties=properties,
        )
    except OSError as error:
        if mode == "create" and re.search("already exists|commit conflict", str(error)):
            raise FileExistsError(str(error)) from error
        raise
