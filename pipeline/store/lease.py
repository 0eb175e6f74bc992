"""One writer at a time, without a service: a lease in the metadata of the table of runs.

Two takers that start from the same version conflict in Lance, on a disk as on S3, so one of them loses. The holder renews it in the
background. A holder on this machine whose process is gone is succeeded at once. Any other is succeeded when its time has run out by this
machine's clock and it was then silent for WATCH_S: clocks that differ or jump cost time, never a lease. The lease alone is no fence: a paused holder
may wake up inside a commit. Who succeeds another therefore fences the main table before anything else (`history.exclusive_writer`).

A holder that gives way, as a backfill does, is asked to: the word WAITING stands beside its lease until it has let go.

Each renewal is a version of the table of runs, some 20,000 a week. The holder drops those that it has renewed KEPT_SIGNS times since. Lance lets a stale
change pass when the version that it conflicts with is gone. So the version that last wrote the lease must stay: it is always among the holder's last signs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lance import LanceDataset, LanceOperation, Transaction
from lance.commit import CommitConflictError

from latent.errors import StoreError, TableBusy
from latent.store.dataset import drop_versions, opened_runs
from latent.store.failures import lance_errors
from latent.store.ownership import Store

log = logging.getLogger("latent")
KEY = "latent.lease"
WAITING = "latent.waiting"  # who wants the lease of a holder that gives way
PASS_S = 600.0  # so long is waited for a holder that gives way: it finishes what is in hand, and commits
POLL_S = 0.5
WAIT_S = 2.0  # before a patient one asks again
LEASE_S = 120.0  # a holder on another machine is not succeeded before it has been silent this long
RENEW_S = LEASE_S / 4
WATCH_S = RENEW_S * 1.5  # longer than a living holder is ever silent
KEPT_SIGNS = 20  # of the holder, some ten minutes: longer than any reader needs a version of this table
DROPPED_AT_ONCE = 1000  # versions, in well under a second on a disk: a renewal is not late for it


alive: set[str] = set()  # runs of this process that hold a lease or want one: who could not give it back is succeeded at once


def new_run_id() -> str:
    """Sortable by time, unique across machines."""
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True)
class LeaseHolder:
    """A sign of life in the metadata of the table of runs."""

    run_id: str
    machine: str
    pid: int
    expires: float  # seconds since 1970, by the holder's clock; another number after each renewal
    should_yield: bool = False
    since: int = 0  # ns since 1970: files older than that are this one's to do

    @property
    def gone(self) -> bool:
        if self.machine != _machine():
            return False
        return self.run_id not in alive if self.pid == os.getpid() else not _process_exists(self.pid)

    @property
    def fresh(self) -> bool:
        """Renewed lately, if the clocks agree."""
        return 0 < self.expires - time.time() <= LEASE_S

    @staticmethod
    def now(run_id: str, *, should_yield: bool = False, since: int = 0) -> LeaseHolder:
        return LeaseHolder(run_id, _machine(), os.getpid(), time.time() + LEASE_S, should_yield, since)


def sign_of(table: LanceDataset, key: str) -> LeaseHolder | None:
    """The sign of life under a key; None where nobody gave one."""
    text = table.metadata.get(key)
    return LeaseHolder(**json.loads(text)) if text else None


def put(store: Store, table: LanceDataset, words: Mapping[str, LeaseHolder | str | None]) -> int:
    """Write these words, and take away those that are None, as the table was opened; returns the version. Raises CommitConflictError where one was written meanwhile."""
    texts = {key: json.dumps(asdict(word)) if isinstance(word, LeaseHolder) else word for key, word in words.items()}
    update = LanceOperation.UpdateConfig(table_metadata_updates=LanceOperation.UpdateMap(texts))
    try:
        with lance_errors(f"{store.label}: the lease cannot be written"):
            made = LanceDataset.commit(table, Transaction(table.version, update), storage_options=store.options, max_retries=0)
            return int(made.version)
    except StoreError as error:
        if isinstance(error.__cause__, CommitConflictError):
            raise error.__cause__ from None
        raise


class Signs:
    """The versions of the table of runs that one holder's signs of life made, oldest first. It drops what came before the last KEPT_SIGNS of them."""

    def __init__(self, store: Store) -> None:
        self._store, self._versions = store, list[int]()

    def add(self, version: int) -> None:
        self._versions = [*self._versions[1 - 2 * KEPT_SIGNS :], version]

    @property
    def many(self) -> bool:
        """Whether it is time to drop some: now and then, since each time lists the table's files."""
        return len(self._versions) >= 2 * KEPT_SIGNS

    def drop_former(self) -> None:
        """Under a lease that was taken or renewed since the oldest sign that stays. Raises StoreError."""
        self._versions = self._versions[-KEPT_SIGNS:]
        table = opened_runs(self._store)
        with lance_errors(f"{self._store.label}: old signs of life cannot be dropped"):
            former = (ref["version"] for ref in table.version_refs() if ref["version"] < self._versions[0])
            drop_versions(table, sorted(former)[:DROPPED_AT_ONCE])


