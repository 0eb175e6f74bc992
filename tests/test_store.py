"""What the table promises: one change at a time, whole or not at all, and a way back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import lancedb
import pyarrow as pa
import pytest
from conftest import Desk, HereAndNow, words
from lance.commit import CommitConflictError
from lancedb.index import BTree

from latent import store
from latent.errors import Interrupted, QueryError, StoreError, TableBusy
from latent.ingest import maintenance, rollback, run
from latent.ingest.resolve import store_of
from latent.ingest.status import status
from latent.ingest.verify import verify
from latent.schemas import QUARANTINE
from latent.store import Lease, Store, TableUpdate, exclusive_writer, orphaned_files
from latent.store import backfill_lock as courtesy
from latent.store import commits as raw
from latent.store import dataset as tables
from latent.store import lease as leases
from latent.store import version_history as history
from latent.types import Shard
from latent.workers import CompletedShard, FailedDocument


def document(name: str, *numbers: int) -> dict[str, object]:
    return {"id": name, "text": words(*numbers)}


@pytest.fixture
def place(desk: Desk) -> Store:
    """A table of two documents, by one run."""
    desk.write("a.jsonl", [document("x", 1), document("y", 2)])
    desk.embed()
    return store_of(desk.config)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a fifth of a second that nobody renews: every holder looks dead."""
    for name, seconds in (("LEASE_S", 0.2), ("RENEW_S", 3600.0), ("WATCH_S", 0.2)):
        monkeypatch.setattr(leases, name, seconds)


def copied(place: Store) -> tuple[str, ...]:
    """A fragment with the rows of document x once more."""
    return store.write_fragments(place, place.opened().to_table(filter="doc_id = 'x'"))


def change(*fragments: str, replaced: tuple[str, ...] = (), shards: tuple[str, ...] = ("s",)) -> TableUpdate:
    return TableUpdate(fragments, pa.array(replaced, pa.string()), shards, {})


def test_a_commit_whose_answer_was_lost_is_found_and_not_made_twice(place: Store) -> None:
    with exclusive_writer(place, "r") as lease:
        since = place.opened().version
        wanted = change(*copied(place), replaced=("x",))
        first, second = (store.commit(place, lease, wanted, since) for _ in range(2))
    assert first.version == second.version == place.opened().version
    assert place.opened().count_rows() == 2


def test_rows_changed_by_another_program_during_a_run_stop_it(desk: Desk, place: Store) -> None:
    class Meddled(HereAndNow):
        def work(self, shards):
            other = lancedb.connect(place.uri).open_table("docs")
            other.delete("doc_id = 'y'")
            yield from super().work(shards)

    desk.write("b.jsonl", [document("z", 3)])
    with pytest.raises(StoreError, match=r"changed by another program \(version 3, Delete\): nothing more is committed; run again"):
        desk.embed(engine=Meddled)
    assert {key[0] for key in desk.rows()} == {"x"}


@pytest.mark.parametrize("empty", [False, True], ids=["with rows", "empty"])
@pytest.mark.usefixtures("impatient")
def test_a_holder_that_was_succeeded_commits_nothing_wherever_it_slept(desk: Desk, place: Store, empty: bool) -> None:
    fragments = copied(place)
    if empty:
        desk.write("a.jsonl", [])
        desk.embed()
    with Lease(place, "sleeper") as lease:
        opened = place.opened()  # asleep between the look at the lease and the commit
        time.sleep(0.3)
        with exclusive_writer(place, "successor"):
            assert "run sleeper did not end well" in store.versions(place, 1)[0].what
            with pytest.raises(TableBusy, match="the lease was lost to run successor"):
                store.commit(place, lease, change(*fragments), opened.version)
            operation, _ = raw._replacement(
                opened, [lance.FragmentMetadata.from_json(f) for f in fragments], pa.array([], pa.string())
            )
            with pytest.raises(StoreError, match="commit failed"):
                raw.make_version(place, opened, operation, {})
    assert place.opened().count_rows() == (0 if empty else 2)


