"""Blows to a run, and what is left of the table after them: the promise of `latent.store`, tried.

A round: a table on its way from revision A to B; a process that is struck down on it, once or several times; in half of the rounds clean-up of what it
left; then the run again, to its end. The table must now be the clean run's, and a reader must never have seen anything but whole documents.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from driver import POINTS, Child, Errand
from ground import Ground, store
from picture import Picture, difference, picture, unnamed_files
from reader import Findings, Reader

from latent.config import load
from latent.ingest import maintenance, resolve, run, scan
from latent.ingest.verify import verify

Command = Literal["run", "maintain", "rollback", "migrate"]
Victim = Literal["driver", "worker", "node"]
# What is done in which state, and what of it is struck: the points that such a run passes.
WAYS: tuple[tuple[str, Command], ...] = (
    ("empty", "run"),
    ("edited", "run"),
    ("half-way", "run"),
    ("done", "rollback"),
    ("half-way", "maintain"),
    ("edited", "migrate"),
)
MILLISECONDS = 0.005  # a commit takes about as long
# With real Ray workers: who is struck, where, and within how many passes.
WITH_RAY: tuple[tuple[Victim, str, int], ...] = (
    ("driver", "committed", 6),
    ("worker", "fragment written", 3),
    ("node", "commit checked", 6),
    ("worker", "encoded", 3),
    ("worker", "mid-fragment", 3),
    ("worker", "mid-read", 8),
    ("driver", "before commit", 6),
    ("driver", "mid-commit: any instant", 6),
    ("node", "committed", 6),
    ("node", "sides written", 3),
)
POISON = "b2"  # a document that is to be changed


@dataclass(frozen=True)
class Blow:
    """One process that ends before its time."""

    point: str  # "": at an instant
    nth: int = 1
    delay_s: float = 0.0
    instant_s: float = 0.0  # after its start
    victim: Victim = "driver"
    engine: Literal["here", "ray"] = "here"
    workers: int = 1
    poison: str = ""
    commit_s: float = -1.0
    lease_s: float = 120.0
    act: Literal["kill", "interrupt"] = "kill"


@dataclass(frozen=True)
class Round:
    """Blows to one table, one after the other."""

    state: str
    command: Command
    blows: tuple[Blow, ...]
    maintained: bool = False  # between the blows and the run that does the rest

    @property
    def label(self) -> str:
        blow = self.blows[0]
        point = "a document that kills" if blow.poison else blow.point or "any instant"
        where = "several in a row" if len(self.blows) > 1 else f"{point} ({blow.victim} of Ray)" if blow.engine == "ray" else point
        return f"{'Ctrl-C: ' if blow.act == 'interrupt' else ''}{self.command} of a table that is {self.state}: {where}"


@dataclass(kw_only=True)
class Outcome(Findings):
    round: Round
    kills: int = 0
    stops: int = 0

    @property
    def label(self) -> str:
        return self.round.label


def play(ground: Ground, name: str, each: Round) -> Outcome:
    """One round, in a folder of its own."""
    place, outcome = ground.copy(each.state, name), Outcome(round=each)
    poison = each.blows[0].poison
    reader = partial(Reader, place, ground, outcome, from_nothing=each.state == "empty", poison=poison)
    with outcome.told():
        with reader(at_once=each.command in {"rollback", "migrate"}):
            for number, blow in enumerate(each.blows):
                _strike(ground, place, each, blow, place / f"blow-{number}.log", outcome)
        with reader():
            if each.maintained and store(place).open() is not None:
                _finish(Errand(place / "config.toml", "maintain", place / "between.log"), outcome)
            if each.command == "migrate":
                _finish_migration(ground, place, outcome)
            _finish(Errand(place / "config.toml", "run", place / "again.log", retry=bool(poison)), outcome)
        judge(ground.migrated if each.command == "migrate" else ground.after, place, outcome)
    return outcome


def _strike(ground: Ground, place: Path, each: Round, blow: Blow, log: Path, outcome: Outcome) -> None:
    """Start a process and see it die. One that ends before its blow falls is no kill."""
    conditions = {f.name: getattr(blow, f.name) for f in fields(blow) if f.name != "instant_s"}
    if each.command == "maintain":
        conditions["keep_s"] = time.time() - ground.made_at
    errand = Errand(place / "config.toml", each.command, log, ground.version_of_a, str(ground.successor), **conditions)
    process = Child(errand)
    if blow.instant_s:
        time.sleep(blow.instant_s)
        process.send(signal.SIGKILL)
    code = process.wait()
    outcome.stops += code == 130
    if blow.victim == "driver":
        outcome.kills += code == -9
    else:
        outcome.kills += max(1, errand.mark.stat().st_size) if errand.mark.exists() else 0
    # A run outlives its workers. What becomes of one without its node is Ray's to say.
    if code not in {0, 130 if blow.act == "interrupt" else -9} and blow.victim != "node":
        outcome.wrong.append(f"ended with {code}: {log.read_text()[-2000:]}")


def _finish(errand: Errand, outcome: Outcome) -> None:
    if (code := Child(errand).wait()) != 0:
        outcome.wrong.append(f"{errand.command} afterwards ended with {code}: {errand.log.read_text()[-2000:]}")


def _finish_migration(ground: Ground, place: Path, outcome: Outcome) -> None:
    """Once more; one that is refused since all was done leaves nothing of it either."""
    errand = Errand(place / "config.toml", "migrate", place / "migrated.log", model=str(ground.successor))
    if Child(errand).wait() != 0 and "already" not in errand.log.read_text():
        outcome.wrong.append(f"migrate afterwards: {errand.log.read_text()[-2000:]}")
    outcome.wrong += [f"left beside the table: {path.name}" for path in place.glob("data/lancedb/*.next*")]


def judge(clean: Picture, place: Path, to: Findings) -> None:
    """The table against the clean run's of revision B; then nothing is left to do, and nothing left over."""
    config, table = load(place / "config.toml"), store(place)
    found = difference(picture(table), clean)
    to.lost += found.lost
    to.doubled += found.doubled
    to.wrong += found.wrong
    to.wrong += [f"verify: {check.name}: {check.detail}" for check in verify(config) if not check.ok]
    scan_plan = scan.scan(resolve.resolve_and_check(config), "again", run.quiet)
    if not scan_plan.nothing_to_do:
        to.wrong.append(f"there is still something to do: {scan_plan.plan.documents}")
    maintenance.maintain(config)
    to.wrong += [f"left over on disk: {name}" for name in unnamed_files(table)]
    found = difference(picture(table), clean)
    to.wrong += [f"after clean-up: {what}" for what in (*found.lost, *found.doubled, *found.wrong)]


