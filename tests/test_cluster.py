"""Clusters: true to the vectors, named, and the same ones tomorrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, Latent, words
from hypothesis import given, settings
from hypothesis import strategies as st

from latent import load
from latent.analysis.clustering import algorithm as cluster
from latent.analysis.clustering import cluster_table as clusters
from latent.config import Config
from latent.errors import ConfigError, QueryError
from latent.ingest.resolve import store_of
from latent.store import read_derived

TOPICS = 6


def corpus(topics: int, each: int, seed: int = 0) -> list[dict[str, object]]:
    """Documents of fourteen words, of six that are one topic's own."""
    chance = np.random.default_rng(seed)
    return [
        {"id": f"t{t}-{i}", "text": words(*(100 + 20 * t + chance.integers(0, 6, 14))), "topic": f"topic {t}"}
        for t in range(topics)
        for i in range(each)
    ]


@pytest.fixture
def desk(desk_for: Callable[..., Desk], tmp_path: Path) -> Desk:
    desk = desk_for(tmp_path, metadata=["topic"])
    desk.write("a.jsonl", corpus(TOPICS, 40))
    desk.embed()
    return desk


def asked(desk: Desk, **settings: object) -> Config:
    return load(desk.config_path, {f"cluster.{name}": value for name, value in settings.items()})


def assignments(desk: Desk) -> dict[str, int]:
    worked = read_derived(store_of(desk.config), "assignments")
    assert worked is not None
    return dict(zip(worked.rows["chunk_id"].to_pylist(), worked.rows["cluster_id"].to_pylist(), strict=True))


def by_topic(desk: Desk) -> dict[str, int]:
    """The cluster of each topic; fails where one has two."""
    found: dict[str, Counter[int]] = {}
    for chunk_id, number in assignments(desk).items():
        found.setdefault(chunk_id.partition("-")[0], Counter())[number] += 1
    assert all(len(counts) == 1 for counts in found.values()), found
    return {topic: next(iter(counts)) for topic, counts in found.items()}


def test_topics_are_found_named_and_written_down(desk: Desk) -> None:
    done = clusters.cluster(asked(desk, number=TOPICS), against="topic")
    assert (done.clusters, done.noise, done.new, done.kept) == (TOPICS, 0, TOPICS, 0)
    assert done.agreement == {"v_measure": 1.0, "ari": 1.0, "nmi": 1.0}
    assert done.silhouette is not None
    assert done.silhouette > 0.3
    assert len(set(by_topic(desk).values())) == TOPICS
    texts = dict(zip(*(desk.table()[name].to_pylist() for name in ("chunk_id", "text")), strict=True))
    for group in done.groups:
        if group.level == 0:
            assert set(group.label.split(", ")) <= set(" ".join(texts[chunk] for chunk in group.exemplars).split()) | {
                w for w in group.label.split(", ") if " " in w
            }
            assert [title.split() for title in group.titles] == [texts[chunk].split() for chunk in group.exemplars]
    rows = read_derived(store_of(desk.config), "assignments").rows
    assert rows.schema.names == ["chunk_id", "cluster_id", "strength", "outlier"]
    assert min(rows["strength"].to_pylist()) > 0
    assert 0 <= min(rows["outlier"].to_pylist()) <= max(rows["outlier"].to_pylist()) < 1


def test_the_number_is_what_two_halves_agree_on(desk: Desk) -> None:
    assert clusters.cluster(asked(desk)).clusters == TOPICS


def test_the_same_seed_gives_the_same_clusters(desk: Desk) -> None:
    clusters.cluster(asked(desk, number=9), fresh=True)
    first = assignments(desk)
    clusters.cluster(asked(desk, number=9), fresh=True)
    assert assignments(desk) == first


