"""Shards over real Ray workers: deaths, errors, claims."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from types import BuiltinFunctionType

import numpy as np
import pyarrow as pa
import pytest
from ray import cloudpickle
from ray.experimental import tqdm_ray

from latent.errors import EngineError, ModelError, StoreError
from latent.schemas import QUARANTINE
from latent.types import FileSlice, FileState, Receipt, Shard
from latent.workers import ChunkRegistry, CompletedShard, FailedDocument, WorkerPool, WorkerPoolSpec
from latent.workers.dedup import ChunkRegistryActor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers below are in no installed package


def shard(*names: str) -> Shard:
    columns = {"row": list(range(len(names))), "doc_id": list(names), "doc_hash": list(names), "held": [False] * len(names)}
    return Shard((FileSlice(FileState(f"{names[0]}.jsonl", 1, 1), pa.table(columns)),))


def receipt(name: str, encoded: int = 0) -> Receipt:
    return Receipt(name, (), 0, QUARANTINE.empty_table(), (), encoded, 0, 0, 0.0, 0.0, 0.0)


class Fragile:
    """A worker that dies of some documents and fails on others."""

    def __init__(self, claims: ChunkRegistry) -> None:
        pass

    def embed(self, shard: Shard) -> Receipt:
        for name in shard.documents()["doc_id"].to_pylist():
            if name.startswith("deadly"):
                time.sleep(0.05)
                os._exit(1)
            if name.startswith("bad"):
                raise ValueError(f"cannot take {name}")
        return receipt(shard.name)


class Losing:
    """A worker that can do nothing more once it has met some document, like one whose GPU is lost."""

    def __init__(self, claims: ChunkRegistry) -> None:
        self._lost = False

    def embed(self, shard: Shard) -> Receipt:
        self._lost |= "breaking" in shard.documents()["doc_id"].to_pylist()
        if self._lost:
            raise EngineError("cuda fails on whatever it is given")
        return receipt(shard.name)


class Refusing:
    """A worker that cannot load its model."""

    def __init__(self, claims: ChunkRegistry) -> None:
        raise ModelError("model x: not here: install it")

    def embed(self, shard: Shard) -> Receipt:
        raise AssertionError


class Unlucky:
    """A worker to whom the table fails, once for each of some documents, and always for others."""

    def __init__(self, claims: ChunkRegistry) -> None:
        self._met = set[str]()

    def embed(self, shard: Shard) -> Receipt:
        (name,) = shard.documents()["doc_id"].to_pylist()
        if name.startswith("down") or (name.startswith("unlucky") and name not in self._met):
            self._met.add(name)
            raise StoreError("the table answers 503")
        return receipt(shard.name)


class Sharing:
    """A worker whose chunks are the documents' names; it dies holding the claim of `doomed`, but the first time only."""

    def __init__(self, claims: ChunkRegistry) -> None:
        self._claims = claims

    def embed(self, shard: Shard) -> Receipt:
        names = shard.documents()["doc_id"].to_pylist()
        vectors: dict[str, np.ndarray] = {}
        encoded = 0
        while missing := [n for n in names if n not in vectors]:
            granted, committed = self._claims.claim(shard.name, missing)
            vectors |= {n: np.full(3, len(n), np.float32) for n in committed}  # as if out of the table
            if "doomed" in granted and not (flag := Path(os.environ["DOOM"])).exists():
                flag.touch()
                time.sleep(0.5)
                os._exit(1)
            time.sleep(0.2)
            encoded += len(granted)
            vectors |= {n: np.full(3, len(n), np.float32) for n in granted}
            self._claims.publish({n: vectors[n] for n in granted})
            vectors |= self._claims.wait_for([n for n in missing if n not in vectors])
        assert all((vectors[n] == len(n)).all() for n in names)
        return receipt(shard.name, encoded)


class Telling:
    """A worker that says how many threads its libraries may have."""

    def __init__(self, claims: ChunkRegistry) -> None:
        pass

    def embed(self, shard: Shard) -> Receipt:
        return receipt(shard.name, int(os.environ["OMP_NUM_THREADS"]))


