"""What people see: results, errors, progress, log lines."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from latent import interruption
from latent.errors import Interrupted, PipelineError
from latent.rendering import LineFormatter, printable_line
from latent.types import Progress, Prompts, Report

if TYPE_CHECKING:
    from latent.config import Config
    from latent.store import Tuning

GAP = "  "  # between two columns of a table
MIN_CLIPPED_CELLS = 20  # of a clipped column; a table that leaves it less is written row by row

words = Console(stderr=True, markup=False, highlight=False, emoji=False)


@dataclass(frozen=True)
class Grid:
    """A table for people. Cells of the `clipped` columns may end in … on a narrow terminal; all others are shown whole."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    clipped: Sequence[str] = ()

    def lines(self, width: int | None) -> list[str]:
        """Its lines, in columns if they fit into `width` cells, else a paragraph a row. None: any width fits."""
        cells = [[printable_line(cell) for cell in row] for row in (self.columns, *self.rows)]
        sizes = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        clipped = [place for place, name in enumerate(self.columns) if name in self.clipped]
        room = 0 if width is None else width - sum(sizes) - len(GAP) * (len(sizes) - 1)
        if room < 0 and clipped:
            share = (room + sum(sizes[place] for place in clipped)) // len(clipped)
            if share >= MIN_CLIPPED_CELLS:
                sizes, room = [min(size, share) if place in clipped else size for place, size in enumerate(sizes)], 0
        if room < 0:
            return [line for row in cells[1:] for line in self._paragraph(row)]
        return [GAP.join(_fitted(cell, size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in cells]

    def _paragraph(self, row: Sequence[str]) -> list[str]:
        """The first two cells on a line, and the others, with their names, below."""
        rest = "; ".join(f"{name} {cell}".strip() for name, cell in zip(self.columns[2:], row[2:], strict=True) if cell)
        return [GAP.join(row[:2]), *([f"{GAP}{rest}"] if rest else [])]


def _fitted(text: str, cells: int) -> str:
    return set_cell_size(text if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1).rstrip()}…", cells)


def wrapped(line: str, width: int | None) -> list[str]:
    """The line, broken between words where it is longer than `width` cells. What follows is indented as the line's second column is."""
    if width is None or cell_len(line) <= width:
        return [line]
    start = re.match(r"\s*(\S+\s{2,})?", line)
    indent = " " * min(start.end() if start else 0, width // 3)
    lines = [""]
    for word in re.findall(r"\s*\S+", line):
        if lines[-1].strip() and cell_len(lines[-1] + word) > width:
            lines.append(indent + word.lstrip())
        else:
            lines[-1] += word
    return lines


def printed(result: Any, as_json: bool, *parts: str | Grid) -> None:
    """The result on stdout: one JSON object, or for people its parts, each text of which is one line."""
    if as_json:
        from latent.serialization import to_json

        sys.stdout.write(to_json(result) + "\n")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for part in parts:
        for line in part.lines(width) if isinstance(part, Grid) else [printable_line(part)]:
            sys.stdout.write("\n".join(wrapped(line, width)) + "\n")


def say(text: str) -> None:
    """One line on stderr, above the bars where there are some."""
    for line in wrapped(printable_line(text), words.width if words.is_terminal else None):
        words.print(Text(line), soft_wrap=True)


def failed(error: PipelineError, *, as_json: bool) -> None:
    """The error, in one line on stderr and with `--json` as the one object on stdout. Either may be closed, or a terminal that is gone."""
    with contextlib.suppress(OSError):
        say(f"{'' if isinstance(error, Interrupted) else 'error: '}{error}")
    if as_json:
        from latent.serialization import to_json

        try:
            sys.stdout.write(to_json({"error": str(error), "kind": type(error).__name__}) + "\n")
            sys.stdout.flush()
        except OSError:  # nobody reads it; Python tries again when it ends
            interruption.silence(sys.stdout.fileno())


def stamp(moment: dt.datetime, zone: dt.tzinfo) -> str:
    """Such as 2026-11-27 02:00:00 CET."""
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"


def runs_of(rows: list[dict[str, Any]], zone: dt.tzinfo) -> Grid:
    """Runs as `latent.ingest.status.runs` gives them."""
    return Grid(("run", "status", "started", "seconds", "version", "documents", "reason"), [_run_cells(row, zone) for row in rows])


def _run_cells(row: dict[str, Any], zone: dt.tzinfo) -> tuple[str, ...]:
    documents = ", ".join(f"{n} {what}" for what, n in row["report"]["documents"].items() if n)
    spent = f"{(row['finished_at'] - row['started_at']).total_seconds():.1f}" if row["finished_at"] else ""
    version = "" if row["table_version"] is None else str(row["table_version"])
    return row["run_id"], row["status"], stamp(row["started_at"], zone), spent, version, documents, row.get("reason") or ""


def told(report: Report, *, planned: bool) -> list[str]:
    """A report for people, line by line."""
    d, c = report.documents, report.chunks
    about = "about " if planned else ""
    idle = planned and not (d.added or d.changed or d.deleted or c.encoded or report.moved or report.files_left)
    idle = idle and not _columns(report)
    lines = [
        f"documents   {d.added} added, {d.changed} changed, {d.unchanged} unchanged ({report.moved} moved), {d.deleted} deleted, {d.quarantined} in quarantine",
        f"files       {report.files_opened} opened, {report.files_unchanged} unchanged, {report.files_refused} unreadable, {report.files_ignored} of another kind",
    ]
    if idle:
        lines.append("next        nothing to do")
    else:
        lines += [
            f"chunks      {about}{c.encoded} encoded, {c.reused} reused" + ("" if planned else f", {c.deleted} deleted"),
            f"tokens      {about}{report.tokens} at {report.tokens_per_second:.0f} a second on {report.workers} workers",
            f"time        {_time(report.seconds, planned=planned)}",
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
    lines[1:1] = _columns(report)
    lines += [f"refused     {report.refused}"] if report.refused else []
    if not planned:
        lines.insert(0, f"run         {report.run_id}, table version {report.table_version}")
    return lines


def _columns(report: Report) -> list[str]:
    """The line about metadata columns that are added and dropped, if any are."""
    changes = ((report.columns_added, "added"), (report.columns_dropped, "dropped"))
    told = "; ".join(f"{', '.join(names)} {what}" for names, what in changes if names)
    return [f"columns     {told}"] if told else []


def _time(seconds: float, *, planned: bool) -> str:
    if planned and seconds < 1:
        return "less than a second"
    return f"{'about ' if planned else ''}{seconds:.1f} s"


def looking(tuning: Tuning | None) -> str:
    """How vector searches look, and what was measured."""
    if tuning is None:
        return "exact: the table is small"
    if not tuning.nprobes:
        return f"exact, {tuning.exact_milliseconds:.1f} ms: no index holds a recall of {tuning.wanted} faster"
    from latent.store import FEW_ROWS

    few = f"exact under a filter that at most {FEW_ROWS} rows meet"
    filtered = (
        few if tuning.rows <= 16 * FEW_ROWS else f"{tuning.filtered:.3f} under a filter that a sixteenth of the rows meet, {few}"
    )
    return (
        f"recall@10 {tuning.recall:.3f}, {filtered}, in {tuning.milliseconds:.1f} ms (exact: {tuning.exact_milliseconds:.1f} ms), "
        f"nprobes {tuning.nprobes}, refine_factor {tuning.refine_factor}"
    )


def gist(text: str, chars: int = 110) -> str:
    """The beginning of a passage, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: chars - 1] + "…"


@contextmanager
def progress() -> Iterator[Any]:
    """Bars with ETA on a terminal, nothing otherwise. What libraries print meanwhile goes to stderr: stdout is for data."""
    if not words.is_terminal:
        with redirect_stdout(sys.stderr):
            yield lambda _: None
        return
    from rich import progress as bar_parts

    columns = (
        bar_parts.SpinnerColumn(),
        bar_parts.TextColumn("{task.description}"),
        bar_parts.BarColumn(),
        bar_parts.MofNCompleteColumn(),
        bar_parts.TextColumn("{task.fields[tokens]} tokens"),
        bar_parts.TimeElapsedColumn(),
        bar_parts.TimeRemainingColumn(),
    )
    told = {
        "scan": "reading",
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
    with redirect_stdout(sys.stderr), bar_parts.Progress(*columns, console=words, transient=True) as bars:
        bar = bars.add_task("listing", total=None, tokens=0)

        def draw(moment: Progress) -> None:
            bars.update(
                bar, description=told[moment.phase], completed=moment.documents, total=moment.total or None, tokens=moment.tokens
            )

        yield draw


class _Above(logging.Handler):
    """Writes log lines to stderr, above the bars where there are some."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):
            say(line)


def log_to_terminal(config: Config, *, verbose: bool) -> None:
    """The pipeline's log lines, with the time in the zone of [schedule]."""
    handler = _Above(logging.INFO if verbose else logging.WARNING)
    handler.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S %Z", config.schedule.zone))
    logger = logging.getLogger("latent")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