def test_a_topic_keeps_its_number_and_name_as_the_corpus_grows(desk: Desk) -> None:
    names = {g.cluster_id: g.label for g in clusters.cluster(asked(desk, number=TOPICS)).groups}
    before = by_topic(desk)
    desk.write(
        "a.jsonl", [d for d in corpus(TOPICS, 40) if not str(d["id"]).startswith("t2-")] + corpus(TOPICS + 1, 60, seed=1)[-60:]
    )
    desk.embed()
    done = clusters.cluster(asked(desk, number=TOPICS))
    after = by_topic(desk)
    assert (done.kept, done.new, done.gone) == (TOPICS - 1, 1, 1)
    assert {topic: after[topic] for topic in after if topic in before} == {t: n for t, n in before.items() if t != "t2"}
    assert after[f"t{TOPICS}"] not in before.values(), "a number that was given is not given again"
    assert all(names[g.cluster_id] == g.label for g in done.groups if g.cluster_id in names)


def test_numbers_are_kept_where_more_clusters_are_asked_for(desk: Desk) -> None:
    clusters.cluster(asked(desk, number=TOPICS))
    before = set(assignments(desk).values())
    done = clusters.cluster(asked(desk, number=TOPICS + 2))
    assert done.kept >= TOPICS - 2
    assert before & set(assignments(desk).values())
    assert clusters.cluster(asked(desk, number=TOPICS), fresh=True).kept == 0


def test_many_clusters_have_groups_above_them(desk: Desk) -> None:
    done = clusters.cluster(asked(desk, number=24))
    above = {g.cluster_id: g for g in done.groups if g.level == 1}
    below = [g for g in done.groups if g.level == 0]
    assert 4 <= len(above) <= 6
    assert {g.parent for g in below} == above.keys()
    for number, group in above.items():
        assert group.rows == sum(g.rows for g in below if g.parent == number)
    assert clusters.cluster(asked(desk, number=24)).kept == 24


@pytest.mark.slow  # a minute and more of compiling
def test_density_leaves_what_is_like_nothing_as_noise(desk: Desk) -> None:
    stray = [{"id": f"stray{i}", "text": words(450 + i), "topic": None} for i in range(10)]
    desk.write("b.jsonl", stray)
    desk.embed()
    done = clusters.cluster(asked(desk, method="density"), against="topic")
    assert done.clusters >= TOPICS
    assert done.agreement["v_measure"] > 0.7
    rows = read_derived(store_of(desk.config), "assignments").rows.to_pylist()
    lost = [row for row in rows if row["cluster_id"] == -1]
    assert done.noise == len(lost)
    assert len([row for row in lost if row["chunk_id"].startswith("stray")]) >= 8
    assert all(row["strength"] == 0 for row in lost)
    first = assignments(desk)
    clusters.cluster(asked(desk, method="density"), fresh=True)
    again = assignments(desk)
    assert len(set(zip(first.values(), again.values(), strict=True))) == len(set(first.values())), (
        "the same seed, the same clusters"
    )


def names(topics: Sequence[clusters.Topic]) -> list[str]:
    return [f"{topic.words[0]} of {topic.rows}, like {topic.exemplars[0][:8]}" for topic in topics]


def test_a_labeller_of_ones_own_names_topics_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    done = clusters.cluster(asked(desk, number=TOPICS, labeller="test_cluster:names"))
    assert all(" of 40, like w" in g.label for g in done.groups)
    again = clusters.cluster(asked(desk, number=TOPICS, labeller="test_cluster:names"))
    assert {g.label for g in again.groups} == {g.label for g in done.groups}


def test_a_labeller_beside_the_config_names_what_another_one_named_before(desk: Desk) -> None:
    before = clusters.cluster(asked(desk, number=TOPICS))
    (desk.folder / "beside.py").write_text("PREFIX = 'about'\n")
    (desk.folder / "naming.py").write_text(
        "import beside\n"
        "def named(topics):\n    return [f'{beside.PREFIX} {topic.words[0]}' for topic in topics]\n"
        "def broken(topics):\n    return 1 / 0\n"
        "def short(topics):\n    return ['one']\n"
    )
    done = clusters.cluster(asked(desk, number=TOPICS, labeller="naming:named"))
    assert done.kept == TOPICS, "the same clusters"
    assert {g.cluster_id: f"about {g.words[0]}" for g in before.groups} == {g.cluster_id: g.label for g in done.groups}
    assert {g.label for g in clusters.cluster(asked(desk, number=TOPICS)).groups} == {g.label for g in before.groups}
    with pytest.raises(ConfigError, match=r"naming:broken' failed: ZeroDivisionError: division by zero"):
        clusters.cluster(asked(desk, number=TOPICS, labeller="naming:broken"))
    with pytest.raises(ConfigError, match="1 names for 6 topics: wanted one for each"):
        clusters.cluster(asked(desk, number=TOPICS, labeller="naming:short"))


