"""A process that does one command on a table and is struck down, or held, at a named point of its way.

The points are put in at run time, in this process or in its Ray workers only: the product holds no hooks. Each is the nth pass through a function, seen
from before it, after it, or within it: there a thread watches the files that the call makes, or waits so many milliseconds. Linux only: looks into /proc.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# What takes seconds to import and starts no thread, so that a process forked after it costs a quarter of a second. Never Lance: it must not be forked.
PRELOADED = [
    "sentence_transformers",
    "pytest",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pydantic_settings",
    "semantic_text_splitter",
    "lance_namespace",
]


@dataclass(frozen=True)
class Point:
    """A place on the way of a document: a pass through a function."""

    room: str  # module, or module:class
    name: str
    when: Literal["before", "after", "within"]
    watch: str = ""  # within: folders, as a glob below the tables', whose listing changes; "": nothing but time


POINTS = {
    "listed": Point("latent.sources", "list_files", "after"),
    "mid-read": Point("latent.sources.documents", "_document", "before"),
    "tables made": Point("lance", "write_dataset", "after"),
    "mid-making": Point("lance", "write_dataset", "within", "*.lance/*"),
    "mid-lease": Point("latent.store.lease:Lease", "_take", "within", "*.runs.lance/_*"),
    "leased": Point("latent.store.lease:Lease", "_take", "after"),
    "fenced": Point("latent.store.version_history", "fence", "after"),
    "run noted": Point("latent.store", "write_runs", "after"),
    "encoded": Point("latent.encoders:Encoder", "attempt", "after"),
    "mid-fragment": Point("latent.ingest.worker", "write_fragments", "within", "*.lance/data"),
    "fragment written": Point("latent.ingest.worker", "write_fragments", "after"),
    "mid-receipt": Point("latent.ingest.tracker:RunTracker", "take", "within"),
    "receipt told": Point("latent.ingest.tracker:log", "info", "after"),
    "before commit": Point("latent.store", "commit", "before"),
    "mid-sides": Point("latent.store.commits", "write_side", "within", "*.lance/_*"),
    "sides written": Point("latent.store.commits", "write_side", "after"),
    "commit checked": Point("latent.store.commits", "make_version", "before"),
    "mid-commit: transaction": Point("latent.store.commits", "make_version", "within", "*.lance/_transactions"),
    "mid-commit: version": Point("latent.store.commits", "make_version", "within", "*.lance/_versions"),
    "mid-commit: any instant": Point("latent.store.commits", "make_version", "within"),
    "committed": Point("latent.store.commits", "make_version", "after"),
    "all committed": Point("latent.store", "write_runs", "before"),
    "lease to give back": Point("latent.store.lease:Lease", "__exit__", "before"),
    "orphans listed": Point("latent.store", "orphaned_files", "after"),
    "before compaction": Point("latent.store", "update_indexes", "before"),
    "mid-index": Point("latent.store", "update_indexes", "within", "*.lance/_indices"),
    "mid-compaction": Point("latent.store", "update_indexes", "within", "*.lance/data"),
    "compacted": Point("latent.store", "update_indexes", "after"),
    "mid-clean-up": Point("latent.store", "vacuum", "within", "*.lance/*"),
    "versions dropped": Point("lance:LanceDataset", "cleanup_old_versions", "after"),
    "orphan removed": Point("lance.file:LanceFileSession", "delete_file", "after"),
    "before restore": Point("latent.store", "restore", "before"),
    "fence or restore: sides": Point("latent.store.version_history", "write_side", "after"),
    "fence or restore: checked": Point("latent.store.version_history", "make_version", "before"),
    "fence or restore: version": Point("latent.store.version_history", "make_version", "within", "*.lance/_versions"),
    "fence or restore: any instant": Point("latent.store.version_history", "make_version", "within"),
    "restored": Point("latent.store", "restore", "after"),
    "both compared": Point("latent.migration", "evaluate", "after"),
    "before switch": Point("latent.store", "replace_table", "before"),
    "mid-switch: rows": Point("latent.store", "replace_table", "within", "*.lance/data"),
    "mid-switch: version": Point("latent.store", "replace_table", "within", "*.lance/_versions"),
    "switched": Point("latent.store", "replace_table", "after"),
    "mid-drop": Point("latent.store", "drop_all", "within", "*.lance/data"),
}


@dataclass(frozen=True)
class Errand:
    """What a process is to do, under which conditions, and where it ends."""

    config: Path
    command: Literal["run", "maintain", "rollback", "migrate"] = "run"
    log: Path = Path(os.devnull)
    version: int = 0  # to roll back to
    model: str = ""  # to migrate to
    retry: bool = False  # take quarantined documents again
    point: str = ""  # none: it ends by itself
    nth: int = 1
    delay_s: float = 0.0  # into a call, or past the change of files
    act: Literal["kill", "stop", "interrupt"] = "kill"
    victim: Literal["driver", "worker", "node"] = "driver"
    engine: Literal["here", "ray"] = "here"
    workers: int = 1
    poison: str = ""  # a document that kills every worker that takes it
    commit_s: float = -1.0  # a commit a shard
    shard_documents: int = 3
    pace_s: float = 0.0  # a pause after each shard is encoded
    lease_s: float = 120.0
    keep_s: float = 14 * 86400.0
    machine: str = ""  # the name of another machine
    clock_s: float = 0.0  # how far the clock is off

    @property
    def mark(self) -> Path:
        """There once it has struck: it strikes once, in whichever process. Holds the passes through all points where there is none."""
        return self.log.with_suffix(".mark")


@functools.cache
def _forks() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Child:
    """A process of its own that does an errand.

    It ends with 0, with 1 and one line in the log, with 130 where it was interrupted, or with minus the signal that struck it.
    """

    # multiprocessing polls all children whenever one starts: threads would take exit codes from each other.
    _polling = threading.Lock()

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        errand.log.touch()
        with self._polling:
            self._process = _forks().Process(target=do, args=(errand,), daemon=True)
            self._process.start()

    @property
    def code(self) -> int | None:
        """None while it lives."""
        with self._polling:
            return self._process.exitcode

    def wait(self) -> int:
        while (code := self.code) is None:
            time.sleep(0.005)
        return code

    def stands(self) -> bool:
        """Wait until it stands still at its point; False where it ended without coming there."""
        while self.code is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return True
            time.sleep(0.005)
        return False

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still lives."""
        with self._polling, contextlib.suppress(ProcessLookupError):
            if self._process.exitcode is None:
                os.kill(self._process.pid or 0, number)


