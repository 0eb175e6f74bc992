"""Poison: documents and models that no run survives unhurt unless it was built for them. Each is embedded truly, or stands alone
in quarantine with its reason, or ends the run in one line before anything is written; all other documents are done."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, HereAndNow, words

from latent.chunking.passages import CHARS_A_TOKEN
from latent.errors import REASON_CHARS, ModelError, SourceError, SpecMismatch
from latent.ingest import run
from latent.ingest.plan import SHARD_CHARS
from latent.ingest.run import embed
from latent.ingest.verify import verify
from latent.sources.documents import ID_CHARS, WORD_CHARS
from latent.workers import CompletedShard

Document = Mapping[str, object]
FIRST, LAST = {"id": "first", "text": "w1"}, {"id": "last", "text": "w3"}


def texts(desk: Desk) -> dict[str, str]:
    """The text of each document in the table, its passages one after another."""
    return {
        name: "".join(row[0] for _, row in group)
        for name, group in itertools.groupby(sorted(desk.rows().items()), lambda r: r[0][0])
    }


def lost(desk: Desk) -> dict[str | None, str]:
    """Id → reason of what is in quarantine; each has its run, and a reason of one short line."""
    rows = desk.side("quarantine")
    assert all(q["run_id"] and "\n" not in str(q["reason"]) and len(str(q["reason"])) <= REASON_CHARS + 50 for q in rows)
    return {q["doc_id"]: str(q["reason"]) for q in rows}


def sound(desk: Desk) -> bool:
    return [check for check in verify(desk.config) if not check.ok] == []


# --- what stands in files -------------------------------------------------------------------------------------------


def jsonl(*middle: bytes, more: bytes = b"") -> bytes:
    """Three lines, a good one before the middle and one behind it; `more` is added to the good ones."""
    good = [json.dumps(d).encode().removesuffix(b"}") + more + b"}" for d in (FIRST, LAST)]
    return b"\n".join([good[0], *middle, good[1], b""])


def parquet(**columns: pa.Array) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["first", "bad", "last"], "text": ["w1", "w2", "w3"]} | columns), sink)
    return sink.getvalue()


def mislabelled() -> pa.Array:
    """Strings of which the second is not UTF-8."""
    data = pa.array([b"x", b"\xff", b"z"], pa.binary())
    return pa.StringArray.from_buffers(3, data.buffers()[1], data.buffers()[2])


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


IN_QUARANTINE = {
    "surrogate-text": ("x.jsonl", jsonl(b'{"id": "bad", "text": "w2\\ud800"}'), "text is not UTF-8"),
    "surrogate-metadata": (
        "x.jsonl",
        jsonl(b'{"id": "bad", "text": "w2", "m": "\\udfff"}', more=b', "m": "x"'),
        "metadata column 'm'",
    ),
    "surrogate-key": (
        "x.jsonl",
        jsonl(b'{"id": "bad", "text": "w2", "m": {"\\ud800": 1}}', more=b', "m": {"k": 1}'),
        "metadata column 'm'",
    ),
    "deep-metadata": (
        "x.jsonl",
        jsonl(b'{"id": "bad", "text": "w2", "m": ' + nested(990) + b"}", more=b', "m": "x"'),
        "metadata column 'm'",
    ),
    "huge-metadata": (
        "x.jsonl",
        jsonl(b'{"id": "bad", "text": "w2", "m": ["' + b"x" * 10**6 + b'"]}', more=b', "m": 1'),
        "metadata column 'm'",
    ),
    "csv-metadata": ("x.csv", b"id,text,m\nfirst,w1,x\nbad,w2,\xff\nlast,w3,z\n", "metadata column 'm'"),
    "csv-text": ("x.csv", b"id,text\nfirst,w1\nbad,w\xc32\nlast,w3\n", "text is not UTF-8"),
    "parquet-text": ("x.parquet", parquet(text=mislabelled()), "text is not UTF-8"),
    "parquet-metadata": ("x.parquet", parquet(m=mislabelled()), "metadata column 'm'"),
    "parquet-list": (
        "x.parquet",
        parquet(m=pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), mislabelled())),
        "metadata column 'm'",
    ),
    "nul": ("x.jsonl", jsonl(b'{"id": "bad", "text": "w2\\u0000 w2"}'), "not text: it holds NUL"),
    "nul-of-cells": ("x.csv", b"id,text\nfirst,w1\nbad,w\x002\nlast,w3\n", "not text: it holds NUL"),
    "word": (
        "x.jsonl",
        jsonl(b'{"id": "bad", "text": "w2 ' + b"x" * (WORD_CHARS + 1) + b' w2"}'),
        f"text holds a word of {WORD_CHARS + 1}",
    ),
    "word-of-cells": ("x.csv", b"id,text\nfirst,w1\nbad," + b"x" * (WORD_CHARS + 1) + b"\nlast,w3\n", "text holds a word of"),
}


@pytest.mark.parametrize("case", IN_QUARANTINE)
def test_a_poisoned_row_stands_alone_in_quarantine_and_its_neighbours_are_embedded(
    desk_for: Callable[..., Desk], tmp_path: Path, case: str
) -> None:
    name, data, reason = IN_QUARANTINE[case]
    desk = desk_for(tmp_path, metadata=["m"] if "metadata" in reason else [])
    (desk.source / name).write_bytes(data)
    report = desk.embed()
    assert (report.documents.added, report.documents.quarantined) == (2, 1)
    assert lost(desk)["bad"].startswith(reason)
    assert set(texts(desk)) == {"first", "last"}
    assert sound(desk)
    assert desk.embed(engine=None).documents.unchanged == 2  # and is not tried again


NAMELESS = {
    "surrogate-id": ("x.jsonl", jsonl(b'{"id": "\\ud800", "text": "w2"}'), "id is not UTF-8"),
    "long-id": ("x.jsonl", jsonl(b'{"id": "' + b"i" * (ID_CHARS + 1) + b'", "text": "w2"}'), f"id has {ID_CHARS + 1} characters"),
    "raw-nul": ("x.jsonl", jsonl(b'{"id": "bad", "text": "w\0 2"}'), "not JSON"),
    "bad-byte": ("x.jsonl", jsonl(b'{"id": "bad", "text": "\xff"}'), "not JSON"),
    "bad-byte-at-the-end": ("x.jsonl", jsonl() + b'{"id": "bad", "text": "\xff"}', "not JSON"),
    "parquet-id": ("x.parquet", parquet(id=mislabelled()), "id is not UTF-8"),
}


@pytest.mark.parametrize("case", NAMELESS)
def test_a_row_that_cannot_be_told_takes_no_other_with_it(desk: Desk, case: str) -> None:
    name, data, reason = NAMELESS[case]
    (desk.source / name).write_bytes(data)
    report = desk.embed()
    assert (report.documents.added, report.documents.quarantined, report.files_refused) == (2, 1, 0)
    assert lost(desk)[None].startswith(reason)
    assert sound(desk)


def test_a_file_whose_name_is_not_utf8_is_quarantined_by_its_escaped_name_and_the_others_are_embedded(desk: Desk) -> None:
    desk.write("x.jsonl", [FIRST])
    (desk.source / os.fsdecode(b"caf\xe9.md")).write_text("w2")
    report = desk.embed()
    assert (report.documents.added, report.files_refused) == (1, 1)
    assert [(q["source_file"], q["reason"]) for q in desk.side("quarantine")] == [
        ("caf\\xe9.md", "unreadable file: its name is not UTF-8: rename it")
    ]
    assert sound(desk)
    assert desk.embed(engine=None).documents.unchanged == 1


def test_a_file_of_other_columns_is_quarantined_alone_and_its_stored_documents_stay(desk: Desk) -> None:
    desk.write("a.jsonl", [FIRST])
    desk.write("b.jsonl", [LAST])
    desk.embed()
    desk.write("b.jsonl", [{"key": "last", "body": "w9"}])
    desk.write("c.jsonl", [{"id": "new", "text": "w2"}])
    report = desk.embed()
    assert (report.documents.added, report.documents.deleted, report.files_refused) == (1, 0, 1)
    (row,) = desk.side("quarantine")
    assert (row["source_file"], "no column 'id', 'text'; it has key, body" in str(row["reason"])) == ("b.jsonl", True)
    assert set(texts(desk)) == {"first", "new", "last"}
    assert sound(desk)


def test_columns_that_all_files_lost_end_the_run_in_one_line_and_change_nothing(desk: Desk) -> None:
    desk.write("a.jsonl", [FIRST])
    desk.write("b.jsonl", [LAST])
    desk.embed()
    for name in ("a.jsonl", "b.jsonl"):
        desk.write(name, [{"id": name, "body": "w9"}])
    with pytest.raises(SourceError, match=r"a.jsonl: no column 'text'; it has id, body"):
        desk.embed()
    assert set(texts(desk)) == {"first", "last"}
    assert desk.side("quarantine") == []


def test_a_value_that_does_not_fit_a_column_that_is_there_is_quarantined_and_heals(
    desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path, metadata=["m"])
    desk.write("a.jsonl", [FIRST | {"m": 4}])
    desk.embed()
    odd = {"half": 4.5, "true": True, "word": "four", "giant": 10**23}
    desk.write("b.jsonl", [{"id": name, "text": "w2", "m": m} for name, m in odd.items()] + [LAST | {"m": 5.0}])
    assert desk.embed().documents.added == 1
    assert lost(desk) == {name: f"metadata column 'm': expected int64, got {m!r}" for name, m in odd.items()}
    assert {name: row[1] for (name, _), row in desk.rows().items()} == {"first": 4, "last": 5}
    desk.write("b.jsonl", [{"id": name, "text": "w2", "m": 6} for name in odd])
    desk.embed()
    assert lost(desk) == {}
    assert sound(desk)


def test_fifty_megabytes_of_one_word_are_kept_apart_and_healed_by_words(desk: Desk) -> None:
    desk.write("x.jsonl", [FIRST, {"id": "bad", "text": "w2" * 25_000_000}, LAST])
    assert desk.embed().documents.added == 2
    assert lost(desk) == {"bad": f"text holds a word of 50000000 characters, wanted at most {WORD_CHARS}: no text but data"}
    desk.write("x.jsonl", [FIRST, {"id": "bad", "text": "w2 " * 20}, LAST])
    desk.embed()
    assert lost(desk) == {}
    assert set(texts(desk)) == {"first", "bad", "last"}
    assert sound(desk)


TRUE = {
    "control": "w1\x07\x1b[31m\x7f w2",
    "right-to-left": "w1 \u202ew2\u202c \u200fw3",
    "combining": "e" + "\u0301" * 100_000,
    "emoji": "👩\u200d👩\u200d👧 w1 🙂",
    "mark": "w1\ufeff w2",
    "not-a-character": "w1 \uffff \U0010ffff",
    "carriage": "w1\rw2\r\nw3",
}


@pytest.mark.parametrize("case", TRUE)
def test_strange_characters_are_stored_as_they_are_in_text_id_and_metadata(
    desk_for: Callable[..., Desk], tmp_path: Path, case: str
) -> None:
    desk = desk_for(tmp_path, metadata=["m"], tokens=256)
    strange = TRUE[case]
    desk.write("x.jsonl", [FIRST | {"m": "x"}, {"id": strange[:10_000], "text": strange, "m": strange}])
    desk.embed()
    assert texts(desk)[strange[:10_000]] == strange
    assert {row[1] for row in desk.rows().values()} == {"x", strange}
    assert lost(desk) == {}
    assert sound(desk)


AWKWARD = [
    "a#0",
    "a",
    "a#0#0",
    "it's",
    'say "x"',
    "a/b/../c",
    "%20 ?*",
    "漢字 🙂",
    " ",
    "new\nline",
    "x' OR '1'='1",
    "null",
    "i" * 10_000,
]


def test_awkward_ids_are_written_found_again_changed_and_deleted_like_any(desk: Desk) -> None:
    desk.write("x.jsonl", [{"id": name, "text": words(*range(100, 130))} for name in AWKWARD])
    assert desk.embed().documents.added == len(AWKWARD)
    chunk_ids = desk.table()["chunk_id"].to_pylist()
    assert len(set(chunk_ids)) == len(chunk_ids) > len(AWKWARD)
    desk.write("x.jsonl", [{"id": name, "text": "w7"} for name in AWKWARD])
    assert desk.embed().documents.changed == len(AWKWARD)
    assert texts(desk) == dict.fromkeys(AWKWARD, "w7")
    desk.write("x.jsonl", [{"id": AWKWARD[0], "text": "w7"}])
    assert desk.embed().documents.deleted == len(AWKWARD) - 1
    assert set(texts(desk)) == {AWKWARD[0]}
    assert sound(desk)


def test_a_key_that_came_after_the_column_was_made_is_not_dropped_without_a_word(
    desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path, metadata=["m"])
    desk.write("a.jsonl", [FIRST | {"m": {"k": 1, "deep": [{"x": 1}]}}])
    desk.embed()
    new = [{"k": 1, "new": 2}, {"deep": [{"x": 1, "y": 2}]}, {"k": 3, "new": None, "none": {}}]
    desk.write("b.jsonl", [{"id": str(i), "text": "w2", "m": m} for i, m in enumerate(new)])
    desk.embed()
    assert {name for name, reason in lost(desk).items() if "'new': 2" in reason or "'y': 2" in reason} == {"0", "1"}
    assert desk.rows()["2", 0][1] == {"k": 3, "deep": None}


def test_objects_and_lists_that_hold_nothing_are_null_where_no_value_tells_their_kind(
    desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path, metadata=["m", "n"])
    desk.write("a.jsonl", [FIRST | {"m": {}, "n": {"k": 1, "none": {}}}, LAST | {"m": [], "n": {}}])
    desk.embed()
    assert {name: row[1:3] for (name, _), row in desk.rows().items()} == {"first": (None, {"k": 1}), "last": (None, {"k": None})}
    assert sound(desk)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us", "Nowhere/City"), pa.timestamp("ns", "UTC"), pa.duration("ns"), pa.time64("ns")]
)
@pytest.mark.parametrize("listed", [False, True])
def test_times_that_python_does_not_know_are_stored_as_ones_it_does(
    desk_for: Callable[..., Desk], tmp_path: Path, kind: pa.DataType, *, listed: bool
) -> None:
    per_microsecond = 1000 if kind.unit == "ns" else 1
    times = pa.array([n * per_microsecond for n in (1_001, 2_000_002, 3_000_003)]).view(kind)
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), times) if listed else times
    desk = desk_for(tmp_path, metadata=["m"])
    (desk.source / "x.parquet").write_bytes(parquet(m=column))
    assert desk.embed().documents.added == 3
    values = desk.table()["m"].combine_chunks()
    stored = (values.flatten() if listed else values).cast(pa.int64()).to_pylist()
    assert sorted(stored) == [1_001, 2_000_002, 3_000_003]


# --- long words, long documents -------------------------------------------------------------------------------------


def test_a_long_word_among_others_is_cut_into_passages_that_hold_all_of_it(desk: Desk) -> None:
    text = f"{words(1, 2)} {'x' * 300_000} {words(3, 4)}"
    desk.write("x.jsonl", [FIRST, {"id": "long", "text": text}, LAST])
    desk.embed()
    passages = [row[0] for (name, _), row in sorted(desk.rows().items()) if name == "long"]
    assert max(map(len, passages)) <= 16 * CHARS_A_TOKEN
    assert "".join(passages).replace(" ", "") == text.replace(" ", "")
    assert sound(desk)


def test_a_long_documents_text_is_not_held_once_for_each_of_its_passages(desk: Desk) -> None:
    size = 400_000
    desk.write("x.jsonl", [{"id": "long", "text": " ".join(f"w{100 + i % 397}" for i in range(size // 5))}])
    usual, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        desk.embed()
    finally:
        pa.set_memory_pool(usual)
    assert desk.table().num_rows >= size / 5 / 16
    assert counted.max_memory() < 100 * size  # once a passage would be 5,000 times


# --- tokenizers that find nothing, or fail --------------------------------------------------------------------------


def static_model(folder: Path, *, unknown: bool = True) -> Path:
    """A model whose tokenizer reads as BERT's does: no token of control characters. Without `unknown` it fails on words it does not know."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(["[UNK]"] * unknown + ["a"] + [f"w{n}" for n in range(100)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    weights = np.random.default_rng(2).standard_normal((len(vocabulary), 8)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu").save(str(folder))
    return folder


