"""Drift: no alarm where nothing moved, an alarm where something did, and a report that tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, Latent
from hypothesis import given
from hypothesis import strategies as st
from test_cluster import corpus

from latent import load
from latent.analysis.clustering import cluster_table as clusters
from latent.analysis.drift import statistics as tests
from latent.analysis.drift.compare_versions import Drift, drift
from latent.errors import QueryError, StoreError

TOPICS = 6


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Two runs: the second brings more of the same."""
    desk = desk_for(tmp_path_factory.mktemp("drift"), metadata=["topic"])
    desk.write("a.jsonl", corpus(TOPICS, 100))
    desk.embed()
    clusters.cluster(load(desk.config_path, {"cluster.number": TOPICS}))
    desk.write("b.jsonl", [row | {"id": f"more-{row['id']}"} for row in corpus(TOPICS, 20, seed=5)])
    desk.embed()
    return desk


def compared(desk: Desk, since: str | None = None, number: int = TOPICS) -> Drift:
    return drift(load(desk.config_path, {"cluster.number": number}), since)


def test_more_of_the_same_is_no_alarm(desk: Desk) -> None:
    found = compared(desk)
    assert (found.new, found.changed, found.gone, found.stayed) == (TOPICS * 20, 0, 0, TOPICS * 100)
    assert not found.alarm
    assert min(found.strangers.p, found.shares.p) > 0.01
    assert {topic.state for topic in found.topics} == {"kept"}
    assert [(topic.before, topic.now) for topic in found.topics] == [
        (pytest.approx(100, abs=5), pytest.approx(120, abs=5))
    ] * TOPICS
    named = {group.cluster_id: group.label for group in clusters.cluster(load(desk.config_path)).groups if group.level == 0}
    assert {topic.cluster_id: topic.label for topic in found.topics} == named, "a topic has the number and name that it has there"
    assert all(topic.shift < 0.05 for topic in found.topics)
    assert len(found.came) == 20
    assert found.went == []


def test_a_topic_that_comes_is_an_alarm_and_so_is_one_that_goes(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["topic"])
    rows = corpus(TOPICS + 1, 100)
    desk.write("a.jsonl", rows[: 100 * TOPICS])
    first = desk.embed().run_id
    desk.write("b.jsonl", rows[100 * TOPICS : 100 * TOPICS + 30])
    came = desk.embed()
    found = compared(desk, number=TOPICS + 1)
    assert found.alarm
    assert found.strangers.alarm
    assert found.strangers.share == pytest.approx(30 / 630, abs=0.01)
    assert [(topic.before, topic.now, topic.shift) for topic in found.topics if topic.state == "new"] == [(0, 30, None)]
    assert found.topics[0].state == "new"
    assert {document.doc_id.partition("-")[0] for document in found.strangest} == {f"t{TOPICS}"}
    desk.write("a.jsonl", [row for row in rows[: 100 * TOPICS] if row["topic"] != "topic 2"])
    desk.embed()
    found = compared(desk, came.run_id, TOPICS + 1)
    assert found.shares.alarm
    assert not found.strangers.alarm
    assert (found.new, found.gone) == (0, 100)
    assert [(topic.before, topic.now) for topic in found.topics if topic.state == "gone"] == [(pytest.approx(100, abs=5), 0)]
    assert len(found.went) == 20
    both = compared(desk, first, TOPICS + 1)
    assert (both.new, both.gone, both.stayed) == (30, 100, 500)
    assert compared(desk, str(both.since), TOPICS + 1).flat() == both.flat(), "by its run or by its number"
    between = drift(load(desk.config_path, {"cluster.number": TOPICS + 1}), first, until=came.run_id)
    assert (between.table_version, between.new, between.gone) == (came.table_version, 30, 0)
    assert drift(load(desk.config_path, {"cluster.number": TOPICS + 1}), until=came.run_id).flat() == between.flat()


