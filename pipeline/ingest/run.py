"""The use-cases: plan, embed, maintain, rollback. Here the rooms meet.

`embed` is the whole job: survey the source, plan, give shards to workers, commit their receipts in groups, record file states. Run it again after
any crash: what was committed is found unchanged, the rest is done. With nothing to do it starts no Ray, loads no model, writes nothing.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial

import pyarrow as pa

from latent import interruption, store
from latent.config import Config
from latent.encoders import loss_of
from latent.errors import (
    ForeignTable,
    Interrupted,
    PipelineError,
    SourceError,
    StoreError,
    TableBusy,
    reason_of,
)
from latent.ingest.estimate import estimate
from latent.ingest.maintenance import full_text_settings
from latent.ingest.resolve import ResolvedConfig, resolve_and_check, store_of
from latent.ingest.scan import ScanPlan, report_of, scan
from latent.ingest.throttle import BackfillThrottle
from latent.ingest.tracker import RunTracker
from latent.ingest.worker import Worker, WorkerContext
from latent.monitoring import metrics
from latent.monitoring.exposition import shown_at
from latent.schemas import RUNS
from latent.store import new_run_id
from latent.types import ChunkCounts, DocumentCounts, OnProgress, Progress, Report
from latent.workers import WorkerFactory, WorkerPool, WorkerPoolSpec

log = logging.getLogger("latent")
PoolFactory = Callable[[WorkerPoolSpec, WorkerFactory, int], WorkerPool]
COMMIT_S = 20.0  # receipts are grouped this long: a version costs little, but thousands of fragments a version do


def quiet(_: Progress) -> None:
    """Draws no progress."""


def plan(config: Config, on_progress: OnProgress = quiet, *, change_source: bool = False) -> Report:
    """What `embed` would do, counted, and whether it is refused; tokens and time estimated on a sample. Writes nothing."""
    at = resolve_and_check(config)
    scan_plan = scan(at, "plan", on_progress, change_source=change_source)
    report = replace(report_of(None, scan_plan, scan_plan.plan.documents), refused=scan_plan.refused)
    return estimate(report, scan_plan, at) if scan_plan.plan.shards else report


def refuse_losses(at: ResolvedConfig, on_progress: OnProgress = quiet) -> None:
    """Raise SourceError or SpecMismatch where a run would be refused: the source is not whole, or another, or the table has columns of another program."""
    if refused := scan(at, "plan", on_progress).refused:
        raise SourceError(refused)


def embed(
    config: Config,
    on_progress: OnProgress = quiet,
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    engine: PoolFactory = WorkerPool,
    throttle: BackfillThrottle | None = None,
) -> Report:
    """Bring the table up to date with the source, exactly once.

    `allow_deletions`: more of the table than [source] max_deleted_share may go. `change_source`: the table may be of another source.
    `sample`: that share of the documents to do, chosen by content; the rest is another run's. `engine` is the seam for workers of another kind. With
    `throttle` it is a turn of `backfill`. Raises PipelineError; Interrupted where a signal stopped it. Either way what had been finished is committed.
    """
    run_id = new_run_id()
    with _recorded(config, run_id, should_yield=throttle is not None):
        return _embed(
            config, run_id, on_progress, engine, throttle, _RunOptions(retry_quarantined, allow_deletions, change_source, sample)
        )


@dataclass(frozen=True)
class _RunOptions:
    """What a run is asked for beside the config."""

    retry_quarantined: bool
    allow_deletions: bool
    change_source: bool
    sample: float


def _embed(  # noqa: PLR0917
    config: Config, run_id: str, on_progress: OnProgress, engine: PoolFactory, throttle: BackfillThrottle | None, asked: _RunOptions
) -> Report:
    started = time.perf_counter()
    at = resolve_and_check(config)

    def rescan() -> ScanPlan:
        scan_plan = scan(
            at,
            run_id,
            on_progress,
            retry_quarantined=asked.retry_quarantined,
            change_source=asked.change_source,
            share=asked.sample,
            backfill=throttle is not None,
        )
        if scan_plan.refused and not asked.allow_deletions:
            raise SourceError(scan_plan.refused)
        return scan_plan

    scan_plan = rescan()
    if scan_plan.nothing_to_do:
        report = report_of(run_id, scan_plan, scan_plan.plan.documents)
        return replace(report, seconds=round(time.perf_counter() - started, 2))
    if scan_plan.plan.shards and at.spec.precision == "int8":  # before there is a table: a model may take no 8 bits
        log.warning("precision int8: %s", loss_of(at.model))
    with store.exclusive_writer(at.store, run_id, should_yield=throttle is not None) as lease:
        store.create(at.store, at.spec, scan_plan.metadata, at.query_settings, scan_plan.source)
        at = resolve_and_check(config)  # another run may have made the table first, or migrated it
        if _moved_on(at, scan_plan):
            scan_plan = rescan()
        tracker = RunTracker(at, scan_plan, lease, started, earlier=throttle.committed if throttle else 0)
        tracker.record("running")
        with shown_at(config.metrics.listen, metrics.REGISTRY):
            _work_and_record(tracker, on_progress, engine, throttle)
        if throttle is not None:
            throttle.committed += tracker.committed
    on_progress(Progress("done", tracker.embedded, tracker.total, tracker.tokens, tracker.lost.num_rows))
    return tracker.report()


@contextmanager
def _recorded(config: Config, run_id: str, *, should_yield: bool) -> Iterator[None]:
    """Record why a run ends before it has the table to itself, where there is a table of runs: the next morning nobody has its terminal."""
    started_at, started = dt.datetime.now(dt.UTC), time.perf_counter()
    try:
        yield
    except BaseException as error:
        stop = interruption.raised() or error
        # A backfill meets a busy table often, and waits. Beside a table of another program nothing is written.
        if not (should_yield and isinstance(stop, TableBusy)) and not isinstance(stop, ForeignTable):
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


def _moved_on(at: ResolvedConfig, scan_plan: ScanPlan) -> bool:
    """Whether another run committed between the survey and the lease."""
    return bool(at.store.opened().version != (scan_plan.table_version or 1))  # 1: just created


def _work_and_record(
    tracker: RunTracker, on_progress: OnProgress, make_pool: PoolFactory, throttle: BackfillThrottle | None
) -> None:
    """Do the plan; however it ends, commit what is finished and say in the table of runs how it ended."""
    recorded = False
    with ExitStack() as workers:  # they end after the commit, which needs none: Ray may be dying, and end this process
        try:
            tracker.adapt_table()
            whole = _work(tracker, workers, on_progress, make_pool, throttle)
            with interruption.deferred():
                tracker.commit(last=whole)
                tracker.record("done" if whole else "gave way", tracker.yielded_reason)
                recorded = True
        except BaseException as error:  # noqa: BLE001 it is raised again
            # No failure: a stop signal, or Prefect's way to cancel a run or to end it at its time limit. A library may have made an error of it.
            stop = interruption.raised() or (None if isinstance(error, Exception) else error)
            if not recorded:
                _keep(tracker, error, stop)
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted(tracker.stopped()) from None
            raise (stop or error) from error.__cause__


def _keep(tracker: RunTracker, error: BaseException, stop: BaseException | None) -> None:
    """Commit what is finished of a run that fails or is stopped, and record how it ended."""
    with interruption.deferred():
        if stop is not None or not isinstance(error, StoreError):  # such a table has been asked again and again just now
            tracker.commit_if_possible()
        tracker.record_if_possible(*_ended(tracker.at.config, stop or error))


def _ended(config: Config, error: BaseException) -> tuple[str, str]:
    """Status and reason of a run that this ended."""
    if isinstance(error, Exception):
        return "failed", reason_of(error, config.table.storage_options)
    number = interruption.received()
    if number is signal.SIGALRM:
        return "interrupted", "stopped by the time limit of its flow"
    return "interrupted", f"stopped by {number.name if number is not None else type(error).__name__}"


def _work(
    tracker: RunTracker, workers: ExitStack, on_progress: OnProgress, make_pool: PoolFactory, throttle: BackfillThrottle | None
) -> bool:
    """Shards to workers, receipts to the ledger, a commit every COMMIT_S. False where it gave way before all was done."""
    at, scan_plan, reason = tracker.at, tracker.scan_plan, None
    if not scan_plan.plan.shards:
        return True
    on_progress(Progress("start", 0, tracker.total))
    if throttle is not None:
        throttle.begin()
    job = WorkerContext(
        at.config, at.spec, scan_plan.metadata, at.store, tracker.lease.run_id, store.canary_of(at.store, at.spec), tracker.base
    )
    engine = workers.enter_context(make_pool(at.pool_spec, partial(Worker, job), len(scan_plan.plan.shards)))
    tracker.workers = engine.workers
    metrics.WORKERS.labels(at.store.name).set(engine.workers)
    indexing = store.WordIndexing(at.store, tracker.lease, full_text_settings(at.config))
    committed = time.monotonic()
    for outcome in engine.work(scan_plan.plan.shards):
        if outcome is not None:
            tracker.take(outcome)
            on_progress(tracker.progress())
        if time.monotonic() - committed > COMMIT_S:
            engine.mark_committed(tracker.commit())
            indexing.advance()
            committed = time.monotonic()
        if throttle is not None and reason is None:
            engine.hold = throttle.over_rate_limit(tracker.tokens)
            if (reason := throttle.should_yield(tracker.lease)) is not None:
                tracker.yielded_reason = reason
                log.info("the backfill gives way: %s", reason)
                engine.stop()
    indexing.finish()
    return not tracker.undone
