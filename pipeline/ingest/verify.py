"""Proof that the table is what it should be.

`verify` streams one version of the table once: about 0.2 M rows a second, some 100 bytes of memory a row. Each check names what it
found, so that damage can be told from what was expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import sources as source
from latent import store
from latent.config import Config
from latent.errors import FileUnreadable, PipelineError, SourceError, StoreError
from latent.ingest.canary_check import load_encoder
from latent.ingest.plan import DUPLICATE
from latent.ingest.resolve import ResolvedConfig, follow_migration
from latent.store import State
from latent.types import FileState, Spec, digest

UNIT_WITHIN = {"float32": 1e-4, "float16": 2e-3}  # how far from 1 a stored vector's length may be
SAMPLE = 32  # rows encoded afresh, and looked for in the full-text index
AGREES = 1e-3  # 1 - cosine of a row and its text encoded afresh
SOURCE_FILES = 16  # of which a first batch of documents is read again
SEED = 11
NAMES = ["chunk_id", "doc_id", "chunk_index", "source_file", "doc_hash", "run_id"]


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class _Subject:
    """One version of the table, and what one reading of it found."""

    at: ResolvedConfig
    spec: Spec  # of the table
    table: Any  # at one version
    state: State
    columns: pa.Table  # NAMES
    off_unit: pa.Array  # chunk_ids
    other_text: pa.Array  # chunk_ids


def verify(config: Config) -> list[Check]:
    """All checks of the table, each made even if another fails; those of its rows only where they can be read."""
    at = follow_migration(config)
    spec = store.spec_of(at.store)
    if spec is None:
        at.store.opened()
        raise AssertionError("unreachable")
    agrees = _spec_agrees(at, spec)
    try:
        subject = _read(at, spec)
    except StoreError as error:
        return [agrees, Check("readable", ok=False, detail=str(error))]
    checks: dict[str, Callable[[_Subject], Check]] = {
        "one row a chunk": _one_row_a_chunk,
        "no gaps": _no_gaps,
        "documents whole": _documents_whole,
        "texts": _texts,
        "unit vectors": _unit_vectors,
        "runs exist": _runs_exist,
        "files agree": _files_agree,
        "quarantine apart": _quarantine_apart,
        "one writer": _one_writer,
        "indexes cover": _indexes_cover,
        "sample agrees": _sample_agrees,
        "source agrees": _source_agrees,
    }
    return [agrees, *(_made(name, check, subject) for name, check in checks.items())]


def _made(name: str, check: Callable[[_Subject], Check], subject: _Subject) -> Check:
    try:
        return replace(check(subject), name=name)
    except PipelineError as error:
        return Check(name, ok=False, detail=str(error))


def _spec_agrees(at: ResolvedConfig, spec: Spec) -> Check:
    if replace(spec, model=at.spec.model) != at.spec:
        return Check("spec", ok=False, detail=f"table / config differ: {'; '.join(spec.differences(at.spec))}")
    return Check("spec", ok=True, detail=f"the table and the config agree on {at.spec}")


def _read(at: ResolvedConfig, spec: Spec) -> _Subject:
    """One pass over every column."""
    state = store.load_state(at.store)
    table = at.store.opened(state.version)
    columns, off_unit, other_text = [], [pa.array([], pa.string())], [pa.array([], pa.string())]
    with store.lance_errors(f"{at.store.label} cannot be read"):
        for batch in table.scanner().to_batches():
            columns.append(batch.select(NAMES))
            off_unit.append(batch["chunk_id"].filter(_off_unit(batch["vector"], spec)))
            other_text.append(batch["chunk_id"].filter(pa.array(_other_text(batch), pa.bool_())))
    schema = pa.schema([table.schema.field(name) for name in NAMES])
    rows = pa.Table.from_batches(columns, schema=schema)
    return _Subject(at, spec, table, state, rows, pa.concat_arrays(off_unit), pa.concat_arrays(other_text))


def _off_unit(vectors: pa.FixedSizeListArray, spec: Spec) -> pa.Array:
    values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return pa.array(~(np.abs(np.linalg.norm(values, axis=1) - 1) <= UNIT_WITHIN[spec.vector]))  # NaN is off too


def _other_text(batch: pa.RecordBatch) -> list[bool]:
    """Whether a row's text or id is another than its hash, document and place say."""
    columns = (batch[name].to_pylist() for name in ("chunk_id", "doc_id", "chunk_index", "text", "chunk_hash"))
    rows = zip(*columns, strict=True)
    return [name != f"{document}#{index}" or digest(text.encode()) != known for name, document, index, text, known in rows]


