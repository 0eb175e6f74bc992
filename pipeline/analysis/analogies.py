"""From text to text: what lies on the way between two, and whether directions mean something (a is to b as c is to what?)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from latent import store
from latent.errors import QueryError
from latent.evaluation.datasets import Analogy, read_analogies
from latent.search import Hit, SearchTable
from latent.search.vector_arithmetic import combined, way
from latent.store import Condition, Store

ENCODED_AT_ONCE = 1024
ASKED_AT_ONCE = 2048  # questions that are compared with some thousands of rows at a time
NEAREST = 8  # rows a question: those of its own three words do not count

MAX_STEPS = 1000


@dataclass(frozen=True)
class Step:
    """A point on the way from one text to another, and what lies nearest to it."""

    at: float  # 0 at the first text, 1 at the second
    hits: Sequence[Hit]


def between(  # noqa: PLR0917
    table: SearchTable, start: str, end: str, steps: int, k: int = 1, where: Condition | None = None
) -> list[Step]:
    """Walk the sphere from one text's vector to the other's. Raises QueryError for fewer than two steps, empty or opposite texts."""
    if not 2 <= steps <= MAX_STEPS:
        raise QueryError(f"steps = {steps}, wanted 2 (both ends are steps) to {MAX_STEPS}")
    first, last = table.encode_queries([start, end])
    points = way(first, last, steps)
    if points is None:
        raise QueryError("the two texts are opposite to each other: there is no one way between them")
    return [
        Step(round(float(at), 4), table.nearest(point, k, where))
        for at, point in zip(np.linspace(0, 1, steps), points, strict=True)
    ]


@dataclass(frozen=True)
class Analogies:
    """How many questions a : b :: c : ? the nearest passage to b - a + c answers."""

    accuracy: float  # of the questions asked
    correct: int
    questions: int  # asked
    skipped: int  # one of their four texts is no passage of the table
    sections: dict[str, float] = field(default_factory=dict)  # accuracy of each


def analogies(table: SearchTable, path: Path) -> Analogies:
    """Ask a file of analogies (3CosAdd, Mikolov, Yih & Zweig 2013): a's, b's and c's own passages do not count as answers. Upper and lower case are one.

    Raises QueryError where no question has all its texts in the table, SourceError for the file.
    """
    asked = read_analogies(path)
    place, version = table.place, table.version
    known = _places(place, version, {text for each in asked for text in each.texts})
    kept = [each for each in asked if all(text in known for text in each.texts)]
    if not kept:
        raise QueryError(f"{path}: no question has its four texts among the passages of {place.label}")
    texts = sorted({text for each in kept for text in each.texts[:3]})
    vectors = dict(zip(texts, _vectors(table, texts), strict=True))
    right: Counter[str] = Counter()
    for start in range(0, len(kept), ASKED_AT_ONCE):
        some = kept[start : start + ASKED_AT_ONCE]
        answers = _answers(place, version, some, vectors)
        right.update(each.section for each, answer in zip(some, answers, strict=True) if answer in known[each.texts[3]])
    counts = Counter(each.section for each in kept)
    return Analogies(
        right.total() / len(kept),
        right.total(),
        len(kept),
        len(asked) - len(kept),
        {section: right[section] / count for section, count in sorted(counts.items())} if len(counts) > 1 else {},
    )


def _places(place: Store, version: int, wanted: set[str]) -> dict[str, set[int]]:
    """Of each text, in lower case, the places in the table of the passages that are it."""
    found: dict[str, set[int]] = {}
    start = 0
    for batch in store.batches(place, version, ["text"]):
        for row, text in enumerate(batch["text"].to_pylist()):
            if (plain := text.strip().casefold()) in wanted:
                found.setdefault(plain, set()).add(start + row)
        start += batch.num_rows
    return found


def _vectors(table: SearchTable, texts: list[str]) -> np.ndarray:
    parts = [table.encode_queries(texts[start : start + ENCODED_AT_ONCE]) for start in range(0, len(texts), ENCODED_AT_ONCE)]
    return np.concatenate(parts)


def _answers(place: Store, version: int, questions: Sequence[Analogy], vectors: dict[str, np.ndarray]) -> list[int | None]:
    """The place of the row that answers each question best, its own texts left out. Reads all vectors once."""
    towards = np.stack([_towards(*(vectors[text] for text in each.texts[:3])) for each in questions])
    best = np.full((len(questions), NEAREST), -np.inf, np.float32)
    at = np.full((len(questions), NEAREST), -1)
    texts: dict[int, str] = {}
    start = 0
    for batch in store.batches(place, version, ["text", "vector"]):
        cosines = towards @ store.matrix(batch["vector"]).T
        both = np.concatenate([best, cosines], 1)
        places = np.concatenate([at, np.broadcast_to(start + np.arange(batch.num_rows), cosines.shape)], 1)
        order = np.argpartition(-both, NEAREST - 1, axis=1)[:, :NEAREST]
        best, at = np.take_along_axis(both, order, 1), np.take_along_axis(places, order, 1)
        new = set(at[at >= start].ravel().tolist())
        texts |= {i: batch["text"][i - start].as_py().strip().casefold() for i in new}
        start += batch.num_rows
    ranked = np.take_along_axis(at, np.argsort(-best, axis=1), 1).tolist()
    return [
        next((i for i in row if i >= 0 and texts[i] not in each.texts[:3]), None)
        for each, row in zip(questions, ranked, strict=True)
    ]


def _towards(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    found = combined(np.stack([b, c]), a[None])
    return b if found is None else found
