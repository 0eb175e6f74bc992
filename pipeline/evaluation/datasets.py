"""Queries, judgments and analogies from files: Parquet, JSON lines, CSV, TSV, and TREC's four columns.

Columns go by the names that collections use: BEIR (`_id`, `query-id`, `corpus-id`, `score`), TREC (`qid`, `docid`, `rel`) and plain ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from latent.errors import SourceError

Queries = dict[str, str]  # query id → words
Judgments = dict[str, dict[str, int]]  # query id → document id → how relevant, 0: not

ID = ("id", "_id", "query_id", "query-id", "qid")
TEXT = ("text", "query", "question")
QUERY_ID = ("query_id", "query-id", "qid", "query")
DOCUMENT_ID = ("doc_id", "corpus-id", "corpus_id", "doc-id", "docid", "document_id", "document", "id")
RELEVANCE = ("score", "relevance", "rel", "label", "judgment")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_queries(path: Path) -> Queries:
    """Query ids and their words. Raises SourceError where a column is missing, or an id stands twice."""
    table = _table(path)
    ids, texts = (_column(path, table, names).cast(pa.string()).to_pylist() for names in (ID, TEXT))
    queries = {name: text for name, text in zip(ids, texts, strict=True) if name and (text or "").strip()}
    if len(queries) < len(ids):
        raise SourceError(f"{path}: {len(ids) - len(queries)} of {len(ids)} queries are empty or have an id that stands twice")
    return queries


def read_judgments(path: Path) -> Judgments:
    """How relevant which document is for which query. Raises SourceError where a column is missing or a relevance is no whole number."""
    if path.suffix not in {".parquet", ".jsonl", ".json"} and (rows := _trec(path)):
        names, documents, relevances = rows
    else:
        table = _table(path)
        names, documents = (_column(path, table, given).cast(pa.string()).to_pylist() for given in (QUERY_ID, DOCUMENT_ID))
        relevances = _column(path, table, RELEVANCE).to_pylist()
    judgments: Judgments = {}
    try:
        for name, document, relevance in zip(names, documents, relevances, strict=True):
            judgments.setdefault(name, {})[document] = _grade(relevance)
    except ValueError:
        raise SourceError(f"{path}: relevance {relevance!r:.40} of query {name}, wanted a whole number") from None
    return judgments


@dataclass(frozen=True)
class Analogy:
    """a is to b as c is to what is expected."""

    texts: tuple[str, ...]  # a, b, c and what is expected, in lower case
    section: str


def read_analogies(path: Path) -> list[Analogy]:
    """Columns a, b, c, expected, and section if there is one. Raises SourceError where a column is missing, or a text."""
    table = _table(path)
    columns = [_column(path, table, [name]).cast(pa.string()).to_pylist() for name in ("a", "b", "c", "expected")]
    sections = table["section"].to_pylist() if "section" in table.column_names else [""] * table.num_rows
    rows = list(zip(*columns, strict=True))
    if any(not text for row in rows for text in row):
        raise SourceError(f"{path}: an empty text, wanted four in each row")
    return [Analogy(tuple(t.strip().casefold() for t in row), str(s)) for row, s in zip(rows, sections, strict=True)]


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix in {".jsonl", ".json"}:
            return _lines(path)
        if path.suffix in SEPARATORS:
            return _separated(path)
    except (ValueError, OSError) as error:
        raise SourceError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    raise SourceError(f"{path}: of unknown kind, wanted .parquet, .jsonl, .csv, .tsv, or judgments as TREC has them")


def _separated(path: Path) -> pa.Table:
    """All columns as they are written: a type that is guessed would make 7 of 0007."""
    parsing = pa.csv.ParseOptions(delimiter=SEPARATORS[path.suffix], newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parsing) as file:
        types = dict.fromkeys(file.schema.names, pa.string())
    return pa.csv.read_csv(path, parse_options=parsing, convert_options=pa.csv.ConvertOptions(column_types=types))


def _lines(path: Path) -> pa.Table:
    """All values as they are written. Raises ValueError where a line is no object."""
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([_written(row.get(name)) for row in rows], pa.string()) for name in names})


def _written(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _grade(relevance: object) -> int:
    """Raises ValueError where it is no whole number."""
    number = float(str(relevance))
    if not number.is_integer():
        raise ValueError
    return int(number)


def _column(path: Path, table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    for name in names:
        if name in table.column_names:
            return table[name]
    if not table.num_columns:
        raise SourceError(f"{path}: expected a row a line, got an empty file")
    raise SourceError(f"{path}: has columns {', '.join(table.column_names)}, wanted one of {', '.join(names)}")


def _trec(path: Path) -> tuple[list[str], list[str], list[str]] | None:
    """Query, document and relevance of a file of four columns, the second of which says nothing; None where it is none."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return None
    if not rows or any(len(row) != 4 for row in rows) or not rows[0][3].lstrip("-").isdigit():
        return None
    return [row[0] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