def test_a_holder_that_shows_life_while_it_is_watched_keeps_its_lease(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LEASE_S", 0.2), ("RENEW_S", 1.0), ("WATCH_S", 5.0)):
        monkeypatch.setattr(leases, name, seconds)
    with Lease(place, "slow clock"):
        time.sleep(0.3)
        with pytest.raises(TableBusy, match="being written by run slow clock"), exclusive_writer(place, "hasty"):
            pass


def test_a_lease_from_the_future_is_watched_and_not_believed(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "WATCH_S", 0.2)
    with Lease(place, "gone"), monkeypatch.context() as then:
        then.setattr(leases.time, "time", lambda now=time.time: now() - 7200)  # the clock fell back by two hours
        with exclusive_writer(place, "successor"):
            assert "run gone did not end well" in store.versions(place, 1)[0].what


def test_a_successor_that_could_not_fence_leaves_that_to_the_next(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(place, "gone") as gone:
        gone.unfenced = "earlier"  # its own fence failed
    with monkeypatch.context() as then:
        then.setattr(leases, "_process_exists", lambda pid: False)
        with exclusive_writer(place, "successor"):
            assert "run gone did not end well" in store.versions(place, 1)[0].what


def test_after_a_run_that_failed_its_last_commit_can_no_longer_land(desk: Desk, place: Store) -> None:
    class Failing(HereAndNow):
        def work(self, shards):
            raise StoreError("the store is gone")

    opened, fragments = place.opened(), copied(place)
    desk.write("b.jsonl", [document("z", 3)])
    with pytest.raises(StoreError):
        desk.embed(engine=Failing)
    desk.embed()
    operation, _ = raw._replacement(opened, [lance.FragmentMetadata.from_json(f) for f in fragments], pa.array([], pa.string()))
    with pytest.raises(StoreError, match="commit failed"):
        raw.make_version(place, opened, operation, {})


def test_a_run_that_died_is_said_to_have_died_by_the_next(desk: Desk, place: Store) -> None:
    rows = store.read_runs(place).to_pylist()
    store.write_runs(place, pa.Table.from_pylist([rows[0] | {"run_id": "dead", "status": "running"}], schema=tables.RUNS))
    desk.write("b.jsonl", [document("z", 3)])
    desk.embed()
    assert {row["run_id"]: row["status"] for row in desk.side("runs")}["dead"] == "died"


def sleepless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life as fast as they can be written, of which three are kept."""
    for module in (leases, courtesy):
        monkeypatch.setattr(module, "RENEW_S", 0.001)
    monkeypatch.setattr(leases, "KEPT_SIGNS", 3)


def until(so: Callable[[], bool]) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + 60
    while not so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_renewals_leave_few_versions_and_who_read_before_them_still_cannot_take_the_lease(
    place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepless(monkeypatch)
    stale = lance.dataset(place.path("runs"))
    with Lease(place, "holder") as lease:
        until(lambda: lance.dataset(place.path("runs")).version > stale.version + 40)
        kept = [ref["version"] for ref in lance.dataset(place.path("runs")).version_refs()]
        assert len(kept) <= 12  # twice three, and what comes while they are counted
        assert stale.version not in kept
        with pytest.raises(CommitConflictError):
            leases.put(place, stale, {leases.KEY: leases.LeaseHolder.now("thief")})
        lease.check()


def test_signs_of_life_of_a_job_of_days_are_few_though_no_run_holds_the_lease(
    place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleepless(monkeypatch)
    begun = lance.dataset(place.path("runs")).version
    with store.MigrationLock(place, "days"):
        until(lambda: lance.dataset(place.path("runs")).version > begun + 60)
        assert len(lance.dataset(place.path("runs")).version_refs()) <= 20
    with Lease(place, "next") as lease:
        assert lease.unfenced is None


def test_maintain_drops_the_signs_of_life_of_earlier_runs(desk: Desk, place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEEP_RUNS", dt.timedelta(0))
    with Lease(place, "earlier") as lease:
        for _ in range(100):
            lease.renew()
    maintenance.maintain(desk.config)
    assert len(lance.dataset(place.path("runs")).version_refs()) <= 4
    assert len(place.opened().version_refs()) >= 2  # of the table itself none is gone


# --- rows, file states and quarantine in one instant ---------------------------------------------------------------


class Deadly(HereAndNow):
    """No worker survives a document; each of the others is a shard of its own."""

    fatal = frozenset({"bad0", "bad1"})

    def work(self, shards) -> Iterator[CompletedShard | FailedDocument]:
        worker = self._make(self)
        pending: list[Shard] = list(shards)
        while pending:
            shard = pending.pop(0)
            if len(shard) > 1:
                pending += shard.split()
            elif shard.documents()["doc_id"][0].as_py() in self.fatal:
                yield FailedDocument(shard, "encoding failed: the worker died", None)
            else:
                yield CompletedShard(shard, worker.embed(shard))


class Healed(Deadly):
    fatal = frozenset[str]()


def told(place: Store) -> Iterator[tuple[set[str], set[str], int]]:
    """At each version: documents in the table, in quarantine, and files known."""
    for version in range(2, place.opened().version + 1):
        table = place.opened(version)
        names = tables.named(table)
        quarantine, files = (tables.read_side(place, side, names) for side in ("quarantine", "files"))
        yield set(table.to_table()["doc_id"].to_pylist()), set(quarantine["doc_id"].to_pylist()), files.num_rows


def test_what_heals_leaves_quarantine_in_the_commit_that_brings_it_into_the_table(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    names = {"ok", "bad0", "bad1"}
    desk.write("a.jsonl", [document(name, i) for i, name in enumerate(sorted(names))])
    assert desk.embed(engine=Deadly).documents.quarantined == 2
    before = store_of(desk.config).opened().version
    assert desk.embed(engine=Healed, retry_quarantined=True).documents.quarantined == 0
    states = list(told(store_of(desk.config)))
    assert len(states) > before
    for held, apart, files in states[before - 2 :]:
        assert (held | apart, held & apart, files) == (names, set(), 1)
    assert desk.side("quarantine") == []


def test_a_retry_that_is_stopped_keeps_in_quarantine_what_it_did_not_come_to(desk: Desk) -> None:
    class Stopped(Healed):
        def work(self, shards):
            yield next(super().work(shards))
            raise KeyboardInterrupt

    desk.write("a.jsonl", [document(name, i) for i, name in enumerate(["bad0", "bad1", "ok"])])
    desk.embed(engine=Deadly)
    with pytest.raises(Interrupted):
        desk.embed(engine=Stopped, retry_quarantined=True)
    assert ({key[0] for key in desk.rows()}, [q["doc_id"] for q in desk.side("quarantine")]) == ({"ok", "bad0"}, ["bad1"])
    assert all(check.ok for check in verify(desk.config))


def test_a_file_is_never_recorded_before_its_documents_are_in_the_table_or_in_quarantine(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    monkeypatch.setattr("latent.ingest.plan.SHARD_DOCUMENTS", 1)
    for name in "abc":
        desk.write(f"{name}.jsonl", [document(f"{name}{i}", i + 1) for i in range(3)] + [{"id": f"{name}9", "text": ""}])
    desk.embed()
    counts = [(len(held | apart), files) for held, apart, files in told(store_of(desk.config))]
    assert counts[-1] == (12, 3)
    assert all(documents >= 4 * files for documents, files in counts)
    assert len({files for _, files in counts}) > 1


def test_side_tables_of_a_table_that_is_gone_hide_nothing_from_the_next(desk: Desk, place: Store) -> None:
    shutil.rmtree(place.path())
    assert desk.embed().documents.added == 2
    assert {key[0] for key in desk.rows()} == {"x", "y"}


def test_where_another_program_cleaned_the_record_away_every_file_is_read_again(desk: Desk, place: Store) -> None:
    table = lancedb.connect(place.uri).open_table("docs")
    table.create_index("doc_id", config=BTree())
    with pytest.warns(UserWarning, match="removes every version except the latest"):
        table.optimize(cleanup_older_than=dt.timedelta(0))
    report = desk.embed()
    assert (report.files_opened, report.documents.unchanged, report.chunks.encoded) == (1, 2, 0)


# --- the way back ---------------------------------------------------------------------------------------------------


def test_rollback_to_a_run_brings_back_rows_file_states_and_quarantine_and_the_next_run_is_right(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1), {"id": "e", "text": ""}])
    first = desk.embed()
    then = desk.rows(), desk.side("files"), desk.side("quarantine")
    desk.write("a.jsonl", [document("x", 5), document("y", 2), document("e", 7)])
    desk.embed()
    later = desk.rows()
    done = rollback.rollback(desk.config, str(first.run_id))
    assert (done.documents, done.restored) == (1, first.table_version)
    assert (desk.rows(), desk.side("files"), desk.side("quarantine")) == then
    newest = lance.dataset(store_of(desk.config).path("files")).to_table().to_pylist()
    assert newest == then[1]  # other programs, which open the side table itself, see the same
    assert all(check.ok for check in verify(desk.config))
    report = desk.embed()
    assert (report.documents.changed, report.documents.added) == (1, 2)
    assert desk.rows() == later
    assert all(check.ok for check in verify(desk.config))


def test_rollback_can_be_rolled_back_by_version(desk: Desk, place: Store) -> None:
    before, version = desk.rows(), place.opened().version
    rollback.rollback(desk.config, "1")
    assert desk.rows() == {}
    rollback.rollback(desk.config, str(version))
    assert desk.rows() == before
    assert desk.embed(engine=None).documents.unchanged == 2


def test_rollback_to_what_is_not_there_is_one_line(desk: Desk, place: Store) -> None:
    with pytest.raises(QueryError, match=r"no run 'yesterday' of .*: give a version's number or a run, 'latent status' lists both"):
        rollback.rollback(desk.config, "yesterday")
    with pytest.raises(StoreError, match="has no version 99: 'latent status' lists"):
        rollback.rollback(desk.config, "99")
    assert place.opened().count_rows() == 2


def test_status_lists_versions_with_the_run_and_what_it_did(desk: Desk, place: Store) -> None:
    found = status(desk.config)
    assert [(v.version, v.run_id, v.what) for v in found.versions] == [
        (2, found.runs[0]["run_id"], "2 rows in, 0 out"),
        (1, None, "created"),
    ]


# --- what is kept, and what goes ------------------------------------------------------------------------------------


def test_a_version_stays_for_its_time_after_it_was_superseded_however_old(
    desk: Desk, place: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEEP", dt.timedelta(seconds=6))
    desk.write("a.jsonl", [document("x", 3), document("y", 2)])
    old = desk.embed()
    time.sleep(6.5)
    reader = place.opened()
    desk.write("a.jsonl", [document("x", 4), document("y", 2)])
    desk.embed()
    done = maintenance.maintain(desk.config)
    assert done.versions_dropped >= 2
    assert next(iter(place.opened().versions()))["version"] == old.table_version
    assert set(reader.to_table()["text"].to_pylist()) == {"w3", "w2"}  # opened before, read after
    rollback.rollback(desk.config, str(old.run_id))
    assert desk.rows()["x", 0][0] == "w3"
    desk.write("a.jsonl", [document("x", 3), document("y", 2)])
    assert desk.embed().documents.unchanged == 2


def test_maintain_keeps_the_commit_that_names_the_file_states(desk: Desk, place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEEP", dt.timedelta(0))
    for _ in range(2):
        place.opened().update_metadata({"note": str(time.time())})
        maintenance.maintain(desk.config)
    assert desk.embed(engine=None).files_opened == 0


def test_maintain_removes_what_a_killed_run_wrote_and_keeps_what_any_version_names(desk: Desk, place: Store) -> None:
    desk.write("a.jsonl", [document("x", 3), document("y", 2)])
    desk.embed()
    copied(place), copied(place)
    assert len(orphaned_files(place)) == 2
    assert maintenance.maintain(desk.config).files_removed == 2
    assert orphaned_files(place) == frozenset()
    assert [place.opened(v["version"]).to_table().num_rows for v in place.opened().versions()][:3] == [0, 2, 2]
    assert maintenance.maintain(desk.config).files_removed == 0


def test_maintain_waits_for_no_run_and_touches_nothing_of_a_live_one(desk: Desk, place: Store) -> None:
    with exclusive_writer(place, "live"):
        copied(place)
        with pytest.raises(TableBusy, match="being written by run live"):
            maintenance.maintain(desk.config)
    assert len(orphaned_files(place)) == 1


# --- verify finds what is wrong -------------------------------------------------------------------------------------


def _row(place: Store, name: str = "x") -> pa.Table:
    return place.opened().to_table(filter=f"doc_id = '{name}'")


def _append(place: Store, rows: pa.Table) -> None:
    lance.write_dataset(rows, place.path(), mode="append")


def _set(place: Store, column: str, value: object, where: str) -> None:
    """Rows as they are, one column's value another."""
    rows = place.opened().to_table(filter=where)
    field = rows.schema.field(column)
    other = rows.set_column(rows.schema.get_field_index(column), field, pa.array([value] * rows.num_rows, field.type))
    place.opened().delete(where)
    _append(place, other)


def _side(place: Store, side: str, rows: pa.Table) -> None:
    """A commit that names another side table."""
    with exclusive_writer(place, "damage") as lease:
        store.commit(place, lease, TableUpdate((), pa.array([], pa.string()), (), {side: rows}), place.opened().version)


def _quarantined(place: Store) -> pa.Table:
    x = _row(place)
    row = {n: x[n][0].as_py() for n in ("doc_id", "source_file", "doc_hash")} | {
        "row": 0,
        "reason": "encoding failed",
        "run_id": "r",
    }
    return pa.Table.from_pylist([row], schema=QUARANTINE)


def _files(place: Store, delta: int) -> pa.Table:
    rows = store.load_state(place).files.to_pylist()
    return pa.Table.from_pylist([row | {"documents": row["documents"] + delta} for row in rows], schema=tables.FILES)


def _claimed(place: Store, column: str) -> None:
    """An index that claims to hold a fragment it never saw."""
    from lancedb.index import FTS, IvfRq

    config = IvfRq(distance_type="cosine", num_partitions=1) if column == "vector" else FTS(with_position=False)
    lancedb.connect(place.uri).open_table("docs").create_index(column, config=config)
    built = place.opened()
    index = built.read_transaction(built.version).operation.new_indices[0]
    row = _row(place).slice(1, 1)
    _append(place, row.set_column(0, row.schema.field(0), pa.array(["x#9"])))
    table = place.opened()
    claims = dataclasses.replace(index, fragment_ids={f.fragment_id for f in table.get_fragments()}, uuid=str(index.uuid))
    raw.make_version(place, table, lance.LanceOperation.CreateIndex([claims], [index]), {})


def _index_gone(place: Store) -> None:
    from lancedb.index import FTS

    lancedb.connect(place.uri).open_table("docs").create_index("text", config=FTS(with_position=False))
    shutil.rmtree(Path(place.path(), "_indices"))


DAMAGE: dict[str, tuple[str, Callable[[Desk, Store], None]]] = {
    "a document doubled": ("one row a chunk", lambda _, p: _append(p, _row(p))),
    "a chunk in the middle lost": ("no gaps", lambda _, p: p.opened().delete("doc_id = 'x' AND chunk_index = 1")),
    "a first chunk lost": ("no gaps", lambda _, p: p.opened().delete("doc_id = 'x' AND chunk_index = 0")),
    "a last chunk lost": ("one writer", lambda _, p: p.opened().delete("doc_id = 'x' AND chunk_index = 2")),
    "a document lost": ("files agree", lambda _, p: p.opened().delete("doc_id = 'x'")),
    "a document half changed": ("documents whole", lambda _, p: _set(p, "doc_hash", "0" * 32, "doc_id = 'x' AND chunk_index = 1")),
    "a vector of NaN": ("unit vectors", lambda _, p: _set(p, "vector", [float("nan")] * 16, "doc_id = 'x' AND chunk_index = 1")),
    "a vector too long": ("unit vectors", lambda _, p: _set(p, "vector", [1.0] * 16, "doc_id = 'x' AND chunk_index = 1")),
    "a vector of another text": ("sample agrees", lambda _, p: _set(p, "vector", [1.0] + [0.0] * 15, "doc_id = 'x'")),
    "a text altered": ("texts", lambda _, p: _set(p, "text", "w9", "doc_id = 'x' AND chunk_index = 1")),
    "an id that names another row": ("texts", lambda _, p: _set(p, "chunk_id", "y#0", "doc_id = 'x' AND chunk_index = 1")),
    "rows of an unknown run": ("runs exist", lambda _, p: _set(p, "run_id", "nobody", "doc_id = 'x'")),
    "a file state that counts too many": ("files agree", lambda _, p: _side(p, "files", _files(p, 1))),
    "a document in the table and in quarantine": ("quarantine apart", lambda _, p: _side(p, "quarantine", _quarantined(p))),
    "a document missing from quarantine": ("files agree", lambda _, p: _side(p, "quarantine", QUARANTINE.empty_table())),
    "rows by another program": ("one writer", lambda _, p: lancedb.connect(p.uri).open_table("docs").delete("doc_id = 'y'")),
    "an index that claims rows it does not hold": ("indexes cover", lambda _, p: _claimed(p, "vector")),
    "a full-text index that claims rows it does not hold": ("indexes cover", lambda _, p: _claimed(p, "text")),
    "index files gone": ("indexes cover", lambda _, p: _index_gone(p)),
    "a data file gone": ("readable", lambda _, p: next(Path(p.path(), "data").iterdir()).unlink()),
    "a data file cut short": (
        "readable",
        lambda _, p: (f := next(Path(p.path(), "data").iterdir())).write_bytes(f.read_bytes()[:-64]),
    ),
    "another chunking in the config": (
        "spec",
        lambda d, _: d.config_path.write_text(d.config_path.read_text().replace("tokens = 16", "tokens = 17")),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_the_damage(desk: Desk, damage: str) -> None:
    desk.write("a.jsonl", [document("x", *range(100, 148)), document("y", 2), {"id": "e", "text": ""}])
    desk.embed()
    assert [check.name for check in verify(desk.config) if not check.ok] == []
    name, plant = DAMAGE[damage]
    plant(desk, store_of(desk.config))
    found = {check.name: check.detail for check in verify(desk.config) if not check.ok}
    assert name in found, found
    assert "\n" not in found[name]


def test_verify_names_a_document_whose_metadata_is_not_what_its_source_says(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "desk", metadata=["n", "m"])
    desk.write("a.jsonl", [document("x", 1) | {"n": 4, "m": [0.5]}, document("y", 2) | {"n": 5, "m": None}])
    desk.write("b.jsonl", [document("z", 3) | {"n": 6, "m": []}])
    desk.embed()
    assert [check.detail for check in verify(desk.config) if check.name == "source agrees"] == ["3 documents read again"]
    _set(store_of(desk.config), "n", 7, "doc_id = 'y'")
    (found,) = [check for check in verify(desk.config) if check.name == "source agrees"]
    assert (found.ok, found.detail) == (False, "1 documents differ from the source: y")
    desk.write("a.jsonl", [document("y", 9)])  # not yet embedded: no damage
    assert [check.ok for check in verify(desk.config) if check.name == "source agrees"] == [True]


def test_verify_of_a_table_whose_source_is_away_compares_nothing_and_says_so(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    shutil.rmtree(desk.source)
    (found,) = [check for check in verify(desk.config) if check.name == "source agrees"]
    assert found.ok
    assert found.detail.startswith("not compared, the source cannot be read")
