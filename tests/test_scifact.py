"""The published figure, through the whole job: source, tokenizer, model, storage and search are right, or this fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import load, open_table, run

# all-MiniLM-L6-v2 on SciFact, as MTEB publishes it: one vector a document, cut off at 256 tokens.
PUBLISHED_NDCG_10, PUBLISHED_RECALL_100 = 0.64508, 0.92500


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("precision", "loss"), [("auto", 0.0005), pytest.param("int8", 0.005, marks=pytest.mark.slow)])
def test_exact_search_over_scifact_gives_the_published_figures(shared: Path, tmp_path: Path, precision: str, loss: float) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[source]\nuri = "{shared}/scifact/corpus.parquet"\ntext = ["title", "text"]\n[chunk]\ntokens = "truncate"\n'
        f'[model]\nprecision = "{precision}"\n[table]\nname = "scifact"\n'
    )
    report = run.embed(load(config))
    assert (report.documents.added, report.documents.quarantined, report.chunks.encoded) == (5183, 0, 5183)
    table = open_table(config)
    queries = pq.read_table(shared / "scifact/queries.parquet").to_pylist()
    judged: dict[str, dict[str, int]] = {}
    for row in pq.read_table(shared / "scifact/qrels.parquet").to_pylist():
        judged.setdefault(str(row["query_id"]), {})[str(row["doc_id"])] = row["score"]
    gains, recalls = [], []
    for query in queries:
        relevant = judged[str(query["id"])]
        found = [hit.doc_id for hit in table.search(query["text"], k=100)]
        discounts = 1 / np.log2(np.arange(2, 12))
        gain = sum(relevant.get(doc, 0) * d for doc, d in zip(found[:10], discounts, strict=True))
        ideal = sum(g * d for g, d in zip(sorted(relevant.values(), reverse=True), discounts, strict=False))
        gains.append(gain / ideal)
        recalls.append(sum(doc in relevant for doc in found) / len(relevant))
    print(f"{precision}: nDCG@10 {np.mean(gains):.5f}, recall@100 {np.mean(recalls):.5f}, {report.seconds:.0f} s")
    assert np.mean(gains) == pytest.approx(PUBLISHED_NDCG_10, abs=loss)
    assert np.mean(recalls) == pytest.approx(PUBLISHED_RECALL_100, abs=0.005)
