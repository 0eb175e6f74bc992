"""Two writers of one table, in processes of their own: at once, one after the other's death, one after the other's sleep, with clocks that differ.

Whatever happens, one of them finishes, the table is the clean run's, and who is refused or overtaken ends with exit code 1 and one line. A machine of
another name stands for another machine: whether a process there is alive cannot be seen from here.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from driver import Child, Errand
from ground import Ground
from reader import Findings, Reader
from strikes import judge

PATIENCE_S = 120.0
SHORT_S = 1.0  # a lease, for those that shall run out
HOURS = 3 * 3600.0
ELSEWHERE = "another machine"
REFUSED = re.compile(r"error: .*(is being written by run|several runs are starting at once)")
LANCES_OWN = re.compile(r"^\[\S+ WARN .*\n", re.MULTILINE)
OVERTAKEN = re.compile(r"error: .*(the lease was lost to run|was changed by another program|[Cc]ommit conflict)")


@dataclass(kw_only=True)
class Meeting(Findings):
    """A table, who writes to it, and what came of it."""

    label: str
    ground: Ground
    place: Path
    rounds: int = 1
    finished: int = 0
    refused: int = 0
    overtaken: int = 0

    def __post_init__(self) -> None:
        self._writers: list[Child] = []

    def send(self, **conditions: Any) -> Child:
        log = self.place / f"writer-{len(self._writers)}.log"
        errand = Errand(self.place / "config.toml", log=log, version=self.ground.version_of_a, **conditions)
        self._writers.append(Child(errand))
        return self._writers[-1]

    def end(self, writer: Child) -> int:
        """How it ended; whatever is not one of the ways to end is wrong."""
        code, said = writer.wait(), LANCES_OWN.sub("", writer.errand.log.read_text())
        one_line = code == 1 and said.count("\n") == 1
        refused, overtaken = (bool(one_line and pattern.match(said)) for pattern in (REFUSED, OVERTAKEN))
        self.finished += code == 0
        self.refused += refused
        self.overtaken += overtaken
        if code not in {0, -9} and not (refused or overtaken):
            self.wrong.append(f"a writer ended with {code}: {said[-2000:]}")
        return code

    def let_in(self, **conditions: Any) -> Child:
        """Send run after run until one is not refused: it stands still at its point, or has finished."""
        until = time.monotonic() + PATIENCE_S
        while True:
            writer = self.send(**conditions)
            if writer.stands() or writer.code == 0:
                return writer
            if time.monotonic() > until:
                self.wrong.append(f"nobody is let in for {PATIENCE_S:.0f} s")
                return writer
            self.end(writer)

    def dismiss(self) -> None:
        """Nobody stays behind, asleep."""
        for writer in self._writers:
            writer.send(signal.SIGKILL)

    def files(self) -> set[str]:
        """All but the table of runs: who is refused says so there."""
        return {str(path) for path in (self.place / "data").rglob("*") if path.is_file() and "docs.runs.lance" not in path.parts}


Case = Callable[[Meeting, random.Random], None]


def both_at_once(meeting: Meeting, chance: random.Random) -> None:
    writers = []
    for _ in range(2):
        writers.append(meeting.send())
        time.sleep(chance.choice((0, 0, chance.uniform(0, 0.3))))
    if 0 not in [meeting.end(writer) for writer in writers]:
        meeting.wrong.append("of two none finished")


def meets(meeting: Meeting, chance: random.Random, command: str) -> None:
    writers = [meeting.send(command=command), meeting.send(pace_s=chance.uniform(0, 0.3))]
    for writer in writers:
        meeting.end(writer)
    meeting.end(meeting.let_in())


def meets_a_backfill(meeting: Meeting, chance: random.Random) -> None:
    """The owner lives and has the lease. It stands still meanwhile, so whatever is written then is the other's."""
    owner = meeting.send(point="fragment written", nth=chance.randint(1, 6), act="stop")
    if not owner.stands():
        meeting.wrong.append("the owner did not stop")
    before = meeting.files()
    for command in ("run", "maintain", "rollback"):
        if meeting.end(meeting.send(command=command)) != 1:
            meeting.wrong.append(f"{command} was let in beside a living owner")
    if meeting.files() != before:
        meeting.wrong.append(f"who was refused wrote {meeting.files() ^ before}")
    owner.send(signal.SIGCONT)
    if meeting.end(owner) != 0:
        meeting.wrong.append("the owner did not finish")


def owner_dies(meeting: Meeting, chance: random.Random, **conditions: Any) -> None:
    owner = meeting.send(pace_s=0.05, **conditions)
    time.sleep(chance.uniform(0.4, 1.2))
    owner.send(signal.SIGKILL)
    meeting.end(owner)


def owner_dies_here(meeting: Meeting, chance: random.Random) -> None:
    owner_dies(meeting, chance)
    if meeting.end(meeting.send()) != 0:
        meeting.wrong.append("the next was not let in at once")


def owner_dies_elsewhere(meeting: Meeting, chance: random.Random) -> None:
    owner_dies(meeting, chance, machine=ELSEWHERE, lease_s=SHORT_S)
    meeting.end(meeting.let_in(lease_s=SHORT_S))


def owner_with_another_clock_dies(meeting: Meeting, chance: random.Random) -> None:
    owner_dies(meeting, chance, machine=ELSEWHERE, lease_s=SHORT_S, clock_s=chance.choice((-HOURS, HOURS)))
    meeting.end(meeting.let_in(lease_s=SHORT_S))


