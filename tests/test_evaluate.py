"""Evaluation: measures, judgments from files, two ways compared, and the test that needs no judgments."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, HereAndNow, Latent, save_small_model, words

from latent import load, open_table
from latent.errors import QueryError, SourceError
from latent.evaluation.datasets import read_judgments, read_queries
from latent.evaluation.evaluator import compare, evaluate, known_items, way
from latent.evaluation.ranking_metrics import MEASURES, means, p_values, score
from latent.ingest import maintenance, run
from latent.search import SearchOptions

JUDGED = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}


def test_measures_are_those_of_the_textbook() -> None:
    found = {"q1": {"x": 3.0, "a": 2.0, "b": 1.0}, "q2": {f"n{i}": 50.0 - i for i in range(10)} | {"c": 1.0}}  # nothing for q3
    scores = score(JUDGED, found)
    ideal = 2 + 1 / np.log2(3)
    assert scores["q1"]["ndcg@10"] == pytest.approx((2 / np.log2(3) + 1 / 2) / ideal)
    assert (scores["q1"]["recall@10"], scores["q1"]["mrr@10"]) == (1.0, 0.5)
    assert (scores["q2"]["recall@10"], scores["q2"]["recall@100"], scores["q2"]["mrr@10"]) == (0.0, 1.0, 0.0)
    assert set(scores["q3"].values()) == {0.0}
    assert means(scores)["recall@100"] == pytest.approx(2 / 3)


def test_ids_of_any_characters_are_scored_and_ties_keep_the_order_of_ids() -> None:
    odd = ["\x00", "a\x00b", "\ud800", "x y\n", ""]
    assert score({q: {q: 1} for q in odd}, {q: {q: 1.0} for q in odd})["a\x00b"]["ndcg@10"] == 1.0
    tied = {"q": dict.fromkeys(["é", "漢", *"abcdefghijkl"], 1.0)}
    for document in tied["q"]:
        found = {str(m.measure): m.value for m in ir_measures.iter_calc(list(MEASURES.values()), {"q": {document: 1}}, tied)}
        assert score({"q": {document: 1}}, tied)["q"] == {name: found[str(measure)] for name, measure in MEASURES.items()}


def test_one_query_alone_tells_nothing_from_chance() -> None:
    one, other = score({"q": {"a": 1}}, {"q": {"a": 1.0}}), score({"q": {"a": 1}}, {})
    assert set(p_values(one, other).values()) == {1.0}


def test_a_difference_is_told_from_chance() -> None:
    chance = np.random.default_rng(1)
    one = {str(i): dict.fromkeys(means(score(JUDGED, {})), value) for i, value in enumerate(chance.random(60))}
    better = {q: {name: value + 0.1 for name, value in values.items()} for q, values in one.items()}
    mixed = {q: {name: value + 0.1 * (-1) ** int(q) for name, value in values.items()} for q, values in one.items()}
    assert max(p_values(one, better).values()) < 0.01
    assert min(p_values(one, mixed).values()) > 0.5
    assert set(p_values(one, one).values()) == {1.0}


def test_judgments_and_queries_read_alike_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [(q, d, s) for q, documents in JUDGED.items() for d, s in documents.items()]
    columns = {"query_id": [r[0] for r in rows], "doc_id": [r[1] for r in rows], "score": [r[2] for r in rows]}
    pq.write_table(pa.table(columns), tmp_path / "j.parquet")
    (tmp_path / "j.jsonl").write_text("".join(json.dumps({"query-id": q, "corpus-id": d, "score": s}) + "\n" for q, d, s in rows))
    (tmp_path / "j.csv").write_text("qid,docid,rel\n" + "".join(f"{q},{d},{s}\n" for q, d, s in rows))
    (tmp_path / "j.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in rows))
    (tmp_path / "j.qrels").write_text("".join(f"{q} 0 {d} {s}\n" for q, d, s in rows))
    (tmp_path / "plain.csv").write_text("query,document,relevance\n" + "".join(f"{q},{d},{s}\n" for q, d, s in rows))
    for name in ("j.parquet", "j.jsonl", "j.csv", "j.tsv", "j.qrels", "plain.csv"):
        assert read_judgments(tmp_path / name) == JUDGED, name
    asked = {"q1": 'what, "then"?', "q2": "where"}
    pq.write_table(pa.table({"id": list(asked), "text": list(asked.values())}), tmp_path / "q.parquet")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({"_id": q, "text": t, "metadata": {}}) + "\n" for q, t in asked.items()))
    with (tmp_path / "q.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("qid", "query"), *asked.items()])
    for name in ("q.parquet", "q.jsonl", "q.csv"):
        assert read_queries(tmp_path / name) == asked, name
    pq.write_table(pa.table({"query_id": [1, 1], "doc_id": [7, 8], "score": [1.0, 0.0]}), tmp_path / "numbers.parquet")
    assert read_judgments(tmp_path / "numbers.parquet") == {"1": {"7": 1, "8": 0}}


@pytest.mark.parametrize(
    ("name", "content"),
    [("j.qrels", "q 0 d 1\n"), ("j.csv", "qid,docid,rel\nq,d,1\n"), ("j.jsonl", '{"qid": "q", "docid": "d", "rel": 1}\n')],
)
def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_judgments(tmp_path / name) == {"q": {"d": 1}}


def test_ids_are_taken_as_they_are_written(tmp_path: Path) -> None:
    ids = ["0007", "2024-01-01", "null", "1e3", "true"]
    for name, between in (("j.csv", ","), ("j.tsv", "\t")):
        lines = (between.join([i, i, "1.0"]) for i in ids)
        (tmp_path / name).write_text("\n".join([between.join(["qid", "docid", "rel"]), *lines]))
        assert read_judgments(tmp_path / name) == {i: {i: 1} for i in ids}, name
    (tmp_path / "q.csv").write_text("id,text\n0007,null\n2024-01-01,12\n")
    assert read_queries(tmp_path / "q.csv") == {"0007": "null", "2024-01-01": "12"}
    rows = [{"_id": i, "text": "2024-01-01\u2028"} for i in ids] + [{"_id": 7, "text": "of a number"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_queries(tmp_path / "q.jsonl") == dict.fromkeys(ids, "2024-01-01\u2028") | {"7": "of a number"}


@pytest.mark.parametrize(
    ("name", "content", "read", "told"),
    [
        ("j.csv", "a,b\n1,2\n", read_judgments, "has columns a, b, wanted one of query_id"),
        ("j.csv", "qid,docid,rel\n1,2,much\n", read_judgments, "relevance 'much' of query 1, wanted a whole number"),
        ("j.csv", "qid,docid,rel\n1,2,0.5\n", read_judgments, "relevance '0.5' of query 1, wanted a whole number"),
        ("j.jsonl", '{"qid": 1, "docid": 2, "rel": 0.5}', read_judgments, "relevance '0.5' of query 1, wanted a whole number"),
        ("j.jsonl", "", read_judgments, "expected a row a line, got an empty file"),
        ("j.jsonl", "{nonsense", read_judgments, "cannot be read"),
        ("j.jsonl", "[1, 2]", read_judgments, "cannot be read: a line is no JSON object"),
        ("j.doc", "x", read_judgments, "of unknown kind"),
        ("q.csv", "id,text\n1,a\n1,b\n", read_queries, "1 of 2 queries are empty or have an id that stands twice"),
        ("q.csv", "id,text\n1,\n", read_queries, "1 of 1 queries are empty"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, content: str, read: Callable, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=told) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "nowhere.csv")


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = desk_for(tmp_path_factory.mktemp("evaluated"))
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(*range(i * 4, i * 4 + 30))} for i in range(5, 100)])
    desk.write("b.jsonl", [{"id": "twin", "text": words(*range(20, 50))}])
    desk.embed()
    maintenance.maintain(desk.config)
    pq.write_table(
        pa.table({"id": ["q1", "q2", "q9"], "text": [words(101, 102), words(250), "w1"]}), desk.folder / "queries.parquet"
    )
    (desk.folder / "judgments.txt").write_text("q1 0 d25 1\nq2 0 nowhere 1\nq8 0 d1 1\n")
    return desk


def test_a_document_scores_as_its_best_passage(desk: Desk) -> None:
    table = open_table(desk.config_path)
    done = evaluate(table, {"q": words(101, 102), "unjudged": "w1"}, {"q": {"d25": 1}, "unasked": {"d1": 1}}, SearchOptions())
    place = list(dict.fromkeys(hit.doc_id for hit in table.search(words(101, 102), k=1000))).index("d25") + 1
    assert (done.queries, done.means["mrr@10"]) == (1, 1 / place if place <= 10 else 0)
    with pytest.raises(QueryError, match="none of 1 queries is judged: ids such as 'a' beside 'b' do not meet"):
        evaluate(table, {"a": "w1"}, {"b": {"d1": 1}}, SearchOptions())


def test_a_table_is_tested_by_its_own_sentences(desk: Desk) -> None:
    table = open_table(desk.config_path)
    queries, judgments = known_items(table)
    assert len(queries) == len(judgments) == table.sample(1000, 0).__len__()
    twins = [documents for documents in judgments.values() if "twin" in documents]
    assert twins
    assert all("d5" in documents for documents in twins)  # who holds the same passage is right too
    search_text, by_meaning = (evaluate(table, queries, judgments, SearchOptions(mode=mode)) for mode in ("text", "vector"))
    assert by_meaning.means["recall@10"] > 0.9
    compared = compare(search_text, by_meaning)
    assert compared.differences["mrr@10"] == pytest.approx(search_text.means["mrr@10"] - by_meaning.means["mrr@10"])
    assert set(compare(search_text, search_text).p.values()) == {1.0}


def test_ways_have_names() -> None:
    assert way("hybrid+rerank") == {"mode": "hybrid", "rerank": True}
    assert way("exact") == {"exact": True}
    assert way("docs2") is None


def test_a_table_of_another_model_is_compared_with(desk: Desk, latent: Latent, tmp_path: Path) -> None:
    other = save_small_model(tmp_path / "other", dim=32, seed=3)
    run.embed(load(desk.config_path, {"table.name": "rival", "model.name": str(other)}), engine=HereAndNow)
    told = latent(desk.folder, "evaluate", "--self", "--against", "rival", "--json").answer
    assert told["against"]["queries"] == told["queries"]
    assert told["against"]["recall@10"] > 0.9


def test_the_command_tells_measures_and_writes_each_query(desk: Desk, latent: Latent) -> None:
    files = ["--queries", "queries.parquet", "--qrels", "judgments.txt"]
    told = latent(desk.folder, "evaluate", *files, "--against", "text", "--per-query", "each.csv", "--json").answer
    assert told.keys() == {"ndcg@10", "recall@10", "recall@100", "mrr@10", "queries", "milliseconds", "against"}
    assert told["queries"] == 2
    assert told["against"].keys() >= {"what", "ndcg@10", "p"}
    rows = list(csv.DictReader((desk.folder / "each.csv").open()))
    assert [row["query"] for row in rows] == ["q1", "q2"]
    assert float(rows[1]["recall@100"]) == 0.0
    done = latent(desk.folder, "evaluate", "--self", "--against", "nowhere")
    assert (done.code, done.out) == (1, "")
    assert "no table 'nowhere'" in done.err
