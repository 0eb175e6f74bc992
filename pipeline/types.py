"""The dataclasses that cross rooms: what comes in ones. What comes in millions has an Arrow schema in `schemas`.

Pure: imports nothing of the project. Hashes are BLAKE2b-128 in hex (RFC 7693): 32 characters, no collisions to expect below 2**60 rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Mode = Literal["vector", "text", "hybrid"]  # of a search

# --- documents and chunks -------------------------------------------------------------------------------------------


def digest(data: bytes) -> str:
    """BLAKE2b-128 of the bytes, in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# --- the spec -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """All that decides a vector. A table holds one spec and refuses vectors of another."""

    model: str
    model_digest: str  # SHA-256 over the model's files that decide a vector
    dim: int
    chunk_tokens: int | Literal["truncate"]
    overlap: int  # tokens
    document_prompt: str
    precision: str  # of the encoder's arithmetic
    vector: str  # float32 | float16, as stored

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Spec:
        return Spec(**json.loads(text))

    def __str__(self) -> str:
        return f"{self.model} (digest {self.model_digest[:12]}, dim {self.dim}, {self.precision})"

    def differences(self, other: Spec) -> list[str]:
        """'field: mine / theirs' for each field that differs."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [f"{k}: {short(mine[k])} / {short(theirs[k])}" for k in mine if mine[k] != theirs[k]]


def short(value: object) -> str:
    """A value as it appears in a message: digests cut to 12 characters, blanks at an end made visible by quotes."""
    text = repr(value) if isinstance(value, str) and value.strip() != (value or None) else str(value)
    return text[:12] if len(text) == 64 else text


@dataclass(frozen=True)
class Prompts:
    """What is put before each text that the model reads."""

    document: str = ""
    query: str = ""

    def __str__(self) -> str:
        return f"{json.dumps(self.document, ensure_ascii=False)} before documents, {json.dumps(self.query, ensure_ascii=False)} before queries"


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are here and verified."""

    name: str
    folder: str
    digest: str  # SHA-256 over names and SHA-256 of all deciding files
    dim: int
    max_tokens: int | None  # special tokens included; None: no limit
    trust_remote_code: bool = False
    prompts: Prompts = Prompts()  # that its file asks for


# --- files, shards, receipts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileState:
    """A file as the listing saw it. Another size or time means another content."""

    path: str  # below the source's root, with forward slashes
    size: int  # bytes
    modified: int  # ns since 1970; an object store's last-modified


@dataclass(frozen=True)
class FileSlice:
    """Documents to do in one file."""

    file: FileState
    documents: pa.Table  # row, doc_id, doc_hash, held, changed: in the order of rows


@dataclass(frozen=True)
class Shard:
    """A slice of the source small enough for one worker to hold."""

    slices: tuple[FileSlice, ...]

    @property
    def name(self) -> str:
        """By content (files, their state, rows), never by position: adding a file renames no other shard."""
        key = [(s.file.path, s.file.size, s.file.modified, s.documents["row"].to_pylist()) for s in self.slices]
        return digest(json.dumps(key).encode())

    def __len__(self) -> int:
        """How many documents."""
        return sum(s.documents.num_rows for s in self.slices)

    def split(self) -> list[Shard]:
        """Two halves of the documents; a single document stays alone."""
        if len(self) < 2:
            return [self]
        halves: tuple[list[FileSlice], list[FileSlice]] = ([], [])
        middle, seen = len(self) // 2, 0
        for s in self.slices:
            cut = min(max(middle - seen, 0), s.documents.num_rows)
            for half, part in zip(halves, (s.documents[:cut], s.documents[cut:]), strict=True):
                if part.num_rows:
                    half.append(FileSlice(s.file, part))
            seen += s.documents.num_rows
        return [Shard(tuple(half)) for half in halves]

    def documents(self) -> pa.Table:
        """All documents to do, with their file: row, doc_id, doc_hash, held, changed, source_file."""
        import pyarrow as pa

        return pa.concat_tables(
            s.documents.append_column("source_file", pa.array([s.file.path] * s.documents.num_rows, pa.string()))
            for s in self.slices
        )


@dataclass(frozen=True)
class Receipt:
    """What a worker did with a shard. The rows themselves lie in fragments nobody sees yet."""

    shard: str
    fragments: tuple[str, ...]  # Lance fragment metadata as JSON
    rows: int
    quarantined: pa.Table  # QUARANTINE
    stale: tuple[str, ...]  # doc_ids not as the plan saw them: left for the next run
    encoded: int  # chunks
    reused: int  # chunks
    tokens: int  # encoded, special tokens included
    read_s: float
    encode_s: float
    write_s: float
    node: str = ""  # IP address of the worker's machine; with the rest filled in by the engine
    pid: int = 0  # of the worker's process
    memory: int = 0  # bytes that this process held at most
    canary: str = ""  # vectors of fixed texts by this worker, as JSON, in its first receipt and if the table has none yet

    @property
    def seconds(self) -> float:
        return self.read_s + self.encode_s + self.write_s


# --- what a run reports ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DocumentCounts:
    """Every document of the source is in exactly one of added, changed, unchanged, quarantined."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class ChunkCounts:
    encoded: int = 0
    reused: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class Report:
    """What a run did, or, from `latent plan`, is expected to do. A field means the same in both.

    `table_version` is the newest when the command ends, indexes included. `tokens_per_second` are the tokens of the job by its `seconds`, with the start of Ray and of
    the model.
    """

    run_id: str | None
    table_version: int | None
    documents: DocumentCounts
    chunks: ChunkCounts
    tokens: int
    seconds: float
    tokens_per_second: float
    moved: int = 0  # of the unchanged: documents now found in another file
    files_opened: int = 0
    files_unchanged: int = 0
    files_ignored: int = 0  # of a kind the format does not read
    files_refused: int = 0  # damaged: quarantined whole
    files_left: int = 0  # of a backfill under way: not opened
    left: int = 0  # documents outside the sample that the run takes
    undone: int = 0  # documents planned, and not done by a run that gave way or was stopped
    stale: int = 0  # documents that changed while the run read them: left for the next run
    read_seconds: float = 0.0  # summed over workers
    encode_seconds: float = 0.0  # summed over workers
    write_seconds: float = 0.0  # summed over workers
    workers: int = 0
    cost: float = 0.0  # of encoding, by [ray] cost_per_million_tokens
    reasons: dict[str, int] = field(default_factory=dict)  # why documents are in quarantine → how many, most frequent first
    slowest: tuple[ShardTiming, ...] = ()
    prompts: Prompts = Prompts()
    columns_added: tuple[str, ...] = ()  # metadata columns that the table gains
    columns_dropped: tuple[str, ...] = ()  # and loses
    refused: str = ""  # of a plan: why a run would stop before it deletes
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries that decide vectors


@dataclass(frozen=True)
class ShardTiming:
    """How long a shard took, and where."""

    shard: str
    node: str  # IP address; empty where the driver itself did it
    documents: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """A moment of a run, for whoever draws it."""

    phase: str  # survey | start | encode | wait | done | centres | assign | map | compare | learn | compress
    documents: int = 0
    total: int = 0
    tokens: int = 0
    quarantined: int = 0
    seconds_left: float | None = None  # None: not known yet


OnProgress = Callable[[Progress], None]  # called as work goes on
