"""Commands that keep a table true to its source."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent.cli.app import ConfigPath, Json, app, overrides, settings_of
from latent.cli.output import Grid, looking, printed, progress, runs_of, say, stamp, told
from latent.errors import ConfigError, PipelineError, shown
from latent.types import short

if TYPE_CHECKING:
    from latent.config import Config

AllowDeletions = Annotated[
    bool,
    typer.Option(
        "--allow-deletions", "--allow-empty", help="Delete more documents than [source] max_deleted_share allows, or all."
    ),
]
ChangeSource = Annotated[
    bool, typer.Option("--change-source", help="Let the table hold the documents of another source than it records; the others go.")
]


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
    from latent.config import render
    from latent.scaffold.config_file import OWN_NOTE, SAMPLE_FOLDER, SAMPLE_NOTE, config_for, sample_config
    from latent.scaffold.sample_corpus import write_sample

    if sample == (path is not None) or (path is not None and not path.strip()):
        raise typer.BadParameter("give the path of your documents, or --sample")
    folder = config.resolve().parent
    if not folder.is_dir():
        raise ConfigError(f"--config {config}: there is no folder {folder}: make it first")
    documents = write_sample(folder / SAMPLE_FOLDER) if sample else None
    if path is not None and config.exists():
        raise ConfigError(f"{config} is already there: remove it, or name another with --config")
    settings = sample_config() if path is None else config_for(path, folder)
    table = None if config.exists() else settings.table.name  # the sample leaves a config that is there as it is
    if table:
        config.write_text(render(settings, SAMPLE_NOTE if sample else OWN_NOTE), encoding="utf-8")
    where = f"{documents} documents in {SAMPLE_FOLDER}" if sample else f"source: {shown(settings.source.uri)}"
    lines = [where, f"config: {config}", *([f"table: {table}"] if table else []), "next: latent plan, then latent run"]
    printed({"config": str(config), "documents": documents, "table": table}, as_json, *lines)


@app.command()
def plan(
    ctx: typer.Context, *, change_source: ChangeSource = False, config: ConfigPath = Path("config.toml"), as_json: Json = False
) -> None:
    """Show what a run would do, how many tokens, how long. Writes nothing.

    Example: latent plan --json
    """
    from latent.ingest import run as use_case

    settings = settings_of(ctx, config)
    with progress() as on_progress:
        report = use_case.plan(settings, on_progress, change_source=change_source)
    printed(report, as_json, *told(report, planned=True))


@app.command()
def run(
    ctx: typer.Context,
    *,
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Try quarantined documents again.")] = False,
    allow_deletions: AllowDeletions = False,
    change_source: ChangeSource = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Keep to the pace and hours of [backfill], and let other runs of the table pass.")
    ] = False,
    sample: Annotated[
        float, typer.Option("--sample", min=0, max=1, help="Take this share of the documents to do, to try first.")
    ] = 1.0,
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
    from latent import flows
    from latent.ingest import backfill as low_priority
    from latent.ingest import maintenance
    from latent.ingest import run as use_case

    settings = settings_of(ctx, config, verbose=verbose)
    with progress() as on_progress:
        if flow or flows.configured_server():
            report = flows.embed_as_flow(
                config.resolve(),
                overrides(ctx),
                on_progress,
                retry_quarantined=retry_quarantined,
                allow_deletions=allow_deletions,
                change_source=change_source,
                sample=sample,
                backfill=backfill,
            )
        else:
            work = low_priority.backfill if backfill else use_case.embed
            report = work(
                settings,
                on_progress,
                retry_quarantined=retry_quarantined,
                allow_deletions=allow_deletions,
                change_source=change_source,
                sample=sample,
            )
    changed = report.documents.added or report.documents.changed or report.documents.deleted
    if maintain and (changed or maintenance.searches_lag(settings)):
        try:
            maintenance.maintain(settings)
            report = maintenance.report_as_of_now(settings, report)
        except PipelineError as error:  # the next run, or another that is under way, does it
            say(f"warning: the run is committed, but the indexes are not up to date: {error}")
    printed(report, as_json, *told(report, planned=False))


@app.command()
def runs(
    ctx: typer.Context,
    *,
    count: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 20,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Show the last runs: status, time, documents.

    Example: latent runs -n 50
    """
    from latent.ingest.status import runs as use_case

    settings = settings_of(ctx, config)
    found = use_case(settings, count)
    printed({"runs": found}, as_json, runs_of(found, settings.schedule.zone) if found else "no run yet")


