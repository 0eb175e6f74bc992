"""Figures for Prometheus: of a run while it lasts, and of the table between runs. Workers have no port: what they measure comes with their receipts.

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

Those of the table come from its table of runs, so a night that is over before a scrape is seen all the same:

latent_table_readable{table}               1, or 0 while the table cannot be read
latent_last_success_timestamp_seconds{table}   when the newest run with status done ended
latent_last_run_timestamp_seconds{table}   when the newest run that is over ended
latent_last_run_status{table, status}      1 for the status it has
latent_last_run_documents{table, state}    added | changed | unchanged | deleted | quarantined
latent_last_run_chunks{table, kind}        encoded | reused | deleted
latent_last_run_tokens{table}
latent_last_run_seconds{table}
latent_index_recall{table}, latent_index_recall_wanted{table}   of the vector index, as maintain measured it; absent while searches are exact
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from latent.errors import PipelineError
from latent.types import Progress, Receipt

log = logging.getLogger("latent")
FRESH_S = 30.0  # the table is read at most so often
STATUSES = ("done", "gave way", "interrupted", "failed", "died")
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


@dataclass(frozen=True)
class LastRun:
    """The newest run of the table that is over, as the table of runs has it."""

    status: str
    ended: float  # Unix time
    documents: Mapping[str, int]
    chunks: Mapping[str, int]
    tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class TableFigures:
    """Where a table stands between runs."""

    last_success: float | None  # Unix time
    last_run: LastRun | None
    recall: float | None
    recall_wanted: float | None


class TableCollector(Collector):
    """A table's figures, read when they are asked for, at most every FRESH_S. `read` may raise PipelineError."""

    def __init__(self, table: str, read: Callable[[], TableFigures]) -> None:
        self._table, self._read = table, read
        self._lock, self._until, self._known = threading.Lock(), 0.0, list[Metric]()

    def collect(self) -> list[Metric]:
        with self._lock:
            if time.monotonic() > self._until:
                try:
                    figures: TableFigures | None = self._read()
                except PipelineError as error:
                    log.debug("no figures of %s: %s", self._table, error)
                    figures = None
                self._known = _told(self._table, figures)
                self._until = time.monotonic() + FRESH_S
            return self._known


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """A registry of these alone."""
    registry = CollectorRegistry()
    for each in collectors:
        registry.register(each)
    return registry


def _told(table: str, figures: TableFigures | None) -> list[Metric]:
    def gauge(name: str, about: str, values: Mapping[str, float | None], label: str = "") -> Metric:
        family = GaugeMetricFamily(f"latent_{name}", about, labels=["table", label] if label else ["table"])
        for value, number in values.items():
            if number is not None:
                family.add_metric([table, value] if label else [table], number)
        return family

    readable = gauge("table_readable", "Whether the table could be read", {"": float(figures is not None)})
    if figures is None:
        return [readable]
    run = figures.last_run
    statuses = dict.fromkeys(STATUSES, 0.0) | {run.status: 1.0} if run else {}
    documents, chunks = (run.documents, run.chunks) if run else ({}, {})
    return [
        readable,
        gauge("last_success_timestamp_seconds", "When the newest run that was done ended", {"": figures.last_success}),
        gauge("last_run_timestamp_seconds", "When the newest run that is over ended", {"": run.ended if run else None}),
        gauge("last_run_status", "1 for the status of the newest run that is over", statuses, "status"),
        gauge("last_run_documents", "Documents of that run", documents, "state"),
        gauge("last_run_chunks", "Passages of that run", chunks, "kind"),
        gauge("last_run_tokens", "Tokens that run encoded", {"": run.tokens if run else None}),
        gauge("last_run_seconds", "Seconds that run took", {"": run.seconds if run else None}),
        gauge("index_recall", "Recall@10 of the vector index, as measured", {"": figures.recall}),
        gauge("index_recall_wanted", "[index] recall when that was measured", {"": figures.recall_wanted}),
    ]


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


def ended(table: str, status: str) -> None:
    """A run is over."""
    RUNS.labels(table, status).inc()
    LEFT.labels(table).set(0)
    WORKERS.labels(table).set(0)
