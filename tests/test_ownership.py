"""Tables that latent did not make, beside those that it did: none is written, emptied, or dropped."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import lance
import lancedb
import pyarrow as pa
import pytest
from conftest import Desk, HereAndNow, Latent, save_small_model, words

from latent import migration as migrate
from latent import store
from latent.analysis.report import analyze
from latent.errors import ForeignTable, QueryError, TableBusy
from latent.ingest import maintenance, rollback
from latent.ingest.resolve import store_of
from latent.ingest.verify import verify
from latent.store import exclusive_writer

SIDES = ("files", "quarantine", "runs")
DERIVED = ("clusters", "assignments", "map", "duplicates", "redundant", "outliers", "analysis", "compressed", "codec")
SUCCESSOR = ("next", "next.files", "next.quarantine", "next.runs")
OLD = [f"docs_{name}" for name in (*SIDES, *DERIVED, "spared")] + ["docs-next", "docs-next_files", "docs-next_runs"]
COMMANDS = [
    ["duplicates"],
    ["cluster", "-k", "2"],
    ["map"],
    ["compress", "--write", "full-int4"],
    ["migrate", "--switch"],
]


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("other"), seed=2)


def foreign(desk: Desk, *names: str) -> dict[str, str]:
    """Tables of plain lancedb's making, and what is in their files."""
    connection = lancedb.connect(store_of(desk.config).uri)
    for name in names:
        connection.create_table(name, pa.table({"chunk_id": ["theirs"], "cluster_id": [1]}))
    return content(desk, *names)


def content(desk: Desk, *names: str) -> dict[str, str]:
    """Each file of these tables → the digest of its bytes."""
    place = Path(store_of(desk.config).uri)
    files = [file for name in names for file in (place / f"{name}.lance").rglob("*") if file.is_file()]
    return {str(file): hashlib.blake2b(file.read_bytes()).hexdigest() for file in files}


def filled(desk: Desk, count: int = 60) -> Desk:
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(i, i + 1, i + 2)} for i in range(20, 20 + count)])
    return desk


def tables(desk: Desk) -> set[str]:
    return set(lancedb.connect(store_of(desk.config).uri).list_tables().tables)


def test_tables_of_others_stay_as_they_are_whatever_is_run_beside_them(
    desk: Desk, latent: Latent, other_model: Path
) -> None:  # 20 s: all commands that write
    theirs = [*OLD, *(f"docs.{name}" for name in (*DERIVED, *SUCCESSOR))]
    before = foreign(filled(desk), *theirs)
    desk.embed()
    for command in COMMANDS:
        asked = [*command, "--model", other_model] if command[0] == "migrate" else command
        done = latent(desk.folder, *asked)
        said = done.err.strip().splitlines()[-1]
        assert done.code == 1, (command, done)
        assert ": expected a table that latent made beside 'docs', got one of another program. Rename or drop it" in said
    with pytest.raises(ForeignTable, match=r"table 'docs\.analysis' at "):
        analyze(desk.config)
    first = desk.table().num_rows
    maintenance.maintain(desk.config)
    rollback.rollback(desk.config, "1")
    desk.embed()
    for command in ("status", "verify"):
        assert latent(desk.folder, command).code == 0, command
    assert content(desk, *theirs) == before
    assert desk.table().num_rows == first


@pytest.mark.parametrize("side", SIDES)
def test_no_table_is_begun_where_another_program_has_one_of_its_side_tables(desk: Desk, side: str) -> None:
    before = foreign(filled(desk), f"docs.{side}")
    with pytest.raises(
        ForeignTable, match=rf"table 'docs\.{side}' at .*: expected a table that latent made beside 'docs', got one of"
    ):
        desk.embed()
    assert tables(desk) == {f"docs.{side}"}
    assert content(desk, f"docs.{side}") == before


@pytest.mark.parametrize("command", [["run"], ["plan"], ["maintain"], ["rollback", "1"], ["pause"], *COMMANDS[:4]])
def test_a_main_table_of_another_program_is_refused_before_anything_is_written(
    desk: Desk, latent: Latent, command: list[str]
) -> None:
    before = foreign(filled(desk), "docs")
    done = latent(desk.folder, *command)
    assert done.code == 1
    assert "table 'docs' at" in done.err
    assert ": expected a table that latent made, got one of another program. Set [table] name to a new name" in done.err
    assert tables(desk) == {"docs"}
    assert content(desk, "docs") == before


def test_a_main_table_that_was_dropped_is_made_anew_and_nothing_of_the_old_one_counts(desk: Desk) -> None:
    filled(desk)
    first = desk.embed()
    store.write_derived(store_of(desk.config), {"clusters": pa.table({"cluster_id": [1]})}, {"table_version": 2})
    before = foreign(desk, "docs.map")
    lancedb.connect(store_of(desk.config).uri).drop_table("docs")
    report = desk.embed()
    assert (report.documents.added, report.documents.unchanged) == (60, 0)
    assert store.read_derived(store_of(desk.config), "clusters") is None
    assert content(desk, "docs.map") == before
    with pytest.raises(QueryError, match=r"no run .*: give a version's number or a run"):
        rollback.rollback(desk.config, str(first.run_id))
    assert all(check.ok for check in verify(desk.config))


