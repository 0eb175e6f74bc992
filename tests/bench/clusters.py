"""Clusters of 20 Newsgroups beside scikit-learn's, by their agreement with the labels: the subject lines, and the posts.

    python tests/bench/clusters.py [FOLDER]     keeps the two tables there; the posts take a quarter of an hour to encode

The published figure (MTEB's TwentyNewsgroupsClustering, all-MiniLM-L6-v2) is that of MiniBatchKMeans on the subjects: 0.4649.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import v_measure_score

from latent import load
from latent.analysis.clustering.cluster_table import cluster
from latent.ingest import run
from latent.ingest.resolve import store_of
from latent.store import matrix

COLLECTION = Path(__file__).parents[3] / "shared/data/20newsgroups"
CORPORA = {  # table → file, text, metadata
    "subjects": ("subjects_mteb_like.parquet", '"text"', '["label"]'),
    "bodies": ("corpus.parquet", '["subject", "body"]', '["label", "split"]'),
}
LABELS, ROUNDS = 20, 5


def embedded(folder: Path, name: str) -> Path:
    """A config whose table holds this corpus, one vector a document."""
    file, text, metadata = CORPORA[name]
    config = folder / f"{name}.toml"
    config.write_text(
        f'[source]\nuri = "{COLLECTION / file}"\ntext = {text}\nmetadata = {metadata}\n[chunk]\ntokens = "truncate"\n[table]\nname = "{name}"\n'
    )
    run.embed(load(config))
    return config


def measured(what: str, labels: list[str], clusters: Callable[[int], object], rounds: int = ROUNDS) -> None:
    found, seconds = [], []
    for seed in range(rounds):
        started = time.perf_counter()
        found.append(v_measure_score(labels, clusters(seed)))
        seconds.append(time.perf_counter() - started)
    print(
        f"  {what:42} v-measure {statistics.mean(found):.4f} ({min(found):.4f} to {max(found):.4f}), {statistics.median(seconds):.1f} s"
    )


def beside(vectors: np.ndarray, labels: list[str]) -> None:
    """scikit-learn's, on the same vectors."""

    def mini(seed: int) -> np.ndarray:
        return MiniBatchKMeans(LABELS, batch_size=500, n_init=1, random_state=seed).fit_predict(vectors)

    measured("MiniBatchKMeans, batches of 500", labels, mini, 10)
    measured("KMeans, 10 starts", labels, lambda seed: KMeans(LABELS, n_init=10, random_state=seed).fit_predict(vectors))


def main(folder: Path) -> None:
    for name in CORPORA:
        config = embedded(folder, name)
        rows = store_of(load(config)).opened().to_table(columns=["vector", "label"])
        print(f"{name}: {rows.num_rows} documents, {LABELS} labels")
        beside(matrix(rows["vector"].combine_chunks()), rows["label"].to_pylist())
        found = []
        for seed in range(ROUNDS):
            started = time.perf_counter()
            done = cluster(load(config, {"cluster.number": LABELS, "cluster.seed": seed}), fresh=True, against="label")
            found.append((done.agreement["v_measure"], time.perf_counter() - started))
        shares = [share for share, _ in found]
        told = f"{statistics.mean(shares):.4f} ({min(shares):.4f} to {max(shares):.4f})"
        print(f"  {'latent cluster, tables written':42} v-measure {told}, {statistics.median(s for _, s in found):.1f} s")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
