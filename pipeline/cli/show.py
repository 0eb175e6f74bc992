"""What people see: results, errors, progress, log lines."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table as Grid

from pipeline.errors import Interrupted, PipelineError
from pipeline.schema import Progress, Prompts, Report
from pipeline.store import FEW_ROWS, Tuning

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # what a document may hold would be a command to the terminal
STAMP = "%Y-%m-%d %H:%M:%S"
WIDE = 200  # columns of a table that goes to a file or a pipe: nothing is cut off

words = Console(stderr=True, soft_wrap=True)


def printed(result: Any, as_json: bool, told: str, *grids: Grid) -> None:
    """The result on stdout: one JSON object, or for people."""
    if as_json:
        plain = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
        sys.stdout.write(json.dumps(plain, default=str) + "\n")
        return
    sys.stdout.write(CONTROL.sub("\N{REPLACEMENT CHARACTER}", told) + "\n")
    for grid in grids:
        Console(width=None if sys.stdout.isatty() else WIDE).print(grid)


def failed(error: PipelineError, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
    told = CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(error))
    words.print(f"{'' if isinstance(error, Interrupted) else 'error: '}{told}", highlight=False, markup=False)


def grid(*columns: str) -> Grid:
    grid = Grid(*columns, box=None)
    for column in grid.columns:
        column.no_wrap = True
    return grid


def runs_of(rows: list[dict[str, Any]]) -> Grid:
    """Runs as `pipeline.status.runs` gives them."""
    found = grid("run", "status", "started", "seconds", "version", "documents")
    for row in rows:
        documents = ", ".join(f"{n} {what}" for what, n in row["report"]["documents"].items() if n)
        spent = f"{(row['finished_at'] - row['started_at']).total_seconds():.1f}" if row["finished_at"] else ""
        found.add_row(row["run_id"], row["status"], f"{row['started_at']:{STAMP}}", spent, str(row["table_version"]), documents)
    return found


def told(report: Report, *, planned: bool) -> str:
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
    if report.prompts != Prompts():
        lines.append(f"prompts     {report.prompts}")
    if report.cost:
        lines.append(f"cost        {about}{report.cost:.2f}")
    for count, whose in ((report.left, "outside the sample"), (report.undone, "not done yet")):
        if count:
            lines.insert(1, f"left        {count} documents {whose}: the next run takes them")
    if report.files_left:
        lines.insert(1, f"left        {report.files_left} files that the backfill under way is to do")
    if report.stale:
        lines.insert(1, f"left        {report.stale} documents that changed while they were read: the next run takes them")
    if not planned:
        lines.insert(0, f"run         {report.run_id}, table version {report.table_version}")
    return "\n".join(lines)


def looking(tuning: Tuning | None) -> str:
    """How vector searches look, and what was measured."""
    if tuning is None:
        return "exact: the table is small"
    if not tuning.nprobes:
        return f"exact, {tuning.exact_milliseconds:.1f} ms: no index holds a recall of {tuning.wanted} faster"
    few = f"exact under a filter that at most {FEW_ROWS} rows meet"
    filtered = (
        few if tuning.rows <= 16 * FEW_ROWS else f"{tuning.filtered:.3f} under a filter that a sixteenth of the rows meet, {few}"
    )
    return (
        f"recall@10 {tuning.recall:.3f}, {filtered}, in {tuning.milliseconds:.1f} ms (exact: {tuning.exact_milliseconds:.1f} ms), "
        f"nprobes {tuning.nprobes}, refine_factor {tuning.refine_factor}"
    )


def gist(text: str) -> str:
    """The beginning of a passage, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 110 else line[:109] + "…"


@contextmanager
def progress() -> Iterator[Any]:
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
    told = {
        "survey": "reading",
        "start": "starting workers",
        "encode": "encoding",
        "wait": "waiting",
        "done": "done",
        "centres": "looking for centres",
        "assign": "assigning",
        "map": "drawing",
        "compare": "comparing",
        "learn": "learning",
        "compress": "compressing",
    }
    with redirect_stdout(sys.stderr), Bars(*columns, console=words, transient=True) as bars:
        bar = bars.add_task("listing", total=None, tokens=0)

        def draw(moment: Progress) -> None:
            bars.update(
                bar, description=told[moment.phase], completed=moment.documents, total=moment.total or None, tokens=moment.tokens
            )

        yield draw


def log_to_terminal(*, verbose: bool) -> None:
    """The pipeline's log lines: above the bars on a terminal, plain otherwise."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if words.is_terminal:
        handler = RichHandler(console=words, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logger = logging.getLogger("pipeline")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
