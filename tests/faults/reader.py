"""A user of the table who opens its newest version again and again, whatever befalls the writers."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from ground import Ground, store
from picture import NOTHING, Picture, as_users_see_it, half_seen, picture, reached, torn

EVERY_S = 0.02  # an opening takes milliseconds of a core that the writers want too
AGAIN_S = 0.1  # a version that has not changed is read again so often


@dataclass(kw_only=True)
class Findings:
    """What a round came to. All but the samples should be empty."""

    samples: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    half_seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.half_seen or self.wrong)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong in the round itself is told with the rest: the other rounds go on."""
        try:
            yield
        except Exception:
            self.wrong.append(traceback.format_exc())


class Reader:
    """Reads while in the `with` block, in turn as this program does and through plain lancedb; holds the version it found first.

    At the end it looks at every version made meanwhile, for what was too short for a sample.
    """

    def __init__(
        self,
        place: Path,
        ground: Ground,
        to: Findings,
        *,
        from_nothing: bool,
        goes_back: bool = False,
        at_once: bool = False,
        poison: str = "",
    ) -> None:
        """`goes_back`: a rollback is among the writers. `at_once`: its change is the only one. `poison`: a document that is looked past."""
        self._store, self._to, self._at_once, self._poison = store(place), to, at_once, poison
        self._goes_back = goes_back or at_once
        self._revisions = [revision.without(poison) for revision in (NOTHING if from_nothing else ground.before, ground.after)]
        self._held = self._store.open()
        self._held_rows = None if self._held is None else self._held.to_table()
        self._seen: dict[int, Picture] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if kind is None and (table := self._store.open()) is not None:
            first = 1 if self._held is None else self._held.version
            for version in (v["version"] for v in table.versions()):
                if version >= first and version not in self._seen:
                    self._look(version)
            for (_, earlier), (_, later) in pairwise(sorted(self._seen.items(), key=itemgetter(0))):
                if not self._goes_back and (gone := reached(earlier, *self._revisions) - reached(later, *self._revisions)):
                    self._to.half_seen.append(f"went back to what they were before: {gone}")
        if self._held is not None and self._held.to_table() != self._held_rows:
            self._to.half_seen.append("a version held open reads otherwise than before")

    def _read(self) -> None:
        known, when, users = None, 0.0, False
        while not self._over.wait(EVERY_S):
            table = self._store.open()
            if table is not None and (table.version != known or time.monotonic() - when > AGAIN_S):
                known, when, users = table.version, time.monotonic(), not users
                self._look(None if users else known)

    def _look(self, version: int | None) -> None:
        """At a version as this program sees it, or at the newest as users of lancedb do."""
        self._to.samples += 1
        try:
            now = as_users_see_it(self._store) if version is None else picture(self._store, version, vectors=False)
        except Exception as error:
            self._to.half_seen.append(f"version {version} cannot be read: {type(error).__name__}: {error}")
            return
        now = now.without(self._poison)
        if version is None:
            found = half_seen(now, *self._revisions, rows_only=True)
        else:
            self._seen[version] = now
            found = (torn if self._at_once else half_seen)(now, *self._revisions)
        self._to.half_seen += [f"version {version or 'newest'}: {what}" for what in found]