def names_of(outcomes: list[CompletedShard | FailedDocument | None], kind: type) -> list[str]:
    return sorted(n for o in outcomes if isinstance(o, kind) for n in o.shard.documents()["doc_id"].to_pylist())


def test_documents_that_kill_or_fail_stand_alone_in_the_end_and_all_others_finish_once() -> None:
    names = [f"d{i:03}" for i in range(60)]
    names[17], names[48], names[49] = "deadly-1", "deadly-2", "bad-1"
    with WorkerPool(WorkerPoolSpec(min_workers=2, max_workers=2), Fragile, 10) as engine:
        outcomes = list(engine.work([shard(*names[i : i + 6]) for i in range(0, 60, 6)]))
    assert names_of(outcomes, FailedDocument) == ["bad-1", "deadly-1", "deadly-2"]
    assert names_of(outcomes, CompletedShard) == sorted(n for n in names if n.startswith("d0"))
    reasons = {o.shard.documents()["doc_id"][0].as_py(): (o.reason, o.traceback) for o in outcomes if isinstance(o, FailedDocument)}
    assert reasons["deadly-1"][0].startswith("encoding failed: the worker died")
    assert "ValueError: cannot take bad-1" in reasons["bad-1"][0]
    assert "test_engine.py" in reasons["bad-1"][1]


def test_a_process_that_can_do_no_more_is_replaced_and_only_the_document_that_broke_it_is_blamed() -> None:
    with WorkerPool(WorkerPoolSpec(max_workers=1), Losing, 4) as engine:
        outcomes = list(engine.work([shard("a", "b"), shard("c", "breaking"), shard("d"), shard("e", "f")]))
    assert names_of(outcomes, FailedDocument) == ["breaking"]
    assert names_of(outcomes, CompletedShard) == ["a", "b", "c", "d", "e", "f"]


def test_what_ray_says_of_a_dead_worker_is_in_the_log_and_not_on_stdout(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "latent"), WorkerPool(WorkerPoolSpec(max_workers=1), Fragile, 2) as engine:
        list(engine.work([shard("a", "deadly"), shard("b")]))
        deadline = time.monotonic() + 30
        while not any("ray: " in message for message in caplog.messages) and time.monotonic() < deadline:
            time.sleep(0.1)  # a thread of Ray's tells it
    assert any("ray: A worker died" in message or "ray: Task" in message for message in caplog.messages)
    printed = capfd.readouterr()
    assert "(raylet)" not in printed.out + printed.err
    assert "\x1b" not in printed.out + printed.err


def test_print_is_left_as_it_is() -> None:
    with WorkerPool(WorkerPoolSpec(max_workers=1), Fragile, 1):
        tqdm_ray.instance()  # as the first line that a worker logs does: numba compiles nothing under another print
    assert isinstance(print, BuiltinFunctionType)


def test_workers_that_die_of_everything_end_the_work_with_one_error() -> None:
    with (
        WorkerPool(WorkerPoolSpec(max_workers=1), Fragile, 1, deaths_in_a_row=3) as engine,
        pytest.raises(EngineError, match="died 6 times in a row"),
    ):
        list(engine.work([shard(*(f"deadly-{i}" for i in range(64)))]))


def test_a_worker_that_cannot_load_its_model_says_so_in_its_own_words() -> None:
    with (
        WorkerPool(WorkerPoolSpec(max_workers=1), Refusing, 1) as engine,
        pytest.raises(ModelError, match="model x: not here: install it"),
    ):
        list(engine.work([shard("a")]))


def test_a_shard_to_which_the_table_fails_is_tried_again_unless_all_fail() -> None:
    with WorkerPool(WorkerPoolSpec(max_workers=1), Unlucky, 8) as engine:
        names = ["a", "unlucky-1", "b", "c", "unlucky-2", "unlucky-3", "d"]
        assert names_of(list(engine.work(shard(name) for name in names)), CompletedShard) == sorted(names)
        with pytest.raises(StoreError, match="answers 503"):
            list(engine.work([shard("a"), shard("down-1"), shard("down-2"), shard("down-3")]))


