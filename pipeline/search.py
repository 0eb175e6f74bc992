"""Retrieval: a query in words → the passages nearest to it.

    from pipeline import open_table
    open_table("config.toml").search("how do I parse a date", k=10)

The score is the cosine of query and passage, in [-1, 1]: higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import store
from pipeline.config import load
from pipeline.encode import Encoder
from pipeline.errors import QueryError
from pipeline.schema import OWN_COLUMNS
from pipeline.survey import Scene, scene

MOST_HITS = 10_000


@dataclass(frozen=True)
class Hit:
    """A passage that answers a query."""

    rank: int  # from 1
    doc_id: str
    chunk_id: str
    score: float
    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)

    def flat(self) -> dict[str, object]:
        """The metadata columns beside the others, as `--json` prints it."""
        own = {"rank": self.rank, "doc_id": self.doc_id, "chunk_id": self.chunk_id, "score": self.score, "text": self.text}
        return own | dict(self.metadata)


class Table:
    """A table to search. The model is loaded at the first query and kept; each search sees the newest version."""

    def __init__(self, at: Scene) -> None:
        self._at = at

    def search(self, query: str, k: int = 10, where: store.Condition | None = None, *, exact: bool = False) -> list[Hit]:
        """The k nearest passages, nearest first. `where` is applied before the search: a mapping of columns to a value, or to a list of values
        that will do, which never become SQL; or a string, which is SQL: put nothing into it that you would not run.

        `exact` passes by the index. Raises QueryError for an empty query, a k out of range, or a condition the table cannot evaluate.
        """
        if not query.strip():
            raise QueryError("the query is empty: give it a few words")
        return self.nearest(self.encode_query(query), k, where, exact=exact)

    def nearest(self, vector: np.ndarray, k: int = 10, where: store.Condition | None = None, *, exact: bool = False) -> list[Hit]:
        """As `search`, for a vector (dim,)."""
        if not 1 <= k <= MOST_HITS:
            raise QueryError(f"k = {k}, wanted 1 to {MOST_HITS}")
        rows = store.vector_search(self._at.store, vector, k, where, exact=exact)
        return [_hit(rank, row) for rank, row in enumerate(rows.to_pylist(), 1)]

    def encode_query(self, query: str) -> np.ndarray:
        """The query's unit vector (dim,), float32, the query prompt put before it."""
        text = self._at.config.model.query_prompt + query
        vector: np.ndarray = self._encoder.encode([text])[0]
        if not np.isfinite(vector).all():
            raise QueryError(f"the model has no vector for {query!r}: ask with other words")
        return vector

    @cached_property
    def _encoder(self) -> Encoder:
        settings = self._at.config.model
        return Encoder(self._at.model, device=settings.device, precision=settings.precision)


def open_table(config: str | Path = "config.toml", overrides: Mapping[str, Any] | None = None) -> Table:
    """The table that a config names, ready to search. Raises StoreError where there is none yet, SpecMismatch where the config
    asks for another model than made its vectors.
    """
    at = scene(load(config, overrides))
    at.store.opened()
    return Table(at)


def _hit(rank: int, row: dict[str, Any]) -> Hit:
    metadata = {name: value for name, value in row.items() if name not in OWN_COLUMNS and name != "_distance"}
    return Hit(rank, row["doc_id"], row["chunk_id"], 1.0 - row["_distance"], row["text"], metadata)
