"""Shards over workers: the only room with Ray in it, and it knows nothing of what a worker does with a shard.

Plain actors that load once and live long, each with a small window of shards, not Ray Data: first results came after 4 s instead of 16–45 s, and
retries are ours. A worker that dies takes its whole window with it, so the suspects are tried again, each alone. A shard that
kills a worker alone is halved until the guilty document stands by itself.

`engine` is the room's door; `claims` is the book of who encodes what.
"""

from latent.workers.dedup import ChunkRegistry
from latent.workers.pool import CompletedShard, FailedDocument, ShardWorker, WorkerFactory, WorkerPool, WorkerPoolSpec

__all__ = ["ChunkRegistry", "CompletedShard", "FailedDocument", "ShardWorker", "WorkerFactory", "WorkerPool", "WorkerPoolSpec"]
