"""The use-cases: plan, embed, maintain, rollback. Here the rooms meet.

`embed` is the whole job: survey the source, plan, give shards to workers, commit their receipts in groups, record file states. Run it again after
any crash: what was committed is found unchanged, the rest is done. With nothing to do it starts no Ray, loads no model, writes nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa

from pipeline import interruption, metrics, store
from pipeline.config import Config
from pipeline.encode import loss_of
from pipeline.engine import Crew, Engine, MakeWorker
from pipeline.errors import (
    ForeignTable,
    Interrupted,
    PipelineError,
    QueryError,
    SourceError,
    SpecMismatch,
    StoreError,
    TableBusy,
    reason_of,
)
from pipeline.estimate import estimate
from pipeline.exposition import shown_at
from pipeline.ledger import SLOWEST, Ledger
from pipeline.manners import Manners
from pipeline.schema import RUNS, ChunkCounts, DocumentCounts, Progress, Report
from pipeline.store import Lease, Store, Tuning, Words, new_run_id
from pipeline.survey import OnProgress, Outlook, Scene, report_of, scene, store_of, survey
from pipeline.worker import Job, Worker

log = logging.getLogger("pipeline")
MakeEngine = Callable[[Crew, MakeWorker, int], Engine]
COMMIT_S = 20.0  # receipts are grouped this long: a version costs little, but thousands of fragments a version do


def quiet(_: Progress) -> None:
    """Draws no progress."""


def plan(config: Config, on_progress: OnProgress = quiet, *, change_source: bool = False) -> Report:
    """What `embed` would do, counted, and whether it is refused; tokens and time estimated on a sample. Writes nothing."""
    at = scene(config)
    outlook = survey(at, "plan", on_progress, change_source=change_source)
    report = replace(report_of(None, outlook, outlook.plan.documents), refused=outlook.refused)
    return estimate(report, outlook, at) if outlook.plan.shards else report


def refuse_losses(at: Scene, on_progress: OnProgress = quiet) -> None:
    """Raise SourceError or SpecMismatch where a run would be refused: the source is not whole, or another, or the table has columns of another program."""
    if refused := survey(at, "plan", on_progress).refused:
        raise SourceError(refused)


def embed(
    config: Config,
    on_progress: OnProgress = quiet,
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    engine: MakeEngine = Engine,
    manners: Manners | None = None,
) -> Report:
    """Bring the table up to date with the source, exactly once.

    `allow_deletions`: more of the table than [source] max_deleted_share may go. `change_source`: the table may be of another source.
    `sample`: that share of the documents to do, chosen by content; the rest is another run's. `engine` is the seam for workers of another kind. With
    `manners` it is a turn of `backfill`. Raises PipelineError; Interrupted where a signal stopped it. Either way what had been finished is committed.
    """
    run_id = new_run_id()
    with _recorded(config, run_id, gives_way=manners is not None):
        return _embed(
            config, run_id, on_progress, engine, manners, _Asked(retry_quarantined, allow_deletions, change_source, sample)
        )


@dataclass(frozen=True)
class _Asked:
    """What a run is asked for beside the config."""

    retry_quarantined: bool
    allow_deletions: bool
    change_source: bool
    sample: float


def _embed(  # noqa: PLR0917
    config: Config, run_id: str, on_progress: OnProgress, engine: MakeEngine, manners: Manners | None, asked: _Asked
) -> Report:
    started = time.perf_counter()
    at = scene(config)

    def look() -> Outlook:
        outlook = survey(
            at,
            run_id,
            on_progress,
            retry_quarantined=asked.retry_quarantined,
            change_source=asked.change_source,
            share=asked.sample,
            backfill=manners is not None,
        )
        if outlook.refused and not asked.allow_deletions:
            raise SourceError(outlook.refused)
        return outlook

    outlook = look()
    if outlook.nothing_to_do:
        report = report_of(run_id, outlook, outlook.plan.documents)
        return replace(report, seconds=round(time.perf_counter() - started, 2))
    if outlook.plan.shards and at.spec.precision == "int8":  # before there is a table: a model may take no 8 bits
        log.warning("precision int8: %s", loss_of(at.model))
    with store.sole_writer(at.store, run_id, gives_way=manners is not None) as lease:
        store.create(at.store, at.spec, outlook.metadata, at.asking, outlook.source)
        at = scene(config)  # another run may have made the table first, or migrated it
        if _moved_on(at, outlook):
            outlook = look()
        ledger = Ledger(at, outlook, lease, started, earlier=manners.committed if manners else 0)
        ledger.record("running")
        with shown_at(config.metrics.listen, metrics.REGISTRY):
            _work_and_record(ledger, on_progress, engine, manners)
        if manners is not None:
            manners.committed += ledger.committed
    on_progress(Progress("done", ledger.embedded, ledger.total, ledger.tokens, ledger.lost.num_rows))
    return ledger.report()


@contextmanager
def _recorded(config: Config, run_id: str, *, gives_way: bool) -> Iterator[None]:
    """Record why a run ends before it has the table to itself, where there is a table of runs: the next morning nobody has its terminal."""
    started_at, started = dt.datetime.now(dt.UTC), time.perf_counter()
    try:
        yield
    except BaseException as error:
        stop = interruption.raised() or error
        # A backfill meets a busy table often, and waits. Beside a table of another program nothing is written.
        if not (gives_way and isinstance(stop, TableBusy)) and not isinstance(stop, ForeignTable):
            with interruption.deferred(), suppress(PipelineError):
                report = Report(run_id, None, DocumentCounts(), ChunkCounts(), 0, round(time.perf_counter() - started, 2), 0.0)
                _record_unstarted(config, started_at, report, *_ended(config, stop))
        raise


def _record_unstarted(config: Config, started_at: dt.datetime, report: Report, status: str, reason: str) -> None:
    place = store_of(config)
    if place.open("runs") is None or report.run_id in store.read_runs(place)["run_id"].to_pylist():  # the ledger has recorded it
        return
    row = {"run_id": report.run_id, "status": status, "started_at": started_at, "finished_at": dt.datetime.now(dt.UTC)}
    row |= {"table_version": None, "report": json.dumps(asdict(report)), "reason": reason}
    store.write_runs(place, pa.Table.from_pylist([row], schema=RUNS))


def backfill(
    config: Config,
    on_progress: OnProgress = quiet,
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    engine: MakeEngine = Engine,
) -> Report:
    """`embed` for a job of days: it keeps to a pace and to hours, can be paused, and gives way to other runs of the table.

    It works in turns, each a run of its own; to go on is to plan again. What stands in the way between two turns keeps neither lease nor workers. A run that
    comes meanwhile leaves to it the files that it has not recorded yet. Raises PipelineError; TableBusy where a backfill is under way.
    """
    place = store_of(config)
    with store.Backfill(place, new_run_id()) as presence:
        manners, turns = Manners(config, place, presence), list[Report]()
        while not turns or turns[-1].undone:
            manners.wait(lambda reason: _tell_waiting(reason, on_progress))
            if turns:
                _refuse_other_columns(place, config)
            try:
                turn = embed(
                    config,
                    on_progress,
                    retry_quarantined=retry_quarantined and not turns,
                    allow_deletions=allow_deletions,
                    change_source=change_source,
                    sample=sample,
                    engine=engine,
                    manners=manners,
                )
                turns.append(turn)
            except TableBusy:  # another run came first
                if presence.in_the_way() is None:
                    raise
    return _summed(turns)


def _refuse_other_columns(place: Store, config: Config) -> None:
    """Raise SpecMismatch where a run of a newer config changed the metadata columns: a backfill of days must not change them back."""
    held = sorted((store.metadata_fields(place) or pa.schema([])).names)
    if held != (wanted := sorted(config.source.metadata)):
        raise SpecMismatch(
            f"{place.label}: expected metadata columns {wanted}, got {held} from a run that came meanwhile. "
            "Start the backfill again with the config of that run"
        )


def _tell_waiting(reason: str, on_progress: OnProgress) -> None:
    log.info("the backfill waits: %s", reason)
    on_progress(Progress("wait"))


def _summed(turns: Sequence[Report]) -> Report:
    """The report of all turns together."""
    last, earlier = turns[-1], turns[:-1]
    documents, chunks = last.documents, last.chunks
    for turn in earlier:
        d, c = turn.documents, turn.chunks
        documents = replace(
            documents,
            added=documents.added + d.added,
            changed=documents.changed + d.changed,
            unchanged=documents.unchanged - d.added - d.changed,
            deleted=documents.deleted + d.deleted,
        )
        chunks = ChunkCounts(chunks.encoded + c.encoded, chunks.reused + c.reused, chunks.deleted + c.deleted)
    tokens, seconds = sum(turn.tokens for turn in turns), sum(turn.seconds for turn in turns)
    return replace(
        last,
        documents=documents,
        chunks=chunks,
        tokens=tokens,
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        read_seconds=round(sum(turn.read_seconds for turn in turns), 2),
        encode_seconds=round(sum(turn.encode_seconds for turn in turns), 2),
        write_seconds=round(sum(turn.write_seconds for turn in turns), 2),
        cost=round(sum(turn.cost for turn in turns), 4),
        slowest=tuple(sorted((shard for turn in turns for shard in turn.slowest), key=lambda each: -each.seconds)[:SLOWEST]),
    )


def _moved_on(at: Scene, outlook: Outlook) -> bool:
    """Whether another run committed between the survey and the lease."""
    return bool(at.store.opened().version != (outlook.table_version or 1))  # 1: just created


def _work_and_record(ledger: Ledger, on_progress: OnProgress, make_engine: MakeEngine, manners: Manners | None) -> None:
    """Do the plan; however it ends, commit what is finished and say in the table of runs how it ended."""
    recorded = False
    with ExitStack() as workers:  # they end after the commit, which needs none: Ray may be dying, and end this process
        try:
            ledger.adapt_table()
            whole = _work(ledger, workers, on_progress, make_engine, manners)
            with interruption.deferred():
                ledger.commit(last=whole)
                ledger.record("done" if whole else "gave way", ledger.gave_way)
                recorded = True
        except BaseException as error:  # noqa: BLE001 it is raised again
            # No failure: a stop signal, or Prefect's way to cancel a run or to end it at its time limit. A library may have made an error of it.
            stop = interruption.raised() or (None if isinstance(error, Exception) else error)
            if not recorded:
                _keep(ledger, error, stop)
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted(ledger.stopped()) from None
            raise (stop or error) from error.__cause__


def _keep(ledger: Ledger, error: BaseException, stop: BaseException | None) -> None:
    """Commit what is finished of a run that fails or is stopped, and record how it ended."""
    with interruption.deferred():
        if stop is not None or not isinstance(error, StoreError):  # such a table has been asked again and again just now
            ledger.commit_if_possible()
        ledger.record_if_possible(*_ended(ledger.at.config, stop or error))


def _ended(config: Config, error: BaseException) -> tuple[str, str]:
    """Status and reason of a run that this ended."""
    if isinstance(error, Exception):
        return "failed", reason_of(error, config.table.storage_options)
    number = interruption.received()
    if number is signal.SIGALRM:
        return "interrupted", "stopped by the time limit of its flow"
    return "interrupted", f"stopped by {number.name if number is not None else type(error).__name__}"


def _work(ledger: Ledger, workers: ExitStack, on_progress: OnProgress, make_engine: MakeEngine, manners: Manners | None) -> bool:
    """Shards to workers, receipts to the ledger, a commit every COMMIT_S. False where it gave way before all was done."""
    at, outlook, reason = ledger.at, ledger.outlook, None
    if not outlook.plan.shards:
        return True
    on_progress(Progress("start", 0, ledger.total))
    if manners is not None:
        manners.begin()
    job = Job(at.config, at.spec, outlook.metadata, at.store, ledger.lease.run_id, store.canary_of(at.store, at.spec), ledger.base)
    engine = workers.enter_context(make_engine(at.crew, partial(Worker, job), len(outlook.plan.shards)))
    ledger.workers = engine.workers
    metrics.WORKERS.labels(at.store.name).set(engine.workers)
    indexing = store.WordIndexing(at.store, ledger.lease, _words(at.config))
    committed = time.monotonic()
    for outcome in engine.work(outlook.plan.shards):
        if outcome is not None:
            ledger.take(outcome)
            on_progress(ledger.progress())
        if time.monotonic() - committed > COMMIT_S:
            engine.settle(ledger.commit())
            indexing.advance()
            committed = time.monotonic()
        if manners is not None and reason is None:
            engine.hold = manners.too_fast(ledger.tokens)
            if (reason := manners.gives_way(ledger.lease)) is not None:
                ledger.gave_way = reason
                log.info("the backfill gives way: %s", reason)
                engine.stop()
    indexing.finish()
    return not ledger.undone


def record_unchanged(config: Config, report: Report) -> None:
    """Say in the table of runs that a run found nothing to do: `embed` writes nothing then, and a monitor would think that no run came.

    After `maintain`, which fences what an earlier run left undone: a newest run that ended well is taken to have left nothing.
    """
    place = store_of(config)
    if report.run_id is None or report.run_id in store.read_runs(place)["run_id"].to_pylist():
        return
    finished = dt.datetime.now(dt.UTC)
    row = {
        "run_id": report.run_id,
        "status": "done",
        "started_at": finished - dt.timedelta(seconds=report.seconds),
        "finished_at": finished,
        "table_version": report.table_version,
        "report": json.dumps(asdict(report)),
    }
    store.write_runs(place, pa.Table.from_pylist([row], schema=RUNS))


@dataclass(frozen=True)
class Maintained:
    """What `maintain` did."""

    tuning: Tuning | None  # of vector searches; None: there is no index, every search is exact
    versions_dropped: int  # of all tables
    files_removed: int  # written by runs that never committed them


def maintain(config: Config) -> Maintained:
    """Indexes, compaction, then what is kept no longer: see `store.history`. Raises TableBusy while a run is writing."""
    place = store_of(config)
    place.opened()
    with store.sole_writer(place, new_run_id()) as lease:
        orphans = store.leftovers(place)
        tuning = update_indexes(config, lease)
        return Maintained(tuning, *store.clean_up(place, lease, orphans))


def report_as_of_now(config: Config, report: Report) -> Report:
    """The report with the newest version of the table, once indexes have made further ones; so it stands in the table of runs too."""
    place = store_of(config)
    report = replace(report, table_version=int(place.opened().version))
    rows = [row for row in store.read_runs(place).to_pylist() if row["run_id"] == report.run_id]
    with suppress(StoreError):  # a diary: the next run writes it anew
        for row in rows:
            told = {"table_version": report.table_version, "report": json.dumps(asdict(report))}
            store.write_runs(place, pa.Table.from_pylist([row | told], schema=RUNS))
    return report


def update_indexes(config: Config, lease: Lease) -> Tuning | None:
    """Indexes and compaction, as the config wants them. Raises TableBusy where the lease is lost meanwhile."""
    return store.update_indexes(store_of(config), lease, config.index.recall, _words(config))


def _words(config: Config) -> Words | None:
    index = config.index
    return Words(index.language, index.stem, index.stop_words) if index.full_text else None


def pause(config: Config, *, paused: bool) -> None:
    """Have backfills of the table wait, or go on. Raises StoreError where there is no table."""
    store.pause(store_of(config), paused=paused)


def searches_lag(config: Config) -> bool:
    """Whether indexes are behind or absent: the run that changed rows was killed before it brought them up to date."""
    place = store_of(config)
    behind = any(index.behind for index in store.indexes(place) if index.kind != "BTree")  # trees may stay a little behind
    return behind or not store.Reading(place).settled(full_text=config.index.full_text)


@dataclass(frozen=True)
class RolledBack:
    """What `rollback` did."""

    run_id: str  # of the rollback itself
    restored: int  # the version the table is as it was at
    table_version: int  # the new version that is so
    documents: int
    chunks: int


def rollback(config: Config, to: str) -> RolledBack:
    """Make the table, file states and quarantine included, what it was at a version, or when a run had ended.

    Nothing is lost by it: the present state stays as a version like the others. Raises QueryError where there is no such run or version, TableBusy.
    """
    place = store_of(config)
    place.opened(any_maker=True)  # also where another program put its own in place of ours
    version = version_of(place, to)
    run_id = new_run_id()
    with store.sole_writer(place, run_id, version=version) as lease:
        done = store.restore(place, lease, version, f"rollback to version {version}")
        update_indexes(config, lease)  # those of another model's vectors stay behind
        return RolledBack(run_id, version, done, store.state_of(place).held.num_rows, place.opened().count_rows())


def version_of(place: Store, to: str) -> int:
    """The version that is meant by its number, or by the run at the end of which it stood. Raises QueryError where there is no such run."""
    rows = store.read_runs(place).to_pylist()
    runs = {row["run_id"]: row["table_version"] for row in rows if row["status"] != "running" and row["table_version"] is not None}
    if to not in runs and not re.fullmatch("[0-9]{1,18}", to):  # Lance counts in 64 bits
        raise QueryError(f"no run {to!r} of {place.label}: give a version's number or a run, 'latent status' lists both")
    return int(runs.get(to, to))
