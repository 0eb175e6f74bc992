"""What one worker does with a shard: read, compare, chunk, reuse or encode, check, write, and hand back a receipt.

Two shards are under way at a time, so that reading and chunking the next overlaps encoding this one. Vectors of chunks that other
workers have in hand are waited for, not made again: see `engine.ChunkRegistry`.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import models as model
from latent import sources as source
from latent.chunking.passages import Chunker, chunk_documents, make_chunker
from latent.config import Config
from latent.encoders import Canary, Encoder
from latent.errors import Failure, FileUnreadable, SpecMismatch
from latent.ingest.canary_check import compare
from latent.schemas import QUARANTINE, table_schema
from latent.sources.formats import format_of
from latent.store import Store, vectors_of, write_fragments
from latent.types import Receipt, ResolvedModel, Shard, Spec
from latent.workers import ChunkRegistry

NO_PASSAGE = Failure("no passage: the tokenizer finds no token in it")
NO_VECTOR = Failure("encoding failed: the model gives no finite vector for a passage")


@dataclass(frozen=True)
class WorkerContext:
    """All that a worker must know, the same for every shard of a run."""

    config: Config
    spec: Spec
    metadata: pa.Schema
    store: Store
    run_id: str
    canary: str | None  # vectors of fixed texts, as JSON; None: the table has none yet
    base_version: int  # of the table when the run began: what it held then is reused even if it is replaced meanwhile


@dataclass
class _EncodeStats:
    """What was encoded for a shard."""

    chunks: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failed: dict[str, Failure] = field(default_factory=dict)  # by chunk hash


class Worker:
    """Holds a loaded model and an open reader."""

    def __init__(self, job: WorkerContext, claims: ChunkRegistry) -> None:
        """Raises ModelError where the model is not on this machine, SpecMismatch where it is another than the driver's."""
        self._job, self._claims = job, claims
        settings = job.config.model
        local = _same_model(job)
        chunk = job.config.chunk
        self._chunker = make_chunker(
            model.tokenizer_file(local), local.max_tokens, chunk.tokens, chunk.overlap, job.spec.document_prompt
        )
        self._encoder = Encoder(local, device=settings.device, precision=settings.precision, threads=job.config.ray.cpus_per_worker)
        canary = Canary.of(self._encoder)
        if job.canary:
            compare(canary, job.canary, job.spec, job.store.label)
        self._canary = "" if job.canary else canary.to_json()
        _same_model(job)  # still, after the many seconds that loading takes
        origin = source.locate(job.config.source.uri)
        self._reader = source.Reader(origin, job.config.source.format, job.config.source, job.metadata)
        self._reading, self._encoding = threading.Lock(), threading.Lock()

    def embed(self, shard: Shard) -> Receipt:
        """Do one shard. Everything it writes stays invisible until the driver commits the receipt."""
        started = time.perf_counter()
        with self._reading:
            documents, stale = self._read(shard)
            chunks, failed = cut(documents, self._chunker, self._job.config.source.format)
        read = time.perf_counter()
        vectors, made = self._vectors(shard.name, chunks)
        reused = time.perf_counter()
        failed |= _without_vector(chunks, vectors, made.failed)
        rows, quarantined = _rows(documents, chunks, vectors, failed, self._job)
        fragments = write_fragments(self._job.store, rows) if rows.num_rows else ()
        canary, self._canary = self._canary, ""
        return Receipt(
            shard=shard.name,
            fragments=fragments,
            rows=rows.num_rows,
            quarantined=quarantined,
            stale=stale,
            encoded=made.chunks,
            reused=rows.num_rows - min(made.chunks, rows.num_rows),
            tokens=made.tokens,
            read_s=read - started,
            encode_s=made.seconds,
            write_s=time.perf_counter() - reused,
            canary=canary,
        )

    def _read(self, shard: Shard) -> tuple[pa.Table, tuple[str, ...]]:
        """The shard's documents as the plan saw them, with `source_file`, and the ids of those that are no longer so."""
        tables, stale = [], []
        for piece in shard.slices:
            try:
                found = self._reader.read(piece)
            except FileUnreadable:
                found = self._reader.schema.empty_table()
            expected = dict(zip(piece.documents["row"].to_pylist(), piece.documents["doc_hash"].to_pylist(), strict=True))
            same = [expected[row] == h for row, h in zip(found["row"].to_pylist(), found["doc_hash"].to_pylist(), strict=True)]
            found = found.filter(pa.array(same, pa.bool_()))
            there = set(found["row"].to_pylist())
            stale += [i for row, i in zip(expected, piece.documents["doc_id"].to_pylist(), strict=True) if row not in there]
            tables.append(found.append_column("source_file", pa.array([piece.file.path] * found.num_rows, pa.string())))
        return pa.concat_tables(tables), tuple(stale)

    def _vectors(self, shard: str, chunks: pa.Table) -> tuple[dict[str, np.ndarray], _EncodeStats]:
        """The vector of each chunk hash, and how many of them were encoded here."""
        texts = dict(zip(chunks["chunk_hash"].to_pylist(), chunks["text"].to_pylist(), strict=True))
        vectors = vectors_of(self._job.store, list(texts), self._job.base_version)
        made = _EncodeStats()
        while missing := [h for h in texts if h not in vectors]:
            granted, committed = self._claims.claim(shard, missing)
            vectors |= vectors_of(self._job.store, committed)
            # What is committed and not in the table belonged to a document that failed for another passage.
            mine = [h for h in (*granted, *committed) if h not in vectors]
            vectors |= self._encode({h: texts[h] for h in mine}, made)
            self._claims.publish({h: vectors[h] for h in granted})
            vectors |= self._claims.wait_for([h for h in missing if h not in vectors])
        return vectors, made

    def _encode(self, texts: dict[str, str], made: _EncodeStats) -> dict[str, np.ndarray]:
        hashes, passages = list(texts), list(texts.values())
        given = self._encoder.prepare(passages, self._chunker.prompt)
        with self._encoding:
            started = time.perf_counter()
            encoded = self._encoder.attempt(given)
            made.seconds += time.perf_counter() - started
        made.chunks += len(texts)
        made.tokens += len(given.ids)
        made.failed |= {hashes[i]: failure for i, failure in encoded.failed.items()}
        return dict(zip(hashes, encoded.vectors, strict=True))