def _one_row_a_chunk(subject: _Subject) -> Check:
    counts = subject.columns.group_by(["doc_id", "chunk_index"]).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))
    return _check(doubled["doc_id"], f"{subject.columns.num_rows} rows", "chunks doubled")


def _no_gaps(subject: _Subject) -> Check:
    spans = subject.columns.group_by("doc_id").aggregate(
        [("chunk_index", "max"), ("chunk_index", "min"), ("chunk_index", "count_distinct")]
    )
    whole = pc.and_(
        pc.equal(spans["chunk_index_min"], 0),
        pc.equal(pc.add(spans["chunk_index_max"], 1), spans["chunk_index_count_distinct"].cast(pa.int32())),
    )
    gaps = spans.filter(pc.invert(whole))["doc_id"]
    return _check(gaps, f"{spans.num_rows} documents", "documents with chunks missing")


def _documents_whole(subject: _Subject) -> Check:
    """All chunks of a document come of one reading of it."""
    ways = ["doc_hash", "source_file", "run_id"]
    kinds = subject.columns.group_by("doc_id").aggregate([(name, "count_distinct") for name in ways])
    mixed = pa.array([max(counts) > 1 for counts in zip(*(kinds[f"{n}_count_distinct"].to_pylist() for n in ways), strict=True)])
    mixed_ids = kinds["doc_id"].filter(mixed.cast(pa.bool_()))
    return _check(mixed_ids, f"{kinds.num_rows} documents, each of one reading", "documents half changed")


def _texts(subject: _Subject) -> Check:
    return _check(subject.other_text, f"{subject.columns.num_rows} texts as hashed", "rows with another text or id")


def _unit_vectors(subject: _Subject) -> Check:
    return _check(subject.off_unit, f"{subject.columns.num_rows} vectors finite and of unit length", "vectors not")


def _runs_exist(subject: _Subject) -> Check:
    used = pc.unique(subject.columns["run_id"])
    known = store.read_runs(subject.at.store)["run_id"].combine_chunks()
    return _check(used.filter(pc.invert(pc.is_in(used, value_set=known))), f"{len(used)} runs", "runs unknown")


def _files_agree(subject: _Subject) -> Check:
    """Documents of each recorded file: in the table or in quarantine. Those of no recorded file are of a run that did not end."""
    files, quarantine = subject.state.files, subject.state.quarantine
    in_table = Counter(subject.state.held["source_file"].to_pylist())
    kept_apart = Counter(quarantine.filter(pc.greater_equal(quarantine["row"], 0))["source_file"].to_pylist())
    files_with_unidentified_rows = set(
        quarantine.filter(pc.is_null(quarantine["doc_id"]))["source_file"].to_pylist()
    )  # may keep documents of old
    off = [
        f"{path} ({documents} recorded, {in_table[path]} in the table, {kept_apart[path]} in quarantine)"
        for path, documents in zip(files["path"].to_pylist(), files["documents"].to_pylist(), strict=True)
        if path not in files_with_unidentified_rows and in_table[path] + kept_apart[path] != documents
    ]
    return _check(pa.array(off, pa.string()), f"{files.num_rows} files", "files with other counts")


def _quarantine_apart(subject: _Subject) -> Check:
    quarantine = subject.state.quarantine
    quarantine = quarantine.filter(pc.invert(pc.starts_with(quarantine["reason"], DUPLICATE)))  # its namesake is in the table
    key = ["doc_id", "source_file", "doc_hash"]
    both = quarantine.select(key).join(subject.state.held.select(key), key, join_type="left semi")
    return _check(both["doc_id"], f"{quarantine.num_rows} in quarantine, none of them in the table", "in both")


def _one_writer(subject: _Subject) -> Check:
    """The last commit's count of rows, and no version made by another program among those that are kept."""
    counted = store.rows_committed(subject.table)
    foreign = [f"version {v.version}, {v.what}" for v in store.foreign_changes(subject.at.store)]
    if counted is not None and counted != subject.columns.num_rows:
        foreign.append(f"{subject.columns.num_rows} rows where the last commit left {counted}")
    return _check(pa.array(foreign, pa.string()), f"{subject.columns.num_rows} rows, as the last commit left them", "changes")


def _indexes_cover(subject: _Subject) -> Check:
    missed = store.missed_by_indexes(subject.at.store, SAMPLE)
    kinds = ", ".join(str(index) for index in store.indexes(subject.at.store)) or "no index: every search is exact"
    return _check(pa.array(missed, pa.string()), kinds, "rows that an index does not find")


