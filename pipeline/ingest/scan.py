"""Looking before doing: the config resolved, the source listed and sighted, the plan made. Writes nothing.

A no-change survey costs the hash of the model's files, one listing, and three columns of the table; no file is opened.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from latent import sources as source
from latent import store
from latent.config import Config
from latent.encoders.library_versions import installed
from latent.errors import FileUnreadable, SourceError, shown
from latent.ingest.plan import (
    NEAR_DUPLICATE,
    Plan,
    ScanResult,
    compare_files,
    documents_to_skip,
    files_to_rescan,
    files_with_conflicting_ids,
    files_with_duplicate_ids,
    make_plan,
)
from latent.ingest.resolve import ResolvedConfig
from latent.schemas import FILES, QUARANTINE, SCANNED_DOCUMENTS, STORED_DOCUMENTS, owned
from latent.types import ChunkCounts, DocumentCounts, FileState, OnProgress, Progress, Prompts, Report

log = logging.getLogger("latent")
READERS = 8  # files sighted at a time
ID_CHARS_SHOWN = 80
DELETIONS_FLOOR = 20  # documents that a run may always delete: a large share of a small table


@dataclass(frozen=True)
class ColumnChanges:
    """Metadata columns that the table is to gain and to lose."""

    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.dropped)


@dataclass(frozen=True)
class ScanPlan:
    """A plan with what it was made from, the sightings and held documents left out: a run is long, and they are large."""

    plan: Plan
    scan: ScanResult
    metadata: pa.Schema
    table_version: int | None
    ignored: tuple[str, ...]
    prompts: Prompts
    source: str  # as the table is to record it
    columns: ColumnChanges
    resourced: bool  # the table records another source, or none
    refused: str = ""  # why a run stops before it deletes; empty: it does not

    @property
    def nothing_to_do(self) -> bool:
        """Whether a run would leave the table as it is."""
        return self.table_version is not None and not (self.plan or self.columns or self.resourced or self.sides_change)

    @property
    def sides_change(self) -> bool:
        """Whether file states or quarantine differ from what is recorded."""
        return not (
            same_rows(self.plan.files, self.scan.recorded, FILES)
            and same_rows(self.plan.quarantined, self.scan.quarantine, QUARANTINE)
        )


def scan(
    at: ResolvedConfig,
    run_id: str,
    on_progress: OnProgress,
    *,
    retry_quarantined: bool = False,
    change_source: bool = False,
    share: float = 1.0,
    backfill: bool = False,
) -> ScanPlan:
    """List the source, open what changed, and plan. Writes nothing. `share` of the documents to do; fewer than all are a sample.

    What a backfill under way is to do is left to it, unless this is the `backfill`.

    Raises SourceError where the source cannot be read as configured, or, unless `change_source`, is another than the table records.
    """
    settings = at.config.source
    origin = source.locate(settings.uri)
    listing = source.list_files(origin, settings.format)
    files = listing.files
    state = store.load_state(at.store)
    held, recorded, quarantine = state.held, state.files, state.quarantine
    if not files and state.version is None:
        raise SourceError(f"{_no_files(at, listing)}: check [source] uri and format")
    metadata, columns = _metadata(at, origin, files)
    reading = source.reading_hash(settings.format, settings, metadata)
    recorded_source, identity = store.source_of(at.store), source.identity(settings.uri, at.store.uri)
    moved = recorded_source is not None and recorded_source != identity
    reader = source.Reader(origin, settings.format, settings, metadata)

    backfilled = None if backfill else store.backfilling_since(at.store)
    reopened = frozenset(quarantine["source_file"].to_pylist()) if retry_quarantined else frozenset()
    if moved:  # what is recorded is of other files, though their names, sizes and times may be the same
        reopened |= {f.path for f in files}
    changes = compare_files(files, recorded, reading, reopened, backfilled)
    if state.version is not None and not changes.unchanged:
        source.require_columns(origin, settings.format, settings, files)
    if changes.changed or len(changes.unchanged) < recorded.num_rows:
        reopened |= files_with_duplicate_ids(quarantine)
        changes = compare_files(files, recorded, reading, reopened, backfilled)
    scanned, refused, opened = [SCANNED_DOCUMENTS.empty_table()], dict(listing.unreadable), set[int]()
    spared = store.redundant_documents(at.store, at.config.duplicates.similarity) if settings.skip_near_duplicates else None
    left: dict[tuple[str, str], str] = {}
    while True:
        if spared is not None:
            gone = set(recorded["path"].to_pylist()) - set(changes.unchanged)
            left = documents_to_skip(spared, pa.concat_tables(scanned), held, gone)
        reopened |= files_to_rescan(left, held, quarantine)
        changes = compare_files(files, recorded, reading, reopened, backfilled)
        if not (pending := [i for i in changes.changed if i not in opened]):
            break
        _scan_files(reader, origin, files, pending, scanned, refused, on_progress)
        opened |= set(pending)
        reopened |= files_with_conflicting_ids(pa.concat_tables(scanned), held, quarantine, changes.unchanged + changes.left)
    result = ScanResult(
        files, changes, pa.concat_tables(scanned), refused, reading, held, quarantine, recorded, retry_quarantined, share, left
    )
    done = make_plan(result, run_id, at.pool_spec.expected, on_gpu=at.pool_spec.gpus > 0)
    pa.default_memory_pool().release_unused()  # what reading and planning needed for a moment
    if moved and not change_source:
        _refuse_source(at, recorded_source or "", identity, done, held.num_rows)
    return ScanPlan(
        done,
        replace(result, scanned=SCANNED_DOCUMENTS.empty_table(), held=STORED_DOCUMENTS.empty_table()),
        metadata,
        state.version,
        listing.ignored,
        at.prompts,
        identity,
        columns,
        resourced=recorded_source != identity,
        refused="" if change_source else _refusal(at, listing, done, held.num_rows, recorded),
    )


def _refuse_source(at: ResolvedConfig, recorded: str, named: str, plan: Plan, held: int) -> None:
    """Raise SourceError where the table's documents are of another source. A source that moved, or whose pattern is wider, has them all."""
    changed = plan.documents.changed
    recorded, named = (source.place_of(each, at.store.uri) for each in (recorded, named))
    if plan.lost + changed <= at.config.source.max_deleted_share * held:
        return
    raise SourceError(
        f"{at.store.label}: expected its own source {recorded}, got {named}: of its {held} documents {plan.lost} would be deleted and {changed} changed. "
        "Set [table] name to a new name, or accept the source with 'latent run --change-source'"
    )


