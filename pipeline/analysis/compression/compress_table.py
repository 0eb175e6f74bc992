"""`latent compress`: how much smaller vectors can be, at what loss; and a table of them, from which vectors can be made again.

What is learnt is learnt from a sample. Each codec is then tried on the whole table, all in one reading: what its codes find beside what the full vectors find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from latent import store
from latent.analysis.projection.map_table import COLOURS, picture_metadata, require_picture
from latent.config import Config
from latent.errors import ConfigError, QueryError
from latent.evaluation.datasets import Judgments, Queries
from latent.evaluation.ranking_metrics import DEPTH, means, score
from latent.ingest.resolve import store_of
from latent.ingest.run import quiet
from latent.search import SearchTable
from latent.store import RESCORED, Store
from latent.store import codec as codecs
from latent.store.codec import Codec, Layer
from latent.types import OnProgress, Progress

LEARNT = 50_000  # rows
ASKED = 200  # rows that are asked for their nearest others, left out of what is learnt from
NEAREST = 10
SEED = 0


@dataclass(frozen=True)
class Measured:
    """What a codec keeps."""

    name: str
    bytes: int  # of a vector
    share: float  # of the bytes of float32
    error: float  # mean cosine distance between a vector and what is made again of its code
    recall: float  # recall@10 against the full vectors
    rescored_recall: float  # the same where the best RESCORED are ordered by their full vectors
    ndcg: float | None  # ndcg@10, where there are judgments
    ndcg_kept: float | None  # share of the full vectors'; None too where those find nothing relevant
    rescored_ndcg_kept: float | None


@dataclass(frozen=True)
class Compression:
    """What was measured, and what was written."""

    table_version: int
    rows: int
    full_bytes: int
    full_ndcg: float | None
    codecs: Sequence[Measured]
    written: str | None
    compressed_table: str | None
    codec_table: str | None


class _Trial:
    """A codec on its way through the table; without one, the full vectors."""

    def __init__(self, codec: Codec | None, queries: np.ndarray) -> None:
        self.codec, self._queries, self.dim = codec, queries, queries.shape[1]
        self.error = 0.0  # summed
        self.scores = np.full((len(queries), DEPTH), -np.inf, np.float32)
        self.exact = self.scores.copy()  # the cosines of the full vectors of the same rows
        self.places = np.full((len(queries), DEPTH), -1)

    def see(self, start: int, vectors: np.ndarray, exact: np.ndarray) -> None:
        """Rows from `start` on. `exact`: the queries' cosines with them; a query's own row has -inf."""
        found = exact
        if self.codec is not None:
            again = self.codec.decode(self.codec.encode(vectors))
            self.error += float((1 - np.einsum("ij,ij->i", again, vectors)).sum())
            found = np.where(np.isinf(exact), exact, self._queries @ again.T)
        scores = np.concatenate([self.scores, found], 1)
        best = np.argpartition(-scores, DEPTH - 1, axis=1)[:, :DEPTH]
        places = np.concatenate([self.places, np.broadcast_to(start + np.arange(len(vectors)), found.shape)], 1)
        self.scores, self.places, self.exact = (
            np.take_along_axis(each, best, 1) for each in (scores, places, np.concatenate([self.exact, exact], 1))
        )

    def ordered(self, *, rescored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Places and scores, the best first; `rescored`: the best RESCORED by their full vectors, no others."""
        order = np.argsort(-self.scores, axis=1, kind="stable")
        places, scores = (np.take_along_axis(each, order, 1) for each in (self.places, self.exact if rescored else self.scores))
        if rescored:
            places, scores = places[:, :RESCORED], scores[:, :RESCORED]
            again = np.argsort(-scores, axis=1, kind="stable")
            places, scores = (np.take_along_axis(each, again, 1) for each in (places, scores))
        return places, scores


