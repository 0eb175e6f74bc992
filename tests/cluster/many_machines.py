"""`make cluster`: runs on a Ray cluster of many machines, while nodes die, are cut off, join, and the head is restarted. Needs root on Linux.

A round takes half a minute on two quiet cores, most of it to start workers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS.parent)]
import lan
from rich.console import Console
from rich.table import Table as Grid

told = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=3, help="rounds of each case")
    parser.add_argument("--only", default="", help="cases that have this in their name")
    parser.add_argument("--everything", action="store_true", help="one round in which all befalls two runs")
    parser.add_argument("--json", type=Path, help="a file for the outcomes")
    options = parser.parse_args()
    if why := lan.missing():
        told.print(f"error: {why}")
        return 1
    lan.enter()
    import cases
    from conftest import save_small_model
    from nodes import Cluster

    folder, started = Path(tempfile.mkdtemp(prefix="cluster-")), time.monotonic()
    told.print(f"in {folder}")
    names = ["everything"] if options.everything else [c for c in cases.CASES if options.only in c] * options.each
    outcomes = []
    with Cluster(folder) as cluster:
        ground = cases.Ground(cluster, folder, save_small_model(lan.COMMON / "model"))
        for number, case in enumerate(names):
            outcome = cases.play(ground, case, number)
            outcomes.append(outcome)
            told.print(f"{time.monotonic() - started:5.0f} s  {'ok' if outcome.ok else 'NOT OK'}  {case}  {outcome.error}")
            for each in (*outcome.lost[:20], *outcome.doubled[:20], *outcome.wrong[:20]):
                told.print(f"  {each:.2000}")
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    Console(width=160).print(grid(outcomes))
    told.print(f"{time.monotonic() - started:.0f} s")
    if all(outcome.ok for outcome in outcomes):
        shutil.rmtree(folder)
        return 0
    told.print(f"what the machines and the runs said: {folder}")
    return 1


def grid(outcomes: Sequence[object]) -> Grid:
    """A line for each case."""
    from cases import Outcome, middle

    table = Grid(
        "case",
        "runs",
        "lost",
        "doubled",
        "wrong",
        "shard retries",
        "s to the next shard",
        "s longest pause",
        "s to the error",
        "s to idle",
    )
    each = [outcome for outcome in outcomes if isinstance(outcome, Outcome)]
    for case in dict.fromkeys(outcome.case for outcome in each):
        rounds = [outcome for outcome in each if outcome.case == case]
        counts = [sum(len(getattr(r, name)) for r in rounds) for name in ("lost", "doubled", "wrong")]
        times = [middle([getattr(r, name) for r in rounds]) for name in ("next_s", "pause_s", "ended_s", "idle_s")]
        table.add_row(case, *map(str, [len(rounds), *counts, sum(r.retries for r in rounds)]), *times)
    return table


if __name__ == "__main__":
    sys.exit(main())
