"""Sums of texts, ways between them, analogies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, Latent, words
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from latent import SearchTable, open_table
from latent.analysis.analogies import analogies, between
from latent.errors import QueryError, SourceError
from latent.search.vector_arithmetic import combined, way


def unit(seed: int, dim: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(dim)
    return vector / np.linalg.norm(vector)


ways = given(st.integers(0, 999), st.integers(1000, 1999), st.integers(2, 64), st.integers(2, 40))


@settings(deadline=None)
@ways
def test_the_ends_of_a_way_are_the_ends_and_its_steps_are_small_and_equal(one: int, other: int, dim: int, steps: int) -> None:
    start, end = unit(one, dim), unit(other, dim)
    angle = np.arccos(np.clip(start @ end, -1, 1))
    assume(angle < 3)
    points = way(start, end, steps)
    assert points is not None
    assert np.allclose(points[[0, -1]], [start, end], atol=1e-5)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    strides = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert np.allclose(strides, 2 * np.sin(angle / (steps - 1) / 2), atol=1e-4)


@settings(deadline=None)
@ways
def test_the_way_back_is_the_way_and_from_a_text_to_itself_there_is_none(one: int, other: int, dim: int, steps: int) -> None:
    start, end = unit(one, dim), unit(other, dim)
    assume(start @ end > -0.98)
    there, back = way(start, end, steps), way(end, start, steps)
    assert np.allclose(there, back[::-1], atol=1e-4)
    assert np.allclose(way(start, start, steps), start, atol=1e-5)
    assert way(start, -start, steps) is None


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(2, 64), st.integers(1, 4), st.floats(0, 1e-3))
def test_a_small_change_of_a_text_changes_a_sum_by_no_more_than_it_should(seed: int, dim: int, count: int, small: float) -> None:
    plus, minus = np.stack([unit(seed + i, dim) for i in range(count)]), np.zeros((0, dim))
    whole = np.linalg.norm(plus.sum(0))
    assume(whole > 0.1)
    moved = plus.copy()
    moved[0] += small * unit(seed + 77, dim)
    assert np.linalg.norm(combined(moved, minus) - combined(plus, minus)) <= 2 * small / whole + 1e-5
    assert combined(plus, plus) is None


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Each word a document; and pairs of words, which lie half-way."""
    desk = desk_for(tmp_path_factory.mktemp("ways"), metadata=["n"])
    singles = [{"id": f"w{i}", "n": 1, "text": words(i)} for i in range(100, 140)]
    pairs = [{"id": f"w{i}+w{i + 1}", "n": 2, "text": words(i, i + 1)} for i in range(100, 139)]
    desk.write("a.jsonl", singles + pairs)
    desk.embed()
    return desk


@pytest.fixture(scope="module")
def table(desk: Desk) -> SearchTable:
    return open_table(desk.config_path)


def best(table: SearchTable, query: str = "", **how: object) -> str:
    return table.search(query, 1, **how)[0].doc_id


def test_texts_are_added_to_a_query_and_taken_off_it(table: SearchTable) -> None:
    assert best(table, words(105), plus=[words(106)]) == "w105+w106"
    assert best(table, plus=[words(105), words(106)]) == "w105+w106"
    hits = table.search(words(110, 111), 3, "n = 1", minus=[words(110)])
    assert hits[0].doc_id == "w111"
    assert hits[0].score > 0.5


def test_sums_that_mean_nothing_are_one_line(table: SearchTable) -> None:
    with pytest.raises(QueryError, match="cancel each other out"):
        table.search(words(105), minus=[words(105)])
    with pytest.raises(QueryError, match="plus is of vectors"):
        table.search(words(105), plus=[words(106)], mode="hybrid")
    with pytest.raises(QueryError, match="the query is empty"):
        table.search("", minus=[words(105)])


def test_a_way_passes_what_lies_between(table: SearchTable) -> None:
    steps = between(table, words(120), words(121), 5)
    assert [step.at for step in steps] == [0, 0.25, 0.5, 0.75, 1]
    found = [step.hits[0].doc_id for step in steps]
    assert (found[0], found[2], found[-1]) == ("w120", "w120+w121", "w121")
    assert [s.hits[0].doc_id for s in between(table, words(121), words(120), 5)] == found[::-1]
    with pytest.raises(QueryError, match="steps = 1, wanted 2"):
        between(table, "w1", "w2", 1)


def test_analogies_are_answered_by_all_passages_but_their_own(table: SearchTable, tmp_path: Path) -> None:
    file = tmp_path / "q.csv"  # w105 is to "w105 w106" as w106 is to … itself doubled: the nearest that is none of the three
    file.write_text("a,b,c,expected,section\nW105,w105 w106,w106,w106 w107,x\nw100,w101,nowhere,w102,y\n")
    done = analogies(table, file)
    assert (done.questions, done.skipped) == (1, 1)
    a, b, c = table.encode_queries(["w105", "w105 w106", "w106"])
    towards = (b - a + c) / np.linalg.norm(b - a + c)
    nearest = [hit for hit in table.nearest(towards, 10) if hit.text.strip() not in {"w105", "w105 w106", "w106"}]
    file.write_text(f"a,b,c,expected\nW105,w105 w106,w106,{nearest[0].text}\nw105,w105 w106,w106,{nearest[1].text}\n")
    done = analogies(table, file)
    assert (done.accuracy, done.correct, done.questions, done.sections) == (0.5, 1, 2, {})
    file.write_text("a,b,c,expected\nx,y,z,nowhere\n")
    with pytest.raises(QueryError, match="no question has its four texts"):
        analogies(table, file)
    file.write_text("a,b,c\nx,y,z\n")
    with pytest.raises(SourceError, match="wanted one of expected"):
        analogies(table, file)


def test_the_commands(desk: Desk, latent: Latent, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("a,b,c,expected\nw105,w106,w107,w108\n")
    for arguments, wanted in (
        (["search", "--plus", words(105), "--plus", words(106), "-k", "1"], "w105+w106"),
        (["between", words(120), words(121), "--steps", "3"], "w120+w121"),
        (["analogy", tmp_path / "q.csv"], "of 1 questions answered right"),
    ):
        assert wanted in latent(desk.folder, *arguments).out
        assert latent(desk.folder, *arguments, "--json").answer
