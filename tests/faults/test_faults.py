"""The promise of `latent.store`, tried by killing and stopping what writes: the short version of `make faults`."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from conftest import save_small_model
from driver import POINTS
from ground import Ground
from harness import all_of
from rivals import CASES, meet
from strikes import WAYS, play, rehearse, rounds_with_ray, short_rounds

SEED = 20
MEETINGS = (
    "both at once, no table yet",
    "both at once",
    "run, maintain, rollback meet a backfill",
    "owner dies elsewhere",
    "owner with another clock lives",
    "run sleeps: fence or restore: checked",
    "run sleeps: commit checked",
    "run sleeps: mid-sides",
    "rollback sleeps: fence or restore: checked",
    "maintain sleeps: mid-compaction",
)
pytestmark = [
    pytest.mark.timeout(900),  # a busy machine of two cores
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the driver looks into /proc"),
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Ground:
    successor = save_small_model(tmp_path_factory.mktemp("successor"), seed=2)
    return Ground(tmp_path_factory.mktemp("faults"), small_model, successor)


def test_after_a_kill_at_any_point_the_next_run_leaves_the_clean_runs_table(ground: Ground) -> None:
    known = {way: rehearse(ground, *way) for way in WAYS}
    assert {point for rehearsal in known.values() for point in rehearsal.passes} == POINTS.keys(), "each is on some way"
    rounds = list(short_rounds(known, random.Random(SEED)))
    outcomes = all_of(ground, [partial(play, ground, each=each) for each in rounds], "kill", 3)
    assert [o for o in outcomes if not o.ok] == []
    assert [o.label for o in outcomes if o.round.blows[0].point and not (o.kills or o.stops)] == []


def test_after_a_kill_of_driver_worker_or_node_of_ray_the_next_run_leaves_the_clean_runs_table(ground: Ground) -> None:
    rounds = rounds_with_ray(random.Random(SEED), 3, workers=1)
    outcomes = all_of(ground, [partial(play, ground, each=each) for each in rounds], "ray", 3)
    assert [o for o in outcomes if not o.ok] == []
    assert {o.round.blows[0].victim: o.kills for o in outcomes} == {"driver": 1, "worker": 1, "node": 1}


def test_of_two_writers_one_finishes_and_the_other_stops_or_is_overtaken(ground: Ground) -> None:
    assert set(MEETINGS) <= CASES.keys()
    meetings = all_of(ground, [partial(meet, ground, case=case, chance=random.Random(SEED)) for case in MEETINGS], "meeting", 4)
    assert [m for m in meetings if not m.ok] == []
