"""Another model without a pause.

The documents are embedded by the new model into a table beside the first, which is searched and kept up to date all the while; killed half-way, this goes on
when it is started again. Both are compared, by meaning where [search] mode is text. The switch is one version of the first table: before it every reader sees
the old vectors, after it the new ones, and none sees both. What the table was stays as a version, for `rollback`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from latent import store
from latent.config import Config
from latent.errors import ForeignTable, QueryError
from latent.evaluation.datasets import Judgments, Queries
from latent.evaluation.evaluator import Comparison, Evaluation, compare, evaluate, known_items
from latent.ingest import maintenance, run
from latent.ingest.resolve import ResolvedConfig, resolve, resolve_and_check, same_vectors
from latent.ingest.run import PoolFactory
from latent.search import SearchOptions, SearchTable
from latent.store import Store
from latent.types import OnProgress
from latent.workers import WorkerPool

log = logging.getLogger("latent")

GATE = "ndcg@10"
SIGNIFICANCE = 0.05  # a difference that chance makes as often as this is none


@dataclass(frozen=True)
class Migration:
    """What came of it."""

    table: str  # beside the first
    before_model: str
    model: str
    before: Evaluation
    after: Evaluation
    compared: Comparison  # after less before
    former_version: int  # of the first table, before the switch
    table_version: int | None  # after it; None: not switched
    held: str | None  # which condition for a switch was met: "asked for" | "better" | "not worse"; None: none

    def flat(self) -> dict[str, object]:
        """As `--json` prints it."""
        sides = {"before": {"model": self.before_model} | self.before.flat(), "after": {"model": self.model} | self.after.flat()}
        return {
            "switched": self.table_version is not None,
            "table_version": self.table_version,
            "former_version": self.former_version,
            "held": self.held,
            **sides,
            "difference": self.compared.differences,
            "p": self.compared.p,
        }


def migrate(
    config: Config,
    model: Mapping[str, str],
    on_progress: OnProgress = run.quiet,
    *,
    judged: tuple[Queries, Judgments] | None = None,
    if_better: bool = False,
    not_worse_by: float | None = None,
    switch: bool = False,
    engine: PoolFactory = WorkerPool,
) -> Migration:
    """Embed with another model beside the table, compare, and switch if that is asked for, or if the condition that is asked for holds. `model`: keys of [model].

    `if_better`: nDCG@10 is higher, with p < SIGNIFICANCE. `not_worse_by`: that, or its mean is lower by at most so much.

    Raises QueryError where the table has these vectors already, StoreError where there is no table, TableBusy while another run writes or another migration
    is under way, ForeignTable where another program has a table of that name beside, SourceError and SpecMismatch where the new table would not hold what the
    first one holds.
    """
    first = resolve_and_check(config)
    first.store.opened()
    run.refuse_losses(first, on_progress)
    with store.MigrationLock(first.store, store.new_run_id()) as lock:
        beside = config.model_copy(
            update={
                "model": first.config.model.model_copy(update=dict(model)),
                "table": config.table.model_copy(update={"name": first.store.successor.name}),
            }
        )
        second = resolve(beside)
        if same_vectors(first.spec, second.spec):
            _drop_leftover(first)  # where a migration was killed after its switch, as are
            maintenance.maintain(config)  # indexes that it did not make
            raise QueryError(f"{first.store.label} has vectors of {second.spec} already: name another model")
        _make_way(second)
        run.embed(beside, on_progress, engine=engine)
        maintenance.maintain(beside)
        before, after, compared = _compared(SearchTable(config), SearchTable(beside), judged)
        version = int(first.store.opened().version)
        switched = None
        held = "asked for" if switch else condition_met(compared, if_better=if_better, not_worse_by=not_worse_by)
        if held:
            lock.check()
            with store.exclusive_writer(first.store, store.new_run_id()) as lease:
                run.embed(beside, on_progress, engine=engine)  # what the source changed meanwhile: no run comes between now
                version = int(first.store.opened().version)
                switched = store.replace_table(
                    first.store, lease, second.store, second.query_settings, f"migrated to {second.spec.model}"
                )
                maintenance.update_indexes(config, lease)
            _drop(second.store)
        return Migration(beside.table.name, first.spec.model, second.spec.model, before, after, compared, version, switched, held)


def condition_met(compared: Comparison, *, if_better: bool, not_worse_by: float | None) -> str | None:
    """Which condition for a switch a comparison (after less before) meets: "better", "not worse", or None."""
    difference = compared.differences[GATE]
    if (if_better or not_worse_by is not None) and difference > 0 and compared.p[GATE] < SIGNIFICANCE:
        return "better"
    if not_worse_by is not None and difference >= -not_worse_by:
        return "not worse"
    return None


def _make_way(second: ResolvedConfig) -> None:
    """Drop the table beside where it was made for another migration, which was not switched to."""
    held = store.spec_of(second.store)
    if held is not None and not same_vectors(held, second.spec):
        log.warning("%s holds vectors of %s, which was not switched to: it is made anew", second.store.label, held)
        _drop(second.store)


def _drop_leftover(first: ResolvedConfig) -> None:
    """The table beside, where it holds what the first one holds by now, or was half dropped. Another one is a candidate that may still be switched to."""
    beside = first.store.successor
    with contextlib.suppress(ForeignTable):  # nothing of a migration
        held = store.spec_of(beside)
        if held is None or same_vectors(held, first.spec):
            _drop(beside)


def _drop(successor: Store) -> None:
    """Under its own lease: no run of it is in the middle of something."""
    with store.exclusive_writer(successor, store.new_run_id()) as lease:
        store.drop_all(successor, lease)


def _compared(
    first: SearchTable, second: SearchTable, judged: tuple[Queries, Judgments] | None
) -> tuple[Evaluation, Evaluation, Comparison]:
    queries, judgments = judged or known_items(first)
    how = (
        SearchOptions(mode="vector") if first.mode == "text" else SearchOptions()
    )  # words alone are found alike, whatever the model
    before, after = (evaluate(table, queries, judgments, how) for table in (first, second))
    return before, after, compare(after, before)
