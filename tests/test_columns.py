"""Metadata columns more, fewer, or in another order: the table is changed in place and no vector is made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lancedb
import pytest
from conftest import Desk, HereAndNow, Latent

from latent import store
from latent.errors import SpecMismatch, StoreError
from latent.ingest import backfill, maintenance, resolve, rollback, run, scan
from latent.ingest.verify import verify
from latent.types import Progress, Report, Shard

DOCUMENTS = [{"id": f"d{i}", "text": f"w{i} w{i + 1}", "a": i, "b": f"b{i}", "lang": "en" if i else None} for i in range(6)]
FILES = {"x.jsonl": DOCUMENTS[:3], "y.jsonl": DOCUMENTS[3:]}


@pytest.fixture
def with_columns(desk_for: Callable[..., Desk], tmp_path: Path) -> Callable[..., Desk]:
    """The desk, its config naming these metadata columns."""

    def make(*names: str) -> Desk:
        desk = desk_for(tmp_path, metadata=names)
        if not list(desk.source.iterdir()):
            for name, documents in FILES.items():
                desk.write(name, documents)
        return desk

    return make


def values(desk: Desk) -> list[dict[str, object]]:
    """The documents in the table, as far as the config asks for them."""
    names = ["doc_id", *desk.config.source.metadata]
    return sorted(desk.table().select(names).to_pylist(), key=lambda row: str(row["doc_id"]))


def expected(*names: str) -> list[dict[str, object]]:
    return [{"doc_id": d["id"]} | {name: d[name] for name in names} for d in DOCUMENTS]


def outcome(report: Report) -> tuple[int, int, int, int]:
    return report.documents.changed, report.documents.unchanged, report.chunks.encoded, report.chunks.reused


def test_metadata_columns_in_another_order_change_nothing(with_columns: Callable[..., Desk]) -> None:
    version = with_columns("a", "b").embed().table_version
    report = with_columns("b", "a").embed(engine=None)  # starts no workers
    assert (outcome(report), report.files_opened, report.table_version) == ((0, 6, 0, 0), 0, version)


def test_documents_added_under_another_order_of_columns_have_their_values(with_columns: Callable[..., Desk]) -> None:
    with_columns("a", "b").embed()
    desk = with_columns("b", "a")
    desk.write("z.jsonl", [{"id": "new", "text": "w9", "a": 9, "b": "b9"}])
    assert desk.embed().documents.added == 1
    assert values(desk)[-1] == {"doc_id": "new", "a": 9, "b": "b9"}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        (["a"], ["a", "lang"], 5),  # one has no value in it, as the table has it
        (["a"], ["lang", "b", "a"], 6),
        ([], ["b"], 6),
        (["a", "b"], ["a"], 6),
        (["a", "b"], [], 6),
        (["a"], ["b"], 6),
    ],
)
def test_other_metadata_columns_are_taken_in_place_and_nothing_is_encoded(with_columns, before, after, changed):
    with_columns(*before).embed()
    desk = with_columns(*after)
    planned = run.plan(desk.config)
    assert outcome(planned) == (changed, 6 - changed, 0, changed)
    assert set(planned.columns_added) == set(after) - set(before)
    assert set(planned.columns_dropped) == set(before) - set(after)
    assert outcome(desk.embed()) == (changed, 6 - changed, 0, changed)
    assert values(desk) == expected(*after)
    assert set(desk.table().column_names) & {"a", "b", "lang"} == set(after)
    assert desk.embed(engine=None).files_opened == 0
    assert all(check.ok for check in verify(desk.config))


def test_columns_of_an_empty_table_are_taken_in_place(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a")
    kept = {path: path.read_text() for path in desk.source.iterdir()}
    desk.write("x.jsonl", [{"id": "d0", "text": "", "a": 0}])
    desk.write("y.jsonl", [{"id": "d1", "text": "", "a": 0}])
    desk.embed()
    for path, text in kept.items():
        path.write_text(text)
    desk = with_columns("b", "lang")
    desk.embed()
    assert values(desk) == expected("b", "lang")


def test_a_column_dropped_and_taken_back_has_its_values_again(with_columns: Callable[..., Desk]) -> None:
    for names in (["a", "b"], ["a"], ["a", "b"]):
        desk = with_columns(*names)
        desk.embed()
    assert values(desk) == expected("a", "b")


class Dying(HereAndNow):
    """Its driver dies after the first shard that is committed."""

    def work(self, shards):
        for shard in shards:
            for half in shard.split() if len(shard) == len(DOCUMENTS) else [shard]:
                yield from super().work([Shard(half.slices)])
                raise KeyboardInterrupt


@pytest.mark.parametrize("then", [["a", "b"], ["a"], ["a", "lang"]])
def test_a_run_killed_while_columns_change_is_gone_on_with_or_taken_back(with_columns, then):
    with_columns("a", "b").embed()
    with pytest.raises(run.Interrupted):
        with_columns("a", "lang").embed(engine=Dying)
    desk = with_columns(*then)
    assert desk.embed().chunks.encoded == 0
    assert values(desk) == expected(*then)
    assert all(check.ok for check in verify(desk.config))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("then", [["a", "b"], ["a", "lang"]])
def test_a_run_killed_between_two_steps_of_a_change_is_gone_on_with_or_taken_back(with_columns, steps, then):
    desk = with_columns("a", "b")
    version = desk.embed().table_version
    place = resolve.store_of(desk.config)
    scan_plan = scan.scan(resolve.resolve_and_check(with_columns("a", "lang").config), "r", run.quiet)
    kept = scan_plan.metadata.remove(scan_plan.metadata.get_field_index("lang"))
    with store.exclusive_writer(place, "r") as lease:
        for metadata in (kept, scan_plan.metadata)[:steps]:
            version = store.adapt(place, lease, metadata, scan_plan.source, version)
    desk = with_columns(*then)
    assert desk.embed().chunks.encoded == 0
    assert values(desk) == expected(*then)


def test_a_backfill_leaves_the_columns_of_a_run_that_came_meanwhile(with_columns: Callable[..., Desk]) -> None:
    class GivesWay(HereAndNow):
        """Ends its turn after the first half."""

        def work(self, shards):
            yield from super().work(next(iter(shards)).split()[:1])

    def meanwhile(moment: Progress) -> None:
        if moment.phase == "done":
            with_columns("a", "lang").embed()

    with pytest.raises(SpecMismatch, match=r"expected metadata columns \['a'\], got \['a', 'lang'\]"):
        backfill.backfill(with_columns("a").config, meanwhile, engine=GivesWay)
    assert values(with_columns("a", "lang")) == expected("a", "lang")[:3]  # the others are left to the backfill


def test_a_reader_sees_whole_rows_before_a_change_of_columns_and_after(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a", "b")
    desk.embed()
    reader = resolve.store_of(desk.config).opened()
    with_columns("a", "lang").embed()
    assert reader.to_table(columns=["b"])["b"].null_count == 0
    assert "lang" not in reader.schema.names


def test_rollback_over_a_change_of_columns_brings_the_dropped_one_back(with_columns: Callable[..., Desk]) -> None:
    version = with_columns("a", "b").embed().table_version
    with_columns("a", "lang").embed()
    desk = with_columns("a", "b")
    rollback.rollback(desk.config, str(version))
    assert values(desk) == expected("a", "b")
    assert desk.embed(engine=None).documents.unchanged == 6


def test_indexes_and_compaction_go_with_the_columns(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a", "b")
    desk.embed()
    place = resolve.store_of(desk.config)
    place.opened().create_scalar_index("b", "BITMAP")
    place.opened().create_scalar_index("doc_id", "BTREE")
    desk = with_columns("a", "lang")
    desk.embed()
    maintenance.maintain(desk.config)
    assert values(desk) == expected("a", "lang")
    assert not any("b" in index.columns for index in store.indexes(place))
    assert place.opened().to_table(filter="doc_id = 'd3'", columns=["lang"])["lang"].to_pylist() == ["en"]


def test_a_column_of_another_program_is_named_and_stays(with_columns: Callable[..., Desk], latent: Latent) -> None:
    desk = with_columns("a")
    desk.embed()
    connection = lancedb.connect(desk.config.table.uri)
    connection.open_table("docs").add_columns({"theirs": "a + 1"})
    for config in (desk.config, with_columns("a", "theirs").config, with_columns().config):
        with pytest.raises(SpecMismatch, match="got theirs from another program") as caught:
            run.plan(config)
    said = latent(desk.folder, "run")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert desk.table()["theirs"].to_pylist() == [1, 2, 3, 4, 5, 6]
    way_back = str(caught.value).rpartition(": ")[2]
    eval(way_back, {"lancedb": lancedb})  # as the message tells it
    assert with_columns("a").embed(engine=None).documents.unchanged == 6


def test_a_column_that_another_program_renamed_is_not_dropped(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a", "b")
    desk.embed()
    lancedb.connect(desk.config.table.uri).open_table("docs").alter_columns({"path": "b", "rename": "theirs"})
    with pytest.raises(SpecMismatch, match="got theirs from another program"):
        desk.embed()


def test_a_column_that_another_program_dropped_is_filled_again(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a", "b")
    desk.embed()
    lancedb.connect(desk.config.table.uri).open_table("docs").drop_columns(["b"])
    assert run.plan(desk.config).columns_added == ("b",)
    assert desk.embed().chunks.encoded == 0
    assert values(desk) == expected("a", "b")


def test_columns_do_not_change_where_rows_were_changed_meanwhile(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a")
    version = desk.embed().table_version
    place = resolve.store_of(desk.config)
    place.opened().delete("doc_id = 'd1'")
    with store.exclusive_writer(place, "r") as lease, pytest.raises(StoreError, match="changed by another program"):
        store.adapt(place, lease, store.metadata_fields(place).remove(0), "elsewhere", version)
    assert "a" in desk.table().column_names


def test_a_table_without_marks_keeps_its_columns_and_gains_the_marks(with_columns: Callable[..., Desk]) -> None:
    desk = with_columns("a")
    desk.embed()
    place = resolve.store_of(desk.config)
    table = place.opened()
    table.update_field_metadata({"a": {}}, replace=True)
    table.update_schema_metadata({"latent.source": None})
    assert outcome(desk.embed(engine=None)) == (0, 6, 0, 0)
    assert store.source_of(place) == "../../src/**"
    place.opened().add_columns({"theirs": "a + 1"})
    with pytest.raises(SpecMismatch, match="theirs"):
        desk.embed()