def do(errand: Errand) -> None:
    """The process's whole life."""
    with errand.log.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for stop in (signal.SIGINT, signal.SIGTERM):  # as the command line does
        signal.signal(stop, signal.default_int_handler)
    os.environ["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:3])  # for Ray's workers
    os.environ["LATENT_RAY__WORKERS"] = str(errand.workers)
    from latent.errors import Interrupted, PipelineError

    _condition(errand)
    in_worker = errand.engine == "ray" and errand.victim == "worker"
    passes = Counter[str]() if in_worker else install(errand)
    try:
        _command(errand)
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BaseException:
        traceback.print_exc()
        raise SystemExit(3) from None
    finally:
        sys.stderr.flush()
    if not errand.point and not errand.poison:
        errand.mark.write_text(json.dumps(passes))


def _condition(errand: Errand) -> None:
    """Small shards, many commits, a short lease, a wrong clock: so that a small table in a short time sees what a large one does in a month."""
    from latent.ingest import plan, run
    from latent.store import lease
    from latent.store import version_history as history

    logging.basicConfig(level=logging.ERROR)
    plan.SHARD_DOCUMENTS, run.COMMIT_S = errand.shard_documents, errand.commit_s
    lease.LEASE_S, lease.RENEW_S, lease.WATCH_S = errand.lease_s, errand.lease_s / 4, errand.lease_s * 3 / 8
    history.KEEP = dt.timedelta(seconds=errand.keep_s)
    if errand.machine:
        lease._machine = lambda: errand.machine
    if errand.clock_s:
        true_time = time.time
        time.time = lambda: true_time() + errand.clock_s


def _command(errand: Errand) -> None:
    from conftest import HereAndNow

    from latent import migration as migrate
    from latent.config import load
    from latent.ingest import maintenance, rollback, run
    from latent.workers import WorkerPool

    def with_ray(pool_spec: Any, worker_factory: Any, shards: int) -> WorkerPool:
        return WorkerPool(pool_spec, functools.partial(sabotaged, errand, worker_factory), shards)

    config = load(errand.config)
    if errand.command == "maintain":
        maintenance.maintain(config)
    elif errand.command == "rollback":
        rollback.rollback(config, str(errand.version))
    elif errand.command == "migrate":
        migrate.migrate(config, {"name": errand.model}, switch=True, engine=HereAndNow)
    else:
        run.embed(config, retry_quarantined=errand.retry, engine=with_ray if errand.engine == "ray" else HereAndNow)


def sabotaged(errand: Errand, worker_factory: Callable[[Any], Any], claims: Any) -> Any:
    """A worker in a process of Ray's that may be its last."""
    if errand.victim == "worker":
        install(errand)
    worker = worker_factory(claims)
    embed = worker.embed

    def embed_or_die(shard: Any) -> Any:
        if errand.poison and errand.poison in shard.documents()["doc_id"].to_pylist():
            with errand.mark.open("a") as deaths:
                deaths.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return embed(shard)

    worker.embed = embed_or_die
    return worker


# --- the points -----------------------------------------------------------------------------------------------------


def install(errand: Errand) -> Counter[str]:
    """Put the errand's point in, or all of them to be counted where it has none. Returns the passes, as they are counted."""
    passes = Counter[str]()
    for name, point in POINTS.items():
        if not errand.point or errand.point == name:
            _wrap(name, point, errand, passes)
    if errand.pace_s:
        _wrap("pace", POINTS["encoded"], errand, passes)
    return passes


def _wrap(name: str, point: Point, errand: Errand, passes: Counter[str]) -> None:
    module, _, owner = point.room.partition(":")
    home = importlib.import_module(module)
    home = getattr(home, owner) if owner else home
    inner = getattr(home, point.name)
    counting = threading.Lock()  # files are read in several threads

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        with counting:
            passes[name] += 1
            due = errand.point == name and passes[name] == errand.nth
        if due and point.when == "before":
            _strike(errand)
        with _watcher(errand, point.watch) if due and point.when == "within" else contextlib.nullcontext():
            result = inner(*args, **kwargs)
        if due and point.when == "after":
            _strike(errand)
        if name == "pace":
            time.sleep(errand.pace_s)
        return result

    setattr(home, point.name, outer)


@contextlib.contextmanager
def _watcher(errand: Errand, watch: str) -> Any:
    """Strikes while the call is under way: as soon as the files there are other ones, and then the delay. At its end at the latest."""
    tables, over = errand.config.parent / "data/lancedb", threading.Event()
    before = _listing(tables, watch)

    def look() -> None:
        while watch and not over.is_set() and _listing(tables, watch) == before:
            pass
        if not over.wait(errand.delay_s):
            _strike(errand)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        _strike(errand)


def _listing(tables: Path, watch: str) -> set[str]:
    found = set[str]()
    for folder in tables.glob(watch) if watch else ():
        with contextlib.suppress(OSError):
            found.update(entry.path for entry in os.scandir(folder))
    return found


def _strike(errand: Errand) -> None:
    """Once, whichever processes come here."""
    try:
        os.close(os.open(errand.mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    blow = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}[errand.act]
    os.kill(_raylet() if errand.victim == "node" else os.getpid(), blow)


def _raylet() -> int:
    """The process of this run's own Ray node: a child of this one."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name.startswith("raylet") and int(rest.split()[1]) == os.getpid():
                return int(status.parent.name)
    raise LookupError("no raylet among the children of this process")
