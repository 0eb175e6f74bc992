"""`make bench`: our whole job, from files to a committed table, beside the scripts that people would otherwise write, on three corpora.

    .venv/bin/python tests/bench/job.py [--rounds 3] [--only NAME ...] [--json FILE]

Each contestant is a process from its start to its end, alone on the machine, with as many threads as the machine has cores; all of them do each corpus in each
round. One vector a document, cut off at 256 tokens, as the library does it. A job counts only if its table holds each document once. Beside the seconds of our jobs
stand those that `latent plan` foretold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
import numpy as np
from corpora import MODEL, corpora, tokenizer
from report import kept, print_table

from latent.models import resolve

SIZES = {"short": 24_000, "passages": 1_600, "mixed": 4_000}  # documents: a minute or so of the script on 2 cores
FILE_DOCUMENTS = 1_000
SAMPLE = 1_000  # vectors compared
RIVAL = "encode + add"

# --- what people would otherwise write --------------------------------------------------------------------------------


def script(folder: Path) -> None:
    """Read, SentenceTransformer.encode, table.add."""
    import lancedb
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(resolve(MODEL).folder, device="cpu", local_files_only=True)
    database, table = lancedb.connect(folder / "table"), None
    for path in sorted((folder / "src").glob("*.jsonl")):
        documents = [json.loads(line) for line in path.read_text().splitlines()]
        vectors = model.encode([d["text"] for d in documents], normalize_embeddings=True, show_progress_bar=False)
        rows = [{"doc_id": d["id"], "text": d["text"], "vector": v} for d, v in zip(documents, vectors, strict=True)]
        table = table.add(rows) and table if table is not None else database.create_table("docs", rows)


def ray_data(folder: Path) -> None:
    """As Ray Data's documentation embeds texts: a class in map_batches, a model in each of its actors."""
    import lancedb
    import ray

    class Embed:
        def __init__(self) -> None:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(resolve(MODEL).folder, device="cpu", local_files_only=True)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            batch["vector"] = self._model.encode(list(batch["text"]), normalize_embeddings=True, show_progress_bar=False)
            return batch

    cores = os.cpu_count() or 1
    # One slot more than cores: with the actors on all of them the tasks that read would wait for ever.
    ray.init(num_cpus=cores + 1, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    embedded = ray.data.read_json(str(folder / "src"), lines=True).map_batches(Embed, batch_size=64, concurrency=cores, num_cpus=1)
    database, table = lancedb.connect(folder / "table"), None
    for rows in embedded.iter_batches(batch_size=1024, batch_format="numpy"):
        records = [{"doc_id": i, "text": t, "vector": v} for i, t, v in zip(rows["id"], rows["text"], rows["vector"], strict=True)]
        table = table.add(records) and table if table is not None else database.create_table("docs", records)


def latent(precision: str) -> Callable[..., list[str]]:
    """The command that does it."""

    def command(folder: Path, what: str = "run") -> list[str]:
        (folder / "config.toml").write_text(
            f'[source]\nuri = "src/*.jsonl"\n[chunk]\ntokens = "truncate"\n[model]\nprecision = "{precision}"\n[table]\nuri = "table"\n'
        )
        return [sys.executable, "-m", "latent.cli", what, "--json", "--config", str(folder / "config.toml")]

    return command


SCRIPTS: dict[str, Callable[[Path], None]] = {RIVAL: script, "Ray Data": ray_data}
COMMANDS: dict[str, Callable[..., list[str]]] = {
    name: lambda folder, name=name: [sys.executable, __file__, "--child", name, "--folder", str(folder)] for name in SCRIPTS
} | {"latent": latent("auto"), "latent, int8": latent("int8")}


# --- the run ----------------------------------------------------------------------------------------------------------


def do(name: str, folder: Path, documents: int) -> tuple[float, dict[str, np.ndarray]]:
    """Seconds of one job, and the vectors of some documents by id."""
    import lance

    shutil.rmtree(folder / "table", ignore_errors=True)
    seconds, _ = called(COMMANDS[name](folder))
    table = lance.dataset(str(folder / "table" / "docs.lance")).to_table(columns=["doc_id", "vector"])
    ids = table["doc_id"].to_pylist()
    if len(ids) != documents or len(set(ids)) != documents:
        raise SystemExit(f"{name} holds {len(ids)} rows of {len(set(ids))} documents, wanted {documents}")
    vectors = np.stack(table["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)).astype(np.float32)
    order = np.argsort(ids)[:SAMPLE]
    return seconds, vectors[order]


def called(command: list[str]) -> tuple[float, str]:
    """Seconds of a process, and what it says."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_USAGE_STATS_ENABLED": "0"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{command} failed: {done.stderr[-2000:]}")
    return seconds, done.stdout


def foretold(name: str, folder: Path) -> str:
    """Seconds of a job by its plan; nothing for those that make none."""
    if name in SCRIPTS:
        return ""
    shutil.rmtree(folder / "table", ignore_errors=True)
    return str(round(json.loads(called(COMMANDS[name](folder, "plan"))[1])["seconds"], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--json", type=Path, help="Write the rows here too.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        SCRIPTS[options.child](options.folder)
        return
    names = list(dict.fromkeys([RIVAL, *options.only]))
    rows: list[dict[str, Any]] = []
    for corpus, texts in corpora(SIZES).items():
        with tempfile.TemporaryDirectory() as given:
            folder = Path(given)
            (folder / "src").mkdir()
            for at in range(0, len(texts), FILE_DOCUMENTS):
                lines = (json.dumps({"id": f"{i:06}", "text": t}) for i, t in enumerate(texts[at : at + FILE_DOCUMENTS], at))
                (folder / "src" / f"{at:06}.jsonl").write_text("".join(line + "\n" for line in lines))
            tokens = sum(len(each) for each in tokenizer().encode_batch_fast(texts))
            seconds: dict[str, list[float]] = {name: [] for name in names}
            vectors: dict[str, np.ndarray] = {}
            for _ in range(options.rounds):
                for name in names:
                    took, vectors[name] = do(name, folder, len(texts))
                    seconds[name].append(took)
            rows += [
                _row(corpus, name, seconds, vectors, len(texts), tokens) | {"planned": foretold(name, folder)} for name in names
            ]
    print_table(rows, f"whole jobs on {os.cpu_count()} cores, medians of {options.rounds} rounds")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _row(
    corpus: str, name: str, seconds: dict[str, list[float]], vectors: dict[str, np.ndarray], documents: int, tokens: int
) -> dict[str, Any]:
    took = median(seconds[name])
    cosine = (vectors[name] * vectors[RIVAL]).sum(axis=1)
    return {
        "corpus": corpus,
        "job": name,
        "seconds": round(took, 1),
        "documents/s": round(documents / took),
        "tokens/s": round(tokens / took),
        "ratio": round(median(r / s for r, s in zip(seconds[RIVAL], seconds[name], strict=True)), 2),
        "cosine, mean": round(float(cosine.mean()), 5),
        "cosine, least": round(float(cosine.min()), 5),
        "top 10 kept": round(kept(vectors[name], vectors[RIVAL]), 3),
    }


if __name__ == "__main__":
    main()