def test_a_text_in_which_the_tokenizer_finds_no_token_has_no_vector_of_nothing(
    desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path, model=str(static_model(tmp_path / "model")))
    desk.write("x.jsonl", [FIRST, {"id": "control", "text": "\1" * 100_000}, {"id": "lines", "text": "\u200b\n" * 50_000}, LAST])
    assert desk.embed().documents.added == 2
    assert set(lost(desk).values()) == {"no passage: the tokenizer finds no token in it"}


@pytest.mark.parametrize("tokens", [16, "truncate"])
def test_a_text_that_the_tokenizer_fails_on_is_blamed_with_the_traceback_and_tried_again_when_asked(
    desk_for: Callable[..., Desk], tmp_path: Path, tokens: int | str
) -> None:
    model = static_model(tmp_path / "model", unknown=False)
    desk = desk_for(tmp_path, model=str(model), tokens=tokens)
    desk.write("x.jsonl", [FIRST, {"id": "failing", "text": "w1 unheard " + words(*range(100))}, LAST])
    assert desk.embed().documents.added == 2
    (row,) = desk.side("quarantine")
    assert row["doc_id"] == "failing"
    assert str(row["reason"]).startswith("tokenizing failed: " if tokens == "truncate" else "chunking failed: ")
    assert "Traceback" in str(row["traceback"])
    assert run.plan(desk.config).documents.quarantined == 1
    assert desk.embed(retry_quarantined=True).documents.quarantined == 1
    desk.write("x.jsonl", [FIRST, {"id": "failing", "text": "w1 w2"}, LAST])
    assert desk.embed().documents.added == 1
    assert desk.side("quarantine") == []
    assert sound(desk)


