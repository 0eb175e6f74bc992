"""Vectors → points of a plane, near to each other where the vectors are (UMAP, McInnes, Healy & Melville 2018, https://arxiv.org/abs/1802.03426). Pure."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from latent.errors import ConfigError

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
    """A map that is fitted on some rows and, where asked to, can place others."""

    def __init__(self, vectors: np.ndarray, seed: int, *, others: bool = False) -> None:
        """Fit it on these rows (n, dim), n at least LEAST. With a seed UMAP uses one core.

        The neighbours are exact; where `others` are to be placed they are NN-descent's, which alone can be asked for those of new rows: it takes
        a minute to compile. Raises ConfigError where umap-learn is not installed.
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
            if others:
                known = nearest_neighbors(points, near, "euclidean", {}, False, np.random.RandomState(seed))
            else:
                known = _neighbours(points, near)
            init = "spectral" if len(vectors) > 4 * NEIGHBOURS else "random"
            self._umap = UMAP(n_neighbors=near, min_dist=0.1, init=init, precomputed_knn=known, random_state=seed).fit(points)
        self.layout = Layout(self._umap.embedding_.astype(np.float32), known[0][:, 1:], known[1][:, 1:])

    def place(self, vectors: np.ndarray) -> np.ndarray:
        """The points (n, 2) of other rows, where it was made for `others`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: np.ndarray = self._umap.transform(self._components.transform(vectors).astype(np.float32))
        return found.astype(np.float32)


def _neighbours(points: np.ndarray, near: int) -> tuple[np.ndarray, np.ndarray]:
    """Places (n, near) and distances (n, near) of the nearest to each point, itself first."""
    distances, places = NearestNeighbors(n_neighbors=near - 1, algorithm="brute").fit(points).kneighbors()
    itself = np.arange(len(points))[:, None]
    return np.hstack([itself, places]), np.hstack([np.zeros_like(itself), distances]).astype(np.float32)
