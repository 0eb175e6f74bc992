"""The services of compose.yaml on this machine: the same lines, environments, names, ports and health checks.

They have a network, an /etc/hosts, a /tmp and process numbers of their own, so that ports and names need no change and nobody is left afterwards.
What does change, all of it:

    a volume's path     a folder of the test's
    the images' users   an unprivileged one, that may read everything
    postgres            Debian's PostgreSQL, its database made as the image's entrypoint makes it from the same variables
    store               the same program from PyPI
    prometheus, grafana not to be had here: they are not started

Needs root on Linux, iproute2 and util-linux.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

INFRA = Path(__file__).parents[2] / "infra"
BIN = Path(sys.executable).parent
PATIENCE_S = 240  # until all are healthy, on a busy machine
MOUNTED = "/mnt"  # where the services find their volumes
USER = "1000"


@dataclass
class House:
    """Namespaces of network, mounts and processes, and in them the services of compose.yaml. All ends with the first process in there."""

    folder: Path
    init: int
    services: Mapping[str, dict]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    sound: set[str] = field(default_factory=set)  # those that were healthy once

    def inside(self, name: str, command: Sequence[str]) -> tuple[list[str], dict[str, str], Path]:
        """A command as a service's container would run it: line, environment, working folder."""
        service = self.services[name]
        volumes = {v["target"]: f"{MOUNTED}/{v['source']}" for v in service.get("volumes", []) if v["type"] == "volume"}

        def placed(text: str) -> str:
            for target, folder in volumes.items():
                text = re.sub(rf"(?<![\w/-]){re.escape(target)}(?![\w-])", folder, text)
            return text.replace("$$", "$")  # as `config` prints a dollar

        environment = image_environment() | {key: placed(value) for key, value in service.get("environment", {}).items()}
        environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": f"{MOUNTED}/home"}
        there = ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid"]
        alone = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
        # It may read what root keeps for itself, for Python may lie below /root.
        alone += [
            f"--{kind}={'-all,' * (kind == 'bounding-set')}+dac_read_search"
            for kind in ("inh-caps", "ambient-caps", "bounding-set")
        ]
        alone += ["env", f"--chdir={MOUNTED}/{'data' if self.is_latent(name) else 'home'}"]
        return [*there, *alone, *map(placed, command)], environment, self.folder

    def is_latent(self, name: str) -> bool:
        return self.services[name]["image"] == "latent"

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec` does."""
        line, environment, folder = self.inside(name, command)
        return subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    def start(self, name: str) -> None:
        service = self.services[name]
        command = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        if name == "postgres":
            command = self._postgres()
        line, environment, folder = self.inside(name, command)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(line, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)

    def _postgres(self) -> list[str]:
        """What the image's entrypoint does on an empty volume."""
        given = self.services["postgres"]["environment"]
        data = f"{MOUNTED}/postgres"
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
        server = [f"{programs}/postgres", "-D", data, "-c", "unix_socket_directories=", "-c", "fsync=off"]
        if (self.folder / "volumes/postgres/PG_VERSION").exists():
            return server
        (self.folder / "volumes/home/password").write_text(given["POSTGRES_PASSWORD"])
        for command in (
            [
                f"{programs}/initdb",
                f"--pgdata={data}",
                f"--username={given['POSTGRES_USER']}",
                f"--pwfile={MOUNTED}/home/password",
                "--auth=scram-sha-256",
                "--no-sync",
            ],
            ["sh", "-c", f"echo 'CREATE DATABASE {given['POSTGRES_DB']}' | {programs}/postgres --single -D {data} postgres"],
        ):
            done = self.run("postgres", *command)
            assert done.returncode == 0, done.stdout + done.stderr
        return server

    def healthy(self, name: str) -> bool:
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, *command).returncode == 0

    def up(self, names: Sequence[str]) -> None:
        """Start services when those they depend on are as they should be, and wait until all are healthy."""
        waiting, deadline = list(names), time.monotonic() + PATIENCE_S
        while waiting or self.running.keys() - self.sound:
            for name in [n for n in waiting if self._may_start(n)]:
                waiting.remove(name)
                self.start(name)
            self.sound |= {name for name in self.running.keys() - self.sound if self.healthy(name)}
            time.sleep(1)  # checks cost seconds of CPU themselves
            for name in [n for n, process in self.running.items() if process.poll() is not None]:
                assert self.services[name]["restart"] == "unless-stopped", f"{name} ended: {self.said(name)}"
                self.start(name)  # Ray's node gives up where a busy machine is slow
            late = self.running.keys() - self.sound
            assert time.monotonic() < deadline, f"not healthy: {[(name, self.said(name)) for name in late]}"

    def _may_start(self, name: str) -> bool:
        wanted = self.services[name].get("depends_on", {})
        return all(
            other in (self.sound if how["condition"] == "service_healthy" else self.running) for other, how in wanted.items()
        )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self, name: str) -> None:
        """As Docker does: SIGTERM to the service's first process."""
        process = self.running.pop(name)
        (first,) = children(process.pid)
        os.kill(first, signal.SIGTERM)
        process.wait(30)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def image_environment() -> dict[str, str]:
    """ENV of the Dockerfile's last stage."""
    *_, last = (INFRA / "Dockerfile").read_text().split("\nFROM ")
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", last, re.MULTILINE)
    return dict(each.split("=", 1) for each in block.replace("\\\n", " ").split())


@contextmanager
def house_of(folder: Path, services: Mapping[str, dict]) -> Iterator[House]:
    """The namespaces, with every service's name in /etc/hosts; afterwards nobody is left in them."""
    volumes = {v["source"] for s in services.values() for v in s.get("volumes", []) if v["type"] == "volume"} | {"home"}
    for each in [*(folder / "volumes" / name for name in volumes), folder / "tmp"]:
        each.mkdir(parents=True, exist_ok=True)
    for each in [folder / "tmp", *(folder / "volumes").rglob("*")]:
        os.chown(each, int(USER), int(USER))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename} {' '.join(services)}\n")
    mounts = {f"{folder}/hosts": "/etc/hosts", f"{folder}/volumes": MOUNTED}
    for kept in {path for path in (INFRA.parent, Path(sys.prefix)) if path.is_relative_to("/tmp")}:
        below = folder / "tmp" / kept.relative_to("/tmp")
        below.mkdir(parents=True, exist_ok=True)
        mounts[str(kept)] = str(below)
    mounts[f"{folder}/tmp"] = "/tmp"  # last: it hides the others' origins
    steps = ["ip link set lo up", *(f"mount --rbind {origin} {place}" for origin, place in mounts.items()), "echo ready"]
    setup = f"{' && '.join(steps)} && sleep infinity & wait"
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        setup,
    ]
    house = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as holder:
        try:
            told = holder.stdout.readline().strip()
            if told != "ready":
                pytest.skip(f"no namespaces here: {told}")
            (init,) = children(holder.pid)
            house = House(folder, init, services)
            yield house
        finally:
            if house is None:
                holder.kill()
            else:  # the namespace's first process; it is waited for until all others there are gone
                os.kill(house.init, signal.SIGKILL)
            for process in house.running.values() if house else ():
                process.wait(30)
