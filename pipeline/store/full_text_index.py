"""The full-text index: BM25 over folded text, so that a word is found in each form and script it is written in.

Lance takes the words of a column as they stand there. So the index is built over a column of folded text that exists only while it is built, in a version
that no reader sees, and is then committed as the index of `text`: nothing is stored twice, any lancedb client sees and keeps a usual index. New rows
are indexed as a piece of their own, and pieces are merged without another look at the text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileSession

from latent.store.conditions import condition
from latent.store.failures import lance_errors
from latent.store.folding import query_form
from latent.store.full_text_settings import WORDS_KEY, FullTextSettings, indexed_in_memory
from latent.store.lease import Lease
from latent.store.ownership import Store
from latent.store.reader import connected

INDEX_NAME = "text_idx"  # lancedb's
FOLDED = "latent_folded"
UNINDEXED_SHARE = 0.25  # of the rows, from which on a run indexes what it has committed
VERIFIED_WORDS = 50  # of a passage


@dataclasses.dataclass(frozen=True)
class _Built:
    """What `_build` made, not committed."""

    words: str | None  # how texts are taken apart, as JSON; None: no index is wanted
    anew: bool  # the index that there is goes
    segment: Any | None


def index_words(store: Store, lease: Lease, words: FullTextSettings | None) -> None:
    """Bring the full-text index up to date: make it, index new rows, make it anew where texts are taken apart otherwise now, drop it.

    Raises TableBusy where the lease is lost meanwhile.
    """
    while not _commit(store, lease, _build(store, words)):
        pass
    _merge(store)


class WordIndexing:
    """`index_words` while a run commits: a thread builds, the caller's commits.

    It begins once there are rows, and whenever UNINDEXED_SHARE of them is new. Pieces stay as they are.
    """

    def __init__(self, store: Store, lease: Lease, words: FullTextSettings | None) -> None:
        self._store, self._lease, self._words = store, lease, words
        self._building: Future[_Built] | None = None

    def advance(self) -> None:
        """Commit what has been built, or begin to build; waits for nothing. Raises StoreError where it failed, TableBusy where the lease is lost."""
        if self._building is not None:
            if self._building.done():
                self.finish()
        elif self._words is not None:
            with self._errors():
                if self._due():
                    self._building = Future()
                    threading.Thread(target=self._build, args=(self._building,), name="word index").start()

    def finish(self) -> None:
        """Wait for what is being built, and commit it. Where it cannot stand beside what another has indexed, later indexing makes up for it."""
        if self._building is not None:
            with self._errors():
                _commit(self._store, self._lease, self._building.result())
            self._building = None

    def _due(self) -> bool:
        table = self._store.opened()
        new = sum(fragment.count_rows() for fragment in _new(table))
        return bool(new and new >= UNINDEXED_SHARE * table.count_rows())

    def _build(self, building: Future[_Built]) -> None:
        try:
            building.set_result(_build(self._store, self._words))
        except BaseException as error:  # noqa: BLE001 `finish` raises it
            building.set_exception(error)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return lance_errors(f"{self._store.label}: its words cannot be indexed")


def _build(store: Store, words: FullTextSettings | None) -> _Built:
    """Index what is not indexed yet. No reader sees it."""
    table = store.opened()
    wanted = words.to_json() if words and table.count_rows() else None
    anew = table.metadata.get(WORDS_KEY) != wanted
    fragments = [fragment.fragment_id for fragment in (table.get_fragments() if anew else _new(table))]
    segment = _segment(store, table, words, fragments) if words and wanted and fragments else None
    return _Built(wanted, anew, segment)


def _commit(store: Store, lease: Lease, built: _Built) -> bool:
    """False where another writer has indexed some of it meanwhile: a run that was paused, had lost the lease, and went on."""
    lease.check()
    if built.anew:
        table = store.opened()
        for index in _indexes(table):
            table.drop_index(index.name)
    if built.segment is not None:
        try:
            store.opened().commit_existing_index_segments(INDEX_NAME, "text", [built.segment])
        except (OSError, ValueError) as error:
            if "would orphan" not in str(error):
                raise
            return False
    if built.anew:
        store.opened().update_metadata({WORDS_KEY: built.words})
    return True


def _merge(store: Store) -> None:
    """All pieces into one, if none is large: each scores by the frequencies of its own rows, and they drift apart from those of the table."""
    table = store.opened()
    rows = {fragment.fragment_id: fragment.count_rows() for fragment in table.get_fragments()}
    for index in _indexes(table):
        sizes = [sum(rows.get(fragment, 0) for fragment in segment.fragment_ids) for segment in index.segments]
        if len(sizes) > 1 and max(sizes) < (1 - UNINDEXED_SHARE) * sum(sizes):
            table.optimize.optimize_indices(num_indices_to_merge=len(sizes), index_names=[index.name])


def _indexes(table: lance.LanceDataset) -> list[Any]:
    return [index for index in table.describe_indices() if index.field_names == ["text"]]


def _new(table: lance.LanceDataset) -> list[lance.LanceFragment]:
    """The fragments that the index does not cover."""
    covered = {fragment for index in _indexes(table) for segment in index.segments for fragment in segment.fragment_ids}
    return [fragment for fragment in table.get_fragments() if fragment.fragment_id not in covered]


def _segment(store: Store, table: lance.LanceDataset, words: FullTextSettings, fragments: Collection[int]) -> Any:
    """An index of the folded text of these fragments, not committed. The column and the version that it is built over are removed."""

    def fold(batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = batch["text"].to_pylist()
        return pa.record_batch({FOLDED: pa.array([words.index_form(text or "") for text in texts], pa.string())})

    schema, written = None, []
    for fragment in table.get_fragments():
        if fragment.fragment_id in fragments:
            with_column, schema = fragment.merge_columns(fold, columns=["text"])
            written.append(with_column)
        else:
            written.append(fragment.metadata)
    hidden = lance.LanceDataset.commit(
        table, lance.LanceOperation.Merge(written, schema), read_version=table.version, detached=True
    )
    try:
        segment = hidden.create_index_uncommitted(FOLDED, "INVERTED", name=FOLDED, fragment_ids=sorted(fragments), **words.settings)
    finally:
        _remove(store, table, hidden)
    text = table.lance_schema.field("text").id()
    return dataclasses.replace(segment, name=INDEX_NAME, fields=[text], dataset_version=table.version)


def _remove(store: Store, table: lance.LanceDataset, hidden: lance.LanceDataset) -> None:
    """The files of a version that no reader saw. What is left of them where this fails, `maintain` finds."""
    kept = {file.path for fragment in table.get_fragments() for file in fragment.metadata.files}
    files = {file.path for fragment in hidden.get_fragments() for file in fragment.metadata.files}
    session = LanceFileSession(store.path(), storage_options=store.options)
    transaction = hidden.read_transaction(hidden.version)
    paths = [f"data/{path}" for path in sorted(files - kept)] + [f"_versions/d{hidden.version}.manifest"]
    if transaction is not None:
        paths.append(f"_transactions/{transaction.read_version}-{transaction.uuid}.txn")
    for path in paths:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            session.delete_file(path)


def missed_by_words(store: Store, rows: list[dict[str, Any]]) -> list[str]:
    """chunk_ids of these rows that the full-text index does not find by their own words, though an index made of them alone does."""
    words = FullTextSettings.from_json(store.opened().metadata.get(WORDS_KEY))
    table = connected(store)
    asked = {row["chunk_id"]: _own_words(row["text"], words) for row in rows}
    silent = [name for name, query in asked.items() if query.strip() and not _finds(table, name, query)]
    if not silent:
        return []
    afresh = indexed_in_memory(pa.Table.from_pylist([{"chunk_id": row["chunk_id"], "text": row["text"]} for row in rows]), words)
    return [name for name in silent if _finds(afresh, name, asked[name])]


def _own_words(text: str, words: FullTextSettings) -> str:
    """Whole words from the start of a passage, folded and as they stand: rows newer than the index are searched as they stand."""
    some = text.split()[:VERIFIED_WORDS]
    return f"{query_form(' '.join(some), accents=words.accents)} {' '.join(some)}"


def _finds(table: Any, chunk_id: str, query: str) -> bool:
    from lancedb.query import MatchQuery

    found = table.search(MatchQuery(query, "text"), query_type="fts").where(
        condition({"chunk_id": chunk_id}, table.schema), prefilter=True
    )
    return bool(found.limit(1).select(["chunk_id", "_score"]).to_arrow().num_rows)
