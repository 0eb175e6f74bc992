"""Search over a table large enough for an index."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, words

from pipeline import open_table, run
from pipeline.errors import QueryError, StoreError
from pipeline.store import read_tuning
from pipeline.survey import scene


@pytest.fixture(scope="module")
def large(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """52,000 passages: above the size up to which every search is exact."""
    desk = desk_for(tmp_path_factory.mktemp("large"), metadata=["n"])
    chance = random.Random(3)
    texts = (words(*(chance.randrange(20, 500) for _ in range(8))) for _ in range(52_000))
    desk.write("a.jsonl", [{"id": str(i), "text": text, "n": i % 100} for i, text in enumerate(texts)])
    desk.embed()
    return desk


def shared_with_exact(desk: Desk) -> float:
    """Of ten hits, how many exact search finds too, on average."""
    table = open_table(desk.config_path)
    found = [
        {h.chunk_id for h in table.search(words(i, i + 1, i + 2), exact=exact)} for i in range(30, 60) for exact in (True, False)
    ]
    return sum(len(exact & indexed) for exact, indexed in zip(found[::2], found[1::2], strict=True)) / 30


def test_maintain_tunes_an_index_for_the_stated_recall_and_search_uses_it(large: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_INDEX__RECALL", "0.8")
    tuning = run.maintain(large.config).tuning
    assert tuning == read_tuning(scene(large.config).store)
    assert tuning.recall >= 0.8
    assert shared_with_exact(large) >= 7


def test_where_no_effort_holds_the_recall_searches_stay_exact(large: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_INDEX__RECALL", "1.0")
    tuning = run.maintain(large.config).tuning
    assert tuning == read_tuning(scene(large.config).store)
    assert tuning is None or tuning.recall == 1
    assert shared_with_exact(large) >= 9.9


def test_rows_newer_than_the_index_are_found_at_once(large: Desk) -> None:
    large.write("b.jsonl", [{"id": "new", "text": words(1, 2, 3), "n": 7}])
    large.embed()
    assert open_table(large.config_path).search(words(1, 2, 3), k=1)[0].doc_id == "new"


@pytest.mark.parametrize("where", ["n = 13", {"n": 13}], ids=["SQL", "mapping"])
def test_a_filter_is_applied_before_the_search(large: Desk, where: str | dict[str, object]) -> None:
    hits = open_table(large.config_path).search(words(40, 41), k=20, where=where)
    assert len(hits) == 20
    assert {hit.metadata["n"] for hit in hits} == {13}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    ("query", "k", "where", "told"),
    [("  ", 5, None, "empty"), ("w1", 0, None, "k = 0"), ("w1", 5, "n ==== 1", "n ==== 1"), ("w1", 5, "m = 1", "columns: .*n")],
)
def test_what_the_table_cannot_answer_is_one_line(large: Desk, query: str, k: int, where: str | None, told: str) -> None:
    with pytest.raises(QueryError, match=told) as caught:
        open_table(large.config_path).search(query, k, where)
    assert "\n" not in str(caught.value)


def test_a_filter_is_not_blamed_for_a_damaged_table(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "damaged", metadata=["n"])
    desk.write("a.jsonl", [{"id": "a", "text": words(1, 2), "n": 1}])
    desk.embed()
    for file in desk.folder.glob("data/lancedb/docs.lance/data/*.lance"):
        file.unlink()
    with pytest.raises(StoreError, match="cannot be searched: Not found: Not found"):
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
