"""The use-cases: plan, embed, maintain. Here the rooms meet.

`embed` is the whole job: survey the source, plan, give shards to workers, commit their receipts in groups, record file states. Run it again after
any crash: what was committed is found unchanged, the rest is done. With nothing to do it starts no Ray, loads no model, writes nothing.
"""

from __future__ import annotations

import datetime as dt
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline import store
from pipeline.config import Config
from pipeline.engine import Crew, Engine, MakeWorker
from pipeline.errors import Interrupted
from pipeline.estimate import estimate
from pipeline.ledger import Ledger
from pipeline.schema import FILES, Progress, Report
from pipeline.store import Lease, Tuning
from pipeline.survey import OnProgress, Outlook, Scene, report_of, same_rows, scene, survey
from pipeline.worker import Job, Worker

MakeEngine = Callable[[Crew, MakeWorker, int], Engine]
COMMIT_S = 20.0  # receipts are grouped this long: a version costs little, but thousands of fragments a version do


def quiet(_: Progress) -> None:
    """Draws no progress."""


def new_run_id() -> str:
    """Sortable by time, unique across machines."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def plan(config: Config, on_progress: OnProgress = quiet) -> Report:
    """What `embed` would do, counted; tokens and time estimated on a sample. Writes nothing."""
    at = scene(config)
    outlook = survey(at, "plan", on_progress)
    report = report_of(None, outlook, outlook.plan.documents)
    return estimate(report, outlook, at) if outlook.plan.shards else report


def embed(
    config: Config,
    on_progress: OnProgress = quiet,
    *,
    retry_quarantined: bool = False,
    allow_empty: bool = False,
    engine: MakeEngine = Engine,
) -> Report:
    """Bring the table up to date with the source, exactly once. `engine` is the seam for workers of another kind.

    Raises PipelineError; Interrupted where a signal stopped it. Either way what had been finished is committed.
    """
    started = time.perf_counter()
    run_id = new_run_id()
    at = scene(config)

    def look() -> Outlook:
        return survey(at, run_id, on_progress, retry_quarantined=retry_quarantined, allow_empty=allow_empty)

    outlook = look()
    if not outlook.plan and not outlook.sides_change and outlook.table_version is not None:
        report = report_of(run_id, outlook, outlook.plan.documents)
        return replace(report, seconds=round(time.perf_counter() - started, 2))
    store.create(at.store, at.spec, outlook.metadata)
    with Lease(at.store, run_id) as lease:
        scene(config)  # another run may have made the table first, with another spec
        if _moved_on(at, outlook):
            outlook = look()
        ledger = Ledger(at, outlook, lease, started)
        ledger.record("running")
        _work_and_record(ledger, on_progress, engine)
    on_progress(Progress("done", ledger.embedded, ledger.total, ledger.tokens, ledger.lost.num_rows))
    return ledger.report()


def _moved_on(at: Scene, outlook: Outlook) -> bool:
    """Whether another run committed between the survey and the lease."""
    version = outlook.table_version or 1  # just created
    return bool(at.store.opened().version != version) or not same_rows(
        store.read_side(at.store, "files"), outlook.survey.recorded, FILES
    )


def _work_and_record(ledger: Ledger, on_progress: OnProgress, make_engine: MakeEngine) -> None:
    """Do the plan; however it ends, commit what is finished and say in the table of runs how it ended."""
    try:
        _work(ledger, on_progress, make_engine)
        ledger.commit(last=True)
    except (KeyboardInterrupt, SystemExit) as stop:  # Prefect cancels with SystemExit
        ledger.commit()
        ledger.record("interrupted")
        if isinstance(stop, SystemExit):
            raise
        raise Interrupted(
            f"stopped: {ledger.embedded} of {ledger.total} documents are committed; 'latent run' goes on from there"
        ) from None
    except Exception:
        ledger.commit_if_possible()
        ledger.record("failed")
        raise
    ledger.record("done")


def _work(ledger: Ledger, on_progress: OnProgress, make_engine: MakeEngine) -> None:
    """Shards to workers, receipts to the ledger, a commit every COMMIT_S."""
    at, outlook = ledger.at, ledger.outlook
    if not outlook.plan.shards:
        return
    on_progress(Progress("start", 0, ledger.total))
    job = Job(at.config, at.spec, outlook.metadata, at.store, ledger.lease.run_id, ledger.base)
    with make_engine(at.crew, partial(Worker, job), len(outlook.plan.shards)) as engine:
        ledger.workers = engine.workers
        committed = time.monotonic()
        for outcome in engine.work(outlook.plan.shards):
            ledger.take(outcome)
            on_progress(Progress("encode", ledger.embedded, ledger.total, ledger.tokens, ledger.lost.num_rows))
            if time.monotonic() - committed > COMMIT_S:
                engine.settle(ledger.commit())
                committed = time.monotonic()


def maintain(config: Config) -> Tuning | None:
    """Indexes, compaction, old versions: see `store.maintain`. Raises TableBusy while a run is writing."""
    at = scene(config)
    at.store.opened()
    with Lease(at.store, new_run_id()):
        return store.maintain(at.store, config.index.recall, full_text=config.index.full_text)
