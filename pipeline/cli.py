"""The commands. Data goes to stdout, words and progress to stderr.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage, 130 stopped by a signal. Any key of config.toml can be set for one call:
`--table.uri s3://bucket/x`, or in the environment: `LATENT_TABLE__URI`.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table as Grid

from pipeline.config import Config, Source, load, render
from pipeline.errors import ConfigError, Interrupted, PipelineError, shown
from pipeline.schema import Progress, Report
from pipeline.store import Tuning

if TYPE_CHECKING:
    from pipeline.search.evaluation import Comparison, Evaluation

SETTING = re.compile(r"--([a-z]+\.[a-z_0-9]+)(?:=(.*))?", re.DOTALL)
SAMPLE_FOLDER = "data/sample"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # what a document may hold would be a command to the terminal
STAMP = "%Y-%m-%d %H:%M:%S"
WIDE = 200  # columns of a table that goes to a file or a pipe: nothing is cut off
SAMPLE_NOTE = "Settings of latent. Every key is shown; one left out has its default.\nThis file embeds the sample corpus: Python's own documentation."
OWN_NOTE = "Settings of latent. Every key is shown; one left out has its default."

words = Console(stderr=True, soft_wrap=True)
overrides: dict[str, Any] = {}  # of this call: filled once by main(), before a command runs

app = typer.Typer(
    name="latent",
    help="Keeps a LanceDB table of embeddings true to a body of documents.",
    epilog="Any key of config.toml can be set for one call: --table.name trial --ray.workers 2",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigPath = Annotated[Path, typer.Option("--config", help="The settings.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]


def main() -> None:
    """Entry point of the `latent` script."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell without job control starts background jobs with it ignored
        signal.signal(number, signal.default_int_handler)
    arguments = _pull_settings(sys.argv[1:])
    as_json = "--json" in arguments
    try:
        app(args=arguments, standalone_mode=True)
    except PipelineError as error:
        _fail(error, as_json=as_json)
        raise SystemExit(130 if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        words.print("stopped: nothing was under way that is not safe; run the command again")
        raise SystemExit(130) from None


@app.command()
def init(
    path: Annotated[str | None, typer.Argument(help="Folder, file, glob or URI of your documents.")] = None,
    *,
    sample: Annotated[bool, typer.Option("--sample", help="Make the sample corpus instead: Python's own documentation.")] = False,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Write a config for your documents, or make the sample corpus.

    Example: latent init "docs/**/*.md"
    """
    from pipeline.init import config_for
    from pipeline.sample import write_sample

    if sample == (path is not None):
        raise typer.BadParameter("give the path of your documents, or --sample")
    folder = config.resolve().parent
    documents = write_sample(folder / SAMPLE_FOLDER) if sample else None
    if path is not None and config.exists():
        raise ConfigError(f"{config} is already there: remove it, or name another with --config")
    settings = sample_config() if path is None else config_for(path, folder)
    if not config.exists():
        config.write_text(render(settings, SAMPLE_NOTE if sample else OWN_NOTE), encoding="utf-8")
    where = f"{documents} documents in {SAMPLE_FOLDER}" if sample else f"source: {shown(settings.source.uri)}"
    _print(
        {"config": str(config), "documents": documents}, as_json, f"{where}\nconfig: {config}\nnext: latent plan, then latent run"
    )


def sample_config() -> Config:
    """The settings for the sample corpus, as config.toml of the repository has them."""
    return Config(source=Source(uri=f"{SAMPLE_FOLDER}/*.jsonl", metadata=["module", "kind"]))


@app.command()
def plan(*, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Show what a run would do, how many tokens, how long. Writes nothing.

    Example: latent plan --json
    """
    from pipeline import run as use_case

    settings = load(config, overrides)
    _log(verbose=False)
    with _progress() as on_progress:
        report = use_case.plan(settings, on_progress)
    _print(report, as_json, _told(report, planned=True))


@app.command()
def run(
    *,
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Try quarantined documents again.")] = False,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Let an empty source empty the table.")] = False,
    flow: Annotated[bool, typer.Option("--flow", help="Run as a Prefect flow even where no server is configured.")] = False,
    maintain: Annotated[
        bool, typer.Option(help="Bring the indexes up to date where rows changed, as 'latent maintain' does.")
    ] = True,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line a shard.")] = False,
) -> None:
    """Bring the table up to date with the source. Run it again after any crash.

    Example: latent run --ray.workers 2
    """
    import flows
    from pipeline import run as use_case

    settings = load(config, overrides)
    _log(verbose=verbose)
    with _progress() as on_progress:
        if flow or flows.configured_server():
            report = flows.embed_as_flow(
                config.resolve(), overrides, on_progress, retry_quarantined=retry_quarantined, allow_empty=allow_empty
            )
        else:
            report = use_case.embed(settings, on_progress, retry_quarantined=retry_quarantined, allow_empty=allow_empty)
    if maintain and (report.documents.added or report.documents.changed or report.documents.deleted):
        try:
            use_case.maintain(settings)
        except PipelineError as error:  # the next run, or another that is under way, does it
            words.print(
                f"warning: the run is committed, but the indexes are not up to date: {error}", highlight=False, markup=False
            )
    _print(report, as_json, _told(report, planned=False))