class Lease:
    """Held while in the `with` block. Raises TableBusy on entry where another run holds it, unless that one gives way, or this one is `patient`: it waits.

    `unfenced` is the run that held it last and did not give it back: it must be fenced out, and None be put here. Until then this lease is not given back
    either, so that the next to take it knows.
    """

    def __init__(self, store: Store, run_id: str, *, should_yield: bool = False, patient: bool = False) -> None:
        self.run_id = run_id
        self.taken = 0  # the version of the table of runs that made it this one's
        self.unfenced: str | None = None
        self._store, self._gives_way, self._patient = store, should_yield, patient
        self._signs = Signs(store)
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        alive.add(self.run_id)
        try:
            self._take_patiently()
        except BaseException:
            alive.discard(self.run_id)
            raise
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.end_renewals()
        alive.discard(self.run_id)
        if self.unfenced is not None:
            return
        with contextlib.suppress(StoreError, CommitConflictError):
            table = opened_runs(self._store)
            if self._ours(sign_of(table, KEY)):
                put(self._store, table, {KEY: None})

    def check(self) -> None:
        """Raises TableBusy where another run has taken the lease."""
        holder = sign_of(opened_runs(self._store), KEY)
        if not self._ours(holder):
            raise TableBusy(
                f"{self._store.label}: the lease was lost to run {holder.run_id if holder else '?'}: nothing more is committed; run again"
            )

    def end_renewals(self) -> None:
        """Write no further sign of life: for the last moments of a table that is about to be dropped."""
        self._stop.set()
        self._renewer.join()

    def pending_waiter(self) -> str | None:
        """The run that wants this lease, if one does."""
        waiting = sign_of(opened_runs(self._store), WAITING)
        return waiting.run_id if waiting is not None and waiting.fresh and not waiting.gone else None

    def _take_patiently(self) -> None:
        waiting = False
        while True:
            try:
                self._take()
            except TableBusy as busy:
                if not self._patient:
                    raise
                if not waiting:
                    log.warning("waiting: %s", busy)
                waiting = True
                time.sleep(WAIT_S)
            else:
                return

    def _take(self) -> None:
        silent: LeaseHolder | None = None  # watched, and dead by all signs
        for _ in range(4):
            table = opened_runs(self._store)
            holder = sign_of(table, KEY)
            if holder is None or self._ours(holder) or holder.gone or holder == silent:
                with contextlib.suppress(CommitConflictError):
                    self.taken = put(self._store, table, {KEY: self._sign()} | ({} if self._gives_way else {WAITING: None}))
                    self._signs.add(self.taken)
                    self.unfenced = None if holder is None or self._ours(holder) else holder.run_id
                    return
            elif holder.fresh and holder.should_yield and not self._gives_way:
                self._wait_for(holder)
            elif holder.fresh or not self._silent(holder):
                raise TableBusy(
                    f"{self._store.label} is being written by run {holder.run_id} (process {holder.pid} on {holder.machine.split('/')[0]}): "
                    "wait for it, or stop it"
                )
            else:
                silent = holder
        raise TableBusy(f"{self._store.label}: several runs are starting at once: wait, and run again")

    def _wait_for(self, holder: LeaseHolder) -> None:
        """Ask a holder that gives way to do so. Raises TableBusy where it does not."""
        log.info("%s: run %s is asked to let this one pass", self._store.label, holder.run_id)
        with contextlib.suppress(CommitConflictError):  # another has asked
            put(self._store, opened_runs(self._store), {WAITING: self._sign()})
        until = time.monotonic() + PASS_S
        while time.monotonic() < until:
            time.sleep(POLL_S)
            now = sign_of(opened_runs(self._store), KEY)
            if now is None or now.run_id != holder.run_id or now.gone or not now.fresh:
                return
        raise TableBusy(
            f"{self._store.label} is being written by run {holder.run_id}, which did not give way in {PASS_S:.0f} s: run again"
        )

    def _silent(self, holder: LeaseHolder) -> bool:
        """Watch a lease that has run out by our clock: whether its holder gives no sign of life."""
        log.warning(
            "run %s on %s seems to have died: watching its lease for %.0f s", holder.run_id, holder.machine.split("/")[0], WATCH_S
        )
        until = time.monotonic() + WATCH_S
        while time.monotonic() < until:
            time.sleep(min(WATCH_S / 10, 1.0))
            if sign_of(opened_runs(self._store), KEY) != holder:
                return False
        return True

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                if not self.renew():
                    return
            except (StoreError, CommitConflictError):
                continue  # the next renewal may succeed; until another run takes the lease it is ours, however old

    def renew(self) -> bool:
        """Give a sign of life, and drop old ones now and then. False where another run has taken the lease. Raises StoreError, CommitConflictError."""
        table = opened_runs(self._store)
        if not self._ours(sign_of(table, KEY)):
            return False
        self._signs.add(put(self._store, table, {KEY: self._sign()}))
        if self._signs.many:
            self._signs.drop_former()
        return True

    def _sign(self) -> LeaseHolder:
        return LeaseHolder.now(self.run_id, should_yield=self._gives_way)

    def _ours(self, holder: LeaseHolder | None) -> bool:
        return holder is not None and holder.run_id == self.run_id


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