# --- want of memory -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_left(megabytes: int) -> Iterator[None]:
    """This process can get so much more memory and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer that needs half a megabyte a token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("wide")
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *words(*range(500)).split()])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 65_536}
    BertModel(BertConfig(vocab_size=502, max_position_embeddings=1024, **shape)).save_pretrained(folder / "bare")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(folder / "bare")
    SentenceTransformer(modules=[Transformer(str(folder / "bare")), Pooling(16)], device="cpu").save(str(folder / "model"))
    return folder / "model"


def test_a_passage_too_large_for_the_memory_ends_in_quarantine_and_heals_where_there_is_more(
    desk_for: Callable[..., Desk], tmp_path: Path, wide_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    desk = desk_for(tmp_path, model=str(wide_model), tokens=1024)
    short = [{"id": f"short{i}", "text": words(*range(i, i + 60))} for i in range(30)]
    desk.write("x.jsonl", [*short, {"id": "long", "text": words(*(i % 500 for i in range(900)))}])

    class Poor(HereAndNow):
        def work(self, shards):
            worker = self._make(self)  # a kernel that is not made for lack of memory is never made again in this process
            for shard in shards:
                with memory_left(200):
                    receipt = worker.embed(shard)
                yield CompletedShard(shard, receipt)

    assert desk.embed(engine=Poor).documents.added == 30
    (row,) = desk.side("quarantine")
    assert (row["doc_id"], str(row["reason"]).startswith("encoding failed: out of memory")) == ("long", True)
    assert "Traceback" in str(row["traceback"])
    assert "out of memory on cpu with 34 passages" in caplog.text or "half as much at once from now on" in caplog.text
    assert desk.embed(engine=None).documents.quarantined == 1
    report = desk.embed(retry_quarantined=True)
    assert (report.documents.added, report.documents.quarantined) == (1, 0)
    assert desk.side("quarantine") == []
    assert sound(desk)


# --- models ---------------------------------------------------------------------------------------------------------


def cut(name: str) -> Callable[[Path], object]:
    """Half of the file is there."""
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def pointer(folder: Path) -> None:
    """What git leaves where large files were not fetched."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n")


