"""The table's past: its versions, the way back to one, and how long each is kept.

A version stays for KEEP after it was superseded, however old it was then: a reader that opened the newest version has that long to finish, and a
rollback that long to be decided. Tagged versions stay as long as their tag.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile

import pyarrow as pa
from lance import LanceDataset, LanceOperation
from lance.file import LanceFileSession

from latent.errors import StoreError
from latent.store.commits import ATTEMPTS, CHANGES_ROWS, MESSAGE, PAUSE_S, make_version, written
from latent.store.dataset import (
    FORMER_KEY,
    QUERY_SETTINGS_KEY,
    QuerySettings,
    canary_of,
    create_runs,
    drop_versions,
    former_specs,
    named,
    naming,
    naming_version,
    opened_runs,
    read_runs,
    read_side,
    write_canary,
    write_runs,
    write_side,
)
from latent.store.failures import lance_errors
from latent.store.lease import Lease
from latent.store.ownership import DERIVED, NAMED, SIDES, SPEC_KEY, TABLE_KEY, Side, Store, drop_tables, mark_of
from latent.store.reader import TUNING_KEY
from latent.types import Spec

KEEP = dt.timedelta(days=14)
KEEP_RUNS = dt.timedelta(hours=1)  # of the table of runs, whose versions are signs of life
MANIFESTS_AT_ONCE = 32
FOREIGN = "by another program"
SAID = {
    "CreateIndex": "indexed",
    "Rewrite": "fragments merged",
    "UpdateConfig": "search settings",
    "BaseOperation": "merge prepared",
    "Project": "columns dropped",
}
ENDED_WELL = frozenset({"done", "interrupted", "gave way"})  # nothing of such a run is on its way any more
LOOKED_BACK = 1000  # versions that `verify` reads


@dataclass(frozen=True)
class Version:
    """A state of the table that can be gone back to."""

    version: int
    made_at: dt.datetime
    run_id: str | None  # None: an index, a compaction, or another program
    what: str


@contextlib.contextmanager
def exclusive_writer(store: Store, run_id: str, *, should_yield: bool = False, version: int | None = None) -> Iterator[Lease]:
    """The lease, and nobody else able to commit. Raises TableBusy where another run holds it; one that gives way is asked to.

    Raises ForeignTable, before anything is written, where the table or one beside it is not latent's own. `version`: the one to go back to, which
    tells whose the table is even where another program has put another one in its place.

    A holder that did not give the lease back may be paused anywhere, even within a commit; the last commit of a run that failed may still be on its way
    to an object store. So a version that changes nothing is made as a fence: Lance refuses every change of rows that began on a version before it.
    """
    create_runs(store, version)
    with Lease(store, run_id, should_yield=should_yield) as lease:
        runs = read_runs(store).to_pylist()
        last = next((row for row in runs if row["table_version"] is not None), None)  # that could write
        doubtful = lease.unfenced or (last["run_id"] if last and last["status"] not in ENDED_WELL else None)
        if doubtful is not None and store.open(any_maker=True) is not None:
            fence(store, lease, f"fence: run {doubtful} did not end well")
        lease.unfenced = None
        reason = f"its process was killed, or its machine failed: run {run_id} found it dead"
        died = [row | {"status": "died", "reason": reason} for row in runs if row["status"] == "running"]
        write_runs(store, pa.Table.from_pylist(died, schema=SIDES["runs"]))
        yield lease


def fence(store: Store, lease: Lease, message: str) -> int:
    """Make a version that is as the newest, and that no change of rows begun before it can follow; returns it.

    A projection on all columns: it conflicts with every change of rows, whichever of the two came first. So the fence of a holder that was paused in its
    turn comes to nothing. (A Restore conflicts with nothing that came before it: a late one undoes whatever its successor did.)
    """
    for attempt in range(ATTEMPTS):
        table = store.opened(any_maker=True)
        properties = _properties(store, lease, table, message)
        lease.check()
        try:
            return make_version(store, table, LanceOperation.Project(table.lance_schema), properties)
        except StoreError:
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


def restore(store: Store, lease: Lease, version: int, message: str) -> int:
    """Make the table, its file states and its quarantine what they were at a version; returns the new version.

    Raises StoreError where the version is gone, TableBusy where the lease is lost; nothing is changed then.
    """
    past = store.open(version=version)
    if past is None:
        raise StoreError(f"{store.label} has no version {version}: 'latent status' lists those that are kept")
    table = store.opened(any_maker=True)
    operation, properties = _restore_operation(store, table, past), _properties(store, lease, past, message)
    return _made(store, lease, table, operation, properties)


def replace_table(store: Store, lease: Lease, successor: Store, query_settings: QuerySettings, message: str) -> int:
    """Make the table what another one is, spec, file states and quarantine included, in one version; returns it. Rows are copied.

    What it was stays as a version to go back to. Raises StoreError, TableBusy where the lease is lost; nothing is changed then.
    """
    table, new = store.opened(), successor.opened()
    former = [*former_specs(table), Spec.from_json(table.schema.metadata[SPEC_KEY].decode())]
    told = {
        TABLE_KEY: table.schema.metadata[TABLE_KEY],
        FORMER_KEY: json.dumps([asdict(spec) for spec in former]).encode(),
        QUERY_SETTINGS_KEY: query_settings.to_json().encode(),
    }
    schema = new.schema.with_metadata(new.schema.metadata | told)
    count = new.count_rows()
    operation = LanceOperation.Overwrite(schema, written(store, new.scanner().to_reader(), count, schema))
    sides = {side: write_side(store, side, read_side(successor, side, named(new))) for side in NAMED}
    write_runs(store, read_runs(successor))
    spec = Spec.from_json(new.schema.metadata[SPEC_KEY].decode())
    if canary := canary_of(successor, spec):
        write_canary(store, spec, canary)
    properties = naming(sides) | {"latent.run": lease.run_id, "latent.rows": str(count), MESSAGE: message}
    return _made(store, lease, table, operation, properties)


def drop_all(store: Store, lease: Lease) -> None:
    """Remove the table that a migration made, and those beside it, files and all, whatever an earlier removal left of them. The lease is that table's.

    Raises ForeignTable where one of them is not the migration's; nothing is removed then. The table of runs goes last: its mark vouches for what is left.
    """
    lease.check()
    for side in (None, *SIDES):
        store.open(side)
    lease.end_renewals()
    drop_tables(store, (*NAMED, None, "runs"))


def _made(
    store: Store, lease: Lease, table: LanceDataset, operation: LanceOperation.BaseOperation, properties: dict[str, str]
) -> int:
    """The version, once. An Overwrite leaves no index, and what was measured of the old ones goes with them."""
    lease.check()
    try:
        version = make_version(store, table, operation, properties)
    except StoreError:
        lease.check()
        raise
    if isinstance(operation, LanceOperation.Overwrite):
        store.opened().update_metadata({TUNING_KEY: None})
    return version


def versions(store: Store, count: int) -> list[Version]:
    """The newest versions, newest first. Reads a manifest and a transaction each."""
    table = store.opened()
    with lance_errors(f"{store.label}: its versions cannot be read"):
        return [_version(table, ref["version"]) for ref in table.version_refs()[::-1][:count]]


def foreign_changes(store: Store) -> list[Version]:
    """Changes of rows that no run made, among the newest LOOKED_BACK versions."""
    return [v for v in versions(store, LOOKED_BACK) if v.what.endswith(FOREIGN)]


def orphaned_files(store: Store) -> frozenset[str]:
    """Files of rows that no version names: what runs wrote and never committed."""
    table = store.opened()
    with lance_errors(f"{store.label}: its files cannot be listed"):
        found = table.explain_cleanup_old_versions(
            dt.timedelta(days=36_500), delete_unverified=True, include_files=True, max_files=1_000_000
        )
    below = f"{store.name}.lance/"
    return frozenset(f.path.rpartition(below)[2] for f in found.candidate_files if f.unverified and f.kind in {"data", "deletion"})


def vacuum(store: Store, lease: Lease, orphans: frozenset[str]) -> tuple[int, int]:
    """Drop what is kept no longer: versions of all tables past KEEP, and these files, unless a version names them by now.

    The orphans were listed under this lease, behind its fence. So no run writes or commits them any more, however long this one was paused meanwhile.
    Returns how many versions and files went.
    """
    owner = mark_of(store.opened())
    derived = [table for name in DERIVED if (table := store.open(name, any_maker=True)) is not None and mark_of(table) == owner]
    with lance_errors(f"{store.label} cannot be cleaned up"):
        lease.check()
        table = store.opened()
        expired = _expired(table)
        kept = table.version_refs()[len(expired)]["version"]
        oldest = store.opened(naming_version(store.opened(kept)))  # the commit that names the side tables of what is kept
        dropped = drop_versions(table, [v for v in expired if v < oldest.version])
        names = named(oldest)
        for side in SIDES:
            if (beside := store.open(side)) is not None:
                keep, kept_from = (KEEP_RUNS, lease.taken) if side == "runs" else (KEEP, names.get(side, beside.version))
                dropped += drop_versions(beside, [v for v in _expired(beside, keep) if v < kept_from])
        dropped += sum(drop_versions(beside, _expired(beside)) for beside in derived)
        files = LanceFileSession(store.path(), storage_options=store.options)
        gone = orphans & orphaned_files(store)
        for path in sorted(gone):
            files.delete_file(path)
    return dropped, len(gone)


def _properties(store: Store, lease: Lease, at: LanceDataset, message: str) -> dict[str, str]:
    """Of a commit after which all is as it was at this version."""
    owner = mark_of(opened_runs(store))
    names = {side: _newest(store, side, named(at), owner) for side in NAMED}
    return naming(names) | {"latent.run": lease.run_id, "latent.rows": str(at.count_rows()), MESSAGE: message}


def _restore_operation(store: Store, table: LanceDataset, past: LanceDataset) -> LanceOperation.BaseOperation:
    """Fragments that are other ones now go, and what they were comes back, written anew: a change of rows like any other, so that a fence stops it.

    Where the table had another spec then, all of its rows are written anew.
    """
    if not past.schema.equals(table.schema, check_metadata=True):
        return LanceOperation.Overwrite(past.schema, written(store, past.scanner().to_reader(), past.count_rows(), past.schema))
    now, then = ({f.fragment_id: f.metadata.to_json() for f in at.get_fragments()} for at in (table, past))
    back = [fragment for fragment in past.get_fragments() if now.get(fragment.fragment_id) != then[fragment.fragment_id]]
    gone = [number for number, known in now.items() if then.get(number) != known]
    rows = past.scanner(fragments=back).to_reader() if back else None
    return LanceOperation.Update(gone, [], written(store, rows, sum(f.count_rows() for f in back)) if rows else [])


def _newest(store: Store, side: Side, names: dict[Side, int], owner: str | None) -> int:
    """The version of a side table that has these contents and is its newest, so that other programs see the same."""
    table = store.open(side, owner=owner)
    if table is not None and names.get(side) == table.version:
        return int(table.version)
    return write_side(store, side, read_side(store, side, names, owner), owner)


def _version(table: LanceDataset, version: int) -> Version:
    transaction = table.read_transaction(version)
    properties = transaction.transaction_properties or {}
    kind = type(transaction.operation).__name__
    ours = any(key.startswith("latent.") for key in properties)
    foreign = isinstance(transaction.operation, CHANGES_ROWS) and not ours
    what = properties.get(MESSAGE) or ("created" if ours else f"{kind} {FOREIGN}" if foreign else SAID.get(kind, kind))
    return Version(version, _made_at(table, version), properties.get("latent.run"), what)


def _made_at(table: LanceDataset, version: int) -> dt.datetime:
    made_at: dt.datetime = table.checkout_version(version).get_version()["timestamp"]
    return made_at.astimezone(dt.UTC)


def _expired(table: LanceDataset, keep: dt.timedelta | None = None) -> list[int]:
    """Versions superseded longer than KEEP ago, oldest first. Where the clock once ran backwards, fewer.

    Reads the manifests of those alone, some at a time: on an object store each is a request, and a backfill leaves thousands a day.
    """
    before = dt.datetime.now(dt.UTC) - (KEEP if keep is None else keep)
    versions = [ref["version"] for ref in table.version_refs()]
    past: list[int] = []
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE, thread_name_prefix="manifests") as pool:
        for start in range(0, len(versions), MANIFESTS_AT_ONCE):
            some = versions[start : start + MANIFESTS_AT_ONCE]
            made_at = dict(zip(some, pool.map(partial(_made_at, table), some), strict=True))
            past += takewhile(lambda version: made_at[version] <= before, some)  # noqa: B023  used in this turn
            if past[-1:] != some[-1:]:
                break
    return past[:-1]  # the last of them was the newest within KEEP
