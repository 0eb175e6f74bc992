"""The main table and those beside it: where they lie, what they hold.

A version of the main table names, in its transaction's properties, the versions of `files` and `quarantine` that belong to it. So rows, file states
and quarantine change in one instant, with the main table's commit. A side table's own newest version may be ahead for a moment, or after a crash.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import lance
import pyarrow as pa

from pipeline.errors import StoreError, TableMissing, shown
from pipeline.schema import FILES, HELD, QUARANTINE, RUNS, Spec, table_schema

SPEC_KEY = b"latent.spec"
FORMER_KEY = b"latent.former"  # specs that the table had before it was migrated
SOURCE_KEY = b"latent.source"  # whose documents the table holds
QUERIES_KEY = b"latent.queries"  # how queries are put to the model
NAMING = "latent.side."  # property of a commit: the version of a side table that belongs to it
# For an object store, under what [table] storage_options say. Lance's own defaults wait half an hour for a store that is silent. So: a listing 3 minutes,
# a read 2 minutes, a write 30 s; errors are asked again for some 10 s.
PATIENCE = {"timeout": "15s", "client_max_retries": "6", "client_retry_timeout": "20", "lance_aimd_max_retries": "0"}
Side = Literal["files", "quarantine", "runs"]
SIDES: dict[Side, pa.Schema] = {"files": FILES, "quarantine": QUARANTINE, "runs": RUNS}
Derived = Literal[
    "clusters", "assignments", "map", "duplicates", "spared", "outliers", "analysis", "compressed", "codec"
]  # worked out from the main table
DERIVED: tuple[Derived, ...] = get_args(Derived)
NAMED: tuple[Side, ...] = ("files", "quarantine")  # change with the main table, in one commit; runs are a diary


@dataclass(frozen=True)
class Store:
    """Where the tables lie. A value: workers get a copy."""

    uri: str = field(repr=False)  # may hold credentials
    name: str
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        return f"table '{self.name}' at {shown(self.uri)}"

    @property
    def options(self) -> dict[str, str] | None:
        """What Lance is told of the store; None on a disk."""
        return PATIENCE | dict(self.storage_options) if "://" in self.uri else dict(self.storage_options) or None

    def path(self, side: Side | Derived | None = None) -> str:
        return f"{self.uri.rstrip('/')}/{self.name}{'_' + side if side else ''}.lance"

    def open(self, side: Side | Derived | None = None, version: int | None = None) -> lance.LanceDataset | None:
        """The table at a version, the newest by default; None where there is none yet."""
        with lance_errors(f"{self.label} cannot be opened"):
            try:
                return lance.dataset(self.path(side), version=version, storage_options=self.options)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    def opened(self, version: int | None = None) -> lance.LanceDataset:
        """The main table, its newest version by default. Raises TableMissing where there is none."""
        if (table := self.open(version=version)) is None:
            raise TableMissing(f"no {self.label}: run 'latent run' first, or set [table] uri and name")
        return table


@dataclass(frozen=True)
class Asking:
    """How queries are put to the model, where the config does not say: it decides no vector of the table, so it is no part of the spec."""

    revision: str = ""
    query_prompt: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def create(store: Store, spec: Spec, metadata: pa.Schema, asking: Asking, source: str) -> None:
    """Make the main table, unless it is there. The spec and the source stand in its schema metadata. Under the lease.

    Side tables left behind by a main table that is gone are emptied: what they say of it would hide documents.
    """
    if store.open() is not None:
        return
    told = {SPEC_KEY: spec.to_json().encode(), QUERIES_KEY: asking.to_json().encode(), SOURCE_KEY: source.encode()}
    schema = table_schema(spec, metadata).with_metadata(told)
    names = {side: write_side(store, side, SIDES[side].empty_table()) for side in NAMED}
    with lance_errors(f"{store.label} cannot be created"), contextlib.suppress(FileExistsError):
        _write(store, schema.empty_table(), None, mode="create", properties=naming(names))


def create_runs(store: Store) -> None:
    """Make the table of runs, which holds the lease, unless it is there."""
    with lance_errors(f"{store.label} cannot be created"):
        if store.open("runs") is None:
            with contextlib.suppress(FileExistsError):
                _write(store, RUNS.empty_table(), "runs", mode="create")


def spec_of(store: Store, version: int | None = None) -> Spec | None:
    """The spec of the vectors in the table, at its newest version by default; None where there is no table."""
    table = store.open(version=version)
    if table is None:
        return None
    if SPEC_KEY not in (table.schema.metadata or {}):
        raise StoreError(f"{store.label} was not made by latent: it holds no spec; set [table] name to a new name")
    return Spec.from_json(table.schema.metadata[SPEC_KEY].decode())


def asking_of(store: Store) -> Asking:
    """How queries are put to the model that made the table's vectors."""
    told = (store.opened().schema.metadata or {}).get(QUERIES_KEY)
    return Asking(**json.loads(told)) if told else Asking()


