"""One version of the table, open for searches, through lancedb: vector, full text, both, and what stands around a passage.

Every answer has a column SCORE: higher is better, comparable within one mode. A filter is applied before the search, and planned before it is run.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent.errors import QueryError, StoreError
from latent.schemas import SCORE
from latent.store.conditions import Condition, condition
from latent.store.derived import Codes, read_codes, same_rows
from latent.store.failures import lance_errors, one_line
from latent.store.full_text_settings import WORDS_KEY, FullTextSettings, WordQuery, indexed_in_memory
from latent.store.ownership import SPEC_KEY, Store
from latent.types import Spec

INDEXED_FROM = 10_000  # rows; below, exact search is as fast
FEW_ROWS = 20_000  # that meet a filter: compared one by one, in some 20 ms; an index would look at many that do not meet it
PLANS_KEPT = 1000  # filters
RESCORED = 50  # rows found by their codes that are ordered by their vectors, and
RESCORED_OF = 5  # times as many as are asked for
DEPTH = 100  # hits of each side that a hybrid search fuses
TUNING_KEY = "latent.tuning"
FLAT_ROWS = 100_000  # outside the full-text index that a search by words looks through, in about a second
PHRASE_DEPTH = 10_000  # rows at most that are looked through for a phrase


@dataclass(frozen=True)
class Tuning:
    """How far a vector search looks, and what was measured when that was chosen."""

    wanted: float  # the recall@10 that was asked for
    nprobes: int  # parts of the index; 0: searches are exact, since that is as fast, or since no effort holds the recall
    refine_factor: int  # so many times k rows are compared by their full vectors
    recall: float  # recall@10 against exact search
    filtered: float  # the same under a filter that one row in sixteen meets; where those are FEW_ROWS at most, it is exact
    milliseconds: float  # a search, median
    exact_milliseconds: float  # an exact one
    rows: int  # of the table when this was measured
    version: int  # of the table then
    trained: int  # rows that the index was trained on


def read_tuning(table: lance.LanceDataset) -> Tuning | None:
    """What maintain measured; None where searches are exact for want of an index."""
    text = table.metadata.get(TUNING_KEY)
    return Tuning(**json.loads(text)) if text else None


class TableReader:
    """One version of the table. Safe to share between threads; what is committed meanwhile, it does not see."""

    def __init__(self, store: Store) -> None:
        """Open the newest version. Raises StoreError where there is no table."""
        self.store = store
        self._rows = store.opened()
        self.version = int(self._rows.version)
        self.tuning = read_tuning(self._rows)
        self._table = connected(store, self.version)
        self.columns = [name for name in self._table.schema.names if name != "vector"]
        self._planned: dict[str, tuple[str, int]] = {}  # by filter: what lancedb takes, and how many rows meet it
        self._planning = threading.RLock()

    @functools.cached_property
    def spec(self) -> Spec:
        """Of the vectors in this version."""
        return Spec.from_json(self._rows.schema.metadata[SPEC_KEY].decode())

    @functools.cached_property
    def count(self) -> int:
        """How many rows."""
        return int(self._rows.count_rows())

    @functools.cached_property
    def has_full_text(self) -> bool:
        """Whether there is an index of words."""
        return any(index.index_type == "FTS" for index in self._table.list_indices())

    @functools.cached_property
    def _newer_than_words(self) -> int:
        """How many rows the index of words does not hold."""
        stats = [self._table.index_stats(i.name) for i in self._table.list_indices() if i.index_type == "FTS"]
        return sum(each.num_unindexed_rows for each in stats if each)

    @functools.cached_property
    def _codes(self) -> Codes:
        """Raises QueryError where the table was not compressed as it is now."""
        codes = read_codes(self.store)
        if codes is None:
            raise QueryError(f"{self.store.label} is not compressed: run 'latent compress --write NAME'")
        if not same_rows(self._rows, codes.version, codes.rows.num_rows):
            raise QueryError(
                f"{self.store.label} was compressed at version {codes.version}, and rows came or went since: run 'latent compress --write {codes.codec.name}' again"
            )
        return codes

    def fully_indexed(self, *, full_text: bool) -> bool:
        """Whether all searches are answered, as fast as they will be: maintain has seen to it."""
        return (self.tuning is not None or self.count < INDEXED_FROM) and (self.has_full_text or not full_text or not self.count)

    def newest(self) -> TableReader:
        """This one where the table has no newer version, else that of the newest."""
        with lance_errors(f"{self.store.label} cannot be opened"):
            newest = self._rows.latest_version
        return self if newest == self.version else TableReader(self.store)

    def search_vector(self, vector: np.ndarray, k: int, where: Condition | None = None, *, exact: bool = False) -> pa.Table:
        """The k rows nearest to the vector (dim,), nearest first; the score is the cosine."""
        rows = self._run(self._nearest(vector, k, where, exact=exact).select([*self.columns, "_distance"]), where)
        return rows.append_column(SCORE, pc.subtract(1.0, rows["_distance"].cast(pa.float64())))

    def search_compressed(self, vector: np.ndarray, k: int, where: Condition | None = None) -> pa.Table:
        """As `search_vector`, of the rows whose codes are nearest (`latent compress --write`): their order is that of the full vectors."""
        allowed = None
        if where:
            allowed = self._run(self._meeting(where), where)["_rowid"].combine_chunks()
        found = self._codes.nearest(vector, max(RESCORED, RESCORED_OF * k), allowed)
        rows = self._take_rows(pa.chunked_array([found]), [*self.columns, "vector"])
        scores = matrix(rows["vector"].combine_chunks()).astype(np.float64) @ vector
        best = np.argsort(-scores, kind="stable")[:k]
        return rows.drop_columns(["vector"]).take(best).append_column(SCORE, pa.array(scores[best]))

    def search_text(self, words: str, k: int, where: Condition | None = None) -> pa.Table:
        """The k rows that the words of a query fit best; the score is BM25. Rows without any of the words are not among them."""
        rows = self._text_query(words, k, where, [*self.columns, "_score"])
        return rows.append_column(SCORE, rows["_score"].cast(pa.float64()))

    def search_hybrid(
        self, vector: np.ndarray, words: str, k: int, where: Condition | None = None, *, exact: bool = False
    ) -> pa.Table:
        """Reciprocal rank fusion of both (Cormack, Clarke & Büttcher 2009): the score is the sum of 1 / (60 + rank) over the two lists."""
        from lancedb.rerankers import RRFReranker

        depth = max(k, DEPTH)
        nearest = self._run(self._nearest(vector, depth, where, exact=exact).select(["_distance"]), where)
        lists = [nearest.select(["_rowid"]), self._text_query(words, depth, where, ["_score"]).select(["_rowid"])]
        fused = RRFReranker().rerank_hybrid(words, *lists)[:k]
        rows = self._take_rows(fused["_rowid"], self.columns)
        return rows.append_column(SCORE, fused["_relevance_score"].cast(pa.float64()))

    def vectors_of(self, rows: pa.Table) -> np.ndarray:
        """The vectors (n, dim) of rows of an answer."""
        return matrix(self._take_rows(rows["_rowid"], ["vector"])["vector"].combine_chunks())

    def neighboring_chunks(self, places: Mapping[str, Collection[int]]) -> pa.Table:
        """Passages of documents at these places, where there are such: doc_id, chunk_index, text, char_start, char_end, in order."""
        at = sorted({place for some in places.values() for place in some})
        columns = ["doc_id", "chunk_index", "text", "char_start", "char_end"]
        query = (
            self._table.search().where(condition({"doc_id": list(places), "chunk_index": at}, self._rows.schema)).select(columns)
        )
        with lance_errors(f"{self.store.label} cannot be read"):
            found = query.limit(len(places) * len(at) or 1).to_arrow()
        return found.sort_by([("doc_id", "ascending"), ("chunk_index", "ascending")])

    def sample(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Rows drawn at random: chunk_id, text, and `documents`, the ids of all that hold the same passage."""
        drawn = np.sort(np.random.default_rng(seed).choice(self.count, min(count, self.count), replace=False)).tolist()
        with lance_errors(f"{self.store.label} cannot be read"):
            rows = self._rows.take(drawn, columns=["chunk_id", "text", "chunk_hash"]).to_pylist()
            hashes = list({row["chunk_hash"] for row in rows})
            alike = self._table.search().where(condition({"chunk_hash": hashes}, self._rows.schema))
            holders = alike.select(["chunk_hash", "doc_id"]).limit(self.count or 1).to_arrow()
        documents: dict[str, list[str]] = {}
        for known, doc_id in zip(holders["chunk_hash"].to_pylist(), holders["doc_id"].to_pylist(), strict=True):
            documents.setdefault(known, []).append(doc_id)
        return [row | {"documents": documents[row["chunk_hash"]]} for row in rows]

    def _nearest(self, vector: np.ndarray, k: int, where: Condition | None, *, exact: bool) -> Any:
        """The query for the nearest rows, with its filter, and how far it looks: exactly, or as far as was measured to hold the recall.

        Rows that meet a filter are spread over more parts of the index, so it looks at more of them in proportion.
        """
        query = self._table.search(vector, vector_column_name="vector", query_type="vector").distance_type("cosine").limit(k)
        query, share = query.with_row_id(True), 1.0
        if where:
            planned, meeting = self._plan(where)
            query = query.where(planned, prefilter=True)
            exact = exact or meeting <= FEW_ROWS
            share = max(meeting, 1) / max(self.count, 1)
        if exact or self.tuning is None or not self.tuning.nprobes:
            return query.bypass_vector_index()
        return query.nprobes(math.ceil(self.tuning.nprobes / share)).refine_factor(self.tuning.refine_factor)

    def _text_query(self, words: str, k: int, where: Condition | None, columns: list[str]) -> pa.Table:
        """The rows that words fit best, and hold the phrases among them."""
        query = WordQuery(words, self._words)
        if not query.phrases:
            return self._matching(query, k, where, columns)
        asked, all_words = k, True
        while True:
            rows = self._matching(query, asked, where, [*dict.fromkeys([*columns, "text"])], all_words=all_words)
            if not rows.num_rows and all_words:
                all_words = False  # a phrase of stop words only has no word that a row could hold
                continue
            holding = rows.filter(query.holds(rows["text"]))
            if holding.num_rows >= k or rows.num_rows < asked or asked >= PHRASE_DEPTH:
                return holding[:k].select([*columns, "_rowid"])
            asked *= 4

    def _matching(
        self, query: WordQuery, k: int, where: Condition | None, columns: list[str], *, all_words: bool = True
    ) -> pa.Table:
        """The rows that words fit best. Those that are newer than the index are searched one by one, and left out where they are too many for that."""
        if not self.has_full_text and self.count:
            return self._matching_in_memory(query, k, where, columns, all_words=all_words)
        newer = self._newer_than_words
        found = (
            self._table.search(query.match(unfolded=newer > 0, all_words=all_words), query_type="fts").limit(k).with_row_id(True)
        )
        if newer > FLAT_ROWS:
            found = found.fast_search()
        if where:
            found = found.where(self._plan(where)[0], prefilter=True)
        return self._run(found.select(columns), where)

    def _matching_in_memory(
        self, query: WordQuery, k: int, where: Condition | None, columns: list[str], *, all_words: bool
    ) -> pa.Table:
        """As `_matching`, of a table that has no index yet. Raises QueryError where its rows are too many."""
        if self.count > FLAT_ROWS:
            many = f"{self.store.label} has no full-text index, and its {self.count:,} rows are too many to search one by one"
            raise QueryError(
                f"{many} (at most {FLAT_ROWS:,}): a run that is under way makes one as it commits; else set [index] full_text = true and run 'latent maintain'"
            )
        with self._planning:
            texts = self._in_memory
        found = texts.search(query.match(unfolded=False, all_words=all_words), query_type="fts").limit(self.count if where else k)
        hits = found.select(["row_id", "_score"]).to_arrow()
        if where:
            ids = self._run(self._meeting(where), where)["_rowid"].combine_chunks()
            hits = hits.filter(pc.is_in(hits["row_id"], value_set=ids))[:k]
        rows = self._take_rows(hits["row_id"], [name for name in columns if name != "_score"])
        return rows.append_column("_score", hits["_score"])

    @functools.cached_property
    def _in_memory(self) -> Any:
        texts = self._table.search().select(["text"]).with_row_id(True).limit(self.count)
        return indexed_in_memory(self._run(texts, None).rename_columns({"_rowid": "row_id"}), self._words)

    @property
    def _words(self) -> FullTextSettings:
        return FullTextSettings.from_json(self._rows.metadata.get(WORDS_KEY))

    def _meeting(self, where: Condition) -> Any:
        """The query for the ids of all rows that meet a filter."""
        return self._table.search().where(self._plan(where)[0]).with_row_id(True).select(["_rowid"]).limit(self.count or 1)

    def _take_rows(self, row_ids: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """These rows, in this order."""
        with lance_errors(f"{self.store.label} cannot be read"):
            rows = self._table.take_row_ids(row_ids.to_pylist()).with_row_id().select([*columns]).to_arrow()
        return rows.take(pc.index_in(row_ids, value_set=rows["_rowid"].combine_chunks()))

    def _plan(self, where: Condition) -> tuple[str, int]:
        """The filter as lancedb takes it, and how many rows meet it. Raises QueryError where the table cannot evaluate it."""
        known = repr(where)
        with self._planning:
            planned = self._planned.get(known)
        if planned is None:
            asked = condition(where, self._rows.schema)
            query = self._table.search().where(asked).select(["chunk_index"]).limit(self.count or 1)
            try:
                query.explain_plan()
            except (ValueError, OSError, RuntimeError) as error:
                raise self._refused(where, error) from error
            planned = asked, int(self._run(query, where).num_rows)
            with self._planning:
                self._planned[known] = planned
                if len(self._planned) > PLANS_KEPT:
                    self._planned.pop(next(iter(self._planned)))
        return planned

    def _refused(self, where: Condition, error: Exception) -> QueryError:
        reason = one_line(error).partition(". Valid fields")[0].removeprefix("Invalid user input: ")
        return QueryError(f"where {where!r:.200}: {reason}; columns: {self._typed_columns}")

    @property
    def _typed_columns(self) -> str:
        return ", ".join(f"{f.name} ({f.type})" for f in self._rows.schema if f.name != "vector")

    def _run(self, query: Any, where: Condition | None) -> pa.Table:
        try:
            return query.to_arrow()
        except (ValueError, OSError, RuntimeError) as error:
            if where and "LanceError(IO)" not in str(error):
                raise self._refused(where, error) from error
            raise StoreError(f"{self.store.label} cannot be searched: {one_line(error)}") from error


def matrix(vectors: pa.FixedSizeListArray) -> np.ndarray:
    """A column of vectors as (n, dim) float32."""
    flat: np.ndarray = vectors.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(vectors), vectors.type.list_size).astype(np.float32, copy=False)


def connected(store: Store, version: int | None = None) -> Any:
    """The table as lancedb opens it, at a version or at the newest."""
    import lancedb  # not at import: Ray forks when it starts, and lancedb's runtime should not be there yet

    with lance_errors(f"{store.label} cannot be opened"):
        table = lancedb.connect(store.uri, storage_options=store.options).open_table(store.name)
        if version is not None:
            table.checkout(version)
        return table
