"""`make bench`: our encoder against what people would otherwise write, on three corpora, in one interleaved run.

    .venv/bin/python tests/bench/speed.py [--rounds 3] [--threads N] [--only NAME ...] [--json FILE]

Each contestant is a process of its own with its model loaded. In each round all of them encode the same texts, one after another, each alone on the
machine; what is told are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any, Self

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
import numpy as np
from corpora import MODEL, corpora, tokenizer
from report import kept, print_table

from latent.models import resolve

SIZES = {"short": 2000, "passages": 100, "mixed": 300}  # texts: some 5 s of the slowest on 2 cores
Encode = Callable[[list[str]], np.ndarray]


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


def onnx(threads: int) -> Encode:
    """ONNX Runtime with the same weights, batches of 32 of like length, as tools built on it do."""
    import onnxruntime
    import torch

    model = _sentence_transformer(threads)
    names = ["input_ids", "attention_mask"]

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model[0].model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    example = model.preprocess(["one two", "three"])
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        axes = {name: {0: "texts", 1: "tokens"} for name in [*names, "hidden"]}
        given = tuple(example[name] for name in names)
        torch.onnx.export(Hidden(), given, file.name, input_names=names, output_names=["hidden"], dynamic_axes=axes, dynamo=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file.name, settings)
    reader = tokenizer()
    reader.enable_padding()

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.empty((len(texts), 384), np.float32)
        for at in range(0, len(order), 32):
            batch = order[at : at + 32]
            found = reader.encode_batch([texts[i] for i in batch])
            mask = np.array([each.attention_mask for each in found])
            (hidden,) = session.run(None, {"input_ids": np.array([each.ids for each in found]), "attention_mask": mask})
            pooled = (hidden * mask[..., None]).sum(axis=1)
            vectors[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    return encode


def ours(threads: int, precision: str = "auto") -> Encode:
    from latent.encoders import Encoder

    return Encoder(resolve(MODEL), device="cpu", threads=threads, precision=precision).encode


def ours_int8(threads: int) -> Encode:
    return ours(threads, "int8")


def workers(threads: int, precision: str = "auto") -> Encode:
    """As a run does it: a process a thread."""
    processes = ProcessPoolExecutor(threads, multiprocessing.get_context("spawn"))
    list(processes.map(_encode, repeat(precision), [["load"]] * 4 * threads))

    def encode(texts: list[str]) -> np.ndarray:
        parts = [texts[first::threads] for first in range(threads)]
        vectors = np.empty((len(texts), 384), np.float32)
        for first, part in enumerate(processes.map(_encode, repeat(precision), parts)):
            vectors[first::threads] = part
        return vectors

    return encode


def workers_int8(threads: int) -> Encode:
    return workers(threads, "int8")


@cache
def _encoder(precision: str) -> Encode:
    return ours(1, precision)


def _encode(precision: str, texts: list[str]) -> np.ndarray:
    return _encoder(precision)(texts)


def _sentence_transformer(threads: int) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return SentenceTransformer(resolve(MODEL).folder, device="cpu", local_files_only=True)


CONTESTANTS: dict[str, Callable[[int], Encode]] = {
    "encode": script,
    "encode by 32": loop,
    "encode, pool": pool,
    "ONNX Runtime": onnx,
    "latent": ours,
    "latent, workers": workers,
    "latent, int8": ours_int8,
    "latent, int8, workers": workers_int8,
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
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(Contestant(name, threads)) for name in names}
        for corpus, texts in corpora(SIZES).items():
            path = folder / f"{corpus}.json"
            path.write_text(json.dumps(texts))
            lengths = np.array([len(each) for each in tokenizer().encode_batch_fast(texts)])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--json", type=Path, help="Write the rows here too.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        names = list(dict.fromkeys([RIVAL, *options.only]))
        scores = list(measure(names, options.rounds, options.threads, Path(folder)))
    rows = [row(s, next(r for r in scores if (r.corpus, r.name) == (s.corpus, RIVAL))) for s in scores]
    print_table(rows, f"encoders, {options.threads} threads, medians of {options.rounds} rounds")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