def former_specs(table: lance.LanceDataset) -> list[Spec]:
    """The specs that the table had before it was migrated to its present one."""
    return [Spec(**each) for each in json.loads((table.schema.metadata or {}).get(FORMER_KEY, b"[]"))]


@dataclass(frozen=True)
class State:
    """What the table and those beside it hold at one version: one instant of it all."""

    version: int | None  # None: there is no table yet
    held: pa.Table  # HELD, one row a document
    files: pa.Table  # FILES
    quarantine: pa.Table  # QUARANTINE


def state_of(store: Store) -> State:
    """The newest state. Reads three columns of the main table, no vectors: about 20 M rows a second."""
    table = store.open()
    if table is None:
        return State(None, HELD.empty_table(), FILES.empty_table(), QUARANTINE.empty_table())
    with lance_errors(f"{store.label} cannot be read"):
        held = table.to_table(columns=HELD.names, filter="chunk_index = 0").cast(HELD)
    names = named(table)
    return State(int(table.version), held, *(read_side(store, side, names) for side in NAMED))


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


def read_side(store: Store, side: Side, names: Mapping[Side, int]) -> pa.Table:
    """A side table at the version named; empty where none is."""
    table = store.open(side, names[side]) if side in names else None
    with lance_errors(f"{store.label} cannot be read"):
        return SIDES[side].empty_table() if table is None else table.to_table().cast(SIDES[side])


def write_side(store: Store, side: Side, rows: pa.Table) -> int:
    """Put these rows in place of all others; returns the version, which counts once a commit names it. Under the lease."""
    rows = rows.cast(SIDES[side])
    with lance_errors(f"{store.label}: {side} cannot be written"):
        if store.open(side) is None:
            with contextlib.suppress(FileExistsError):
                return int(_write(store, rows, side, mode="create").version)
        return int(_write(store, rows, side, mode="overwrite").version)


def read_runs(store: Store) -> pa.Table:
    """The table of runs (RUNS), newest first."""
    table = store.open("runs")
    with lance_errors(f"{store.label}: its runs cannot be read"):
        rows = RUNS.empty_table() if table is None else table.to_table().cast(RUNS)
    return rows.sort_by([("started_at", "descending"), ("run_id", "descending")])


def write_runs(store: Store, rows: pa.Table) -> None:
    """Insert runs, or put them in place of those with their run_id."""
    table = store.open("runs")
    with lance_errors(f"{store.label}: the run cannot be recorded"):
        if table is not None and rows.num_rows:
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


NOISE = re.compile(
    r",? ?/\S*\.rs:\d+.*| \(\d+ bytes, LANCE_[^)]*\)|lance error: |LanceError\(IO\): |Generic N/A error: |Wrapped error: |(?<=//)[^/@\s]*@"
)


@contextlib.contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Lance's errors and lancedb's → StoreError in one line, without the place in their own source, their settings and a URI's credentials."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, FileExistsError):
            raise
        raise StoreError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What Lance or lancedb says, its noise left out."""
    return NOISE.sub("", (str(error).splitlines() or [type(error).__name__])[0])
