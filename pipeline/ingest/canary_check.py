"""The encoder of a table, refused if its vectors are no longer those of the table."""

from __future__ import annotations

from latent import store
from latent.encoders import LEAST_COSINE, TEXTS, Canary, Encoder
from latent.errors import SpecMismatch
from latent.ingest.resolve import ResolvedConfig
from latent.types import Spec


def load_encoder(at: ResolvedConfig, threads: int | None = None) -> Encoder:
    """Load the model and compare its vectors of fixed texts with those that were kept. Raise ModelError, SpecMismatch."""
    settings = at.config.model
    encoder = Encoder(at.model, device=settings.device, precision=settings.precision, threads=threads)
    if kept := store.canary_of(at.store, at.spec):
        compare(Canary.of(encoder), kept, at.spec, at.store.label)
    return encoder


def compare(now: Canary, kept: str, spec: Spec, where: str) -> None:
    """Raise SpecMismatch if the vectors are others than those that were kept (a canary as JSON)."""
    then = Canary.from_json(kept)
    cosine, least = now.cosine_to(then), LEAST_COSINE[spec.precision]
    if cosine >= least:
        return
    names = sorted({*then.versions, *now.versions})
    changed = [name for name in names if then.versions.get(name) != now.versions.get(name)] or names
    before, after = (", ".join(f"{name} {each.versions.get(name, 'none')}" for name in changed) for each in (then, now))
    raise SpecMismatch(
        f"model {spec.model} no longer makes the vectors of {where}: expected a cosine of {least} or more for each of {len(TEXTS)} fixed texts, "
        f"got {cosine:.4f}. Then: {before}; now: {after}. Install what was installed then, or set [table] name to a new table"
    )
