"""Does the map's page stay smooth with many points? Frame times in headless Chromium while it is zoomed, on points made up: 20 heaps.

    python tests/bench/page.py [POINTS] [--shot FILE.png]       (100,000 where none are said)

Without a graphics card the points are drawn by the CPU (SwiftShader), beside the page's own scripts: a frame on any card takes less.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from playwright.sync_api import Page, sync_playwright

from latent import load
from latent.analysis.projection import map_table as maps
from latent.config import Config

sys.path[:0] = [str(Path(__file__).parents[1])]
from test_map import CHROMIUM, DRAWN_BY_THE_CPU

HEAPS = 20
TURNS = 40  # of the wheel
FRAMES = """() => { window.frames_ms = []; let last = performance.now();
    const tick = now => { window.frames_ms.push(now - last); last = now; requestAnimationFrame(tick); }; requestAnimationFrame(tick); }"""


def made_up(folder: Path, count: int) -> tuple[Config, maps.Map]:
    chance = np.random.default_rng(0)
    heap = chance.integers(0, HEAPS, count)
    points = chance.uniform(-10, 10, (HEAPS, 2))[heap] + chance.standard_normal((count, 2))
    ids = pa.array([f"d{i}#0" for i in range(count)])
    texts = pa.array([f"passage {i} of heap {h}, with some twenty words " * 3 for i, h in enumerate(heap.tolist())])
    lance.write_dataset(pa.table({"chunk_id": ids, "doc_id": ids, "text": texts, "year": 1990 + heap}), f"{folder}/docs.lance")
    rows = pa.table(
        {
            "chunk_id": ids,
            "x": points[:, 0].astype(np.float32),
            "y": points[:, 1].astype(np.float32),
            "cluster_id": heap.astype(np.int32),
            "topic": pa.array([f"heap {h}" for h in heap.tolist()]),
            "coarse_topic": pa.array([f"heaps {h % 5}" for h in heap.tolist()]),
        }
    )
    regions = [(*np.median(points[heap == h], 0).tolist(), f"heap {h}", 0) for h in range(HEAPS)]
    (folder / "config.toml").write_text(f'[table]\nuri = "{folder}"\nname = "docs"\n')
    return load(folder / "config.toml"), maps.Map(1, "docs.map", rows, regions)


def zoomed(tab: Page) -> np.ndarray:
    """Milliseconds of each frame while the wheel turns in and out again."""
    box = tab.locator("canvas").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.evaluate(FRAMES)
    for turn in range(TURNS):
        tab.mouse.wheel(0, -60 if turn < TURNS / 2 else 60)
        tab.wait_for_timeout(30)
    return np.array(tab.evaluate("() => window.frames_ms")[1:])


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("points", nargs="?", type=int, default=100_000)
    asked.add_argument("--shot", type=Path)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        maps.save_page(*made_up(Path(folder), given.points), Path(folder) / "page")
        handler = functools.partial(maps._Quiet, directory=f"{folder}/page")
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=DRAWN_BY_THE_CPU)
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.goto(f"http://127.0.0.1:{server.server_address[1]}")
            tab.get_by_text(f"{given.points:,} / {given.points:,} points").wait_for(timeout=180_000)
            tab.wait_for_timeout(5_000)
            if given.shot:
                tab.screenshot(path=given.shot)
            frames = zoomed(tab)
            browser.close()
            server.shutdown()
    half, most, worst = np.percentile(frames, [50, 95, 100])
    print(f"{given.points} points, {len(frames)} frames: {half:.0f} ms (median), {most:.0f} ms (95 %), {worst:.0f} ms (longest)")


if __name__ == "__main__":
    main()
