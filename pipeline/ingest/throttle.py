"""The manners of a backfill: how fast it goes, in which hours, and when it gives way. Asked once a second, it asks the table every few."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from zoneinfo import ZoneInfo

from latent import store
from latent.config import Config
from latent.store import BackfillLock, Lease, Store

ASK_S = 3.0  # between two looks at the table, some milliseconds each
WAIT_S = 2.0  # between two looks at whether it may go on


class BackfillThrottle:
    """Of a backfill under way."""

    def __init__(self, config: Config, place: Store, lock: BackfillLock) -> None:
        self._settings, self._place, self._presence = config.backfill, place, lock
        self._zone = ZoneInfo(config.schedule.timezone)
        self._asked = self._begun = time.monotonic()
        self.committed = 0  # documents, by the turns so far

    def begin(self) -> None:
        """From here on its pace counts."""
        self._asked = self._begun = time.monotonic()

    def over_rate_limit(self, tokens: int) -> bool:
        """Whether so many tokens since it began are more than its pace allows."""
        allowed = self._settings.tokens_per_second
        return bool(allowed) and tokens > allowed * (time.monotonic() - self._begun)

    def should_yield(self, lease: Lease) -> str | None:
        """Why the run should end here, to go on later; None where it need not."""
        if time.monotonic() - self._asked < ASK_S:
            return None
        self._asked = time.monotonic()
        if (other := lease.pending_waiter()) is not None:
            return f"run {other} passes"
        return self._paused_reason()

    def wait(self, tell: Callable[[str], None]) -> None:
        """Until it may go on; `tell` hears why it may not, once a reason."""
        told = ""
        while (reason := self._paused_reason() or self._lock_reason()) is not None:
            if reason != told:
                tell(reason)
                told = reason
            self._presence.tidy()
            time.sleep(WAIT_S)

    def _paused_reason(self) -> str | None:
        if store.is_paused(self._place):
            return "paused: 'latent resume' lets it go on"
        hours = self._settings.hours
        if hours and not in_time_window(hours, dt.datetime.now(self._zone).time()):
            return f"its hours are {hours} {self._zone.key}"
        return None

    def _lock_reason(self) -> str | None:
        if (other := self._presence.lock_holder()) is None:
            return None
        self._presence.wait_until_idle()
        return f"run {other} has passed"


def in_time_window(hours: str, now: dt.time) -> bool:
    """Whether a time of the day lies within hours such as 20:00-06:00; their end is outside."""
    start, _, end = hours.partition("-")
    begins, ends = dt.time.fromisoformat(start), dt.time.fromisoformat(end)
    return begins <= now < ends if begins < ends else now >= begins or now < ends
