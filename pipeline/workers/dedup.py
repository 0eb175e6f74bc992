"""Registry of chunks in flight: who encodes which chunk, so that equal chunks of a run are encoded once, whichever shards they are in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

CLAIMS = "claims"  # the actor's name, within this run's own namespace


class ChunkRegistry(Protocol):
    """Who encodes which chunk, so that equal chunks of a run are encoded once, whichever shards they are in."""

    def claim(self, shard: str, hashes: Sequence[str]) -> tuple[list[str], list[str]]:
        """The hashes that nobody has claimed before: they are this shard's to publish. And those that this run has committed already."""

    def publish(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Give the vectors of claimed hashes to whoever waits for them."""

    def wait_for(self, hashes: Sequence[str]) -> dict[str, np.ndarray]:
        """Wait for vectors that others have claimed. Those whose claim was given up are left out."""


class ChunkRegistryClient:
    """`ChunkRegistry` as a worker calls it. Found by name: a handle in a constructor's arguments would not outlive a restart (ray#53727)."""

    def __init__(self) -> None:
        import ray

        self._actor = ray.get_actor(CLAIMS)

    def claim(self, shard: str, hashes: Sequence[str]) -> tuple[list[str], list[str]]:
        import ray

        granted, committed = ray.get(self._actor.claim.remote(shard, list(hashes)))
        return list(granted), list(committed)

    def publish(self, vectors: Mapping[str, np.ndarray]) -> None:
        if vectors:
            self._actor.publish.remote(list(vectors), np.stack(list(vectors.values())))

    def wait_for(self, hashes: Sequence[str]) -> dict[str, np.ndarray]:
        import ray

        return dict(ray.get(self._actor.wait_for.remote(list(hashes)))) if hashes else {}


class _Committed:
    """Chunk hashes, eight bytes each, so that a run of a hundred million chunks needs less than a gigabyte. Another may be taken for one of them."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []  # sorted, each more than twice as long as the next

    def add(self, hashes: Sequence[str]) -> None:
        part = _short(hashes)
        while self._parts and len(self._parts[-1]) <= 2 * len(part):
            part = np.concatenate([self._parts.pop(), part])
        self._parts.append(np.sort(part, kind="stable"))

    def among(self, hashes: Sequence[str]) -> list[str]:
        wanted = _short(hashes)
        found = np.zeros(len(wanted), bool)
        for part in self._parts:
            found |= part[np.minimum(np.searchsorted(part, wanted), len(part) - 1)] == wanted
        return [h for h, there in zip(hashes, found, strict=True) if there]


def _short(hashes: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(hash, hashes), np.int64, len(hashes))


class ChunkRegistryActor:
    """The book of claims: an entry a chunk from claim to commit, its vector from publication on."""

    def __init__(self) -> None:
        self._vectors: dict[str, asyncio.Future[np.ndarray | None]] = {}
        self._of_shard: dict[str, list[str]] = {}
        self._committed = _Committed()

    async def claim(self, shard: str, hashes: list[str]) -> tuple[list[str], list[str]]:
        unclaimed = [h for h in hashes if h not in self._vectors]
        committed = self._committed.among(unclaimed)
        known = set(committed)
        free = [h for h in unclaimed if h not in known]
        self._vectors |= {h: asyncio.get_running_loop().create_future() for h in free}
        self._of_shard.setdefault(shard, []).extend(free)
        return free, committed

    async def publish(self, hashes: list[str], vectors: np.ndarray) -> None:
        own = vectors.copy()  # what arrives lies in Ray's object store, and would keep its place there until the commit
        for h, vector in zip(hashes, own, strict=True):
            if (entry := self._vectors.get(h)) is not None and not entry.done():
                entry.set_result(vector)

    async def wait_for(self, hashes: list[str]) -> dict[str, np.ndarray]:
        entries = {h: self._vectors[h] for h in hashes if h in self._vectors}
        vectors = dict(zip(entries, await asyncio.gather(*entries.values()), strict=True))
        return {h: vector for h, vector in vectors.items() if vector is not None}

    async def mark_committed(self, shard: str) -> None:
        if own := self._of_shard.pop(shard, []):
            self._committed.add(own)
        for h in own:
            self._vectors.pop(h, None)

    async def release(self, shard: str) -> None:
        """Whoever waits is let go, and may claim for itself."""
        for h in self._of_shard.pop(shard, []):
            entry = self._vectors.pop(h, None)
            if entry is not None and not entry.done():
                entry.set_result(None)
