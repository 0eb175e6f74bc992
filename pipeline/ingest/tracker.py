"""A run's book-keeping: receipts into commits, and what was counted on the way."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from latent import interruption, store
from latent.encoders import Canary
from latent.errors import PipelineError
from latent.ingest.canary_check import compare
from latent.ingest.resolve import ResolvedConfig
from latent.ingest.scan import ScanPlan, cost_of, reasons_of, report_of, same_rows
from latent.ingest.worker import quarantine_rows
from latent.monitoring import metrics
from latent.schemas import QUARANTINE, RUNS
from latent.store import Lease, Side, TableUpdate
from latent.types import ChunkCounts, DocumentCounts, Progress, Receipt, Report, ShardTiming
from latent.workers import CompletedShard, FailedDocument

log = logging.getLogger("latent")
SLOWEST = 5  # shards that a report tells of


@dataclass
class RunTracker:
    """What a run has done so far: receipts not yet committed, and sums over all."""

    at: ResolvedConfig
    scan_plan: ScanPlan
    lease: Lease
    started: float
    earlier: int = 0  # documents that earlier turns of a backfill committed
    workers: int = 0
    embedded: int = 0
    committed: int = 0  # of those embedded
    yielded_reason: str | None = None  # why
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "encode", "write"), 0.0))

    def __post_init__(self) -> None:
        self.base = self.version = self.scan_plan.table_version or 1  # just created
        self.started_at = dt.datetime.now(dt.UTC)
        self.total = sum(map(len, self.scan_plan.plan.shards))
        self.lost = QUARANTINE.empty_table()  # quarantined by workers in this run
        self._sides: dict[Side, pa.Table] = {"files": self.scan_plan.scan.recorded, "quarantine": self.scan_plan.scan.quarantine}
        self._pending: list[Receipt] = []
        self._replaced: list[pa.Array] = []
        self._ended = False  # the last commit is made
        earlier = self.scan_plan.scan.quarantine
        # Id and file of the quarantined documents that workers are not through with.
        self._untried = set(zip(earlier["doc_id"].to_pylist(), earlier["source_file"].to_pylist(), strict=True))
        self._undone = Counter[str](self.scan_plan.plan.left)  # documents to do, by file
        for shard in self.scan_plan.plan.shards:
            for piece in shard.slices:
                self._undone[piece.file.path] += piece.documents.num_rows
        planned = self.scan_plan.plan.documents
        self.counts.update(undone_added=planned.added, undone_changed=planned.changed)  # until a worker is through with them
        self.slowest: list[ShardTiming] = []
        self._working_since = time.monotonic()
        self._canary = self._canary_kept = ""  # of the first worker, if the table has none
        interruption.describe(self.stopped())

    @interruption.deferred()
    def adapt_table(self) -> None:
        """Give the table the metadata columns and the source that the config names, before a row is written."""
        place, scan_plan = self.at.store, self.scan_plan
        self.base = self.version = store.adapt(place, self.lease, scan_plan.metadata, scan_plan.source, self.version)

    @interruption.deferred()  # books that were half kept would lose a document, or commit it twice
    def take(self, finished: CompletedShard | FailedDocument) -> None:
        """Count a receipt, or a document that no worker survives."""
        documents = finished.shard.documents()
        if isinstance(finished, CompletedShard):
            outcome = finished.receipt
            self._hear(outcome.canary)
        else:
            lost = quarantine_rows(documents, [finished.reason], finished.traceback, self.lease.run_id)
            outcome = Receipt(finished.shard.name, (), 0, lost, (), 0, 0, 0, 0.0, 0.0, 0.0)
        stale = pc.is_in(documents["doc_id"], value_set=pa.array(outcome.stale, pa.string()))
        fresh = documents.filter(pc.invert(stale))
        self._undone.subtract(fresh["source_file"].to_pylist())
        self._replaced.append(fresh.filter(fresh["held"])["doc_id"].combine_chunks())
        if self._untried:
            self._untried -= set(zip(fresh["doc_id"].to_pylist(), fresh["source_file"].to_pylist(), strict=True))
        self._pending.append(outcome)
        self.lost = pa.concat_tables([self.lost, outcome.quarantined]) if outcome.quarantined.num_rows else self.lost
        self.embedded += fresh.num_rows - outcome.quarantined.num_rows
        self.tokens += outcome.tokens
        gone = pc.is_in(documents["doc_id"], value_set=outcome.quarantined["doc_id"].combine_chunks())
        done = documents.filter(pc.invert(pc.or_(stale, gone)))
        changed, held = (int(pc.sum(done[name]).as_py() or 0) for name in ("changed", "held"))
        self.counts.update(encoded=outcome.encoded, reused=outcome.reused, stale=len(outcome.stale), taken=documents.num_rows)
        self.counts.subtract({"undone_changed": changed, "undone_added": done.num_rows - held})
        for what, spent in (("read", outcome.read_s), ("encode", outcome.encode_s), ("write", outcome.write_s)):
            self.seconds[what] += spent
        metrics.took(self.at.store.name, outcome)
        metrics.stands(self.at.store.name, self.progress())
        self._note(ShardTiming(outcome.shard, outcome.node, documents.num_rows, outcome.tokens, round(outcome.seconds, 2)))
        log.info(
            "shard %s: %d documents, %d chunks encoded, %d reused, %d tokens; read %.1f s, encode %.1f s, write %.1f s",
            outcome.shard[:8],
            fresh.num_rows,
            outcome.encoded,
            outcome.reused,
            outcome.tokens,
            outcome.read_s,
            outcome.encode_s,
            outcome.write_s,
        )

    def _hear(self, canary: str) -> None:
        """Keep the first worker's vectors of fixed texts; raise SpecMismatch if another worker's are others."""
        if canary and self._canary:
            compare(Canary.from_json(canary), self._canary, self.at.spec, "another worker")
        self._canary = self._canary or canary

    @interruption.deferred()
    def commit(self, *, last: bool = False) -> list[str]:
        """Make what is pending visible, with the file states and the quarantine that go with it; returns the shards' names.

        Deletions go last: their vectors are reused until then, and no document that moved is among them.
        """
        last = last or self._ended
        replaced = pa.concat_arrays([pa.array([], pa.string()), *self._replaced, *([self.scan_plan.plan.deleted] if last else [])])
        shards = [receipt.shard for receipt in self._pending]
        fragments = [f for receipt in self._pending for f in receipt.fragments]
        target: dict[Side, pa.Table] = {"files": self._files(last=last), "quarantine": self._quarantine(last=last)}
        sides = {side: rows for side, rows in target.items() if not same_rows(rows, self._sides[side], rows.schema)}
        if fragments or len(replaced) or sides:
            done = store.commit(self.at.store, self.lease, TableUpdate(fragments, replaced, shards, sides), since=self.version)
            self.version = done.version
            self.counts["deleted"] += done.rows_deleted
            metrics.COMMITS.labels(self.at.store.name).inc()
            log.info("version %d: %d rows in, %d out", done.version, done.rows_added, done.rows_deleted)
        if self._canary and self._canary != self._canary_kept:
            self.lease.check()
            store.write_canary(self.at.store, self.at.spec, self._canary)
            self._canary_kept = self._canary
        self._sides |= sides
        self._pending, self._replaced, self._ended = [], [], last
        self.committed = self.embedded
        interruption.describe(self.stopped())
        return shards

    def commit_if_possible(self) -> None:
        """Before an error is passed on: keep what is finished, if the table still takes it."""
        try:
            self.commit()
        except PipelineError as error:
            log.warning("finished shards could not be committed: %s", error)

    def record_if_possible(self, status: str, reason: str) -> None:
        """Before an error is passed on: the error is what the user must read, not that it could not be recorded."""
        with contextlib.suppress(PipelineError):
            self.record(status, reason)

    def stopped(self) -> str:
        """What to say where a stop signal ends the run now."""
        done, total = self.earlier + self.committed, self.earlier + self.total
        return f"stopped: {done} of {total} documents are committed; 'latent run' goes on from there"

    @property
    def undone(self) -> int:
        """Documents of the plan that no worker is through with."""
        return self.total - self.counts["taken"]

    def progress(self) -> Progress:
        """Where the run stands; the time left by the pace so far."""
        spent = time.monotonic() - self._working_since
        left = self.undone * spent / (self.total - self.undone) if self.undone < self.total else None
        return Progress("encode", self.embedded, self.total, self.tokens, self.lost.num_rows, left)

    def report(self) -> Report:
        counts, planned = self.counts, self.scan_plan.plan.documents
        seconds = time.perf_counter() - self.started
        documents = DocumentCounts(
            added=planned.added - counts["undone_added"],
            changed=planned.changed - counts["undone_changed"],
            unchanged=planned.unchanged,
            deleted=planned.deleted if self._ended else 0,
            quarantined=planned.quarantined + self.lost.num_rows,
        )
        return replace(
            report_of(self.lease.run_id, self.scan_plan, documents),
            undone=self.undone,
            table_version=self.version,
            chunks=ChunkCounts(counts["encoded"], counts["reused"], counts["deleted"]),
            tokens=self.tokens,
            stale=counts["stale"],
            read_seconds=round(self.seconds["read"], 2),
            encode_seconds=round(self.seconds["encode"], 2),
            write_seconds=round(self.seconds["write"], 2),
            workers=self.workers,
            seconds=round(seconds, 2),
            tokens_per_second=round(self.tokens / seconds, 1),
            cost=cost_of(self.tokens, self.at.config),
            reasons=reasons_of(pa.concat_tables([self.scan_plan.plan.quarantined, self.lost])),
            slowest=tuple(self.slowest),
        )

    def _note(self, shard: ShardTiming) -> None:
        """Keep it if it is among the slowest."""
        self.slowest = sorted([*self.slowest, shard], key=lambda each: -each.seconds)[:SLOWEST]

    def record(self, status: str, reason: str | None = None) -> None:
        """Say in the table of runs where this one stands, and why: running, done, gave way, interrupted or failed."""
        if status != "running":
            metrics.ended(self.at.store.name, status)
        row = {
            "run_id": self.lease.run_id,
            "status": status,
            "started_at": self.started_at,
            "finished_at": None if status == "running" else dt.datetime.now(dt.UTC),
            "table_version": self.version,
            "report": json.dumps(asdict(self.report())),
            "reason": reason,
        }
        store.write_runs(self.at.store, pa.Table.from_pylist([row], schema=RUNS))

    def _files(self, *, last: bool) -> pa.Table:
        """File states: new where a file waits for nothing, else as they were."""
        target, recorded = self.scan_plan.plan.files, self.scan_plan.scan.recorded
        new = target.filter(pc.invert(self._waits(target["path"], last=last)))
        return pa.concat_tables([new, recorded.filter(self._waits(recorded["path"], last=last))])

    def _quarantine(self, *, last: bool) -> pa.Table:
        """Quarantine: as planned where a file waits for nothing, else as it was, without the documents that workers are through with."""
        planned, recorded = self.scan_plan.plan.quarantined, self.scan_plan.scan.quarantine
        if last:
            return pa.concat_tables([planned, self.lost])
        told = planned.filter(pc.invert(self._waits(planned["source_file"], last=False)))
        earlier = recorded.filter(self._waits(recorded["source_file"], last=False))
        keys = zip(earlier["doc_id"].to_pylist(), earlier["source_file"].to_pylist(), strict=True)
        untried = earlier.filter(pa.array([key in self._untried for key in keys], pa.bool_()))
        return pa.concat_tables([told, untried, self.lost])

    def _waits(self, paths: pa.ChunkedArray, *, last: bool) -> pa.Array:
        """Whether a file has documents still to do. All have while deletions are still to be made."""
        if len(self.scan_plan.plan.deleted) and not last:
            return pa.array([True] * len(paths), pa.bool_())
        undone = pa.array([path for path, count in self._undone.items() if count > 0], pa.string())
        return pc.is_in(paths, value_set=undone)
