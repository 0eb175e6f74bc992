"""What a search finds, and what stands around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipeline.schema import OWN_COLUMNS

NOT_METADATA = OWN_COLUMNS | {"score"}


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
        """The metadata columns beside the others, as `--json` prints it."""
        own = {"rank": self.rank, "doc_id": self.doc_id, "chunk_id": self.chunk_id, "score": self.score, "text": self.text}
        around = {name: text for name, text in (("before", self.before), ("after", self.after)) if text}
        return own | around | dict(self.metadata)


def hits(rows: pa.Table) -> list[Hit]:
    """Rows of an answer, best first, as hits."""
    columns = [name for name in rows.column_names if name != "vector" and not name.startswith("_")]
    return [_hit(rank, row) for rank, row in enumerate(rows.select(columns).to_pylist(), 1)]


def _hit(rank: int, row: dict[str, Any]) -> Hit:
    metadata = {name: value for name, value in row.items() if name not in NOT_METADATA}
    return Hit(rank, row["doc_id"], row["chunk_id"], row["score"], row["text"], metadata)


def with_context(found: list[Hit], rows: pa.Table, passages: int) -> list[Hit]:
    """The hits with so many passages before and after them. `rows`: all passages of their documents, in order.

    Passages overlap; what a neighbour has in common with the passage is not repeated.
    """
    documents: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        documents.setdefault(row["doc_id"], []).append(row)
    return [_in_context(hit, documents.get(hit.doc_id, []), passages) for hit in found]


def _in_context(hit: Hit, document: list[dict[str, Any]], passages: int) -> Hit:
    at = next((i for i, row in enumerate(document) if f"{row['doc_id']}#{row['chunk_index']}" == hit.chunk_id), None)
    if at is None:
        return hit
    before, after = "", ""
    start, end = document[at]["char_start"], document[at]["char_end"]
    for row in reversed(document[max(at - passages, 0) : at]):
        before = _cut(row, row["char_start"], start) + before
        start = min(start, row["char_start"])
    for row in document[at + 1 : at + 1 + passages]:
        after += _cut(row, end, row["char_end"])
        end = max(end, row["char_end"])
    return replace(hit, before=before, after=after)


def _cut(row: dict[str, Any], start: int, end: int) -> str:
    """The part of a passage between two places in its document."""
    text: str = row["text"][max(start - row["char_start"], 0) : max(end - row["char_start"], 0)]
    return text
