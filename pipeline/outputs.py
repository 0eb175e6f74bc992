"""Files that a command writes for its user. One that another program wrote is never replaced; one of ours is, so that a nightly picture stays new."""

from __future__ import annotations

import os
from pathlib import Path

from latent.errors import ConfigError

MARK = "made by latent"  # stands in each picture, report and page: who finds it may replace the file


def require_replaceable(path: Path, option: str, mark: str = MARK) -> None:
    """Raises ConfigError if a file without the mark is at the path, or a folder with files in it and without a marked index.html, or nothing can be written there.

    Ask before the work, not after it.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"{option} {path}: expected a folder that can be written to, got {above}. Name another")
    marked = path / "index.html" if path.is_dir() else path
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not (marked.is_file() and mark.encode() in marked.read_bytes()):
        raise ConfigError(
            f"{option} {path}: expected a new name or a file that latent wrote, got another program's. Remove it, or name another"
        )