def _same_model(job: WorkerContext) -> ResolvedModel:
    settings = job.config.model
    local = model.resolve(settings.name, settings.revision, settings.sha256, trust_remote_code=settings.trust_remote_code)
    if local.digest != job.spec.model_digest:
        raise SpecMismatch(
            f"model {local.name} on this worker has digest {local.digest[:12]}, the run began with {job.spec.model_digest[:12]}: "
            "install the same model on every node"
        )
    return local


def cut(documents: pa.Table, chunker: Chunker, format: str) -> tuple[pa.Table, dict[int, Failure]]:
    """The documents' chunks (CHUNKS), and what went wrong with those that have none for it.

    Markdown files are cut along their headings and blocks.
    """
    kinds = [format_of(path) if format == "auto" else format for path in documents["source_file"].to_pylist()]
    return chunk_documents(documents, chunker, [kind == "markdown" for kind in kinds])


def _without_vector(chunks: pa.Table, vectors: dict[str, np.ndarray], failed: dict[str, Failure]) -> dict[int, Failure]:
    """Documents with a passage that has no finite vector."""
    bad = {h for h, vector in vectors.items() if not np.isfinite(vector).all()}
    pairs = zip(chunks["document"].to_pylist(), chunks["chunk_hash"].to_pylist(), strict=True) if bad else ()
    return {i: failed.get(h, NO_VECTOR) for i, h in pairs if h in bad}


def _rows(
    documents: pa.Table, chunks: pa.Table, vectors: dict[str, np.ndarray], failed: dict[int, Failure], job: WorkerContext
) -> tuple[pa.Table, pa.Table]:
    """Rows of the table for all documents that are whole, and QUARANTINE rows for the others."""
    cut_up = set(pc.unique(chunks["document"]).to_pylist())
    failed = {i: failed.get(i, NO_PASSAGE) for i in range(documents.num_rows) if i in failed or i not in cut_up}
    kept = chunks.filter(pc.invert(pc.is_in(chunks["document"], value_set=pa.array(list(failed), pa.int64()))))
    matrix = np.array([vectors[h] for h in kept["chunk_hash"].to_pylist()], np.float32).reshape(-1, job.spec.dim)
    schema = table_schema(job.spec, job.metadata)
    own = ["doc_id", "doc_hash", "source_file", *job.metadata.names]
    doc = documents.select(own).take(kept["document"])  # without the text, which would be there once a passage
    count = kept.num_rows
    values = {name: doc[name] for name in own}
    values |= {name: kept[name] for name in ("chunk_index", "text", "chunk_hash", "char_start", "char_end")}
    values["chunk_id"] = pc.binary_join_element_wise(doc["doc_id"], kept["chunk_index"].cast(pa.string()), "#")
    vector_type = schema.field("vector").type
    flat = pa.array(matrix.astype(vector_type.value_type.to_pandas_dtype()).reshape(-1))
    values["vector"] = pa.FixedSizeListArray.from_arrays(flat, job.spec.dim)
    values["run_id"] = pa.array([job.run_id] * count, pa.string())
    values["embedded_at"] = pa.array([dt.datetime.now(dt.UTC)] * count, schema.field("embedded_at").type)
    rows = pa.table([values[name] for name in schema.names], schema=schema)
    lost = [quarantine_rows(documents[i : i + 1], [f.reason], f.traceback, job.run_id) for i, f in failed.items()]
    return rows, pa.concat_tables([QUARANTINE.empty_table(), *lost])


def quarantine_rows(documents: pa.Table, reasons: list[str], traceback: str | None, run_id: str) -> pa.Table:
    """QUARANTINE rows for documents (doc_id, source_file, row, doc_hash), each with its reason."""
    count = documents.num_rows
    given = [documents[name] for name in ("doc_id", "source_file", "row", "doc_hash")]
    own = [pa.array(v, pa.string()) for v in (reasons, [traceback] * count, [run_id] * count)]
    return pa.table([*given, *own], schema=QUARANTINE)
