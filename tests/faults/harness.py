"""`make faults`: the promise of `latent.store`, tried by killing what writes, some hundreds of times, and by letting two writers meet."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]
import rivals
import strikes
from conftest import save_small_model
from ground import Ground
from rich.console import Console
from rich.progress import track
from rich.table import Table as Grid
from rivals import Meeting
from strikes import Outcome

KILLS = ("kills", "stops", "lost", "doubled", "half_seen", "wrong", "samples")
MEETINGS = ("rounds", "finished", "refused", "overtaken", "lost", "doubled", "half_seen", "wrong", "samples")
told = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
Result = Outcome | Meeting


def all_of(ground: Ground, plays: Sequence[Callable[[str], Result]], what: str, at_a_time: int) -> list[Any]:
    """Rounds, some at a time. The folder of one in which all is well goes; others stay, and are told."""

    def one(numbered: tuple[int, Callable[[str], Result]]) -> Result:
        name = f"{what}-{numbered[0]}"
        result = numbered[1](name)
        if result.ok:
            shutil.rmtree(ground.folder / "rounds" / name)
        else:
            told.print(f"{result.label} {getattr(result, 'round', '')}: kept in {ground.folder}/rounds/{name}")
            for each in (*result.lost, *result.doubled, *result.half_seen[:20], *result.wrong):
                told.print(f"  {each:.2000}")
        return result

    with ThreadPoolExecutor(at_a_time) as pool:
        return list(track(pool.map(one, enumerate(plays)), f"{what}s", len(plays), console=told, transient=True))


def grid(title: str, results: Sequence[Result], columns: Sequence[str]) -> Grid:
    """A line for each kind of round, in the order they came, and their sums."""
    table = Grid(title, *(c.replace("_", "-") for c in columns))
    for label in dict.fromkeys(r.label for r in results):
        table.add_row(label, *_sums([r for r in results if r.label == label], columns))
    table.add_section()
    table.add_row("all", *_sums(results, columns))
    return table


def _sums(results: Sequence[Result], columns: Sequence[str]) -> list[str]:
    return [str(sum(len(v) if isinstance(v := getattr(r, c), list) else v for r in results)) for c in columns]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="repeats a session")
    parser.add_argument("--each", type=int, default=2, help="kills at each point of each way, and as many stops by Ctrl-C in a run")
    parser.add_argument("--instants", type=int, default=8, help="kills at an instant, for each way")
    parser.add_argument("--storms", type=int, default=8, help="rounds of four kills in a row")
    parser.add_argument("--ray", type=int, default=16, help="kills of driver, worker or node with real Ray")
    parser.add_argument("--meetings", type=int, default=10, help="rounds of each case of two writers")
    parser.add_argument("--only", default="", help="what has this in its name")
    options = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    told.print(f"seed {options.seed}, in {folder}")
    ground = Ground(folder, save_small_model(folder / "model"), save_small_model(folder / "successor", seed=2))
    chance = random.Random(options.seed)
    known = {way: strikes.rehearse(ground, *way) for way in strikes.WAYS}
    kills = [
        *strikes.rounds(known, chance, options.each, options.instants, options.storms),
        *strikes.rounds_with_ray(chance, options.ray, workers=2),
    ]
    struck = all_of(ground, [partial(strikes.play, ground, each=r) for r in kills if options.only in r.label], "kill", 2)
    cases = [(case, random.Random(f"{options.seed} {case} {i}")) for case in rivals.CASES for i in range(options.meetings)]
    met = all_of(
        ground, [partial(rivals.meet, ground, case=c, chance=chance) for c, chance in cases if options.only in c], "meeting", 4
    )
    Console(width=140).print(grid("kills", struck, KILLS), grid("two writers", met, MEETINGS))
    told.print(f"{time.monotonic() - started:.0f} s")
    if all(r.ok for r in (*struck, *met)):
        shutil.rmtree(folder)
        return 0
    told.print(f"to repeat: make faults ARGS=\"--seed {options.seed} --only '...'\", with the same counts")
    return 1


if __name__ == "__main__":
    sys.exit(main())
