"""How good the answers to a collection's queries are, and how long one takes, by every way of searching.

    python tests/bench/answers.py COLLECTION [RERANKER]

COLLECTION: a folder with corpus.parquet (id, title, text), queries.parquet and qrels.parquet. RERANKER: a cross-encoder, as [search] reranker names it, for the best 20 of a hybrid
search. The table is small, so a run makes no vector index; it is made here as `maintain` would in a large one, for recall 0.99.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_scifact import look_through_an_index

from latent import load, open_table
from latent.evaluation.datasets import read_judgments, read_queries
from latent.evaluation.evaluator import evaluate
from latent.ingest import maintenance, run
from latent.search import SearchOptions

SETTINGS = """[source]
uri = "{collection}/corpus.parquet"
text = ["title", "text"]
[chunk]
tokens = "truncate"
[search]
reranker = "{reranker}"
candidates = 20
"""


def main() -> None:
    collection, reranker = Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""
    queries, judgments = read_queries(collection / "queries.parquet"), read_judgments(collection / "qrels.parquet")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(SETTINGS.format(collection=collection, reranker=reranker))
        config = load(path)
        report = run.embed(config)
        maintenance.maintain(config)
        print(f"{collection.name}: {report.documents.added} documents, {len(queries)} queries")
        print(f"{'':24} nDCG@10  recall@100  p50 ms  p95 ms")

        def tell(way: str, how: SearchOptions) -> None:
            done = evaluate(open_table(path), queries, judgments, how)
            ms = done.milliseconds
            print(
                f"{way:24} {done.means['ndcg@10']:.5f}  {done.means['recall@100']:.5f}     {ms['p50']:6.0f}  {ms['p95']:6.0f}",
                flush=True,
            )

        tell("by meaning, exact", SearchOptions(exact=True))
        tell("by words", SearchOptions(mode="text"))
        tell("hybrid", SearchOptions(mode="hybrid"))
        look_through_an_index(load(path, {"index.recall": 0.99}))
        tell("by meaning, index", SearchOptions())
        tell("hybrid, index", SearchOptions(mode="hybrid"))
        if reranker:
            tell("hybrid, reranked", SearchOptions(mode="hybrid", rerank=True))


if __name__ == "__main__":
    main()
