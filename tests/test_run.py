"""The whole job on the real table and a small real model, workers in this process."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import Desk, HereAndNow, Latent, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent import sources as source
from latent import store
from latent.errors import EngineError, Interrupted, QueryError, SourceError, SpecMismatch, TableBusy
from latent.ingest import backfill, maintenance, resolve, rollback, run, scan
from latent.ingest.status import runs
from latent.ingest.verify import verify
from latent.schemas import RUNS
from latent.store import Lease


def document(name: str, *numbers: int) -> dict[str, object]:
    return {"id": name, "text": words(*numbers)}


def test_first_run_embeds_every_document_whole(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", *range(100, 140)), document("y", 1, 2)])
    report = desk.embed()
    assert (report.documents.added, report.chunks.encoded) == (2, len(desk.rows()))
    assert " ".join(row[0] for key, row in sorted(desk.rows().items()) if key[0] == "x") == words(*range(100, 140))
    assert all(check.ok for check in verify(desk.config))


def test_second_run_with_no_change_commits_nothing_and_opens_nothing(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1)])
    first = desk.embed()
    versions = {d: sorted(p.name for p in d.rglob("*.manifest")) for d in (desk.folder / "data/lancedb").iterdir()}
    second = desk.embed(engine=None)  # starts no workers
    assert (second.documents.unchanged, second.files_opened, second.table_version) == (1, 0, first.table_version)
    assert versions == {d: sorted(p.name for p in d.rglob("*.manifest")) for d in (desk.folder / "data/lancedb").iterdir()}


def test_a_touched_file_is_opened_and_nothing_is_encoded(desk: Desk) -> None:
    path = desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    first = desk.rows()
    os.utime(path, ns=(1, 1))
    second = desk.embed(engine=None)
    assert (second.files_opened, second.documents.unchanged, desk.rows()) == (1, 1, first)
    assert desk.embed().files_opened == 0


def test_an_edited_paragraph_encodes_only_the_passages_that_changed(desk: Desk) -> None:
    paragraphs = [words(*(20 + (7 * i + 11 * j) % 480 for j in range(10))) for i in range(100)]
    desk.write("a.jsonl", [{"id": "x", "text": "\n\n".join(paragraphs)}])
    assert desk.embed().chunks.encoded == 100
    paragraphs[17] = words(*range(1, 11))
    desk.write("a.jsonl", [{"id": "x", "text": "\n\n".join(paragraphs)}])
    report = desk.embed()
    assert (report.documents.changed, report.chunks.encoded, report.chunks.reused) == (1, 1, 99)


def test_equal_chunks_of_a_run_are_encoded_once(desk: Desk) -> None:
    desk.write("a.jsonl", [document(f"d{i}", 1, 2, 3) for i in range(50)])
    report = desk.embed()
    assert (report.chunks.encoded, report.chunks.reused) == (1, 49)


def test_a_changed_metadata_value_is_written_and_nothing_is_encoded(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["year"])
    desk.write("a.jsonl", [document("x", 1) | {"year": 2001}])
    desk.embed()
    desk.write("a.jsonl", [document("x", 1) | {"year": 2002}])
    report = desk.embed()
    assert (report.documents.changed, report.chunks.encoded) == (1, 0)
    assert desk.rows()["x", 0] == ("w1", 2002, "a.jsonl")


def test_a_document_that_disappears_is_deleted(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1), document("y", 2)])
    desk.write("b.jsonl", [document("z", 3)])
    desk.embed()
    desk.write("a.jsonl", [document("y", 2)])
    (desk.source / "b.jsonl").unlink()
    report = desk.embed(engine=None)
    assert (report.documents.deleted, report.documents.unchanged) == (2, 1)
    assert {key[0] for key in desk.rows()} == {"y"}


def test_a_document_that_moves_is_neither_lost_nor_doubled_nor_encoded(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1), document("y", 2)])
    desk.write("b.jsonl", [document("z", 3)])
    desk.embed()
    desk.write("a.jsonl", [document("y", 2)])
    desk.write("b.jsonl", [document("z", 3), document("x", 1)])
    report = desk.embed()
    assert (report.moved, report.documents.deleted, report.documents.unchanged, report.chunks.encoded) == (1, 0, 3, 0)
    assert desk.rows()["x", 0] == ("w1", "b.jsonl")


def test_a_renamed_text_file_keeps_its_vectors(desk: Desk) -> None:
    (desk.source / "old.txt").write_text(words(*range(100, 160)))
    desk.embed()
    (desk.source / "old.txt").rename(desk.source / "new.txt")
    report = desk.embed()
    assert (report.documents.added, report.documents.deleted, report.chunks.encoded) == (1, 1, 0)


def test_of_documents_with_one_id_the_first_by_path_wins_whenever_it_came(desk: Desk) -> None:
    desk.write("b.jsonl", [document("x", 2)])
    desk.embed()
    desk.write("c.jsonl", [document("x", 3)])
    desk.write("a.jsonl", [document("x", 1)])
    report = desk.embed()
    assert desk.rows() == {("x", 0): ("w1", "a.jsonl")}
    assert report.documents.quarantined == 2
    (desk.source / "a.jsonl").unlink()
    desk.embed()
    assert desk.rows() == {("x", 0): ("w2", "b.jsonl")}
    assert [(q["source_file"], q["doc_id"]) for q in desk.side("quarantine")] == [("c.jsonl", "x")]


def test_every_document_is_in_the_table_or_in_quarantine_with_a_reason(desk: Desk) -> None:
    desk.write("a.jsonl", [document("ok", 1), {"id": "null", "text": None}, {"id": "blank", "text": " "}, document("nan", 13)])
    report = desk.embed()
    assert (report.documents.added, report.documents.quarantined) == (1, 3)
    assert {q["doc_id"]: q["reason"].split(":")[0] for q in desk.side("quarantine")} == {
        "null": "text is null",
        "blank": "text is empty",
        "nan": "encoding failed",
    }
    again = desk.embed(engine=None)
    assert (again.documents.unchanged, again.documents.quarantined) == (1, 3)


def test_a_failed_document_is_not_tried_again_until_asked_or_changed(desk: Desk) -> None:
    desk.write("a.jsonl", [document("nan", 13)])
    desk.embed()
    desk.write("a.jsonl", [document("nan", 13), document("y", 1)])
    assert desk.embed().documents.quarantined == 1
    assert desk.embed(retry_quarantined=True).documents.quarantined == 1
    desk.write("a.jsonl", [document("nan", 14), document("y", 1)])
    report = desk.embed()
    assert (report.documents.added, report.documents.quarantined) == (1, 0)
    assert desk.side("quarantine") == []


def test_a_document_that_becomes_unusable_leaves_the_table_for_quarantine(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1), document("y", 2)])
    desk.embed()
    desk.write("a.jsonl", [{"id": "x", "text": ""}, document("y", 13)])
    report = desk.embed()
    assert desk.table().num_rows == 0
    assert (report.documents.quarantined, report.documents.deleted, report.documents.changed) == (2, 0, 0)
    assert all(check.ok for check in verify(desk.config))


def test_a_damaged_file_is_refused_whole_and_its_documents_stay(desk: Desk) -> None:
    good = gzip.compress(b"".join(b'{"id": "%d", "text": "w%d"}\n' % (i, i) for i in range(100, 200)))
    path = desk.source / "a.jsonl.gz"
    path.write_bytes(good)
    desk.write("b.jsonl", [document("z", 3)])
    desk.embed()
    path.write_bytes(good[: len(good) // 2])
    report = desk.embed(engine=None)
    assert (report.files_refused, report.documents.unchanged, report.documents.deleted) == (1, 101, 0)
    assert desk.side("quarantine")[0]["reason"].startswith("unreadable file")
    path.write_bytes(good)
    assert desk.embed(engine=None).documents.quarantined == 0


def test_rows_that_cannot_be_told_keep_the_documents_missing_from_their_file(desk: Desk) -> None:
    path = desk.write("a.jsonl", [document("x", 1), document("y", 2)])
    desk.embed()
    path.write_text('{"id": "x", "text": "w1"}\n{"id": "y", "te\n{"id": "z", "text": "w3"}\n')
    report = desk.embed()
    assert {key[0] for key in desk.rows()} == {"x", "y", "z"}
    assert (report.documents.unchanged, report.documents.added, report.documents.quarantined) == (2, 1, 1)
    assert all(check.ok for check in verify(desk.config))


def test_a_document_that_changes_under_the_run_is_left_for_the_next(desk: Desk) -> None:
    path = desk.write("a.jsonl", [document("x", 1), document("y", 2)])

    class Meddler(HereAndNow):
        def work(self, shards):
            desk.write("a.jsonl", [document("x", 5), document("y", 2)])
            yield from super().work(shards)

    report = desk.embed(engine=Meddler)
    assert (report.stale, report.documents.added) == (1, 1)
    assert desk.embed().documents.added == 1
    assert desk.rows()["x", 0][0] == "w5"
    assert path.exists()


def test_an_empty_source_does_not_empty_the_table_unless_allowed(desk: Desk) -> None:
    path = desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    path.unlink()
    with pytest.raises(SourceError, match=r"no files.*--allow-deletions"):
        desk.embed()
    assert desk.embed(allow_deletions=True).documents.deleted == 1
    assert desk.table().num_rows == 0


def many(name: str, count: int) -> list[dict[str, object]]:
    return [document(f"{name}{i}", i + 20) for i in range(count)]


@pytest.fixture
def halved(desk: Desk) -> Desk:
    """60 documents are in the table, and the file of 30 of them is gone."""
    desk.write("a.jsonl", many("a", 30))
    lost = desk.write("b.jsonl", many("b", 30))
    desk.embed()
    lost.unlink()
    desk.write("c.jsonl", [document("new", 1)])
    return desk


def test_a_run_that_would_delete_half_of_the_table_is_refused_and_commits_nothing(halved: Desk) -> None:
    version = resolve.store_of(halved.config).opened().version
    with pytest.raises(SourceError, match=r"at most 30% .* got 30 of 60; 1 of 2 files are gone\. .*--allow-deletions'$"):
        halved.embed()
    with pytest.raises(SourceError, match="--allow-deletions"):
        backfill.backfill(halved.config, engine=HereAndNow)
    assert resolve.store_of(halved.config).opened().version == version
    assert halved.embed(allow_deletions=True).documents.deleted == 30


def test_a_plan_of_more_deletions_than_are_allowed_shows_the_refusal(halved: Desk, latent: Latent) -> None:
    planned = latent(halved.folder, "plan", "--json").answer
    assert (planned["documents"]["deleted"], planned["documents"]["added"]) == (30, 1)
    assert "got 30 of 60" in planned["refused"]
    assert "refused" in latent(halved.folder, "plan").out
    said = latent(halved.folder, "run")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert latent(halved.folder, "run", "--allow-deletions", "--json").answer["documents"]["deleted"] == 30


def test_the_share_of_deletions_is_the_configs(halved: Desk, latent: Latent) -> None:
    assert latent(halved.folder, "plan", "--json", "--source.max_deleted_share", "0.5").answer["refused"] == ""


def test_documents_that_lose_their_text_count_as_deletions(desk: Desk) -> None:
    desk.write("a.jsonl", many("a", 60))
    desk.embed()
    desk.write("a.jsonl", [{"id": d["id"], "text": None} for d in many("a", 60)])
    with pytest.raises(SourceError, match=r"got 60 of 60, 60 of them for quarantine \('.+': text is null\); 0 of 1 files are gone"):
        desk.embed()


def test_documents_that_moved_to_other_files_are_no_deletions(desk: Desk) -> None:
    path = desk.write("a.jsonl", many("a", 60))
    desk.embed()
    path.rename(path.with_name("b.jsonl"))
    assert desk.embed().moved == 60


def test_up_to_twenty_documents_go_whatever_their_share(desk: Desk) -> None:
    desk.write("a.jsonl", many("a", 22))
    desk.embed()
    desk.write("a.jsonl", many("a", 2))
    assert desk.embed().documents.deleted == 20


def test_a_plan_of_an_empty_source_shows_that_all_would_go(desk: Desk) -> None:
    path = desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    path.unlink()
    planned = run.plan(desk.config)
    assert planned.documents.deleted == 1
    assert "no files" in planned.refused


def elsewhere(desk: Desk, uri: str) -> Desk:
    """The desk, its config naming another source for the same table."""
    text = desk.config_path.read_text()
    desk.config_path.write_text(re.sub(r'uri = ".*"', f'uri = "{uri}"', text, count=1))
    return desk


def test_a_table_refuses_the_documents_of_another_source_and_names_both(desk: Desk, latent: Latent) -> None:
    desk.write("a.jsonl", many("a", 3))
    desk.embed()
    elsewhere(desk, "other/*.jsonl").write("../other/a.jsonl", many("b", 4))
    for command in ("plan", "run"):
        said = latent(desk.folder, command)
        assert (said.code, said.err.count("\n")) == (1, 1)
        assert f"its own source {desk.source}/**, got {desk.folder}/other/*.jsonl" in said.err
        assert "of its 3 documents 3 would be deleted and 0 changed" in said.err
    planned = latent(desk.folder, "plan", "--change-source", "--json").answer["documents"]
    assert (planned["added"], planned["deleted"]) == (4, 3)
    desk.embed(change_source=True)
    assert desk.embed(engine=None).documents.unchanged == 4
    with pytest.raises(SourceError, match="4 would be deleted"):
        elsewhere(desk, "src/**").embed()


def test_documents_of_another_source_with_the_same_ids_replace_none(desk: Desk) -> None:
    path = desk.write("a.jsonl", many("a", 3))
    desk.embed()
    other = desk.write("../other/a.jsonl", [document(f"a{i}", i + 5) for i in range(3)])
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # so that name, size and time are the same
    with pytest.raises(SourceError, match="0 would be deleted and 3 changed"):
        elsewhere(desk, "other").embed()
    desk.embed(change_source=True)
    assert desk.rows()["a0", 0][0] == "w5"


def test_a_source_that_moved_is_the_same_source(desk: Desk) -> None:
    desk.write("a.jsonl", many("a", 3))
    desk.embed()
    desk.source.rename(desk.folder / "moved")
    assert elsewhere(desk, "moved/**").embed(engine=None).documents.unchanged == 3
    assert desk.embed(engine=None).files_opened == 0


@pytest.mark.parametrize(("wide", "narrow"), [("src/**", "src/a.jsonl"), ("src/*.jsonl", "src/a*.jsonl")])
def test_a_wider_pattern_is_the_same_source_and_one_that_loses_documents_is_another(desk: Desk, wide: str, narrow: str) -> None:
    desk.write("a.jsonl", many("a", 3))
    desk.write("b.jsonl", many("b", 3))
    elsewhere(desk, narrow).embed()
    assert elsewhere(desk, wide).embed().documents.added == 3
    with pytest.raises(SourceError, match="3 would be deleted"):
        elsewhere(desk, narrow).embed()


@pytest.mark.parametrize(
    ("uri", "recorded"),
    [
        ("s3://key:se/cret@bucket/folder/*.parquet?region=x", "s3://bucket/folder/*.parquet"),
        ("s3://bucket/a?endpoint_override=127.0.0.1:9000&scheme=http", "s3://bucket/a"),
        ("az://container/folder/", "abfs://container/folder"),
        ("/data/./docs/../docs/", "../docs"),
        ("/elsewhere/*.md", "../../elsewhere/*.md"),
    ],
)
def test_a_source_is_recorded_without_credentials_and_under_one_spelling(uri: str, recorded: str) -> None:
    assert source.identity(uri, "/data/lancedb") == recorded
    assert source.place_of(recorded, "/data/lancedb") == (recorded if "://" in uri else os.path.normpath(uri))


def test_a_local_source_of_a_table_elsewhere_is_recorded_by_its_path() -> None:
    assert source.identity("/data/docs", "s3://bucket/db") == "/data/docs" == source.place_of("/data/docs", "s3://bucket/db")


def test_a_project_that_is_copied_with_its_table_has_its_source_still(desk: Desk, tmp_path: Path) -> None:
    desk.write("a.jsonl", many("a", 3))
    desk.embed()
    there = Path(shutil.copytree(desk.folder, tmp_path / "copy"))
    copy = Desk(there, there / "config.toml")
    copy.write("a.jsonl", many("b", 4))
    assert copy.embed().documents.deleted == 3


def test_a_table_refuses_vectors_of_another_spec(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    other = desk_for(tmp_path, tokens=32)
    with pytest.raises(SpecMismatch, match=r"holds vectors of .* config asks for .*chunk_tokens: 16 / 32"):
        other.embed()


def test_a_table_knows_its_model_by_digest_wherever_the_folder_lies(
    desk_for: Callable[..., Desk], tmp_path: Path, small_model: Path
) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    shutil.copytree(small_model, tmp_path / "moved")
    assert desk_for(tmp_path, model=str(tmp_path / "moved")).embed().documents.unchanged == 1


def test_two_runs_of_one_table_never_overlap(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    desk.write("a.jsonl", [document("x", 2)])
    with (
        Lease(resolve.resolve_and_check(desk.config).store, "another"),
        pytest.raises(TableBusy, match="being written by run another"),
    ):
        desk.embed()
    assert desk.rows()["x", 0][0] == "w1"
    assert desk.embed().documents.changed == 1


@pytest.mark.parametrize(
    ("stop", "seen"),
    [(KeyboardInterrupt, Interrupted), (SystemExit, SystemExit), (asyncio.CancelledError, asyncio.CancelledError)],
    ids=["Ctrl-C", "SIGTERM", "a flow's time limit"],
)
def test_stopping_keeps_what_is_finished_and_the_next_run_goes_on(desk: Desk, stop: type, seen: type) -> None:
    desk.write("a.jsonl", [{"id": str(i), "text": words(i)} for i in range(100, 400)])

    class Stopped(HereAndNow):
        def work(self, shards):
            yield from super().work(shard for shard in shards[0].split()[:1])
            raise stop

    with pytest.raises(seen, match="150 of 300 documents are committed" if seen is Interrupted else None):
        desk.embed(engine=Stopped)
    assert desk.table().num_rows == 150
    assert [r["status"] for r in desk.side("runs")] == ["interrupted"]
    report = desk.embed()
    assert (report.documents.added, report.documents.unchanged) == (150, 150)
    assert len(desk.rows()) == 300


def test_the_table_of_runs_says_why_a_run_failed_was_stopped_or_is_taken_for_dead(desk: Desk, latent: Latent) -> None:
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    place = resolve.store_of(desk.config)

    def ending(error: BaseException) -> None:
        class Ending(HereAndNow):
            def work(self, shards):
                raise error
                yield

        desk.write("a.jsonl", [document("x", 2)])
        with pytest.raises((Exception, KeyboardInterrupt)):
            desk.embed(engine=Ending)

    ending(KeyboardInterrupt())
    ending(EngineError("Ray at 'local' does not start: no room"))
    ending(OSError("GET s3://user:canary@bucket/x?sig=canary failed\nand more of it"))
    desk.config_path.write_text(desk.config_path.read_text().replace("src/**", "none/**"))
    with pytest.raises(SourceError):  # before it has the table to itself
        desk.embed()
    desk.config_path.write_text(desk.config_path.read_text().replace("none/**", "src/**"))
    rows = store.read_runs(place).to_pylist()
    store.write_runs(place, pa.Table.from_pylist([rows[-1] | {"run_id": "dead", "status": "running"}], schema=RUNS))
    desk.embed()
    found = [(row["status"], row["reason"]) for row in runs(desk.config)]
    done, source, crashed, engine, stopped, *rest = found
    assert done == ("done", None)
    assert source[0] == "failed"
    assert "no such file or folder" in source[1]
    assert crashed == ("failed", "OSError: GET s3://bucket/x failed")
    assert engine == ("failed", "Ray at 'local' does not start: no room")
    assert stopped == ("interrupted", "stopped by KeyboardInterrupt")
    assert dict(rest)["died"].startswith("its process was killed, or its machine failed: run ")
    assert engine[1] in latent(desk.folder, "runs").out
    assert engine[1] in latent(desk.folder, "status").out
    assert engine[1] in {row["reason"] for row in latent(desk.folder, "runs", "--json").answer["runs"]}


def test_a_table_of_runs_that_an_earlier_version_made_gains_the_reason(desk: Desk) -> None:
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    place = resolve.store_of(desk.config)
    place.open("runs").drop_columns(["reason"])
    assert [row["reason"] for row in runs(desk.config)] == [None]
    desk.write("a.jsonl", [document("x", 2)])
    desk.embed()
    assert [(row["status"], row["reason"]) for row in runs(desk.config)] == [("done", None)] * 2
    assert "reason" in place.open("runs").schema.names


def test_a_run_that_ends_before_it_has_the_table_hides_no_failure_of_the_one_before(desk: Desk) -> None:
    """The last commit of a run that failed may still be on its way: the next one that writes fences it out."""
    desk.write("a.jsonl", [document("x", 1)])
    desk.embed()
    place = resolve.store_of(desk.config)
    rows = store.read_runs(place).to_pylist()
    store.write_runs(place, pa.Table.from_pylist([rows[0] | {"status": "failed"}], schema=RUNS))
    later = {"run_id": "later", "started_at": dt.datetime.now(dt.UTC), "status": "interrupted", "table_version": None}
    store.write_runs(place, pa.Table.from_pylist([rows[0] | later], schema=RUNS))
    desk.write("a.jsonl", [document("x", 2)])
    desk.embed()
    assert any(version.what.startswith("fence: ") for version in store.versions(place, 20))
    with pytest.raises(QueryError, match="no run 'later'"):
        rollback.version_of(place, "later")


def test_the_version_of_a_report_is_the_newest_once_indexes_are_made(desk: Desk, latent: Latent) -> None:
    desk.write("a.jsonl", [document(str(i), i) for i in range(100, 200)])
    report = desk.embed()
    maintenance.maintain(desk.config)
    newest = maintenance.report_as_of_now(desk.config, report).table_version
    assert newest == resolve.store_of(desk.config).opened().version > report.table_version
    assert latent(desk.folder, "run", "--json").answer["table_version"] == newest
    assert [row["table_version"] for row in runs(desk.config)] == [newest]
    assert runs(desk.config)[0]["report"]["table_version"] == newest


def test_tokens_per_second_are_those_of_the_job_by_its_seconds_in_plan_and_run(desk: Desk) -> None:
    desk.write("a.jsonl", [document(str(i), i) for i in range(100, 200)])
    for report in (run.plan(desk.config), desk.embed()):
        assert report.tokens_per_second == pytest.approx(report.tokens / report.seconds, rel=0.1)


def test_other_settings_for_reading_open_every_file_again(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", [document("x", 1) | {"title": "w7"}])
    desk.embed()
    os.environ["LATENT_SOURCE__TEXT"] = '["title", "text"]'
    try:
        report = desk.embed()
    finally:
        del os.environ["LATENT_SOURCE__TEXT"]
    assert (report.files_opened, report.documents.changed) == (1, 1)
    assert desk.rows()["x", 0][0] == "w7\n\nw1"


def test_plan_counts_what_run_does_and_writes_nothing(desk: Desk) -> None:
    desk.write("a.jsonl", [document(str(i), i, i + 1) for i in range(100, 200)])
    planned = run.plan(desk.config)
    assert not (desk.folder / "data").exists()
    done = desk.embed()
    assert planned.documents == done.documents
    assert planned.tokens == pytest.approx(done.tokens, rel=0.1)
    assert planned.seconds > 0


# --- the law: incremental = from scratch ----------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path, list[dict[str, object]]], None]] = {
    "jsonl": lambda path, rows: path.write_text(
        "".join(f'{{"id": "{r["id"]}", "text": "{r["text"]}", "n": {r["n"]}}}\n' for r in rows)
    ),
    "jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress("".join(f'{{"id": "{r["id"]}", "text": "{r["text"]}", "n": {r["n"]}}}\n' for r in rows).encode())
    ),
    "csv": lambda path, rows: pa.csv.write_csv(_columns(rows), path),
    "parquet": lambda path, rows: pq.write_table(_columns(rows), path, row_group_size=2),
}


def _columns(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())]))


class Body:
    """A body of documents in files, changed at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.files: dict[str, list[dict[str, object]]] = {}
        self.born = 0

    def step(self) -> None:
        moves = [self.add, self.add, self.edit, self.move, self.delete, self.rename, self.retag, self.copy]
        for _ in range(self.random.randint(1, 4)):
            self.random.choice(moves)()

    def text(self) -> str:
        numbers = (self.random.choice([*range(100, 130), 13]) for _ in range(self.random.randint(1, 40)))
        return words(*numbers) if self.random.random() < 0.9 else ""

    def some(self) -> tuple[list[dict[str, object]], int] | None:
        rows = [rows for rows in self.files.values() if rows]
        if not rows:
            return None
        chosen = self.random.choice(rows)
        return chosen, self.random.randrange(len(chosen))

    def some_file(self) -> list[dict[str, object]]:
        if not self.files or (len(self.files) < 4 and self.random.random() < 0.4):
            self.born += 1
            self.files.setdefault(f"{self.random.choice('abcd')}{self.born}.{self.random.choice(list(WRITERS))}", [])
        return self.random.choice(list(self.files.values()))

    def add(self) -> None:
        self.born += 1
        row = {"id": f"d{self.born}", "text": self.text(), "n": self.random.randint(0, 3)}
        rows = self.some_file()
        rows.insert(self.random.randint(0, len(rows)), row)

    def edit(self) -> None:
        if found := self.some():
            found[0][found[1]] = found[0][found[1]] | {"text": self.text()}

    def retag(self) -> None:
        if found := self.some():
            found[0][found[1]] = found[0][found[1]] | {"n": self.random.randint(0, 3)}

    def delete(self) -> None:
        if found := self.some():
            found[0].pop(found[1])

    def move(self) -> None:
        if found := self.some():
            self.some_file().append(found[0].pop(found[1]))

    def copy(self) -> None:
        """The same id in another file, perhaps with another text."""
        if found := self.some():
            self.some_file().append(found[0][found[1]] | ({"text": self.text()} if self.random.random() < 0.5 else {}))

    def rename(self) -> None:
        if self.files:
            name = self.random.choice(list(self.files))
            self.born += 1
            self.files[f"{self.random.choice('abcd')}{self.born}.{name.partition('.')[2]}"] = self.files.pop(name)

    def write(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.name not in self.files:
                path.unlink()
        for name, rows in self.files.items():
            before = (folder / name).read_bytes() if (folder / name).exists() else None
            WRITERS[name.partition(".")[2]](folder / "new", rows)
            if (folder / "new").read_bytes() == before:
                (folder / "new").unlink()
            else:
                (folder / "new").replace(folder / name)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_incremental_equals_from_scratch(
    seed: int, desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = Body(seed)
    lasting = desk_for(tmp_path_factory.mktemp("lasting"), metadata=["n"])
    for step in range(5):
        body.step()
        body.write(lasting.source)
        if not any(body.files.values()) and not (lasting.folder / "data").exists():
            continue  # the types of metadata are those of the first documents
        lasting.embed(allow_deletions=True)
        fresh = desk_for(tmp_path_factory.mktemp("fresh"), metadata=["n"])
        shutil.copytree(lasting.source, fresh.source, dirs_exist_ok=True)
        fresh.embed()
        assert lasting.rows() == fresh.rows(), f"seed {seed}, step {step}"
        ours, theirs = lasting.vectors(), fresh.vectors()
        for key, vector in ours.items():
            np.testing.assert_allclose(vector, theirs[key], atol=1e-5)
        reasons = [
            sorted((str(q["doc_id"]), q["source_file"], q["reason"]) for q in d.side("quarantine")) for d in (lasting, fresh)
        ]
        assert reasons[0] == reasons[1], f"seed {seed}, step {step}"
        assert [check for check in verify(lasting.config) if not check.ok] == [], f"seed {seed}, step {step}"


@pytest.mark.parametrize(
    ("ray", "shards"), [("workers = 1", 64), ("workers = 10", 160), ("workers = [1, 1000]", 500), ("gpus_per_worker = 1", 64)]
)
def test_a_source_is_cut_into_so_many_shards_that_all_workers_have_some_to_do(desk_for, tmp_path, monkeypatch, ray, shards):
    monkeypatch.setattr("latent.ingest.plan.SHARD_CHARS", (50, 10**6))
    desk = desk_for(tmp_path, more=f"[ray]\n{ray}\n")
    desk.write("a.jsonl", ({"id": f"d{i}", "text": words(i % 9, 1, 2, 3)} for i in range(2000)))  # 11 characters each
    planned = scan.scan(resolve.resolve_and_check(desk.config), "run", run.quiet).plan.shards
    assert len(planned) == pytest.approx(shards, rel=0.15)
    assert sum(map(len, planned)) == 2000
    assert max(map(len, planned)) < 3 * 2000 / shards


def test_shards_on_gpus_are_larger_in_large_runs(desk_for, tmp_path, monkeypatch):
    monkeypatch.setattr("latent.ingest.plan.SHARD_CHARS", (1, 100))
    desk = desk_for(tmp_path, more="[ray]\nworkers = 1\n")
    desk.write("a.jsonl", ({"id": f"d{i}", "text": words(i % 9, 1, 2, 3)} for i in range(2000)))

    def planned(gpus: float) -> int:
        config = desk.config.model_copy(update={"ray": desk.config.ray.model_copy(update={"gpus_per_worker": gpus})})
        return len(scan.scan(resolve.resolve_and_check(config), "run", run.quiet).plan.shards)

    assert planned(0) == 223
    assert planned(1) == 65
