"""What befalls a run on many machines, and what must be true behind it: the clean run's table, and nothing that still runs."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from conftest import HereAndNow, words
from lan import COMMON
from nodes import DRIVER, HEAD, HEAD_ADDRESS, NODES, STORE_ADDRESS, Cluster, Run, put, wait_until
from picture import Picture, difference, picture

from latent.config import load
from latent.ingest import resolve, run, scan
from latent.ingest.verify import verify

FILES, DOCUMENTS = 9, 450  # some 110 shards of 64 kB
SLOW_S, SLOWER_S, FAST_S = 1.5, 8.0, 0.2  # what the store takes for a fragment; patience with it ends after 20 s
SHORT_CUT_S = 4.0
FIRST, SECOND, THIRD, FOURTH = *NODES, NODES[-1] + 1


@dataclass
class Outcome:
    """What a round came to."""

    case: str
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    retries: int = 0  # shards taken from dead workers
    next_s: float = 0.0  # from the blow until a shard was finished
    pause_s: float = 0.0  # the longest time without a shard finished, from the blow on
    ended_s: float = 0.0  # from the death of the head until the run had ended
    idle_s: float = 0.0  # from the end of the run until no process of it was left anywhere
    error: str = ""
    brought: dict[int, int] = field(default_factory=dict)  # fragments by the machine that brought them

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


class Ground:
    """The documents in the store, and the clean run's table of them."""

    def __init__(self, cluster: Cluster, folder: Path, model: Path) -> None:
        self.cluster, self._folder, self._model = cluster, folder, model
        chance = random.Random(7)
        put("source")
        names = itertools.count()
        for i in range(FILES):
            rows = [{"id": f"d{next(names)}", "text": _text(chance), "n": chance.randint(0, 3)} for _ in range(DOCUMENTS)]
            put(f"source/part-{i}.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))

    @cached_property
    def clean(self) -> Picture:
        """Of a run without Ray, on this machine."""
        config = self._folder / "clean.toml"
        config.write_text(self._settings(str(self._folder / "clean"), {}))
        run.embed(load(config), engine=HereAndNow)
        return picture(resolve.store_of(load(config)))

    def config(self, bucket: str, **ray: object) -> Path:
        """Of a table in a bucket of its own, encoded by the cluster."""
        put(bucket)
        path = COMMON / f"{bucket}.toml"
        path.write_text(self._settings(f"s3://{bucket}/lake", {"address": HEAD_ADDRESS, **ray}))
        return path

    def _settings(self, table: str, ray: dict[str, object]) -> str:
        return (
            f'[source]\nuri = "s3://source/*.jsonl?scheme=http&endpoint_override={STORE_ADDRESS}"\nmetadata = ["n"]\n'
            "[chunk]\ntokens = 256\noverlap = 0\n"
            f'[model]\nname = "{self._model}"\ndevice = "cpu"\n'
            f'[table]\nuri = "{table}"\n'
            f'storage_options = {{aws_endpoint = "http://{STORE_ADDRESS}", allow_http = "true", aws_virtual_hosted_style_request = "false"}}\n'
            "[ray]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in ray.items())
        )


def _text(chance: random.Random) -> str:
    return words(*(chance.randint(20, 499) for _ in range(chance.randint(20, 700))))


class Bout:
    """A run of `latent` under way, its store slow, so that it can be struck."""

    def __init__(self, ground: Ground, bucket: str, outcome: Outcome, nodes: tuple[int, ...] = NODES, **ray: object) -> None:
        self.ground, self.cluster, self.bucket, self.outcome = ground, ground.cluster, bucket, outcome
        self.nodes = set(nodes)
        missing = [number for number in (HEAD, DRIVER, *nodes) if number not in self.cluster.machines]
        self.cluster.kill(*(set(self.cluster.machines) - {2, HEAD, DRIVER, *nodes}))
        self.cluster.start(*missing)
        self.cluster.complete(*nodes)
        self.cluster.pace(SLOW_S)
        self._blow = 0.0
        self.config = ground.config(bucket, **ray) if not (COMMON / f"{bucket}.toml").exists() else COMMON / f"{bucket}.toml"
        self.run = self.cluster.run(self.config)

    def under_way(self) -> None:
        """Wait until every node works: whoever is struck then has shards in hand."""
        self.until("every node works", lambda: self.nodes <= self.cluster.brought(self.bucket).keys())

    def finished(self, shards: int) -> None:
        """Wait for so many more."""
        before = len(self.run.progress())
        self.until(f"{shards} more shards", lambda: len(self.run.progress()) >= before + shards)

    def until(self, what: str, true: Callable[[], object]) -> float:
        """Wait. The store slows down where the run would be over before."""

        def look() -> object:
            if len(self.run.progress()) > FILES * DOCUMENTS // 100:
                self.cluster.pace(SLOWER_S)
            if self.run.code is not None:
                raise RuntimeError(f"the run ended before: {what}: {self.run.said[-3:]}")
            return true()

        return wait_until(what, look)

    def strikes(self) -> None:
        """Now."""
        self._blow = time.monotonic()

    def end(self, code: int = 0) -> Run:
        """Let it end, see that it left nothing running, and note what it was like."""
        self.cluster.pace(FAST_S)
        if (ended := self.run.wait()) != code:
            self.outcome.wrong.append(f"ended with {ended}: {self.run.said[-3:]}")
        over = time.monotonic()
        wait_until("no process of the run is left", lambda: not self.cluster.at_work())
        self.outcome.idle_s = time.monotonic() - over
        self.outcome.retries += self.run.retries()
        self.outcome.brought = self.cluster.brought(self.bucket)
        if self._blow and code == 0:
            after = [self._blow, *(when for when in self.run.progress() if when > self._blow)]
            gaps = [later - earlier for earlier, later in itertools.pairwise(after)]
            self.outcome.next_s, self.outcome.pause_s = gaps[0], max(gaps)
        return self.run


def judge(ground: Ground, config: Path, to: Outcome) -> None:
    """The table against the clean run's, and nothing left to do."""
    settings = load(config)
    found = difference(picture(resolve.store_of(settings)), ground.clean)
    to.lost += found.lost
    to.doubled += found.doubled
    to.wrong += found.wrong
    to.wrong += [f"verify: {check.name}: {check.detail}" for check in verify(settings) if not check.ok]
    scan_plan = scan.scan(resolve.resolve_and_check(settings), "again", run.quiet)
    if scan_plan.plan or scan_plan.sides_change:
        to.wrong.append(f"there is still something to do: {scan_plan.plan.documents}")


# --- what befalls it ------------------------------------------------------------------------------------------------


def no_blow(ground: Ground, bucket: str, to: Outcome) -> None:
    Bout(ground, bucket, to).end()


def node_dies(ground: Ground, bucket: str, to: Outcome) -> None:
    """Its machine is gone from one moment to the next; the run ends on the others."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    ground.cluster.kill(SECOND)
    bout.until("the head has noticed", lambda: SECOND not in ground.cluster.joined())
    bout.finished(6)
    bout.end()


def short_cut(ground: Ground, bucket: str, to: Outcome) -> None:
    """Off the network for less than it takes to be given up."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    ground.cluster.machines[SECOND].cut()
    time.sleep(SHORT_CUT_S)
    ground.cluster.machines[SECOND].heal()
    before = ground.cluster.brought(bucket).get(SECOND, 0)
    bout.until("it works again", lambda: ground.cluster.brought(bucket).get(SECOND, 0) > before + 3)
    bout.end()


def long_cut(ground: Ground, bucket: str, to: Outcome) -> None:
    """Off the network until the head has given it up; back again it is another node, and gets work."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    ground.cluster.machines[SECOND].cut()
    bout.until("the head has given it up", lambda: SECOND not in ground.cluster.joined())
    ground.cluster.machines[SECOND].heal()
    before = ground.cluster.brought(bucket).get(SECOND, 0)
    bout.until("it works again", lambda: ground.cluster.brought(bucket).get(SECOND, 0) > before + 3)
    bout.end()


def no_way_to_the_head(ground: Ground, bucket: str, to: Outcome) -> None:
    """Its workers may go on writing to the store: for them nothing has happened, and nobody hears of it."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    lost = ground.cluster.machines[SECOND]
    for number in (HEAD, DRIVER):
        lost.lose(f"10.77.0.{number}")
    bout.until("the head has given it up", lambda: SECOND not in ground.cluster.joined())
    bout.finished(6)
    for number in (HEAD, DRIVER):
        lost.lose(f"10.77.0.{number}", found=True)
    bout.end()


def node_joins(ground: Ground, bucket: str, to: Outcome) -> None:
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    ground.cluster.start(FOURTH)
    bout.until("it works", lambda: ground.cluster.brought(bucket).get(FOURTH, 0) > 1)
    bout.end()


def all_leave(ground: Ground, bucket: str, to: Outcome) -> None:
    """Preemption: no node is left, and later comes a new one."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    bout.strikes()
    ground.cluster.kill(*NODES)
    bout.until("the head has noticed", lambda: not ground.cluster.joined() & set(NODES))
    ground.cluster.start(FOURTH)
    bout.until("it works", lambda: ground.cluster.brought(bucket).get(FOURTH, 0) > 1)
    bout.end()


def head_restarts(ground: Ground, bucket: str, to: Outcome) -> None:
    """The run ends with one error; the cluster comes together again round a new head, and another run does the rest."""
    bout = Bout(ground, bucket, to)
    bout.under_way()
    _head_dies(bout)
    Bout(ground, bucket, to).end()


def _head_dies(bout: Bout) -> None:
    """And with it the cluster. What its nodes still do ends within IMPATIENT; the driver's node is started again, as compose does."""
    cluster, to = bout.cluster, bout.outcome
    cluster.kill(HEAD)
    died = time.monotonic()
    code = bout.run.wait()
    to.ended_s = time.monotonic() - died
    to.error = str(bout.run.result.get("error"))
    if code != 1 or "\n" in to.error or "head of the Ray cluster" not in to.error:
        to.wrong.append(f"ended with {code}, {to.error!r}: {bout.run.said[-3:]}")
    if strange := [line for _, line in bout.run.said if "Traceback" in line or "rpc_client" in line]:
        to.wrong.append(f"not one line: {strange}")
    cluster.kill(DRIVER)
    cluster.start(HEAD, DRIVER)
    bout.end(code=1)


def kinds(ground: Ground, bucket: str, to: Outcome) -> None:
    """Workers that want a GPU are on the node that has one, and nowhere else."""
    Bout(ground, bucket, to, gpus_per_worker=1).end()
    if set(to.brought) - {DRIVER} != {FIRST}:
        to.wrong.append(f"written by {to.brought}")


def everything(ground: Ground, bucket: str, to: Outcome) -> None:
    """The short version of them all in two runs of one table: one node dies, one is cut off, one joins, the head dies; the second run wants a GPU."""
    bout = Bout(ground, bucket, to)
    cluster = ground.cluster
    bout.under_way()
    bout.strikes()
    cluster.kill(SECOND)
    cluster.start(FOURTH)
    cluster.machines[THIRD].cut()
    time.sleep(SHORT_CUT_S)
    cluster.machines[THIRD].heal()
    bout.until("the new node works", lambda: cluster.brought(bucket).get(FOURTH, 0) > 0)
    bout.finished(1)
    _head_dies(bout)
    wait_until("workers of the run that lost its head are gone", lambda: not cluster.at_work())
    before = cluster.brought(bucket)
    bout.config.write_text(bout.config.read_text() + "gpus_per_worker = 1\n")
    Bout(ground, bucket, to, nodes=(FIRST, THIRD, FOURTH)).end()
    others = {number for number, count in to.brought.items() if count > before.get(number, 0)} - {
        FIRST,
        DRIVER,
    }  # the driver builds indexes
    if others:
        to.wrong.append(f"without a GPU, and wrote: {others}")


CASES: dict[str, Callable[[Ground, str, Outcome], None]] = {
    "no blow": no_blow,
    "a node dies": node_dies,
    "a node is cut off for 4 s": short_cut,
    "a node is cut off until it is given up": long_cut,
    "a node has no way to head and driver": no_way_to_the_head,
    "a node joins": node_joins,
    "all nodes leave, a new one comes": all_leave,
    "the head dies, a new one comes": head_restarts,
    "workers want a GPU, one node has one": kinds,
}


def play(ground: Ground, case: str, number: int) -> Outcome:
    """A round, on a table of its own. The cluster is put in order by the next."""
    outcome, bucket = Outcome(case), f"round-{number}"
    blow = everything if case == "everything" else CASES[case]
    try:
        blow(ground, bucket, outcome)
        judge(ground, COMMON / f"{bucket}.toml", outcome)
    except Exception:
        outcome.wrong.append(traceback.format_exc())
    return outcome


def middle(values: list[float]) -> str:
    """Median, and the most where there are several; nothing where there are none."""
    known = [value for value in values if value]
    most = f" (≤ {max(known):.1f})" if len(known) > 1 else ""
    return f"{statistics.median(known):.1f}{most}" if known else ""
