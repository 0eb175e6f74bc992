"""A copy of the table in another place, made while runs write. It opens as a table of its own there.

Lance never changes a file once it is written, but for tags. A version is there when its manifest is. So a copy is whole when the manifests are listed first, and
written last: those of the main table before those of the tables beside it when listing, behind them when writing. A reader of the copy, and a copy that is cut
short, see what was there before. What the copy has already is not copied again; what the table has dropped is removed from it.
"""

from __future__ import annotations

import logging
import re
import tempfile
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lance.file import LanceFileSession

from latent.errors import ForeignTable, StoreError
from latent.store.failures import lance_errors
from latent.store.ownership import DERIVED, SIDES, Derived, Side, Store, identity_of, mark_of

log = logging.getLogger("latent")
MANIFESTS, TAGS = "_versions/", "_refs/"
NEWEST_FIRST = 20  # digits of a manifest's name that counts down from the largest number
PASSES = 3  # where `maintain` removes files meanwhile
AT_ONCE = 8  # files


@dataclass(frozen=True)
class Backup:
    """What was copied."""

    table_version: int  # the newest in the copy
    tables: list[str]
    files_copied: int
    files_removed: int


class _Vanished(Exception):
    """A file of an old version was removed before it was copied."""


def back_up(store: Store, to: Store) -> Backup:
    """Make the other place hold what this one holds now. Raises TableMissing, StoreError; ForeignTable where something else is there."""
    store.opened()
    owner = identity_of(store)
    sides = [
        side
        for side in (None, *SIDES, *DERIVED)
        if (table := store.open(side, any_maker=True)) is not None and mark_of(table) == owner
    ]
    _check_target(store, to, owner, sides)
    _check_apart(store, to)
    for _ in range(PASSES):
        try:
            return _copied(store, to, sides)
        except _Vanished as gone:
            log.info("%s was removed meanwhile: the copy is made again", gone)
    raise StoreError(
        f"{store.label}: old versions were dropped while they were copied, {PASSES} times: run it again when no 'latent maintain' is at work"
    )


def _check_target(store: Store, to: Store, owner: str | None, sides: Iterable[Side | Derived | None]) -> None:
    for side in sides:
        table = to.open(side, any_maker=True)
        if table is not None and mark_of(table) != owner:
            raise ForeignTable(
                f"{to.table_label(side)}: expected nothing, or an earlier copy of {store.label}, got another table. Name another place"
            )
    copy = to.open()
    if copy is None:
        return
    if copy.version > store.opened().version or not _same_manifest(store, to, int(copy.version)):
        raise ForeignTable(
            f"{to.label}: expected an earlier copy of {store.label}, got one that was written to, or is of a table that was made anew since. "
            "Name another place"
        )


def _check_apart(store: Store, to: Store) -> None:
    """By a file that is written there and looked for here: one place may have many names."""
    here, there, name = _Files(store, None), _Files(to, None), f"probe-{uuid.uuid4().hex}"
    with tempfile.NamedTemporaryFile() as probe:
        there.upload(Path(probe.name), name)
    same = name in here.all()
    there.remove(name)
    if same:
        raise StoreError(f"{store.label}: expected another place for the copy, got its own. Name another place")


def _same_manifest(store: Store, to: Store, version: int) -> bool:
    """Whether both have the same version of this number; True where it is dropped here since."""
    name = next((each for each in _Files(store, None).manifests() if _version(each) == version), None)
    if name is None:
        return True
    with tempfile.TemporaryDirectory() as folder:
        for place, copy in ((store, "here"), (to, "there")):
            _Files(place, None).download(name, Path(folder, copy))
        return Path(folder, "here").read_bytes() == Path(folder, "there").read_bytes()


def _copied(store: Store, to: Store, sides: list[Side | Derived | None]) -> Backup:
    here, there = ({side: _Files(place, side) for side in sides} for place in (store, to))
    manifests = {side: here[side].manifests() for side in sides}  # the main table's first: its versions name those of the others
    rest = {side: here[side].others() for side in sides}
    present = {side: there[side].all() for side in sides}
    copied = 0
    for side in sides:
        missing = [name for name in rest[side] if name not in present[side] or name.startswith(TAGS)]
        copied += _copy(here[side], there[side], missing)
    for side in reversed(sides):
        for name in manifests[side]:
            if name not in present[side]:
                copied += _copy(here[side], there[side], [name])
    removed = 0
    for side in reversed(sides):
        gone = present[side] - {*manifests[side], *rest[side]}
        for name in sorted(gone, key=lambda each: not each.startswith(MANIFESTS)):
            there[side].remove(name)
        removed += len(gone)
    return Backup(_version(manifests[None][-1]), [store.table_name(side) for side in sides], copied, removed)


def _copy(here: _Files, there: _Files, names: list[str]) -> int:
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="copy") as pool:
        return sum(pool.map(partial(_copy_file, here, there), names))


def _copy_file(here: _Files, there: _Files, name: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        here.download(name, file)
        there.upload(file, name)
    return 1


class _Files:
    """The files of one table, by their names within it."""

    def __init__(self, place: Store, side: Side | Derived | None) -> None:
        self._label, self._path, self._options = place.table_label(side), place.path(side), place.options
        if "://" not in place.uri:
            Path(self._path).mkdir(parents=True, exist_ok=True)
        with lance_errors(f"{self._label} cannot be reached"):
            self._session = LanceFileSession(self._path, storage_options=self._options)

    def all(self) -> set[str]:
        with lance_errors(f"{self._label}: its files cannot be listed"):
            return set(self._session.list())

    def manifests(self) -> list[str]:
        """Oldest version first. Detached ones, which no reader sees and which last a moment, are no part of a copy."""
        with lance_errors(f"{self._label}: its versions cannot be listed"):
            names = self._session.list(MANIFESTS.rstrip("/"))
        return sorted((name for name in names if re.fullmatch(r"\d+\.manifest", name.rpartition("/")[2])), key=_version)

    def others(self) -> list[str]:
        return sorted(name for name in self.all() if not name.startswith(MANIFESTS))

    def download(self, name: str, file: Path) -> None:
        """Raises _Vanished where it is gone."""
        try:
            self._session.download_file(name, file)
        except OSError as error:
            if not self._session.contains(name):
                raise _Vanished(name) from None
            raise StoreError(f"{self._label}: {name} cannot be read: {error}") from error

    def upload(self, file: Path, name: str) -> None:
        with lance_errors(f"{self._label}: {name} cannot be written"):
            self._session.upload_file(file, name)

    def remove(self, name: str) -> None:
        with lance_errors(f"{self._label}: {name} cannot be removed"):
            self._session.delete_file(name)


def _version(manifest: str) -> int:
    """The version that a manifest's name says."""
    digits = manifest.rpartition("/")[2].removesuffix(".manifest")
    return (1 << 64) - 1 - int(digits) if len(digits) == NEWEST_FIRST else int(digits)
