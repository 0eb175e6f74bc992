"""A table to search: a query is encoded as the table's documents were, and asked of one version of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latent import models as model
from latent.config import Config, Search, load
from latent.encoders import Encoder, Reranker
from latent.errors import PipelineError, QueryError
from latent.ingest.canary_check import load_encoder
from latent.ingest.resolve import ResolvedConfig, resolve_and_check, same_vectors
from latent.schemas import SCORE
from latent.search.integrations import langchain_retriever, llama_index_retriever
from latent.search.mmr import diverse, first_of_each_document
from latent.search.results import Hit, hits, places_around, with_context
from latent.search.vector_arithmetic import combined
from latent.store import Condition, Store, TableReader
from latent.types import Mode

log = logging.getLogger("latent")
MOST_HITS = 10_000
MAX_QUERIES = 10_000  # of a batch
MAX_QUERY_CHARS = 100_000
MAX_TEXTS = 100  # that are added, or taken off
MAX_CONTEXT = 100  # passages on each side of a hit, and
MAX_CONTEXT_PASSAGES = 100_000  # around all hits: read in about a second
ASKED_AT_ONCE = 8  # queries of a batch
DIVERSE_OF = 5  # times k rows, of which k unlike ones are chosen


MODES = get_args(Mode)


class SearchOptions(TypedDict, total=False):
    """The ways of searching; each may be left out."""

    mode: Mode | None  # by meaning, by words (BM25), or both fused; None: [search] mode
    rerank: bool  # order the best [search] candidates anew with the cross-encoder [search] reranker
    diversity: float  # 0 to 1: how much unlikeness to the hits before counts beside the score
    per_document: bool  # at most one hit a document
    context: int  # passages before and after each hit
    exact: bool  # pass by the vector index
    plus: Sequence[str]  # texts whose vectors are added to the query's, which may be empty then; mode vector only
    compressed: bool  # look among the codes of `latent compress --write`, and score by the full vectors; mode vector only
    minus: Sequence[str]  # texts whose vectors are taken off it


@dataclass
class _Snapshot:
    """One version of the table, and the models that go with it."""

    at: ResolvedConfig
    reading: TableReader

    @cached_property
    def encoder(self) -> Encoder:
        return load_encoder(self.at)


def _view(config: Config) -> _Snapshot:
    """The newest version with the model that made its vectors, even if it is migrated at this moment."""
    while True:
        at = resolve_and_check(config)
        reading = TableReader(at.store)
        if same_vectors(reading.spec, at.spec):
            return _Snapshot(at, reading)


class SearchTable:
    """A table to search. Models are loaded at the first query that needs them and kept; each search sees the newest version.

    Where the table is migrated to another model meanwhile, searches stay on the last version before until that model is loaded and the table indexed.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._view = _view(config)
        self._encoding, self._loading = threading.Lock(), threading.Lock()
        self._moving: Future[None] | None = None
        self._mover = ThreadPoolExecutor(1, thread_name_prefix="migration")

    @property
    def version(self) -> int:
        """Of the table, as searches see it now."""
        return self._newest().reading.version

    @property
    def place(self) -> Store:
        """Where the table lies."""
        return self._newest().at.store

    @property
    def mode(self) -> Mode:
        """How it is searched where a search does not say."""
        return self._config.search.mode

    @property
    def settings(self) -> Search:
        """How it is searched and served, as the config says."""
        return self._config.search

    @property
    def candidates(self) -> int:
        """How many passages are reranked."""
        return self._config.search.candidates

    def search(self, query: str, k: int = 10, where: Condition | None = None, **how: Unpack[SearchOptions]) -> list[Hit]:
        """The k passages that answer best, best first. `where` is applied before the search: a mapping such as
        {"acl": ["hr", "all"], "year": {"gte": 2019, "lt": 2021}, "deleted_at": None}, whose values never act as SQL (all forms: `store.conditions`); or a
        string, which is SQL: put nothing into it that you would not run.

        Raises QueryError for an empty query, a k out of range, a condition the table cannot evaluate, or a way of searching it has no index or model for.
        """
        return self.search_batch([query], k, where, **how)[0]

    async def search_async(
        self, query: str, k: int = 10, where: Condition | None = None, **how: Unpack[SearchOptions]
    ) -> list[Hit]:
        """As `search`, in a thread."""
        return await asyncio.to_thread(self.search, query, k, where, **how)

    def search_batch(
        self, queries: Sequence[str], k: int = 10, where: Condition | None = None, **how: Unpack[SearchOptions]
    ) -> list[list[Hit]]:
        """As `search` for each of the queries, all on one version: they are encoded together and asked side by side."""
        if any(not query.strip() for query in queries) and not how.get("plus"):
            raise QueryError("the query is empty: give it a few words")
        if len(queries) > MAX_QUERIES:
            raise QueryError(f"{len(queries)} queries, wanted {MAX_QUERIES} at most in a batch")
        asked = self._checked(k, how)
        _check_texts(queries, how)
        view = self._newest()
        reading = view.reading
        if asked["mode"] != "vector" and not self._config.index.full_text and not reading.has_full_text:
            raise QueryError(
                f"{reading.store.label} has no full-text index: set [index] full_text = true and run 'latent maintain'"
            )
        vectors = self._asked_for(view, queries, asked) if asked["mode"] != "text" else [None] * len(queries)
        with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(queries)) or 1) as pool:
            return list(pool.map(lambda query, vector: self._answer(reading, query, vector, k, where, asked), queries, vectors))

    def nearest(self, vector: np.ndarray, k: int = 10, where: Condition | None = None, *, exact: bool = False) -> list[Hit]:
        """As `search`, for a vector (dim,)."""
        self._checked(k, {})
        return hits(self._newest().reading.search_vector(vector, k, where, exact=exact))

    def as_retriever(self, k: int = 10, where: Condition | None = None, **how: Unpack[SearchOptions]) -> Any:
        """For LangChain: a retriever that searches so."""
        return langchain_retriever(lambda query: self.search(query, k, where, **how))

    def as_llama_index_retriever(self, k: int = 10, where: Condition | None = None, **how: Unpack[SearchOptions]) -> Any:
        """For LlamaIndex: a retriever that searches so."""
        return llama_index_retriever(lambda query: self.search(query, k, where, **how))

    def sample(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Passages drawn at random: chunk_id, text, and `documents`, the ids of all that hold the same passage."""
        return self._newest().reading.sample(count, seed)

    def encode_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """The queries' unit vectors (n, dim), the query prompt put before each."""
        _check_texts(queries, {})
        return self._encoded(self._newest(), queries)

    def _asked_for(self, view: _Snapshot, queries: Sequence[str], how: SearchOptions) -> Sequence[np.ndarray]:
        """The vectors that queries ask for, with what is added to them and taken off."""
        plus, minus = how.get("plus", ()), how.get("minus", ())
        own = [query for query in queries if query.strip()]
        vectors = self._encoded(view, [*own, *plus, *minus])
        if not plus and not minus:
            return list(vectors)
        rest = iter(vectors[: len(own)])
        added, taken = vectors[len(own) : len(own) + len(plus)], vectors[len(own) + len(plus) :]
        found = [combined(np.stack([*([next(rest)] if query.strip() else []), *added]), taken) for query in queries]
        if any(each is None for each in found):
            raise QueryError("plus and minus cancel each other out: nothing is left to search for")
        return [each for each in found if each is not None]

    def _encoded(self, view: _Snapshot, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        with self._encoding:
            vectors = view.encoder.encode(queries, view.at.prompts.query)
        for query, vector in zip(queries, vectors, strict=True):
            if not np.isfinite(vector).all():
                raise QueryError(f"the model has no vector for {query!r}: ask with other words")
        return vectors

    def _newest(self) -> _Snapshot:
        """The newest version that can be searched now."""
        view = self._view
        newest = view.reading.newest()
        if newest is view.reading:
            return view
        if newest.spec == view.reading.spec:
            moved = _Snapshot(view.at, newest)
            if "encoder" in vars(view):
                moved.encoder = view.encoder
            self._view = moved
            return moved
        if self._moving is None or self._moving.done():
            self._moving = self._mover.submit(self._move)
        return self._view

    def _move(self) -> None:
        """Load the model of a migrated table, and search that from then on. What fails is tried again by the next search."""
        try:
            view = _view(self._config)
            if view.reading.fully_indexed(full_text=self._config.index.full_text):
                view.encoder.encode(["warm up"])
                self._view = view
        except PipelineError as error:
            log.warning("searches stay on version %d: %s", self._view.reading.version, error)

    def _checked(self, k: int, how: SearchOptions) -> SearchOptions:
        """The ways of searching with the config's defaults. Raises QueryError for what is out of range."""
        if not 1 <= k <= MOST_HITS:
            raise QueryError(f"k = {k}, wanted 1 to {MOST_HITS}")
        if not 0 <= how.get("diversity", 0.0) <= 1:
            raise QueryError(f"diversity = {how['diversity']}, wanted 0 (by score alone) to 1")
        context = how.get("context", 0)
        if not 0 <= context <= MAX_CONTEXT:
            raise QueryError(f"context = {context}, wanted 0 to {MAX_CONTEXT} passages on each side")
        if context and k * (2 * context + 1) > MAX_CONTEXT_PASSAGES:
            raise QueryError(f"k = {k} with context = {context}: at most {MAX_CONTEXT_PASSAGES:,} passages are read at once")
        if (how.get("mode") or self._config.search.mode) != "vector" and (
            told := [n for n in ("plus", "minus", "compressed") if how.get(n)]
        ):
            raise QueryError(f"{told[0]} is of vectors: search with mode vector")
        if how.get("rerank") and not self._config.search.reranker:
            raise QueryError("rerank: no cross-encoder is set: name one with [search] reranker")
        mode = how.get("mode") or self._config.search.mode
        if mode not in MODES:
            raise QueryError(f"mode = {mode!r}, wanted vector, text or hybrid")
        return SearchOptions(**{**how, "mode": mode})

    def _answer(  # noqa: PLR0917
        self, reading: TableReader, query: str, vector: np.ndarray | None, k: int, where: Condition | None, how: SearchOptions
    ) -> list[Hit]:
        settings = self._config.search
        depth = max(k, settings.candidates) if how.get("rerank") else k
        if how.get("diversity"):
            depth = max(depth, DIVERSE_OF * k)
        rows = self._found(reading, query, vector, depth, where, how)
        if how.get("rerank"):
            with self._loading:
                reranker = self._reranker
            scores = reranker.scores(query, rows["text"].to_pylist())
            rows = rows.set_column(rows.column_names.index(SCORE), SCORE, pa.array(scores, pa.float64()))
            rows = rows.sort_by([(SCORE, "descending")])
        rows = diverse(rows, reading.vectors_of(rows), k, how["diversity"]) if how.get("diversity") else rows[:k]
        found = hits(rows)
        if how.get("context"):
            found = with_context(found, reading.neighboring_chunks(places_around(found, how["context"])), how["context"])
        return found

    @staticmethod
    def _found(  # noqa: PLR0917
        reading: TableReader, query: str, vector: np.ndarray | None, depth: int, where: Condition | None, how: SearchOptions
    ) -> pa.Table:
        """The best `depth` rows, of as many documents where that is asked for."""
        asked = depth
        while True:
            if vector is None:
                rows = reading.search_text(query, asked, where)
            elif how["mode"] == "hybrid":
                rows = reading.search_hybrid(vector, query, asked, where, exact=how.get("exact", False))
            elif how.get("compressed"):
                rows = reading.search_compressed(vector, asked, where)
            else:
                rows = reading.search_vector(vector, asked, where, exact=how.get("exact", False))
            if not how.get("per_document"):
                return rows
            first = first_of_each_document(rows)
            if first.num_rows >= depth or rows.num_rows < asked:
                return first[:depth]
            asked *= 4

    @cached_property
    def _reranker(self) -> Reranker:
        return Reranker(model.resolve_reranker(self._config.search.reranker), device=self._config.model.device)


def _check_texts(queries: Sequence[str], how: SearchOptions) -> None:
    """Raises QueryError for a text too long, and too many texts that are added or taken off."""
    plus, minus = how.get("plus", ()), how.get("minus", ())
    if max(len(plus), len(minus)) > MAX_TEXTS:
        raise QueryError(f"plus has {len(plus)} texts and minus {len(minus)}, wanted {MAX_TEXTS} at most of each")
    longest = max((len(text) for text in (*queries, *plus, *minus)), default=0)
    if longest > MAX_QUERY_CHARS:
        raise QueryError(f"a query of {longest:,} characters, wanted {MAX_QUERY_CHARS:,} at most")


def open_table(config: str | Path = "config.toml", overrides: Mapping[str, Any] | None = None) -> SearchTable:
    """The table that a config names, ready to search. Raises StoreError where there is none yet, SpecMismatch where the config
    asks for another model than made its vectors.
    """
    return SearchTable(load(config, overrides))
