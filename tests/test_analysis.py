"""All that is worked out, in one go: once for each state of the table, however the last time ended. Without a map, which test_flows sees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Desk, HereAndNow, save_small_model
from test_cluster import corpus

from latent import load
from latent import migration as migrate
from latent.analysis.duplicates.find_duplicates import duplicates
from latent.analysis.report import Analysis, analyze
from latent.errors import QueryError
from latent.ingest.resolve import store_of
from latent.store import read_derived
from latent.types import Progress

TOPICS = 3


@pytest.fixture
def desk(desk_for: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Analysed once, where umap-learn is not installed: it compiles for a minute."""
    monkeypatch.setitem(sys.modules, "umap", None)
    desk = desk_for(tmp_path / "desk", more=f"[cluster]\nnumber = {TOPICS}\n")
    desk.write("a.jsonl", corpus(TOPICS, 10))
    desk.embed()
    first = analyze(desk.config)
    assert first is not None
    assert (first.changes, first.files) == (None, [])
    return desk


def with_settings(desk: Desk, **settings: object) -> Analysis | None:
    return analyze(load(desk.config_path, {name.replace("__", "."): value for name, value in settings.items()}))


def test_the_last_time_is_when_all_of_it_was_done(desk: Desk) -> None:
    desk.write("a.jsonl", corpus(TOPICS, 10)[:5])
    desk.embed(allow_deletions=True)
    with pytest.raises(QueryError, match="5 passages: too few to compare"):
        analyze(desk.config)
    desk.write("a.jsonl", corpus(TOPICS, 12))
    desk.embed()
    duplicates(desk.config)  # by hand
    seen: list[Progress] = []
    found = analyze(desk.config, seen.append)
    assert found is not None
    assert found.changes is not None
    assert (found.changes.new, found.changes.gone) == (2 * TOPICS, 0)
    assert seen[-1] == Progress("done", 12 * TOPICS, 12 * TOPICS)
    made = [read_derived(store_of(desk.config), name) for name in ("clusters", "duplicates", "analysis")]
    assert {each.told["table_version"] for each in made} == {found.table_version}
    assert analyze(desk.config) is None, "neither a row nor a setting changed since"


def test_another_setting_is_worked_out_and_is_no_change(desk: Desk) -> None:
    other = with_settings(desk, duplicates__similarity=0.9)
    assert other is not None
    assert other.changes is None
    assert other.duplicates.similarity == 0.9
    assert with_settings(desk, duplicates__similarity=0.9) is None


def test_vectors_of_another_model_are_no_change_report_and_no_failure(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_small_model(tmp_path / "other", seed=2)
    migrate.migrate(desk.config, {"name": str(tmp_path / "other")}, engine=HereAndNow, switch=True)
    found = with_settings(desk, model__name=str(tmp_path / "other"))
    assert found is not None
    assert found.changes is None
    assert "they cannot be compared" in caplog.text
