"""Another model, while the table is searched and kept up to date."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, HereAndNow, Latent, save_small_model, words

from latent import SearchTable, load, open_table, store
from latent import migration as migrate
from latent.config import Config
from latent.errors import QueryError, SourceError, SpecMismatch, TableBusy
from latent.evaluation.evaluator import Comparison
from latent.ingest import maintenance, rollback, run, verify
from latent.ingest.resolve import resolve_and_check, store_of

QUERIES = [words(i, i + 1) for i in range(100, 130)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Another model of the same length, and one of another."""
    same, longer = (tmp_path_factory.mktemp(name) for name in ("same", "longer"))
    save_small_model(same, seed=2)
    save_small_model(longer, dim=32)
    return {"same": same, "longer": longer}


@pytest.fixture
def desk(desk_for: Callable[..., Desk], tmp_path: Path) -> Desk:
    desk = desk_for(tmp_path / "desk", metadata=["n"])
    desk.write("a.jsonl", [{"id": f"d{i}", "n": i, "text": words(*range(i * 4, i * 4 + 20))} for i in range(5, 100)])
    desk.write("bad.jsonl", [{"id": "empty", "n": 1, "text": ""}])
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


def moved(desk: Desk, model: Path, **options: object) -> migrate.Migration:
    return migrate.migrate(desk.config, {"name": str(model)}, engine=HereAndNow, **options)


def answers(table: SearchTable) -> list[list[tuple[str, float]]]:
    return [[(hit.chunk_id, round(hit.score, 4)) for hit in found] for found in table.search_batch(QUERIES, 5)]


def with_model(desk: Desk, model: Path) -> object:
    return load(desk.config_path, {"model.name": str(model)})


