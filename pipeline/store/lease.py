"""One writer at a time, without a service: a lease in the metadata of the table of runs.

Two takers that start from the same version conflict in Lance, on a disk as on S3, so one of them loses. The holder renews it in the
background. A holder on this machine whose process is gone is succeeded at once, any other when its time has run out.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lance import LanceDataset, LanceOperation, Transaction
from lance.commit import CommitConflictError

from pipeline.errors import StoreError, TableBusy
from pipeline.store.tables import Store, lance_errors

KEY = "latent.lease"
LEASE_S = 120.0  # a holder on another machine is succeeded after this long in silence
RENEW_S = LEASE_S / 4


@dataclass(frozen=True)
class _Holder:
    run_id: str
    machine: str
    pid: int
    expires: float  # seconds since 1970, by the holder's clock

    @property
    def alive(self) -> bool:
        if self.machine == _machine() and not _process_exists(self.pid):
            return False
        return time.time() < self.expires


class Lease:
    """Held while in the `with` block. Raises TableBusy on entry where another run holds it."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self._store = store
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._expires = 0.0

    def __enter__(self) -> Self:
        self._take()
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._renewer.join()
        with contextlib.suppress(StoreError, CommitConflictError):
            table = self._open()
            if (holder := _holder(table)) is not None and holder.run_id == self.run_id:
                self._write(table, None)

    def check(self) -> None:
        """Raises TableBusy where the lease is no longer ours."""
        holder = _holder(self._open())
        if self._lost.is_set() or holder is None or holder.run_id != self.run_id or time.time() > self._expires:
            self._lost.set()
            raise TableBusy(
                f"{self._store.label}: the lease was lost to run {holder.run_id if holder else '?'}: nothing more is committed; run again"
            )

    def _take(self) -> None:
        for _ in range(3):
            table = self._open()
            holder = _holder(table)
            if holder is not None and holder.run_id != self.run_id and holder.alive:
                raise TableBusy(
                    f"{self._store.label} is being written by run {holder.run_id} (process {holder.pid} on {holder.machine.split('/')[0]}): "
                    "wait for it, or stop it"
                )
            with contextlib.suppress(CommitConflictError):
                self._hold(table)
                return
        raise TableBusy(f"{self._store.label}: several runs are starting at once: wait, and run again")

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                table = self._open()
                holder = _holder(table)
                if holder is None or holder.run_id != self.run_id:
                    self._lost.set()
                    return
                self._hold(table)
            except (StoreError, CommitConflictError):
                continue  # the next renewal may succeed; when none does, time runs out and check() says so

    def _hold(self, table: LanceDataset) -> None:
        expires = time.time() + LEASE_S
        self._write(table, json.dumps(asdict(_Holder(self.run_id, _machine(), os.getpid(), expires))))
        self._expires = expires

    def _write(self, table: LanceDataset, value: str | None) -> None:
        update = LanceOperation.UpdateConfig(table_metadata_updates=LanceOperation.UpdateMap({KEY: value}))
        options = dict(self._store.storage_options) or None
        try:
            LanceDataset.commit(table, Transaction(table.version, update), storage_options=options, max_retries=0)
        except CommitConflictError:
            raise
        except OSError as error:
            raise StoreError(f"{self._store.label}: the lease cannot be written: {error}") from error

    def _open(self) -> LanceDataset:
        with lance_errors(f"{self._store.label}: the lease cannot be read"):
            table = self._store.open("runs")
        if table is None:
            raise StoreError(f"{self._store.label}: its table of runs is gone: set [table] name to a new name")
        return table


def _holder(table: LanceDataset) -> _Holder | None:
    text = table.metadata.get(KEY)
    return _Holder(**json.loads(text)) if text else None


def _machine() -> str:
    """This host and process namespace: process ids mean something only within it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.readlink() if namespace.exists() else ''}"


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
