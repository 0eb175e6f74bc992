"""Commands that look at the table as a space: groups, maps, ways."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latent.cli.app import ConfigPath, Json, app, settings_of
from latent.cli.output import Grid, gist, printed, progress, say
from latent.outputs import require_replaceable
from latent.types import Progress

if TYPE_CHECKING:
    from latent.analysis.compression.compress_table import Measured
    from latent.analysis.drift.compare_versions import TopicChange

TOPICS_SHOWN = 12


@app.command()
def cluster(
    ctx: typer.Context,
    *,
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many clusters; left out: [cluster] number.")] = None,
    method: Annotated[
        Literal["kmeans", "density"] | None, typer.Option("--method", help="Left out: [cluster] method; density leaves noise.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Take no number or name over from before.")] = False,
    against: Annotated[str | None, typer.Option("--against", help="A column of labels to compare with.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Group the passages and name the groups. Write which passage belongs to which.

    Example: latent cluster -k 20
    """
    from latent.analysis.clustering import cluster_table as use_case

    given = {"cluster.number": k, "cluster.method": method}
    settings = settings_of(ctx, config, {name: value for name, value in given.items() if value is not None})
    with progress() as on_progress:
        done = use_case.cluster(settings, on_progress, fresh=fresh, against=against)
    measured = {"silhouette": done.silhouette} | done.agreement
    lines = [
        f"{done.clusters} clusters of version {done.table_version}: {done.kept} kept, {done.new} new, {done.gone} gone; {done.noise} rows are noise",
        ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if value is not None),
        f"tables: {done.clusters_table}, {done.assignments_table}",
    ]
    topics = [(str(g.cluster_id), str(g.rows), g.label, next(iter(g.titles), "")) for g in done.groups if g.level == 0]
    table = Grid(("id", "rows", "topic", "like"), topics, clipped=("like",))
    printed(done.flat(), as_json, *filter(None, lines), table)


