"""A table moved to a second real model while it is searched all along, by a reader that keeps it open and by one that opens it anew each time, and while a night changes it.

    python tests/bench/migration.py ../shared/data/cranfield/corpus.parquet MODEL [documents]

Columns id, title, text. Each answer by meaning must be, whole, that of one state of the table: before, after the night's change, or of the new model. Costs both models' encoding of
the documents, and the readers' share of the cores meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pyarrow.parquet as pq

from latent import SearchTable, open_table

LATENT = str(Path(sys.executable).with_name("latent"))
SETTINGS = '[source]\nuri = "src/*.jsonl"\ntext = ["title", "text"]\n'
MODES = ("vector", "text", "hybrid")
K = 5
Answer = tuple[tuple[str, float], ...]
began = time.perf_counter()


def tell(line: str) -> None:
    print(f"{time.perf_counter() - began:6.0f} s  {line}", flush=True)


def latent(desk: Path, *command: str) -> dict:
    done = subprocess.run([LATENT, *command, "--json"], cwd=desk, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"latent {' '.join(command)}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def answers(table: SearchTable, queries: list[str]) -> list[Answer]:
    return [tuple((hit.chunk_id, round(hit.score, 3)) for hit in found) for found in table.search_batch(queries, K, mode="vector")]


class Reader(threading.Thread):
    """Asks until it is stopped, in each mode in turn; keeps what was answered by meaning, and what failed."""

    def __init__(self, config: Path, queries: list[str], *, anew: bool) -> None:
        super().__init__()
        self._config, self._queries, self._anew = config, queries, anew
        self.stop, self.asked, self.failed, self.slowest = threading.Event(), 0, [], 0.0
        self.found: set[tuple[int, Answer]] = set()

    def run(self) -> None:
        table = open_table(self._config)
        for turn in count():
            if self.stop.is_set():
                return
            started = time.perf_counter()
            try:
                if self._anew:
                    table = open_table(self._config)
                which, mode = turn // len(MODES) % len(self._queries), MODES[turn % len(MODES)]
                hits = table.search(self._queries[which], K, mode=mode)
                if mode == "vector":
                    self.found.add((which, tuple((hit.chunk_id, round(hit.score, 3)) for hit in hits)))
            except Exception as error:
                self.failed.append(f"{mode}: {error}")
            self.asked += 1
            self.slowest = max(self.slowest, time.perf_counter() - started)
            time.sleep(0.1)  # cores for the others


def main() -> None:
    corpus, model, *most = sys.argv[1:]
    rows = [row for row in pq.read_table(corpus).to_pylist() if row["text"]][: int(most[0]) if most else None]
    queries = [row["title"] for row in rows[:: max(len(rows) // 10, 1)] if row["title"]]
    with tempfile.TemporaryDirectory() as folder:
        desk, config = Path(folder), Path(folder) / "config.toml"
        (desk / "src").mkdir()
        config.write_text(SETTINGS)
        write(desk, "a", rows)
        report = latent(desk, "run")
        tell(f"{report['documents']['added']} documents, {report['chunks']['encoded']} passages by the first model")
        before = answers(open_table(config), queries)
        readers = {what: Reader(config, queries, anew=what == "anew") for what in ("open", "anew")}
        for reader in readers.values():
            reader.start()
        night = migrate_through_a_night(desk, model, rows[0]["text"], queries)
        after = answers(open_table(config), queries)
        time.sleep(20)  # the reader that keeps the table open loads the new model meanwhile
        for reader in readers.values():
            reader.stop.set()
        for reader in readers.values():
            reader.join()
        states = {"before": before, "after the night": night, "of the new model": after}
        for what, reader in readers.items():
            tell(f"reader that {'keeps it open' if what == 'open' else 'opens it anew'}: {told(reader, states)}")
        ok = all(check["ok"] for check in latent(desk, "verify", "--model.name", model)["checks"])
        tell(f"latent verify: {'ok' if ok else 'FAIL'}")


def write(desk: Path, name: str, rows: list[dict]) -> None:
    kept = ({key: row[key] for key in ("id", "title", "text")} for row in rows)
    (desk / f"src/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def migrate_through_a_night(desk: Path, model: str, text: str, queries: list[str]) -> list[Answer]:
    """Start the migration; once its table is there, let a night add a document; wait for the switch. Returns the answers after the night."""
    command = [LATENT, "migrate", "--model", model, "--switch", "--json"]
    with subprocess.Popen(command, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        tell(f"latent migrate --model {model} --switch")
        while not (desk / "data/lancedb/docs.next.lance/data").exists() and process.poll() is None:
            time.sleep(0.2)
        write(desk, "b", [{"id": "new", "title": "a night's new document", "text": text}])
        report = latent(desk, "run", "--no-maintain")
        night = answers(open_table(desk / "config.toml"), queries)
        tell(
            f"a night meanwhile: {report['documents']['added']} added, table version {report['table_version']}; the new model still embeds: {process.poll() is None}"
        )
        said, complaint = process.communicate()
    if process.returncode:
        sys.exit(complaint)
    done = json.loads(said)
    measured = "; ".join(f"{side} nDCG@10 {done[side]['ndcg@10']:.3f}" for side in ("before", "after"))
    tell(f"switched: version {done['former_version']} → {done['table_version']}; by the table's own sentences: {measured}")
    return night


def told(reader: Reader, states: dict[str, list[Answer]]) -> str:
    """How many searches, how many failed, and of which state the answers were."""
    kinds = Counter(
        next((name for name, state in states.items() if state[which] == answer), "MIXED") for which, answer in reader.found
    )
    seen = ", ".join(f"{number} {name}" for name, number in kinds.items())
    return f"{reader.asked} searches, {len(reader.failed)} failed{reader.failed[:1] or ''}, the slowest {reader.slowest:.1f} s; different answers by meaning: {seen}"


if __name__ == "__main__":
    main()
