"""Time and peak memory of what is worked out from a large table: clusters, near-duplicates, change, codes, a map.

    .venv/bin/python tests/bench/space.py [documents]       (1,000,000 where none are said)

Corpus and model as in memory.py: glosses of WordNet, each some times with another number before it, so most passages have near-duplicates.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
from memory import LATENT, SETTINGS, static_model, wordnet
from nightly import FILE_DOCUMENTS, write

COMMANDS = (
    ["cluster", "-k", "100"],
    ["duplicates"],
    ["drift", "--since", "2"],
    ["compress"],
    ["compress", "--write", "pca-96-int8"],
    ["map", "--picture", "map.png"],
)


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        glosses = wordnet(desk)
        static_model(desk / "static")
        (desk / "glosses").mkdir()
        (desk / "config.toml").write_text(SETTINGS)
        write(desk, [f"{i}: {glosses[i % len(glosses)]}" for i in range(size)], range(0, size, FILE_DOCUMENTS))
        for command in (["run"], *COMMANDS):
            began = time.perf_counter()
            with subprocess.Popen([LATENT, *command], cwd=desk, stdout=subprocess.PIPE, text=True) as process:
                told = process.stdout.read().splitlines()
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"latent {' '.join(command)} failed")
            print(
                f"{' '.join(command):30} {time.perf_counter() - began:7.1f} s {used.ru_maxrss / 2**20:6.2f} GB   {told[0]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
