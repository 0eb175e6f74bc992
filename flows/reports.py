"""What a run did, in Markdown, for its page. Knows nothing of Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from latent.evaluation.evaluator import Evaluation
from latent.ingest.maintenance import MaintenanceResult
from latent.rendering import markdown_text
from latent.store import Tuning
from latent.types import DocumentCounts, Report

TOP = 5  # reasons, shards
QUARANTINE_SHARE = 0.01  # of the source's documents: more than that is worth a look


def summary(table: str, report: Report, reason: str, tuning: Tuning | None) -> str:
    """The run's report."""
    d, c = report.documents, report.chunks
    return "\n".join(
        [
            f"# {table}: {markdown_text(reason)}",
            "",
            f"Run `{report.run_id}`, table version {report.table_version}, {report.seconds:.1f} s.",
            "",
            "| documents | |",
            "|---|---:|",
            *(f"| {what} | {count} |" for what, count in asdict(d).items()),
            "",
            "| chunks | |",
            "|---|---:|",
            *(f"| {what} | {count} |" for what, count in asdict(c).items()),
            "",
            f"{report.tokens} tokens, {report.tokens_per_second:.0f} a second, on {report.workers} workers{f', at a cost of {report.cost:.2f}' if report.cost else ''}.",
            f"Summed over workers: {report.read_seconds:.1f} s reading, {report.encode_seconds:.1f} s encoding, {report.write_seconds:.1f} s writing.",
            f"{report.files_opened} files opened, {report.files_unchanged} unchanged, {report.files_refused} unreadable, {report.files_ignored} of another kind.",
            "",
            looking(tuning),
            *_table(
                "in quarantine, why | documents",
                ((markdown_text(reason), str(count)) for reason, count in list(report.reasons.items())[:TOP]),
            ),
            *_table(
                "slowest shards | node | documents | s",
                ((each.shard[:8], each.node, str(each.documents), f"{each.seconds:.1f}") for each in report.slowest[:TOP]),
            ),
        ]
    )


def _table(head: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table of Markdown, its first column of words and the others of figures; nothing where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return ["", f"| {head} |", "|---" + "|---:" * head.count("|") + "|", *lines] if lines else []


def looking(tuning: Tuning | None) -> str:
    """How searches find their way, as it was last measured."""
    if tuning is None or not tuning.nprobes:
        return "Vector searches are exact."
    held = "" if tuning.recall >= tuning.wanted else f", **less than the {tuning.wanted} asked for**"
    return (
        f"Vector searches: recall@10 {tuning.recall:.3f}{held}, {tuning.milliseconds:.0f} ms, measured at version {tuning.version}."
    )


def ended(row: Mapping[str, Any], committed: int) -> str:
    """How far a run came that did not end well: one line. `committed`: documents of it in the table."""
    if row["status"] == "running":
        return f"killed: {committed} of {row['report']['undone']} documents are committed; the next run goes on from there"
    report, reason = row["report"], row["reason"]
    d = report["documents"]
    counts = f"{d['added']} documents added, {d['changed']} changed, {report['undone']} not done yet"
    return f"{row['status']}{f' ({reason})' if reason else ''}: {counts}; the next run goes on from there"


def maintenance_summary(table: str, done: MaintenanceResult) -> str:
    """What maintain did."""
    return "\n".join(
        [
            f"# {table}: maintained",
            "",
            looking(done.tuning),
            f"{done.versions_dropped} versions dropped, {done.files_removed} files of unfinished runs removed.",
        ]
    )


def evaluation(table: str, asked: str, done: Evaluation) -> str:
    """How good the answers are."""
    return "\n".join(
        [
            f"# {table}: {markdown_text(asked)}",
            "",
            f"{done.queries} queries.",
            "",
            "| measure | |",
            "|---|---:|",
            *(f"| {name} | {value:.5f} |" for name, value in done.means.items()),
            *(f"| ms a search, {name} | {value:.1f} |" for name, value in done.milliseconds.items()),
        ]
    )


def quarantined_share(documents: DocumentCounts) -> float:
    """Of the source's documents."""
    everything = documents.added + documents.changed + documents.unchanged + documents.quarantined
    return documents.quarantined / everything if everything else 0.0
