"""Resolve a config: its model files, its spec, its table. Writes nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace

from latent import models as model
from latent import store
from latent.config import Config
from latent.encoders import actual_precision
from latent.errors import SpecMismatch
from latent.store import QuerySettings, Store
from latent.types import Prompts, ResolvedModel, Spec
from latent.workers import WorkerPoolSpec

log = logging.getLogger("latent")
NO_PROMPT = "none"  # in the config; an empty prompt there is the one that the model's file asks for


@dataclass(frozen=True)
class ResolvedConfig:
    """The config, resolved: the same for every use-case."""

    config: Config
    store: Store
    model: ResolvedModel
    spec: Spec

    @property
    def query_settings(self) -> QuerySettings:
        """How the config wants queries put to the model."""
        return QuerySettings(self.config.model.revision, self.config.model.query_prompt)

    @property
    def prompts(self) -> Prompts:
        """What is put before documents and queries."""
        return prompts_of(self.config, self.model)

    @property
    def pool_spec(self) -> WorkerPoolSpec:
        """The workers that the config asks for."""
        ray = self.config.ray
        least, most = (
            ray.workers if isinstance(ray.workers, list) else (1, None) if ray.workers == "auto" else (ray.workers, ray.workers)
        )
        return WorkerPoolSpec(ray.address, least, most, ray.cpus_per_worker, ray.gpus_per_worker)


def store_of(config: Config) -> Store:
    """Where the config's table lies."""
    return Store(config.table.uri, config.table.name, config.table.storage_options)


def resolve_and_check(config: Config) -> ResolvedConfig:
    """The config resolved, and its spec compared with the table's. Raises ModelError, SpecMismatch."""
    at = follow_migration(config)
    held = store.spec_of(at.store)
    if held is not None and not same_vectors(held, at.spec):
        differences = "; ".join(held.differences(at.spec))
        kept = json.dumps(held.document_prompt or NO_PROMPT, ensure_ascii=False)
        keep = f"set [model] document_prompt = {kept}" if held.document_prompt != at.spec.document_prompt else "set the config back"
        raise SpecMismatch(
            f"{at.store.label} holds vectors of {held}, config asks for {at.spec} ({differences}): "
            f"{keep}, move the table with 'latent migrate', or set [table] name to a new table"
        )
    return at


def follow_migration(config: Config) -> ResolvedConfig:
    """The config resolved; where the table was migrated away from what it asks for, with the table's settings: jobs and searches go on while
    the config is not yet changed. Raises ModelError.
    """
    at = resolve(config)
    held = store.spec_of(at.store)
    if held is None or same_vectors(held, at.spec):
        return at
    if not any(same_vectors(former, at.spec) for former in store.former_specs(at.store.opened())):
        return at
    log.warning("the table was migrated from %s to %s: set [model] name = %r", at.spec.model, held.model, held.model)
    return resolve(with_spec(config, held, store.query_settings_of(at.store)))


def with_table_settings(config: Config) -> Config:
    """The config with the model and the settings that the table's vectors were made with, where it asks for others. Raises ModelError."""
    place = store_of(config)
    held = store.spec_of(place)
    if held is None or same_vectors(held, resolve(config).spec):
        return config
    return with_spec(config, held, store.query_settings_of(place))


def same_vectors(one: Spec, other: Spec) -> bool:
    """Whether both make the same vectors: a model is known by its digest, its name may change."""
    return replace(one, model=other.model) == other


def with_spec(config: Config, spec: Spec, query_settings: QuerySettings) -> Config:
    """The config with the settings that lead to a spec. What it trusts, it trusts as before."""
    given = {
        "name": spec.model,
        "revision": query_settings.revision,
        "sha256": "",
        "precision": spec.precision,
        "query_prompt": query_settings.query_prompt,
        "document_prompt": spec.document_prompt or NO_PROMPT,
    }
    sections = {
        "model": config.model.model_copy(update=given),
        "chunk": config.chunk.model_copy(update={"tokens": spec.chunk_tokens, "overlap": spec.overlap}),
        "table": config.table.model_copy(update={"vector": spec.vector}),
    }
    return config.model_copy(update=sections)


def prompts_of(config: Config, local: ResolvedModel) -> Prompts:
    """What is put before documents and queries: as the config says, else as the model's file does."""
    given = (config.model.document_prompt, local.prompts.document), (config.model.query_prompt, local.prompts.query)
    return Prompts(*("" if told == NO_PROMPT else told or own for told, own in given))


def resolve(config: Config) -> ResolvedConfig:
    """Find and verify the model. Raises ModelError."""
    settings = config.model
    local = model.resolve(settings.name, settings.revision, settings.sha256, trust_remote_code=settings.trust_remote_code)
    spec = Spec(
        model=settings.name,
        model_digest=local.digest,
        dim=local.dim,
        chunk_tokens=config.chunk.tokens,
        overlap=0 if config.chunk.tokens == "truncate" else config.chunk.overlap,
        document_prompt=prompts_of(config, local).document,
        precision=actual_precision(settings.precision),
        vector=config.table.vector,
    )
    return ResolvedConfig(config, store_of(config), local, spec)
