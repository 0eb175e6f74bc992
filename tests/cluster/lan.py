"""Machines on this machine: each in a network, mount and process namespace of its own, with its own address, /tmp and /dev/shm, on one switch.

They share one thing, the installation, and may not write to it. All of it lives within the namespaces of the process that makes it (`enter`): whatever
ends that process, SIGKILL too, ends every machine, every link and every mount, and two such processes never meet. Needs root on Linux, iproute2 and
util-linux; a machine costs a few milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
WITHIN = "CLUSTER_OF_MACHINES"  # set in the process that has namespaces of its own
COMMON = Path("/mnt")  # laid out before the first machine starts; the machines see it and cannot write to it
ROOT_AGAIN = COMMON / "root"  # the installation may lie below /tmp, which each machine has anew
# Waits for its cable. Everything on disk is read-only then, and what has to be written to is new and empty.
FURNISH = f"""
read cable
ip link set lo up; ip address add $ADDRESS/24 dev eth0; ip link set eth0 up
mount --bind {ROOT} {ROOT_AGAIN}
mount -o remount,bind,ro /; mount -o remount,bind,ro {COMMON}
for own in /tmp /dev/shm; do mount -t tmpfs tmpfs $own; done
mkdir -p {ROOT}; mount --bind {ROOT_AGAIN} {ROOT}; mount -o remount,bind,ro {ROOT}
export HOME=/tmp; cd /tmp
"""


def missing() -> str | None:
    """Why there can be no such machines here."""
    if not sys.platform.startswith("linux"):
        return "namespaces are Linux's"
    if os.geteuid() != 0:
        return "namespaces need root"
    if absent := [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]:
        return f"no {', '.join(absent)} here"
    tried = subprocess.run([*OWN, "ip", "link", "add", "lan", "type", "bridge"], check=False, capture_output=True, text=True)
    return f"no namespaces or bridges here: {tried.stderr.strip()}" if tried.returncode else None


def enter() -> None:
    """Run this program again from its start, within namespaces of its own, with a switch and nothing on it. Once there, lays out the switch.

    `unshare` lets SIGTERM pass by: to end it from outside, SIGKILL. Settings of the caller's for these programs stay outside.
    """
    if WITHIN not in os.environ:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LATENT_", "PREFECT_", "RAY_"))}
        os.execvpe(OWN[0], [*OWN, sys.executable, *sys.argv], own | {WITHIN: "1", "no_proxy": "*"})
    for command in ("link set lo up", "link add lan type bridge", "address add 10.77.0.1/24 dev lan", "link set lan up"):
        ip(command)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", COMMON], check=True)
    ROOT_AGAIN.mkdir()


def _namespace(process: object, kind: str) -> str:
    return str(Path(f"/proc/{process}/ns/{kind}").readlink())


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


class Machine:
    """Runs a command until it is killed. Its number is the last of its address."""

    def __init__(self, number: int, command: str, log: Path, **environment: str) -> None:
        self.address, self._cable = f"10.77.0.{number}", f"lan{number}"
        self._environment = {**os.environ, **environment, "ADDRESS": self.address}
        with log.open("a") as out:
            self._process = subprocess.Popen(
                [*OWN, "sh", "-ec", f"{FURNISH}\n{command}"], stdin=subprocess.PIPE, stdout=out, stderr=out, env=self._environment
            )
        while _namespace(self._process.pid, "net") == _namespace("self", "net"):
            time.sleep(0.005)
        ip(f"link add {self._cable} type veth peer name eth0 netns {self._process.pid}")
        self.heal()
        ip(f"link set {self._cable} up")
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.close()

    def kill(self) -> None:
        """Everything that runs on it, at once; then there is no such machine."""
        if self._process.poll() is None:
            os.kill(self._init, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(subprocess.CalledProcessError):  # it goes with its namespace, a little later
            subprocess.run(["ip", "link", "delete", self._cable], check=True, stderr=subprocess.DEVNULL)

    def cut(self) -> None:
        """Off the network: pulled out of the switch."""
        ip(f"link set {self._cable} nomaster")

    def heal(self) -> None:
        ip(f"link set {self._cable} master lan")

    def lose(self, address: str, *, found: bool = False) -> None:
        """No way to one machine only, or the way back."""
        verb = "del" if found else "add"
        subprocess.run([*self._nsenter("--net"), "ip", "route", verb, "blackhole", f"{address}/32"], check=True)

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """A process on it; of its own, so it must be waited for."""
        inside = self._nsenter("--net", "--mount", "--pid", "--wd=/tmp")
        options = {"text": True, "env": {**self._environment, "HOME": "/tmp", **(environment or {})}, **options}
        return subprocess.Popen([*inside, *command], **options)  # type: ignore[call-overload]

    def processes(self, name: str) -> list[str]:
        """Command lines of what runs on it and has this in its own."""
        space, found = _namespace(self._init, "pid"), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if name in line and _namespace(process.name, "pid") == space:
                    found.append(line)
        return found

    @property
    def _init(self) -> int:
        """The first process of its process namespace, child of the one that made the namespaces."""
        pid = self._process.pid
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            time.sleep(0.005)
        return int(children[0])

    def _nsenter(self, *spaces: str) -> list[str]:
        return ["nsenter", f"--target={self._init}", *spaces, "--"]
