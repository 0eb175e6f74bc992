"""Proof that the table is what it should be, and a look at where it stands.

`verify` streams the table once, without holding it: about 0.3 M rows a second. Each check names what it found, so that damage can be told from
what was expected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import model, store
from pipeline.chunk import make_chunker
from pipeline.config import Config
from pipeline.encode import Encoder
from pipeline.plan import DUPLICATE
from pipeline.survey import Scene, scene

UNIT_WITHIN = {"float32": 1e-4, "float16": 2e-3}  # how far from 1 a stored vector's length may be
SAMPLE = 32  # rows encoded afresh
AGREES = 1e-3  # 1 - cosine of a row and its text encoded afresh
SEED = 11


@dataclass(frozen=True)
class Check:
    """One thing that must hold."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Status:
    """Where the table stands."""

    table: str
    version: int
    spec: dict[str, object]
    documents: int
    chunks: int
    files: int
    quarantined: dict[str, int]  # reason → documents
    indexes: list[str]
    recall: float | None  # measured by maintain; None: every search is exact
    runs: list[dict[str, Any]]  # newest first


def verify(config: Config) -> list[Check]:
    """All checks of the table, each made even if another fails."""
    at = scene(config)
    table = at.store.opened()
    columns = table.to_table(columns=["doc_id", "chunk_index", "source_file", "doc_hash", "run_id"])
    checks: tuple[Callable[[], Check], ...] = (
        lambda: _one_row_a_chunk(columns),
        lambda: _no_gaps(columns),
        lambda: _unit_vectors(at),
        lambda: _runs_exist(at, columns),
        lambda: _files_agree(at, columns),
        lambda: _quarantine_apart(at, columns),
        lambda: _sample_agrees(at),
    )
    return [Check("spec", ok=True, detail=f"the table and the config agree on {at.spec}"), *(check() for check in checks)]


def status(config: Config, runs: int = 10) -> Status:
    """What the table holds, how it is indexed, and its last runs."""
    at = scene(config)
    table = at.store.opened()
    history = store.read_side(at.store, "runs").sort_by([("started_at", "descending")])[:runs]
    tuning = store.read_tuning(at.store)
    kinds = (reason.partition(":")[0] for reason in store.read_side(at.store, "quarantine")["reason"].to_pylist())
    return Status(
        table=at.store.label,
        version=int(table.version),
        spec=asdict(at.spec),
        documents=store.held_documents(at.store).num_rows,
        chunks=table.count_rows(),
        files=store.read_side(at.store, "files").num_rows,
        quarantined=dict(Counter(kinds)),
        indexes=store.index_names(at.store),
        recall=tuning.recall if tuning else None,
        runs=[row | {"report": json.loads(row["report"])} for row in history.to_pylist()],
    )


def _one_row_a_chunk(columns: pa.Table) -> Check:
    counts = columns.group_by(["doc_id", "chunk_index"]).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))
    return _check("one row a chunk", doubled["doc_id"], f"{columns.num_rows} rows", "chunks doubled")


def _no_gaps(columns: pa.Table) -> Check:
    spans = columns.group_by("doc_id").aggregate(
        [("chunk_index", "max"), ("chunk_index", "min"), ("chunk_index", "count_distinct")]
    )
    whole = pc.and_(
        pc.equal(spans["chunk_index_min"], 0),
        pc.equal(pc.add(spans["chunk_index_max"], 1), spans["chunk_index_count_distinct"].cast(pa.int32())),
    )
    return _check(
        "no gaps", spans.filter(pc.invert(whole))["doc_id"], f"{spans.num_rows} documents whole", "documents with chunks missing"
    )


def _unit_vectors(at: Scene) -> Check:
    within, bad, rows = UNIT_WITHIN[at.spec.vector], [], 0
    for batch in at.store.opened().scanner(columns=["chunk_id", "vector"]).to_batches():
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, at.spec.dim).astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            off = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= within)  # NaN is off too
        bad.append(batch["chunk_id"].filter(pa.array(off)))
        rows += batch.num_rows
    return _check("unit vectors", pa.chunked_array(bad, pa.string()), f"{rows} vectors finite and of unit length", "vectors not")


def _runs_exist(at: Scene, columns: pa.Table) -> Check:
    used = pc.unique(columns["run_id"])
    known = store.read_side(at.store, "runs")["run_id"].combine_chunks()
    return _check("runs exist", used.filter(pc.invert(pc.is_in(used, value_set=known))), f"{len(used)} runs", "runs unknown")


def _files_agree(at: Scene, columns: pa.Table) -> Check:
    """Documents of each recorded file: in the table or in quarantine."""
    files, quarantine = store.read_side(at.store, "files"), store.read_side(at.store, "quarantine")
    in_table = Counter(columns.filter(pc.equal(columns["chunk_index"], 0))["source_file"].to_pylist())
    kept_apart = Counter(quarantine.filter(pc.greater_equal(quarantine["row"], 0))["source_file"].to_pylist())
    untold = set(quarantine.filter(pc.is_null(quarantine["doc_id"]))["source_file"].to_pylist())  # may keep documents of old
    off = [
        path
        for path, documents in zip(files["path"].to_pylist(), files["documents"].to_pylist(), strict=True)
        if path not in untold and in_table[path] + kept_apart[path] != documents
    ]
    return _check(
        "files agree", pa.chunked_array([pa.array(off, pa.string())]), f"{files.num_rows} files", "files with other counts"
    )


def _quarantine_apart(at: Scene, columns: pa.Table) -> Check:
    quarantine = store.read_side(at.store, "quarantine")
    quarantine = quarantine.filter(pc.invert(pc.starts_with(quarantine["reason"], DUPLICATE)))  # its namesake is in the table
    key = ["doc_id", "source_file", "doc_hash"]
    both = quarantine.select(key).join(columns.select(key), key, join_type="left semi")
    return _check("quarantine apart", both["doc_id"], f"{quarantine.num_rows} in quarantine, none of them in the table", "in both")


def _sample_agrees(at: Scene) -> Check:
    table, settings = at.store.opened(), at.config.model
    count = table.count_rows()
    if not count:
        return Check("sample agrees", ok=True, detail="no rows")
    rows = np.sort(np.random.default_rng(SEED).choice(count, min(SAMPLE, count), replace=False)).tolist()
    sample = table.take(rows, columns=["chunk_id", "text", "vector"])
    chunk = at.config.chunk
    chunker = make_chunker(
        model.tokenizer_file(at.model), at.model.max_tokens, chunk.tokens, chunk.overlap, settings.document_prompt
    )
    encoder = Encoder(at.model, device=settings.device, precision=settings.precision)
    texts = sample["text"].to_pylist()
    afresh = encoder.encode([settings.document_prompt + text for text in texts], chunker.count(texts))
    stored = np.array(sample["vector"].to_pylist(), np.float32)
    off = ~((afresh * stored).sum(axis=1) >= 1 - AGREES)
    return _check(
        "sample agrees", sample["chunk_id"].filter(pa.array(off)), f"{len(rows)} rows encoded afresh", "rows differ from their text"
    )


def _check(name: str, bad: pa.ChunkedArray, good: str, what: str) -> Check:
    """Passes where nothing bad was found; else names the first few."""
    if not len(bad):
        return Check(name, ok=True, detail=good)
    return Check(name, ok=False, detail=f"{len(bad)} {what}: {', '.join(map(str, bad.to_pylist()[:3]))}")