def _refusal(at: ResolvedConfig, listing: source.Listing, plan: Plan, held: int, recorded: pa.Table) -> str:
    """Why a run must not delete what the plan deletes; empty where it may."""
    share = at.config.source.max_deleted_share
    if (plan.lost <= max(DELETIONS_FLOOR, share * held) and (listing.files or not held)) or not plan.lost:
        return ""
    listed = {f.path for f in listing.files}
    gone = sum(path not in listed for path in recorded["path"].to_pylist())
    what = f"source {shown(at.config.source.uri)}" if listing.files else _no_files(at, listing)
    return (
        f"{what}: expected at most {share:.0%} of the documents deleted ([source] max_deleted_share), got {plan.lost} of {held}"
        f"{_for_quarantine(plan)}; {gone} of {recorded.num_rows} files are gone. "
        "Check that the source is whole, or go on with 'latent run --allow-deletions'"
    )


def _for_quarantine(plan: Plan) -> str:
    """How many of the documents to be deleted are there but cannot be embedded, and why the first one cannot."""
    if not (count := plan.lost - plan.documents.deleted):
        return ""
    rows = plan.quarantined.filter(pa.compute.is_in(plan.quarantined["doc_id"], value_set=plan.deleted)).select(
        ["doc_id", "reason"]
    )
    first = next(row for row in rows.to_pylist() if not row["reason"].startswith(NEAR_DUPLICATE))
    return f", {count} of them for quarantine ({first['doc_id'][:ID_CHARS_SHOWN]!r}: {first['reason']})"


