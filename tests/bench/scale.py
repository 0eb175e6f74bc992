"""What 10 million, a billion and ten billion passages ask for: arithmetic, on rates that were measured. Prints the table of docs/explanation/scale.md.

    .venv/bin/python tests/bench/scale.py

Four rates are measured here and now, in a minute: listing files, writing their states, reading what a table holds, the size of a manifest. The others are
constants with the command that they come from.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import lance
import numpy as np
import pyarrow as pa

from latent.schemas import FILES, STORED_DOCUMENTS
from latent.sources import list_files, locate
from latent.store.dataset import Store, write_side

# The corpus that is reckoned with.
PASSAGE_TOKENS = 200
PASSAGES_A_DOCUMENT = 4
DOCUMENTS_A_FILE = 10_000
ROW_BYTES = 384 * 4 + 1_100  # vector and columns; 200 tokens are some 900 characters
NIGHT_SHARE = 0.001  # of the documents change in a night

# Rates, and the command that each comes from.
CORE_TOKENS = 3_000  # a second, float32 on one core: make bench, passages
INT8_TIMES = 2.2  # as many in 8 bits: make bench, passages
GPU_PASSAGES = 2_500  # a second on an A100: published for sentence-transformers, not measured by us
SHARD_TOKENS = {"cpu": 250_000, "gpu": 8_000_000}  # at most: pipeline/ingest/plan.py
DRIVER_SHARDS = 409  # a second: tests/bench/crew.py
COMMIT_S = 20.0  # pipeline/ingest/run.py
DRIVER_BYTES = 222  # a document: tests/bench/memory.py 20000 200000, 40 MB for 180,000
INDEX_S = 140e-6  # a row, on two cores: tests/bench/nightly.py, the first maintenance of 1,000,000
MERGED_ROWS = 1 << 20  # of a fragment, when maintenance has merged it


@dataclass(frozen=True)
class Measured:
    """On this machine."""

    list_s: float  # a file, on a local disk
    state_s: float  # of writing one file's state
    state_bytes: float  # that it takes on the disk
    held_s: float  # of reading id, hash and file of one document
    fragment_bytes: float  # of a manifest


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(
        f"measured here: listing {1 / found.list_s:,.0f} files a second; states of files written {1 / found.state_s:,.0f} a second, "
        f"{found.state_bytes:.0f} bytes each; {1 / found.held_s:,.0f} stored documents read a second; {found.fragment_bytes:.0f} bytes a fragment in a manifest\n"
    )
    sizes = {"10 M": 10**7, "1 G": 10**9, "10 G": 10**10}
    print(f"| | {' | '.join(sizes)} |\n|---|{'---:|' * len(sizes)}")
    for what, reckon in lines(found):
        print(f"| {what} | {' | '.join(reckon(n) for n in sizes.values())} |")


def measure(folder: Path) -> Measured:
    names = 20_000
    (folder / "source").mkdir()
    for i in range(names):
        (folder / f"source/{i:06}.jsonl").touch()
        os.utime(folder / f"source/{i:06}.jsonl", (1e9, 1e9))  # long ago: nothing to wait for
    listing_s = timed(lambda: list_files(locate(str(folder / "source")), "auto"))

    store, states = Store(str(folder / "lance"), "docs"), 200_000
    rows = pa.table(
        [
            [f"part/{i:09}.jsonl" for i in range(states)],
            np.full(states, 1 << 20),
            np.arange(states) * 1_000_003,
            ["0" * 32] * states,
            np.full(states, DOCUMENTS_A_FILE),
            ["20261122T181205-aa2960"] * states,
        ],
        schema=FILES,
    )
    writing_s = timed(lambda: write_side(store, "files", rows))
    written = sum(file.stat().st_size for file in Path(store.path("files")).rglob("*.lance"))

    documents = 1_000_000
    hashes = np.random.default_rng(0).integers(0, 2**63, documents)
    held = pa.table(
        [[f"d{i}" for i in range(documents)], [f"{h:032x}" for h in hashes], ["part/000000001.jsonl"] * documents],
        STORED_DOCUMENTS.names,
    )
    lance.write_dataset(held, str(folder / "held.lance"))
    reading_s = timed(lambda: lance.dataset(str(folder / "held.lance")).to_table())

    many = lance.write_dataset(held[:2_000], str(folder / "many.lance"), max_rows_per_file=1)
    manifest = max(file.stat().st_size for file in Path(folder / "many.lance/_versions").iterdir())
    return Measured(
        listing_s / names, writing_s / states, written / states, reading_s / documents, manifest / len(many.get_fragments())
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lines(found: Measured) -> list[tuple[str, Callable[[int], str]]]:
    """What is reckoned, and how, by the number of passages."""

    def documents(n: int) -> float:
        return n / PASSAGES_A_DOCUMENT

    def files(n: int) -> float:
        return documents(n) / DOCUMENTS_A_FILE

    def gpu_hours(n: int) -> float:
        return n / GPU_PASSAGES / 3600

    def shards(n: int) -> float:
        return n * PASSAGE_TOKENS / SHARD_TOKENS["gpu"]

    def commits(n: int, gpus: int = 64) -> float:
        return gpu_hours(n) * 3600 / gpus / COMMIT_S

    return [
        ("documents; files", lambda n: f"{told(documents(n))}; {told(files(n))}"),
        ("core hours, float32", lambda n: told(n * PASSAGE_TOKENS / CORE_TOKENS / 3600)),
        ("core hours, 8 bits", lambda n: told(n * PASSAGE_TOKENS / CORE_TOKENS / INT8_TIMES / 3600)),
        ("GPU hours (published rate)", lambda n: told(gpu_hours(n))),
        ("wall hours on 64 GPUs", lambda n: told(gpu_hours(n) / 64)),
        (
            "cost at 2.00 a GPU hour; a million tokens",
            lambda n: f"{told(2 * gpu_hours(n))}; {2 * gpu_hours(n) / (n * PASSAGE_TOKENS / 1e6):.4f}",
        ),
        ("shards = fragments written", lambda n: told(shards(n))),
        ("driver's time for them", lambda n: span(shards(n) / DRIVER_SHARDS)),
        ("commits = versions, on 64 GPUs", lambda n: told(max(commits(n), 1))),
        ("manifest before merging", lambda n: size(shards(n) * found.fragment_bytes)),
        ("fragments when merged", lambda n: told(max(n / MERGED_ROWS, 1))),
        ("table, vectors in float32", lambda n: size(n * ROW_BYTES)),
        ("first index, two cores", lambda n: span(n * INDEX_S)),
        ("driver's memory for the plan", lambda n: size(documents(n) * DRIVER_BYTES)),
        ("listing, local disk", lambda n: span(files(n) * found.list_s)),
        (
            "states of all files, written at each commit",
            lambda n: f"{span(files(n) * found.state_s)}, {size(files(n) * found.state_bytes)}",
        ),
        ("reading what the table holds, each night", lambda n: span(documents(n) * found.held_s)),
        ("a night: core hours for 0.1 % changed", lambda n: told(n * NIGHT_SHARE * PASSAGE_TOKENS / CORE_TOKENS / 3600)),
    ]


def told(value: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def span(seconds: float) -> str:
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.2g} s"


def size(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1e3:.3g} kB"


if __name__ == "__main__":
    main()
