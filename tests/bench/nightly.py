"""What a night costs on a large table of which one document in a thousand changed: seconds, and bytes read beside the bytes of all vectors.

    .venv/bin/python tests/bench/nightly.py [documents]       (1,000,000 where none are said)

Corpus and model as in memory.py. Three nights: nothing changed; 0.1 % of the documents, together in the last files; as many, one in every thousand, so that every file is opened.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
from memory import LATENT, SETTINGS, static_model, wordnet

FILE_DOCUMENTS = 10_000
DIM = 384


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        glosses = wordnet(desk)
        static_model(desk / "static")
        (desk / "glosses").mkdir()
        (desk / "config.toml").write_text(SETTINGS)
        texts = [f"{i}: {glosses[i % len(glosses)]}" for i in range(size)]
        write(desk, texts, range(0, size, FILE_DOCUMENTS))
        tell("first run", latent(desk, "run"))
        tell("maintain", latent(desk, "maintain"))
        indexes = index_files(desk)
        tell("nothing changed", latent(desk, "run"))
        few = size // 1000
        for i in range(size - few, size):
            texts[i] += " again"
        write(desk, texts, range((size - few) // FILE_DOCUMENTS * FILE_DOCUMENTS, size, FILE_DOCUMENTS))
        tell(f"{few} changed, together", latent(desk, "run"))
        tell("maintain", latent(desk, "maintain"))
        for i in range(0, size, 1000):
            texts[i] += " once more"
        write(desk, texts, range(0, size, FILE_DOCUMENTS))
        tell(f"{few} changed, all over", latent(desk, "run"))
        tell("maintain", latent(desk, "maintain"))
        kept = "the same" if indexes <= index_files(desk) else "written anew"
        print(f"vectors of the table {size * DIM * 4 >> 20} MB; {len(indexes)} files of indexes: {kept}")


def write(desk: Path, texts: list[str], starts: range) -> None:
    for at in starts:
        lines = (json.dumps({"id": f"g{i}", "text": text}) for i, text in enumerate(texts[at : at + FILE_DOCUMENTS], at))
        (desk / f"glosses/{at:07}.jsonl").write_text("".join(line + "\n" for line in lines))


def latent(desk: Path, command: str) -> dict[str, float]:
    """Seconds of a command, what it reports, and the bytes that it and its workers read."""
    read: dict[int, int] = {}
    began = time.perf_counter()
    with subprocess.Popen([LATENT, command, "--json"], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        watch = threading.Thread(target=_watch, args=(process, read))
        watch.start()
        said, _ = process.communicate()
        watch.join()
    if process.returncode:
        raise SystemExit(f"latent {command} failed")
    report = json.loads(said)
    encoded = report.get("chunks", {}).get("encoded", 0)
    return {"seconds": time.perf_counter() - began, "read": sum(read.values()) / 2**20, "encoded": encoded}


def _watch(process: subprocess.Popen[bytes], read: dict[int, int]) -> None:
    """The bytes that the process and those below it have asked for, by process."""
    while process.poll() is None:
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        below, found = {process.pid}, -1
        while found != len(below):
            found = len(below)
            below |= {pid for pid, parent in parents.items() if parent in below}
        for pid in below:
            try:
                read[pid] = int(Path(f"/proc/{pid}/io").read_text().split()[1])
            except OSError:
                continue
        time.sleep(0.2)


def index_files(desk: Path) -> set[str]:
    return {str(path) for path in (desk / "data/lancedb/docs.lance/_indices").rglob("*") if path.is_file()}


def tell(what: str, found: dict[str, float]) -> None:
    print(f"{what:28} {found['seconds']:7.1f} s   {found['read']:8.0f} MB read   {found['encoded']:8} encoded", flush=True)


if __name__ == "__main__":
    main()