def half_of_two(folder: Path) -> None:
    """Weights in parts, of which one is missing."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def set_key(name: str, **keys: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))


NOT_WHOLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (cut("model.safetensors"), "model.safetensors is missing, damaged or cut off"),
    "pointer": (pointer, "model.safetensors is missing, damaged or cut off"),
    "part": (half_of_two, "model-2.safetensors is missing"),
    "config": (cut("config.json"), "config.json is missing, damaged or cut off"),
    "no-config": (without("config.json"), "config.json is missing"),
    "tokenizer": (cut("tokenizer.json"), "tokenizer.json is missing, damaged or cut off"),
    "no-tokenizer": (without("tokenizer.json"), "no tokenizer.json"),
    "modules": (cut("modules.json"), "modules.json is missing, damaged or cut off"),
    "no-module": (without("1_Pooling"), "1_Pooling/config.json is missing"),
    "code": (set_key("config.json", auto_map={"AutoModel": "m.X"}), "wants to run code of its own"),
}


def refused(desk_for: Callable[..., Desk], folder: Path, model: Path, damage: Callable[[Path], object], said: str) -> Desk:
    """A desk on which a run with the damaged model ended in one line that says this."""
    damage(Path(shutil.copytree(model, folder / "model")))
    desk = desk_for(folder / "desk", model=str(folder / "model"))
    desk.write("x.jsonl", [FIRST])
    with pytest.raises(ModelError) as caught:
        desk.embed()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    return desk


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_model_that_is_not_whole_ends_the_run_in_one_line_before_anything_is_written(
    desk_for: Callable[..., Desk], tmp_path: Path, wide_model: Path, case: str
) -> None:
    damage, said = NOT_WHOLE[case]
    desk = refused(desk_for, tmp_path, wide_model, damage, said)
    assert not (desk.folder / "data").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (set_key("config.json", hidden_size=32), "does not load"),
        (set_key("1_Pooling/config.json", embedding_dimension=32, word_embedding_dimension=32), "its configuration says 32"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer"),
    ],
    ids=["shape", "length", "empty-tokenizer"],
)
def test_a_model_whose_parts_disagree_ends_the_run_in_one_line(
    desk_for: Callable[..., Desk], tmp_path: Path, wide_model: Path, damage: Callable[[Path], object], said: str
) -> None:
    refused(desk_for, tmp_path, wide_model, damage, said)


def test_weights_that_give_nan_for_anything_end_the_run_and_quarantine_nobody(
    desk_for: Callable[..., Desk], tmp_path: Path, small_model: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    weights = tmp_path / "model/model.safetensors"
    shutil.copytree(small_model, weights.parent)
    save_file({name: np.full_like(tensor, np.nan) for name, tensor in load_file(weights).items()}, weights)
    desk = desk_for(tmp_path / "desk", model=str(weights.parent))
    desk.write("x.jsonl", [FIRST])
    with pytest.raises(ModelError, match=r"no finite vector for 'a'.*weights are damaged"):
        desk.embed()
    assert desk.side("quarantine") == []


def test_a_model_that_is_replaced_before_the_workers_load_it_makes_no_vector(
    desk_for: Callable[..., Desk], tmp_path: Path, small_model: Path
) -> None:
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    desk = desk_for(tmp_path / "desk", model=str(model))
    desk.write("x.jsonl", [FIRST])

    class Replaced(HereAndNow):
        def work(self, shards):
            (model / "vocab.txt").write_text("another")
            yield from super().work(shards)

    with pytest.raises(SpecMismatch, match=r"on this worker has digest .* the run began with"):
        desk.embed(engine=Replaced)
    assert desk.table().num_rows == 0


# --- workers that die -----------------------------------------------------------------------------------------------

FUSE = '''
import os, signal
from torch import nn

class Fuse(nn.Module):
    """What the kernel does to a process that takes too much memory."""

    def forward(self, features):
        if (features["input_ids"] == 67).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return features

    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
'''


def test_a_document_that_gets_its_worker_killed_stands_alone_in_quarantine_with_a_hint(
    desk_for: Callable[..., Desk], tmp_path: Path, small_model: Path
) -> None:
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    modules = json.loads((model / "modules.json").read_text())
    (model / "2_Fuse").mkdir()
    (model / "fuse.py").write_text(FUSE)
    (model / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_Fuse", "type": "fuse.Fuse"}]))
    desk = desk_for(tmp_path / "desk", model=str(model), more="trust_remote_code = true\n[ray]\nworkers = 1\n")
    desk.write("x.jsonl", [FIRST, {"id": "deadly", "text": words(*[66] * SHARD_CHARS[0])}, LAST])
    report = embed(desk.config)
    assert (report.documents.added, report.documents.quarantined) == (2, 1)
    (row,) = desk.side("quarantine")
    assert (row["doc_id"], row["traceback"], row["run_id"]) == ("deadly", None, report.run_id)
    assert "the worker died" in str(row["reason"])
    assert "want of memory" in str(row["reason"])
    assert sound(desk)
