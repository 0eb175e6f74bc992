"""The engine: windows of shards in the hands of actors that live long, and what becomes of those whose worker dies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from latent import interruption
from latent.errors import EngineError, Failure, PipelineError, one_line, shortened
from latent.types import Receipt, Shard
from latent.workers.dedup import CLAIMS, ChunkRegistry, ChunkRegistryActor, ChunkRegistryClient
from latent.workers.ray_output import send_to_log

log = logging.getLogger("latent")
WINDOW = 2  # shards a worker has in hand: one encodes while the next is read
CLUSTER_WORKERS = 64  # planned for, where the cluster is to say how many it has
DEATHS_IN_A_ROW = (
    34  # the largest shard needs 17 halvings to find one document that kills; twice that means it is not the documents
)
FAILED_STARTS = 20  # processes that a worker may lose before one of them is ready
START_S = 600.0  # so long may there be no worker ready; importing takes up to 24 s on a busy machine, a cluster may have to grow
CONNECT_S = 10.0
GROW_S = 5.0  # between two looks at whether the cluster has room for more workers
HEAD_S = 20.0  # so long may the head be silent. Ray ends this process without a word of ours after 60 s, or 40 s where another has taken its place
ANSWER_S = 2.0  # for the head to answer
LAST_SHARDS_S = 20.0  # a run that is to end waits this long for what is in hand; what takes longer is given up
REINSTALL_S = 0.002  # between two looks whether Ray has replaced a handler
ANSI_COLOURS = re.compile(r"\x1b\[\d*m")
OBJECT_STORE_BYTES = (
    100 << 20
)  # descriptors, receipts and vectors in passing; rows never go through it. Ray takes no less than 75 MB


class ShardWorker(Protocol):
    def embed(self, shard: Shard) -> Receipt:
        """Do a shard. Raises EngineError where its process can do no more: another takes its place."""


WorkerFactory = Callable[[ChunkRegistry], ShardWorker]


@dataclass(frozen=True)
class WorkerPoolSpec:
    """How many workers, and what each gets."""

    address: str = "local"
    min_workers: int = 1
    max_workers: int | None = None  # None: as many as the machine or cluster holds
    cpus: int = 1
    gpus: float = 0

    @property
    def expected(self) -> int:
        """Workers, as far as that can be told before Ray is asked: for how many to plan."""
        here = (os.cpu_count() or 1) // self.cpus if self.address == "local" else CLUSTER_WORKERS
        return max(self.min_workers, self.max_workers or here)

    @property
    def environment(self) -> dict[str, str]:
        """Of a worker's process: as many threads as it has cores."""
        return {"OMP_NUM_THREADS": str(self.cpus), "RAYON_NUM_THREADS": str(self.cpus), "TOKENIZERS_PARALLELISM": "false"}

    def count(self, cpus: float, gpus: float, shards: int) -> int:
        """Workers for so many shards where Ray has these cores and GPUs."""
        room = gpus / self.gpus if self.gpus else cpus / self.cpus
        return max(self.min_workers, min(self.max_workers or max(int(room), 1), shards))


@dataclass(frozen=True)
class CompletedShard:
    """A shard, and what its worker says."""

    shard: Shard
    receipt: Receipt


@dataclass(frozen=True)
class FailedDocument:
    """A document that no worker survives, or that makes the worker's code fail."""

    shard: Shard
    reason: str
    traceback: str | None


@dataclass
class _WorkerSlot:
    """A worker and what it has in hand."""

    actor: Any
    ready: bool = False
    isolated: bool = False
    in_hand: set[Any] = field(default_factory=set)

    def takes(self, *, suspect: bool) -> bool:
        return self.ready and not self.isolated and len(self.in_hand) < (1 if suspect else WINDOW)


@dataclass
class _ShardQueue:
    """The shards that are not done."""

    queue: deque[Shard]
    suspect_shards: deque[Shard] = field(default_factory=deque)  # a worker died with them in hand
    in_flight: dict[Any, tuple[_WorkerSlot, Shard]] = field(default_factory=dict)
    consecutive_deaths: int = 0  # of workers, in a row
    consecutive_errors: int = 0  # with the store, in a row

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self.suspect_shards)

    def __bool__(self) -> bool:
        return bool(self.waiting or self.in_flight)


