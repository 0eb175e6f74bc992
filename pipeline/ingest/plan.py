"""Source state minus table state: what is to be done. Pure and exact.

Every document of an opened file has been sighted (id, hash, length, no text) before the first is encoded. So duplicates, moves between
files and deletions are known beforehand, and the result does not hang on the order in which shards finish. Cost: about 100 bytes
of memory a document, and reading opened files twice, some 15,000 documents a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent.schemas import FILES, QUARANTINE
from latent.types import DocumentCounts, FileSlice, FileState, Shard

SHARD_DOCUMENTS = 2048
SHARD_CHARS = (1 << 16, 1 << 20)  # about 15k to 250k tokens: 4–70 s on one core; large in large runs, to keep fragments few
SHARDS_A_WORKER, LEAST_SHARDS = 16, 64  # aimed at, so that workers end together
ON_GPU = 32  # times as much in a shard
DUPLICATE = "duplicate id"  # how the reason of a shadowed document begins
NEAR_DUPLICATE = "near-duplicate"  # and of one that says what others say


@dataclass(frozen=True)
class FileChanges:
    """The listing against what is recorded."""

    changed: tuple[int, ...]  # indices into the listing: new, changed, or read with other settings
    unchanged: tuple[str, ...]  # paths; not opened
    left: tuple[str, ...] = ()  # paths that a backfill under way is to do; not opened


@dataclass(frozen=True)
class Plan:
    """Shards to do, what goes, and how every document of the source is counted."""

    shards: tuple[Shard, ...]
    deleted: pa.Array  # doc_ids whose rows go
    lost: int  # of them those that readers miss: all but near-duplicates of what stays
    quarantined: pa.Table  # QUARANTINE rows as they stand after the run, encoding failures aside
    files: pa.Table  # FILES rows as they stand after the run
    documents: DocumentCounts
    moved: int
    chars: int  # of the documents to do
    left: Mapping[str, int]  # path → documents to do that the sample leaves out

    def __bool__(self) -> bool:
        """Whether there are rows to write or to delete."""
        return bool(self.shards) or len(self.deleted) > 0


def compare_files(
    listing: Sequence[FileState], recorded: pa.Table, reading: str, reopened: frozenset[str], backfilled: int | None = None
) -> FileChanges:
    """Which files must be opened. `reading` names the settings they are read with; those in `reopened` are opened whatever their state.

    Files not recorded and older than `backfilled` (ns since 1970) are left to the backfill that began then.
    """
    known = {
        path: (size, modified, how)
        for path, size, modified, how in zip(
            *(recorded[c].to_pylist() for c in ("path", "size", "modified", "reading")), strict=True
        )
    }
    changed = [i for i, f in enumerate(listing) if known.get(f.path) != (f.size, f.modified, reading) or f.path in reopened]
    others = frozenset(f.path for f in listing if backfilled is not None and f.modified < backfilled)
    left = others - known.keys() - reopened
    changed = [i for i in changed if listing[i].path not in left]
    opened = {listing[i].path for i in changed}
    return FileChanges(tuple(changed), tuple(f.path for f in listing if f.path not in opened | left), tuple(sorted(left)))


def files_with_duplicate_ids(quarantine: pa.Table) -> frozenset[str]:
    """Files with a document shadowed by another of the same id: to be opened again whenever anything changes, since the other may be gone."""
    shadowed = pc.starts_with(quarantine["reason"], DUPLICATE)
    return frozenset(quarantine.filter(shadowed)["source_file"].to_pylist())


def files_with_conflicting_ids(scanned: pa.Table, held: pa.Table, quarantine: pa.Table, unchanged: Iterable[str]) -> frozenset[str]:
    """Unopened files with a document, stored or quarantined, that an opened file claims too: they must be opened to tell who wins."""
    rivals = pa.concat_tables(
        [quarantine.select(["doc_id", "source_file"]), held.select(["doc_id", "source_file"])], promote_options="permissive"
    )
    rivals = rivals.filter(pc.is_in(rivals["source_file"], value_set=pa.array(sorted(unchanged), pa.string())))
    claimed = scanned["doc_id"].drop_null().combine_chunks()
    return frozenset(rivals.filter(pc.is_in(rivals["doc_id"], value_set=claimed))["source_file"].to_pylist())


def documents_to_skip(spared: pa.Table, scanned: pa.Table, held: pa.Table, changed: Iterable[str]) -> dict[tuple[str, str], str]:
    """Documents that need not be embedded, by id and hash, and why: all that stand for them are in the source as they were when that was found.

    `spared`: REDUNDANT_DOCUMENTS. `changed`: files that are opened or gone: what they held is there only as far as it was sighted.
    """
    kept = pa.array(sorted({name for names in spared["kept_ids"].to_pylist() for name in names}), pa.string())
    stored = held.filter(pc.is_in(held["doc_id"], value_set=kept))
    stored = stored.filter(pc.invert(pc.is_in(stored["source_file"], value_set=pa.array(sorted(changed), pa.string()))))
    seen = scanned.filter(pc.and_(pc.is_in(scanned["doc_id"], value_set=kept), pc.is_null(scanned["problem"])))
    there = {pair for rows in (stored, seen) for pair in zip(rows["doc_id"].to_pylist(), rows["doc_hash"].to_pylist(), strict=True)}
    return {
        (
            row["doc_id"],
            row["doc_hash"],
        ): f"{NEAR_DUPLICATE}: {row['similarity']:.3f} or more to {', '.join(sorted(set(row['kept_ids'])))}"
        for row in spared.to_pylist()
        if there.issuperset(zip(row["kept_ids"], row["kept_hashes"], strict=True))
    }


def files_to_rescan(left: Mapping[tuple[str, str], str], held: pa.Table, quarantine: pa.Table) -> frozenset[str]:
    """Files with a document that is held and now left out, or was left out and now is not: to be opened."""
    pairs = zip(*(held[name].to_pylist() for name in ("doc_id", "doc_hash", "source_file")), strict=True) if left else ()
    out = {file for doc_id, doc_hash, file in pairs if (doc_id, doc_hash) in left}
    was = quarantine.filter(pc.starts_with(quarantine["reason"], NEAR_DUPLICATE)).to_pylist()
    return frozenset(out | {row["source_file"] for row in was if (row["doc_id"], row["doc_hash"]) not in left})


@dataclass(frozen=True)
class ScanResult:
    """What was seen, for `make_plan`."""

    listing: Sequence[FileState]
    changes: FileChanges
    scanned: pa.Table  # SCANNED_DOCUMENTS of all opened files
    refused: dict[str, str]  # path → reason, of files that could not be read
    reading: str
    held: pa.Table  # STORED_DOCUMENTS
    quarantine: pa.Table  # QUARANTINE as recorded
    recorded: pa.Table  # FILES as recorded
    retry: bool = False  # take quarantined documents again
    share: float = 1.0  # of the documents to do: fewer are a sample
    documents_to_skip: Mapping[tuple[str, str], str] = field(
        default_factory=dict
    )  # documents that need not be embedded, by id and hash: why


def make_plan(scan: ScanResult, run_id: str, workers: int = 1, *, on_gpu: bool = False) -> Plan:
    """The plan of a survey, in shards for so many workers.

    Of documents with one id the first wins, by path and then row; the others are quarantined. A document that moved is done
    again under its new file, its vectors reused. A refused file keeps its documents; so does a file in which a row could not be told
    from another, as far as documents are missing from it.
    """
    seen = _without_left_out(_in_order(scan), scan.documents_to_skip)
    first = _first_of_id(seen["doc_id"])
    claims = seen.filter(pc.and_(first, pc.is_null(seen["problem"])))
    failures = _failures(scan)
    failed = pa.array([_key(row) in failures for row in claims.to_pylist()] if failures else [False] * claims.num_rows, pa.bool_())
    carried = [failures[_key(row)] | {"row": row["row"]} for row in claims.filter(failed).to_pylist()]
    claims = claims.filter(pc.invert(failed))

    at = pc.index_in(claims["doc_id"], value_set=scan.held["doc_id"].combine_chunks())  # null: the table does not hold it
    held = pc.is_valid(at)
    same_hash = pc.fill_null(pc.equal(claims["doc_hash"], scan.held["doc_hash"].take(at)), fill_value=False)
    same_file = pc.fill_null(pc.equal(claims["source_file"].cast(pa.string()), scan.held["source_file"].take(at)), fill_value=False)
    claims = claims.append_column("held", held).append_column("changed", pc.and_(held, pc.invert(same_hash)))
    todo = claims.filter(pc.invert(pc.and_(same_hash, same_file)))
    drawn = _drawn(todo, scan.share)
    left, todo = todo.filter(pc.invert(drawn)), todo.filter(drawn)

    quarantined = _quarantined(scan, seen, first, carried, run_id)
    deleted = _deleted(scan, seen, claims["doc_id"])
    in_quarantine = pc.is_in(deleted, value_set=quarantined["doc_id"].combine_chunks())
    return Plan(
        shards=tuple(_shards(todo, scan.listing, max(LEAST_SHARDS, SHARDS_A_WORKER * workers), ON_GPU if on_gpu else 1)),
        deleted=deleted,
        lost=len(deleted) - _count(pc.is_in(deleted, value_set=_spared(quarantined))),
        quarantined=quarantined,
        files=_files(scan, run_id),
        documents=DocumentCounts(
            added=_count(pc.invert(todo["held"])),
            changed=_count(todo["changed"]),
            unchanged=scan.held.num_rows - len(deleted) - _count(claims["changed"]),
            deleted=_count(pc.invert(in_quarantine)),
            quarantined=quarantined.num_rows,
        ),
        moved=_count(pc.and_(same_hash, pc.invert(same_file))),
        chars=pc.sum(todo["chars"]).as_py() or 0,
        left=Counter(left["source_file"].cast(pa.string()).to_pylist()),
    )


def _spared(quarantined: pa.Table) -> pa.Array:
    """Ids of the documents that are left out because others say the same."""
    return quarantined.filter(pc.starts_with(quarantined["reason"], NEAR_DUPLICATE))["doc_id"].combine_chunks()


def _drawn(todo: pa.Table, share: float) -> pa.Array:
    """A sample by content: the same documents each time, whatever else is in the source."""
    if share >= 1:
        return pa.array([True] * todo.num_rows, pa.bool_())
    return pc.less(pc.utf8_slice_codeunits(todo["doc_hash"], 0, 8), f"{int(share * 2**32):08x}")


def _in_order(scan: ScanResult) -> pa.Table:
    """The sightings by path and row, with their path."""
    seen = scan.scanned
    files, rows = seen["file"].to_numpy(), seen["row"].to_numpy()
    if np.any((np.diff(files) < 0) | ((np.diff(files) == 0) & (np.diff(rows) < 0))):
        seen = seen.take(np.lexsort((rows, files)))
    paths = pa.array([f.path for f in scan.listing], pa.string())
    return seen.append_column("source_file", pa.DictionaryArray.from_arrays(seen["file"].combine_chunks(), paths))


def _without_left_out(seen: pa.Table, documents_to_skip: Mapping[tuple[str, str], str]) -> pa.Table:
    """The sightings, with a problem where a document need not be embedded."""
    if not documents_to_skip:
        return seen
    pairs = zip(seen["doc_id"].to_pylist(), seen["doc_hash"].to_pylist(), strict=True)
    reasons = pa.array([documents_to_skip.get((doc_id, doc_hash)) for doc_id, doc_hash in pairs], pa.string())
    return seen.set_column(seen.column_names.index("problem"), "problem", pc.coalesce(seen["problem"], reasons))


def _first_of_id(doc_ids: pa.ChunkedArray) -> pa.Array:
    """True where an id stands for the first time."""
    codes = doc_ids.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    values, firsts = np.unique(codes, return_index=True)
    first = np.zeros(len(codes), bool)
    first[firsts[values >= 0]] = True
    return pa.array(first)


def _failures(scan: ScanResult) -> dict[tuple[str, str, str], dict[str, object]]:
    """Quarantine rows of documents whose encoding failed, by id, file and content: not to be tried again."""
    if scan.retry:
        return {}
    reasons = scan.quarantine["reason"]
    found_anew = pc.or_(pc.starts_with(reasons, DUPLICATE), pc.starts_with(reasons, NEAR_DUPLICATE))
    failed = scan.quarantine.filter(pc.invert(found_anew))
    return {_key(row): row for row in failed.to_pylist()}


def _key(row: dict[str, object]) -> tuple[str, str, str]:
    return str(row["doc_id"]), str(row["source_file"]), str(row["doc_hash"])


def _opened(scan: ScanResult) -> list[str]:
    """Paths of the files that were opened and could be read."""
    return [scan.listing[i].path for i in scan.changes.changed if scan.listing[i].path not in scan.refused]


def _deleted(scan: ScanResult, seen: pa.Table, claimed: pa.ChunkedArray) -> pa.Array:
    """Ids whose rows go: held under a file that was opened or is gone, and claimed by no document."""
    files_with_unidentified_rows = set(seen.filter(pc.is_null(seen["doc_id"]))["source_file"].to_pylist())
    listed = {f.path for f in scan.listing}
    gone = [p for p in pc.unique(scan.held["source_file"]).to_pylist() if p not in listed]
    deletable_files = pa.array([p for p in _opened(scan) if p not in files_with_unidentified_rows] + gone, pa.string())
    answerable_rows = scan.held.filter(pc.is_in(scan.held["source_file"], value_set=deletable_files))
    claimed = claimed.filter(pc.is_in(claimed, value_set=answerable_rows["doc_id"].combine_chunks()))
    unclaimed = pc.invert(pc.is_in(answerable_rows["doc_id"], value_set=claimed.combine_chunks()))
    return answerable_rows.filter(unclaimed)["doc_id"].combine_chunks()


def _quarantined(scan: ScanResult, seen: pa.Table, first: pa.Array, carried: list[dict[str, object]], run_id: str) -> pa.Table:
    """Quarantine as it stands after the run: what unopened files had, what failed before, and what was found in opened files."""
    opened, earlier = set(_opened(scan)), scan.quarantine
    unopened = pa.array([f.path for f in scan.listing if f.path not in opened], pa.string())
    stays = pc.and_(pc.is_in(earlier["source_file"], value_set=unopened), pc.greater_equal(earlier["row"], 0))
    bad = seen.filter(pc.or_(pc.is_valid(seen["problem"]), pc.and_(pc.invert(first), pc.is_valid(seen["doc_id"]))))
    bad = bad.set_column(bad.column_names.index("source_file"), "source_file", bad["source_file"].cast(pa.string()))
    winners = seen.filter(pc.and_(first, pc.is_in(seen["doc_id"], value_set=bad["doc_id"].combine_chunks())))
    at = pc.index_in(bad["doc_id"], value_set=winners["doc_id"].combine_chunks())
    winner = winners["source_file"].cast(pa.string()).take(at)
    reason = pc.coalesce(bad["problem"], pc.binary_join_element_wise(f"{DUPLICATE}: the document of", winner, "is kept", " "))
    found = pa.table(
        [
            bad["doc_id"],
            bad["source_file"],
            bad["row"],
            bad["doc_hash"],
            reason,
            pa.nulls(bad.num_rows, pa.string()),
            pa.array([run_id] * bad.num_rows, pa.string()),
        ],
        schema=QUARANTINE,
    )
    refused = [
        {"source_file": path, "row": -1, "reason": f"unreadable file: {reason}", "run_id": run_id}
        for path, reason in sorted(scan.refused.items())
    ]
    return pa.concat_tables([earlier.filter(stays), found, pa.Table.from_pylist([*carried, *refused], schema=QUARANTINE)])


def _files(scan: ScanResult, run_id: str) -> pa.Table:
    """File states as they stand after the run. A refused file keeps its old state, so that it is opened again."""
    opened = set(_opened(scan))
    listed = {f.path for f in scan.listing}
    kept = pa.array([path in listed and path not in opened for path in scan.recorded["path"].to_pylist()], pa.bool_())
    counts = np.bincount(scan.scanned["file"].to_numpy(), minlength=len(scan.listing))
    rows = [
        {
            "path": f.path,
            "size": f.size,
            "modified": f.modified,
            "reading": scan.reading,
            "documents": int(counts[i]),
            "run_id": run_id,
        }
        for i, f in enumerate(scan.listing)
        if f.path in opened
    ]
    return pa.concat_tables([scan.recorded.filter(kept), pa.Table.from_pylist(rows, schema=FILES)])


def _shards(todo: pa.Table, listing: Sequence[FileState], aim: int, times: int) -> Iterator[Shard]:
    """Documents to do, cut into shards in the order of files and rows."""
    files = todo["file"].to_numpy()
    documents = todo.select(["row", "doc_id", "doc_hash", "held", "changed"])
    for start, stop in pairwise(_cuts(todo["chars"].to_numpy(), aim, times)):
        edges = [start, *(start + 1 + np.flatnonzero(np.diff(files[start:stop]))), stop]
        yield Shard(tuple(FileSlice(listing[files[a]], documents[a:b].combine_chunks()) for a, b in pairwise(edges)))


def _cuts(chars: np.ndarray, aim: int, times: int) -> list[int]:
    """Where shards begin, and the end: each of at most SHARD_DOCUMENTS and of a share of all characters, but never empty."""
    least, most = SHARD_CHARS
    room = min(max(int(chars.sum()) // aim, least), most * times)
    cuts, filled = [0], 0
    for i, length in enumerate(chars):
        if i > cuts[-1] and (filled + length > room or i - cuts[-1] >= SHARD_DOCUMENTS * times):
            cuts.append(i)
            filled = 0
        filled += int(length)
    return [*cuts, len(chars)] if len(chars) else []


def _count(mask: pa.Array) -> int:
    return pc.sum(mask).as_py() or 0