def _no_files(at: ResolvedConfig, listing: source.Listing) -> str:
    kinds = f" ({len(listing.ignored)} of unknown kind, such as {listing.ignored[0]})" if listing.ignored else ""
    return f"source {shown(at.config.source.uri)}: no files{kinds}"


def cost_of(tokens: int, config: Config) -> float:
    """Of encoding so many tokens, in the config's currency."""
    return round(tokens / 1_000_000 * config.ray.cost_per_million_tokens, 4)


def reasons_of(quarantine: pa.Table) -> dict[str, int]:
    """Why documents are in quarantine → how many, most frequent first."""
    kinds = (reason.partition(":")[0] for reason in quarantine["reason"].to_pylist())
    return dict(Counter(kinds).most_common())


def report_of(run_id: str | None, scan_plan: ScanPlan, documents: DocumentCounts) -> Report:
    """The part of a report that is known before anything is encoded."""
    changes = scan_plan.scan.changes
    return Report(
        run_id=run_id,
        table_version=scan_plan.table_version,
        documents=documents,
        chunks=ChunkCounts(),
        tokens=0,
        seconds=0.0,
        tokens_per_second=0.0,
        moved=scan_plan.plan.moved,
        files_opened=len(changes.changed),
        files_unchanged=len(changes.unchanged),
        files_ignored=len(scan_plan.ignored),
        files_refused=len(scan_plan.scan.refused),
        files_left=len(changes.left),
        left=sum(scan_plan.plan.left.values()),
        columns_added=scan_plan.columns.added,
        columns_dropped=scan_plan.columns.dropped,
        reasons=reasons_of(scan_plan.plan.quarantined),
        prompts=scan_plan.prompts,
        versions=installed(),
    )


def _metadata(at: ResolvedConfig, origin: source.Origin, files: Sequence[FileState]) -> tuple[pa.Schema, ColumnChanges]:
    """The metadata columns as they are to be, in the config's order, and which of them the table is to gain and to lose.

    Types are the table's where it has the column, else the source's. Raises SpecMismatch where another program added a column.
    """
    settings = at.config.source
    stored = store.metadata_fields(at.store)
    present = stored or pa.schema([])
    added = [name for name in settings.metadata if name not in present.names]
    if added or stored is None:
        found = source.metadata_schema(origin, settings.format, settings.model_copy(update={"metadata": added}), files)
    else:
        found = pa.schema([])  # no file is opened where nothing changed
    version = 0 if stored is None else int(at.store.opened().version)
    new = {field.name: owned(field, version) for field in found}
    schema = pa.schema([new[name] if name in new else present.field(name) for name in settings.metadata])
    if stored is None:
        return schema, ColumnChanges()
    return schema, ColumnChanges(tuple(added), tuple(name for name in present.names if name not in settings.metadata))


def _scan_files(  # noqa: PLR0917
    reader: source.Reader,
    origin: source.Origin,
    files: tuple[FileState, ...],
    indices: list[int],
    scanned: list[pa.Table],
    refused: dict[str, str],
    on_progress: OnProgress,
) -> None:
    """Sight the documents of these files; damaged files go to `refused` with the reason."""

    def scan_file(i: int) -> pa.Table | str:
        try:
            return source.scan_file(reader, origin, files[i], i)
        except FileUnreadable as error:
            return str(error)

    seen = sum(s.num_rows for s in scanned)
    with ThreadPoolExecutor(READERS, thread_name_prefix="sight") as pool:
        for i, found in zip(indices, pool.map(scan_file, indices), strict=True):
            if isinstance(found, str):
                refused[files[i].path] = found
                log.warning("%s: unreadable, its stored documents stay: %s", files[i].path, found)
                continue
            scanned.append(found)
            seen += found.num_rows
            on_progress(Progress("scan", seen))


def same_rows(a: pa.Table, b: pa.Table, schema: pa.Schema) -> bool:
    """Equal as sets of rows, whichever run wrote them."""
    if a.equals(b):
        return True
    names = [name for name in schema.names if name != "run_id"]
    return a.num_rows == b.num_rows and Counter(map(str, a.select(names).to_pylist())) == Counter(
        map(str, b.select(names).to_pylist())
    )
