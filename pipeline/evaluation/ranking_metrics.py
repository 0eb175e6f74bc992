"""How good an order of documents is, by judgments of people. Pure.

Measures by ir_measures (MacAvaney, Macdonald & Ounis 2022), which calls trec_eval: nDCG with linear gains, ties by document id, queries for which nothing
was found counted as 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import ir_measures
import numpy as np
from ir_measures import RR, R, nDCG
from scipy.stats import permutation_test

MEASURES = {"ndcg@10": nDCG @ 10, "recall@10": R @ 10, "recall@100": R @ 100, "mrr@10": RR @ 10}
DEPTH = 100  # documents of each query that are looked at
RESAMPLES = 10_000
SEED = 3

Found = Mapping[str, Mapping[str, float]]  # query id → document id → score
Scores = dict[str, dict[str, float]]  # query id → measure → value


def score(judgments: Mapping[str, Mapping[str, int]], found: Found) -> Scores:
    """Each measure of each judged query."""
    names = {str(measure): name for name, measure in MEASURES.items()}
    queries = list(judgments)
    plain = [_numbered(judgments[query], found.get(query, {})) for query in queries]
    judged, answers = ({str(place): both[side] for place, both in enumerate(plain)} for side in (0, 1))
    scores: Scores = {query: {} for query in judgments}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), judged, answers):
        scores[queries[int(metric.query_id)]][names[str(metric.measure)]] = float(metric.value)
    return scores


def _numbered(judged: Mapping[str, int], found: Mapping[str, float]) -> tuple[dict[str, int], dict[str, float]]:
    """The same with numbers for ids, in the order of the ids, by which ties are broken. trec_eval ends the process on an id with a NUL."""
    number = {document: f"{place:09}" for place, document in enumerate(sorted(judged.keys() | found.keys()))}
    return {number[d]: value for d, value in judged.items()}, {number[d]: value for d, value in found.items()}


def means(scores: Scores) -> dict[str, float]:
    """Each measure's mean over the queries."""
    return {name: float(np.mean([values[name] for values in scores.values()])) for name in MEASURES}


def p_values(one: Scores, other: Scores) -> dict[str, float]:
    """How probable a difference of the means as large as this is by chance alone: a paired randomisation test on the queries
    (Smucker, Allan & Carterette 2007), two-sided. A single query tells nothing: its p is 1.
    """
    return {name: _p([(one[query][name], other[query][name]) for query in one]) for name in MEASURES}


def _p(pairs: list[tuple[float, float]]) -> float:
    a, b = np.array(pairs).T
    if len(a) < 2 or (a == b).all():
        return 1.0

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        result: np.ndarray = (x - y).mean(axis=axis)
        return result

    chance = np.random.default_rng(SEED)
    tested = permutation_test((a, b), difference, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=chance)
    return float(tested.pvalue)
