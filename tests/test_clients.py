"""The table as others open it: unmodified, by the real libraries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import duckdb
import lancedb
import polars as pl
import pytest
from conftest import Desk, words

from latent import SearchTable, open_table
from latent.ingest import maintenance

QUERY = words(101, 102)


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = desk_for(tmp_path_factory.mktemp("clients"), metadata=["n"])
    desk.write("a.jsonl", [{"id": f"d{i}", "n": i % 3, "text": words(*range(i * 4, i * 4 + 20))} for i in range(5, 100)])
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


@pytest.fixture(scope="module")
def table(desk: Desk) -> SearchTable:
    return open_table(desk.config_path)


@pytest.fixture(scope="module")
def plain(desk: Desk) -> lancedb.table.Table:
    return lancedb.connect(desk.folder / "data/lancedb").open_table("docs")


def test_lancedb_finds_the_same(table: SearchTable, plain: lancedb.table.Table) -> None:
    found = plain.search(table.encode_queries([QUERY])[0]).distance_type("cosine").where("n = 1").limit(5).to_list()
    assert [row["chunk_id"] for row in found] == [hit.chunk_id for hit in table.search(QUERY, 5, "n = 1")]
    found = plain.search(QUERY, query_type="fts").limit(5).to_list()
    assert {row["chunk_id"] for row in found} == {hit.chunk_id for hit in table.search(QUERY, 5, mode="text")}


def test_pandas_polars_and_duckdb_read_it(plain: lancedb.table.Table, desk: Desk) -> None:
    rows = desk.table().num_rows
    frame = plain.to_pandas()
    assert frame.shape[0] == rows
    assert frame["vector"].iloc[0].shape == (16,)
    assert plain.to_polars().filter(pl.col("n") == 1).collect().height == (frame["n"] == 1).sum()
    counted = plain.to_lance()  # noqa: F841  DuckDB finds it by its name
    assert duckdb.sql("SELECT n, count(*) FROM counted GROUP BY n ORDER BY n").fetchall() == [
        (n, int((frame["n"] == n).sum()) if n is not None else 0) for n in (0, 1, 2)
    ]


def test_langchain_searches_it(table: SearchTable, desk: Desk) -> None:
    from langchain_community.vectorstores import LanceDB
    from langchain_core.embeddings import Embeddings

    class Ours(Embeddings):
        def embed_query(self, text: str) -> list[float]:
            return table.encode_queries([text])[0].tolist()

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return table.encode_queries(texts).tolist()

    connection = lancedb.connect(desk.folder / "data/lancedb")
    store = LanceDB(
        connection=connection, table_name="docs", embedding=Ours(), text_key="text", id_key="chunk_id", distance="cosine"
    )
    expected = [hit.text for hit in table.search(QUERY, 4)]
    assert [document.page_content for document in store.similarity_search(QUERY, k=4)] == expected

    retriever = table.as_retriever(k=4, where={"n": 2}, mode="hybrid", context=1)
    found = retriever.invoke(QUERY)
    hits = table.search(QUERY, 4, {"n": 2}, mode="hybrid", context=1)
    assert [(d.id, d.page_content, d.metadata["doc_id"], d.metadata["n"]) for d in found] == [
        (hit.chunk_id, hit.before + hit.text + hit.after, hit.doc_id, 2) for hit in hits
    ]
    assert asyncio.run(retriever.ainvoke(QUERY)) == found


def test_llama_index_retrieves_from_it(table: SearchTable) -> None:
    found = table.as_llama_index_retriever(k=3, per_document=True).retrieve(QUERY)
    hits = table.search(QUERY, 3, per_document=True)
    assert [(node.node_id, node.text, node.score) for node in found] == [(hit.chunk_id, hit.text, hit.score) for hit in hits]
    assert found[0].metadata["doc_id"] == hits[0].doc_id


def test_retrievers_keep_a_metadata_column_called_score(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "scored", metadata=["score"])
    desk.write("a.jsonl", [{"id": "a", "text": QUERY, "score": 7}])
    desk.embed()
    table = open_table(desk.config_path)
    score = table.search(QUERY, 1)[0].score
    document, node = table.as_retriever(k=1).invoke(QUERY)[0], table.as_llama_index_retriever(k=1).retrieve(QUERY)[0]
    assert document.metadata == node.metadata == {"doc_id": "a", "score": 7, "search_score": score}


def test_the_folder_opens_from_anywhere(desk: Desk, table: SearchTable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_table(desk.config_path).search(QUERY, 1) == table.search(QUERY, 1)
