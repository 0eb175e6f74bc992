"""The map: a table, a picture, and a page that is walked about in by a real browser."""

from __future__ import annotations

import base64
import functools
import io
import os
import re
import shutil
import signal
import threading
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import matplotlib.image
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, Latent, words
from test_cluster import TOPICS, corpus

from latent.analysis.drift.change_report import save_report
from latent.analysis.drift.compare_versions import drift
from latent.analysis.projection import map_table as maps
from latent.analysis.projection.coordinates import Plane
from latent.errors import ConfigError, QueryError
from latent.ingest.resolve import store_of
from latent.store import read_derived

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRAWN_BY_THE_CPU = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@pytest.fixture(scope="module")
def desk(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = desk_for(tmp_path_factory.mktemp("map"), metadata=["topic"], more=f"[cluster]\nnumber = {TOPICS}\n")
    desk.write("a.jsonl", corpus(TOPICS, 40))
    desk.embed()
    return desk


@pytest.fixture(scope="module")
def drawn(desk: Desk) -> maps.Map:
    return maps.draw_map(desk.config)


def test_what_is_near_in_the_space_is_near_on_the_map(desk: Desk, drawn: maps.Map) -> None:
    rows = read_derived(store_of(desk.config), "map").rows
    assert rows.equals(drawn.rows.replace_schema_metadata(rows.schema.metadata))
    assert rows["chunk_id"].to_pylist() == desk.table()["chunk_id"].to_pylist()
    points = np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], 1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    clusters = rows["cluster_id"].to_numpy()
    assert (clusters[apart.argmin(1)] == clusters).mean() > 0.95
    near = rows["neighbours"].to_pylist()
    assert all(i not in some for i, some in enumerate(near))
    assert np.mean([clusters[some[0]] == clusters[i] for i, some in enumerate(near)]) > 0.95
    assert len([r for r in drawn.regions if r[3] == 0]) == TOPICS


def test_rows_that_the_plane_was_not_fitted_on_are_placed_among_their_like(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "FITTED", 120)
    drawn = maps.draw_map(desk.config)
    assert "neighbours" not in drawn.rows.column_names
    points, clusters = np.stack([drawn.rows[c].to_numpy() for c in "xy"], 1), drawn.rows["cluster_id"].to_numpy()
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (clusters[apart.argmin(1)] == clusters).mean() > 0.9


def test_a_plane_is_the_same_again(desk: Desk) -> None:
    vectors = np.stack(list(desk.vectors().values()))
    one, other = (Plane(vectors, 3).layout for _ in range(2))
    assert np.array_equal(one.points, other.points)


def test_neighbours_are_the_nearest_and_never_the_passage_itself_though_some_are_equal() -> None:
    vectors = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    vectors[:40] = vectors[0]
    layout = Plane(vectors, 3).layout
    assert all(i not in some for i, some in enumerate(layout.neighbours.tolist()))
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert np.allclose(layout.distances, np.sort(apart, axis=1)[:, : layout.distances.shape[1]], atol=1e-3)


def test_a_picture_has_a_colour_and_a_name_for_each_topic(drawn: maps.Map, tmp_path: Path) -> None:
    for name in ("map.png", "map.svg", "map.pdf", "map.png", "map.svg", "map.pdf"):  # each once more: an earlier one is replaced
        maps.save_picture(drawn, tmp_path / name, "docs")
    pixels = (matplotlib.image.imread(tmp_path / "map.png")[..., :3] * 255).astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    with pytest.raises(ConfigError, match="wanted a name that ends in"):
        maps.save_picture(drawn, tmp_path / "map.bmp", "docs")


def test_twenty_clusters_have_twenty_colours() -> None:
    assert len(set(maps.COLOURS)) == len(maps.COLOURS) >= 20


def test_a_picture_that_cannot_be_written_is_one_line_before_the_work(desk: Desk, latent: Latent) -> None:
    for command, file, wanted in (("map", "no/m.png", "there is no folder"), ("compress", "c.txt", "wanted a name that ends in")):
        done = latent(desk.folder, command, "--picture", file)
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert wanted in done.err


