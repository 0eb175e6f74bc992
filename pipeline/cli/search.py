"""Commands that search a table, measure its answers, and move it to another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent.cli.app import ConfigPath, Json, app, overrides, settings_of
from latent.cli.output import gist, printed, progress
from latent.errors import QueryError
from latent.types import Mode

if TYPE_CHECKING:
    from latent.evaluation.evaluator import Comparison, Evaluation
    from latent.migration import Migration
    from latent.search.results import Hit
    from latent.store import Condition


@app.command()
def search(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="What you look for, in words.")] = "",
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    where: Annotated[
        str | None, typer.Option("--where", help="An SQL condition over the columns, or a JSON mapping, applied before the search.")
    ] = None,
    mode: Annotated[
        Mode | None, typer.Option("--mode", help="By meaning, by words, or both fused; left out: [search] mode.")
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the best anew with the cross-encoder [search] reranker.")] = False,
    diversity: Annotated[float, typer.Option("--diversity", help="0 to 1: prefer hits unlike those before them.")] = 0.0,
    per_document: Annotated[bool, typer.Option("--per-document", help="At most one hit a document.")] = False,
    context: Annotated[int, typer.Option("--context", help="Passages before and after each hit.")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="Pass by the vector index.")] = False,
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Look among the codes of 'latent compress --write', score by the vectors.")
    ] = False,
    plus: Annotated[list[str] | None, typer.Option("--plus", help="Add a text's vector to the query's; may be repeated.")] = None,
    minus: Annotated[list[str] | None, typer.Option("--minus", help="Take a text's vector off it; may be repeated.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Find the passages nearest to a query, or to a sum of texts.

    Example: latent search "how do I parse a date" -k 3 --where "kind = 'function'"
    """
    from latent.search import SearchOptions, SearchTable

    if not query.strip() and not plus:
        raise typer.BadParameter("give a query, or --plus")
    how = SearchOptions(
        mode=mode,
        rerank=rerank,
        diversity=diversity,
        per_document=per_document,
        context=context,
        exact=exact,
        compressed=compressed,
        plus=plus or [],
        minus=minus or [],
    )
    hits = SearchTable(settings_of(ctx, config)).search(query, k, _condition(where), **how)
    lines = [line for hit in hits for line in _hit_lines(hit, whole=bool(context))]
    printed({"hits": [hit.flat() for hit in hits]}, as_json, *lines or ["no hits"])


def _hit_lines(hit: Hit, *, whole: bool) -> list[str]:
    """A hit for people: a line of figures, then how its passage begins, or the whole passage with what stands around it."""
    metadata = "".join(f"  {name}={value}" for name, value in hit.metadata.items())
    text = [gist(hit.text)] if not whole else (hit.before + hit.text + hit.after).splitlines()
    return [f"{hit.rank:>3}  {hit.score:.3f}  {hit.doc_id}{metadata}", *(f"{'':12}{line}" for line in text)]


def _condition(where: str | None) -> Condition | None:
    """A mapping where it is written as one: {"acl": ["hr"]}."""
    if where is None or not where.lstrip().startswith("{"):
        return where
    try:
        mapping: dict[str, Any] = json.loads(where)
    except ValueError as error:
        raise QueryError(f'--where {where!r:.200}: expected SQL or a JSON mapping such as {{"acl": ["hr"]}}: {error}') from None
    return mapping