def test_a_main_table_that_another_one_took_the_place_of_keeps_off_its_side_tables(desk: Desk) -> None:
    filled(desk).embed()
    connection = lancedb.connect(store_of(desk.config).uri)
    connection.drop_table("docs")
    before = foreign(desk, "docs") | content(desk, "docs.files", "docs.runs")
    with pytest.raises(ForeignTable, match="expected a table that latent made, got one of another program"):
        desk.embed()
    assert content(desk, "docs", "docs.files", "docs.runs") == before


def test_a_table_that_another_program_wrote_over_comes_back_by_rollback(desk: Desk) -> None:
    filled(desk).embed()
    before, version = desk.rows(), store_of(desk.config).opened().version
    lancedb.connect(store_of(desk.config).uri).create_table("docs", pa.table({"a": [1]}), mode="overwrite")
    with pytest.raises(ForeignTable, match=f"another program put in its place. Run 'latent rollback {version}' to have it back"):
        desk.embed()
    rollback.rollback(desk.config, str(version))
    assert desk.rows() == before
    assert desk.embed().documents.unchanged == 60


def test_side_tables_of_another_table_are_not_taken_for_its_own(desk: Desk, desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    other = filled(desk_for(tmp_path / "other"))
    filled(desk).embed()
    other.embed()
    mine, theirs = (Path(store_of(each.config).uri) for each in (desk, other))
    shutil.rmtree(mine / "docs.runs.lance")
    shutil.copytree(theirs / "docs.runs.lance", mine / "docs.runs.lance")
    desk.write("b.jsonl", [{"id": "new", "text": words(1)}])
    with pytest.raises(ForeignTable, match=r"'docs\.runs' at .* got one that belongs to another table"):
        desk.embed()


def test_a_table_and_one_called_next_beside_it_do_not_touch_each_other(desk: Desk, other_model: Path) -> None:
    other = Desk(desk.folder, desk.folder / "next.toml")
    other.config_path.write_text(desk.config_path.read_text() + '[table]\nname = "docs-next"\n')
    filled(desk).embed()
    other.embed()
    names = [f"docs-next{side}" for side in ("", *(f".{side}" for side in SIDES))]
    before = content(desk, *names)
    assert migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow).table_version is None
    with pytest.raises(QueryError, match="already"):
        migrate.migrate(desk.config, {"name": desk.config.model.name}, engine=HereAndNow)
    assert migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow, switch=True).table_version
    assert content(desk, *names) == before
    assert other.embed().documents.unchanged == 60
    assert not any("docs.next" in name for name in tables(desk))


def test_a_second_migration_is_refused_while_the_first_runs(desk: Desk, other_model: Path) -> None:
    filled(desk).embed()

    class Slow(HereAndNow):
        def work(self, shards):
            with pytest.raises(TableBusy, match=r"migration .* is under way: stop it, or wait for it"):
                migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow)
            yield from super().work(shards)

    assert migrate.migrate(desk.config, {"name": str(other_model)}, engine=Slow, switch=True).table_version


def test_naming_the_present_model_leaves_a_candidate_that_was_not_switched_to(desk: Desk, other_model: Path) -> None:
    filled(desk).embed()
    migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow)
    before = content(desk, "docs.next")
    with pytest.raises(QueryError, match="already"):
        migrate.migrate(desk.config, {"name": desk.config.model.name}, engine=HereAndNow)
    assert content(desk, "docs.next") == before != {}


def test_what_a_killed_removal_left_of_a_candidate_goes_with_the_next(desk: Desk, other_model: Path) -> None:
    filled(desk).embed()
    migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow)
    place = Path(store_of(desk.config).uri)
    shutil.rmtree(place / "docs.next.lance/_versions")
    shutil.rmtree(place / "docs.next.files.lance")
    with pytest.raises(QueryError, match="already"):
        migrate.migrate(desk.config, {"name": desk.config.model.name}, engine=HereAndNow)
    assert sorted(path.name for path in place.glob("docs.next*")) == []


def test_what_was_worked_out_waits_for_a_run_that_writes(desk: Desk) -> None:
    filled(desk).embed()
    place = store_of(desk.config)
    with exclusive_writer(place, "night"):
        writer = threading.Thread(target=store.write_derived, args=(place, {"map": pa.table({"x": [1.0]})}, {"table_version": 2}))
        writer.start()
        time.sleep(1.0)
        assert store.read_derived(place, "map") is None
    writer.join()
    assert store.read_derived(place, "map").rows.num_rows == 1


def test_the_mark_stays_through_migration_rollback_and_maintenance(desk: Desk, other_model: Path) -> None:
    filled(desk).embed()
    place = store_of(desk.config)

    def marks() -> set[str]:
        main = place.opened().schema.metadata[b"latent.table"].decode()
        beside = (lance.dataset(place.path(side)).schema.metadata[b"latent.owner"].decode() for side in SIDES)
        return {main, *beside}

    (identity,) = marks()
    done = migrate.migrate(desk.config, {"name": str(other_model)}, engine=HereAndNow, switch=True)
    assert marks() == {identity}
    rollback.rollback(desk.config, str(done.former_version))
    maintenance.maintain(desk.config)
    assert marks() == {identity}
    assert json.dumps(identity) not in json.dumps([row["report"] for row in desk.side("runs")])
