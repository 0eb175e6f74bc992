"""Commands that look at the table as a space: groups, maps, ways."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import ConfigPath, Json, app, overrides
from pipeline.cli.show import grid, log_to_terminal, printed, progress
from pipeline.config import load


@app.command()
def cluster(
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
    """Group the passages, name the groups, and write who belongs where.

    Example: latent cluster -k 20
    """
    from pipeline.space import clusters as use_case

    given = {"cluster.number": k, "cluster.method": method}
    settings = load(config, overrides | {name: value for name, value in given.items() if value is not None})
    log_to_terminal(verbose=False)
    with progress() as on_progress:
        done = use_case.cluster(settings, on_progress, fresh=fresh, against=against)
    measured = {"silhouette": done.silhouette} | done.agreement
    lines = [
        f"{done.clusters} clusters of version {done.table_version}: {done.kept} kept, {done.new} new, {done.gone} gone; {done.noise} rows are noise",
        ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if value is not None),
        f"tables: {done.clusters_table}, {done.assignments_table}",
    ]
    topics = grid("id", "rows", "topic", "like")
    for each in done.groups:
        if each.level == 0:
            topics.add_row(str(each.cluster_id), str(each.rows), each.label, each.titles[0])
    printed(done.flat(), as_json, "\n".join(line for line in lines if line), topics)
