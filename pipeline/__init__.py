"""latent keeps a LanceDB table of embeddings true to a body of documents.

A plan is the source's state minus the table's state. Each shard of it is encoded by one worker, which writes Lance fragments that nobody can
see yet. One commit swaps old rows for new ones, whole documents at a time, all or nothing. There is no run database: the table is the
checkpoint, and to resume is to plan again.

    pure   schema    the nouns: Arrow schemas, frozen dataclasses
           errors    the error tree
           interruption  stop signals; imports nothing of the project
           rendering  what a document says -> what a terminal, a log, Markdown may show
           serialization  values -> strict JSON
           hosts     which Host headers a server of ours answers
           versions  of the packages that decide a vector
           plan      source state - table state
           chunk     documents -> chunks
           evaluate  how good an order of documents is
           cluster   vectors -> groups, their words, their numbers over time
           directions  sums of vectors, and the way between two
           neighbours  near-duplicates and outliers
           drift     whether a body of documents moved
           codec     vectors in fewer bytes, and back
           layout    vectors -> points of a plane
    edge   config    config.toml -> frozen Config
           source    files, buckets -> file states, document batches
           judgments queries and judgments from files
           model     a model's name -> verified local files
           encode    texts -> unit vectors (torch, sentence-transformers)
           store     the table: fragments, commits, lease, history, indexes (Lance)
           engine    shards over workers (Ray)
           metrics   figures of a run and of the table (Prometheus)
           exposition  those of all processes of a machine on one port
           middleware  what stands around each request to the search service
           outputs   files for the user; another program's stay
    join   survey    look before doing: list, sight, plan
           estimate  tokens and time of a plan
           canary    vectors of fixed texts: a library that changes them is noticed
           worker    what one worker does with a shard
           ledger    receipts -> commits, and the counts of a run
           manners   when a backfill goes, and when it gives way
           run       the use-cases: plan, embed, maintain, rollback
           migrate   another model, without a pause
           verify    proof that the table is right
           status    where the table stands: versions, runs
           search    retrieval, and its evaluation
           service   search over HTTP
           space     the latent space: clusters, duplicates, drift, compression, maps, ways
           init      a first config for your documents
           sample    Python's own documentation as a corpus
           cli       commands

Follow one document: survey.survey -> plan.make_plan -> worker.Worker.embed -> ledger.Ledger.commit -> store.commit.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import Config, load
    from pipeline.errors import PipelineError
    from pipeline.search import Hit, Table, open_table

HOMES = {
    "Config": "config",
    "load": "config",
    "PipelineError": "errors",
    "Hit": "search",
    "Table": "search",
    "open_table": "search",
}
__all__ = ["Config", "Hit", "PipelineError", "Table", "load", "open_table"]


def __getattr__(name: str) -> Any:
    """Import the engines of a name when it is first asked for: a command hears stop signals before it has imported them."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