def test_the_page_has_columns_of_the_documents_beside_its_own(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    named = ("Topic", "topic_", "subtopic", "neighbours")
    desk = desk_for(tmp_path, metadata=list(named))
    desk.write("a.jsonl", [{"id": f"d{i}", "text": words(100 + i)} | {name: f"{name} of d{i}" for name in named} for i in range(4)])
    desk.embed()
    place = np.arange(4, dtype=np.float32)
    like = {"neighbours": [[1], [0], [3], [2]], "distances": [[0.1]] * 4}
    rows = pa.table(
        {
            "chunk_id": desk.table()["chunk_id"],
            "x": place,
            "y": place,
            "cluster_id": [0] * 4,
            "topic": list("abab"),
            "coarse_topic": ["all"] * 3 + [""],
        }
        | like
    )
    drawn = maps.Map(int(store_of(desk.config).opened().version), "docs.map", rows, [(0.0, 0.0, "all", 0)])
    for _ in range(2):  # an earlier one is replaced
        maps.save_page(desk.config, drawn, tmp_path / "page")
    told = pq.read_table(next((tmp_path / "page").rglob("*.parquet")))
    assert [f"{name} of {doc}" for doc in told["doc_id"].to_pylist() for name in named] == [
        value for row in told.to_pylist() for value in (row[name] for name in named)
    ]
    assert (told["topic__"].to_pylist(), told["subtopic_"].to_pylist()) == (["all"] * 3 + ["(no topic)"], list("abab"))
    assert (told["__x"].to_pylist(), told["__y"].to_pylist()) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert told["__neighbours"].to_pylist()[2]["ids"] == [3]  # of names with __ the page shows nothing
    head = (tmp_path / "page/index.html").read_text().partition("</head>")[0]
    assert f"<title>docs, version {drawn.table_version}: 4 passages</title>" in head
    assert head.count("<title>") == 1
    assert '<link rel="icon" href="data:image/svg+xml' in head


def clusters_of(levels: list[list[int]], dim: int = 8) -> pa.Table:
    """A table of clusters: by level, from the finest, the number of each one's parent; the last level has none."""
    chance, rows, first = np.random.default_rng(1), [], 0
    for level, parents in enumerate(levels):
        above = first + len(parents)
        rows += [
            {
                "cluster_id": first + i,
                "parent": above + parent if level + 1 < len(levels) else None,
                "level": level,
                "label": f"{level}-{i}",
                "rows": 100 - i,
                "centre": chance.standard_normal(dim).tolist() if level == 0 else None,
            }
            for i, parent in enumerate(parents)
        ]
        first = above
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ([[0] * 10], [f"0-{i}" for i in range(10)]),  # few enough as they are
        ([[i // 4 for i in range(20)], [0] * 5], [f"1-{i // 4}" for i in range(20)]),
        ([[i // 4 for i in range(64)], [i // 4 for i in range(16)], [0] * 4], [f"2-{i // 16}" for i in range(64)]),
    ],
)
def test_colors_stand_for_the_finest_level_that_has_few_enough_topics(levels: list[list[int]], names: list[str]) -> None:
    assert list(maps.coarse_topics(clusters_of(levels), 10).values()) == names


def test_topics_without_a_coarse_level_are_grouped_by_likeness_and_named_after_the_largest() -> None:
    coarse = maps.coarse_topics(clusters_of([[0] * 15]), 10)
    assert coarse.keys() == set(range(15))
    sizes = Counter(coarse.values())
    assert len(sizes) == 10
    assert all(name.endswith(f" and {size - 1} more") or size == 1 for name, size in sizes.items())
    assert all(coarse[min(c for c in coarse if coarse[c] == name)].split()[0] == name.split()[0] for name in sizes)


def test_a_table_too_small_for_a_map_is_one_line(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path)
    desk.write("a.jsonl", corpus(1, 3))
    desk.embed()
    with pytest.raises(QueryError, match="3 passages: too few for a map, wanted 5"):
        maps.draw_map(desk.config)


def test_the_command_writes_pictures_and_the_page(desk: Desk, latent: Latent, tmp_path: Path) -> None:
    told = latent(desk.folder, "map", "--picture", tmp_path / "m.png", "--html", tmp_path / "page", "--json").answer
    assert (told["map_table"], told["rows"]) == ("docs.map", TOPICS * 40)
    assert (tmp_path / "m.png").stat().st_size > 10_000
    assert (tmp_path / "page/index.html").exists()


@pytest.fixture
def page(desk: Desk, drawn: maps.Map, tmp_path: Path) -> Iterator[str]:
    maps.save_page(desk.config, drawn, tmp_path / "page")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(maps._Quiet, directory=str(tmp_path / "page"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser_points_are_drawn_a_search_narrows_them_and_a_click_shows_the_text(
    page: str, desk: Desk, drawn: maps.Map
) -> None:
    from playwright.sync_api import sync_playwright

    topics = [label for _, _, label, level in drawn.regions if level == 0]

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=DRAWN_BY_THE_CPU)
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page)
        tab.get_by_text(f"{TOPICS * 40} / {TOPICS * 40} points").wait_for(timeout=60_000)
        canvas = tab.locator("canvas").first
        canvas.wait_for()
        tab.wait_for_timeout(2000)
        shot = canvas.screenshot()
        assert of_colour(shot, blue) > 50, "points are drawn, a colour a topic"
        assert of_colour(shot, green) > 50
        assert tab.title() == f"docs, version {drawn.table_version}: {TOPICS * 40} passages"
        assert tab.get_by_text("(other").count() == 0, "each topic has its color"
        assert tab.get_by_title("Embedding Atlas").is_hidden()
        for topic in topics:
            assert tab.get_by_text(topic, exact=True).count() >= 3, "in the legend, in its chart, on the map"

        tab.mouse.click(20, 56)
        tab.locator("input[type=search]").wait_for()
        tab.wait_for_timeout(1000)
        shot = canvas.screenshot()  # smaller beside the list of what is found
        texts = desk.table()["text"].to_pylist()
        word = texts[0].split()[0]
        tab.locator("input[type=search]").fill(word)
        tab.get_by_text("results.").wait_for(timeout=60_000)
        found = int(tab.get_by_text("results.").inner_text().split()[0])
        assert found == len([text for text in texts if word in text.split()])
        tab.wait_for_timeout(1000)
        assert of_colour(canvas.screenshot(), orange) > of_colour(shot, orange) + 20, "what is found stands out"

        box = canvas.bounding_box()
        y, x = middle(shot, blue)
        shown = Counter({text: tab.get_by_text(text).count() for text in texts})
        tab.mouse.move(box["x"] + x, box["y"] + y)
        tab.mouse.click(box["x"] + x, box["y"] + y)
        tab.wait_for_timeout(1500)
        more = Counter({text: tab.get_by_text(text).count() for text in texts}) - shown
        assert more, "the passage is shown, on the map and among its like in the list"
        assert not re.search(r"__|distances", tab.locator("body").inner_text()), "what the page needs for itself is not shown"

        phone = browser.new_page(viewport={"width": 390, "height": 844})
        phone.goto(page)
        legend = phone.locator(".order-3:has(> table)")
        legend.wait_for(timeout=60_000)
        assert legend.bounding_box()["height"] < 844 / 4
        browser.close()
    assert {url for url in asked if not url.startswith((page, "blob:", "data:"))} == set(), "no request leaves the machine"


def blue(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 2] > rgb[..., 0] + 0.2) & (rgb[..., 2] > 0.4)


def green(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 1] > rgb[..., 0] + 0.2) & (rgb[..., 1] > rgb[..., 2] + 0.1)


def orange(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., 0] > 0.7) & (rgb[..., 2] < 0.3)


def of_colour(shot: bytes, colour: Callable[[np.ndarray], np.ndarray]) -> int:
    return int(colour(matplotlib.image.imread(io.BytesIO(shot))[..., :3]).sum())


def middle(shot: bytes, colour: Callable[[np.ndarray], np.ndarray]) -> tuple[int, int]:
    """A pixel of this colour."""
    where = np.argwhere(colour(matplotlib.image.imread(io.BytesIO(shot))[..., :3]))
    y, x = where[len(where) // 2]
    return int(y), int(x)


def test_a_change_report_is_one_file_that_asks_for_nothing(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    desk = desk_for(tmp_path, metadata=["topic"], more=f"[cluster]\nnumber = {TOPICS}\n")
    desk.write("a.jsonl", corpus(TOPICS, 20))
    desk.embed()
    desk.write("b.jsonl", [row | {"id": f"<b>{row['id']}"} for row in corpus(TOPICS, 5, seed=5)])
    desk.embed()
    found = drift(desk.config)
    for _ in range(2):  # an earlier one is replaced
        save_report(found, "<docs>", tmp_path / "new/changes.html")
    told = (tmp_path / "new/changes.html").read_text()
    assert "No alarm." in told
    assert "30 documents are new" in told
    assert "<h1>&lt;docs&gt;" in told
    assert "<b>" not in told, "what documents hold is no markup"
    assert all(topic.label in told for topic in found.topics)
    assert "http" not in told
    assert re.findall(r"""(?:src|href|url)[=(]["']?([^"':)]*)""", told) == ["data"]
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(re.search(r"base64,([A-Za-z0-9+/=]+)", told)[1])))
    assert len(np.unique((image[..., :3] * 255).astype(int).reshape(-1, 3), axis=0)) > TOPICS


def test_open_serves_the_page_and_shows_it_to_the_browser(
    desk: Desk, latent: Latent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def browser(url: str) -> None:
        with urlopen(url) as answer:
            seen[url] = answer.read()
        os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    monkeypatch.setattr(webbrowser, "open", browser)
    done = latent(desk.folder, "map", "--html", tmp_path / "page", "--open")
    assert done.code in {0, 130}
    ((url, page),) = seen.items()
    assert f"{url}, " in done.err
    assert b"<html" in page
