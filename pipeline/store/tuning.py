"""How far a search must look in the vector index to hold a stated recall: measured on the table itself.

Queries are rows drawn from the table, each asked for its ten nearest but itself. What is exact is found in one pass over all vectors. A found row counts
where it is as near as the tenth nearest, so that equal vectors do not make a right answer wrong (as in https://github.com/erikbern/ann-benchmarks).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import lance
import numpy as np

from latent.schemas import SCORE
from latent.store.reader import TableReader, Tuning, matrix

QUERIES = 200
FIRST = 50  # after so many it shows where an effort is hopeless
NEIGHBOURS = 10
SEED = 20
REFINE_FACTORS = (15, 5, 2)
NPROBES = (5, 10, 20, 40, 80, 160, 320)
SURE = 1.645  # standard errors by which the measured recall must lie above the stated one: 95 % sure
SAME = 1e-5  # of cosine
SIXTEENTH = "chunk_hash < '1'"  # a filter that one row in sixteen meets, whatever it says: hashes are spread evenly


@dataclass(frozen=True)
class RecallSample:
    """Queries drawn from the table, and the cosine of the tenth neighbour of each, itself not counted."""

    queries: np.ndarray  # (QUERIES, dim) float32
    tenth: np.ndarray  # (QUERIES,)
    tenth_of_sixteenth: np.ndarray  # (QUERIES,) among the rows that meet SIXTEENTH


def draw(table: lance.LanceDataset) -> RecallSample:
    """Draw queries and find their neighbours exactly, in one pass over the vectors."""
    count = table.count_rows()
    rows = np.sort(np.random.default_rng(SEED).choice(count, min(QUERIES, count), replace=False))
    queries = matrix(table.take(rows.tolist(), columns=["vector"])["vector"].combine_chunks())
    everywhere = within = np.full((len(queries), NEIGHBOURS + 1), -np.inf, np.float32)
    for batch in table.scanner(columns=["vector", "chunk_hash"], batch_size=8192).to_batches():
        cosines = queries @ matrix(batch["vector"]).T
        meets = np.array([known < "1" for known in batch["chunk_hash"].to_pylist()], bool)
        everywhere, within = _greatest(everywhere, cosines), _greatest(within, cosines[:, meets])
    return RecallSample(queries, everywhere[:, 0], within[:, 0])


def tune(reading: TableReader, trial: RecallSample, wanted: float) -> Tuning:
    """The fastest way of looking that holds the recall; exact where that is as fast, or where none holds it."""
    exact = Tuning(wanted, 0, 0, 1.0, 1.0, 0.0, 0.0, reading.count, reading.version, reading.count)
    ms, _ = _measured(reading, exact, trial.queries[:FIRST], trial.tenth)
    best = exact = replace(exact, milliseconds=ms, exact_milliseconds=ms)
    least = 0  # where a greater refine_factor needs so many parts, a smaller one needs as many
    for refine in REFINE_FACTORS:
        efforts = (replace(exact, nprobes=nprobes, refine_factor=refine) for nprobes in NPROBES if nprobes >= least)
        found = next((held for effort in efforts if (held := _holding(reading, effort, trial))), None)
        if found is None:
            break
        least = found.nprobes
        best = min(best, found, key=lambda tuning: tuning.milliseconds)
    return best


def check(reading: TableReader, trial: RecallSample, tuning: Tuning) -> Tuning | None:
    """The tuning measured again; None where it no longer holds the recall."""
    return _holding(reading, replace(tuning, rows=reading.count, version=reading.version), trial) if tuning.nprobes else None


def _holding(reading: TableReader, effort: Tuning, trial: RecallSample) -> Tuning | None:
    """The effort with what was measured of it; None where it does not hold the recall."""
    for queries in (slice(FIRST), slice(None)):
        ms, shares = _measured(reading, effort, trial.queries[queries], trial.tenth[queries])
        doubt = SURE * float(shares.std()) / len(shares) ** 0.5
        if shares.mean() + doubt < effort.wanted:
            return None
    if shares.mean() - doubt < effort.wanted:
        return None
    _, filtered = _measured(reading, effort, trial.queries[:FIRST], trial.tenth_of_sixteenth, SIXTEENTH)
    return replace(effort, recall=round(float(shares.mean()), 4), filtered=round(float(filtered.mean()), 4), milliseconds=ms)


def _measured(
    reading: TableReader, effort: Tuning, queries: np.ndarray, tenth: np.ndarray, where: str | None = None
) -> tuple[float, np.ndarray]:
    """Milliseconds a search, the median, and for each query the share of its ten nearest that is found."""
    reading.tuning = effort
    seconds, shares = [], []
    for query, limit in zip(queries, tenth, strict=False):
        started = time.perf_counter()
        found = reading.search_vector(query, NEIGHBOURS + 1, where)
        seconds.append(time.perf_counter() - started)
        near = sum(score >= limit - SAME for score in found[SCORE].to_pylist())
        shares.append(min(max(near - 1, 0) / NEIGHBOURS, 1.0))
    return round(statistics.median(seconds) * 1000, 2), np.array(shares)


def _greatest(so_far: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The greatest of each row of both, as many as there were; the least of them first."""
    both = np.concatenate([so_far, more], axis=1)
    rest = more.shape[1]
    return np.partition(both, rest, axis=1)[:, rest:]
