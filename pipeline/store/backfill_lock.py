"""How work of days lives beside other runs: a backfill, or a migration. It shows that it is there; a backfill lets others pass, and can be paused.
All in the metadata of the table of runs.

A run that comes meanwhile leaves to the backfill what is the backfill's: files that are not recorded and older than its beginning. While it lets another pass,
or waits for its hours, it holds no lease; its sign of life is renewed like one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import ClassVar, Self

from lance import LanceDataset
from lance.commit import CommitConflictError

from latent.errors import StoreError, TableBusy
from latent.store.dataset import create_runs, opened_runs
from latent.store.lease import KEY, POLL_S, RENEW_S, WAITING, Lease, LeaseHolder, Signs, alive, new_run_id, put, sign_of
from latent.store.ownership import Store

PAUSED = "latent.paused"
QUIET_S = (
    10.0  # so long the lease must be free before a backfill takes it again: what follows a run, such as maintenance, passes with it
)
TRIES = 5


class TableLock:
    """Work of days under way, for the length of a `with` block: at most one of its kind. Raises TableBusy on entry where there is one already.

    It holds no lease: other runs of the table go on. Its sign of life is renewed like one.
    """

    key: ClassVar[str]
    kind: ClassVar[str]
    tidies_by_itself: ClassVar[bool]

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id, self._since = store, run_id, time.time_ns()
        self._signs = Signs(store)
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=self.kind, daemon=True)

    def __enter__(self) -> Self:
        create_runs(self._store)
        alive.add(self._run_id)
        try:
            self._begin()
        except BaseException:
            alive.discard(self._run_id)
            raise
        self._renewer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._renewer.join()
        alive.discard(self._run_id)
        with contextlib.suppress(StoreError):  # it is taken for dead soon
            self._show(None)

    def check(self) -> None:
        """Raises TableBusy where another one has begun, since this one was silent too long."""
        if (other := _under_way(self._store, self.key)) is not None and other.run_id != self._run_id:
            raise TableBusy(
                f"{self._store.label}: {self.kind} {other.run_id} has begun meanwhile: nothing more is done by this one"
            )

    def _begin(self) -> None:
        """Of two that begin at once one conflicts with the other."""
        for _ in range(TRIES):
            table = opened_runs(self._store)
            if (other := _alive(table, self.key)) is not None:
                raise TableBusy(f"{self._store.label}: {self.kind} {other.run_id} is under way: stop it, or wait for it")
            with contextlib.suppress(CommitConflictError):
                put(self._store, table, {self.key: self._sign()})
                return
        raise TableBusy(f"{self._store.label}: several runs are starting at once: wait, and run again")

    def tidy(self) -> None:
        """Drop old signs of life where no run holds the lease, which would: this one shows life for days without a run."""
        if not self._signs.many:
            return
        with (
            contextlib.suppress(StoreError),
            Lease(self._store, new_run_id(), should_yield=True),
        ):  # of two that tidy at once one is refused
            self._signs.drop_former()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            with contextlib.suppress(StoreError):
                self._signs.add(self._show(self._sign()))
                if self.tidies_by_itself:
                    self.tidy()

    def _sign(self) -> LeaseHolder:
        return LeaseHolder.now(self._run_id, since=self._since)

    def _show(self, sign: LeaseHolder | None) -> int:
        return _write(self._store, self.key, sign)


class MigrationLock(TableLock):
    """A migration under way: nobody else makes or drops the table beside."""

    key, kind, tidies_by_itself = "latent.migration", "migration", True


class BackfillLock(TableLock):
    """A backfill under way."""

    key, kind, tidies_by_itself = "latent.backfill", "backfill", False  # between its own turns: it would stand in its own way

    def lock_holder(self) -> str | None:
        """Who holds the lease, or wants it; None where it is free."""
        table = opened_runs(self._store)
        signs = (sign_of(table, key) for key in (KEY, WAITING))
        return next((sign.run_id for sign in signs if sign is not None and sign.fresh and not sign.gone), None)

    def wait_until_idle(self) -> None:
        """Until nobody has held or wanted the lease for QUIET_S."""
        free_since = time.monotonic()
        while time.monotonic() - free_since < QUIET_S:
            time.sleep(POLL_S)
            if self.lock_holder() is not None:
                free_since = time.monotonic()


def backfilling_since(store: Store) -> int | None:
    """When the backfill that is under way began, in ns since 1970: files that are older and not recorded are its to do. None where there is none."""
    if store.open("runs") is None:
        return None
    sign = _under_way(store, BackfillLock.key)
    return sign.since if sign is not None else None


def pause(store: Store, *, paused: bool) -> None:
    """Have backfills of the table wait, or go on. Raises StoreError where there is no table."""
    store.opened()
    _write(store, PAUSED, "yes" if paused else None)


def is_paused(store: Store) -> bool:
    return opened_runs(store).metadata.get(PAUSED) is not None


def _under_way(store: Store, key: str) -> LeaseHolder | None:
    return _alive(opened_runs(store), key)


def _alive(table: LanceDataset, key: str) -> LeaseHolder | None:
    sign = sign_of(table, key)
    return sign if sign is not None and sign.fresh and not sign.gone else None


def _write(store: Store, key: str, word: LeaseHolder | str | None) -> int:
    """However many others write their own words meanwhile; returns the version."""
    for attempt in range(TRIES):
        with contextlib.suppress(CommitConflictError):
            return put(store, opened_runs(store), {key: word})
        time.sleep(POLL_S * 2**attempt)
    raise StoreError(f"{store.label}: {key} could not be written in {TRIES} tries: run again")
