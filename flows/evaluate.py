"""The flow that measures how good the answers of a table are, and what Prefect shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from latent.config import load
from latent.errors import QueryError
from latent.evaluation import evaluator as use_case
from latent.evaluation.datasets import read_judgments, read_queries
from latent.evaluation.evaluator import Evaluation
from latent.flows.observability import artifact_key, logs_to_prefect, run_name, tell
from latent.flows.reports import evaluation
from latent.flows.retries import SHORT_S, patient
from latent.search import SearchOptions, open_table
from latent.types import Mode


@patient("evaluate")
def evaluate_table(config: str, overrides: Mapping[str, Any], queries: str, qrels: str, how: SearchOptions) -> Evaluation:
    """The use-case, on queries and judgments from files named from the config's folder, or made of the table itself."""
    table, folder = open_table(config, overrides), Path(config).resolve().parent
    with logs_to_prefect():
        asked, judged = (read_queries(folder / queries), read_judgments(folder / qrels)) if queries else use_case.known_items(table)
        return use_case.evaluate(table, asked, judged, how)


@flow(name="evaluate", flow_run_name=run_name, validate_parameters=False, timeout_seconds=SHORT_S)
def evaluate(
    config: str = "config.toml",
    overrides: Mapping[str, Any] | None = None,
    reason: str = "by hand",  # noqa: ARG001  names the run
    *,
    queries: str = "",
    qrels: str = "",
    mode: Mode | None = None,
    rerank: bool = False,
) -> dict[str, object]:
    """Measure the answers to `queries` by the judgments `qrels`; without them, whether the passage is found that a sentence is from."""
    if bool(queries) != bool(qrels):
        raise QueryError(f"queries {queries!r}, qrels {qrels!r}: give both, or neither")
    done = evaluate_table(config, overrides or {}, queries, qrels, SearchOptions(mode=mode, rerank=rerank))
    name = load(config, overrides).table.name
    create_markdown_artifact(
        evaluation(name, f"answers to {queries}" if queries else "its own sentences", done),
        key=artifact_key(f"evaluation-{name}"),
        description=f"How good the answers of {name} are",
    )
    tell("latent.evaluated", name, done.flat())
    return done.flat()