# --- which rounds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """A command let through, in a state: how often it passes each point, and how long it takes."""

    passes: Mapping[str, int]
    seconds: float


def rehearse(ground: Ground, state: str, command: Command) -> Rehearsal:
    place = ground.copy(state, f"rehearsal {command} {state}")
    errand = Errand(
        place / "config.toml",
        command,
        place / "rehearsal.log",
        ground.version_of_a,
        str(ground.successor),
        keep_s=time.time() - ground.made_at,
    )
    started = time.monotonic()
    if Child(errand).wait() != 0:
        raise RuntimeError(f"{command} of a table that is {state}: {errand.log.read_text()}")
    return Rehearsal(json.loads(errand.mark.read_text()), time.monotonic() - started)


Ways = Mapping[tuple[str, Command], Rehearsal]


def short_rounds(known: Ways, chance: random.Random) -> Iterator[Round]:
    """Every point once, on one of its ways; two instants; Ctrl-C amid the books."""
    for point in POINTS:
        (state, command), rehearsal = chance.choice([item for item in known.items() if point in item[1].passes])
        yield Round(state, command, (_at(point, rehearsal.passes[point], chance),), chance.random() < 0.2)
    for way in (("edited", "run"), ("half-way", "maintain")):
        yield Round(*way, (_sometime(known[way], chance),))
    for point in ("mid-receipt", "receipt told", "sides written", "mid-commit: any instant", "committed"):
        yield _interrupted("edited", point, known["edited", "run"].passes[point], chance)


def rounds(known: Ways, chance: random.Random, each_point: int, instants: int, storms: int) -> Iterator[Round]:
    """Every point of every way so many times, instants of each way, and several blows in a row."""
    for (state, command), rehearsal in known.items():
        for point, passes in rehearsal.passes.items():
            for _ in range(each_point):
                yield Round(state, command, (_at(point, passes, chance),), chance.random() < 0.5)
                if command == "run":
                    yield _interrupted(state, point, passes, chance)
        for _ in range(instants):
            yield Round(state, command, (_sometime(rehearsal, chance),), chance.random() < 0.5)
    for _ in range(storms):
        (state, command), rehearsal = chance.choice(list(known.items())[:3])
        points = [p for p in rehearsal.passes if p != "listed"]
        blows = [
            _at(p, rehearsal.passes[p], chance) if chance.random() < 0.6 else _sometime(rehearsal, chance)
            for p in chance.sample(points, 4)
        ]
        yield Round(state, command, tuple(blows), chance.random() < 0.5)


def rounds_with_ray(chance: random.Random, count: int, workers: int) -> Iterator[Round]:
    """So many kills among real Ray workers, and a document that no worker survives."""
    for victim, point, passes in islice(cycle(WITH_RAY), count):
        blow = Blow(point, chance.randint(1, passes), victim=victim, engine="ray", workers=workers)
        yield Round(chance.choice(("empty", "edited")), "run", (blow,), chance.random() < 0.5)
    if count >= len(WITH_RAY):
        yield Round("edited", "run", (Blow("", victim="worker", engine="ray", workers=2, poison=POISON),))


def _at(point: str, passes: int, chance: random.Random) -> Blow:
    delay = chance.uniform(0, MILLISECONDS) if POINTS[point].when == "within" and not POINTS[point].watch else 0.0
    return Blow(point, chance.randint(1, passes), delay)


def _interrupted(state: str, point: str, passes: int, chance: random.Random) -> Round:
    return Round(state, "run", (replace(_at(point, passes, chance), act="interrupt"),))


def _sometime(rehearsal: Rehearsal, chance: random.Random) -> Blow:
    """Whatever is under way then, renewals of the lease among it."""
    lease_s, commit_s = chance.choice((120.0, 0.1)), chance.choice((-1.0, 0.03))
    return Blow("", instant_s=chance.uniform(0.3, 1.0) * rehearsal.seconds, commit_s=commit_s, lease_s=lease_s)