def owner_dies_and_the_clock_jumps(meeting: Meeting, chance: random.Random) -> None:
    owner_dies(meeting, chance, machine=ELSEWHERE, lease_s=SHORT_S)
    meeting.end(meeting.let_in(lease_s=SHORT_S, clock_s=chance.choice((-HOURS, HOURS))))


def owner_with_another_clock_lives(meeting: Meeting, chance: random.Random) -> None:
    owner = meeting.send(machine=ELSEWHERE, lease_s=2 * SHORT_S, clock_s=chance.choice((-HOURS, HOURS)), pace_s=0.3)
    time.sleep(chance.uniform(0.6, 1.5))
    codes = [meeting.end(meeting.send(lease_s=2 * SHORT_S)), meeting.end(owner)]
    if 0 not in codes:
        meeting.wrong.append("of two none finished")


def owner_sleeps(meeting: Meeting, chance: random.Random, command: str, point: str, passes: int, *, has_more: bool) -> None:
    """It is stopped at a point, loses its lease, and goes on: after the other, or while that one is at work. `has_more`: to write, past the point."""
    keep_s = time.time() - meeting.ground.made_at
    delay_s, machine = chance.uniform(0, 0.003), chance.choice(("", ELSEWHERE))
    owner = meeting.send(
        command=command,
        point=point,
        nth=chance.randint(1, passes),
        act="stop",
        delay_s=delay_s,
        machine=machine,
        lease_s=SHORT_S,
        keep_s=keep_s,
    )
    if not owner.stands():
        meeting.wrong.append("the owner did not stop")
    woken = chance.choice(("after the other", "while the other sleeps", "while the other works"))
    stands = {} if woken == "after the other" else {"point": "committed", "nth": chance.randint(1, 4), "act": "stop"}
    other = meeting.let_in(lease_s=SHORT_S, **stands)
    if woken == "while the other works":
        other.send(signal.SIGCONT)
    owner.send(signal.SIGCONT)
    codes = [meeting.end(owner)]
    other.send(signal.SIGCONT)
    codes.append(meeting.end(other))
    if has_more and codes != [1, 0]:
        meeting.wrong.append(
            f"the owner ended with {codes[0]} although it had lost its lease to the other, which ended with {codes[1]}"
        )
    elif 0 not in codes:
        meeting.wrong.append("of two none finished")


@dataclass(frozen=True)
class Rivalry:
    """A case, and the state of the table that it begins from."""

    state: str
    play: Case
    goes_back: bool = False


# Where the owner sleeps, how often it passes there at least, and whether it then has more to write.
SLEEPS: tuple[tuple[str, str, str, int, bool], ...] = (
    ("empty", "run", "listed", 1, False),
    ("empty", "run", "tables made", 3, False),
    ("empty", "run", "mid-making", 3, False),
    ("edited", "run", "mid-lease", 1, False),
    ("edited", "run", "leased", 1, False),
    ("half-way", "run", "fence or restore: checked", 1, True),
    ("half-way", "run", "fence or restore: any instant", 1, False),
    ("half-way", "run", "fenced", 1, False),
    ("edited", "run", "mid-fragment", 8, True),
    ("edited", "run", "before commit", 9, True),
    ("edited", "run", "mid-sides", 2, True),
    ("edited", "run", "sides written", 2, True),
    ("edited", "run", "commit checked", 9, True),
    ("edited", "run", "mid-commit: any instant", 9, True),
    ("edited", "run", "committed", 9, True),
    ("edited", "run", "lease to give back", 1, False),
    ("edited", "rollback", "fence or restore: checked", 1, True),
    ("edited", "rollback", "fence or restore: any instant", 1, False),
    ("half-way", "maintain", "orphans listed", 1, False),
    ("half-way", "maintain", "mid-index", 1, False),
    ("half-way", "maintain", "mid-compaction", 1, False),
    ("half-way", "maintain", "compacted", 1, False),
    ("half-way", "maintain", "mid-clean-up", 1, False),
    ("half-way", "maintain", "orphan removed", 1, False),
)
CASES: dict[str, Rivalry] = {
    "both at once, no table yet": Rivalry("empty", both_at_once),
    "both at once": Rivalry("edited", both_at_once),
    "a run and maintenance at once": Rivalry("half-way", partial(meets, command="maintain")),
    "a run and a rollback at once": Rivalry("half-way", partial(meets, command="rollback"), goes_back=True),
    "run, maintain, rollback meet a backfill": Rivalry("edited", meets_a_backfill),
    "owner dies here": Rivalry("edited", owner_dies_here),
    "owner dies elsewhere": Rivalry("edited", owner_dies_elsewhere),
    "owner with another clock dies": Rivalry("edited", owner_with_another_clock_dies),
    "owner dies, then our clock jumps": Rivalry("edited", owner_dies_and_the_clock_jumps),
    "owner with another clock lives": Rivalry("edited", owner_with_another_clock_lives),
} | {
    f"{command} sleeps: {point}": Rivalry(state, partial(owner_sleeps, command=command, point=point, passes=passes, has_more=more))
    for state, command, point, passes, more in SLEEPS
}


def meet(ground: Ground, name: str, case: str, chance: random.Random) -> Meeting:
    """One meeting, in a folder of its own."""
    rivalry = CASES[case]
    meeting = Meeting(label=case, ground=ground, place=ground.copy(rivalry.state, name))
    with meeting.told():
        with Reader(meeting.place, ground, meeting, from_nothing=rivalry.state == "empty", goes_back=rivalry.goes_back):
            rivalry.play(meeting, chance)
        judge(ground.after, meeting.place, meeting)
    meeting.dismiss()
    return meeting