class WorkerPool:
    """Workers for the length of a `with` block."""

    def __init__(
        self, pool_spec: WorkerPoolSpec, worker_factory: WorkerFactory, shards: int, deaths_in_a_row: int = DEATHS_IN_A_ROW
    ) -> None:
        """`shards`: how many there will be, since no more workers are started than that."""
        self._crew, self._make, self._shards, self._patience = pool_spec, worker_factory, shards, deaths_in_a_row
        self._slots: list[_WorkerSlot] = []
        self._starting: dict[Any, _WorkerSlot] = {}
        self._claims: Any = None
        self._grown = self._heard = self._ends = math.inf  # by the monotonic clock
        self.hold = False  # no shard is handed out for now

    @property
    def workers(self) -> int:
        return len(self._slots)

    def stop(self) -> None:
        """Hand out no more. What is in hand may still finish, for LAST_SHARDS_S."""
        self._ends = min(self._ends, time.monotonic() + LAST_SHARDS_S)

    def __enter__(self) -> Self:
        """Raises EngineError where Ray does not start or the cluster does not answer."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # the print it would put in place is one that numba cannot compile
        if self._crew.address == "local":
            # Ray listens on all interfaces, unless it takes this machine for one of those it makes no clusters of: then on loopback.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            _read_environment_again()
        with contextlib.ExitStack() as undone:
            undone.callback(self._shut_down)
            try:
                with warnings.catch_warnings(), _own_signal_handlers():
                    # Lance warns of forks. Ray's are followed by exec at once, and nothing of Lance runs in between.
                    warnings.filterwarnings("ignore", message=".*fork.*")
                    self._connect()
            except Exception as error:  # when its daemons come up too slowly, Ray raises just that
                interruption.raise_if_received()
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise EngineError(f"Ray at {self._crew.address!r} does not start: {reason}: check [ray] address") from error
            self._start_workers()
            undone.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._shut_down()

    def _shut_down(self) -> None:
        """End the workers and what Ray started here. A stop signal meanwhile would leave processes behind."""
        import ray

        with interruption.deferred():
            if ray.is_initialized():
                for actor in (*(slot.actor for slot in self._slots), *([self._claims] if self._claims is not None else [])):
                    ray.kill(actor)
            _shut_down_ray()

    def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument | None]:
        """Receipts as they come, in no order; None after a second without any. Unless stopped, every document ends in a receipt or as a casualty.

        Shards of nodes that leave are done by others; nodes that join a cluster get workers. A PipelineError from a worker speaks of the model, the
        table or the source, not of a document: it ends the work, unless it may pass and not all that is in hand meets one.
        """
        try:
            yield from self._work(_ShardQueue(deque(shards)))
        except SystemError as error:  # what a signal raises while Ray waits comes out of it as the cause of such
            if error.__cause__ is None or isinstance(error.__cause__, Exception):
                raise
            raise error.__cause__ from None

    def _work(self, todo: _ShardQueue) -> Iterator[CompletedShard | FailedDocument | None]:
        last_ready = time.monotonic()
        while todo:
            interruption.raise_if_received()
            if self._ends < math.inf and (not todo.in_flight or time.monotonic() > self._ends):
                return
            self._scale_up(todo.waiting)
            self._dispatch(todo)
            done = _done([*todo.in_flight, *self._starting])
            if not done:
                yield None
            for ref in done:
                if ref in self._starting:
                    self._mark_ready(ref)
                else:
                    yield from self._handle_result(ref, todo, done)
            last_ready = self._ready(last_ready)

    def _handle_result(self, ref: Any, todo: _ShardQueue, done: Sequence[Any]) -> Iterator[CompletedShard | FailedDocument]:
        """What became of a shard in hand, and what is to become of it. `done`: all that is to be heard now."""
        slot, shard = todo.in_flight.pop(ref)
        isolated, slot.isolated = slot.isolated, False
        slot.in_hand.discard(ref)
        outcome = _outcome(ref)
        if isinstance(outcome, Receipt):
            todo.consecutive_deaths = todo.consecutive_errors = 0
            yield CompletedShard(shard, outcome)
        elif isinstance(outcome, PipelineError):
            todo.consecutive_errors += 1
            if not outcome.transient or todo.consecutive_errors > WINDOW * len(self._slots):
                raise outcome
            log.warning("shard %s is tried again: %s", shard.name[:8], outcome)
            self._claims.release.remote(shard.name)
            (todo.suspect_shards if isolated else todo.queue).append(shard)
        else:
            died = outcome.traceback is None
            todo.consecutive_deaths += died
            self._handle_failure(slot, shard, outcome, todo.consecutive_deaths)
            if died:
                todo.suspect_shards.extend(self._requeue_window(slot, todo.in_flight, done))
            if died and not isolated:
                todo.suspect_shards.append(shard)
            elif len(shard) > 1:
                todo.suspect_shards.extend(shard.split())
            else:
                yield FailedDocument(shard, outcome.reason, outcome.traceback)

    def mark_committed(self, shards: Sequence[str]) -> None:
        """These shards are committed: their vectors are in the table, nobody needs to wait for them."""
        for shard in shards:
            self._claims.mark_committed.remote(shard)

    def _connect(self) -> None:
        """Start Ray on this machine, or join the cluster."""
        import ray

        send_to_log()
        pool_spec = self._crew
        if pool_spec.address != "local":
            host, _, port = pool_spec.address.rpartition(":")
            if host and port.isascii() and port.isdigit():  # Ray itself tries for five minutes before it says that nobody is there
                socket.create_connection((host, int(port)), CONNECT_S).close()
            with tempfile.TemporaryDirectory() as folder:  # in a checkout the package's folder has another name
                modules = {"py_modules": [_copy_of_package(folder)]}  # the nodes run the driver's code, whatever is installed there
                ray.init(address=pool_spec.address, runtime_env=modules, log_to_driver=False, logging_level=logging.ERROR)
            return
        # A signal meanwhile would leave processes of Ray behind that nobody knows of yet.
        with (
            interruption.deferred(),
            _environment(pool_spec.environment),
        ):  # the processes that Ray makes ahead have it too, so workers need not wait for others
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, pool_spec.cpus * pool_spec.min_workers),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )

    def _start_workers(self) -> None:
        """The first workers, as many as there is room for."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node, since all work hangs on it: Ray puts an actor without cores on any. An empty book does no harm, equal chunks
        # may be encoded twice.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        book = ray.remote(ChunkRegistryActor).options(
            name=CLAIMS, num_cpus=0, max_concurrency=1000, max_restarts=-1, scheduling_strategy=here
        )
        self._claims = book.remote()
        self._grown = self._heard = time.monotonic()
        self._add_workers(self._capacity(ray.cluster_resources(), self._shards))

    def _capacity(self, resources: Mapping[str, float], shards: int) -> int:
        """Workers for so many shards on the nodes that there are now."""
        return self._crew.count(resources.get("CPU", 1), resources.get("GPU", 0), shards)

    def _resources(self) -> Mapping[str, float] | None:
        """What the cluster's nodes have now. None where its head does not answer; raises EngineError where it has not for HEAD_S.

        `ray.cluster_resources()` would not return before the head is back, and would end this process where it is another.
        """
        import ray
        from ray._private.worker import global_worker

        try:
            nodes = global_worker.gcs_client.get_all_node_info(timeout=ANSWER_S).values()
        except ray.exceptions.RayError as error:
            if time.monotonic() - self._heard <= HEAD_S:
                return None
            raise EngineError(
                f"the head of the Ray cluster at {self._crew.address!r} has not answered for {HEAD_S:.0f} s ({type(error).__name__}): "
                "once it is back, 'latent run' goes on from what is committed"
            ) from None
        self._heard = time.monotonic()
        total = Counter[str]()
        for node in nodes:
            if node.state == node.ALIVE:
                total.update(node.resources_total)
        return total

    def _scale_up(self, waiting: int) -> None:
        """More workers where nodes have joined the cluster and shards wait for them. The actors of nodes that left come back by themselves."""
        if self._crew.address == "local" or time.monotonic() - self._grown < GROW_S:
            return
        self._grown = time.monotonic()
        resources = self._resources()
        more = min(self._capacity(resources, len(self._slots) + waiting) - len(self._slots), waiting) if resources else 0
        if more > 0:
            log.info("%d more workers: the cluster has grown", more)
            self._add_workers(more)

    def _add_workers(self, count: int) -> None:
        """So many workers more. They count once their process answers."""
        import ray

        pool_spec = self._crew
        elsewhere = {} if pool_spec.address == "local" else {"runtime_env": {"env_vars": pool_spec.environment}}
        actor = ray.remote(_Actor).options(
            num_cpus=pool_spec.cpus,
            num_gpus=pool_spec.gpus,
            max_restarts=-1,
            max_task_retries=FAILED_STARTS,  # of `start`, which so waits for a new process, and for room for it; never of `embed`
            max_concurrency=WINDOW,
            **elsewhere,
        )
        seats = [_WorkerSlot(actor.remote(self._make)) for _ in range(count)]
        self._slots += seats
        self._starting |= {slot.actor.start.remote(): slot for slot in seats}

    def _ready(self, last: float) -> float:
        """When a worker was last ready. Raises EngineError where that is too long ago."""
        import ray

        if any(slot.ready for slot in self._slots):
            return time.monotonic()
        if time.monotonic() - last > START_S:
            raise EngineError(
                f"no worker was ready for {START_S:.0f} s: asked for {self._crew}, Ray has {ray.available_resources()}"
            )
        return last

    def _handle_failure(self, slot: _WorkerSlot, shard: Shard, failure: Failure, consecutive_deaths: int) -> None:
        """Let go of what a failed shard had claimed, and replace a dead worker. Raises EngineError where too many die in a row."""
        self._claims.release.remote(shard.name)
        if failure.traceback is not None:
            return
        log.warning("shard %s: %s", shard.name[:8], failure.reason)
        if consecutive_deaths > self._patience + WINDOW * len(self._slots):  # a lost node fails the windows of all its workers
            raise EngineError(
                f"workers died {consecutive_deaths} times in a row ({failure.reason}): look at memory and at Ray's logs, then run again"
            )
        self._restart(slot)

    def _requeue_window(
        self, slot: _WorkerSlot, in_flight: dict[Any, tuple[_WorkerSlot, Shard]], heard: Sequence[Any]
    ) -> Iterator[Shard]:
        """The other shards of a dead worker's window. A call sent after its death would wait for the new process, and that for a node with room."""
        for ref in slot.in_hand.difference(heard):
            slot.in_hand.remove(ref)
            _, shard = in_flight.pop(ref)
            log.warning("shard %s: in the hands of the same worker", shard.name[:8])
            self._claims.release.remote(shard.name)
            yield shard

    def _restart(self, slot: _WorkerSlot) -> None:
        """Give the worker nothing until its new process answers: a call sent meanwhile fails too, and its documents would be blamed."""
        if slot.ready:
            slot.ready = False
            self._starting[slot.actor.start.remote()] = slot

    def _mark_ready(self, ref: Any) -> None:
        """A worker is ready, or says why it cannot be."""
        import ray

        slot = self._starting.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise _unwrap_error(error) from None
        except ray.exceptions.RayError as error:
            raise EngineError(f"a worker does not start: {str(error).splitlines()[0]}: look at memory and at Ray's logs") from None
        slot.ready = True

    def _dispatch(self, todo: _ShardQueue) -> None:
        """Fill the windows: suspects first, each to a worker that has nothing else in hand."""
        if self.hold or self._ends < math.inf:
            return
        for waiting, suspect in ((todo.suspect_shards, True), (todo.queue, False)):
            for slot in sorted(self._slots, key=lambda s: len(s.in_hand)):
                while waiting and slot.takes(suspect=suspect) and not (suspect and slot.in_hand):
                    shard = waiting.popleft()
                    ref = slot.actor.embed.options(max_task_retries=0).remote(shard)
                    slot.in_hand.add(ref)
                    slot.isolated = suspect
                    todo.in_flight[ref] = (slot, shard)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep Ray from its own handler of SIGTERM, which makes SystemExit(1) of the signal. SIGHUP of a terminal does not reach its processes."""
    from ray._private import utils

    handler_of_ray, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    blocked = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGHUP}
    )  # they inherit it; another thread here still takes the signal
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        utils.set_sigterm_handler = handler_of_ray


def _shut_down_ray() -> None:
    """`ray.shutdown`, which gives signals back their default before it ends Ray's processes, and takes seconds: a second SIGTERM would end this process.

    So it goes on beside the main thread, which alone can put handlers in place.
    """
    import ray

    if threading.current_thread() is not threading.main_thread() or not ray.is_initialized():
        ray.shutdown()
        return
    shutdown = threading.Thread(target=ray.shutdown, name="ray.shutdown")
    shutdown.start()
    while shutdown.is_alive():
        interruption.reinstall()
        shutdown.join(REINSTALL_S)


def _copy_of_package(folder: str) -> str:
    """Copy this package to the folder, under the name that it is imported by."""
    copy = Path(folder, "latent")
    shutil.copytree(Path(__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    return str(copy)


def _read_environment_again() -> None:
    """Ray has read it when it was imported, which may be long ago. So does Ray itself where it turns authentication on."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """For processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _done(refs: list[Any]) -> list[Any]:
    """Those that are ready, all of them: a call costs by how many are waited for. None after a second without any."""
    import ray

    if not refs:
        time.sleep(1.0)
        return []
    first, rest = ray.wait(refs, timeout=1.0)
    more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
    return [*first, *more]


