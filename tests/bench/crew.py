"""How many workers one driver feeds: a run with the real driver, ledger, table and Ray, and a thousand virtual workers.

    .venv/bin/python tests/bench/crew.py [--workers 1000] [--shards 4000] [--seconds 20]

A virtual worker is a seat of the engine whose calls go to one of a few processes: those read, chunk and write as always, with random numbers for an
encoder, and then wait until so many seconds are over, as if they had encoded. What is told is the driver's own CPU time, a shard and a commit, and what follows from it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]
import numpy as np

from latent import load, store
from latent.ingest import plan, run
from latent.types import Receipt, Shard
from latent.workers import CompletedShard, FailedDocument, WorkerPool

DIM = 384
DOCUMENTS = 20  # a shard
WORDS = 12  # a document
HOSTS = 2  # processes behind the seats
seconds_a_shard = 20.0


class Random:
    """An encoder of the same shape as the real one."""

    def __init__(self, *_: object, **__: object) -> None:
        self._numbers = np.random.default_rng(os.getpid())
        self.loss = None

    def prepare(self, texts: list[str]) -> Any:
        from latent.encoders import TokenizedTexts

        lengths = [len(text.split()) + 2 for text in texts]
        return TokenizedTexts(texts, np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths]), {})

    def attempt(self, given: Any) -> Any:
        from latent.encoders import EncodeResult

        vectors = self._numbers.standard_normal((len(given.texts), DIM), np.float32)
        return EncodeResult(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), {})


class Host:
    """A process that is many workers."""

    def __init__(self, make: Any, seconds: float) -> None:
        from latent.ingest import worker
        from latent.workers.dedup import ChunkRegistryClient

        worker.Encoder = Random
        self._worker, self._seconds = make(ChunkRegistryClient()), seconds
        self._threads = ThreadPoolExecutor(4)

    async def start(self) -> None:
        pass

    async def embed(self, shard: Shard) -> Receipt:
        until = time.monotonic() + self._seconds
        receipt = await asyncio.get_running_loop().run_in_executor(self._threads, self._worker.embed, shard)
        await asyncio.sleep(until - time.monotonic())
        return receipt


class Crowd(WorkerPool):
    """The engine, its seats filled with virtual workers, its own CPU time counted."""

    spent = 0.0  # CPU seconds of the main thread in the engine
    between = 0.0  # and outside of it, from one outcome to the next: the ledger and the commits
    last_cpu = last_wall = first_wall = 0.0
    seats = 0

    def _start_workers(self) -> None:
        import ray

        from latent.workers.dedup import CLAIMS, ChunkRegistryActor
        from latent.workers.pool import _WorkerSlot

        self._claims = ray.remote(ChunkRegistryActor).options(name=CLAIMS, num_cpus=0, max_concurrency=1000).remote()
        host = ray.remote(Host).options(num_cpus=0, max_concurrency=4 * self.seats)
        hosts = [host.remote(self._make, seconds_a_shard) for _ in range(HOSTS)]
        ray.get([each.start.remote() for each in hosts])
        self._slots = [_WorkerSlot(hosts[i % HOSTS]) for i in range(self.seats)]
        self._starting = {seat.actor.start.remote(): seat for seat in self._slots}

    def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument | None]:
        outcomes = super().work(shards)
        Crowd.first_wall = time.perf_counter()
        while True:
            began = time.thread_time()
            outcome = next(outcomes, Crowd)
            ended = time.thread_time()
            Crowd.spent += ended - began
            if outcome is Crowd:
                break
            yield outcome
            Crowd.between += time.thread_time() - ended
        Crowd.last_wall = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=seconds_a_shard, help="How long a virtual worker takes for a shard.")
    options = parser.parse_args()
    globals()["seconds_a_shard"] = options.seconds
    Crowd.seats = options.workers
    commits: list[float] = []
    commit = store.commit

    def timed(*args: Any, **keywords: Any) -> Any:
        began = time.thread_time()
        done = commit(*args, **keywords)
        commits.append(time.thread_time() - began)
        return done

    store.commit = timed
    plan.SHARD_DOCUMENTS = DOCUMENTS
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    with tempfile.TemporaryDirectory() as folder:
        documents = options.shards * DOCUMENTS
        write(Path(folder), documents)
        began, cpu = time.perf_counter(), time.process_time()
        report = run.embed(load(Path(folder) / "config.toml"), engine=Crowd)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        assert report.documents.added == documents
    working = Crowd.last_wall - Crowd.first_wall
    shard = (Crowd.spent + Crowd.between) / options.shards
    print(
        f"{options.workers} virtual workers, {options.shards} shards of {options.seconds:.0f} s each, {documents} documents\n"
        f"wall {wall:.0f} s, {working:.0f} of them at work; the least possible {options.shards * options.seconds / options.workers / 2:.0f} s (two shards a worker at a time)\n"
        f"driver: {cpu:.1f} s of CPU in all; main thread {1000 * Crowd.spent / options.shards:.2f} ms a shard in the engine, "
        f"{1000 * Crowd.between / options.shards:.2f} ms a shard in the ledger, {len(commits)} commits of {1000 * float(np.median(commits)):.0f} ms, the last {1000 * commits[-1]:.0f} ms\n"
        f"so one driver takes {1 / shard:.0f} shards a second: {options.seconds / 2 / shard:.0f} workers at {options.seconds:.0f} s a shard"
    )


def write(folder: Path, documents: int) -> None:
    chance = np.random.default_rng(1)
    (folder / "src").mkdir()
    for at in range(0, documents, 10_000):
        numbers = chance.integers(0, 9999, (min(10_000, documents - at), WORDS)).tolist()
        lines = (json.dumps({"id": f"d{i:08}", "text": " ".join(f"word{n}" for n in row)}) for i, row in enumerate(numbers, at))
        (folder / "src" / f"{at:08}.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "config.toml").write_text('[source]\nuri = "src/*.jsonl"\n[chunk]\ntokens = "truncate"\n[table]\nuri = "table"\n')


if __name__ == "__main__":
    main()
