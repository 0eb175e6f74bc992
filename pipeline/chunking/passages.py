"""Documents → chunks: passages on paragraph, sentence and word boundaries, at most so many tokens of the model's own tokenizer.

Spans are exact: `text[char_start:char_end]` of the document is the chunk's text. Neighbours may share up to `overlap` tokens; only
white space, and long runs in which the tokenizer finds no token, are ever left out. Many tokenizers count a word of any length as one unknown token,
so a passage has at most CHARS_A_TOKEN characters for each of its tokens too.

A text is split window by window, since the splitter's cost grows with the square of the length, or its cube. Cost: about 0.3 MB of text a
second and core, the tokenizer being asked several times a passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pyarrow as pa
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from latent.errors import ConfigError, Failure, ModelError, one_line
from latent.types import digest

CHUNKS = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),  # index of the document in what was given
        pa.field("chunk_index", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("chunk_hash", pa.string(), nullable=False),
        pa.field("char_start", pa.int64(), nullable=False),
        pa.field("char_end", pa.int64(), nullable=False),
    ]
)
CHARS_A_TOKEN = 64  # prose has 4 or 5, a table in wide columns 20
GAP_CHARS = 512  # without a token: no passage goes across. The splitter would ask the tokenizer again at each of its lines
WORD, TAIL_OF_WORD = re.compile(r"\w"), re.compile(r"\w*")


@dataclass(frozen=True)
class Chunker:
    """Cuts texts as one spec says."""

    plain: TextSplitter | None  # None: one chunk a document
    markdown: MarkdownSplitter | None
    tokenizer: Tokenizer
    prompt: str
    max_tokens: int | None
    room: int = 0  # tokens of a passage, without those of the prompt and the special ones

    def spans(self, text: str, *, markdown: bool = False) -> Iterator[tuple[int, str]]:
        """Each chunk's first character and text, in order."""
        splitter = self.markdown if markdown else self.plain
        if splitter is None:
            yield 0, text[: self._cut(text)]
            return
        at = 0
        while at < len(text):
            window = text[at : at + CHARS_A_TOKEN * self.room]
            stretch, tokens, following = self._stretch(window)
            found = splitter.chunk_indices(stretch) if tokens > self.room else _whole(stretch, tokens, markdown=markdown)
            if stretch == window and at + len(window) < len(text) and len(found) > 1:
                following = found.pop()[0]  # the text goes on, and so may this passage
            yield from ((at + start, passage) for start, passage in found if self._says_something(passage))
            at += following

    def _says_something(self, passage: str) -> bool:
        return bool(WORD.search(passage) or self.tokenizer.encode(passage, add_special_tokens=False).ids)

    def _stretch(self, window: str) -> _Stretch:
        """The window up to the first gap in it."""
        offsets = [(start, end) for start, end in self.tokenizer.encode(window, add_special_tokens=False).offsets if end > start]
        ends, starts = [0, *(end for _, end in offsets)], [*(start for start, _ in offsets), len(window)]
        for tokens, (end, start) in enumerate(zip(ends, starts, strict=True)):
            if start - end > GAP_CHARS:
                return _Stretch(window[:end], tokens, start)
        return _Stretch(window, len(offsets), len(window))

    def _cut(self, text: str) -> int:
        """Where the model stops reading, moved to the end of the word, so that the cut text has the same tokens."""
        if self.max_tokens is None:
            return len(text)
        whole = self.prompt + text[: CHARS_A_TOKEN * self.max_tokens]
        ends = [end for _, end in self.tokenizer.encode(whole).offsets if end]
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if len(ends) <= room:
            return len(whole) - len(self.prompt)
        word = TAIL_OF_WORD.match(whole, ends[room - 1])
        return (word.end() if word else ends[room - 1]) - len(self.prompt)


class _Stretch(NamedTuple):
    """The beginning of a window, and where to go on in it."""

    text: str
    tokens: int
    following: int


def _whole(text: str, tokens: int, *, markdown: bool) -> list[tuple[int, str]]:
    """The text as one passage, trimmed as the splitter does it: Markdown of several lines keeps the first one's indentation."""
    body = text.rstrip()
    passage = body.lstrip("\r\n") if markdown and len(body.strip().splitlines()) > 1 else body.lstrip()
    return [(len(body) - len(passage), passage)] if tokens and passage else []


def make_chunker(
    tokenizer_file: str, max_tokens: int | None, tokens: int | Literal["truncate"], overlap: int, prompt: str = ""
) -> Chunker:
    """A chunker for a model. Raises ConfigError where the settings do not fit the model, ModelError where its tokenizer does not load."""
    try:
        tokenizer = Tokenizer.from_file(tokenizer_file)
    except Exception as error:  # noqa: BLE001 the library raises nothing narrower
        raise ModelError(f"{tokenizer_file}: no tokenizer: {one_line(str(error))}: download the model again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokens == "truncate":
        if max_tokens is not None and len(tokenizer.encode(prompt)) >= max_tokens:
            raise ConfigError(f"[model] document_prompt fills the {max_tokens} tokens that the model reads: shorten the prompt")
        return Chunker(None, None, tokenizer, prompt, max_tokens)
    if max_tokens is not None and tokens > max_tokens:
        raise ConfigError(
            f'[chunk] tokens = {tokens}, but the model reads at most {max_tokens}: set {max_tokens} or less, or "truncate"'
        )
    room = tokens - len(tokenizer.encode(prompt))
    if room <= overlap:
        raise ConfigError(
            f"[chunk] tokens = {tokens} leaves {room} for text beside the prompt, overlap = {overlap} does not fit: raise tokens"
        )
    plain = TextSplitter.from_huggingface_tokenizer(tokenizer, room, overlap=overlap)
    markdown = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, room, overlap=overlap)
    return Chunker(plain, markdown, tokenizer, prompt, max_tokens, room)


def chunk_documents(documents: pa.Table, chunker: Chunker, markdown: list[bool]) -> tuple[pa.Table, dict[int, Failure]]:
    """The chunks (CHUNKS) of documents whose text is not null, in the documents' order, and what went wrong with those that have none for it.

    `markdown` tells for each document how to read it.
    """
    columns: dict[str, list[object]] = {name: [] for name in CHUNKS.names}
    failed: dict[int, Failure] = {}
    for i, (text, marked) in enumerate(zip(documents["text"].to_pylist(), markdown, strict=True)):
        try:
            passages = list(chunker.spans(text, markdown=marked))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 a panic of the tokenizer is no Exception
            failed[i] = Failure.of("chunking failed", error)
            continue
        for index, (start, passage) in enumerate(passages):
            values = (i, index, passage, digest(passage.encode()), start, start + len(passage))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return pa.table(columns, schema=CHUNKS), failed
