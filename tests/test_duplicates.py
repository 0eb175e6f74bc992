"""Near-duplicates and outliers: what may go has a kept one that is as similar, and the strangest are the strangest of all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, Latent, words
from hypothesis import given, settings
from hypothesis import strategies as st

from latent import load
from latent.analysis.duplicates import neighbors as neighbours
from latent.analysis.duplicates.find_duplicates import Duplicates, duplicates
from latent.analysis.duplicates.neighbors import Kin
from latent.errors import QueryError
from latent.ingest.resolve import store_of
from latent.store import read_derived


@pytest.fixture
def desk(desk_for: Callable[..., Desk], tmp_path: Path) -> Desk:
    """Thirty documents unlike each other, of which some have copies."""
    desk = desk_for(tmp_path)
    unlike = [{"id": f"d{i:02}", "text": words(*range(100 + 12 * i, 112 + 12 * i))} for i in range(30)]
    longer = [{"id": f"e{i}", "text": unlike[i]["text"] + " " + words(100 + 12 * i)} for i in (3, 4)]
    equal = [{"id": f"f{i}", "text": unlike[i]["text"]} for i in (4, 5)]
    desk.write("a.jsonl", [*unlike, *longer, *equal])
    desk.embed()
    return desk


def found(desk: Desk, similarity: float = 0.95) -> Duplicates:
    return duplicates(load(desk.config_path, {"duplicates.similarity": similarity}))


def rows(desk: Desk, name: str) -> list[dict[str, object]]:
    worked = read_derived(store_of(desk.config), name)
    assert worked is not None
    return worked.rows.to_pylist()


def test_the_longest_of_a_group_is_kept_and_equal_texts_are_in_it(desk: Desk) -> None:
    done = found(desk)
    groups: dict[int, set[str]] = {}
    for row in rows(desk, "duplicates"):
        groups.setdefault(row["group_id"], set()).add(row["doc_id"])
    assert sorted(map(sorted, groups.values())) == [["d03", "e3"], ["d04", "e4", "f4"], ["d05", "f5"]]
    assert {row["doc_id"] for row in rows(desk, "duplicates") if row["keep"]} == {"e3", "e4", "d05"}
    assert (done.groups, done.droppable, done.equal, done.documents, done.pairs_met) == (3, 4, 2, 4, 1.0)
    assert [group.rows for group in done.largest] == [3, 2, 2]


def test_what_may_go_is_as_similar_to_a_kept_one_as_it_says(desk: Desk) -> None:
    found(desk, 0.6)
    table = desk.table()
    vectors = dict(zip(table["chunk_id"].to_pylist(), np.stack(table["vector"].to_numpy(zero_copy_only=False)), strict=True))
    told = rows(desk, "duplicates")
    kept = {row["chunk_id"] for row in told if row["keep"]}
    assert kept
    assert len(told) > len(kept)
    for row in told:
        assert row["kept_chunk_id"] in kept
        cosine = vectors[row["chunk_id"]] @ vectors[row["kept_chunk_id"]]
        assert cosine == pytest.approx(row["similarity"], abs=1e-5)
        assert row["similarity"] >= 0.6
        assert (row["chunk_id"] == row["kept_chunk_id"]) == row["keep"]


def test_outliers_are_by_the_fifth_nearest(desk: Desk) -> None:
    done = found(desk)
    told = rows(desk, "outliers")
    distances = [row["distance"] for row in told]
    assert distances == sorted(distances, reverse=True)
    table = desk.table()
    vectors, ids = np.stack(table["vector"].to_numpy(zero_copy_only=False)), table["chunk_id"].to_pylist()
    unlike = [i for i, name in enumerate(ids) if not name.startswith("f")]  # equal texts count once
    cosines = vectors[unlike] @ vectors[unlike].T
    np.fill_diagonal(cosines, -1)
    exact = dict(zip([ids[i] for i in unlike], 1 - np.sort(cosines, 1)[:, -5], strict=True))
    assert {row["chunk_id"]: pytest.approx(exact[row["chunk_id"]], abs=1e-5) for row in told} == {
        r["chunk_id"]: r["distance"] for r in told
    }
    assert done.strangest[0].distance == distances[0] == pytest.approx(max(exact.values()), abs=1e-5)
    assert all(row["nearest_chunk_id"] != row["chunk_id"] for row in told)


def test_what_others_say_is_left_out_and_comes_back_when_they_change(desk: Desk) -> None:
    found(desk)
    config = desk.config_path.read_text()
    desk.config_path.write_text(config.replace("[source]", "[source]\nskip_near_duplicates = true"))
    report = desk.embed()
    gone = {"d03", "d04", "f4", "f5"}
    assert (report.documents.quarantined, report.documents.deleted, report.chunks.deleted) == (4, 0, 4)
    assert {name for name, _ in desk.rows()} & gone == set()
    reasons = {row["doc_id"]: row["reason"] for row in desk.side("quarantine")}
    assert reasons.keys() == gone
    assert re.fullmatch(r"near-duplicate: 0\.\d{3} or more to e3", reasons["d03"])
    assert reasons["f5"] == "near-duplicate: 1.000 or more to d05"

    assert desk.embed().table_version == report.table_version, "nothing changed: nothing is done"
    again = found(desk)
    assert (again.droppable, again.documents) == (0, 0)
    assert desk.embed().table_version == report.table_version, "what is left out is not asked for again"

    rows = [json.loads(line) for line in (desk.source / "a.jsonl").read_text().splitlines()]
    desk.write("b.jsonl", [{"id": "g5", "text": next(row["text"] for row in rows if row["id"] == "d05")}])
    assert desk.embed().documents.added == 1, "what is new was not compared yet"
    desk.write("a.jsonl", [row if row["id"] != "e3" else row | {"text": words(101)} for row in rows])
    back = desk.embed()
    assert (back.documents.added, back.documents.changed, back.documents.quarantined) == (1, 1, 3)
    assert {name for name, _ in desk.rows()} & gone == {"d03"}
    desk.write("a.jsonl", [row for row in rows if row["id"] not in {"e3", "d05"}])
    desk.embed()
    assert {name for name, _ in desk.rows()} & gone == {"d03", "f5"}, "in the same run in which its like goes"
    desk.config_path.write_text(config)
    desk.embed()
    assert {name for name, _ in desk.rows()} & gone == gone
    assert desk.side("quarantine") == []


def test_who_is_left_out_is_as_similar_as_the_config_says_whatever_was_tried(desk: Desk) -> None:
    tried = found(desk, 0.6)
    config = desk.config_path.read_text()
    desk.config_path.write_text(config.replace("[source]", "[source]\nskip_near_duplicates = true"))
    report = desk.embed()
    assert 0 < report.documents.quarantined < tried.documents
    assert all(float(row["reason"].split()[1]) >= 0.95 for row in desk.side("quarantine"))
    found(desk, 0.999)
    desk.embed()
    assert all(float(row["reason"].split()[1]) >= 0.999 for row in desk.side("quarantine"))
    found(desk)
    assert all(row["similarity"] >= 0.95 for row in rows(desk, "redundant"))


def test_nothing_alike_is_an_answer_too(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", [{"id": str(i), "text": words(*range(100 + 12 * i, 112 + 12 * i))} for i in range(8)])
    desk.embed()
    done = found(desk)
    assert (done.groups, done.droppable, done.largest) == (0, 0, [])
    assert rows(desk, "duplicates") == []
    desk.write("a.jsonl", [{"id": "1", "text": "alone"}])
    desk.embed()
    with pytest.raises(QueryError, match="1 passages: too few to compare, wanted 6"):
        found(desk)


def test_the_command_tells_people_and_programs(desk: Desk, latent: Latent) -> None:
    told = latent(desk.folder, "duplicates", "--similarity", "0.9").out
    assert "3 groups of near-duplicates (cosine 0.9 or more)" in told
    assert "100.0% of such pairs were compared, as seen on " in told
    result = latent(desk.folder, "duplicates", "--json").answer
    assert (result["groups"], result["droppable"], result["duplicates_table"]) == (3, 4, "docs.duplicates")
    assert result["outliers_table"] == "docs.outliers"


# --- the parts ------------------------------------------------------------------------------------------------------


def compared(rows: int, cells: int, looks: int, similarity: float, seed: int) -> tuple[np.ndarray, neighbours.Cells, Kin]:
    chance = np.random.default_rng(seed)
    vectors = chance.standard_normal((rows, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = neighbours.nearest_cells(vectors, vectors[:cells])
    of = neighbours.in_cells(nearest, chance.integers(0, 9, rows))
    return vectors[of.order], of, neighbours.kin(vectors[of.order], of, similarity, looks, lambda _: None)


@settings(max_examples=60, deadline=None)
@given(st.integers(6, 80), st.integers(1, 6), st.integers(1, 6), st.floats(0.5, 0.99), st.integers(0, 99))
def test_each_row_that_goes_has_a_kept_one_and_no_two_kept_ones_are_alike(
    rows: int, cells: int, looks: int, similarity: float, seed: int
) -> None:
    vectors, _, kin = compared(rows, cells, looks, similarity, seed)
    cosines = vectors @ vectors.T
    gone = np.flatnonzero(kin.kept != np.arange(rows))
    assert (kin.kept[kin.kept] == kin.kept).all(), "who stands for others stands for itself"
    assert np.allclose(cosines[gone, kin.kept[gone]], kin.similarity[gone], atol=1e-5)
    assert (kin.similarity[gone] >= similarity).all()
    exact = 1 - np.sort(cosines - 2 * np.eye(rows, dtype=np.float32), 1)[:, -neighbours.NEIGHBOURS]
    assert (kin.far >= exact - 1e-5).all()
    if looks >= cells:
        stands = np.flatnonzero(kin.kept == np.arange(rows))
        assert (np.triu(cosines[np.ix_(stands, stands)], 1) < similarity + 1e-6).all()
        assert np.allclose(kin.far, exact, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 60), st.integers(1, 6), st.floats(0.3, 0.9), st.integers(0, 99))
def test_as_many_cells_are_looked_at_as_pairs_want(rows: int, cells: int, similarity: float, seed: int) -> None:
    vectors, of, _ = compared(rows, cells, 1, similarity, seed)
    every = np.concatenate(list(neighbours.pairs(vectors, np.arange(rows), similarity)))
    assert {tuple(sorted(pair)) for pair in every.tolist()} == {
        (i, j) for i in range(rows) for j in range(i + 1, rows) if vectors[i] @ vectors[j] >= similarity
    }
    looks = neighbours.looks_for(of, [every])
    assert looks.met >= neighbours.FOUND
    assert looks.pairs == len(every)
    assert min(cells, neighbours.FEWEST_LOOKS) <= looks.cells <= cells
    if looks.cells > neighbours.FEWEST_LOOKS:
        home = of.nearest[:, 0]
        short = [home[min(p)] in of.nearest[max(p), : looks.cells - 1] for p in every.tolist()]
        assert np.mean(short) < neighbours.FOUND


def test_a_large_cell_is_compared_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "PIECE", 9)
    vectors, _, kin = compared(50, 1, 1, 0.9, 3)
    stands = np.flatnonzero(kin.kept == np.arange(50))
    assert (np.triu((vectors @ vectors.T)[np.ix_(stands, stands)], 1) < 0.9).all()
    far, nearest = neighbours.far_from_all(vectors, np.arange(50))
    assert np.allclose(far, kin.far, atol=1e-5)
    assert (nearest == (vectors @ vectors.T - 2 * np.eye(50)).argmax(1)).all()