def test_edits_are_no_alarm_however_many(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["topic"])
    rows = corpus(TOPICS, 60)
    desk.write("a.jsonl", rows)
    desk.embed()
    desk.write("a.jsonl", [row | {"text": f"{row['text']} w100"} if row["topic"] == "topic 1" else row for row in rows])
    desk.embed()
    found = compared(desk)
    assert (found.new, found.changed, found.gone, found.stayed) == (0, 60, 0, 300)
    assert found.shares.share == 0
    assert not found.alarm


def test_what_cannot_be_compared_is_one_line(desk: Desk, desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    other = desk_for(tmp_path)
    other.write("a.jsonl", [{"id": "1", "text": "w100"}])
    other.embed()
    with pytest.raises(QueryError, match="no run before the newest one is kept: nothing to compare with"):
        drift(other.config)
    with pytest.raises(QueryError, match="version 1 is empty"):
        drift(other.config, "1")
    with pytest.raises(StoreError, match="has no version 99: 'latent status' lists those that are kept"):
        drift(other.config, "99")
    with pytest.raises(StoreError, match="has no version 98"):
        drift(other.config, "2", until="98")
    with pytest.raises(QueryError, match="no run 'yesterday'"):
        drift(other.config, "yesterday")


def test_the_command_tells_people_and_programs(desk: Desk, latent: Latent) -> None:
    command = ["drift", "--cluster.number", str(TOPICS)]
    told = latent(desk.folder, *command).out
    assert "120 documents new, 0 changed, 0 gone, 600 as they were" in told
    assert "alarm: none" in told
    result = latent(desk.folder, *command, "--json").answer
    assert (result["alarm"], result["new"], len(result["topics"])) == (False, 120, TOPICS)
    assert result["strangers"].keys() == {"p", "share"}


# --- the tests themselves -------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(20, 400), st.integers(20, 400))
def test_chance_is_no_stranger(seed: int, came: int, before: int) -> None:
    drawn = np.random.default_rng(seed).gamma(3, 0.1, came + before)
    found = tests.strangers(drawn[:came], drawn[came:], 1.0)
    assert 0 < found.p <= 1
    assert 0 <= found.share <= 1


def test_false_alarms_are_as_rare_as_said_and_one_in_twenty_is_found() -> None:
    chance = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        drawn = chance.gamma(3, 0.1, 2000)
        counts = np.stack([chance.multinomial(1000, np.full(12, 1 / 12)) for _ in range(2)])
        alarms += tests.strangers(drawn[:1000], drawn[1000:], 1.0).alarm
        alarms += tests.shares(counts[0], counts[1], np.zeros(12, int)).alarm
    assert alarms <= 3, "one in a thousand comparisons, of 500"
    foreign = np.concatenate([chance.gamma(3, 0.1, 380), np.full(20, 2.0)])
    assert tests.strangers(foreign, chance.gamma(3, 0.1, 2000), 1.0).alarm


def test_strangers_are_counted_however_many_of_those_that_came_they_are() -> None:
    chance = np.random.default_rng(0)
    before = chance.gamma(3, 0.1, 5000)
    for foreign in (50, 500, 1000):
        came = np.concatenate([chance.gamma(3, 0.1, 1000 - foreign), np.full(foreign, 2.0)])
        found = tests.strangers(came, before, 1000 / 21_000)
        assert found.share == pytest.approx(foreign / 21_000, abs=0.001)
    assert found.alarm, "a thousand foreign documents join twenty thousand"


def test_topics_that_shift_are_found_and_small_ones_are_put_together() -> None:
    stayed = np.array([500, 300, 200, 3, 2, 1])
    none = np.zeros(6, int)
    assert tests.shares(np.array([50, 30, 20, 0, 0, 1]), none, stayed).p > 0.5
    grown = tests.shares(np.array([0, 0, 100, 0, 0, 0]), none, stayed)
    assert grown.alarm
    assert grown.share == pytest.approx(100 / 1106 * 806 / 1006, abs=1e-6)
    assert tests.shares(none, np.array([100, 0, 0, 0, 0, 0]), stayed).alarm
    assert tests.shares(np.array([2, 0, 0, 0, 0, 0]), none, stayed).p == 1, "too few to tell"
