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
    scores: Scores = {query: {} for query in judgments}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), judgments, found):
        scores[metric.query_id][names[str(metric.measure)]] = float(metric.value)
    return scores


def means(scores: Scores) -> dict[str, float]:
    """Each measure's mean over the queries."""
    return {name: float(np.mean([values[name] for values in scores.values()])) for name in MEASURES}


def p_values(one: Scores, other: Scores) -> dict[str, float]:
    """How probable a difference of the means as large as this is by chance alone: a paired randomisation test on the queries
    (Smucker, Allan & Carterette 2007), two-sided.
    """
    return {name: _p([(one[query][name], other[query][name]) for query in one]) for name in MEASURES}


def _p(pairs: list[tuple[float, float]]) -> float:
    a, b = np.array(pairs).T
    if (a == b).all():
        return 1.0

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        result: np.ndarray = (x - y).mean(axis=axis)
        return result

    chance = np.random.default_rng(SEED)
    tested = permutation_test((a, b), difference, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, rng=chance)
    return float(tested.pvalue)
