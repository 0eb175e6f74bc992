"""`latent drift`: what came, what went, and whether the table's meaning moved between two of its versions.

Reads each version's vectors twice; memory holds some vectors of documents (30 MB), and of each document its key and its topic, of each row its document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latent import store
from latent.analysis.clustering import algorithm as groups
from latent.analysis.clustering.algorithm import Centres
from latent.analysis.drift import statistics as tests
from latent.analysis.drift.statistics import Finding
from latent.config import Config
from latent.errors import QueryError, StoreError
from latent.ingest.resolve import same_vectors, store_of
from latent.ingest.rollback import version_of
from latent.ingest.run import quiet
from latent.store import Store
from latent.types import OnProgress, Progress

SAMPLED = 20_000  # passages of each version, to find topics in
REFERENCE = 20_000  # documents before that those that came are compared with
TESTED = 5_000  # documents of each side
NEW_OR_GONE = 0.05  # of a topic's passages there were before, or are left, at most
LOOKED_BACK = (20, 1000)  # versions: each is a request or two
SHOWN = 10  # strangest documents
LISTED = 20  # that came, that went
DRAWN = 3_000  # passages of each version, on a map
TEXT_CHARS = 200
HASH_CHARS = 32
SEED = 0


@dataclass(frozen=True)
class TopicChange:
    """A topic of both versions together."""

    label: str
    cluster_id: int | None  # its number in the table of clusters; None: it has none there
    before: int  # passages
    now: int
    before_share: float
    now_share: float
    shift: float | None  # cosine distance between its middle before and now; None: it was not, or is no more
    state: str  # new | gone | kept


@dataclass(frozen=True)
class Document:
    """One that came or went, and how its text begins."""

    doc_id: str
    text: str
    distance: float | None = None  # cosine distance to the nearest document before


@dataclass(frozen=True)
class Points:
    """For a map: passages of both versions drawn at random, and documents that came."""

    before: np.ndarray  # (n, dim)
    now: np.ndarray
    before_topics: np.ndarray  # (n,) places in Drift.topics
    now_topics: np.ndarray
    came: np.ndarray  # (m, dim)


@dataclass(frozen=True)
class Drift:
    """One version against an earlier one."""

    since: int
    table_version: int
    new: int  # documents
    changed: int
    gone: int
    stayed: int
    alarm: bool
    strangers: Finding
    shares: Finding
    topics: Sequence[TopicChange]  # what changed most first
    strangest: Sequence[Document]  # that came
    came: Sequence[Document]  # some of them
    went: Sequence[Document]
    points: Points = field(repr=False)

    def flat(self) -> dict[str, object]:
        """As `--json` prints it."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "points"}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def drift(config: Config, since: str | None = None, on_progress: OnProgress = quiet, *, until: str | None = None) -> Drift:
    """Compare two versions, each given by its number or by a run, at the end of which it stood. `until`: None is the newest one. `since`: None is as the run before the one that made
    that left it.

    Raises QueryError where there is nothing to compare with, StoreError where that version is kept no longer.
    """
    place = store_of(config)
    now = version_of(place, until) if until else int(place.opened().version)
    before = version_of(place, since) if since else _before_newest_run(place, now)
    _require_comparable(place, before, now)
    on_progress(Progress("centres"))
    samples = [store.rows_at(place, v, store.drawn(place, v, SAMPLED, SEED), ["chunk_id", "text", "vector"]) for v in (before, now)]
    pooled = pa.concat_tables(samples)
    vectors = store.matrix(pooled["vector"].combine_chunks())
    number = config.cluster.number
    k = groups.choose_number(vectors, SEED) if number == "auto" else min(number, len(vectors))
    centres = groups.kmeans(vectors, k, SEED)
    k = len(centres.at)
    (keys_before, rows_before), (keys_now, rows_now) = _documents(place, before), _documents(place, now)
    came, went = _without(keys_now, keys_before), _without(keys_before, keys_now)
    chance = np.random.default_rng(SEED)
    reference, asked = _some(chance, np.arange(len(keys_before)), REFERENCE), _some(chance, came, TESTED)
    then = _walk(place, before, centres, rows_before, reference, on_progress)
    today = _walk(place, now, centres, rows_now, asked, on_progress)

    far, _ = tests.to_nearest(today.vectors, then.vectors)
    usual = _some(chance, np.arange(len(reference)), TESTED)
    usually, _ = tests.to_nearest(then.vectors[usual], then.vectors, usual)
    strangers = tests.strangers(far, usually, len(came) / len(keys_now))
    stayed = np.setdiff1d(np.arange(len(keys_before)), went)
    spread = (today.topic[came], then.topic[went], then.topic[stayed])
    shares = tests.shares(*(np.bincount(topics, minlength=k) for topics in spread))

    found = groups.belong(vectors, centres).cluster
    named = _named(place, pooled, found, k, stop_words=config.index.language == "English")
    topics, order = _topics(then, today, named)
    furthest = np.argsort(-far, kind="stable")[:SHOWN]
    new = len(_without(_ids(keys_now), _ids(keys_before)))
    draw = [_some(chance, each, DRAWN) for each in (np.arange(len(samples[0])), np.arange(len(samples[0]), len(vectors)))]
    return Drift(
        since=before,
        table_version=now,
        new=new,
        changed=len(came) - new,
        gone=len(_without(_ids(keys_before), _ids(keys_now))),
        stayed=len(stayed),
        alarm=strangers.alarm or shares.alarm,
        strangers=strangers,
        shares=shares,
        topics=topics,
        strangest=_told(place, now, today.first[asked[furthest]], far[furthest]),
        came=_told(place, now, today.first[_some(chance, came, LISTED)]),
        went=_told(place, before, then.first[_some(chance, went, LISTED)]),
        points=Points(
            before=vectors[draw[0]],
            now=vectors[draw[1]],
            before_topics=order[found[draw[0]]],
            now_topics=order[found[draw[1]]],
            came=today.vectors[: DRAWN // 10],
        ),
    )


def _before_newest_run(place: Store, until: int) -> int:
    """The version that the newest run up to a version which changed rows began with."""
    for count in LOOKED_BACK:
        made = [v for v in store.versions(place, count) if v.run_id and v.version <= until]
        for version in made:
            if version.run_id != made[0].run_id:
                return version.version
    raise QueryError(f"{place.label}: no run before the newest one is kept: nothing to compare with")


def _require_comparable(place: Store, before: int, now: int) -> None:
    then, today = place.open(version=before), place.open(version=now)
    if then is None or today is None:
        missing = before if then is None else now
        raise StoreError(f"{place.label} has no version {missing}: 'latent status' lists those that are kept")
    if not then.count_rows() or not today.count_rows():
        raise QueryError(f"{place.label}: version {before if today.count_rows() else now} is empty: nothing to compare")
    was, is_now = store.spec_of(place, before), store.spec_of(place, now)
    if was is None or is_now is None or not same_vectors(was, is_now):
        raise QueryError(
            f"{place.label}: version {before} has vectors of {was}, version {now} of {is_now}: they cannot be compared"
        )


def _documents(place: Store, version: int) -> tuple[pa.Array, np.ndarray]:
    """A key for each document as it is at a version, its id and its hash; and for each row (n,) which one it is of."""
    keys = (
        pc.binary_join_element_wise(batch["doc_id"], batch["doc_hash"], "")
        for batch in store.batches(place, version, ["doc_id", "doc_hash"])
    )
    coded = pa.chunked_array(list(keys)).dictionary_encode().unify_dictionaries().chunks
    return coded[0].dictionary, np.concatenate([chunk.indices.to_numpy() for chunk in coded])


def _ids(keys: pa.Array) -> pa.Array:
    return pc.utf8_slice_codeunits(keys, 0, -HASH_CHARS)


def _without(keys: pa.Array, others: pa.Array) -> np.ndarray:
    """Which of them are not among the others."""
    return np.flatnonzero(~pc.is_in(keys, value_set=others).to_numpy(zero_copy_only=False))


def _some(chance: np.random.Generator, places: np.ndarray, count: int) -> np.ndarray:
    return np.sort(chance.permutation(places)[:count])


@dataclass(frozen=True)
class _Walked:
    """A version, read once."""

    passages: np.ndarray  # (k,) of each topic
    middles: np.ndarray  # (k, dim) sums of their vectors
    topic: np.ndarray  # (documents,) of its first passage
    first: np.ndarray  # (documents,) the place of its first passage
    vectors: np.ndarray  # (m, dim) of the documents asked for


def _walk(place: Store, version: int, centres: Centres, of_row: np.ndarray, asked: np.ndarray, on_progress: OnProgress) -> _Walked:  # noqa: PLR0917
    """`of_row`: the document of each row. `asked`: documents whose vectors are wanted."""
    (k, dim), count, rows = centres.at.shape, int(of_row.max()) + 1, len(of_row)
    passages, middles = np.zeros(k, np.int64), np.zeros((k, dim), np.float64)
    topic, first, sums = np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros((len(asked), dim), np.float32)
    slot = np.full(count, -1)
    slot[asked] = np.arange(len(asked))
    start = 0
    for batch in store.batches(place, version, ["chunk_index", "vector"]):
        vectors = store.matrix(batch["vector"])
        found = groups.belong(vectors, centres).cluster
        passages += np.bincount(found, minlength=k)
        np.add.at(middles, found, vectors)
        documents = of_row[start : start + batch.num_rows]
        begins = np.flatnonzero(batch["chunk_index"].to_numpy() == 0)
        topic[documents[begins]], first[documents[begins]] = found[begins], start + begins
        wanted = np.flatnonzero(slot[documents] >= 0)
        np.add.at(sums, slot[documents[wanted]], vectors[wanted])
        start += batch.num_rows
        on_progress(Progress("assign", start, rows))
    return _Walked(passages, middles, topic, first, sums / np.linalg.norm(sums, axis=1, keepdims=True))


def _named(place: Store, sample: pa.Table, found: np.ndarray, k: int, *, stop_words: bool) -> list[tuple[str, int | None]]:
    """The name of each topic, and its number in the table of clusters: of the cluster that it is there, else from its own words."""
    clusters, assigned = store.read_derived(place, "clusters"), store.read_derived(place, "assignments")
    known: dict[int, tuple[str, int | None]] = {}
    if clusters and assigned:
        labels = {row["cluster_id"]: row["label"] for row in clusters.rows.to_pylist() if row["level"] == 0}
        both = groups.tally(
            assigned.rows.select(["chunk_id", "cluster_id"]), pa.table({"chunk_id": sample["chunk_id"], "cluster_id": found})
        )
        numbers = list(labels)
        counts = np.zeros((k, len(numbers)))
        for (now, was), rows in both.items():
            if was in labels:
                counts[now, numbers.index(was)] += rows
        known = {
            new: (labels[numbers[old]], numbers[old]) for new, old in groups.match(counts, counts.sum(1), counts.sum(0)).items()
        }
    words = groups.words_of(groups.terms_of(sample["text"].to_pylist(), stop_words=stop_words), found, k)
    return [known.get(each) or (groups.label(words[each]) or f"topic {each}", None) for each in range(k)]


def _topics(then: _Walked, today: _Walked, named: Sequence[tuple[str, int | None]]) -> tuple[list[TopicChange], np.ndarray]:
    """What changed most, in passages' shares, first; and the place (k,) of each topic in that order."""
    told = []
    for each, (label, number) in enumerate(named):
        before, now = int(then.passages[each]), int(today.passages[each])
        state = "new" if before <= NEW_OR_GONE * now else "gone" if now <= NEW_OR_GONE * before else "kept"
        shares = before / int(then.passages.sum()), now / int(today.passages.sum())
        was, is_now = then.middles[each], today.middles[each]
        shift = None
        if before and now:
            shift = max(0.0, float(1 - was @ is_now / np.linalg.norm(was) / np.linalg.norm(is_now)))
        told.append(TopicChange(label, number, before, now, *shares, shift, state))
    order = np.argsort([-abs(each.now_share - each.before_share) for each in told], kind="stable")
    return [told[each] for each in order], np.argsort(order)


def _told(place: Store, version: int, rows: np.ndarray, far: np.ndarray | None = None) -> list[Document]:
    """The documents that begin with these rows."""
    found = store.rows_at(place, version, rows, ["doc_id", "text"]).to_pylist()
    distances = [None] * len(found) if far is None else [float(each) for each in far]
    return [Document(row["doc_id"], " ".join(row["text"].split())[:TEXT_CHARS], d) for row, d in zip(found, distances, strict=True)]