@app.command()
def pause(ctx: typer.Context, *, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Make backfills of the table wait. They commit what is finished and let their workers go. Other runs go on.

    Example: latent pause
    """
    from latent.ingest import backfill as use_case

    use_case.pause(settings_of(ctx, config), paused=True)
    printed({"paused": True}, as_json, "backfills wait; next: latent resume")


@app.command()
def resume(ctx: typer.Context, *, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Let backfills of the table go on.

    Example: latent resume
    """
    from latent.ingest import backfill as use_case

    use_case.pause(settings_of(ctx, config), paused=False)
    printed({"paused": False}, as_json, "backfills go on")


@app.command()
def status(ctx: typer.Context, *, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Show the table's contents, indexes, last runs and versions. The versions can be gone back to.

    Example: latent status
    """
    from latent.ingest.status import status as use_case

    settings = settings_of(ctx, config)
    found, zone = use_case(settings), settings.schedule.zone
    versions = [(str(v.version), stamp(v.made_at, zone), v.run_id or "", v.what) for v in found.versions]
    lines = [
        f"{found.table}, version {found.version}",
        f"{found.documents} documents in {found.chunks} chunks from {found.files} files",
        f"spec: {', '.join(f'{k} {short(v)}' for k, v in found.spec.items() if v != '')}",
        f"prompts: {found.prompts}",
        f"quarantine: {', '.join(f'{n} x {reason}' for reason, n in found.quarantined.items()) or 'empty'}",
        f"indexes: {'; '.join(found.indexes) or 'none'}",
        f"vector searches: {looking(found.tuning)}",
    ]
    printed(found, as_json, *lines, runs_of(found.runs, zone), Grid(("version", "made", "run", "what"), versions))


@app.command()
def verify(ctx: typer.Context, *, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Prove that the table is right. Exit code 1 if a check fails.

    Example: latent verify
    """
    from latent.ingest import verify as checks

    found = checks.verify(settings_of(ctx, config))
    ok = all(check.ok for check in found)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}" for check in found]
    printed({"ok": ok, "checks": found}, as_json, *lines)
    raise typer.Exit(0 if ok else 1)


@app.command()
def maintain(ctx: typer.Context, *, config: ConfigPath = Path("config.toml"), as_json: Json = False) -> None:
    """Update indexes, merge fragments, drop old versions and files.

    Old are versions superseded 14 days ago, and files that killed runs left behind.

    Example: latent maintain
    """
    from latent.ingest import maintenance as use_case

    done = use_case.maintain(settings_of(ctx, config))
    removed = f"{done.versions_dropped} versions dropped, {done.files_removed} files of unfinished runs removed"
    printed(done, as_json, f"vector searches: {looking(done.tuning)}", removed)


@app.command()
def backup(
    ctx: typer.Context,
    to: Annotated[
        str, typer.Argument(help="Folder or object-store URI for the copy; an earlier copy there is brought up to date.")
    ],
    *,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="Storage option of that place, KEY=VALUE; default: those of [table], for a URI of the same kind."
        ),
    ] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Copy the table to another place while runs go on.

    Those beside it are copied too. A config whose [table] uri names that place opens the copy.

    Example: latent backup s3://backups/lancedb
    """
    from latent import store

    given = dict(each.partition("=")[::2] for each in option or [])
    if "" in given or any("=" not in each for each in option or []):
        raise typer.BadParameter("give --option as KEY=VALUE")
    if not to.strip():
        raise typer.BadParameter("give the place of the copy: a folder or a URI")
    table = settings_of(ctx, config).table
    uri = to if "://" in to else str(Path(to).resolve())
    same_kind = uri.partition("://")[0] == table.uri.partition("://")[0] and "://" in uri
    options = given or (table.storage_options if same_kind else {})
    done = store.back_up(store.Store(table.uri, table.name, table.storage_options), store.Store(uri, table.name, options))
    copied = f"version {done.table_version} is in {shown(uri)}: {len(done.tables)} tables, {done.files_copied} files copied, {done.files_removed} removed"
    printed(done, as_json, copied, "next: set [table] uri to that place in a copy of the config, and 'latent verify' it")


@app.command()
def rollback(
    ctx: typer.Context,
    to: Annotated[str, typer.Argument(help="A version's number, or a run: the table becomes what it was when that run had ended.")],
    *,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Make the table what it was at a version or after a run.

    File states and quarantine are included. The present state stays, as a version to go back to.

    Example: latent rollback 12
    """
    from latent.ingest import rollback as use_case

    done = use_case.rollback(settings_of(ctx, config), to)
    printed(
        done,
        as_json,
        f"version {done.table_version} is as version {done.restored} was: {done.documents} documents in {done.chunks} chunks",
        "next: latent run takes up what the source changed since",
    )


@app.command()
def serve(
    ctx: typer.Context,
    *,
    search: Annotated[bool, typer.Option("--search", help="Answer searches over HTTP instead.")] = False,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback a token is wanted.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8000,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Keep the nightly schedule alive, or answer searches over HTTP.

    The schedule runs on a Prefect server of your own, or on one started here.

    Example: latent serve --search --port 8000
    """
    settings = settings_of(ctx, config, verbose=True)
    if search:
        _serve_searches(settings, host, port, as_json=as_json)
    else:
        _serve_nightly(config, settings, overrides(ctx), as_json=as_json)


def _serve_searches(settings: Config, host: str, port: int, *, as_json: bool) -> None:
    from latent.search import SearchTable
    from latent.search import http_server as service

    def ready(address: service.ServerInfo) -> None:
        token = [f"token: {address.token}"] if address.token else []
        printed(address, as_json, f"searches: {address.url}/search, described at {address.url}/docs", *token)
        sys.stdout.flush()

    service.serve(SearchTable(settings), host, port, ready)


def _serve_nightly(config: Path, settings: Config, overridden: dict[str, Any], *, as_json: bool) -> None:
    from latent import flows

    def ready(served: flows.ServeInfo) -> None:
        analyze = [f"analyze at '{served.analyze}' {served.timezone}"] if served.analyze else []
        printed(
            served,
            as_json,
            f"Prefect server: {served.server}",
            f"nightly at '{served.nightly}' {served.timezone}",
            *analyze,
            f"now: PREFECT_API_URL={served.server}/api prefect deployment run {served.deployment}",
        )
        sys.stdout.flush()

    flows.serve(config.resolve(), settings, overridden, ready)
