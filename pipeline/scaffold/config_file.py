"""A first config: for documents at a path, whose table is named after it, and whose format, id, text and metadata are guessed from the files; or for the
sample corpus.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from latent import sources as source
from latent import store
from latent.config import Config, Source, Table
from latent.errors import ConfigError, FileUnreadable, PipelineError, SourceError, shown
from latent.sources.formats import PLAIN, column_names, format_of
from latent.types import FileState

SAMPLE_FOLDER = "data/sample"
SAMPLE_NOTE = "Settings of latent. Every key is shown; one left out has its default.\nThis file embeds the sample corpus: Python's own documentation."
OWN_NOTE = "Settings of latent. Every key is shown; one left out has its default."
ID_NAMES = ("id", "_id", "doc_id", "docid", "document_id", "uuid", "key", "url", "path", "filename", "name")
TEXT_NAMES = ("text", "content", "body", "passage", "document", "abstract", "description", "summary")
FILES = 16  # looked at for columns
NAME_CHARS = 64  # of a table's name: folders may be called longer
TITLE_NAMES = ("title", "subject", "headline", "heading")


def sample_config() -> Config:
    """The settings for the sample corpus, as config.toml of the repository has them."""
    return Config(source=Source(uri=f"{SAMPLE_FOLDER}/*.jsonl", metadata=["module", "kind"]))


def config_for(path: str, folder: Path) -> Config:
    """A config for the documents at `path`, to be written into `folder`. Raises SourceError where there are none,
    ConfigError where no column looks like id or text.
    """
    uri = path if "://" in path else os.path.relpath(path, folder)
    origin = source.locate(path if "://" in path else str(Path(path).resolve()))
    files = source.list_files(origin, "auto").files
    if not files:
        raise SourceError(
            f"{shown(path)}: no parquet, jsonl, csv, text or markdown file in it: name a folder, file or glob that has some"
        )
    table = Table(
        name=_free_name(_table_name(origin), source.identity(_anchored(uri, folder), _anchored(Table().uri, folder)), folder)
    )
    tabular = [f for f in files if format_of(f.path) not in PLAIN]
    if not tabular:
        return Config(source=Source(uri=uri), table=table)
    ident, text = _columns(origin, tabular)
    return Config(source=Source(uri=uri, id=ident, text=text), table=table)


def _columns(origin: source.Origin, files: Sequence[FileState]) -> tuple[str, str | list[str]]:
    """The id and text of the first of some files whose columns look like them. Raises what is wrong with the first file where there is none."""
    problem: PipelineError | None = None
    for file in source.spread(files, FILES):
        try:
            columns = column_names(origin.filesystem, f"{origin.root}/{file.path}")
        except (OSError, ValueError, FileUnreadable) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            problem = problem or SourceError(f"{file.path}: cannot be read: {reason}: mend or move the file")
            continue
        if not columns:
            problem = problem or SourceError(f"{file.path}: expected rows with columns, got none: name a file that has some")
            continue
        by_lower = {c.lower(): c for c in columns}
        ident, text, title = (
            next((by_lower[n] for n in names if n in by_lower), None) for names in (ID_NAMES, TEXT_NAMES, TITLE_NAMES)
        )
        if ident and text:
            return ident, [title, text] if title else text
        missing = "the text" if ident else "an id"
        problem = problem or ConfigError(
            f"{file.path}: none of its columns ({', '.join(columns)}) looks like {missing}: copy config.toml and set [source] id and text"
        )
    raise problem or AssertionError("unreachable")


def _table_name(origin: source.Origin) -> str:
    """The last folder of the source, or its file, in the letters that a table's name may have."""
    single = origin.pattern and not re.search(r"[*?\[{]", origin.pattern)
    last = origin.pattern.partition(".")[0] if single else origin.root.rpartition("/")[2]
    plain = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain)[:NAME_CHARS].strip("-_") or Table().name


def _free_name(name: str, identity: str, folder: Path) -> str:
    """The name, or that with a number behind it, that no table and no config in the folder has for another source."""
    planned = dict(_configured(folder))
    for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
        place = store.Store(_anchored(Table().uri, folder), candidate)
        held = planned.get(candidate) if place.open() is None else store.source_of(place) or "unknown"
        if held in {None, identity}:
            return candidate
    raise AssertionError("unreachable")


def _configured(folder: Path) -> Iterator[tuple[str, str]]:
    """Table and source of each config in the folder whose table lies where a new one's does."""
    for path in sorted(folder.glob("*.toml")):
        with contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError):  # no config, or a broken one
            settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
            table = {"uri": Table().uri, "name": Table().name} | settings.get("table", {})
            if (place := _anchored(table["uri"], folder)) == _anchored(Table().uri, folder):
                yield table["name"], source.identity(_anchored(settings["source"]["uri"], folder), place)


def _anchored(uri: str, folder: Path) -> str:
    return uri if "://" in uri else os.path.normpath(folder / Path(uri).expanduser())
