"""Vectors → points of a plane, near to each other where the vectors are (UMAP, McInnes, Healy & Melville 2018, https://arxiv.org/abs/1802.03426). Pure."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA

from pipeline.errors import ConfigError

DIMENSIONS = 50  # principal components that neighbours are looked for in: they hold most of what 384 numbers do
NEIGHBOURS = 15
LEAST = 5  # rows


@dataclass(frozen=True)
class Layout:
    """Where rows lie on the plane, and which lie nearest to each in the space."""

    points: np.ndarray  # (n, 2) float32
    neighbours: np.ndarray  # (m, NEIGHBOURS) places of the rows that the map was fitted on, the nearest first, itself left out
    distances: np.ndarray  # (m, NEIGHBOURS)


class Plane:
    """A map that is fitted on some rows and can place others."""

    def __init__(self, vectors: np.ndarray, seed: int) -> None:
        """Fit it on these rows (n, dim), n at least LEAST. A minute for 20,000 on one core: with a seed it cannot use more.

        Raises ConfigError where umap-learn is not installed.
        """
        try:
            from umap import UMAP
            from umap.umap_ import nearest_neighbors
        except ImportError:
            raise ConfigError("a map needs umap-learn: run 'make space', or pip install 'latent[space]'") from None
        self._components = PCA(min(DIMENSIONS, *vectors.shape), random_state=seed).fit(vectors)
        points = self._components.transform(vectors).astype(np.float32)
        near = min(NEIGHBOURS + 1, len(vectors) - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a seed means one thread
            known = nearest_neighbors(points, near, "euclidean", {}, False, np.random.RandomState(seed))
            init = "spectral" if len(vectors) > 4 * NEIGHBOURS else "random"
            self._umap = UMAP(n_neighbors=near, min_dist=0.1, init=init, precomputed_knn=known, random_state=seed).fit(points)
        self.layout = Layout(self._umap.embedding_.astype(np.float32), known[0][:, 1:], known[1][:, 1:])

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """The points (n, 2) of other rows."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: np.ndarray = self._umap.transform(self._components.transform(vectors).astype(np.float32))
        return found.astype(np.float32)
