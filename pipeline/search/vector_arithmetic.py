"""Arithmetic of unit vectors: sums and differences, and the way from one to another. Pure."""

from __future__ import annotations

import numpy as np

LEAST = 1e-6  # of a sum's length: below, what it points to is chance


def combined(plus: np.ndarray, minus: np.ndarray) -> np.ndarray | None:
    """The direction (dim,) of the sum of some unit vectors (n, dim) less others (m, dim). None where they cancel each other out."""
    whole = plus.sum(0) - minus.sum(0)
    length = float(np.linalg.norm(whole))
    return None if length < LEAST else (whole / length).astype(np.float32)


def way(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray | None:
    """Unit vectors (steps, dim) from one to the other along the sphere, all as far from the next, both ends among them (slerp, Shoemake 1985).
    None where the ends are opposite: every way is as short then.
    """
    start, end = (np.asarray(each, np.float64) / np.linalg.norm(each) for each in (start, end))
    across = end - start * (start @ end)
    sine = float(np.linalg.norm(across))
    angle = float(np.arctan2(sine, start @ end))
    if np.pi - angle < LEAST:
        return None
    at = np.linspace(0, angle, steps)[:, None]
    aside = across / sine if sine > 0 else across
    points: np.ndarray = np.cos(at) * start + np.sin(at) * aside
    return points.astype(np.float32)
