"""Vectors in fewer bytes: what is kept is measured right, written whole, and searched truly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Desk, Latent
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cluster import corpus

from latent import open_table
from latent.analysis.compression.compress_table import compress
from latent.errors import ConfigError, QueryError
from latent.ingest.resolve import store_of
from latent.store import codec as codecs
from latent.store import matrix, read_codes

DIM = 16


def no_autoencoder(_: int) -> tuple[tuple[codecs.Layer, ...], tuple[codecs.Layer, ...]]:
    raise AssertionError("none is asked for")


def unit(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32) * np.linspace(
        2, 0.1, dim, dtype=np.float32
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = desk_for(tmp_path_factory.mktemp("compress"), metadata=["topic"])
    desk.write("a.jsonl", corpus(6, 50))
    desk.embed()
    return desk


@pytest.fixture(scope="module")
def vectors(desk: Desk) -> np.ndarray:
    return matrix(desk.table()["vector"].combine_chunks())


def test_smaller_codes_keep_less_and_what_is_kept_is_told(desk: Desk, vectors: np.ndarray) -> None:
    done = compress(desk.config)
    dim = vectors.shape[1]
    found = {each.name: each for each in done.codecs}
    assert list(found) == codecs.names(dim)
    assert (done.rows, done.full_bytes, done.full_ndcg, done.written) == (300, 4 * dim, None, None)
    assert all(each.share == each.bytes / done.full_bytes and each.ndcg is None for each in done.codecs)
    assert found["full-float16"].error < 1e-5
    by_kind = [found[f"full-{kind}"] for kind in ("float16", "int8", "int4", "binary")]
    assert [each.share for each in by_kind] == [1 / 2, 1 / 4, 1 / 8, 1 / 32]
    assert [each.error for each in by_kind] == sorted(each.error for each in by_kind)
    assert found["full-float16"].recall > 0.99
    assert all(each.rescored_recall >= each.recall - 1e-9 for each in done.codecs)
    assert found[f"autoencoder-{dim // 4}-int8"].error < found[f"cut-{dim // 4}-int8"].error
    assert compress(desk.config, "full-int4").codecs == [found["full-int4"]], "as it was measured before"


def test_recall_is_that_of_exact_comparison(desk: Desk, vectors: np.ndarray) -> None:
    done = compress(desk.config, "pca-2-int8")
    asked = np.sort(np.random.default_rng(0).permutation(300)[:150])
    codes = read_codes(store_of(desk.config))
    again = codes.codec.decode(codes.codes())
    assert done.codecs[0].error == pytest.approx(float((1 - (again * vectors).sum(1)).mean()), abs=1e-5)
    right, found = (np.where(np.arange(300) == asked[:, None], -9, vectors[asked] @ each.T) for each in (vectors, again))
    tens = [np.argsort(-each, 1, kind="stable")[:, :10] for each in (right, found)]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*tens, strict=True)])
    assert done.codecs[0].recall == pytest.approx(recall, abs=0.02), "rows of one cosine may stand either way"
    assert done.codecs[0].recall < 0.9, "two numbers do not tell it all"


def test_judgments_tell_what_answers_keep(desk: Desk) -> None:
    texts = dict(zip(desk.table()["doc_id"].to_pylist(), desk.table()["text"].to_pylist(), strict=True))
    names = [f"t{topic}-{i}" for topic in range(6) for i in range(4)]
    judged = ({name: texts[name] for name in names}, {name: {name: 1} for name in names})
    done = compress(desk.config, judged=judged)
    assert done.full_ndcg == pytest.approx(1.0, abs=0.1)
    found = {each.name: each for each in done.codecs}
    assert found["full-int8"].ndcg == pytest.approx(done.full_ndcg, abs=0.02)
    assert found["full-int8"].rescored_ndcg_kept == pytest.approx(1.0)
    assert all(each.ndcg_kept == pytest.approx(each.ndcg / done.full_ndcg) for each in done.codecs)
    assert min(each.ndcg_kept for each in done.codecs) < 0.9
    with pytest.raises(QueryError, match="none of the queries is judged"):
        compress(desk.config, judged=({"a": "b"}, {"c": {"d": 1}}))


def test_what_is_written_makes_the_vectors_again_and_finds_what_they_find(desk: Desk, vectors: np.ndarray) -> None:
    done = compress(desk.config, "pca-8-int4")
    assert (done.written, done.compressed_table, done.codec_table) == ("pca-8-int4", "docs.compressed", "docs.codec")
    codes = read_codes(store_of(desk.config))
    assert codes.rows["chunk_id"].to_pylist() == desk.table()["chunk_id"].to_pylist()
    again = codes.codec.decode(codes.codes())
    assert again.shape == vectors.shape
    assert (again * vectors).sum(1).mean() > 0.6
    table = open_table(desk.config_path)
    for query in ("w100 w101 w102", "w160 w163"):
        for where in (None, {"topic": ["topic 0", "topic 3"]}):
            right = [(hit.chunk_id, round(hit.score, 5)) for hit in table.search(query, 5, where, exact=True)]
            assert [(hit.chunk_id, round(hit.score, 5)) for hit in table.search(query, 5, where, compressed=True)] == right
    assert table.search("w100", 3, {"topic": "none"}, compressed=True) == []
    with pytest.raises(QueryError, match="compressed is of vectors: search with mode vector"):
        table.search("w100", 3, mode="hybrid", compressed=True)


def test_codes_of_other_rows_are_not_searched(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", corpus(2, 20))
    desk.embed()
    table = open_table(desk.config_path)
    with pytest.raises(QueryError, match="is not compressed: run 'latent compress --write NAME'"):
        table.search("w100", compressed=True)
    compress(desk.config, "full-binary")
    assert len(table.search("w100", 3, compressed=True)) == 3
    for rows in (corpus(2, 21), corpus(2, 20)):
        desk.write("a.jsonl", rows)
        desk.embed()
        with pytest.raises(QueryError, match="rows came or went since: run 'latent compress --write full-binary' again"):
            table.search("w100", compressed=True)
    compress(desk.config, "full-binary")
    assert len(table.search("w100", 3, compressed=True)) == 3


def test_a_table_too_small_for_some_codecs_is_measured_by_the_others(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", corpus(1, 20))
    desk.embed()
    with pytest.raises(QueryError, match="20 passages: too few to compress, wanted 21"):
        compress(desk.config)
    desk.write("a.jsonl", corpus(1, 21))
    desk.embed()
    assert len(compress(desk.config).codecs) >= len([n for n in codecs.names(DIM) if not n.startswith("pca")])
    with pytest.raises(QueryError, match="--write pca-16-int8: 11 passages to learn from, wanted one for each component at least"):
        compress(desk.config, "pca-16-int8")


@pytest.mark.parametrize("name", ["zip", "pca-int8", "pca-0-int8", "pca-9999-int8", "full-8-int8", "pca-4-int5", "pca-x-int8"])
def test_a_codec_that_is_none_is_one_line(desk: Desk, name: str) -> None:
    with pytest.raises(ConfigError, match=f"--write {name}: wanted full-KIND, pca-N-KIND"):
        compress(desk.config, name)


def test_the_command_draws_and_writes(desk: Desk, latent: Latent, tmp_path: Path) -> None:
    curve = tmp_path / "curve.svg"
    told = latent(desk.folder, "compress", "--picture", curve).out
    assert "300 passages of version" in told
    assert "full-binary" in told
    assert "<svg" in curve.read_text()
    result = latent(desk.folder, "compress", "--write", "full-int8", "--json").answer
    assert (result["written"], [each["name"] for each in result["codecs"]]) == ("full-int8", ["full-int8"])
    assert latent(desk.folder, "compress", "--queries", "q.csv").code == 2


# --- codecs ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["full", "pca", "cut"]), st.integers(1, DIM), st.sampled_from(list(codecs.BITS)), st.integers(0, 99))
def test_a_codec_comes_back_as_it_was(method: str, count: int, kind: str, seed: int) -> None:
    name = f"full-{kind}" if method == "full" else f"{method}-{count}-{kind}"
    vectors = unit(80, seed)
    codec = codecs.fit(name, vectors, no_autoencoder)
    codes = codec.encode(vectors)
    assert codes.nbytes == codec.bytes * len(vectors)
    again = codec.decode(codes)
    assert np.allclose(np.linalg.norm(again, axis=1), 1, atol=1e-4)
    kept = codecs.of_arrays(name, dict(codecs.arrays(codec)))
    assert (kept.encode(vectors) == codes).all()
    assert (kept.decode(codes) == again).all()
    lengths = np.linalg.norm(codecs._through(codec.decoder, codec._numbers(codes)), axis=1)
    shift = codec.decoder[0].bias @ vectors[0] if codec.decoder else 0
    assert np.allclose(codec.nearness(codes, vectors[0]) + shift, again @ vectors[0] * lengths, atol=1e-3)


@given(st.integers(0, 99))
def test_more_numbers_and_more_bits_lose_less(seed: int) -> None:
    vectors = unit(200, seed)

    def error(name: str) -> float:
        codec = codecs.fit(name, vectors, no_autoencoder)
        return float((1 - (codec.decode(codec.encode(vectors)) * vectors).sum(1)).mean())

    for ladder in (["full-float16", "full-int8", "full-int4", "full-binary"], ["pca-16-int8", "pca-8-int8", "pca-4-int8"]):
        errors = [error(name) for name in ladder]
        assert errors == sorted(errors)
    assert error("full-int8") < 0.001
    assert error("pca-16-float32") < 1e-5


def test_an_autoencoder_learns_what_a_plane_does_not_hold() -> None:
    """Points of a circle, bent through eight dimensions: two principal components lose what two numbers of an autoencoder keep."""
    from latent.encoders.autoencoder import autoencoder

    angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    bent = np.stack([f(k * angle) for k in (1, 2, 3, 4) for f in (np.sin, np.cos)], 1).astype(np.float32)
    bent /= np.linalg.norm(bent, axis=1, keepdims=True)

    def trained(width: int) -> tuple[tuple[codecs.Layer, ...], tuple[codecs.Layer, ...]]:
        return tuple(tuple(codecs.Layer(*each) for each in side) for side in autoencoder(bent, width, 0))

    errors = {}
    for name in ("pca-2-float32", "autoencoder-2-float32"):
        codec = codecs.fit(name, bent, trained)
        errors[name] = float((1 - (codec.decode(codec.encode(bent)) * bent).sum(1)).mean())
    assert errors["autoencoder-2-float32"] < errors["pca-2-float32"] / 3
