"""Embed at low priority, in turns: a job of days that obeys a rate limit and hours, and yields to other runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from latent import store
from latent.config import Config
from latent.errors import (
    SpecMismatch,
    TableBusy,
)
from latent.ingest.resolve import store_of
from latent.ingest.run import PoolFactory, embed, log, quiet
from latent.ingest.throttle import BackfillThrottle
from latent.ingest.tracker import SLOWEST
from latent.store import Store, new_run_id
from latent.types import ChunkCounts, OnProgress, Progress, Report
from latent.workers import WorkerPool


def backfill(
    config: Config,
    on_progress: OnProgress = quiet,
    *,
    retry_quarantined: bool = False,
    allow_deletions: bool = False,
    change_source: bool = False,
    sample: float = 1.0,
    engine: PoolFactory = WorkerPool,
) -> Report:
    """`embed` for a job of days: it keeps to a pace and to hours, can be paused, and gives way to other runs of the table.

    It works in turns, each a run of its own; to go on is to plan again. What stands in the way between two turns keeps neither lease nor workers. A run that
    comes meanwhile leaves to it the files that it has not recorded yet. Raises PipelineError; TableBusy where a backfill is under way.
    """
    place = store_of(config)
    with store.BackfillLock(place, new_run_id()) as lock:
        throttle, turns = BackfillThrottle(config, place, lock), list[Report]()
        while not turns or turns[-1].undone:
            throttle.wait(lambda reason: _tell_waiting(reason, on_progress))
            if turns:
                _refuse_other_columns(place, config)
            try:
                turn = embed(
                    config,
                    on_progress,
                    retry_quarantined=retry_quarantined and not turns,
                    allow_deletions=allow_deletions,
                    change_source=change_source,
                    sample=sample,
                    engine=engine,
                    throttle=throttle,
                )
                turns.append(turn)
            except TableBusy:  # another run came first
                if lock.lock_holder() is None:
                    raise
    return _summed(turns)


def _refuse_other_columns(place: Store, config: Config) -> None:
    """Raise SpecMismatch where a run of a newer config changed the metadata columns: a backfill of days must not change them back."""
    held = sorted((store.metadata_fields(place) or pa.schema([])).names)
    if held != (wanted := sorted(config.source.metadata)):
        raise SpecMismatch(
            f"{place.label}: expected metadata columns {wanted}, got {held} from a run that came meanwhile. "
            "Start the backfill again with the config of that run"
        )


def _tell_waiting(reason: str, on_progress: OnProgress) -> None:
    log.info("the backfill waits: %s", reason)
    on_progress(Progress("wait"))


def _summed(turns: Sequence[Report]) -> Report:
    """The report of all turns together."""
    last, earlier = turns[-1], turns[:-1]
    documents, chunks = last.documents, last.chunks
    for turn in earlier:
        d, c = turn.documents, turn.chunks
        documents = replace(
            documents,
            added=documents.added + d.added,
            changed=documents.changed + d.changed,
            unchanged=documents.unchanged - d.added - d.changed,
            deleted=documents.deleted + d.deleted,
        )
        chunks = ChunkCounts(chunks.encoded + c.encoded, chunks.reused + c.reused, chunks.deleted + c.deleted)
    tokens, seconds = sum(turn.tokens for turn in turns), sum(turn.seconds for turn in turns)
    return replace(
        last,
        documents=documents,
        chunks=chunks,
        tokens=tokens,
        seconds=round(seconds, 2),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        read_seconds=round(sum(turn.read_seconds for turn in turns), 2),
        encode_seconds=round(sum(turn.encode_seconds for turn in turns), 2),
        write_seconds=round(sum(turn.write_seconds for turn in turns), 2),
        cost=round(sum(turn.cost for turn in turns), 4),
        slowest=tuple(sorted((shard for turn in turns for shard in turn.slowest), key=lambda each: -each.seconds)[:SLOWEST]),
    )


def pause(config: Config, *, paused: bool) -> None:
    """Have backfills of the table wait, or go on. Raises StoreError where there is no table."""
    store.pause(store_of(config), paused=paused)
