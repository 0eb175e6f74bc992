"""Vectors → groups of like ones, a hierarchy above them, words for them, and the same numbers from one night to the next. Pure.

Rows are unit vectors throughout. What costs more than one pass (k-means, densities, the choice of a number) is done on a sample; each row of the table then belongs
to the nearest centre.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score, v_measure_score

from latent.errors import ConfigError, QueryError

DIMENSIONS = 32  # that k-means sees: 20 Newsgroups' subjects come out better than in 384 (v-measure 0.493 for 0.487), twice as fast
STARTS = 10  # of k-means: the best is kept
PER_CENTRE = 256  # rows, and
LEAST_SAMPLE = 20_000  # rows in all: more do not move the centres of k-means much
# Two or three are clear in any corpus, and tell nothing.
NUMBERS = (4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200)
AGREED = 0.5  # adjusted Rand index of two halves
AS_CLEAR = 0.9  # of the best silhouette
HALVED = 20_000  # rows, to choose a number with
LEAST_MEMBERS = 20  # a cluster of the sample, in the mean, where the number is chosen
LEAST_DENSE = 20  # rows: EVoC compares each with fifteen others
WITHIN = 0.95  # of a dense cluster's members are as near to its centre as a row must be to belong to it
NARROWER = 4  # clusters to one of the level above
FEWEST = 4  # at the top
SAME = 0.4  # of the members of both are common, at least, where a cluster keeps its number
MEASURED = 5_000  # rows, for the silhouette
LABEL_WORDS = 3
TELLING = 50  # words of a cluster
NOISE = -1


@dataclass(frozen=True)
class Centres:
    """Where clusters lie, and how far they reach."""

    at: np.ndarray  # (k, dim) float32, unit length
    reach: np.ndarray  # (k,) greatest cosine distance of a member; 2 where every row belongs to its nearest


@dataclass(frozen=True)
class Membership:
    """Of rows, in their order."""

    cluster: np.ndarray  # (n,) int32: a row of Centres, or NOISE
    strength: np.ndarray  # (n,) float32 in [0, 1]: how much nearer its centre is than the next; 0 for noise
    outlier: np.ndarray  # (n,) float32: cosine distance to the nearest centre


def kmeans(sample: np.ndarray, k: int, seed: int, start: np.ndarray | None = None) -> Centres:
    """k-means on the sample (n, dim), in its principal components. `start`: centres (k, dim) to begin from, such as yesterday's."""
    some = np.random.default_rng(seed).permutation(len(sample))[: max(LEAST_SAMPLE, PER_CENTRE * k)]
    sample = sample[np.sort(some)]
    components = PCA(min(DIMENSIONS, *sample.shape), random_state=seed).fit(sample)
    begin = "k-means++" if start is None else components.transform(start)
    fitted = KMeans(k, init=begin, n_init=STARTS if start is None else 1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer points than k: some centres are left out below
        centres = _centres(sample, fitted.fit_predict(components.transform(sample)))
    return _with_members(sample, Centres(centres, np.full(len(centres), 2.0, np.float32)))


def density(sample: np.ndarray, k: int | None, seed: int) -> Centres:
    """Where rows lie dense (EVoC, https://github.com/TutteInstitute/evoc): of its layers the one that lasts longest, or the one nearest to k clusters.

    What is kept of a dense region, of whatever shape, is a ball: the mean direction of its members, and how far WITHIN of them reach. So rows that EVoC never saw belong or are noise by
    the same rule as those that it did, whose own labels and strengths do not count. Raises QueryError where nothing lies dense.
    """
    if len(sample) < LEAST_DENSE:
        raise QueryError(
            f"[cluster] method = 'density': {len(sample)} passages are too few to tell where they lie dense, wanted {LEAST_DENSE}"
        )
    try:
        from evoc import EVoC
    except ImportError:
        raise ConfigError("[cluster] method = 'density' needs evoc: run 'make space', or pip install 'latent[space]'") from None

    found = EVoC(random_state=seed)
    labels = found.fit_predict(sample)
    if k is not None:
        labels = min(found.cluster_layers_, key=lambda layer: abs(int(layer.max()) + 1 - k))
    if labels.max() < 0:
        raise QueryError(f"[cluster] method = 'density': {len(sample)} passages lie dense nowhere: use method = 'kmeans'")
    centres = _centres(sample, labels)
    own = np.einsum("ij,ij->i", sample[labels >= 0], centres[labels[labels >= 0]])
    reach = [np.quantile(1 - own[labels[labels >= 0] == each], WITHIN) for each in range(len(centres))]
    return _with_members(sample, Centres(centres, np.array(reach, np.float32)))


def choose_number(sample: np.ndarray, seed: int) -> int:
    """The greatest number of clusters that are real and clear. Real: two halves of the sample, each with its own k-means, agree on who belongs together
    (adjusted Rand index AGREED at least; after Ben-Hur, Elisseeff & Guyon 2002). Clear: the silhouette is AS_CLEAR at least of the best there is among those.
    """
    rows = np.random.default_rng(seed).permutation(len(sample))[:HALVED]
    points = PCA(min(DIMENSIONS, len(rows), sample.shape[1]), random_state=seed).fit_transform(sample[rows])
    halves = np.array_split(np.arange(len(rows)), 2)
    clear = {1: 0.0}
    for k in (k for k in NUMBERS if k * LEAST_MEMBERS <= len(rows)):
        one, other = (KMeans(k, n_init=3, random_state=seed).fit(points[half]).predict(points) for half in halves)
        if adjusted_rand_score(one, other) >= AGREED:
            clear[k] = silhouette(sample[rows], one, seed) or 0.0
    return max(k for k, found in clear.items() if found >= AS_CLEAR * max(clear.values()))


def belong(vectors: np.ndarray, centres: Centres) -> Membership:
    """Each row (n, dim) to its nearest centre, or to none where that does not reach so far. O(n·k·dim)."""
    distances = 1 - vectors @ centres.at.T
    nearest = distances.argmin(1)
    outlier = distances[np.arange(len(vectors)), nearest]
    following = np.partition(distances, 1, axis=1)[:, 1] if len(centres.at) > 1 else np.full(len(vectors), 2.0)
    outside = outlier > centres.reach[nearest]
    strength = 1 - np.clip(outlier, 0, None) / np.maximum(following, 1e-9)
    return Membership(
        np.where(outside, NOISE, nearest).astype(np.int32),
        np.where(outside, 0, np.clip(strength, 0, 1)).astype(np.float32),
        np.clip(outlier, 0, 2).astype(np.float32),
    )


def levels(centres: np.ndarray) -> list[np.ndarray]:
    """Ever coarser groups of the centres (k, dim), by average linkage of their cosines: for each level the group of each centre, numbered from 0."""
    found: list[np.ndarray] = []
    wanted = len(centres) // NARROWER
    if wanted < FEWEST:
        return found
    tree = linkage(centres, "average", metric="cosine")
    while wanted >= FEWEST:
        found.append(np.unique(fcluster(tree, wanted, "maxclust"), return_inverse=True)[1].astype(np.int32))
        wanted //= NARROWER
    return found


def match(counts: np.ndarray, sizes: np.ndarray, former_sizes: np.ndarray) -> dict[int, int]:
    """Which cluster is which former one: new → former, where SAME of the members of both are common (Jaccard), each former one once.

    `counts` (new, former): rows that are in both. Sizes count rows that were there both times.
    """
    together = sizes[:, None] + former_sizes[None, :] - counts
    shared = counts / np.maximum(together, 1)
    return {int(i): int(j) for i, j in zip(*linear_sum_assignment(-shared), strict=True) if shared[i, j] >= SAME}


@dataclass(frozen=True)
class Terms:
    """How often words and pairs of words stand in texts."""

    counts: sp.csr_matrix  # (texts, names)
    names: np.ndarray


def terms_of(texts: Sequence[str], *, stop_words: bool) -> Terms:
    """Count the words of texts. `stop_words`: those of English are left out."""
    counted = CountVectorizer(
        ngram_range=(1, 2),
        stop_words="english" if stop_words else None,
        min_df=2 if len(texts) > 100 else 1,
        token_pattern=r"(?u)\b(?=\w*[^\W\d_])\w{2,}\b",  # noqa: S106  no secret
        dtype=np.float32,
    )
    try:
        return Terms(counted.fit_transform(texts), counted.get_feature_names_out())
    except ValueError:  # no words at all
        return Terms(sp.csr_matrix((len(texts), 0), dtype=np.float32), np.array([], str))


def words_of(terms: Terms, clusters: np.ndarray, count: int) -> list[list[str]]:
    """For each of `count` clusters the words and pairs of words that tell it from the others, the most telling first: class-based TF-IDF
    (Grootendorst 2022, https://arxiv.org/abs/2203.05794). Rows of noise tell nothing.
    """
    often = sp.csr_matrix(_indicator(clusters, count) @ terms.counts)
    everywhere = np.asarray(often.sum(0)).ravel()
    found = []
    for first, last in pairwise(often.indptr.tolist()):  # one by one: clusters times names would be gigabytes
        here, names = often.data[first:last], often.indices[first:last]
        weight = here / here.sum() * np.log(1 + everywhere.sum() / count / everywhere[names])
        found.append([str(terms.names[names[i]]) for i in np.lexsort((names, -weight))[:TELLING]])
    return found


def label(words: Sequence[str]) -> str:
    """A name of a few words, none of which says what another one says already."""
    chosen: list[str] = []
    for word in words:
        parts = {_stem(part) for part in word.split()}
        if not any(parts & {_stem(part) for part in known.split()} for known in chosen):
            chosen.append(word)
        if len(chosen) == LABEL_WORDS:
            break
    return ", ".join(chosen)


def agreement(clusters: Sequence[int], given: Sequence[object]) -> dict[str, float]:
    """How far clusters agree with labels that rows have: v-measure (Rosenberg & Hirschberg 2007), adjusted Rand index, normalised mutual information.
    Rows without a label are left out; noise counts as a cluster.
    """
    pairs = [(a, str(b)) for a, b in zip(clusters, given, strict=True) if b is not None]
    found, labels = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "v_measure": float(v_measure_score(labels, found)),
        "ari": float(adjusted_rand_score(labels, found)),
        "nmi": float(normalized_mutual_info_score(labels, found)),
    }


