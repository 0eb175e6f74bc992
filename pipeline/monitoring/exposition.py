"""Figures for Prometheus on one port of this machine, whoever has them: runs, `latent serve`.

A process that is to show its figures writes them into the port's folder every WRITE_S, and has the port while it is free. Who has it tells the figures of
all, those of a process that ended for KEPT_S more: so two runs on one machine are both seen, and one of a few seconds as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Metric, generate_latest, make_wsgi_app, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from latent.monitoring.hosts import guarded

log = logging.getLogger("latent")
WRITE_S = 2.0
KEPT_S = 300.0  # longer than scrapes are apart
OWNER, OWNER_S = "owner", 10.0  # who has the port touches this file every WRITE_S
ADDED = ("counter", "histogram")


@contextmanager
def shown_at(listen: str, registry: CollectorRegistry) -> Iterator[None]:
    """Show the figures at host:port for the length of the block; nowhere where that is empty.

    Where another process of ours has the port, that one shows them; where another program has it, a line in the log says so: a run does not fail for its figures.
    """
    if not listen:
        yield
        return
    shown = _Shown(listen, registry)
    shown.start()
    try:
        yield
    finally:
        shown.stop()


class _Shown(threading.Thread):
    """Writes this process's figures into the folder of a port every WRITE_S, and has that port while it is free."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        super().__init__(name="metrics", daemon=True)
        host, _, port = listen.rpartition(":")
        self._listen, self._host, self._port, self._registry = listen, host, int(port), registry
        self._folder = _folder_of(self._port)
        self._file = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.prom"
        self._stopped, self._warned = threading.Event(), False
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    def start(self) -> None:
        self._step()  # at once: what fails is told before the work begins
        super().start()

    def run(self) -> None:
        while not self._stopped.wait(WRITE_S):
            self._step()

    def stop(self) -> None:
        """Leave the last figures for KEPT_S to whoever has the port."""
        self._stopped.set()
        self.join()
        self._step()
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            (self._folder / OWNER).unlink(missing_ok=True)

    def _step(self) -> None:
        try:
            part = self._file.with_suffix(".part")
            part.write_bytes(generate_latest(self._registry))
            part.replace(self._file)
            if self._server is None and not self._stopped.is_set():
                self._server = self._bound()
            if self._server is not None:
                (self._folder / OWNER).touch()
        except OSError as error:
            self._warn(f"{self._folder}: {error.strerror}")

    def _bound(self) -> tuple[WSGIServer, threading.Thread] | None:
        everyone = CollectorRegistry()
        everyone.register(_Everyone(self._folder))
        try:
            server, thread = start_http_server(self._port, self._host, everyone)
        except OSError as error:
            if not _is_fresh(self._folder / OWNER, OWNER_S):
                self._warn(f"{self._listen} cannot be listened on ({error.strerror}): set [metrics] listen")
            return None
        server.set_app(guarded(make_wsgi_app(everyone), self._host))
        return server, thread

    def _warn(self, why: str) -> None:
        if not self._warned:
            log.warning("no figures for Prometheus: %s", why)
        self._warned = True


class _Everyone(Collector):
    """The figures that the processes sharing a port left in its folder: counters are added up, of a gauge the newest stands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        samples: dict[str, dict[tuple[str, ...], Sample]] = {}
        for text in self._texts():
            for family in text_string_to_metric_families(text):
                families.setdefault(family.name, family)
                known = samples.setdefault(family.name, {})
                for sample in family.samples:
                    key = (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
                    earlier = known[key].value if key in known and family.type in ADDED else 0.0
                    known[key] = sample._replace(value=earlier + sample.value)
        for name, family in families.items():
            family.samples = list(samples[name].values())
            yield family

    def _texts(self) -> Iterator[str]:
        """Oldest first. Those of processes long gone are removed."""
        found = []
        for file in self._folder.glob("*.prom"):
            with contextlib.suppress(OSError):  # removed meanwhile by another
                if _is_fresh(file, KEPT_S):
                    found.append((file.stat().st_mtime, file.read_text(encoding="utf-8")))
                else:
                    file.unlink()
        yield from (text for _, text in sorted(found))


def _is_fresh(file: Path, within_s: float) -> bool:
    return file.exists() and time.time() - file.stat().st_mtime < within_s


def _folder_of(port: int) -> Path:
    """Where this user's processes that name the port meet. Another user's folder is not trusted: then one of this process alone."""
    user = getattr(os, "getuid", lambda: 0)()
    folder = Path(tempfile.gettempdir()) / f"latent-metrics-{user}-{port}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022
    return folder if ours or os.name == "nt" else Path(tempfile.mkdtemp(prefix="latent-metrics-"))
