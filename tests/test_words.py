"""Search by words: every script, each form of a word, words of any length, phrases, and rows that no index holds yet."""

from __future__ import annotations

import random
import string
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lance
import lancedb
import pytest
from conftest import Desk, HereAndNow, words
from hypothesis import given
from hypothesis import strategies as st
from lancedb.index import FTS

from latent import open_table, store
from latent.errors import QueryError, StoreError
from latent.ingest import maintenance, run
from latent.ingest.resolve import store_of
from latent.ingest.verify import verify
from latent.store import full_text_index
from latent.store.folding import folded, index_form, query_form
from latent.types import Shard
from latent.workers import CompletedShard, FailedDocument

TEXTS = {
    "zh": "清华大学计算机科学与技术系的研究人员发表了关于机器学习的论文。",
    "ja": "株式会社日立製作所の情報処理装置とデータベース管理システム、水",
    "ko": "서울대학교에서 인공지능을 연구하는 학생들",
    "th": "ประเทศไทยมีมหาวิทยาลัยหลายแห่งในกรุงเทพมหานคร",
    "km": "ខ្ញុំរៀនភាសាខ្មែរនៅសាកលវិទ្យាល័យ",
    "hi": "नमस्ते दुनिया, मशीन लर्निंग",
    "nfc": "La crème brûlée était délicieuse à Zürich, wine from the cellar",
    "nfd": unicodedata.normalize("NFD", "Crêpes à la façon de naïve Zoë"),
    "shy": "Donau\u00addampf\u00adschiff",
    "wide": "ＡＢＣ１２３ ﬁnance ｶﾀｶﾅ",
    "ru": "Ёлка и Москва",
    "ar": "مُحَمَّد كتاب العربيّة",
    "he": "שָׁלוֹם עולם",
    "tr": "İSTANBUL ve ışık DİYARBAKIR",
    "el": "Ελλάδα ΣΊΣΥΦΟΣ",
    "de": "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz in großer Straße",
    "sha": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "b64": "QUJD" * 40,
    "long": "x" * 10_000,
}
FOUND = [
    *(("zh", q) for q in ("清华", "大学", "清华大学", "计算机", "机器学习", "学习", "论文", "系")),
    *(("ja", q) for q in ("会社", "日立", "情報", "情報処理", "ベース", "データベース", "水")),
    *(("ko", q) for q in ("서울", "대학교", "인공지능", "학생")),
    *(("th", q) for q in ("ไทย", "มหาวิทยาลัย", "กรุงเทพ")),
    *(("km", q) for q in ("រៀន", "ភាសា", "ខ្មែរ")),
    *(("hi", q) for q in ("नमस्ते", "मशीन")),
    *(("nfc", q) for q in ("brulee", "brûlée", unicodedata.normalize("NFD", "brûlée"), "BRÛLÉE", "zurich")),
    *(("nfd", q) for q in ("crêpes", "crepes", "façon", "facon", "naive", "zoë")),
    *(("shy", q) for q in ("Donaudampfschiff", "donau\u00addampfschiff")),
    *(("wide", q) for q in ("ABC123", "ＡＢＣ１２３", "finance", "カタカナ")),
    *(("ru", q) for q in ("елка", "ЁЛКА", "москва")),
    *(("ar", q) for q in ("محمد", "مُحَمَّد", "العربية")),
    *(("he", q) for q in ("שלום", "שָׁלוֹם")),
    *(("tr", q) for q in ("istanbul", "İstanbul", "ışık", "isik", "diyarbakır")),
    *(("el", q) for q in ("ελλαδα", "Ελλάδα", "σίσυφος")),
    *(("de", q) for q in (TEXTS["de"].split()[0], "grosser", "STRASSE", "strasse")),
    *((name, TEXTS[name]) for name in ("sha", "b64", "long")),
]


