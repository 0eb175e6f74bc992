"""What a search finds, and what stands around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from latent.schemas import LANCE_COLUMNS, OWN_COLUMNS, SCORE

NOT_METADATA = OWN_COLUMNS | LANCE_COLUMNS | {SCORE}
OWN_KEYS = frozenset(["rank", "score", "before", "after", "metadata"])  # of a flat hit; a metadata column may be called so


@dataclass(frozen=True)
class Hit:
    """A passage that answers a query."""

    rank: int  # from 1
    doc_id: str
    chunk_id: str
    score: float
    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)
    before: str = ""  # of the document, where `context` asks for it: what the passages before this one add to it
    after: str = ""

    def flat(self) -> dict[str, object]:
        """The metadata columns beside the hit's own keys, as `--json` prints it. Columns that are called as one of these stand below `metadata`."""
        own = {"rank": self.rank, "doc_id": self.doc_id, "chunk_id": self.chunk_id, "score": self.score, "text": self.text}
        around = {name: text for name, text in (("before", self.before), ("after", self.after)) if text}
        beside = {name: value for name, value in self.metadata.items() if name not in OWN_KEYS}
        below = {name: value for name, value in self.metadata.items() if name in OWN_KEYS}
        return own | around | beside | ({"metadata": below} if below else {})


def hits(rows: pa.Table) -> list[Hit]:
    """Rows of an answer, best first, as hits."""
    columns = [name for name in rows.column_names if name != "vector"]
    return [_hit(rank, row) for rank, row in enumerate(rows.select(columns).to_pylist(), 1)]


def _hit(rank: int, row: dict[str, Any]) -> Hit:
    metadata = {name: value for name, value in row.items() if name not in NOT_METADATA}
    return Hit(rank, row["doc_id"], row["chunk_id"], row[SCORE], row["text"], metadata)


def places_around(found: list[Hit], passages: int) -> dict[str, set[int]]:
    """Of each hit's document the places of the hits and of so many passages before and after them."""
    places: dict[str, set[int]] = {}
    for hit in found:
        places.setdefault(hit.doc_id, set()).update(range(max(_place(hit) - passages, 0), _place(hit) + passages + 1))
    return places


def with_context(found: list[Hit], rows: pa.Table, passages: int) -> list[Hit]:
    """The hits with so many passages before and after them, which are among the rows.

    Passages overlap; what a neighbour has in common with the passage is not repeated.
    """
    at = {(row["doc_id"], row["chunk_index"]): row for row in rows.to_pylist()}
    return [_in_context(hit, at, passages) for hit in found]


def _in_context(hit: Hit, at: Mapping[tuple[str, int], dict[str, Any]], passages: int) -> Hit:
    place = _place(hit)
    start, end = (at[hit.doc_id, place][side] for side in ("char_start", "char_end"))
    before, after = "", ""
    for distance in range(1, passages + 1):
        if row := at.get((hit.doc_id, place - distance)):
            before = _cut(row, row["char_start"], start) + before
            start = min(start, row["char_start"])
        if row := at.get((hit.doc_id, place + distance)):
            after += _cut(row, end, row["char_end"])
            end = max(end, row["char_end"])
    return replace(hit, before=before, after=after)


def _place(hit: Hit) -> int:
    return int(hit.chunk_id.rpartition("#")[2])


def _cut(row: dict[str, Any], start: int, end: int) -> str:
    """The part of a passage between two places in its document."""
    text: str = row["text"][max(start - row["char_start"], 0) : max(end - row["char_start"], 0)]
    return text