@pytest.mark.parametrize("which", ["same", "longer"])
def test_no_search_fails_or_mixes_while_the_model_changes(desk: Desk, models: dict[str, Path], which: str) -> None:
    table = open_table(desk.config_path)
    before, seen, failed, stop = answers(table), [], [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(answers(table))
                assert table.search(QUERIES[0], 5, mode="hybrid")  # the words' index too is there before it is asked
            except Exception as error:
                failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    done = moved(desk, models[which], switch=True)
    after = answers(open_table(desk.config_path))
    deadline = time.monotonic() + 240
    while answers(table) != after and time.monotonic() < deadline:
        time.sleep(0.1)
    stop.set()
    for reader in readers:
        reader.join()
    assert failed == []
    assert before != after
    assert all(each in (before, after) for each in seen)  # of one model or the other, whole
    assert seen[0] == before
    assert answers(table) == after
    assert done.table_version == done.former_version + 1
    assert all(check.ok for check in verify.verify(with_model(desk, models[which])))
    assert [row["doc_id"] for row in desk.side("quarantine")] == ["empty"]
    assert store.Store(store_of(desk.config).uri, "docs.next").open() is None


def test_a_job_whose_config_is_not_yet_changed_goes_on_with_the_new_model(desk: Desk, models: dict[str, Path]) -> None:
    moved(desk, models["longer"], switch=True)
    desk.write("b.jsonl", [{"id": "new", "n": 1, "text": words(7, 8, 9)}])
    report = desk.embed()  # the config names the first model still
    assert (report.documents.added, report.documents.unchanged) == (1, 95)
    assert desk.vectors()[("new", 0)].shape == (32,)
    assert open_table(desk.config_path).search(words(7, 8, 9), 1)[0].doc_id == "new"
    assert all(check.ok for check in verify.verify(desk.config))
    assert desk.embed().chunks.encoded == 0


def test_changes_that_come_while_the_new_vectors_are_made_are_in_both(desk: Desk, models: dict[str, Path]) -> None:
    assert moved(desk, models["same"]).table_version is None
    desk.write("b.jsonl", [{"id": "new", "n": 1, "text": words(7, 8, 9)}])
    desk.write("a.jsonl", [{"id": f"d{i}", "n": i, "text": words(*range(i * 4, i * 4 + 20))} for i in range(6, 100)])
    desk.embed()  # a night: the first table goes on
    moved(desk, models["same"], switch=True)
    names = {name for name, _ in desk.rows()}
    assert "new" in names
    assert "d5" not in names
    assert desk.embed().documents.unchanged == len(names)


def test_killed_half_way_it_goes_on(desk: Desk, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent.ingest.plan.SHARD_CHARS", (500, 1000))

    class Dies(HereAndNow):
        def work(self, shards):
            for i, outcome in enumerate(super().work(shards)):
                if i == 3:
                    raise RuntimeError("killed")
                yield outcome

    with pytest.raises(RuntimeError, match="killed"):
        migrate.migrate(desk.config, {"name": str(models["same"])}, switch=True, engine=Dies)
    assert len(answers(open_table(desk.config_path))) == len(QUERIES)
    beside = config_beside(desk, models["same"])
    done = store_of(beside).opened().count_rows()
    assert done
    encoded = run.embed(beside, engine=HereAndNow).chunks.encoded
    assert 0 < encoded == store_of(beside).opened().count_rows() - done
    moved(desk, models["same"], switch=True)
    assert resolve_and_check(with_model(desk, models["same"])).spec.model == str(models["same"])


def test_it_switches_only_where_the_new_model_is_better(desk: Desk, models: dict[str, Path], tmp_path: Path) -> None:
    judged = (
        {query: query for query in QUERIES},
        {query: {open_table(desk.config_path).search(query, 1)[0].doc_id: 1} for query in QUERIES},
    )
    worse = moved(desk, models["same"], judged=judged, if_better=True)  # judged by what the first model finds
    assert worse.table_version is None
    assert worse.compared.differences["ndcg@10"] <= 0
    best = {query: {open_table_beside(desk, models["same"]).search(query, 1)[0].doc_id: 1} for query in QUERIES}
    better = moved(desk, models["same"], judged=(judged[0], best), if_better=True)
    assert better.compared.differences["ndcg@10"] > 0
    assert better.table_version
    with pytest.raises(QueryError, match=r"has vectors of .* already: name another model"):
        moved(desk, models["same"])


def test_a_difference_that_chance_makes_is_not_better_and_within_the_margin_not_worse(desk: Desk, models: dict[str, Path]) -> None:
    moved(desk, models["same"])  # made, not switched to
    found = {query: open_table_beside(desk, models["same"]).search(query, 1)[0].doc_id for query in QUERIES[:3]}
    judged = {query: query for query in found}, {query: {document: 1} for query, document in found.items()}
    lucky = moved(desk, models["same"], judged=judged, if_better=True)
    assert lucky.compared.differences["ndcg@10"] > 0
    assert lucky.compared.p["ndcg@10"] > 0.05  # three queries tell nothing
    assert (lucky.table_version, lucky.held) == (None, None)
    done = moved(desk, models["same"], judged=judged, not_worse_by=0.01)
    assert (done.table_version is not None, done.held, done.flat()["held"]) == (True, "not worse", "not worse")


@pytest.mark.parametrize(
    ("difference", "p", "if_better", "not_worse_by", "held"),
    [
        (0.02, 0.01, True, None, "better"),
        (0.02, 0.05, True, None, None),
        (0.02, 0.4, True, 0.0, "not worse"),
        (0.02, 0.01, False, 0.01, "better"),
        (0.0, 1.0, False, 0.0, "not worse"),
        (-0.01, 0.001, False, 0.01, "not worse"),
        (-0.011, 0.9, True, 0.01, None),
        (0.02, 0.01, False, None, None),
    ],
)
def test_the_condition_that_holds_is_named(
    difference: float, p: float, if_better: bool, not_worse_by: float | None, held: str | None
) -> None:
    compared = Comparison({"ndcg@10": difference}, {"ndcg@10": p})
    assert migrate.condition_met(compared, if_better=if_better, not_worse_by=not_worse_by) == held


def open_table_beside(desk: Desk, model: Path) -> SearchTable:
    return SearchTable(config_beside(desk, model))


def config_beside(desk: Desk, model: Path) -> Config:
    """Of the table that a migration makes: no config.toml can name it."""
    config = load(desk.config_path, {"model.name": str(model)})
    return config.model_copy(update={"table": config.table.model_copy(update={"name": "docs.next"})})


def test_a_migration_loses_no_documents_and_no_column_without_a_word(desk: Desk, models: dict[str, Path]) -> None:
    path = desk.source / "a.jsonl"
    documents = path.read_text()
    path.write_text(documents[: documents.index('{"id": "d30"')])
    with pytest.raises(SourceError, match="got 70 of 95"):
        moved(desk, models["same"], switch=True)
    path.write_text(documents)
    store_of(desk.config).opened().add_columns({"theirs": "n + 1"})
    with pytest.raises(SpecMismatch, match="got theirs from another program"):
        moved(desk, models["same"], switch=True)


def test_migrated_columns_are_still_the_tables_own(desk: Desk, models: dict[str, Path], desk_for: Callable[..., Desk]) -> None:
    moved(desk, models["same"], switch=True)
    assert desk.embed(engine=None).files_opened == 0
    report = desk_for(desk.folder).embed()
    assert (report.chunks.encoded, report.columns_dropped) == (0, ("n",))


def test_the_way_back(desk: Desk, models: dict[str, Path]) -> None:
    table = open_table(desk.config_path)
    before, rows = answers(table), desk.rows()
    done = moved(desk, models["longer"], switch=True)
    assert desk.rows() == rows
    rollback.rollback(desk.config, str(done.former_version))
    assert answers(open_table(desk.config_path)) == before
    assert answers(table) == before
    assert table.search(QUERIES[0], mode="text")
    assert all(check.ok for check in verify.verify(desk.config))
    assert desk.embed().documents.unchanged == 95
    with pytest.raises(SpecMismatch):
        resolve_and_check(with_model(desk, models["longer"]))
    rollback.rollback(desk.config, str(done.table_version))  # and forth
    assert np.array(next(iter(desk.vectors().values()))).shape == (32,)


def test_a_candidate_that_was_not_switched_to_gives_way_to_another(desk: Desk, models: dict[str, Path]) -> None:
    assert moved(desk, models["same"]).table_version is None
    done = moved(desk, models["longer"], switch=True)
    assert done.table_version
    assert desk.vectors().keys() == desk.rows().keys()
    assert next(iter(desk.vectors().values())).shape == (32,)


def test_queries_are_put_to_the_new_model_as_was_asked_for_last(desk: Desk, models: dict[str, Path]) -> None:
    asked = {"name": str(models["same"]), "query_prompt": "w1 "}
    assert migrate.migrate(desk.config, asked, engine=HereAndNow).table_version is None
    assert migrate.migrate(desk.config, asked | {"query_prompt": "w2 "}, engine=HereAndNow, switch=True).table_version
    assert resolve_and_check(desk.config).config.model.query_prompt == "w2 "


def test_searches_by_words_go_on_where_it_was_killed_between_switch_and_indexes(
    desk: Desk, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(config: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as then:
        then.setattr(maintenance, "update_indexes", lambda config, lease: dies(config) if config.table.name == "docs" else None)
        with pytest.raises(RuntimeError, match="killed"):
            moved(desk, models["longer"], switch=True)
    table = open_table(desk.config_path)  # opened anew, with no index of words yet
    assert not table.place.opened().describe_indices()
    for mode in ("text", "hybrid"):
        assert table.search(QUERIES[0], 5, mode=mode)[0].doc_id, mode
        assert table.search(QUERIES[0], 5, "n > 20", mode=mode)[0].doc_id, mode
    with pytest.raises(QueryError, match="already"):
        moved(desk, models["longer"])
    assert [index.kind for index in store.indexes(store_of(desk.config))] == ["FTS"]


def test_models_are_compared_by_meaning_where_searches_are_by_words(
    desk_for: Callable[..., Desk], models: dict[str, Path], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path / "wordy", more='[search]\nmode = "text"\n')
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(i, i + 1)} for i in range(20, 60)])
    desk.embed()
    maintenance.maintain(desk.config)
    judged = {"q": words(30, 31)}, {"q": {"d40": 1}}  # nothing that these words stand in
    done = moved(desk, models["longer"], judged=judged)
    assert done.before.means["recall@100"] == done.after.means["recall@100"] == 1.0  # by meaning every document is found


def test_who_never_had_such_a_model_is_refused(desk: Desk, models: dict[str, Path]) -> None:
    moved(desk, models["longer"], switch=True)
    with pytest.raises(SpecMismatch, match=r"holds vectors of .*'latent migrate'"):
        open_table(desk.config_path, {"model.name": str(models["same"])})


def test_no_switch_while_another_run_writes(desk: Desk, models: dict[str, Path]) -> None:
    moved(desk, models["same"])
    with store.Lease(resolve_and_check(desk.config).store, "other"), pytest.raises(TableBusy):
        moved(desk, models["same"], switch=True)
    assert len(answers(open_table(desk.config_path))) == len(QUERIES)


def test_a_model_in_a_relative_folder_is_meant_from_where_the_config_lies(
    desk: Desk, small_model: Path, tmp_path: Path, latent: Latent
) -> None:
    (desk.folder / "here").symlink_to(small_model)
    done = latent(tmp_path, "migrate", "--model", "./here", "--config", desk.config_path)
    assert done.code == 1
    assert re.search(f"has vectors of {desk.folder / 'here'}.* already: name another model", done.err)


def test_the_command_tells_both(desk: Desk, models: dict[str, Path], latent: Latent) -> None:
    told = latent(desk.folder, "migrate", "--model", models["longer"], "--switch", "--json").answer
    assert told["switched"]
    assert told["after"]["model"] == str(models["longer"])
    assert told["before"].keys() >= {"ndcg@10", "recall@100", "milliseconds"}
