"""How the full-text index takes texts apart, and a query of words for it: folded as the texts are, phrases in quotes."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from latent.store.folding import SPACELESS, folded, index_form, query_form

WORDS_KEY = "latent.words"
FOLDING = 2  # a later one has the index made anew
# lancedb 0.40 leaves these out of English queries; pylance 14 does not leave them out of the index it builds, where they would count in the length of passages.
STOP_WORDS = frozenset(
    [
        "ain",
        "aren",
        "couldn",
        "d",
        "didn",
        "doesn",
        "don",
        "hadn",
        "hasn",
        "haven",
        "isn",
        "ll",
        "m",
        "ma",
        "mightn",
        "mustn",
        "needn",
        "no",
        "nor",
        "not",
        "o",
        "s",
        "shan",
        "shouldn",
        "t",
        "ve",
        "wasn",
        "weren",
        "won",
        "wouldn",
        "y",
    ]
)
PHRASE = re.compile(r'"([^"]+)"|“([^“”]+)”|„([^„“”]+)[“”]')


@dataclass(frozen=True)
class FullTextSettings:
    """How the full-text index takes a text apart."""

    language: str = "English"
    stem: bool = True
    stop_words: bool = True  # left out

    def to_json(self) -> str:
        """As it stands in the table's metadata."""
        return json.dumps(asdict(self) | {"folding": FOLDING})

    @staticmethod
    def from_json(text: str | None) -> FullTextSettings:
        """Also of an index made before texts were folded; None: there is no index."""
        known = json.loads(text) if text else {}
        return FullTextSettings(
            **{field.name: known[field.name] for field in dataclasses.fields(FullTextSettings) if field.name in known}
        )

    @property
    def accents(self) -> bool:
        """Whether its stems depend on accents: those of English do not."""
        return self.stem and self.language != "English"

    def index_form(self, text: str) -> str:
        """A passage as the index takes it."""
        form = index_form(text, accents=self.accents)
        if not self.stop_words or self.language != "English":
            return form
        return " ".join(word for word in form.split() if word not in STOP_WORDS)

    @property
    def settings(self) -> dict[str, Any]:
        """Of Lance's index. Positions break compaction upstream; words of each length are kept: hashes, and what German joins."""
        return {
            "with_position": False,
            "base_tokenizer": "simple",
            "language": self.language,
            "max_token_length": None,
            "stem": self.stem,
            "remove_stop_words": self.stop_words,
        }


@dataclass(frozen=True)
class WordQuery:
    """A query of words. What stands in quotes must stand so in a passage, accents and punctuation aside."""

    text: str
    words: FullTextSettings

    @cached_property
    def phrases(self) -> list[str]:
        """What stands in quotes."""
        found = ("".join(groups) for groups in PHRASE.findall(self.text))
        return [phrase for phrase in found if folded(phrase).strip()]

    def match(self, *, unfolded: bool, all_words: bool = True) -> Any:
        """As lancedb takes it. `unfolded`: rows without an index are searched too, by the words as they are typed. `all_words`: of the phrases, are asked for."""
        from lancedb.query import BooleanQuery, FullTextOperator, MatchQuery, Occur

        asked = query_form(self.text, accents=self.words.accents)
        if unfolded:
            asked = " ".join([asked, *(word for word in self.text.split() if folded(word) != word.lower())])
        if not self.phrases or not all_words:
            return MatchQuery(asked, "text")
        musts = [MatchQuery(query_form(phrase, accents=False), "text", operator=FullTextOperator.AND) for phrase in self.phrases]
        return BooleanQuery([*((Occur.MUST, must) for must in musts), (Occur.SHOULD, MatchQuery(asked, "text"))])

    def holds(self, texts: pa.ChunkedArray) -> pa.Array:
        """Which of the texts hold all phrases."""
        patterns = [_pattern(phrase) for phrase in self.phrases]
        plain = (folded(text) for text in texts.to_pylist())
        return pa.array([all(pattern.search(text) for pattern in patterns) for text in plain], pa.bool_())


def indexed_in_memory(texts: pa.Table, words: FullTextSettings) -> Any:
    """A lancedb table in memory with a full-text index over folded `text`: some 20 µs and 2 kB a passage."""
    import lancedb
    from lancedb.index import FTS

    forms = pa.array([words.index_form(text) for text in texts["text"].to_pylist()], pa.string())
    folded_texts = texts.set_column(texts.column_names.index("text"), "text", forms)
    table = lancedb.connect("memory://").create_table("texts", folded_texts)
    table.create_index("text", config=FTS(**words.settings))
    return table


def _pattern(phrase: str) -> re.Pattern[str]:
    """Whole words, one after another; in scripts without spaces, anywhere."""
    plain = " ".join(folded(phrase).split())
    before = "" if SPACELESS.match(plain[0]) else r"(?<!\S)"
    after = "" if SPACELESS.match(plain[-1]) else r"(?!\S)"
    return re.compile(before + re.escape(plain).replace(r"\ ", " +") + after)