def _sample_agrees(subject: _Subject) -> Check:
    at, count = subject.at, subject.columns.num_rows
    rows = np.sort(np.random.default_rng(SEED).choice(count, min(SAMPLE, count), replace=False)).tolist()
    if not rows:
        return _check(pa.array([], pa.string()), "no rows", "")
    with store.lance_errors(f"{at.store.label} cannot be read"):
        sample = subject.table.take(rows, columns=["chunk_id", "text", "vector"])
    encoder = load_encoder(at)
    texts = sample["text"].to_pylist()
    afresh = encoder.encode(texts, subject.spec.document_prompt)
    stored = np.array(sample["vector"].to_pylist(), np.float32)
    if afresh.shape != stored.shape:
        return Check("", ok=False, detail=f"stored vectors have {stored.shape[1]} numbers, the model gives {afresh.shape[1]}")
    off = ~((afresh * stored).sum(axis=1) >= 1 - AGREES)
    return _check(sample["chunk_id"].filter(pa.array(off)), f"{len(rows)} rows encoded afresh", "rows differ from their text")


def _source_agrees(subject: _Subject) -> Check:
    """Documents of files that are as they were recorded, read again: the same hash, and of some the same texts and metadata."""
    compared, bad = 0, list[str]()
    try:
        for path, documents in _read_again(subject):
            held = subject.state.held.filter(pc.equal(subject.state.held["source_file"], path))
            hashes = dict(zip(held["doc_id"].to_pylist(), held["doc_hash"].to_pylist(), strict=True))
            known = documents.filter(pc.is_in(documents["doc_id"], value_set=held["doc_id"].combine_chunks()))
            known = known.take(
                np.sort(np.unique(known["doc_id"].to_numpy(), return_index=True)[1])
            )  # of equal ids the first is stored
            pairs = zip(known["doc_id"].to_pylist(), known["doc_hash"].to_pylist(), strict=True)
            bad += [name for name, found in pairs if hashes[name] != found]
            bad += [name for name in _altered(subject, known[:SAMPLE]) if name not in bad]
            compared += known.num_rows
    except SourceError as error:
        return Check("", ok=True, detail=f"not compared, the source cannot be read: {error}")
    return _check(pa.array(bad, pa.string()), f"{compared} documents read again", "documents differ from the source")


def _read_again(subject: _Subject) -> Iterator[tuple[str, pa.Table]]:
    """Some files that are as they were recorded, with their first batch of documents."""
    settings, fields = subject.at.config.source, store.metadata_fields(subject.at.store)
    fields = pa.schema([field for field in fields or () if field.name in settings.metadata])
    recorded = subject.state.files
    recorded = recorded.filter(pc.equal(recorded["reading"], source.reading_hash(settings.format, settings, fields)))
    count = recorded.num_rows
    chosen = np.sort(np.random.default_rng(SEED).permutation(count)[:SOURCE_FILES])
    origin = source.locate(settings.uri)
    fields = pa.schema([fields.field(name) for name in settings.metadata if name in fields.names])
    reader = source.Reader(origin, settings.format, settings, fields)
    for row in recorded.take(pa.array(chosen, pa.int64())).to_pylist():
        file = FileState(row["path"], row["size"], row["modified"])
        try:
            if source.current_state(origin, file.path) == file and (batch := next(reader.batches(file), None)):
                yield file.path, pa.Table.from_batches([batch])
        except FileUnreadable:
            continue  # it changes right now


def _altered(subject: _Subject, documents: pa.Table) -> list[str]:
    """Ids of the documents of which a passage has another text or metadata in the table."""
    metadata = [name for name in documents.column_names if name in subject.at.config.source.metadata]
    rows = np.flatnonzero(pc.is_in(subject.columns["doc_id"], value_set=documents["doc_id"].combine_chunks()).to_numpy())
    with store.lance_errors(f"{subject.at.store.label} cannot be read"):
        stored = subject.table.take(rows.tolist(), columns=["doc_id", "text", "char_start", "char_end", *metadata]).to_pylist()
    given = {document["doc_id"]: document for document in documents.to_pylist()}
    bad = dict[str, None]()
    for row in stored:
        document = given[row["doc_id"]]
        same_text = row["text"] == (document["text"] or "")[row["char_start"] : row["char_end"]]
        if not same_text or any(repr(row[name]) != repr(document[name]) for name in metadata):  # as repr, NaN is NaN
            bad[row["doc_id"]] = None
    return list(bad)


def _check(bad: pa.Array | pa.ChunkedArray, good: str, what: str) -> Check:
    """Passes where nothing bad was found; else names the first few."""
    if not len(bad):
        return Check("", ok=True, detail=good)
    return Check("", ok=False, detail=f"{len(bad)} {what}: {', '.join(map(str, bad.to_pylist()[:3]))}")
