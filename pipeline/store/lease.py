"""One writer at a time, without a service: a lease in the metadata of the table of runs.

Two takers that start from the same version conflict in Lance, on a disk as on S3, so one of them loses. The holder renews it in the
background. A holder on this machine whose process is gone is succeeded at once. Any other is succeeded when its time has run out by this
machine's clock and it was then silent for WATCH_S: clocks that differ or jump cost time, never a lease. The lease alone is no fence: a paused holder
may wake up inside a commit. Who succeeds another therefore fences the main table before anything else (`history.sole_writer`).
"""

from __future__ import annotations

import contextlib
import json
import logging
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

log = logging.getLogger("pipeline")
KEY = "latent.lease"
LEASE_S = 120.0  # a holder on another machine is not succeeded before it has been silent this long
RENEW_S = LEASE_S / 4
WATCH_S = RENEW_S * 1.5  # longer than a living holder is ever silent


_held: set[str] = set()  # runs of this process that hold a lease: one that could not give it back is succeeded at once


@dataclass(frozen=True)
class _Holder:
    run_id: str
    machine: str
    pid: int
    expires: float  # seconds since 1970, by the holder's clock; another number after each renewal

    @property
    def gone(self) -> bool:
        if self.machine != _machine():
            return False
        return self.run_id not in _held if self.pid == os.getpid() else not _process_exists(self.pid)

    @property
    def fresh(self) -> bool:
        """Renewed lately, if the clocks agree."""
        return 0 < self.expires - time.time() <= LEASE_S


class Lease:
    """Held while in the `with` block. Raises TableBusy on entry where another run holds it.

    `unfenced` is the run that held it last and did not give it back: it must be fenced out, and None be put here. Until then this lease is not given back
    either, so that the next to take it knows.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.run_id = run_id
        self.unfenced: str | None = None
        self._store = store
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        _held.add(self.run_id)
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._renewer.join()
        _held.discard(self.run_id)
        if self.unfenced is not None:
            return
        with contextlib.suppress(StoreError, CommitConflictError):
            table = self._open()
            if self._ours(_holder(table)):
                self._write(table, None)

    def check(self) -> None:
        """Raises TableBusy where another run has taken the lease."""
        holder = _holder(self._open())
        if not self._ours(holder):
            raise TableBusy(
                f"{self._store.label}: the lease was lost to run {holder.run_id if holder else '?'}: nothing more is committed; run again"
            )

    def _take(self) -> None:
        silent: _Holder | None = None  # watched, and dead by all signs
        for _ in range(4):
            table = self._open()
            holder = _holder(table)
            if holder is None or self._ours(holder) or holder.gone or holder == silent:
                with contextlib.suppress(CommitConflictError):
                    self._hold(table)
                    self.unfenced = None if holder is None or self._ours(holder) else holder.run_id
                    return
            elif holder.fresh or not self._silent(holder):
                raise TableBusy(
                    f"{self._store.label} is being written by run {holder.run_id} (process {holder.pid} on {holder.machine.split('/')[0]}): "
                    "wait for it, or stop it"
                )
            else:
                silent = holder
        raise TableBusy(f"{self._store.label}: several runs are starting at once: wait, and run again")

    def _silent(self, holder: _Holder) -> bool:
        """Watch a lease that has run out by our clock: whether its holder gives no sign of life."""
        log.warning(
            "run %s on %s seems to have died: watching its lease for %.0f s", holder.run_id, holder.machine.split("/")[0], WATCH_S
        )
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(min(WATCH_S / 10, 1.0))
            if _holder(self._open()) != holder:
                return False
        return True

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                table = self._open()
                if not self._ours(_holder(table)):
                    return
                self._hold(table)
            except (StoreError, CommitConflictError):
                continue  # the next renewal may succeed; until another run takes the lease it is ours, however old

    def _hold(self, table: LanceDataset) -> None:
        self._write(table, json.dumps(asdict(_Holder(self.run_id, _machine(), os.getpid(), time.time() + LEASE_S))))

    def _ours(self, holder: _Holder | None) -> bool:
        return holder is not None and holder.run_id == self.run_id

    def _write(self, table: LanceDataset, value: str | None) -> None:
        update = LanceOperation.UpdateConfig(table_metadata_updates=LanceOperation.UpdateMap({KEY: value}))
        options = self._store.options
        try:
            with lance_errors(f"{self._store.label}: the lease cannot be written"):
                LanceDataset.commit(table, Transaction(table.version, update), storage_options=options, max_retries=0)
        except StoreError as error:
            if isinstance(error.__cause__, CommitConflictError):
                raise error.__cause__ from None
            raise

    def _open(self) -> LanceDataset:
        with lance_errors(f"{self._store.label}: the lease cannot be read"):
            table = self._store.open("runs")
        if table is None:
            raise StoreError(f"{self._store.label}: its table of runs is gone; run again")
        return table


def _holder(table: LanceDataset) -> _Holder | None:
    text = table.metadata.get(KEY)
    return _Holder(**json.loads(text)) if text else None


def _machine() -> str:
    """This host, its kernel since it booted, and the process namespace: process ids mean something only within it."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = (boot.read_text().strip(), namespace.readlink()) if boot.exists() and namespace.exists() else ()
    return "/".join((socket.gethostname(), *map(str, known)))


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
