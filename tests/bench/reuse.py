"""What reuse saves on a body of text that says many things twice: the documentation of Debian's kernel, which ships sources and their rendered copies.

    .venv/bin/python tests/bench/reuse.py linux-doc-6.1_*.deb [--share 24] [--rounds 2]

Documents: the reStructuredText of the package (`apt-get download linux-doc-6.1`; dpkg-deb is needed), one in `share` of the distinct ones with all their copies. Two jobs in turn:
latent's, and the same without reuse, which encodes each passage for itself.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]
import pyarrow as pa

from latent import load
from latent.ingest import run
from latent.ingest.worker import Worker, _EncodeStats
from latent.workers import WorkerPool


class Forgetful(Worker):
    """Encodes every passage for itself."""

    def _vectors(self, shard: str, chunks: pa.Table) -> tuple[dict[str, Any], _EncodeStats]:
        made = _EncodeStats()
        each = {
            f"{h} {i}": text
            for i, (h, text) in enumerate(zip(*(chunks[c].to_pylist() for c in ("chunk_hash", "text")), strict=True))
        }
        return {key.split()[0]: vector for key, vector in self._encode(each, made).items()}, made


def forgetful(pool_spec: Any, make: Any, shards: int) -> WorkerPool:
    return WorkerPool(pool_spec, partial(Forgetful, *make.args), shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--share", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        subprocess.run(["dpkg-deb", "-x", options.package, folder / "package"], check=True)
        (folder / "src").mkdir()
        with (folder / "src/docs.jsonl").open("w") as file:
            file.writelines(json.dumps(each) + "\n" for each in documents(folder / "package", options.share))
        seconds: dict[str, list[float]] = {"reuse": [], "no reuse": []}
        for turn in range(options.rounds):
            for name, engine in (("reuse", WorkerPool), ("no reuse", forgetful)):
                config = folder / f"{name}-{turn}.toml"
                config.write_text(f'[source]\nuri = "src/*.jsonl"\n[table]\nuri = "{name}-{turn}"\n')
                report = run.embed(load(config), engine=engine)
                chunks = report.chunks
                seconds[name].append(report.seconds)
                print(f"{name}: {report.seconds:.1f} s, {chunks.encoded} passages encoded, {chunks.reused} reused", flush=True)
    share = median(a / b for a, b in zip(seconds["reuse"], seconds["no reuse"], strict=True))
    print(f"with reuse {share:.0%} of the time")


def documents(package: Path, share: int) -> Iterator[dict[str, str]]:
    """Files by their path; the copies of a text together in or out."""
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.name.endswith((".rst.txt", ".rst.gz")):
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            if int(hashlib.sha256(data).hexdigest(), 16) % share == 0:
                yield {"id": str(path.relative_to(package)), "text": data.decode(errors="replace")}


if __name__ == "__main__":
    main()
