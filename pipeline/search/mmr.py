"""The order of what was found: one passage a document, or no two of a kind. Pure."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from latent.schemas import SCORE


def first_of_each_document(rows: pa.Table) -> pa.Table:
    """Of each document the first row."""
    first: dict[str, int] = {}
    for i, name in enumerate(rows["doc_id"].to_pylist()):
        first.setdefault(name, i)
    return rows.take(pa.array(first.values(), pa.int64()))  # typed, for no rows too


def diverse(rows: pa.Table, vectors: np.ndarray, k: int, diversity: float) -> pa.Table:
    """k rows, of unit vectors (n, dim), by maximal marginal relevance (Carbonell & Goldstein 1998): good ones that are unlike those before them.

    `diversity` from 0, by score alone, to 1, by unlikeness alone. Scores are stretched to [0, 1]; likeness is the cosine.
    """
    if not rows.num_rows:
        return rows
    scores = rows[SCORE].to_numpy()
    good = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    chosen: list[int] = []
    likeness = np.zeros(rows.num_rows)
    while len(chosen) < min(k, rows.num_rows):
        worth = (1 - diversity) * good - diversity * likeness
        worth[chosen] = -np.inf
        chosen.append(int(worth.argmax()))
        alike = vectors @ vectors[chosen[-1]]
        likeness = alike if len(chosen) == 1 else np.maximum(likeness, alike)
    return rows.take(chosen)
