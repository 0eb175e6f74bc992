"""What a table shows at one version, and what must not be seen in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa

from latent.ingest.plan import DUPLICATE
from latent.store import Store
from latent.store.dataset import named, read_side

COLUMNS = ["chunk_id", "chunk_index", "text", "n", "source_file", "char_start", "char_end", "chunk_hash", "doc_hash"]
WITHIN = 1e-5  # how far a number of a vector may be from the clean run's


@dataclass(frozen=True)
class Picture:
    """A table at one version, run ids and times left out."""

    rows: dict[str, list[tuple[object, ...]]] = field(default_factory=dict)  # document → COLUMNS of its rows, in order
    quarantine: set[tuple[object, ...]] = field(default_factory=set)  # document, file, reason
    files: dict[str, tuple[object, ...]] = field(default_factory=dict)  # path → size, time, reading, documents
    vectors: dict[str, np.ndarray] = field(default_factory=dict)  # chunk_id → vector

    @property
    def failed(self) -> dict[object, object]:
        """Documents that are in quarantine and so not in the table, with the reason."""
        return {name: reason for name, _, reason in self.quarantine if not str(reason).startswith(DUPLICATE)}

    def without(self, name: str) -> Picture:
        return replace(
            self,
            rows={d: rows for d, rows in self.rows.items() if d != name},
            quarantine={q for q in self.quarantine if q[0] != name},
        )

    def documents_of(self, path: str) -> set[object]:
        """Those that the table or the quarantine has of this file."""
        return {d for d, rows in self.rows.items() if rows[0][COLUMNS.index("source_file")] == path} | {
            name for name, source_file, _ in self.quarantine if source_file == path
        }


NOTHING = Picture()


def picture(place: Store, version: int | None = None, *, vectors: bool = True) -> Picture:
    """The table, its file states and its quarantine at one version, the newest by default."""
    table = place.opened(version)
    names = named(table)
    files = read_side(place, "files", names).drop_columns("run_id").to_pylist()
    quarantine = read_side(place, "quarantine", names).to_pylist()
    rows = table.to_table(columns=["doc_id", *COLUMNS, *(["vector"] if vectors else [])])
    return Picture(
        _by_document(rows),
        {(q["doc_id"], q["source_file"], q["reason"]) for q in quarantine},
        {f.pop("path"): tuple(f.values()) for f in files},
        dict(zip(rows["chunk_id"].to_pylist(), np.array(rows["vector"].to_pylist(), np.float32), strict=True)) if vectors else {},
    )


def as_users_see_it(place: Store) -> Picture:
    """The rows, through plain lancedb."""
    return Picture(_by_document(lancedb.connect(place.uri).open_table(place.name).to_arrow()))


def _by_document(rows: pa.Table) -> dict[str, list[tuple[object, ...]]]:
    found = defaultdict(list)
    for name, *values in zip(*(rows[c].to_pylist() for c in ("doc_id", *COLUMNS)), strict=True):
        found[name].append(tuple(values))
    return {name: sorted(values, key=lambda row: row[COLUMNS.index("chunk_index")]) for name, values in found.items()}


# --- what a reader must never see -----------------------------------------------------------------------------------


def half_seen(now: Picture, before: Picture, after: Picture, *, rows_only: bool = False) -> list[str]:
    """Documents that are neither as before nor as after, each with what is wrong. Empty where all is well."""
    found = [
        f"{d}: rows of neither revision: {rows}"
        for d, rows in now.rows.items()
        if rows not in (before.rows.get(d), after.rows.get(d))
    ]
    found += [f"{d}: missing" for d in before.rows.keys() & after.rows.keys() - now.rows.keys()]
    return found if rows_only else found + list(_half_recorded(now, before, after))


def _half_recorded(now: Picture, before: Picture, after: Picture) -> Iterator[str]:
    """Where rows, quarantine and file states are not of one instant."""
    for name in before.failed.keys() | after.failed.keys() | now.failed.keys():
        states = [(name in p.rows, p.failed.get(name)) for p in (now, before, after)]
        if states[0] not in states[1:]:
            yield f"{name}: in the table {states[0][0]}, in quarantine for {states[0][1]!r}"
    if strange := now.quarantine - before.quarantine - after.quarantine:
        yield f"in quarantine without reason: {strange}"
    for path, state in now.files.items():
        if state not in (before.files.get(path), after.files.get(path)):
            yield f"{path}: recorded as {state}"
        elif state != before.files.get(path) and (odd := now.documents_of(path) ^ after.documents_of(path)):
            yield f"{path}: recorded, but not done: {odd}"
        elif state != before.files.get(path):
            stale = [d for d in after.documents_of(path) & now.rows.keys() if now.rows[d] != after.rows.get(d)]
            if stale:
                yield f"{path}: recorded, but of before: {stale}"


def reached(now: Picture, before: Picture, after: Picture) -> set[str]:
    """Documents that are as after the change and not as before it."""
    return {d for d in before.rows.keys() | after.rows.keys() if now.rows.get(d) == after.rows.get(d) != before.rows.get(d)}


def torn(now: Picture, before: Picture, after: Picture) -> list[str]:
    """Where the change is one commit: anything but the whole of before or the whole of after."""
    same = any((now.rows, now.quarantine, now.files) == (p.rows, p.quarantine, p.files) for p in (before, after))
    return [] if same else ["a table between two states"]


# --- what a table must be in the end --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A table against the clean run's."""

    lost: list[str]
    doubled: list[str]
    wrong: list[str]


def difference(now: Picture, clean: Picture) -> Difference:
    have = [str(row[0]) for rows in now.rows.values() for row in rows]
    want = [str(row[0]) for rows in clean.rows.values() for row in rows]
    doubled = sorted(name for name, count in Counter(have).items() if count > 1)
    lost = sorted(set(want) - set(have)) + [f"quarantined {q}" for q in sorted(clean.quarantine - now.quarantine, key=str)]
    wrong = [f"{d}: {now.rows[d]}" for d in now.rows if now.rows[d] != clean.rows.get(d) and not doubled]
    wrong += [f"quarantined {q}" for q in sorted(now.quarantine - clean.quarantine, key=str)]
    wrong += [f"file {path}" for path in now.files.keys() | clean.files.keys() if now.files.get(path) != clean.files.get(path)]
    wrong += [
        f"vector of {c}" for c, v in now.vectors.items() if c in clean.vectors and np.abs(v - clean.vectors[c]).max() > WITHIN
    ]
    return Difference(lost, doubled, wrong)


def unnamed_files(place: Store) -> list[str]:
    """Data files on disk that no version names: found without Lance's own clean-up.

    Deletion files are left out: Lance lists those only once they are older than every version that is kept, so they go with the versions.
    """
    table = place.opened()
    versions = [place.opened(each["version"]) for each in table.versions()]
    known = {Path(file.path).name for v in versions for fragment in v.get_fragments() for file in fragment.data_files()}
    return sorted(path.name for path in Path(place.path(), "data").iterdir() if path.name not in known)
