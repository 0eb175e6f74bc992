"""How many tokens and how long: a plan's cost, from a short calibration with the real model on a sample of the real documents."""

from __future__ import annotations

import logging
import os
import random
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from latent import models as model
from latent import sources as source
from latent.chunking.passages import make_chunker
from latent.encoders import Encoder, gpu_count
from latent.ingest.canary_check import load_encoder
from latent.ingest.resolve import ResolvedConfig
from latent.ingest.scan import ScanPlan, cost_of
from latent.ingest.worker import cut
from latent.store import vectors_of
from latent.types import ChunkCounts, FileSlice, Report

log = logging.getLogger("latent")
SAMPLE_SHARDS = 16
SAMPLE_DOCUMENTS = 32  # of each sampled shard
CALIBRATION_S = 4.0
BATCH_CHUNKS = 32
RAY_START_S = 8.0  # ray.init took 7–10 s
SEED = 7


def estimate(report: Report, scan_plan: ScanPlan, at: ResolvedConfig) -> Report:
    """The report with tokens, chunks and seconds as a sample foretells them.

    Seconds are those of encoding on the configured workers, and of starting them.
    """
    started = time.perf_counter()
    chunker = make_chunker(
        model.tokenizer_file(at.model),
        at.model.max_tokens,
        at.config.chunk.tokens,
        at.config.chunk.overlap,
        at.spec.document_prompt,
    )
    encoder = load_encoder(at, at.config.ray.cpus_per_worker)
    if encoder.loss:
        log.warning("precision int8: %s", encoder.loss)
    start_s = time.perf_counter() - started
    documents = _sample(scan_plan, at)
    chunks, _ = cut(documents, chunker, at.config.source.format)
    held = vectors_of(at.store, chunks["chunk_hash"].to_pylist())
    texts = dict(zip(chunks["chunk_hash"].to_pylist(), chunks["text"].to_pylist(), strict=True))
    fresh = [text for h, text in texts.items() if h not in held]
    rate = _tokens_per_second(encoder, fresh, at.spec.document_prompt)
    count = sum(map(len, scan_plan.plan.shards))
    if at.config.chunk.tokens == "truncate":  # what is cut off has characters but no tokens
        scale = count / max(documents.num_rows, 1)
    else:
        scale = scan_plan.plan.chars / max(pc.sum(pc.utf8_length(documents["text"])).as_py() or 0, 1)
    cut_up = count + (chunks.num_rows - documents.num_rows) * scale  # each document has a chunk, and more by its length
    new = len(fresh) / max(chunks.num_rows, 1)
    total = round(len(encoder.prepare(fresh, at.spec.document_prompt).ids) * scale)
    workers = at.pool_spec.count(os.cpu_count() or 1, gpu_count(), len(scan_plan.plan.shards))
    seconds = RAY_START_S + start_s + total / (rate * workers)
    return replace(
        report,
        chunks=ChunkCounts(round(cut_up * new), round(cut_up * (1 - new)), 0),
        tokens=total,
        cost=cost_of(total, at.config),
        seconds=round(seconds, 3),
        tokens_per_second=round(total / seconds, 1),
        workers=workers,
    )


def _sample(scan_plan: ScanPlan, at: ResolvedConfig) -> pa.Table:
    """Documents to do from all over the plan, with `source_file`."""
    chance = random.Random(SEED)  # noqa: S311
    settings = at.config.source
    reader = source.Reader(source.locate(settings.uri), settings.format, settings, scan_plan.metadata)
    tables = []
    for shard in chance.sample(scan_plan.plan.shards, min(SAMPLE_SHARDS, len(scan_plan.plan.shards))):
        chosen, first = sorted(chance.sample(range(len(shard)), min(SAMPLE_DOCUMENTS, len(shard)))), 0
        for piece in shard.slices:
            rows = [i - first for i in chosen if first <= i < first + piece.documents.num_rows]
            first += piece.documents.num_rows
            found = reader.read(FileSlice(piece.file, piece.documents.take(rows))) if rows else reader.schema.empty_table()
            tables.append(found.append_column("source_file", pa.array([piece.file.path] * found.num_rows, pa.string())))
    return pa.concat_tables(tables)


def _tokens_per_second(encoder: Encoder, texts: list[str], prompt: str) -> float:
    """Of one worker, after a first batch that warms it up."""
    encoder.encode(texts[:1], prompt)
    order = random.Random(SEED).sample(texts, len(texts))  # noqa: S311
    started, done = time.perf_counter(), 0
    for at in range(0, len(order), BATCH_CHUNKS):
        given = encoder.prepare(order[at : at + BATCH_CHUNKS], prompt)
        encoder.attempt(given)
        done += len(given.ids)
        if time.perf_counter() - started > CALIBRATION_S:
            break
    return done / (time.perf_counter() - started) if done else 1.0