def test_too_few_rows_for_a_density_are_one_line(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["topic"])
    desk.write("a.jsonl", corpus(1, 3))
    desk.embed()
    with pytest.raises(QueryError, match="'density': 3 passages are too few to tell where they lie dense, wanted 20"):
        clusters.cluster(asked(desk, method="density"))


def test_equal_texts_are_one_cluster_however_many_are_asked_for(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["topic"])
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(100 + i % 3), "topic": None} for i in range(30)])
    desk.embed()
    for _ in range(2):
        done = clusters.cluster(asked(desk, number=10))
        assert (done.clusters, [g.rows for g in done.groups]) == (3, [10, 10, 10])


def test_what_cannot_be_grouped_is_one_line(desk: Desk) -> None:
    with pytest.raises(QueryError, match=r"no column 'colour' .* it has chunk_id"):
        clusters.cluster(asked(desk), against="colour")
    with pytest.raises(QueryError, match="240 passages: too few for 241 clusters"):
        clusters.cluster(asked(desk, number=241))
    with pytest.raises(ConfigError, match="labeller = 'nothing:there'"):
        clusters.cluster(asked(desk, labeller="nothing:there"))


def test_the_command_prints_a_topic_a_line_and_json(desk: Desk, latent: Latent) -> None:
    told = latent(desk.folder, "cluster", "-k", "6").out
    assert "6 clusters of version" in told
    assert len([line for line in told.splitlines() if line.split()[1:2] == ["40"]]) == TOPICS
    result = latent(desk.folder, "cluster", "-k", "6", "--against", "topic", "--json").answer
    assert (result["clusters"], result["noise"], result["kept"]) == (6, 0, 6)
    assert (result["clusters_table"], result["assignments_table"], result["v_measure"]) == (
        "docs.clusters",
        "docs.assignments",
        1.0,
    )


# --- the parts ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(2, 9), st.integers(0, 99))
def test_each_row_belongs_to_its_nearest_centre(rows: int, k: int, dim: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    vectors, at = (chance.standard_normal((n, dim)).astype(np.float32) for n in (rows, k))
    vectors, at = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, at))
    found = cluster.belong(vectors, cluster.Centres(at, np.full(k, 2.0, np.float32)))
    assert np.allclose((vectors @ at.T).max(1), 1 - found.outlier, atol=1e-5)
    assert ((found.strength >= 0) & (found.strength <= 1)).all()
    assert (found.cluster >= 0).all()
    none = cluster.belong(vectors, cluster.Centres(at, np.full(k, -1.0, np.float32)))
    assert (none.cluster == cluster.NOISE).all()
    assert (none.strength == 0).all()


@given(st.permutations(range(5)))
def test_clusters_are_matched_by_their_members_whatever_their_order(order: list[int]) -> None:
    sizes = np.array([50, 40, 30, 20, 10])
    counts = np.zeros((5, 5))
    counts[np.arange(5), order] = sizes[order]
    assert cluster.match(counts, sizes[order], sizes) == dict(enumerate(order))
    halved = cluster.match(counts * 0.3, sizes[order], sizes)
    assert halved == {}, "a topic that lost most of its members is another"


def test_labels_do_not_repeat_themselves() -> None:
    assert cluster.label(["gun", "guns", "gun control", "law", "laws", "court"]) == "gun, law, court"
    assert cluster.label([]) == ""
