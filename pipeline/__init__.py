"""Keep a LanceDB table of embeddings in sync with a source.

A plan is the source's state minus the table's state. Each shard of it is encoded by one worker, which writes Lance fragments that nobody can
see yet. One commit swaps old rows for new ones, whole documents at a time, all or nothing. There is no run database: the table is the
checkpoint, and to resume is to plan again.

Rooms, from the top down. A room imports only rooms below it; each engine has one home.

    cli            commands
    flows          Prefect: flows, deployments, server, retries (the folder `flows/`)
    migration      another model, without a pause
    analysis       the latent space as a whole: clusters, duplicates, drift, compression, maps, analogies
    scaffold       `latent init`: a first config, the sample corpus
    evaluation     how good the answers are
    search         retrieval from Python, HTTP, LangChain and LlamaIndex
    ingest         scan -> plan -> workers -> commits: plan, embed, backfill, rollback, maintain, verify, status
    sources        files and buckets -> file states, document batches
    chunking       documents -> passages with exact spans
    encoders       texts -> unit vectors (torch, sentence-transformers)
    store          the table: fragments, commits, lease, versions, indexes (Lance)
    workers        shards over actors (Ray)
    monitoring     figures of a run and of the table (Prometheus)
    models         a model's name -> verified local files
    outputs        files for the user; another program's stay
    config         config.toml -> frozen Config
    schemas        Arrow schemas: the table, those beside it, what passes between rooms
    types          dataclasses that cross rooms
    errors, interruption, rendering, serialization    the error tree; stop signals; terminal-safe text; strict JSON

Follow one document: ingest.scan -> ingest.plan -> ingest.worker -> ingest.tracker -> store.commits.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent.config import Config, load
    from latent.errors import PipelineError
    from latent.search import Hit, SearchTable, open_table

HOMES = {
    "Config": "config",
    "load": "config",
    "PipelineError": "errors",
    "Hit": "search",
    "SearchTable": "search",
    "open_table": "search",
}
__all__ = ["Config", "Hit", "PipelineError", "SearchTable", "load", "open_table"]


def __getattr__(name: str) -> Any:
    """Import the engines of a name when it is first asked for: a command hears stop signals before it has imported them."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