@app.command()
def status(*, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Show what the table holds, its indexes, its last runs and the versions that can be gone back to.

    Example: latent status
    """
    from pipeline.status import status as use_case

    found = use_case(load(config, overrides))
    runs = _grid("run", "status", "started", "version", "documents")
    for row in found.runs:
        told = ", ".join(f"{n} {what}" for what, n in row["report"]["documents"].items() if n)
        runs.add_row(row["run_id"], row["status"], f"{row['started_at']:{STAMP}}", str(row["table_version"]), told)
    versions = _grid("version", "made", "run", "what")
    for v in found.versions:
        versions.add_row(str(v.version), f"{v.made_at:{STAMP}}", v.run_id or "", v.what)
    lines = [
        f"{found.table}, version {found.version}",
        f"{found.documents} documents in {found.chunks} chunks from {found.files} files",
        f"spec: {', '.join(f'{k} {v}' for k, v in found.spec.items() if v != '')}",
        f"quarantine: {', '.join(f'{n} x {reason}' for reason, n in found.quarantined.items()) or 'empty'}",
        f"indexes: {'; '.join(found.indexes) or 'none'}",
        f"vector searches: {_looking(found.tuning)}",
    ]
    _print(found, as_json, "\n".join(lines), runs, versions)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What you look for, in words.")],
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    where: Annotated[
        str | None, typer.Option("--where", help="An SQL condition over the columns, applied before the search.")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="vector, text or hybrid; left out: [search] mode.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the best anew with the cross-encoder [search] reranker.")] = False,
    diversity: Annotated[float, typer.Option("--diversity", help="0 to 1: prefer hits unlike those before them.")] = 0.0,
    per_document: Annotated[bool, typer.Option("--per-document", help="At most one hit a document.")] = False,
    context: Annotated[int, typer.Option("--context", help="Passages before and after each hit.")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="Pass by the vector index.")] = False,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Find the passages nearest to a query.

    Example: latent search "how do I parse a date" -k 3 --where "kind = 'function'"
    """
    from pipeline.search import How, open_table

    given = {
        "mode": mode,
        "rerank": rerank,
        "diversity": diversity,
        "per_document": per_document,
        "context": context,
        "exact": exact,
    }
    how = How(**{name: value for name, value in given.items() if value})  # type: ignore[typeddict-item]
    hits = open_table(config, overrides).search(query, k, where, **how)
    lines = [
        f"{hit.rank:>3}  {hit.score:.3f}  {hit.doc_id}{''.join(f'  {n}={v}' for n, v in hit.metadata.items())}"
        f"\n{'':12}{_gist(hit.text) if not context else hit.before + hit.text + hit.after}"
        for hit in hits
    ]
    _print({"hits": [hit.flat() for hit in hits]}, as_json, "\n".join(lines) or "no hits")


@app.command()
def evaluate(
    *,
    queries: Annotated[Path | None, typer.Option("--queries", help="Queries: id, text; .parquet, .jsonl, .csv, .tsv.")] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="Judgments: query, document, relevance; the same kinds, or TREC's.")
    ] = None,
    itself: Annotated[
        bool, typer.Option("--self", help="Without judgments: is the passage found that a sentence is from?")
    ] = False,
    mode: Annotated[str | None, typer.Option("--mode", help="vector, text or hybrid; left out: [search] mode.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the best anew with the cross-encoder [search] reranker.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Pass by the vector index.")] = False,
    against: Annotated[
        str | None, typer.Option("--against", help="Compare with vector, text, hybrid, exact, hybrid+rerank, or with a table.")
    ] = None,
    per_query: Annotated[Path | None, typer.Option("--per-query", help="Write each query's measures here, as CSV.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Measure how good the answers are: nDCG@10, recall, MRR@10, milliseconds; and whether another way or table is better.

    Example: latent evaluate --queries queries.parquet --qrels qrels.parquet --against hybrid
    """
    from pipeline.judgments import read_judgments, read_queries
    from pipeline.search import How, open_table
    from pipeline.search import evaluation as use_case

    if itself == (queries is not None) or (queries is None) != (qrels is None):
        raise typer.BadParameter("give --queries and --qrels, or --self")
    table = open_table(config, overrides)
    way = use_case.way(against) if against else None
    rival = table if way is not None or not against else open_table(config, overrides | {"table.name": against})
    asked, judged = (read_queries(queries), read_judgments(qrels)) if queries and qrels else use_case.known_items(table)
    given = {"mode": mode, "rerank": rerank, "exact": exact}
    done = use_case.evaluate(table, asked, judged, How(**{name: value for name, value in given.items() if value}))  # type: ignore[typeddict-item]
    result = done.flat()
    lines = [_measures("", done)]
    if against:
        other = use_case.evaluate(rival, asked, judged, way or How())
        compared = use_case.compare(done, other)
        result |= {"against": {"what": against} | other.flat() | {"p": compared.p}}
        lines += [_measures(f"{against}: ", other), "difference: " + _differences(compared)]
    if per_query:
        use_case.write_by_query(per_query, done)
        lines.append(f"each query: {per_query}")
    _print(result, as_json, "\n".join(lines))


def _measures(what: str, done: Evaluation) -> str:
    times = ", ".join(f"{name} {ms:.0f}" for name, ms in done.milliseconds.items())
    return f"{what}{', '.join(f'{name} {value:.5f}' for name, value in done.means.items())}; {done.queries} queries; ms a search: {times}"


def _differences(compared: Comparison) -> str:
    told = (f"{name} {value:+.5f} (p {compared.p[name]:.3f})" for name, value in compared.differences.items())
    return ", ".join(told)


@app.command()
def migrate(
    *,
    model: Annotated[str, typer.Option("--model", help="Hub id, local folder, or folder inside an installed package.")],
    revision: Annotated[str, typer.Option("--revision", help="Hub revision; empty: the newest.")] = "",
    query_prompt: Annotated[str, typer.Option("--query-prompt", help="Put before queries.")] = "",
    document_prompt: Annotated[str, typer.Option("--document-prompt", help="Put before documents.")] = "",
    queries: Annotated[Path | None, typer.Option("--queries", help="Queries to compare with, as in 'latent evaluate'.")] = None,
    qrels: Annotated[Path | None, typer.Option("--qrels", help="Their judgments. Without both: the table's own sentences.")] = None,
    if_better: Annotated[bool, typer.Option("--if-better", help="Switch where nDCG@10 is better.")] = False,
    switch: Annotated[bool, typer.Option("--switch", help="Switch whatever comes of the comparison.")] = False,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Move the table to another model while it is searched and kept up to date: embed beside it, compare, switch in one version.

    Example: latent migrate --model BAAI/bge-small-en-v1.5 --if-better
    """
    from pipeline import migrate as use_case
    from pipeline.judgments import read_judgments, read_queries

    if (queries is None) != (qrels is None):
        raise typer.BadParameter("give --queries and --qrels, or neither")
    judged = (read_queries(queries), read_judgments(qrels)) if queries and qrels else None
    settings = load(config, overrides)
    _log(verbose=False)
    successor = {
        "name": model,
        "revision": revision,
        "sha256": "",
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
    }
    with _progress() as on_progress:
        done = use_case.migrate(settings, successor, on_progress, judged=judged, if_better=if_better, switch=switch)
    lines = [
        _measures(f"{done.before_model}: ", done.before),
        _measures(f"{done.model}: ", done.after),
        "difference: " + _differences(done.compared),
        f"switched: version {done.table_version}; 'latent rollback {done.former_version}' goes back; set [model] name = {json.dumps(done.model)}"
        if done.table_version
        else f"not switched: {done.table} is ready; the same command with --switch switches",
    ]
    _print(done.flat(), as_json, "\n".join(lines))


@app.command()
def verify(*, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Prove that the table is right; exit code 1 where a check fails.

    Example: latent verify
    """
    from pipeline import verify as checks

    found = checks.verify(load(config, overrides))
    ok = all(check.ok for check in found)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}" for check in found]
    _print({"ok": ok, "checks": [asdict(check) for check in found]}, as_json, "\n".join(lines))
    raise typer.Exit(0 if ok else 1)


@app.command()
def maintain(*, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Update indexes, merge small fragments, drop versions superseded 14 days ago and files that killed runs left behind.

    Example: latent maintain
    """
    from pipeline import run as use_case

    done = use_case.maintain(load(config, overrides))
    told = f"vector searches: {_looking(done.tuning)}"
    _print(
        done, as_json, f"{told}\n{done.versions_dropped} versions dropped, {done.files_removed} files of unfinished runs removed"
    )


@app.command()
def rollback(
    to: Annotated[str, typer.Argument(help="A version's number, or a run: the table becomes what it was when that run had ended.")],
    *,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Make the table what it was, file states and quarantine included. The present state stays, as a version to go back to.

    Example: latent rollback 12
    """
    from pipeline import run as use_case

    done = use_case.rollback(load(config, overrides), to)
    _print(
        done,
        as_json,
        f"version {done.table_version} is as version {done.restored} was: {done.documents} documents in {done.chunks} chunks\n"
        "next: latent run takes up what the source changed since",
    )


@app.command()
def serve(
    *,
    search: Annotated[bool, typer.Option("--search", help="Answer searches over HTTP instead.")] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback a token is wanted.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8000,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Keep the nightly schedule of the config alive, on a Prefect server of your own or one started here; or answer searches over HTTP.

    Example: latent serve --search --port 8000
    """
    settings = load(config, overrides)
    _log(verbose=True)
    if search:
        _serve_searches(config, host, port, as_json=as_json)
    else:
        _serve_nightly(config, settings, as_json=as_json)


def _serve_searches(config: Path, host: str, port: int, *, as_json: bool) -> None:
    from pipeline import service
    from pipeline.search import open_table

    def ready(address: service.Address) -> None:
        token = f"\ntoken: {address.token}" if address.token else ""
        _print(address, as_json, f"searches: {address.url}/search, described at {address.url}/docs{token}")
        sys.stdout.flush()

    service.serve(open_table(config, overrides), host, port, ready)


def _serve_nightly(config: Path, settings: Config, *, as_json: bool) -> None:
    import flows

    def ready(served: flows.Served) -> None:
        _print(
            served,
            as_json,
            f"Prefect server: {served.server}\nnightly at '{served.nightly}' {served.timezone}\n"
            f"now: PREFECT_API_URL={served.server}/api prefect deployment run {served.deployment}",
        )
        sys.stdout.flush()

    flows.serve(config.resolve(), settings, overrides, ready)


# --- what commands share --------------------------------------------------------------------------------------------


def _pull_settings(arguments: list[str]) -> list[str]:
    """Take `--section.key value` out of the arguments into `overrides`; values are JSON where they parse as it, else strings."""
    rest, waiting = [], iter(arguments)
    for argument in waiting:
        match = SETTING.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(waiting, None)
        if value is None:
            words.print(f"error: {argument} wants a value")
            raise SystemExit(2)
        overrides[match[1]] = _value(value)
    return rest


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _grid(*columns: str) -> Grid:
    grid = Grid(*columns, box=None)
    for column in grid.columns:
        column.no_wrap = True
    return grid


def _print(result: Any, as_json: bool, told: str, *grids: Grid) -> None:
    """The result on stdout: one JSON object, or for people."""
    if as_json:
        plain = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        sys.stdout.write(json.dumps(plain, default=str) + "\n")
        return
    sys.stdout.write(CONTROL.sub("\N{REPLACEMENT CHARACTER}", told) + "\n")
    for grid in grids:
        Console(width=None if sys.stdout.isatty() else WIDE).print(grid)


def _fail(error: PipelineError, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
    told = CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(error))
    words.print(f"{'' if isinstance(error, Interrupted) else 'error: '}{told}", highlight=False, markup=False)


def _looking(tuning: Tuning | None) -> str:
    """How vector searches look, and what was measured."""
    if tuning is None:
        return "exact: the table is small"
    if not tuning.nprobes:
        return f"exact, {tuning.exact_milliseconds:.1f} ms: no index holds a recall of {tuning.wanted} faster"
    return (
        f"recall@10 {tuning.recall:.3f}, under a filter {tuning.filtered:.3f}, in {tuning.milliseconds:.1f} ms (exact: {tuning.exact_milliseconds:.1f} ms), "
        f"nprobes {tuning.nprobes}, refine_factor {tuning.refine_factor}"
    )


def _gist(text: str) -> str:
    """The beginning of a passage, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:109] + "…"


def _told(report: Report, *, planned: bool) -> str:
    """A report for people."""
    d, c = report.documents, report.chunks
    about = "about " if planned else ""
    lines = [
        f"documents   {d.added} added, {d.changed} changed, {d.unchanged} unchanged ({report.moved} moved), {d.deleted} deleted, {d.quarantined} in quarantine",
        f"files       {report.files_opened} opened, {report.files_unchanged} unchanged, {report.files_refused} unreadable, {report.files_ignored} of another kind",
        f"chunks      {about}{c.encoded} encoded, {c.reused} reused" + ("" if planned else f", {c.deleted} deleted"),
        f"tokens      {about}{report.tokens} at {report.tokens_per_second:.0f} a second on {report.workers} workers",
        f"time        {about}{report.seconds:.1f} s",
    ]
    if report.stale:
        lines.insert(1, f"left        {report.stale} documents that changed while they were read: the next run takes them")
    if not planned:
        lines.insert(0, f"run         {report.run_id}, table version {report.table_version}")
    return "\n".join(lines)


@contextmanager
def _progress() -> Iterator[Any]:
    """Bars with ETA on a terminal, nothing otherwise. What libraries print meanwhile goes to stderr: stdout is for data."""
    if not words.is_terminal:
        with redirect_stdout(sys.stderr):
            yield lambda _: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    told = {"survey": "reading", "start": "starting workers", "encode": "encoding", "done": "done"}
    with redirect_stdout(sys.stderr), Bars(*columns, console=words, transient=True) as bars:
        bar = bars.add_task("listing", total=None, tokens=0)

        def draw(moment: Progress) -> None:
            bars.update(
                bar, description=told[moment.phase], completed=moment.documents, total=moment.total or None, tokens=moment.tokens
            )

        yield draw


def _log(*, verbose: bool) -> None:
    """The pipeline's log lines: above the bars on a terminal, plain otherwise."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if words.is_terminal:
        handler = RichHandler(console=words, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logger = logging.getLogger("pipeline")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
