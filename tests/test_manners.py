"""A backfill beside other runs: who passes, who waits, what is left to whom, and that nothing is lost or doubled by it."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Desk, HereAndNow, words
from hypothesis import given
from hypothesis import strategies as st

from latent.errors import TableBusy
from latent.ingest import backfill, maintenance, plan, resolve, run, throttle
from latent.ingest.status import runs
from latent.ingest.throttle import in_time_window
from latent.ingest.verify import verify
from latent.store import BackfillLock
from latent.store import backfill_lock as courtesy
from latent.types import Progress
from latent.workers import CompletedShard


class Slow(HereAndNow):
    """A worker with time for others."""

    pause_s = 0.05

    def work(self, shards) -> Iterator[CompletedShard | None]:
        for outcome in super().work(shards):
            time.sleep(self.pause_s)
            while getattr(self, "hold", False) and not self.stopped:
                yield None
                time.sleep(0.02)
            yield outcome


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A week in seconds."""
    for module, name, value in (
        (throttle, "ASK_S", 0.1),
        (throttle, "WAIT_S", 0.1),
        (courtesy, "QUIET_S", 0.5),
        (run, "COMMIT_S", 0.1),
        (plan, "SHARD_DOCUMENTS", 5),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def archive(desk: Desk) -> Desk:
    """A source with an archive of long ago."""
    for name in "abcdef":
        path = desk.write(f"{name}.jsonl", [{"id": f"{name}{i}", "text": words(20 + i, 100 + i)} for i in range(50)])
        os.utime(path, (1e9, 1e9))
    return desk


def held(desk: Desk) -> int:
    place = resolve.store_of(desk.config)
    table = place.open()
    return 0 if table is None else table.count_rows()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_nightly_run_passes_a_backfill_takes_what_is_new_and_leaves_it_the_archive(archive: Desk) -> None:
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(backfill.backfill, archive.config, engine=Slow)
        until(lambda: held(archive) > 20)
        archive.write("new.jsonl", [{"id": f"new{i}", "text": words(200 + i)} for i in range(10)])
        nightly = archive.embed()
        assert (nightly.documents.added, nightly.documents.deleted) == (10, 0)
        assert nightly.files_left > 0
        assert not pending.done(), "it passed: it did not wait for the backfill to end"
        report = pending.result(timeout=240)
    assert len(archive.rows()) == 310
    assert report.documents.added == 300
    assert report.documents.unchanged == 10
    assert report.undone == 0
    ended = [row["status"] for row in runs(archive.config)]
    assert ended.count("gave way") == 1
    assert set(ended) == {"gave way", "done"}
    assert all(check.ok for check in verify(archive.config))


def test_documents_of_the_archive_that_change_are_the_nightly_runs_to_do(archive: Desk) -> None:
    archive.embed()
    with BackfillLock(resolve.store_of(archive.config), "backfill"):
        archive.write("a.jsonl", [{"id": f"a{i}", "text": words(20 + i, 300)} for i in range(50)])
        os.utime(archive.source / "a.jsonl", (1e9 + 1, 1e9 + 1))
        (archive.source / "b.jsonl").unlink()
        report = archive.embed()
    assert (report.documents.changed, report.documents.deleted, report.files_left) == (50, 50, 0)


def test_a_document_that_the_archive_and_a_new_file_claim_is_there_once_and_the_first_by_path_wins(archive: Desk) -> None:
    with BackfillLock(resolve.store_of(archive.config), "backfill"):
        archive.write("zz.jsonl", [{"id": "a1", "text": words(400)}])
        assert archive.embed().documents.added == 1
        assert archive.rows()["a1", 0][0] == words(400)
    backfill.backfill(archive.config, engine=HereAndNow)
    assert archive.rows()["a1", 0][0] == words(21, 101)
    assert len(archive.rows()) == 300
    assert [row["doc_id"] for row in archive.side("quarantine")] == ["a1"]
    assert all(check.ok for check in verify(archive.config))


def test_without_a_backfill_nothing_is_left(archive: Desk) -> None:
    with BackfillLock(resolve.store_of(archive.config), "backfill"):
        assert archive.embed().files_left == 6
    assert archive.embed().documents.added == 300, "a backfill that ended, or died, hides nothing"


def test_a_backfill_that_was_killed_hides_nothing(archive: Desk) -> None:
    place = resolve.store_of(archive.config)
    stays = f"import time; from latent.store import BackfillLock, Store\nwith BackfillLock(Store({place.uri!r}, {place.name!r}), 'killed'): print('here', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", stays], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        assert run.plan(archive.config).files_left == 6
        process.kill()
    assert archive.embed().documents.added == 300