@pytest.fixture(scope="module")
def scripts(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A passage of each script, maintained."""
    desk = desk_for(tmp_path_factory.mktemp("scripts"), tokens="truncate")
    desk.write("a.jsonl", [{"id": name, "text": text} for name, text in TEXTS.items()])
    desk.embed()
    maintenance.maintain(desk.config)
    return desk


def found(desk: Desk, query: str, **how: object) -> set[str]:
    return {hit.doc_id for hit in open_table(desk.config_path).search(query, mode="text", **how)}


def test_a_word_of_any_script_is_found_in_each_of_its_forms(scripts: Desk) -> None:
    table = open_table(scripts.config_path)
    missed = [(name, query[:30]) for name, query in FOUND if name not in {hit.doc_id for hit in table.search(query, mode="text")}]
    assert missed == []


def test_what_an_index_is_built_over_is_not_stored(scripts: Desk) -> None:
    data = list((scripts.folder / "data/lancedb/docs.lance/data").iterdir())
    assert len(data) == len(store_of(scripts.config).opened().get_fragments())
    assert set(store_of(scripts.config).opened().schema.names) >= {"text", "vector"}
    assert not [name for name in scripts.table().column_names if "folded" in name]
    assert maintenance.maintain(scripts.config).files_removed == 0


@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_each_normal_form_of_a_text_is_folded_alike(text: str, form: str) -> None:
    assert folded(unicodedata.normalize(form, text)).split() == folded(text).split()


@given(st.text(alphabet=st.characters(max_codepoint=0x3FFF), min_size=1))
def test_a_text_holds_all_that_is_asked_by_the_text_itself(text: str) -> None:
    for accents in (False, True):
        assert set(query_form(text, accents=accents).split()) <= set(index_form(text, accents=accents).split())


def test_a_phrase_in_quotes_stands_so_in_what_is_found(desk: Desk) -> None:
    texts = {
        "a": "the annual report on climate change was read",
        "b": "change of the climate, annual: no report",
        "c": "Climate-Change annual",
        "d": "北京大学的学生",
        "e": "大学在北京",
        "f": "un café crème noir",
        "g": "climate changes",
    }
    desk.write("a.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    desk.embed()
    for _ in range(2):  # rows one by one, then through the index
        assert found(desk, '"climate change"') == {"a", "c"}
        assert found(desk, 'annual "climate change" report', k=1) == {"a"}
        assert found(desk, '"cafe creme"' if _ else '"café crème"') == {"f"}
        assert found(desk, "“climate change”", k=1) <= {"a", "c"}
        assert found(desk, '"change climate"') == set()
        assert len(found(desk, 'climate "change')) == 4  # one mark makes no phrase
        assert found(desk, 'report "was read"') == found(desk, 'annual "on climate"') == {"a"}
        assert found(desk, 'report "on the"') == set()
        maintenance.maintain(desk.config)
    assert found(desk, '"北京大学"') == {"d"}
    both = open_table(desk.config_path).search('"climate change"', mode="hybrid")
    assert {hit.doc_id for hit in both[:2]} & {"a", "c"}


def test_an_index_made_before_texts_were_folded_is_made_anew(desk: Desk) -> None:
    import lancedb
    from lancedb.index import FTS

    desk.write("a.jsonl", [{"id": "a", "text": "une crème brûlée"}])
    desk.embed()
    place = store_of(desk.config)
    lancedb.connect(place.uri).open_table("docs").create_index("text", config=FTS(with_position=False))
    place.opened().update_metadata({"latent.words": '{"language": "English", "stem": true, "stop_words": true}'})
    assert found(desk, "brulee") == set()
    maintenance.maintain(desk.config)
    assert found(desk, "brulee") == {"a"}
    version = place.opened().version
    maintenance.maintain(desk.config)
    assert store_of(desk.config).opened().version - version <= 1  # what stands as wanted is not made again


def test_stems_of_other_languages_keep_their_accents(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path / "es", more='[index]\nlanguage = "Spanish"\n')
    desk.write("a.jsonl", [{"id": "a", "text": "la información importante"}])
    desk.embed()
    maintenance.maintain(desk.config)
    assert [found(desk, query) for query in ("informaciones", "información", "informacion", "INFORMACIÓN")] == [{"a"}] * 4


def test_new_rows_are_a_piece_of_the_index_and_pieces_are_merged(desk: Desk) -> None:
    pieces = []
    for i in range(10):
        desk.write(f"{i}.jsonl", [{"id": str(i), "text": f"crème brûlée {words(i)}"}])
        desk.embed()
        maintenance.maintain(desk.config)
        pieces.append(next(index.pieces for index in store.indexes(store_of(desk.config)) if index.columns == ("text",)))
    assert max(pieces) > 1
    assert min(pieces[1:]) < max(pieces)
    assert found(desk, "brulee", k=100) == {str(i) for i in range(10)}
    desk.write("3.jsonl", [{"id": "3", "text": "tarte"}])
    desk.embed()
    maintenance.maintain(desk.config)
    assert found(desk, "brulee", k=100) == {str(i) for i in range(10)} - {"3"}


def test_verify_passes_whatever_stands_in_the_passages(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    chance = random.Random(5)
    odd = ["!?…—", "😀👩‍👩‍👧", "12 3 4567", "7", "the of and to", "étaient", "которые", "gegenüber", "a", "I", "字", "' \" \\", "x" * 10_000, "+/=" * 50, "\u00ad\u200b\ufeff", "q4eacq", "ा", "\u0301"]  # fmt: skip
    odd += ["".join(chance.choices(string.printable.strip(), k=chance.randrange(1, 300))) for _ in range(20)]
    odd += ["".join(chr(chance.choice((0x20, 0x5D0, 0x627, 0x915, 0xE01, 0x4E00, 0x1F600)) + chance.randrange(26)) for _ in range(60)) for _ in range(20)]  # fmt: skip
    for language in ("English", "French"):
        desk = desk_for(tmp_path / language, tokens="truncate", more=f'[index]\nlanguage = "{language}"\n')
        desk.write("a.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(odd)])
        desk.embed()
        maintenance.maintain(desk.config)
        for _ in range(2):
            check = next(check for check in verify(desk.config) if check.name == "indexes cover")
            assert check.ok, check.detail
            desk.write("b.jsonl", [{"id": "new", "text": "Ёлка 北京大学"}])  # a row newer than the index
            desk.embed()


def test_words_are_found_before_there_is_an_index(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": "a", "text": "river stone"}, {"id": "b", "text": "Ёлка"}])
    desk.embed()
    assert not store.indexes(store_of(desk.config))
    assert found(desk, "river") == {"a"}
    assert found(desk, "Ёлка") == {"b"}
    assert {hit.doc_id for hit in open_table(desk.config_path).search("river", mode="hybrid")} >= {"a"}


def test_too_many_rows_without_an_index_are_refused_with_what_helps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent.store.reader.FLAT_ROWS", 1)
    desk.write("a.jsonl", [{"id": str(i), "text": f"river {words(i)}"} for i in range(3)])
    desk.embed()
    with pytest.raises(
        QueryError, match=r"3 rows are too many to search one by one \(at most 1\): a run that is under way makes one"
    ):
        found(desk, "river")
    maintenance.maintain(desk.config)
    desk.write("b.jsonl", [{"id": str(i), "text": f"river {words(i)}"} for i in range(3, 6)])
    desk.embed()
    assert found(desk, "river") == {"0", "1", "2"}  # newer rows are too many as well: the index alone answers


def test_a_first_run_indexes_words_as_it_commits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    desk.write("a.jsonl", [{"id": str(i), "text": f"crème {words(i)}"} for i in range(9)])
    found_meanwhile: list[set[str]] = []

    class Watched(HereAndNow):
        def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument]:
            yield from super().work(shards)
            until = time.monotonic() + 60
            while not store.indexes(store_of(desk.config)) and time.monotonic() < until:
                yield None  # no news of a worker, some time after the commit
            found_meanwhile.append(found(desk, "creme", k=100))

    desk.embed(engine=Watched)
    assert found_meanwhile == [{str(i) for i in range(9)}]
    index = next(index for index in store.indexes(store_of(desk.config)) if index.columns == ("text",))
    assert index.behind == 0


def test_a_run_commits_while_its_words_are_indexed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of millions of rows takes minutes: workers would wait for work, and nobody would watch Ray."""
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    monkeypatch.setattr("latent.ingest.plan.SHARD_DOCUMENTS", 1)
    desk.write("a.jsonl", [{"id": str(i), "text": f"crème {words(i)}"} for i in range(4)])
    committed, index = threading.Event(), lance.LanceDataset.create_index_uncommitted

    def slow(*args: object, **options: object) -> object:
        assert committed.wait(60)
        return index(*args, **options)

    class Watched(HereAndNow):
        def work(self, shards: Iterable[Shard]) -> Iterator[CompletedShard | FailedDocument]:
            yield from super().work(shards)
            assert len(desk.rows()) == 4
            committed.set()

    monkeypatch.setattr(lance.LanceDataset, "create_index_uncommitted", slow)
    desk.embed(engine=Watched)
    assert found(desk, "creme", k=100) == {"0", "1", "2", "3"}


def test_an_index_that_fails_while_a_run_commits_loses_no_document(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "COMMIT_S", 0.0)
    desk.write("a.jsonl", [{"id": str(i), "text": words(i)} for i in range(4)])

    def full(*_: object, **__: object) -> object:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "create_index_uncommitted", full)
        with pytest.raises(StoreError, match=r"its words cannot be indexed: No space left on device"):
            desk.embed()
    assert desk.embed().documents.unchanged == 4
    assert verify(desk.config)[0].ok


