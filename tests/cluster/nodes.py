"""A Ray cluster and an object store, each part on a machine of its own, and runs of `latent` on it.

As infra/compose.yaml has it: a head without cores, a node without cores for the driver, nodes with one core each, and whatever ends is started again.
The first node says that it has a GPU.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from lan import COMMON, ROOT, Machine
from s3 import ENVIRONMENT, SIGNED
from store import PORT

BIN = Path(sys.executable).parent
STORE, HEAD, DRIVER, NODES = 2, 3, 4, (5, 6, 7)  # numbers of machines
HEAD_ADDRESS, STORE_ADDRESS = f"10.77.0.{HEAD}:6379", f"10.77.0.{STORE}:{PORT}"
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
# A node that is silent for 8 to 12 s is dead; by Ray's defaults it takes half a minute.
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "15"}  # a node that is without its head for so long ends; by default 60
# Without the processes that collect logs and scale: on this machine there are as many of them as nodes.
START = "--block --object-store-memory=80000000 --include-log-monitor=false --node-ip-address=$ADDRESS"
JOIN = f"while true; do {BIN}/ray start --address={HEAD_ADDRESS} {START} %s || true; sleep 1; done"
DONE, LOST = re.compile(r"shard \w+: \d+ documents,"), re.compile(r"shard (\w+): (encoding failed|in the hands)")
PATIENCE_S = 240.0  # for anything: on a busy machine a node takes a minute to come up


def wait_until(what: str, true: Callable[[], object], every_s: float = 0.1) -> float:
    """The seconds that it took."""
    started = time.monotonic()
    while not true():
        if time.monotonic() - started > PATIENCE_S:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(every_s)
    return time.monotonic() - started


class Run:
    """`latent run` on the driver's machine, and when it said what."""

    def __init__(self, machine: Machine, config: Path, log: Path) -> None:
        self.said: list[tuple[float, str]] = []  # lines of its stderr, each with the time it came
        command = [str(BIN / "latent"), "run", "--json", "--verbose", "--no-maintain", "--config", str(config)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = machine.start(command, RAY | {"PYTHONPATH": str(ROOT)}, **pipes)
        self._log = log
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._log.open("a") as log:
            for line in self._process.stderr:
                self.said.append((time.monotonic(), line.rstrip()))
                log.write(f"{time.time():.1f} {line}")
                log.flush()

    @property
    def code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        wait_until("the run ends", lambda: self.code is not None)
        self._reading.join()
        assert self._process.stdout is not None
        self.result = json.loads(self._process.stdout.read() or "{}")
        return self._process.returncode

    def progress(self) -> list[float]:
        """When shards were finished."""
        return [when for when, line in list(self.said) if DONE.search(line)]

    def retries(self) -> int:
        """How often a shard was taken from a dead worker."""
        return sum(LOST.search(line) is not None for _, line in list(self.said))

    def errors(self) -> list[str]:
        return [line for _, line in self.said if "error" in line.lower() and not LOST.search(line)]


class Cluster:
    """Up while in the `with` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = 0
        self.pace(0)
        self.machines: dict[int, Machine] = {}

    def __enter__(self) -> Self:
        os.environ.update(ENVIRONMENT | RAY)
        self.machines[STORE] = Machine(
            STORE, f"exec {sys.executable} {ROOT}/tests/cluster/store.py {COMMON}/pace", self._folder / "store.log"
        )
        self.start(HEAD, DRIVER, *NODES)
        wait_until("the store answers", lambda: _listens(STORE_ADDRESS))
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            machine.kill()

    def start(self, *numbers: int) -> None:
        """Machines that are not there; one that was killed is another with its number."""
        for number in numbers:
            if number == HEAD:
                command = f"exec {BIN}/ray start --head --port=6379 --num-cpus=0 --include-dashboard=false --no-monitor {START}"
                more = WATCHFUL
            elif number == DRIVER:
                command, more = JOIN % "--num-cpus=0", {}
            else:
                command, more = JOIN % f"--num-cpus=1 --num-gpus={int(number == NODES[0])}", IMPATIENT
            self.machines[number] = Machine(number, command, self._folder / f"machine-{number}.log", **RAY, **more)

    def kill(self, *numbers: int) -> None:
        for number in numbers:
            self.machines.pop(number).kill()

    def joined(self) -> set[int]:
        """The numbers of the machines that the head takes for alive. Empty where it does not answer."""
        from ray._raylet import GcsClient
        from ray.exceptions import RayError

        if not _listens(HEAD_ADDRESS):
            return set()
        try:
            nodes = GcsClient(address=HEAD_ADDRESS).get_all_node_info(timeout=5).values()
        except RayError:
            return set()
        return {int(n.node_manager_address.rpartition(".")[2]) for n in nodes if n.state == n.ALIVE}

    def complete(self, *numbers: int) -> float:
        """Wait until just these nodes are there, with head and driver. The seconds that it took."""
        wanted = {HEAD, DRIVER, *numbers}
        return wait_until(f"the cluster has the nodes {wanted}", lambda: self.joined() == wanted, 0.5)

    def pace(self, seconds: float) -> None:
        """Of the store, for a fragment."""
        (COMMON / "new-pace").write_text(str(seconds))
        (COMMON / "new-pace").rename(COMMON / "pace")

    def brought(self, bucket: str) -> dict[int, int]:
        """Fragments that the store has got, by the machine that brought them."""
        counts: dict[int, int] = {}
        for line in (self._folder / "store.log").read_text().splitlines():
            if len(parts := line.split()) == 3 and parts[1] == bucket:
                number = int(parts[2].rpartition(".")[2])
                counts[number] = counts.get(number, 0) + 1
        return counts

    def at_work(self) -> dict[int, list[str]]:
        """Processes of runs that are still there."""
        found = {n: m.processes("ray::_Actor") + m.processes("ray::Book") for n, m in self.machines.items() if n != STORE}
        return {n: lines for n, lines in found.items() if lines}

    def run(self, config: Path) -> Run:
        self._runs += 1
        return Run(self.machines[DRIVER], config, self._folder / f"run-{self._runs}.log")


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def put(path: str, data: bytes = b"", headers: Mapping[str, str] = SIGNED) -> None:
    """An object, or a bucket."""
    import http.client

    connection = http.client.HTTPConnection(STORE_ADDRESS, timeout=60)
    connection.request("PUT", f"/{path}", data, dict(headers))
    if (answer := connection.getresponse()).status != 200:
        raise RuntimeError(f"PUT {path}: {answer.status} {answer.read()[:200]!r}")
    connection.close()