@app.command()
def evaluate(
    ctx: typer.Context,
    *,
    queries: Annotated[Path | None, typer.Option("--queries", help="Queries: id, text; .parquet, .jsonl, .csv, .tsv.")] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="Judgments: query, document, relevance; the same kinds, or TREC's.")
    ] = None,
    itself: Annotated[
        bool, typer.Option("--self", help="Without judgments: is the passage found that a sentence is from?")
    ] = False,
    mode: Annotated[
        Mode | None, typer.Option("--mode", help="By meaning, by words, or both fused; left out: [search] mode.")
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the best anew with the cross-encoder [search] reranker.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Pass by the vector index.")] = False,
    against: Annotated[
        str | None, typer.Option("--against", help="Compare with vector, text, hybrid, exact, hybrid+rerank, or with a table.")
    ] = None,
    per_query: Annotated[Path | None, typer.Option("--per-query", help="Write each query's measures here, as CSV.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Measure how good the answers are, and compare two ways.

    Measures are nDCG@10, recall, MRR@10 and milliseconds; --against tells whether another way or table is better.

    Example: latent evaluate --queries queries.parquet --qrels qrels.parquet --against hybrid
    """
    from latent.config import load
    from latent.evaluation import evaluator as use_case
    from latent.evaluation.datasets import read_judgments, read_queries
    from latent.ingest.resolve import with_table_settings
    from latent.search import SearchOptions, SearchTable

    if itself == (queries is not None) or (queries is None) != (qrels is None):
        raise typer.BadParameter("give --queries and --qrels, or --self")
    if per_query:
        use_case.require_by_query(per_query)
    table = SearchTable(settings_of(ctx, config))
    way = use_case.way(against) if against else None
    rival = (
        table
        if way is not None or not against
        else SearchTable(with_table_settings(load(config, overrides(ctx) | {"table.name": against})))
    )
    asked, judged = (read_queries(queries), read_judgments(qrels)) if queries and qrels else use_case.known_items(table)
    done = use_case.evaluate(table, asked, judged, SearchOptions(mode=mode, rerank=rerank, exact=exact))
    result = done.flat()
    lines = [_measures("", done)]
    if against:
        other = use_case.evaluate(rival, asked, judged, way or SearchOptions())
        compared = use_case.compare(done, other)
        result |= {"against": {"what": against} | other.flat() | {"p": compared.p}}
        lines += [_measures(f"{against}: ", other), "difference: " + _differences(compared)]
    if per_query:
        use_case.write_by_query(per_query, done)
        lines.append(f"each query: {per_query}")
    printed(result, as_json, *lines)


def _measures(what: str, done: Evaluation) -> str:
    times = ", ".join(f"{name} {ms:.0f}" for name, ms in done.milliseconds.items())
    return f"{what}{', '.join(f'{name} {value:.5f}' for name, value in done.means.items())}; {done.queries} queries; ms a search: {times}"


def _differences(compared: Comparison) -> str:
    told = (f"{name} {value:+.5f} (p {compared.p[name]:.3f})" for name, value in compared.differences.items())
    return ", ".join(told)


@app.command()
def migrate(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Option("--model", help="Hub id, local folder, or folder inside an installed package.")],
    revision: Annotated[str, typer.Option("--revision", help="Hub revision; empty: the newest.")] = "",
    query_prompt: Annotated[
        str, typer.Option("--query-prompt", help="Put before queries; empty: what the model's file asks for; none: nothing.")
    ] = "",
    document_prompt: Annotated[str, typer.Option("--document-prompt", help="Put before documents; likewise.")] = "",
    queries: Annotated[Path | None, typer.Option("--queries", help="Queries to compare with, as in 'latent evaluate'.")] = None,
    qrels: Annotated[Path | None, typer.Option("--qrels", help="Their judgments. Without both: the table's own sentences.")] = None,
    if_better: Annotated[bool, typer.Option("--if-better", help="Switch if nDCG@10 is higher, with p < 0.05.")] = False,
    if_not_worse: Annotated[
        bool, typer.Option("--if-not-worse", help="Switch if nDCG@10 is higher, with p < 0.05, or lower by at most --margin.")
    ] = False,
    margin: Annotated[
        float, typer.Option("--margin", min=0, max=1, help="By how much nDCG@10 may be lower with --if-not-worse.")
    ] = 0.01,
    switch: Annotated[bool, typer.Option("--switch", help="Switch whatever comes of the comparison.")] = False,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Move the table to another model without a pause.

    Embed beside the table, which is searched and kept up to date meanwhile; compare; switch in one version.

    Example: latent migrate --model BAAI/bge-small-en-v1.5 --if-better
    """
    from latent import migration as use_case
    from latent.config import load
    from latent.evaluation.datasets import read_judgments, read_queries

    if (queries is None) != (qrels is None):
        raise typer.BadParameter("give --queries and --qrels, or neither")
    judged = (read_queries(queries), read_judgments(qrels)) if queries and qrels else None
    settings = settings_of(ctx, config)
    successor = {
        "name": load(
            config, overrides(ctx) | {"model.name": model}
        ).model.name,  # a relative folder is meant from where the config lies
        "revision": revision,
        "sha256": "",
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
    }
    with progress() as on_progress:
        done = use_case.migrate(
            settings,
            successor,
            on_progress,
            judged=judged,
            if_better=if_better,
            not_worse_by=margin if if_not_worse else None,
            switch=switch,
        )
    lines = [
        _measures(f"{done.before_model}: ", done.before),
        _measures(f"{done.model}: ", done.after),
        "difference: " + _differences(done.compared),
        _decision(done, use_case.GATE),
        f"switched: version {done.table_version}; 'latent rollback {done.former_version}' goes back; set [model] name = {json.dumps(done.model)}"
        if done.table_version
        else f"not switched: {done.table} is ready; the same command with --switch switches",
    ]
    printed(done.flat(), as_json, *lines)


def _decision(done: Migration, measure: str) -> str:
    """Which condition for a switch was met."""
    figures = f"{measure} {done.compared.differences[measure]:+.5f}, p {done.compared.p[measure]:.3f}"
    met = {
        "asked for": "--switch was given",
        "better": "it is better with p < 0.05",
        "not worse": "it is lower by at most --margin",
    }
    return f"condition: {met[done.held] if done.held else 'none was given, or none was met'} ({figures})"