@app.command()
def duplicates(
    ctx: typer.Context,
    *,
    similarity: Annotated[
        float | None, typer.Option("--similarity", help="Cosine from which on; left out: [duplicates] similarity.")
    ] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Find near-duplicate and outlying passages. Nothing is removed.

    Example: latent duplicates --similarity 0.9
    """
    from latent.analysis.duplicates import find_duplicates as use_case

    settings = settings_of(ctx, config, ({} if similarity is None else {"duplicates.similarity": similarity}))
    with progress() as on_progress:
        done = use_case.duplicates(settings, on_progress)
    lines = [
        f"{done.rows} passages of version {done.table_version}: {done.groups} groups of near-duplicates (cosine {done.similarity} or more)",
        f"{done.droppable} passages may go, {done.equal} of them equal to another letter by letter; of {done.documents} documents every passage",
        f"{done.pairs_met:.1%} of such pairs were compared, as seen on {done.pairs_seen} pairs"
        if done.pairs_seen
        else "how many such pairs were compared is not known: an exact comparison of some passages met none",
        f"tables: {done.duplicates_table}, {done.outliers_table}",
    ]
    alike = [(str(g.rows), f"{g.similarity:.3f}", gist(g.kept, 60), gist(g.other, 60)) for g in done.largest]
    strange = [(f"{each.distance:.3f}", each.chunk_id, gist(each.text)) for each in done.strangest]
    tables = [Grid(("passages", "from", "kept", "may go"), alike, clipped=("kept", "may go"))] if alike else []
    printed(done, as_json, *lines, *tables, Grid(("distance", "strangest", "text"), strange, clipped=("text",)))


@app.command()
def drift(
    ctx: typer.Context,
    *,
    since: Annotated[
        str | None,
        typer.Option("--since", help="A version, or a run at the end of which it stood; left out: before the newest run."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Likewise; left out: the newest version.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write it as a page of one file, with maps; .html.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Compare two versions: what came, went and moved.

    Example: latent drift --since 7 --report changes.html
    """
    from latent.analysis.drift import compare_versions as use_case

    settings = settings_of(ctx, config)
    if report:
        require_replaceable(report, "--report")
    with progress() as on_progress:
        done = use_case.drift(settings, since, on_progress, until=until)
        if report:
            from latent.analysis.drift.change_report import save_report

            on_progress(Progress("map"))
            save_report(done, settings.table.name, report, settings.schedule.zone)
    lines = [
        f"version {done.table_version} against {done.since}: {done.new} documents new, {done.changed} changed, {done.gone} gone, {done.stayed} as they were",
        f"alarm: {'the table moved' if done.alarm else 'none'}",
        f"strangers: {done.strangers.share:.1%} of the documents, p {done.strangers.p:.2g}; topics: {done.shares.share:.1%} moved, p {done.shares.p:.2g}",
        *([f"report: {report}"] if report else []),
    ]
    topics = Grid(("topic", "before", "now", "share", "moved by", ""), [_topic_cells(each) for each in done.topics[:TOPICS_SHOWN]])
    strange = [(f"{each.distance:.3f}", each.doc_id, gist(each.text)) for each in done.strangest]
    tables = [topics, *([Grid(("distance", "strangest that came", "text"), strange, clipped=("text",))] if strange else [])]
    printed(done.flat() | {"report": report}, as_json, *lines, *tables)


def _topic_cells(topic: TopicChange) -> tuple[str, ...]:
    share = f"{topic.before_share:.1%} -> {topic.now_share:.1%}"
    moved = "" if topic.shift is None else f"{topic.shift:.3f}"
    return topic.label, str(topic.before), str(topic.now), share, moved, "" if topic.state == "kept" else topic.state


@app.command()
def compress(
    ctx: typer.Context,
    *,
    queries: Annotated[Path | None, typer.Option("--queries", help="Queries: id, text; .parquet, .jsonl, .csv, .tsv.")] = None,
    qrels: Annotated[Path | None, typer.Option("--qrels", help="Judgments: query, document, relevance; the same kinds.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw what is kept by size: .png, .svg or .pdf.")] = None,
    write: Annotated[str, typer.Option("--write", help="Write the vectors by this codec, such as full-int8 or pca-192-int4.")] = "",
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Measure what smaller vectors keep, and write them. The table's own vectors stay.

    Example: latent compress --picture curve.png
    """
    from latent.analysis.compression import compress_table as compression
    from latent.analysis.projection import map_table as maps
    from latent.evaluation.datasets import read_judgments, read_queries

    if (queries is None) != (qrels is None):
        raise typer.BadParameter("give --queries and --qrels together, or neither")
    if picture:
        maps.require_picture(picture)
    judged = (read_queries(queries), read_judgments(qrels)) if queries and qrels else None
    settings = settings_of(ctx, config)
    with progress() as on_progress:
        done = compression.compress(settings, write, judged, on_progress)
    if picture:
        compression.save_curve(done, picture)
    lines = [
        f"{done.rows} passages of version {done.table_version}, {done.full_bytes} bytes a vector in float32"
        + ("" if done.full_ndcg is None else f": ndcg@10 {done.full_ndcg:.5f}"),
        *([f"written by {done.written}: tables {done.compressed_table}, {done.codec_table}"] if done.written else []),
        *([f"picture: {picture}"] if picture else []),
    ]
    scored = done.full_ndcg is not None
    columns = ("codec", "bytes", "of full", "error", "recall@10", "rescored", *(("ndcg kept", "rescored") if scored else ()))
    table = Grid(columns, [_codec_cells(each, scored=scored) for each in done.codecs])
    printed(asdict(done) | {"picture": picture}, as_json, *lines, table)


def _codec_cells(codec: Measured, *, scored: bool) -> tuple[str, ...]:
    kept = [codec.recall, codec.rescored_recall, *([codec.ndcg_kept, codec.rescored_ndcg_kept] if scored else [])]
    shares = ("" if value is None else f"{value:.3f}" for value in kept)
    return codec.name, str(codec.bytes), f"1/{1 / codec.share:.3g}", f"{codec.error:.4f}", *shares


@app.command()
def between(
    ctx: typer.Context,
    start: Annotated[str, typer.Argument(help="A text.")],
    end: Annotated[str, typer.Argument(help="Another.")],
    *,
    steps: Annotated[int, typer.Option("--steps", help="Points on the way, both ends among them.")] = 8,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages at each.")] = 1,
    where: Annotated[str | None, typer.Option("--where", help="An SQL condition over the columns.")] = None,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Show the passages that lie between two texts, along the sphere.

    Example: latent between "read a file" "send an email" --steps 6
    """
    from latent.analysis import analogies as ways
    from latent.search import SearchTable

    way = ways.between(SearchTable(settings_of(ctx, config)), start, end, steps, k, where)
    found = [(step, hit) for step in way for hit in step.hits]
    lines = [(f"{step.at:.2f}  {hit.score:.3f}  {hit.doc_id}", f"{'':13}{gist(hit.text)}") for step, hit in found]
    steps_found = [{"at": step.at, "hits": [hit.flat() for hit in step.hits]} for step in way]
    printed({"steps": steps_found}, as_json, *chain.from_iterable(lines))


@app.command()
def analogy(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Questions: a, b, c, expected, section; .parquet, .jsonl, .csv, .tsv.")],
    *,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Ask analogies of a table of words, and count the right answers.

    A question is "a is to b as c is to what?".

    Example: latent analogy questions.csv
    """
    from latent.analysis import analogies as ways
    from latent.search import SearchTable

    done = ways.analogies(SearchTable(settings_of(ctx, config)), file)
    lines = [
        f"{done.accuracy:.4f} of {done.questions} questions answered right; {done.skipped} left out: not all of their words are in the table",
        *(f"  {share:.4f}  {section}" for section, share in done.sections.items()),
    ]
    printed(done, as_json, *lines)


@app.command(name="map")
def map_(
    ctx: typer.Context,
    *,
    picture: Annotated[list[Path] | None, typer.Option("--picture", help="Draw it: .png, .svg or .pdf; may be repeated.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Folder for a page to walk about in; works offline.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Serve that page on this machine and open it in the browser.")] = False,
    config: ConfigPath = Path("config.toml"),
    as_json: Json = False,
) -> None:
    """Draw the passages on a plane: a picture, or a page to explore.

    The picture has named regions; the page can be zoomed, searched, filtered and read.

    Example: latent map --picture map.png --html map --open
    """
    from latent.analysis.projection import map_table as maps

    settings = settings_of(ctx, config)
    pictures = picture or ([] if html or show else [Path("map.png")])
    for file in pictures:
        maps.require_picture(file)
    folder = html or (Path(f"{settings.table.name}-map") if show else None)
    if folder:
        require_replaceable(folder, "--html")
    with progress() as on_progress:
        drawn = maps.draw_map(settings, on_progress)
    for file in pictures:
        maps.save_picture(drawn, file, maps.title_of(settings.table.name, drawn))
    if folder:
        maps.save_page(settings, drawn, folder)
    lines = [
        f"{drawn.rows.num_rows} passages of version {drawn.table_version} on a plane: table {drawn.map_table}",
        *(f"picture: {file}" for file in pictures),
        *([f"page: {folder}; any web server shows it, or 'latent map --html {folder} --open'"] if folder else []),
    ]
    told = {"map_table": drawn.map_table, "table_version": drawn.table_version, "rows": drawn.rows.num_rows}
    printed(told | {"pictures": pictures, "page": folder}, as_json, *lines)
    if show and folder:
        sys.stdout.flush()
        maps.show_page(folder, lambda url: say(f"{url}, until Ctrl-C"))
