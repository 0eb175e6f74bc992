"""What the faults happen to: a body of documents in two revisions, and tables on the way from the first to the second.

Revision B has every kind of change against A: edits, growth and shrinkage, metadata alone, deletions, a file gone, one new, moves, documents that become
unusable, some that heal, others that stay in quarantine, ids that are in two files.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import words
from driver import Child, Errand
from picture import COLUMNS, Picture, picture

from latent.config import load
from latent.ingest.resolve import store_of
from latent.store import Store

Document = dict[str, object]
Revision = Mapping[str, list[Document]]
NAN = "w13"  # the small model has no vector for it


def document(name: str, edition: int = 0, length: int = 0) -> Document:
    """A document of some words; another edition has another word amid, or with another length another text."""
    chance = random.Random(f"{name} {length}")
    numbers = [chance.choice(range(100, 160)) for _ in range(length or chance.randint(3, 60))]
    if edition:
        numbers[len(numbers) // 2] = 200 + edition
    return {"id": name, "text": words(*numbers), "n": chance.randint(0, 3)}


def revision_a() -> Revision:
    return {
        "a.jsonl": [document(f"a{i}") for i in range(12)] + [document("empty") | {"text": ""}, document("healing") | {"text": " "}],
        "b.parquet": [document(f"b{i}") for i in range(9)] + [document("null") | {"text": None}],
        "c.jsonl.gz": [document(f"c{i}") for i in range(7)]
        + [document("nan") | {"text": f"w1 {NAN}"}, document("nan-healing") | {"text": NAN}],
        "d.jsonl": [document(f"d{i}") for i in range(5)],
        "twin1.jsonl": [document("twin"), document("t1")],
        "twin2.jsonl": [document("twin", 1), document("t2")],
        "unchanged.jsonl": [document(f"u{i}") for i in range(4)],
    }


def revision_b() -> Revision:
    was = {row["id"]: row for rows in revision_a().values() for row in rows}
    edits = {
        "a1": document("a1", 1),
        "a2": document("a2") | {"text": ""},
        "a3": document("a3", length=70),
        "a4": document("a4", length=3),
        "a5": was["a5"] | {"n": 7},
        "healing": document("healing"),
        "b2": document("b2", 1),
        "b4": document("b4") | {"text": None},
        "b7": was["b7"] | {"n": 8},
        "c3": was["c3"] | {"text": f"{was['c3']['text']} {NAN}"},
        "c5": document("c5", 2, length=50),
        "nan-healing": document("nan-healing"),
    }
    gone = {"a7", "a8", "b0", "c1", "twin"}
    then = {path: [edits.get(row["id"], row) for row in rows if row["id"] not in gone] for path, rows in revision_a().items()}
    then["a.jsonl"] += [document("a12"), document("c6", 1)]  # c6 is now in two files: the first by path is kept
    then["b.parquet"] = [document("b9"), *then["b.parquet"], document("b10", length=64)]
    then["c.jsonl.gz"] += [was["a8"]]  # moved
    then["e.jsonl"] = [document(f"e{i}") for i in range(8)] + [was["d0"], was["d1"] | {"n": 9}]
    then["twin2.jsonl"] = revision_a()["twin2.jsonl"]
    del then["d.jsonl"]
    return then


def write(revision: Revision, folder: Path) -> None:
    """The files of a revision."""
    folder.mkdir(parents=True)
    for path, rows in revision.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if path.endswith(".parquet"):
            kinds = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())])
            pq.write_table(pa.Table.from_pylist(rows, schema=kinds), folder / path, row_group_size=4)
        else:
            (folder / path).write_bytes(gzip.compress(lines, mtime=0) if path.endswith(".gz") else lines)


def as_meant(revision: Revision) -> set[tuple[object, ...]]:
    """What a table of this revision holds: document, text, metadata, file. The first of an id by path, if a vector comes of it."""
    first: dict[object, tuple[object, ...]] = {}
    for path in sorted(revision):
        for row in revision[path]:
            first.setdefault(row["id"], (row["id"], row["text"], row["n"], path))
    return {known for known in first.values() if (text := str(known[1] or "").split()) and NAN not in text}


def as_told(seen: Picture) -> set[tuple[object, ...]]:
    """The same, put together from its rows."""
    at = [COLUMNS.index(name) for name in ("text", "n", "source_file")]
    return {(d, " ".join(str(row[at[0]]) for row in rows), rows[0][at[1]], rows[0][at[2]]) for d, rows in seen.rows.items()}


@dataclass(frozen=True)
class Ground:
    """A folder with both revisions, the table that a run from scratch makes of each, and tables in the states that faults begin from."""

    folder: Path
    model: Path
    successor: Path  # a model that a table is migrated to

    def __post_init__(self) -> None:
        write(revision_a(), self.folder / "A")
        write(revision_b(), self.folder / "B")
        for path in ("unchanged.jsonl", "twin2.jsonl"):
            shutil.copy2(self.folder / "A" / path, self.folder / "B" / path)  # its time too
        for name, source, model in (
            ("clean-A", "A", self.model),
            ("clean-B", "B", self.model),
            ("clean-migrated", "B", self.successor),
        ):
            self._new(name, model)
            self.put(source, self.folder / name)
            self._run(name)
        self._new("empty", self.model)
        self.put("B", self.folder / "empty")
        shutil.copytree(self.folder / "clean-A", self.folder / "edited")
        self.put("B", self.folder / "edited")
        shutil.copytree(self.folder / "edited", self.folder / "half-way")
        for point, nth in (("fragment written", 3), ("commit checked", 2)):  # leaves orphans of both kinds
            self._run("half-way", point=point, nth=nth)
        (self.folder / "made").touch()
        for revision, seen in ((revision_a(), self.before), (revision_b(), self.after)):
            if (told := as_told(seen)) != (meant := as_meant(revision)):
                raise RuntimeError(f"a run from scratch made {sorted(told ^ meant)}")
        shutil.copytree(self.folder / "half-way", self.folder / "done")
        self._run("done")

    def _new(self, name: str, model: Path) -> None:
        (self.folder / name).mkdir(parents=True)
        (self.folder / name / "config.toml").write_text(
            f'[source]\nuri = "src/**"\nmetadata = ["n"]\n[chunk]\ntokens = 16\noverlap = 0\n'
            f"[model]\nname = {json.dumps(str(model))}\n"
        )

    def _run(self, name: str, *, point: str = "", nth: int = 1) -> None:
        place = self.folder / name
        code = Child(Errand(place / "config.toml", log=self.folder / f"{name}.log", point=point, nth=nth)).wait()
        (self.folder / f"{name}.mark").rename(self.folder / f"{name} {point or 'passes'}.mark")
        if code != (-9 if point else 0):
            raise RuntimeError(f"{name}: a run to prepare it ended with {code}: {(self.folder / f'{name}.log').read_text()}")

    def put(self, source: str, place: Path) -> None:
        """Let a place have the files of this revision, with their times."""
        shutil.rmtree(place / "src", ignore_errors=True)
        shutil.copytree(self.folder / source, place / "src")

    def copy(self, state: str, name: str) -> Path:
        """A place of its own in this state."""
        return Path(shutil.copytree(self.folder / state, self.folder / "rounds" / name))

    @property
    def made_at(self) -> float:
        """When all versions of the tables were there that faults may begin from, in seconds since 1970."""
        return (self.folder / "made").stat().st_mtime

    @cached_property
    def before(self) -> Picture:
        return picture(store(self.folder / "clean-A"))

    @cached_property
    def after(self) -> Picture:
        return picture(store(self.folder / "clean-B"))

    @cached_property
    def migrated(self) -> Picture:
        return picture(store(self.folder / "clean-migrated"))

    @cached_property
    def version_of_a(self) -> int:
        """The version of A in tables that went from A to B."""
        return int(store(self.folder / "clean-A").opened().version)


def store(place: Path) -> Store:
    return store_of(load(place / "config.toml"))
