"""Which rows lie next to which, cell by cell and not all against all: near-duplicates and outliers. Pure.

The space is cut into cells, each row belongs to the nearest, and is compared with the rows of the few cells nearest to it. How many that must be is measured beforehand
(`looks_for`). Rows are unit vectors throughout; memory holds a few cells at a time, and of each row some numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sklearn.cluster import KMeans

CELL_ROWS = 1000  # in the mean
LOOKS = 16  # cells that a row is compared with, at most
FEWEST_LOOKS = 4  # and at least, whatever a few pairs say
FOUND = 0.99  # of the pairs are looked at, at least
NEIGHBOURS = 5  # how far the fifth is tells how strange a row is: four like it may be a topic's beginning, or copies
AT_ONCE = 1024  # rows
PIECE = 8192  # rows of a cell that those are compared with at a time: 32 MB of cosines
NONE = -1


@dataclass(frozen=True)
class Cells:
    """Rows in the order of their cells, within a cell the ones to keep first."""

    order: np.ndarray  # (n,) the row at each place
    starts: np.ndarray  # (cells + 1,) where each cell begins, in places
    nearest: np.ndarray  # (n, LOOKS) the cells nearest to the row at each place, its own first


@dataclass(frozen=True)
class Kin:
    """What was found, by place."""

    kept: np.ndarray  # (n,) the place of the row that stands for this one; its own where it is kept
    similarity: np.ndarray  # (n,) to that one: 1 to itself
    far: (
        np.ndarray
    )  # (n,) cosine distance to the NEIGHBOURS-th nearest, or more than that where it lies in a cell that was not looked at


def centres(sample: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The middles (cells, dim) of cells for so many rows, from a sample of them."""
    count = max(1, min(rows // CELL_ROWS, len(sample) // 2))
    found: np.ndarray = KMeans(count, init="random", n_init=1, max_iter=10, random_state=seed).fit(sample).cluster_centers_
    return found.astype(np.float32, copy=False)


def nearest_cells(vectors: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """The LOOKS cells nearest to each row (n, dim), the nearest first; all where there are fewer."""
    distances = (middles * middles).sum(1) - 2 * vectors @ middles.T
    looks = min(LOOKS, len(middles))
    some = np.argpartition(distances, looks - 1, axis=1)[:, :looks]
    order = np.argsort(np.take_along_axis(distances, some, 1), axis=1)
    nearest: np.ndarray = np.take_along_axis(some, order, 1).astype(np.uint32)
    return nearest


def in_cells(nearest: np.ndarray, worth: np.ndarray) -> Cells:
    """Rows by cell. `worth` (n,): of two that are alike in one cell the greater is kept."""
    order = np.lexsort((-worth, nearest[:, 0]))
    starts = np.searchsorted(nearest[order, 0], np.arange(int(nearest.max()) + 2))
    return Cells(order, starts, nearest[order])


def pairs(vectors: np.ndarray, places: np.ndarray, similarity: float) -> Iterator[np.ndarray]:
    """Pairs (m, 2) of places that are so similar, the first of each among `places`, some at a time. Reads all rows once."""
    asked = np.asarray(vectors[places])
    for start in range(0, len(vectors), AT_ONCE):
        row, at = np.nonzero(asked @ np.asarray(vectors[start : start + AT_ONCE]).T >= similarity)
        found = np.stack([places[row], start + at], 1)
        yield found[found[:, 0] != found[:, 1]]


@dataclass(frozen=True)
class Looks:
    """How many cells a row is compared with."""

    cells: int
    met: float  # share of the pairs that meet so; 1 where there are none
    pairs: int  # that this was seen on


def looks_for(cells: Cells, pairs: Iterable[np.ndarray]) -> Looks:
    """As many cells as it takes that FOUND of these pairs (m, 2) of places meet, FEWEST_LOOKS at least."""
    most = cells.nearest.shape[1]
    meet, total = np.zeros(most, np.int64), 0  # by the first cell in which they do
    for some in pairs:
        met = cells.nearest[some.max(1)] == cells.nearest[some.min(1), :1]
        meet += np.bincount(met.argmax(1)[met.any(1)], minlength=most)
        total += len(some)
    shares = meet.cumsum() / total if total else np.ones(most)
    enough = np.flatnonzero(shares >= FOUND)
    looks = min(most, max(FEWEST_LOOKS, int(enough[0]) + 1 if len(enough) else most))
    return Looks(looks, float(shares[looks - 1]), total)


def kin(vectors: np.ndarray, cells: Cells, similarity: float, looks: int, on_done: Callable[[int], None]) -> Kin:
    """Which rows are so similar to one that is kept. `vectors` (n, dim) in the order of places; may lie on disk. Every row that is not kept has a kept one that is
    so similar to it, and no two kept ones that were compared are (a chain of likes is not one group; SemDeDup, https://arxiv.org/abs/2303.09540, may drop both ends of it).
    """
    found = Kin(np.arange(len(vectors)), np.ones(len(vectors), np.float32), np.full(len(vectors), 2.0, np.float32))
    standing = np.zeros(len(vectors), bool)  # decided, and kept
    for start, end in ((a, min(a + AT_ONCE, z)) for s, z in pairwise(cells.starts.tolist()) for a in range(s, z, AT_ONCE)):
        some = np.asarray(vectors[start:end])
        likes = np.full((end - start, NEIGHBOURS), -1, np.float32)  # cosines of the nearest
        best, by = np.full(end - start, -1, np.float32), np.full(end - start, NONE)
        near = cells.nearest[start:end, :looks]
        for cell, first, last in _pieces(cells, np.unique(near)):
            looking = np.flatnonzero((near == cell).any(1))
            cosines = some[looking] @ np.asarray(vectors[first:last]).T
            own = (start + looking >= first) & (start + looking < last)
            cosines[np.flatnonzero(own), (start + looking - first)[own]] = -1
            _merge(likes, looking, cosines)
            if standing[first:last].any():
                cosines[:, ~standing[first:last]] = -1
                at = cosines.argmax(1)
                value = cosines[np.arange(len(looking)), at]
                better = value > best[looking]
                best[looking[better]], by[looking[better]] = value[better], first + at[better]
        _decide(found, start, some @ some.T, similarity, best, by)
        standing[start:end] = found.kept[start:end] == np.arange(start, end)
        found.far[start:end] = 1 - likes.min(1)
        on_done(end)
    return found


def _pieces(cells: Cells, some: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Each of these cells, from where to where, PIECE rows at most at a time: what is alike falls into one cell, however much it is."""
    for cell in some.tolist():
        start, end = int(cells.starts[cell]), int(cells.starts[cell + 1])
        yield from ((cell, first, min(first + PIECE, end)) for first in range(start, end, PIECE))


def far_from_all(vectors: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of these rows the cosine distance (m,) to the NEIGHBOURS-th nearest of all, and the place (m,) of the nearest. Reads all rows once."""
    asked = np.asarray(vectors[places])
    likes, nearest, best = (
        np.full((len(places), NEIGHBOURS), -1, np.float32),
        np.full(len(places), NONE),
        np.full(len(places), -1, np.float32),
    )
    for start in range(0, len(vectors), AT_ONCE):
        cosines = asked @ np.asarray(vectors[start : start + AT_ONCE]).T
        inside = np.flatnonzero((places >= start) & (places < start + cosines.shape[1]))
        cosines[inside, places[inside] - start] = -1
        _merge(likes, np.arange(len(places)), cosines)
        value, at = cosines.max(1), cosines.argmax(1)
        nearest[value > best] = start + at[value > best]
        best = np.maximum(best, value)
    return 1 - likes.min(1), nearest


def _merge(likes: np.ndarray, rows: np.ndarray, cosines: np.ndarray) -> None:
    """Into the greatest cosines so far."""
    both = np.concatenate([likes[rows], cosines], 1)
    likes[rows] = np.partition(both, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]


def _decide(found: Kin, start: int, among: np.ndarray, similarity: float, best: np.ndarray, by: np.ndarray) -> None:  # noqa: PLR0917
    """In turn: who is like one that is kept already is not. `among`: cosines of these rows with each other; `best`, `by`: the most similar kept one before them."""
    alike = np.tril(among >= similarity, -1).any(1)
    for row in np.flatnonzero((best >= similarity) | alike):
        before = np.flatnonzero(found.kept[start : start + row] == np.arange(start, start + row))
        value, kept = best[row], by[row]
        if len(before) and among[row, before].max() > value:
            at = before[among[row, before].argmax()]
            value, kept = among[row, at], start + at
        if value >= similarity:
            found.kept[start + row], found.similarity[start + row] = kept, min(value, 1)