def _outcome(ref: Any) -> Receipt | Failure | PipelineError:
    """What a worker says; a Failure without a traceback where it died."""
    import ray

    try:
        receipt: Receipt = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ray.exceptions.RayError):  # of a call to the claims: no document is to blame
            return Failure(f"encoding failed: the worker lost touch with the run ({type(error.cause).__name__})")
        ours = _unwrap_error(error)
        if not isinstance(ours, EngineError):
            return ours
        reason = one_line(f"encoding failed: {type(error.cause).__name__}: {error.cause}")
        return Failure(reason, shortened(ANSI_COLOURS.sub("", str(error))))
    except ray.exceptions.RayError as error:
        return Failure(f"encoding failed: the worker died ({type(error).__name__}), most often for want of memory: see Ray's logs")
    return receipt


def _unwrap_error(error: Any) -> PipelineError:
    """The PipelineError a worker raised, out of Ray's wrapping; EngineError for any other."""
    cause = error.cause
    if isinstance(cause, PipelineError):
        return type(cause)(str(cause.args[0]))
    return EngineError(f"a worker failed: {type(cause).__name__}: {cause}")


# --- in the workers' processes --------------------------------------------------------------------------------------


class _Actor:
    """A worker's process. Builds the worker on first use, so that a restarted process needs no call of its own."""

    def __init__(self, make: WorkerFactory) -> None:
        self._make = make
        self._worker: ShardWorker | None = None
        self._building = threading.Lock()

    def start(self) -> None:
        with self._building:
            if self._worker is None:
                self._worker = self._make(ChunkRegistryClient())

    def embed(self, shard: Shard) -> Receipt:
        import ray

        self.start()
        assert self._worker is not None
        try:
            receipt = self._worker.embed(shard)
            return replace(receipt, node=ray.util.get_node_ip_address(), pid=os.getpid(), memory=_memory())
        except EngineError:
            log.exception("shard %s: this process can do no more", shard.name[:8])
            os._exit(1)


def _memory() -> int:
    """Bytes that this process held at most; the kernel counts in KiB, macOS in bytes."""
    max_workers = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max_workers if sys.platform == "darwin" else max_workers << 10
