"""Whether a body of documents moved: two tests, their thresholds, and how much it matters. Pure.

An alarm must be certain and it must matter: so improbable by chance that it comes once in a thousand quiet nights (FALSE_ALARMS, shared by both tests), and as much as MATTERS of all documents.

- **strangers**: how far are the documents that came from the nearest one before? The same is asked of documents before (each without itself); STRANGE of them lie beyond a bound, and
  Fisher's exact test says whether those that came lie beyond it more often than chance would have it. The bound is of those before alone: among all together a crowd of strangers would
  move it away from itself. One in twenty foreign documents is found so among some hundreds; a kernel two-sample test (MMD) does not see them among two thousand.
- **shares**: are documents that came, went and stayed spread over the topics alike? Pearson's chi-squared test, topics of too few documents put together. How much: half the sum of
  what the shares of all documents changed by (total variation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2_contingency, fisher_exact

FALSE_ALARMS = 0.001
TESTS = 2
MATTERS = 0.01
STRANGE = 0.025
EXPECTED = 5  # documents of a topic in each row of the chi-squared test, at least (Cochran 1954)


@dataclass(frozen=True)
class Finding:
    """What a test says."""

    p: float  # probability of so much by chance alone
    share: float  # of all documents: how much it matters

    @property
    def alarm(self) -> bool:
        return self.p < FALSE_ALARMS / TESTS and self.share >= MATTERS


def strangers(came: np.ndarray, before: np.ndarray, came_share: float) -> Finding:
    """`came` (n,), `before` (m,): cosine distances to the nearest document before. `came_share`: of all documents now, those that came."""
    if not len(came) or not len(before):
        return Finding(1.0, 0.0)
    bound = np.quantile(before, 1 - STRANGE)
    far, usual = int((came > bound).sum()), int((before > bound).sum())
    p = fisher_exact([[far, len(came) - far], [usual, len(before) - usual]], "greater").pvalue
    beyond = usual / len(before)  # so many of those that are no strangers lie there too
    return Finding(float(p), max(0.0, (far / len(came) - beyond) / (1 - beyond)) * came_share)


def shares(came: np.ndarray, went: np.ndarray, stayed: np.ndarray) -> Finding:
    """Documents (topics,) of each topic that came, went and stayed."""
    p = 1.0
    rows = np.stack([row for row in (came, went, stayed) if row.sum()])
    counts = _large_enough(rows)
    if min(counts.shape) > 1:
        p = float(chi2_contingency(counts).pvalue)
    if not (before := went + stayed).sum() or not (now := came + stayed).sum():
        return Finding(p, 1.0)
    return Finding(p, float(np.abs(now / now.sum() - before / before.sum()).sum() / 2))


def _large_enough(rows: np.ndarray) -> np.ndarray:
    """The columns, those in which any row expects too few put together, the smallest first."""
    columns = rows[:, np.argsort(rows.sum(0))]
    while columns.shape[1] > 1 and columns.sum(0)[0] * rows.sum(1).min() < EXPECTED * rows.sum():
        columns = np.concatenate([columns[:, :2].sum(1, keepdims=True), columns[:, 2:]], 1)
        columns = columns[:, np.argsort(columns.sum(0))]
    return columns


def of_documents(vectors: np.ndarray, documents: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """The mean direction (count, dim) of each document's passages. `documents` (n,): which one each passage is of, numbered from 0."""
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    np.add.at(sums, np.asarray(documents), vectors)
    directions: np.ndarray = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return directions


def to_nearest(vectors: np.ndarray, others: np.ndarray, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of each row (n, dim) the cosine distance (n,) to the nearest of others (m, dim), and which one that is. `own` (n,): the one that it is itself, left out."""
    far, nearest = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), 1024):
        cosines = vectors[start : start + 1024] @ others.T
        if own is not None:
            cosines[np.arange(len(cosines)), own[start : start + 1024]] = -2
        nearest[start : start + 1024], far[start : start + 1024] = cosines.argmax(1), 1 - cosines.max(1)
    return far, nearest
