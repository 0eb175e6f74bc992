"""Search over a table large enough for an index."""

from __future__ import annotations

import datetime as dt
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, Latent, save_small_model, words
from hypothesis import given, settings
from hypothesis import strategies as st

from latent import open_table, store
from latent.cli.output import looking
from latent.errors import QueryError, StoreError
from latent.ingest import maintenance
from latent.ingest.resolve import store_of
from latent.store.tuning import SAME, draw


@pytest.fixture(scope="module")
def large(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """20,000 passages of 256 numbers: enough for an index to be faster than exact search. Maintained."""
    model = save_small_model(tmp_path_factory.mktemp("model"), dim=256)
    desk = desk_for(tmp_path_factory.mktemp("large"), metadata=["n", "kind", "long", "tags"], model=str(model))
    chance = random.Random(3)
    texts = (words(*(chance.randrange(20, 500) for _ in range(8))) for _ in range(20_000))
    kinds = ("even", "odd")
    desk.write(
        "a.jsonl",
        [
            {"id": str(i), "text": text, "n": i, "kind": kinds[i % 2], "long": text * 8, "tags": [f"t{i % 7}"]}
            for i, text in enumerate(texts)
        ],
    )
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


def kept(desk: Desk) -> store.Tuning | None:
    return store.read_tuning(store_of(desk.config).opened())


def shared_with_exact(desk: Desk, where: str | None = None) -> float:
    """Of ten hits, how many exact search finds too, on average."""
    table = open_table(desk.config_path)
    queries = [words(i, i + 1, i + 2) for i in range(30, 60)]
    exact, indexed = (table.search_batch(queries, 10, where, exact=exact) for exact in (True, False))
    return sum(len({h.chunk_id for h in a} & {h.chunk_id for h in b}) for a, b in zip(exact, indexed, strict=True)) / 30


def test_maintain_tunes_an_index_for_the_stated_recall_and_searches_use_it(large: Desk) -> None:
    tuning = kept(large)
    assert tuning.wanted == 0.95 <= tuning.recall
    assert tuning.nprobes
    assert tuning.milliseconds < tuning.exact_milliseconds
    assert "vector" in {column for index in store.indexes(store_of(large.config)) for column in index.columns}
    assert shared_with_exact(large) >= 9


def test_a_plain_client_that_looks_as_far_as_status_tells_has_the_recall(large: Desk) -> None:
    tuning, trial = kept(large), draw(store_of(large.config).opened())
    plain = lancedb.connect(large.folder / "data/lancedb").open_table("docs")
    near = 0
    for query, tenth in zip(trial.queries, trial.tenth, strict=True):
        asked = plain.search(query).distance_type("cosine").nprobes(tuning.nprobes).refine_factor(tuning.refine_factor)
        found = asked.select(["chunk_id", "_distance"]).limit(11).to_arrow()["_distance"].to_numpy()
        near += min(int((1 - found >= tenth - SAME).sum()) - 1, 10)  # itself not counted
    assert near / len(trial.queries) / 10 >= tuning.wanted


def test_recall_is_held_under_a_filter_that_many_or_few_rows_meet(large: Desk) -> None:
    assert kept(large).filtered >= 0.95
    for where in ("kind = 'odd'", "n % 100 = 3", "n < 40"):
        assert shared_with_exact(large, where) >= 9


@pytest.mark.parametrize(
    ("rows", "told"), [(320_000, "0.970, exact under a filter"), (320_001, "0.980 under a filter that a sixteenth")]
)
def test_status_tells_a_recall_under_a_filter_only_where_the_index_was_asked(rows: int, told: str) -> None:
    assert told in looking(store.Tuning(0.95, 20, 5, 0.97, 0.98, 3.0, 9.0, rows, 1, rows))


def test_another_recall_is_tuned_for_without_training_the_index_anew(large: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    files = index_files(large)
    monkeypatch.setenv("LATENT_INDEX__RECALL", "0.9")
    lower = maintenance.maintain(large.config).tuning
    monkeypatch.undo()
    again = maintenance.maintain(large.config).tuning
    assert (lower.wanted, again.wanted) == (0.9, 0.95)
    if lower.nprobes and again.nprobes:  # on a busy machine exact search may have been as fast for a moment: then there is no index
        assert files == index_files(large)


def index_files(desk: Desk) -> set[str]:
    return {str(path) for path in (desk.folder / "data/lancedb/docs.lance/_indices").rglob("*") if path.is_file()}


def test_where_no_index_holds_the_recall_searches_are_exact(large: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent.store.tuning.NPROBES", (1,))
    monkeypatch.setenv("LATENT_INDEX__RECALL", "1.0")
    tuning = maintenance.maintain(large.config).tuning
    assert tuning == kept(large)
    assert (tuning.nprobes, tuning.recall) == (0, 1.0)
    assert "vector" not in {column for index in store.indexes(store_of(large.config)) for column in index.columns}
    assert shared_with_exact(large) == 10
    monkeypatch.undo()
    assert maintenance.maintain(large.config).tuning.nprobes


def test_new_rows_are_found_at_once_and_folded_in_without_training_or_measuring(large: Desk) -> None:
    before, files = kept(large), index_files(large)
    table = open_table(large.config_path)
    assert table.search(words(1, 2, 3), k=1)[0].doc_id != "new"
    large.write("b.jsonl", [{"id": "new", "text": words(1, 2, 3), "n": -1, "kind": "new", "long": "", "tags": []}])
    large.embed()
    assert {index.behind for index in store.indexes(store_of(large.config))} == {1}
    for mode in ("vector", "text", "hybrid"):
        assert table.search(words(1, 2, 3), k=1, mode=mode)[0].doc_id == "new", mode  # the table that was open sees it
    assert table.search(words(9), k=5, where="kind = 'new'")[0].doc_id == "new"
    maintenance.maintain(large.config)
    assert {index.behind for index in store.indexes(store_of(large.config)) if index.kind != "BTree"} == {0}
    assert kept(large) == before
    assert files <= index_files(large)
    assert table.search(words(1, 2, 3), k=1)[0].doc_id == "new"


def test_many_filters_at_once_from_many_threads(large: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent.store.reader.PLANS_KEPT", 2)
    table, before = open_table(large.config_path), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i: table.search(words(40), k=1, where=f"n = {i % 20}", mode="vector"), range(200)))
    finally:
        sys.setswitchinterval(before)
    assert [hits[0].metadata["n"] for hits in found] == [i % 20 for i in range(200)]


def test_columns_are_indexed_where_that_helps_a_condition(large: Desk) -> None:
    kinds = {index.columns[0]: index.kind for index in store.indexes(store_of(large.config))}
    assert kinds.items() >= {"n": "BTree", "kind": "Bitmap", "tags": "LabelList", "doc_id": "BTree", "chunk_hash": "BTree"}.items()
    assert "long" not in kinds
    hits = open_table(large.config_path).search(words(40), k=3, where="array_has(tags, 't3')")
    assert [hit.metadata["tags"] for hit in hits] == [["t3"]] * 3


def test_a_small_table_has_no_index_but_of_words(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": str(i), "text": words(i)} for i in range(30)])
    desk.embed()
    assert maintenance.maintain(desk.config).tuning is None
    assert [index.kind for index in store.indexes(store_of(desk.config))] == ["FTS"]


@pytest.mark.parametrize("where", ["n % 100 = 13", {"n": list(range(13, 4000, 100))}], ids=["SQL", "mapping"])
def test_a_filter_is_applied_before_the_search(large: Desk, where: str | dict[str, object]) -> None:
    hits = open_table(large.config_path).search(words(40, 41), k=20, where=where)
    assert len(hits) == 20
    assert {hit.metadata["n"] % 100 for hit in hits} == {13}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("query", "k", "where", "told"),
    [
        ("  ", 5, None, "empty"),
        ("w1", 0, None, "k = 0"),
        ("w1", 5, "n ==== 1", "n ==== 1"),
        ("w1", 5, "m = 1", r"No field named m; columns: .*n \(int64\), kind \(string\)"),
        ("w1", 5, "n = 'many'", r'"many".*could not convert.*Int64.*columns: .*n \(int64\)'),
        ("w1", 5, {"kind": 5}, "where kind: expected string, got 5"),
        ("w1", 5, {"n": "many"}, "where n: expected int64, got 'many'"),
        ("w1", 5, {"n": {"like": 1}}, "no operator 'like'; expected one of eq, gt, gte, in, lt, lte, ne, not_in"),
        ("w1", 5, {"n": {"gt": None}}, "gt expects one value"),
        ("w1", 5, {"m": 1}, "'m': no such column; columns: .*n, kind"),
        ("w1" * 60_000, 5, None, "a query of 120,000 characters"),
        ("w1", 5, "n = " + "+".join("1" * 1500), "2,999 words between two of AND, OR and comma|3,001 words"),
        ("w1", 5, "not(" * 40 + "n = 1" + ")" * 40, "40 nested brackets, wanted 16 at most"),
        ("w1", 5, "n BETWEEN 1 AND " * 1500 + "1", "1,500 times BETWEEN"),
        ("w1", 5, "n = 1 OR " * 20_000 + "n = 2", "characters, wanted 100,000 at most"),
        ("w1", 5, "/* ' */ n = 1; drop table docs /* ' */", "expected one condition, got 'drop table docs' after ';'"),
        ("w1", 5, "n = 1 LIMIT 1", r"n = 1 LIMIT 1.*Expected: \)"),
        ("w1", 5, "n = 1 n = 2", r"n = 1 n = 2.*Expected: \)"),
        ("w1", 5, "n = 1) LIMIT 1 -- (", "expected an opening bracket for each closing one"),
        ("w1", 5, "n = 1; drop table docs", "expected one condition, got 'drop table docs' after ';'"),
    ],
)
def test_what_the_table_cannot_answer_is_one_line(large: Desk, query: str, k: int, where: str | None, told: str) -> None:
    with pytest.raises(QueryError, match=told) as caught:
        open_table(large.config_path).search(query, k, where)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["n = 13 -- it's; said", "/* one; or 'two */ n = 13", "n = 13;", "(n = 13)", "n = 13 -- )"])
def test_a_filter_may_have_comments_and_brackets(large: Desk, where: str) -> None:
    assert [hit.metadata["n"] for hit in open_table(large.config_path).search(words(40), where=where)] == [13]


def test_a_filter_is_not_blamed_for_a_damaged_table(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "damaged", metadata=["n"])
    desk.write("a.jsonl", [{"id": "a", "text": words(1, 2), "n": 1}])
    desk.embed()
    for file in desk.folder.glob("data/lancedb/docs.lance/data/*.lance"):
        file.unlink()
    with pytest.raises(StoreError, match="cannot be searched"):
        open_table(desk.config_path).search(words(1), where="n = 1")


def test_a_mapping_filters_by_values_of_any_type(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    day, hour = dt.date(2026, 2, 28), dt.datetime(2026, 2, 28, 23, 59, 59, 999999)  # noqa: DTZ001 a column without a zone
    columns = {
        "s": ["x", "it's", None],
        "i": pa.array([1, 2**40, None], pa.int64()),
        "small": pa.array([1, 2, None], pa.int8()),
        "f": [0.1, -2.5, None],
        "single": pa.array([0.1, -2.5, None], pa.float32()),
        "flag": [True, False, None],
        "day": [day, day + dt.timedelta(1), None],
        "hour": [hour, hour + dt.timedelta(1), None],
        "zoned": [hour.replace(tzinfo=dt.UTC), hour.replace(tzinfo=dt.UTC) + dt.timedelta(1), None],
        "price": [Decimal("1.25"), Decimal("2.50"), None],
        "raw": [b"\xff'", b"", None],
    }
    desk = desk_for(tmp_path / "typed", metadata=list(columns))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": [words(1), words(2), words(3)], **columns}), desk.source / "a.parquet")
    desk.embed()
    table = open_table(desk.config_path)

    def found(where: dict[str, object]) -> set[str]:
        return {hit.doc_id for hit in table.search(words(1), where=where)}

    for name, values in columns.items():
        first, second, _ = values if isinstance(values, list) else values.to_pylist()
        assert found({name: first}) == {"a"}, name
        assert found({name: [first, second]}) == {"a", "b"}, name
        assert found({name: []}) == set()
    assert found({"s": "it's", "i": 2**40}) == {"b"}
    assert found({"s": "it's", "i": 1}) == set()
    assert found({}) == {"a", "b", "c"}


@pytest.fixture(scope="module")
def filtered(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Three documents with metadata of many kinds; the last has none."""
    day = dt.datetime(2024, 6, 1, 12)  # noqa: DTZ001 a column without a zone
    columns = {
        "acl": [["hr", "all"], ["it's"], None],
        "marks": pa.array([[1, 2], [3], []], pa.list_(pa.int32())),
        "year": pa.array([2019, 2020, None], pa.int32()),
        "share": [0.5, float("nan"), None],
        "kind": ["x", "it's; --", None],
        "public": [True, False, None],
        "day": [day.date(), dt.date(2025, 1, 1), None],
        "made": [day, dt.datetime(2025, 1, 1), None],  # noqa: DTZ001
        "seen": pa.array([day, dt.datetime(2025, 1, 1), None], pa.timestamp("ms", "Europe/Berlin")),  # noqa: DTZ001
        "author": [{"name": "Ada", "born": 1815}, {"name": "Alan", "born": 1912}, None],
    }
    desk = desk_for(tmp_path_factory.mktemp("filtered"), metadata=list(columns))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": [words(1), words(2), words(3)], **columns}), desk.source / "a.parquet")
    desk.embed()
    return desk


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"acl": ["hr"]}, "a"),
        ({"acl": ["hr", "it's"]}, "ab"),
        ({"acl": "all"}, "a"),
        ({"acl": []}, ""),
        ({"acl": None}, "c"),
        ({"acl": {"not_in": ["hr"]}}, "bc"),
        ({"marks": [3, 9]}, "b"),
        ({"year": [2019, None]}, "ac"),
        ({"year": {"gte": 2019, "lt": 2020}}, "a"),
        ({"year": {">": 2019}}, "b"),
        ({"year": {"$gte": 2019, "$ne": 2020}}, "a"),
        ({"year": {"ne": 2019}}, "bc"),
        ({"year": {"ne": None}}, "ab"),
        ({"share": float("nan")}, "b"),
        ({"kind": "it's; --"}, "b"),
        ({"kind": {"in": ["x", "' OR true --"]}}, "a"),
        ({"public": False}, "b"),
        ({"day": "2024-06-01"}, "a"),
        ({"made": {"gte": "2024-06-01", "lt": "2024-06-01T13:00:00+00:00"}}, "a"),
        ({"made": {"gt": dt.date(2024, 6, 2)}}, "b"),
        ({"seen": "2024-06-01T14:00:00+02:00"}, "a"),
        ({"seen": {"gt": "2024-06-01T12:00:00Z"}}, "b"),
        ({"author": {"born": {"lt": 1900}}}, "a"),
        ({"author.name": ["Alan"]}, "b"),
        ({"author": None}, "c"),
        ({"author": {"name": {"ne": "Ada"}}, "public": [True, False]}, "b"),
        ("made > '2024-06-02'", "b"),
        ("'2024-06-02' > day", "a"),
        ("seen = '2024-06-01T12:00:00Z'", "a"),
        ("made BETWEEN '2024-01-01' AND '2024-12-31' OR day IN ('2025-01-01')", "ab"),
        ("made < '2024-12-31' AND kind <> 'made > ''2024-01-01''!'", "a"),
        ("kind = 'it''s; --';", "b"),
    ],
    ids=str,
)
def test_a_filter_takes_lists_ranges_null_dates_and_fields(filtered: Desk, where: str | dict[str, object], expected: str) -> None:
    table = open_table(filtered.config_path)
    for mode in ("vector", "text"):
        assert {hit.doc_id for hit in table.search(words(1, 2, 3), where=where, mode=mode)} == set(expected), mode


def test_a_mapping_filters_on_the_command_line_too(filtered: Desk, latent: Latent) -> None:
    said = latent(filtered.folder, "search", words(1), "--where", '{"acl": ["hr"], "made": {"lt": "2025-01-01"}}', "--json")
    assert [hit["doc_id"] for hit in said.answer["hits"]] == ["a"]
    assert latent(filtered.folder, "search", words(1), "--where", '{"acl": ', "--json").code == 1


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_no_value_acts_as_sql(filtered: Desk, value: str) -> None:
    found = store.TableReader(store_of(filtered.config)).search_vector(np.ones(16, np.float32) / 4, 3, {"kind": {"in": [value]}})
    assert set(found["kind"].to_pylist()) <= {value}


def test_a_list_of_values_is_looked_up_in_the_index_of_labels(large: Desk) -> None:
    reading = store.TableReader(store_of(large.config))
    planned, meeting = reading._plan({"tags": ["t3", "t4"]})
    assert meeting == sum(i % 7 in {3, 4} for i in range(20_000))
    assert "tags_idx" in reading._table.search().where(planned).explain_plan()
    hits = open_table(large.config_path).search(words(40), k=5, where={"tags": ["t3"]})
    assert [hit.metadata["tags"] for hit in hits] == [["t3"]] * 5


def test_many_queries_at_once_are_refused_in_one_line(large: Desk) -> None:
    with pytest.raises(QueryError, match="10001 queries, wanted 10000 at most in a batch"):
        open_table(large.config_path).search_batch(["w1"] * 10_001)
