"""The flow of the latent space: what changed since the last time, clusters, near-duplicates, a map; and what Prefect shows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from latent.analysis.report import Analysis
from latent.analysis.report import analyze as use_case
from latent.config import load
from latent.flows.observability import artifact_key, logs_to_prefect, progress_artifact, run_name, tell
from latent.flows.retries import SHORT_S, missed, patient
from latent.rendering import markdown_text

TOPICS, STRANGEST = 15, 10  # told of


@patient("analyze")
def analyze_table(config: str, overrides: Mapping[str, Any]) -> Analysis | None:
    """The use-case, with an artifact that moves."""
    settings = load(config, overrides)
    with logs_to_prefect(), progress_artifact(f"analysis-{settings.table.name}") as on_progress:
        return use_case(settings, on_progress)


@flow(name="analyze", flow_run_name=run_name, validate_parameters=False, timeout_seconds=SHORT_S)
def analyze(
    config: str = "config.toml",
    overrides: Mapping[str, Any] | None = None,
    reason: str = "by hand",  # noqa: ARG001  names the run
) -> State[None] | None:
    """Bring what is worked out from the table up to date with it, and tell what changed."""
    if (documents_to_skip := missed()) is not None:
        return documents_to_skip
    found = analyze_table(config, overrides or {})
    if found is not None:
        name = load(config, overrides).table.name
        create_markdown_artifact(changes(name, found), key=artifact_key(f"changes-{name}"), description=f"What changed in {name}")
        moved = found.changes is not None and found.changes.alarm
        tell("latent.analyzed", name, {"table_version": found.table_version}, drift="alarm" if moved else "none")
    return None


def changes(table: str, found: Analysis) -> str:
    """The change report in Markdown."""
    moved, alike = found.changes, found.duplicates
    lines = [f"# {table}, version {found.table_version}", ""]
    if moved is not None:
        verdict = "**Alarm: the table moved.**" if moved.alarm else "No alarm."
        lines += [
            f"{verdict} Since version {moved.since}: {moved.new} documents new, {moved.changed} changed, {moved.gone} gone, {moved.stayed} as they were.",
            "",
            f"Strangers: {moved.strangers.share:.1%} of the documents (p {moved.strangers.p:.2g}). Topics: {moved.shares.share:.1%} moved (p {moved.shares.p:.2g}).",
            "",
            "| topic | before | now | |",
            "|---|---:|---:|---|",
            *(
                f"| {markdown_text(each.label)} | {each.before} | {each.now} | {'' if each.state == 'kept' else each.state} |"
                for each in moved.topics[:TOPICS]
            ),
            "",
            "| strangest that came | distance |",
            "|---|---:|",
            *(f"| {markdown_text(each.doc_id)} | {each.distance:.3f} |" for each in moved.strangest[:STRANGEST]),
            "",
        ]
    lines += [
        f"{found.clusters.clusters} clusters: {found.clusters.kept} kept, {found.clusters.new} new, {found.clusters.gone} gone.",
        "",
        f"{alike.groups} groups of near-duplicates; {alike.droppable} passages may go, every passage of {alike.documents} documents.",
        "",
        *(f"- {markdown_text(str(file))}" for file in found.files),
    ]
    return "\n".join(lines)
