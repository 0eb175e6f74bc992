"""The published figure, through the whole job: source, tokenizer, model, storage and search are right, or this fails."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import lancedb
import pytest
from lancedb.index import IvfRq

from latent import Config, load, open_table
from latent.evaluation.datasets import read_judgments, read_queries
from latent.evaluation.evaluator import evaluate
from latent.ingest import run
from latent.ingest.resolve import store_of
from latent.search import SearchOptions
from latent.store import TableReader, Tuning, tuning
from latent.store.reader import TUNING_KEY

# all-MiniLM-L6-v2 on SciFact, as MTEB publishes it: one vector a document, cut off at 256 tokens.
PUBLISHED_NDCG_10, PUBLISHED_RECALL_100 = 0.64508, 0.92500


@pytest.mark.slow  # two to five minutes each
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("precision", "loss"), [("auto", 0.0005), ("int8", 0.005)])
def test_exact_search_over_scifact_gives_the_published_figures(shared: Path, tmp_path: Path, precision: str, loss: float) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[source]\nuri = "{shared}/scifact/corpus.parquet"\ntext = ["title", "text"]\n[chunk]\ntokens = "truncate"\n'
        f'[model]\nprecision = "{precision}"\n[table]\nname = "scifact"\n'
    )
    report = run.embed(load(config))
    assert (report.documents.added, report.documents.quarantined, report.chunks.encoded) == (5183, 0, 5183)
    queries, judgments = read_queries(shared / "scifact/queries.parquet"), read_judgments(shared / "scifact/qrels.parquet")
    measured = evaluate(open_table(config), queries, judgments, SearchOptions()).means
    print(f"{precision}: nDCG@10 {measured['ndcg@10']:.5f}, recall@100 {measured['recall@100']:.5f}, {report.seconds:.0f} s")
    assert measured["ndcg@10"] == pytest.approx(PUBLISHED_NDCG_10, abs=loss)
    assert measured["recall@100"] == pytest.approx(PUBLISHED_RECALL_100, abs=0.005)
    if precision == "auto":
        look_through_an_index(load(config, {"index.recall": 0.99}))
        through_it = evaluate(open_table(config), queries, judgments, SearchOptions()).means
        print(f"through the index: nDCG@10 {through_it['ndcg@10']:.5f}, recall@100 {through_it['recall@100']:.5f}")
        assert through_it["ndcg@10"] == pytest.approx(PUBLISHED_NDCG_10, abs=0.001)


def look_through_an_index(config: Config) -> None:
    """As maintain would have it if the table were large: here exact search is as fast, and would be chosen."""
    place = store_of(config)
    lancedb.connect(place.uri).open_table(place.name).create_index("vector", config=IvfRq(distance_type="cosine"))
    reading, trial = TableReader(place), tuning.draw(place.opened())
    least = Tuning(config.index.recall, 0, 0, 1.0, 1.0, 0.0, 0.0, reading.count, reading.version, reading.count)
    efforts = (replace(least, nprobes=nprobes, refine_factor=15) for nprobes in tuning.NPROBES)
    held = next(held for effort in efforts if (held := tuning._holding(reading, effort, trial)))
    place.opened().update_metadata({TUNING_KEY: json.dumps(asdict(held))})