def test_words_that_another_writer_indexed_meanwhile_are_no_error(desk: Desk) -> None:
    """A run that was paused, had lost the lease, and went on: Lance refuses an index of fragments that another covers only in part."""
    place, wanted = store_of(desk.config), maintenance.full_text_settings(desk.config)
    desk.write("a.jsonl", [{"id": "a", "text": "harbour"}])
    desk.embed()
    maintenance.maintain(desk.config)
    desk.write("b.jsonl", [{"id": "b", "text": "lighthouse"}])
    desk.embed()
    built = full_text_index._build(place, wanted)
    desk.write("c.jsonl", [{"id": "c", "text": "harbour lighthouse"}])
    desk.embed()
    with store.exclusive_writer(place, store.new_run_id()) as lease:
        full_text_index.index_words(place, lease, wanted)
    desk.write("d.jsonl", [{"id": "d", "text": "lighthouse"}])
    desk.embed()
    with store.exclusive_writer(place, store.new_run_id()) as lease:
        assert not full_text_index._commit(place, lease, built)
        full_text_index.index_words(place, lease, wanted)
    assert found(desk, "lighthouse") == {"b", "c", "d"}
    assert verify(desk.config)[0].ok


def test_pieces_of_an_index_are_merged_while_none_holds_most_rows(desk: Desk) -> None:
    """Each piece scores by the frequencies of its own rows: the ranking of a table made in pieces is that of one made at once."""
    place = store_of(desk.config)
    pieces = []
    for name in "abcdefgh":
        desk.write(f"{name}.jsonl", [{"id": f"{name}{i}", "text": words(i, i + 1)} for i in range(4)])
        desk.embed()
        with store.exclusive_writer(place, store.new_run_id()) as lease:
            full_text_index.index_words(place, lease, maintenance.full_text_settings(desk.config))
        pieces.append(next(index.pieces for index in store.indexes(place) if index.columns == ("text",)))
    assert pieces == [1, 1, 1, 2, 1, 2, 1, 2]
    assert found(desk, "w2", k=100) == {f"{name}{i}" for name in "abcdefgh" for i in (1, 2)}


def test_english_is_ranked_as_by_an_index_of_lancedb(desk: Desk, tmp_path: Path) -> None:
    """Its list of stop words is longer than that of the Lance that builds our index: which words count in the length of a passage must be the same."""
    texts = [
        f"The {words(i, i + 1)} isn't, wasn't and won't be {words(i % 3)}; no, not he, nor they'd do 's." * (1 + i % 4)
        for i in range(20)
    ]
    desk.write("a.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    desk.embed()
    maintenance.maintain(desk.config)
    ours = {hit.chunk_id: hit.score for hit in open_table(desk.config_path).search("w1 not w5", k=100, mode="text")}
    passages = desk.table().select(["chunk_id", "text"])
    table = lancedb.connect(tmp_path / "theirs").create_table("texts", passages)
    table.create_index("text", config=FTS(**maintenance.full_text_settings(desk.config).settings))
    theirs = {row["chunk_id"]: row["_score"] for row in table.search("w1 not w5", query_type="fts").limit(100).to_list()}
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert len(ours) >= 8