def silhouette(vectors: np.ndarray, clusters: np.ndarray, seed: int) -> float | None:
    """The mean silhouette (Rousseeuw 1987), by cosine, of a sample of the members. None where there is but one cluster."""
    members = np.flatnonzero(clusters >= 0)
    if len(members) > MEASURED:
        members = np.random.default_rng(seed).choice(members, MEASURED, replace=False)
    if not 1 < len(np.unique(clusters[members])) < len(members):
        return None
    return float(silhouette_score(vectors[members], clusters[members], metric="cosine"))


def tally(former: pa.Table, now: pa.Table) -> Mapping[tuple[int, int], int]:
    """(cluster now, cluster then) → rows. Both tables: chunk_id, cluster_id. Rows that were there both times."""
    both = now.join(former, "chunk_id", join_type="inner", right_suffix="_then").group_by(["cluster_id", "cluster_id_then"])
    counts = both.aggregate([([], "count_all")])
    keys = zip(counts["cluster_id"].to_pylist(), counts["cluster_id_then"].to_pylist(), strict=True)
    return dict(zip(keys, counts["count_all"].to_pylist(), strict=True))


def _centres(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean direction (k, dim) of the rows of each label from 0 on; of labels that no row has there is none."""
    given, member = np.unique(labels[labels >= 0], return_inverse=True)
    sums = np.asarray(_indicator(member, len(given)) @ vectors[labels >= 0])
    directions: np.ndarray = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return directions


def _with_members(vectors: np.ndarray, centres: Centres) -> Centres:
    """Those that some row belongs to: equal rows are one point, however many clusters are asked for."""
    found = belong(vectors, centres).cluster
    having = np.unique(found[found >= 0])
    return Centres(centres.at[having], centres.reach[having])


def _indicator(clusters: np.ndarray, count: int) -> sp.csr_matrix:
    """(count, n): which row belongs to which cluster."""
    member = np.flatnonzero(clusters >= 0)
    return sp.csr_matrix((np.ones(len(member), np.float32), (clusters[member], member)), (count, len(clusters)))


def _stem(word: str) -> str:
    return re.sub(r"(ies|es|s)$", "", word.lower())
