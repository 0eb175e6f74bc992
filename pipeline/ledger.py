"""A run's book-keeping: receipts into commits, and what was counted on the way."""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import store
from pipeline.engine import Casualty, Finished
from pipeline.errors import PipelineError
from pipeline.schema import FILES, QUARANTINE, RUNS, ChunkCounts, DocumentCounts, Receipt, Report
from pipeline.store import Lease
from pipeline.survey import Outlook, Scene, report_of, same_rows
from pipeline.worker import quarantine_rows

log = logging.getLogger("pipeline")


@dataclass
class Ledger:
    """What a run has done so far: receipts not yet committed, and sums over all."""

    at: Scene
    outlook: Outlook
    lease: Lease
    started: float
    workers: int = 0
    embedded: int = 0
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("read", "encode", "write"), 0.0))

    def __post_init__(self) -> None:
        self.base = self.version = int(self.at.store.opened().version)
        self.started_at = dt.datetime.now(dt.UTC)
        self.total = sum(map(len, self.outlook.plan.shards))
        self.lost = QUARANTINE.empty_table()  # quarantined by workers in this run
        self._pending: list[Receipt] = []
        self._replaced: list[pa.Array] = []
        self._undone = Counter[str]()  # documents to do, by file
        for shard in self.outlook.plan.shards:
            for piece in shard.slices:
                self._undone[piece.file.path] += piece.documents.num_rows

    def take(self, finished: Finished | Casualty) -> None:
        """Count a receipt, or a document that no worker survives."""
        documents = finished.shard.documents()
        if isinstance(finished, Finished):
            outcome = finished.receipt
        else:
            lost = quarantine_rows(documents, [finished.reason], finished.traceback, self.lease.run_id)
            outcome = Receipt(finished.shard.name, (), 0, lost, (), 0, 0, 0, 0.0, 0.0, 0.0)
        stale = pc.is_in(documents["doc_id"], value_set=pa.array(outcome.stale, pa.string()))
        fresh = documents.filter(pc.invert(stale))
        self._undone.subtract(fresh["source_file"].to_pylist())
        self._replaced.append(fresh.filter(fresh["held"])["doc_id"].combine_chunks())
        self._pending.append(outcome)
        self.lost = pa.concat_tables([self.lost, outcome.quarantined])
        self.embedded += fresh.num_rows - outcome.quarantined.num_rows
        self.tokens += outcome.tokens
        gone = pc.is_in(documents["doc_id"], value_set=outcome.quarantined["doc_id"].combine_chunks())
        undone = documents.filter(pc.or_(stale, gone))
        held = pc.sum(undone["held"]).as_py() or 0
        self.counts.update(encoded=outcome.encoded, reused=outcome.reused, stale=len(outcome.stale))
        self.counts.update(undone_changed=held, undone_added=undone.num_rows - held)
        for what, spent in (("read", outcome.read_s), ("encode", outcome.encode_s), ("write", outcome.write_s)):
            self.seconds[what] += spent
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

    def commit(self, *, last: bool = False) -> list[str]:
        """Make what is pending visible, then record quarantine and file states; returns the shards' names.

        Deletions go last: their vectors are reused until then, and no document that moved is among them.
        """
        plan, run_id = self.outlook.plan, self.lease.run_id
        replaced = pa.concat_arrays([pa.array([], pa.string()), *self._replaced, *([plan.deleted] if last else [])])
        shards = [receipt.shard for receipt in self._pending]
        fragments = [f for receipt in self._pending for f in receipt.fragments]
        if fragments or len(replaced):
            done = store.commit_rows(
                self.at.store, self.lease, fragments=fragments, replaced=replaced, shards=shards, since=self.version
            )
            self.version = done.version
            self.counts["deleted"] += done.rows_deleted
            log.info("version %d: %d rows in, %d out", done.version, done.rows_added, done.rows_deleted)
        self._pending, self._replaced = [], []
        quarantine = pa.concat_tables([plan.quarantined, self.lost])
        self.lease.check()
        if not same_rows(quarantine, store.read_side(self.at.store, "quarantine"), QUARANTINE):
            store.replace_side(self.at.store, "quarantine", quarantine, run_id)
        if last or not len(plan.deleted):
            files = self._files()
            if not same_rows(files, store.read_side(self.at.store, "files"), FILES):
                store.replace_side(self.at.store, "files", files, run_id)
        return shards

    def commit_if_possible(self) -> None:
        """Before an error is passed on: keep what is finished, if the table still takes it."""
        try:
            self.commit()
        except PipelineError as error:
            log.warning("finished shards could not be committed: %s", error)

    def report(self) -> Report:
        counts, planned = self.counts, self.outlook.plan.documents
        seconds = time.perf_counter() - self.started
        documents = DocumentCounts(
            added=planned.added - counts["undone_added"],
            changed=planned.changed - counts["undone_changed"],
            unchanged=planned.unchanged,
            deleted=planned.deleted,
            quarantined=planned.quarantined + self.lost.num_rows,
        )
        return replace(
            report_of(self.lease.run_id, self.outlook, documents),
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
        )

    def record(self, status: str) -> None:
        """Say in the table of runs where this one stands: running, done, interrupted or failed."""
        row = {
            "run_id": self.lease.run_id,
            "status": status,
            "started_at": self.started_at,
            "finished_at": None if status == "running" else dt.datetime.now(dt.UTC),
            "table_version": self.version,
            "report": json.dumps(asdict(self.report())),
        }
        store.write_run(self.at.store, pa.Table.from_pylist([row], schema=RUNS))

    def _files(self) -> pa.Table:
        """File states, those of files with documents still to do as they were."""
        target, recorded = self.outlook.plan.files, self.outlook.survey.recorded
        undone = pa.array([path for path, count in self._undone.items() if count > 0], pa.string())
        done = target.filter(pc.invert(pc.is_in(target["path"], value_set=undone)))
        return pa.concat_tables([done, recorded.filter(pc.is_in(recorded["path"], value_set=undone))])
