"""`latent evaluate`: how good the answers of a table are, and whether another way or table gives better ones."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from latent.errors import QueryError
from latent.evaluation.datasets import Judgments, Queries
from latent.evaluation.ranking_metrics import DEPTH, Scores, means, p_values, score
from latent.outputs import require_replaceable
from latent.search.searcher import MODES, SearchOptions, SearchTable
from latent.types import Mode

TIMED = 100  # queries whose time is taken
TIMED_K = 10
ASKED_AT_ONCE = 256
KNOWN_ITEMS = 300
SEED = 4
SENTENCE = re.compile(r"[^.!?\n]{20,}[.!?]?")
QUERY_WORDS = 20


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one way of searching."""

    means: dict[str, float]  # measure → mean over the queries
    queries: int
    milliseconds: dict[str, float]  # of a search for ten: p50, p95, p99
    by_query: Scores

    def flat(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {
            **{name: round(value, 5) for name, value in self.means.items()},
            "queries": self.queries,
            "milliseconds": self.milliseconds,
        }


@dataclass(frozen=True)
class Comparison:
    """One evaluation beside another, on the same queries."""

    differences: dict[str, float]  # measure → mean of the first less mean of the other
    p: dict[str, float]  # measure → probability of such a difference by chance


def evaluate(table: SearchTable, queries: Queries, judgments: Judgments, how: SearchOptions) -> Evaluation:
    """The measures of a table's answers. A document scores as its best passage does. Queries without a judgment are left out.

    Raises QueryError where no query is judged.
    """
    judged = {name: judgments[name] for name in queries if name in judgments}
    if not judged:
        some = f"{next(iter(queries), 'none')!r} beside {next(iter(judgments), 'none')!r}"
        raise QueryError(f"none of {len(queries)} queries is judged: ids such as {some} do not meet")
    names = list(judged)
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(names), ASKED_AT_ONCE):
        some_names = names[start : start + ASKED_AT_ONCE]
        answers = _documents(table, [queries[name] for name in some_names], how)
        found |= dict(zip(some_names, answers, strict=True))
    scores = score(judged, found)
    return Evaluation(means(scores), len(judged), _timed(lambda name: table.search(queries[name], TIMED_K, **how), names), scores)


def _documents(table: SearchTable, queries: list[str], how: SearchOptions) -> list[dict[str, float]]:
    """For each query the best documents and their scores. Behind those that are reranked the others follow in their order."""
    plain, anew = SearchOptions(**how), SearchOptions(**how)
    plain["per_document"] = anew["per_document"] = True
    plain["rerank"] = False
    answers = [{hit.doc_id: hit.score for hit in hits} for hits in table.search_batch(queries, DEPTH, **plain)]
    if not how.get("rerank"):
        return answers
    first = table.search_batch(queries, min(table.candidates, DEPTH), **anew)
    orders = [dict.fromkeys([hit.doc_id for hit in hits] + list(answer)) for hits, answer in zip(first, answers, strict=True)]
    return [{document: -float(place) for place, document in enumerate(order)} for order in orders]


def compare(one: Evaluation, other: Evaluation) -> Comparison:
    """Whether one is better than the other, on the queries that both were asked."""
    both = one.by_query.keys() & other.by_query.keys()
    a, b = ({query: e.by_query[query] for query in sorted(both)} for e in (one, other))
    return Comparison({name: value - means(b)[name] for name, value in means(a).items()}, p_values(a, b))


def way(name: str) -> SearchOptions | None:
    """A way of searching by its name, such as "hybrid+rerank"; None where it is none, and so a table's."""
    how = SearchOptions()
    for part in name.split("+"):
        if part in MODES:
            how["mode"] = cast("Mode", part)
        elif part == "rerank":
            how["rerank"] = True
        elif part == "exact":
            how["exact"] = True
        else:
            return None
    return how


def require_by_query(path: Path) -> None:
    """Raises ConfigError where a file is there that is not of an earlier evaluation: asked before the work."""
    require_replaceable(path, "--per-query", "query,ndcg@10,")


def write_by_query(path: Path, done: Evaluation) -> None:
    """A line a query: its id and its measures. Raises ConfigError as `require_by_query`."""
    require_by_query(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["query", *done.means])
        lines.writerows(
            [query, *(round(values[name], 5) for name in done.means)] for query, values in sorted(done.by_query.items())
        )


def known_items(table: SearchTable) -> tuple[Queries, Judgments]:
    """Queries and judgments made of the table itself: a sentence of a passage asks for the document that it is from, or those that hold the same passage.

    (Azzopardi, de Rijke & Balog 2007.) It tells whether passages are found again, not whether answers are good. Raises QueryError for an empty table.
    """
    rows = table.sample(KNOWN_ITEMS, SEED)
    chance = np.random.default_rng(SEED)
    queries: Queries = {}
    judgments: Judgments = {}
    for row in rows:
        sentences = SENTENCE.findall(row["text"]) or [row["text"]]
        queries[row["chunk_id"]] = " ".join(sentences[chance.integers(len(sentences))].split()[:QUERY_WORDS])
        judgments[row["chunk_id"]] = dict.fromkeys(row["documents"], 1)
    if not queries:
        raise QueryError("the table is empty: there is nothing to ask for")
    return queries, judgments


def _timed(search: Callable[[str], object], names: list[str]) -> dict[str, float]:
    taken = []
    for i in np.random.default_rng(SEED).choice(len(names), min(TIMED, len(names)), replace=False):
        started = time.perf_counter()
        search(names[i])
        taken.append((time.perf_counter() - started) * 1000)
    return {f"p{p}": round(float(np.percentile(taken, p)), 1) for p in (50, 95, 99)}
