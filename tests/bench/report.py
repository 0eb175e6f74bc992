"""What the benches share: the share of neighbours kept, a table on the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np

TOP = 10


def kept(vectors: np.ndarray, exact: np.ndarray) -> float:
    """The share of each text's ten nearest neighbours that are the same."""

    def nearest(matrix: np.ndarray) -> np.ndarray:
        similar = matrix @ matrix.T
        np.fill_diagonal(similar, -1)
        return np.argpartition(-similar, TOP, axis=1)[:, :TOP]

    return float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(nearest(vectors), nearest(exact), strict=True)]))


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """One line a row, the first row's keys as its head."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console(width=150).print(table)
