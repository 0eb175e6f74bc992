"""Figures of a run for Prometheus, shown while it lasts. Workers have no port: what they measure comes with their receipts.

latent_run_documents{table, state}         planned | embedded | quarantined, of the run under way
latent_run_seconds_left{table}             by the pace so far
latent_run_workers{table}
latent_run_tokens_total{table}             encoded
latent_run_chunks_total{table, kind}       encoded | reused
latent_run_commits_total{table}
latent_runs_total{table, status}           ended: done | gave way | interrupted | failed
latent_shard_seconds{table, stage}         read | encode | write
latent_worker_tokens_total{table, node}
latent_worker_memory_bytes{table, node, worker}   the most that its process held
latent_index_recall{table}                 as maintain measured it
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from pipeline.schema import Progress, Receipt

log = logging.getLogger("pipeline")
REGISTRY = CollectorRegistry()
DOCUMENTS = Gauge("latent_run_documents", "Documents of the run under way", ["table", "state"], registry=REGISTRY)
LEFT = Gauge("latent_run_seconds_left", "Seconds to the end of the run, by its pace so far", ["table"], registry=REGISTRY)
WORKERS = Gauge("latent_run_workers", "Workers of the run", ["table"], registry=REGISTRY)
TOKENS = Counter("latent_run_tokens", "Tokens encoded", ["table"], registry=REGISTRY)
CHUNKS = Counter("latent_run_chunks", "Passages, by whether their vector was made or known", ["table", "kind"], registry=REGISTRY)
COMMITS = Counter("latent_run_commits", "Versions of the table that the run made", ["table"], registry=REGISTRY)
RUNS = Counter("latent_runs", "Runs that ended", ["table", "status"], registry=REGISTRY)
SECONDS = Histogram(
    "latent_shard_seconds",
    "Seconds of a shard",
    ["table", "stage"],
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
    registry=REGISTRY,
)
WORKER_TOKENS = Counter("latent_worker_tokens", "Tokens encoded on a machine", ["table", "node"], registry=REGISTRY)
WORKER_MEMORY = Gauge(
    "latent_worker_memory_bytes", "Bytes that a worker's process held at most", ["table", "node", "worker"], registry=REGISTRY
)
RECALL = Gauge("latent_index_recall", "Recall@10 of the vector index, as measured", ["table"], registry=REGISTRY)


@contextmanager
def shown_at(listen: str) -> Iterator[None]:
    """Serve the figures at host:port for the length of the block; nowhere where that is empty, or taken: a run does not fail for its figures."""
    host, _, port = listen.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host, REGISTRY) if listen else (None, None)
    except OSError as error:
        log.warning("no figures for Prometheus: %s cannot be listened on (%s): set [metrics] listen", listen, error.strerror)
        server, thread = None, None
    try:
        yield
    finally:
        if server is not None and thread is not None:
            server.shutdown()
            server.server_close()
            thread.join()


def took(table: str, receipt: Receipt) -> None:
    """A worker is through with a shard."""
    TOKENS.labels(table).inc(receipt.tokens)
    CHUNKS.labels(table, "encoded").inc(receipt.encoded)
    CHUNKS.labels(table, "reused").inc(receipt.reused)
    for stage, seconds in (("read", receipt.read_s), ("encode", receipt.encode_s), ("write", receipt.write_s)):
        SECONDS.labels(table, stage).observe(seconds)
    if receipt.node:
        WORKER_TOKENS.labels(table, receipt.node).inc(receipt.tokens)
        WORKER_MEMORY.labels(table, receipt.node, str(receipt.pid)).set(receipt.memory)


def stands(table: str, moment: Progress) -> None:
    """Where the run stands."""
    for state, count in (("planned", moment.total), ("embedded", moment.documents), ("quarantined", moment.quarantined)):
        DOCUMENTS.labels(table, state).set(count)
    LEFT.labels(table).set(moment.seconds_left or 0)
