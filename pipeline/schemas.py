"""Define the Arrow schemas: the table, the tables beside it, and what passes between rooms in millions of rows."""

from __future__ import annotations

import pyarrow as pa

from latent.types import Spec

# Lance's primary-key mark, without which concurrent upserts double rows.
KEY = {"lance-schema:unenforced-primary-key": "true"}
# What a reader yields, metadata columns behind. `row` counts from 0 within the file. Where `problem` is set the
# document cannot be embedded and text is null; where doc_id is null too, nobody can tell which document it was.
DOCUMENT_FIELDS = (
    pa.field("row", pa.int64(), nullable=False),
    pa.field("doc_id", pa.string()),
    pa.field("text", pa.string()),
    pa.field("problem", pa.string()),
)
# What the survey keeps of each document in a changed file: about 100 bytes, never its text.
SCANNED_DOCUMENTS = pa.schema(
    [
        pa.field("file", pa.int32(), nullable=False),  # index into the sorted listing
        pa.field("row", pa.int64(), nullable=False),
        pa.field("doc_id", pa.string()),
        pa.field("doc_hash", pa.string()),
        pa.field("chars", pa.int64(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
STORED_DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("doc_hash", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
    ]
)
# Documents every passage of which a kept passage stands for, and the documents that those are of.
REDUNDANT_DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("doc_hash", pa.string(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of the passage that is least like its kept one
        pa.field("kept_ids", pa.list_(pa.string()), nullable=False),
        pa.field("kept_hashes", pa.list_(pa.string()), nullable=False),
    ]
)
FILES = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("modified", pa.int64(), nullable=False),  # ns since 1970
        pa.field("reading", pa.string(), nullable=False),  # hash of the settings it was read with
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
QUARANTINE = pa.schema(
    [
        pa.field("doc_id", pa.string()),  # null: the document could not be told
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # within the file; -1: the whole file
        pa.field("doc_hash", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("traceback", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False, metadata=KEY),
        pa.field("status", pa.string(), nullable=False),  # running | done | gave way | interrupted | failed | died
        pa.field("started_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("finished_at", pa.timestamp("us", "UTC")),
        pa.field("table_version", pa.int64()),  # null: it ended before it had the table to itself
        pa.field("report", pa.string()),  # the run's Report as JSON
        pa.field(
            "reason", pa.string()
        ),  # one line: why it failed, was interrupted, gave way or is taken for dead; null where it is done
    ]
)


def table_schema(spec: Spec, metadata: pa.Schema) -> pa.Schema:
    """Schema of the main table: one row a chunk."""
    value = {"float32": pa.float32(), "float16": pa.float16()}[spec.vector]
    return pa.schema(
        [
            pa.field("chunk_id", pa.string(), nullable=False, metadata=KEY),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("chunk_index", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("vector", pa.list_(value, spec.dim), nullable=False),
            *metadata,
            pa.field("doc_hash", pa.string(), nullable=False),
            pa.field("chunk_hash", pa.string(), nullable=False),
            pa.field("char_start", pa.int64(), nullable=False),
            pa.field("char_end", pa.int64(), nullable=False),
            pa.field("source_file", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("embedded_at", pa.timestamp("us", "UTC"), nullable=False),
        ]
    )


COLUMN_KEY = b"latent.column"  # in a metadata column's field: "NAME@VERSION", the table's version that it was added to; absent: another program's


def owned(field: pa.Field, version: int) -> pa.Field:
    """The field with the mark of a column that a run keeps, added to the table at a version; 0: made with the table."""
    return field.with_metadata({COLUMN_KEY: f"{field.name}@{version}".encode()})


def is_owned(field: pa.Field) -> bool:
    """Whether a run made this column and its name is still the one that it was made with."""
    name, at, _ = (field.metadata or {}).get(COLUMN_KEY, b"").decode().rpartition("@")
    return bool(at) and name == field.name


def column_key(field: pa.Field) -> str:
    """What a metadata column is called in a hash. One that was added later has its version in it.

    A column that was dropped and added again is empty, though its documents hold what they held before: they must count as changed.
    """
    version = (field.metadata or {}).get(COLUMN_KEY, b"").decode().rpartition("@")[2]
    return str(field.name) if version in {"", "0"} else f"{field.name}@{version}"


SCORE = "latent.score"  # column of an answer; no metadata column is called so: Lance takes no dot in a name
OWN_COLUMNS = frozenset(
    [
        "chunk_id",
        "doc_id",
        "chunk_index",
        "text",
        "vector",
        "doc_hash",
        "chunk_hash",
        "char_start",
        "char_end",
        "source_file",
        "run_id",
        "embedded_at",
    ]
)
# Lance puts them beside the rows of an answer, or takes no column of that name.
LANCE_COLUMNS = frozenset(
    ["_distance", "_score", "_rowid", "_rowaddr", "_rowoffset", "_row_created_at_version", "_row_last_updated_at_version"]
)
