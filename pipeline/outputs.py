"""Files that a command writes for its user. One that another program wrote is never replaced; one of ours is, so that a nightly picture stays new."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError

MARK = "made by latent"  # stands in each picture, report and page: who finds it may replace the file


def require_replaceable(path: Path, option: str, mark: str = MARK) -> None:
    """Raises ConfigError if a file without the mark is at the path, or a folder with files in it and without a marked index.html.

    Ask before the work, not after it.
    """
    marked = path / "index.html" if path.is_dir() else path
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not (marked.is_file() and mark.encode() in marked.read_bytes()):
        raise ConfigError(
            f"{option} {path}: expected a new name or a file that latent wrote, got another program's. Remove it, or name another"
        )