def compress(
    config: Config,
    write: str = "",
    judged: tuple[Queries, Judgments] | None = None,
    on_progress: OnProgress = quiet,
) -> Compression:
    """Measure codecs on the newest version: those of `codec.names`. `write`: measure this one alone, and write the codes of all passages by it.

    Raises QueryError where there are too few passages or no query is judged, ConfigError for a codec that is none.
    """
    place = store_of(config)
    table = place.opened()
    if write:
        store.check_derived(place, "compressed", "codec")
    version, count, dim = int(table.version), table.count_rows(), table.schema.field("vector").type.list_size
    if count <= 2 * NEAREST:
        raise QueryError(f"{place.label} has {count} passages: too few to compress, wanted {2 * NEAREST + 1}")
    on_progress(Progress("learn"))
    asked = np.sort(np.random.default_rng(SEED).permutation(count)[: min(ASKED, count // 2)])
    learnt = np.setdiff1d(store.drawn(place, version, LEARNT, SEED), asked)
    sample, queries = (
        store.matrix(store.rows_at(place, version, rows, ["vector"])["vector"].combine_chunks()) for rows in (learnt, asked)
    )
    texts = {name: text for name, text in judged[0].items() if name in judged[1]} if judged else {}
    if judged:
        if not texts:
            raise QueryError("none of the queries is judged: their ids and those of the judgments do not meet")
        queries = np.concatenate([queries, SearchTable(config).encode_queries(list(texts.values()))])
    fitted = [codecs.fit(name, sample, lambda width: _autoencoder(sample, width)) for name in _wanted(write, dim, len(sample))]
    tried = [_Trial(codec, queries) for codec in (None, *fitted)]
    _try(place, version, queries, asked, tried, on_progress)
    ndcg = _ndcg(place, version, tried, list(texts), judged[1]) if judged else None
    if write:
        _write(place, version, fitted[0], on_progress)
    return Compression(
        table_version=version,
        rows=count,
        full_bytes=4 * dim,
        full_ndcg=ndcg[0][0] if ndcg else None,
        codecs=[_measured(tried, at, len(asked), count, ndcg) for at in range(1, len(tried))],
        written=write or None,
        compressed_table=place.table_name("compressed") if write else None,
        codec_table=place.table_name("codec") if write else None,
    )


def save_curve(done: Compression, file: Path) -> None:
    """What is kept by bytes a vector, as PNG, SVG or PDF; at each size the codec that keeps most, by nDCG where it was measured, else by recall. Raises ConfigError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib: run 'make space', or pip install 'latent[space]'") from None
    require_picture(file)
    best: dict[int, Measured] = {}
    for each in done.codecs:
        best[each.bytes] = max(best.get(each.bytes, each), each, key=lambda one: one.ndcg_kept or one.recall)
    shown = [best[size] for size in sorted(best)]
    curves = {"recall@10": [each.recall for each in shown], "recall@10, rescored": [each.rescored_recall for each in shown]}
    if done.full_ndcg:
        curves |= {"nDCG@10": [each.ndcg_kept or 0.0 for each in shown]}
        curves |= {"nDCG@10, rescored": [each.rescored_ndcg_kept or 0.0 for each in shown]}
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for (what, kept), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(range(len(shown)), kept, "o-", color=colour, label=what)
    axes.set_xticks(range(len(shown)), [f"{each.bytes}\n{each.name}" for each in shown])
    axes.set(xlabel=f"bytes a vector (float32: {done.full_bytes})", ylabel="kept of what the full vectors have")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(file, dpi=150, metadata=picture_metadata(file))


def _wanted(write: str, dim: int, rows: int) -> list[str]:
    """The codecs to measure, as far as so many rows are enough to learn them from."""
    try:
        wanted = {name: codecs.parts(name, dim) for name in ([write] if write else codecs.names(dim))}
    except ValueError:
        kinds = ", ".join(codecs.BITS)
        raise ConfigError(
            f"--write {write}: wanted full-KIND, pca-N-KIND, cut-N-KIND or autoencoder-N-KIND, N at most {dim}, KIND one of {kinds}"
        ) from None
    enough = [name for name, (method, numbers, _) in wanted.items() if method != "pca" or numbers <= rows]
    if not enough:
        raise QueryError(f"--write {write}: {rows} passages to learn from, wanted one for each component at least")
    return enough


def _autoencoder(sample: np.ndarray, width: int) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    from latent.encoders.autoencoder import autoencoder

    encoder, decoder = autoencoder(sample, width, SEED)
    return tuple(Layer(*each) for each in encoder), tuple(Layer(*each) for each in decoder)


def _try(  # noqa: PLR0917
    place: Store, version: int, queries: np.ndarray, asked: np.ndarray, tried: Sequence[_Trial], on_progress: OnProgress
) -> None:
    """All codecs on all rows."""
    start, rows = 0, place.opened(version).count_rows()
    for batch in store.batches(place, version, ["vector"]):
        vectors = store.matrix(batch["vector"])
        exact = queries @ vectors.T
        own = np.flatnonzero((asked >= start) & (asked < start + len(vectors)))
        exact[own, asked[own] - start] = -np.inf
        for trial in tried:
            trial.see(start, vectors, exact)
        start += len(vectors)
        on_progress(Progress("compress", start, rows))


def _ndcg(
    place: Store, version: int, tried: Sequence[_Trial], names: Sequence[str], judgments: Judgments
) -> list[tuple[float, float]]:
    """ndcg@10 of each trial's codes, and rescored. A document scores as its best passage does."""
    ordered = [[trial.ordered(rescored=rescored) for rescored in (False, True)] for trial in tried]
    every = np.unique(np.concatenate([places[-len(names) :].ravel() for both in ordered for places, _ in both]))
    every = every[every >= 0]
    documents = dict(zip(every.tolist(), store.rows_at(place, version, every, ["doc_id"])["doc_id"].to_pylist(), strict=True))
    judged = {name: judgments[name] for name in names}

    def of(places: np.ndarray, scores: np.ndarray) -> float:
        found: dict[str, dict[str, float]] = {}
        for name, rows, values in zip(names, places[-len(names) :].tolist(), scores[-len(names) :].tolist(), strict=True):
            best: dict[str, float] = {}
            for row, value in zip(rows, values, strict=True):
                if row >= 0:
                    best.setdefault(documents[row], value)
            found[name] = best
        return means(score(judged, found))["ndcg@10"]

    return [(of(*plain), of(*rescored)) for plain, rescored in ordered]


def _measured(tried: Sequence[_Trial], at: int, asked: int, rows: int, ndcg: Sequence[tuple[float, float]] | None) -> Measured:
    trial, full = tried[at], tried[0]
    codec = trial.codec
    assert codec is not None
    right = full.ordered(rescored=False)[0][:asked, :NEAREST]

    def recall(*, rescored: bool) -> float:
        found = trial.ordered(rescored=rescored)[0][:asked, :NEAREST]
        return float((found[:, :, None] == right[:, None, :]).any(2).mean())

    dim = tried[0].dim
    kept = [value / ndcg[0][0] for value in ndcg[at]] if ndcg and ndcg[0][0] else [None, None]
    return Measured(
        name=codec.name,
        bytes=codec.bytes,
        share=codec.bytes / (4 * dim),
        error=max(0.0, trial.error / rows),
        recall=recall(rescored=False),
        rescored_recall=recall(rescored=True),
        ndcg=ndcg[at][0] if ndcg else None,
        ndcg_kept=kept[0],
        rescored_ndcg_kept=kept[1],
    )


def _write(place: Store, version: int, codec: Codec, on_progress: OnProgress) -> None:
    """The codec first: codes are never there without what reads them."""
    parts: list[pa.RecordBatch] = []
    start, rows = 0, place.opened(version).count_rows()
    for batch in store.batches(place, version, ["chunk_id", "_rowid", "vector"]):
        codes = codec.encode(store.matrix(batch["vector"]))
        code = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1])
        parts.append(pa.record_batch({"chunk_id": batch["chunk_id"], "row_id": batch["_rowid"], "code": code}))
        start += batch.num_rows
        on_progress(Progress("compress", start, rows))
    store.write_codes(place, codec, pa.Table.from_batches(parts), version)
