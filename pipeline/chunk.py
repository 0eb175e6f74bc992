"""Documents → chunks: passages on paragraph, sentence and word boundaries, at most so many tokens of the model's own tokenizer.

Spans are exact: `text[char_start:char_end]` of the document is the chunk's text. Neighbours may share up to `overlap` tokens;
only white space is ever left out. Cost: about 0.3 MB of text a second and core, the tokenizer being asked several times a passage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from pipeline.errors import ConfigError
from pipeline.schema import digest

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
TAIL_OF_WORD = re.compile(r"\w*")


@dataclass(frozen=True)
class Chunker:
    """Cuts texts as one spec says."""

    plain: TextSplitter | None  # None: one chunk a document
    markdown: MarkdownSplitter | None
    tokenizer: Tokenizer
    prompt: str
    max_tokens: int | None

    def spans(self, text: str, *, markdown: bool = False) -> Iterator[tuple[int, str]]:
        """Each chunk's first character and text, in order."""
        splitter = self.markdown if markdown else self.plain
        if splitter is not None:
            yield from splitter.chunk_indices(text)
        else:
            yield 0, text[: self._cut(text)]

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text as the encoder sees it: prompt and special tokens included, cut off at the model's length."""
        encodings = self.tokenizer.encode_batch_fast([self.prompt + text for text in texts])
        return [min(len(e), self.max_tokens or len(e)) for e in encodings]

    def _cut(self, text: str) -> int:
        """Where the model stops reading, moved to the end of the word, so that the cut text has the same tokens."""
        if self.max_tokens is None:
            return len(text)
        whole = self.prompt + text
        ends = [end for _, end in self.tokenizer.encode(whole).offsets if end]
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if len(ends) <= room:
            return len(text)
        word = TAIL_OF_WORD.match(whole, ends[room - 1])
        return (word.end() if word else ends[room - 1]) - len(self.prompt)


def make_chunker(
    tokenizer_file: str, max_tokens: int | None, tokens: int | Literal["truncate"], overlap: int, prompt: str = ""
) -> Chunker:
    """A chunker for a model. Raises ConfigError where the settings do not fit the model."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
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
    return Chunker(plain, markdown, tokenizer, prompt, max_tokens)


def chunk_documents(documents: pa.Table, chunker: Chunker, markdown: list[bool]) -> pa.Table:
    """The chunks (CHUNKS) of documents whose text is not null, in the documents' order. `markdown` tells for each how to read it."""
    columns: dict[str, list[object]] = {name: [] for name in CHUNKS.names}
    for i, (text, marked) in enumerate(zip(documents["text"].to_pylist(), markdown, strict=True)):
        for index, (start, passage) in enumerate(chunker.spans(text, markdown=marked)):
            values = (i, index, passage, digest(passage.encode()), start, start + len(passage))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    return pa.table(columns, schema=CHUNKS)