def test_equal_chunks_are_encoded_by_one_worker_and_a_dead_ones_claims_pass_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOM", str(tmp_path / "flag"))
    shards = [shard(f"own{i}", "same", "alike", *(["doomed"] if i in (1, 2) else [])) for i in range(6)]
    with WorkerPool(WorkerPoolSpec(min_workers=2, max_workers=2), Sharing, len(shards)) as engine:
        outcomes = list(engine.work(shards))
    assert (tmp_path / "flag").exists()
    assert len(names_of(outcomes, CompletedShard)) == 6 * 3 + 2
    # own0..own5, same, alike, doomed: each once. What a dead worker had made is made again by the next.
    assert 9 <= sum(o.receipt.encoded for o in outcomes if isinstance(o, CompletedShard)) <= 9 + 3


def test_a_run_that_is_stopped_takes_what_is_in_hand_and_no_more_and_one_on_hold_waits() -> None:
    with WorkerPool(WorkerPoolSpec(max_workers=1), Fragile, 40) as engine:
        taken, waited = [], 0
        for outcome in engine.work([shard(f"d{i:02}") for i in range(40)]):
            if outcome is not None:
                taken.append(outcome)
                engine.hold = len(taken) >= 3
            elif engine.hold:
                waited += 1
            if waited == 2:
                engine.stop()
    assert waited == 2
    assert 3 <= len(names_of(taken, CompletedShard)) < 40
    assert {(each.receipt.node != "", each.receipt.pid > 0, each.receipt.memory > 1 << 20) for each in taken} == {
        (True, True, True)
    }


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with (
        pytest.raises(EngineError, match=r"Ray at '127.0.0.1:1' does not start.*check \[ray\] address"),
        WorkerPool(WorkerPoolSpec("127.0.0.1:1"), Fragile, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("pool_spec", "expected"),
    [
        (WorkerPoolSpec(min_workers=3, max_workers=3), 3),
        (WorkerPoolSpec(max_workers=7), 7),
        (WorkerPoolSpec(), os.cpu_count()),
        (WorkerPoolSpec(cpus=10**6), 1),
        (WorkerPoolSpec("ray.example:6379"), 64),
    ],
)
def test_as_many_workers_are_planned_for_as_can_be_told_before_ray_is_asked(pool_spec: WorkerPoolSpec, expected: int) -> None:
    assert pool_spec.expected == expected


def test_what_a_run_has_committed_is_told_and_is_nobodys_to_encode_again() -> None:
    book = ChunkRegistryActor()
    hashes = [f"h{i}" for i in range(1000)]

    async def story() -> None:
        for i in range(0, 1000, 10):
            assert await book.claim(f"s{i}", hashes[i : i + 10]) == (hashes[i : i + 10], [])
        assert await book.claim("late", hashes[:20]) == ([], [])  # in hand, not committed
        for i in range(0, 1000, 20):
            await book.mark_committed(f"s{i}")
        assert await book.claim("late", [*hashes[:20], "new"]) == (["new"], hashes[:10])
        assert await book.claim("late", hashes) == ([], [h for i, h in enumerate(hashes) if i // 10 % 2 == 0])
        await book.release("s10")
        assert await book.claim("late", hashes[:20]) == (hashes[10:20], hashes[:10])

    asyncio.run(story())


def test_a_workers_libraries_have_as_many_threads_as_it_has_cores_and_the_drivers_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    with WorkerPool(WorkerPoolSpec(max_workers=1, cpus=2), Telling, 1) as engine:
        outcome = next(each for each in engine.work([shard("a")]) if each is not None)
    assert isinstance(outcome, CompletedShard)
    assert outcome.receipt.encoded == 2
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("RAYON_NUM_THREADS")) == ("7", None)