def test_a_second_backfill_is_refused(archive: Desk) -> None:
    with (
        BackfillLock(resolve.store_of(archive.config), "first"),
        pytest.raises(TableBusy, match="backfill first is under way: stop it, or wait for it"),
    ):
        backfill.backfill(archive.config, engine=HereAndNow)


def test_a_backfill_that_is_paused_commits_lets_go_and_goes_on_when_resumed(archive: Desk) -> None:
    moments: list[Progress] = []
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(backfill.backfill, archive.config, moments.append, engine=Slow)
        until(lambda: held(archive) > 20)
        backfill.pause(archive.config, paused=True)
        until(lambda: moments[-1].phase == "wait")
        rows = held(archive)
        assert 20 < rows < 300
        assert maintenance.maintain(archive.config).tuning is None, "others have the table meanwhile"
        time.sleep(0.5)
        assert held(archive) == rows
        backfill.pause(archive.config, paused=False)
        assert pending.result(timeout=240).documents.added == 300
    assert len(archive.rows()) == 300
    assert all(check.ok for check in verify(archive.config))


def test_outside_its_hours_a_backfill_waits(archive: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = dt.datetime.now(dt.UTC)
    later = f"{now + dt.timedelta(hours=2):%H:%M}-{now + dt.timedelta(hours=3):%H:%M}"
    archive.config_path.write_text(archive.config_path.read_text() + f'[backfill]\nhours = "{later}"\n')
    told = threading.Event()
    inside = threading.Event()
    monkeypatch.setattr(throttle, "in_time_window", lambda hours, _: hours == later and inside.is_set())
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(
            backfill.backfill, archive.config, lambda moment: told.set() if moment.phase == "wait" else None, engine=HereAndNow
        )
        assert told.wait(120)
        assert held(archive) == 0
        inside.set()
        assert pending.result(timeout=240).documents.added == 300


@given(st.times(), st.times(), st.times())
def test_hours_may_span_midnight_and_their_complement_is_the_rest_of_the_day(begins: dt.time, ends: dt.time, now: dt.time) -> None:
    begins, ends = (each.replace(second=0, microsecond=0) for each in (begins, ends))
    if begins == ends:
        assert in_time_window(f"{begins:%H:%M}-{ends:%H:%M}", now), "all day"
    else:
        assert in_time_window(f"{begins:%H:%M}-{ends:%H:%M}", now) != in_time_window(f"{ends:%H:%M}-{begins:%H:%M}", now)


def test_a_backfill_keeps_to_its_pace(archive: Desk) -> None:
    archive.config_path.write_text(archive.config_path.read_text() + "[backfill]\ntokens_per_second = 200\n")
    started = time.monotonic()
    Slow.pause_s = 0.0
    report = backfill.backfill(archive.config, engine=Slow)
    assert report.tokens / (time.monotonic() - started) < 250
    assert report.documents.added == 300


def test_a_sample_takes_its_share_and_the_next_run_the_rest(archive: Desk) -> None:
    first = archive.embed(sample=0.2)
    assert 30 < first.documents.added < 90
    assert first.left == 300 - first.documents.added
    assert held(archive) == first.documents.added
    assert archive.embed(sample=0.2).documents.added == 0, "the same documents each time"
    rest = archive.embed()
    assert (rest.documents.added, rest.documents.unchanged) == (first.left, first.documents.added)
    assert len(archive.rows()) == 300
    assert all(check.ok for check in verify(archive.config))


def test_what_a_run_costs_is_told(archive: Desk) -> None:
    archive.config_path.write_text(archive.config_path.read_text() + "[ray]\ncost_per_million_tokens = 1000000\n")
    assert run.plan(archive.config).cost > 0
    report = archive.embed()
    assert report.cost == report.tokens > 0


def test_a_report_tells_why_documents_are_in_quarantine_and_which_shards_were_slowest(desk: Desk, tmp_path: Path) -> None:
    desk.write(
        "a.jsonl", [{"id": "a", "text": words(1)}, {"id": "b", "text": ""}, {"id": "c", "text": None}, {"id": "d", "text": "w13"}]
    )
    report = desk.embed()
    assert sum(report.reasons.values()) == 3
    assert report.reasons["encoding failed"] == 1
    assert [shard.documents for shard in report.slowest] == [2]
