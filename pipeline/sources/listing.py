"""A path, folder, glob or URI → the files it names, each with its state."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from latent.errors import SourceError, SourceUnreachable, shown
from latent.sources.formats import format_of
from latent.sources.walk import Entry, walk
from latent.types import FileState

# Two writes within one tick of the clock that stamps files leave the same time on both. A listing waits until the
# youngest stamp is past, so that any later write shows.
LOCAL_TICK_NS = 20_000_000  # Linux stamps with the kernel's tick: 1–10 ms
STORE_TICK_NS = 1_100_000_000  # object stores stamp whole seconds
LOOKS = 3  # at a source that is being written to, before it is taken as it is
RETRIES = 7  # of a request to S3: 3 s of errors, 27 s of silence. Arrow's URIs have no word for it; without, 100 s of silence


@dataclass(frozen=True)
class Origin:
    """Where the source lies."""

    filesystem: fs.FileSystem
    root: str  # folder that paths and ids are below
    pattern: str  # glob below the root; a single file's name; "" for all files
    single: bool = False  # the pattern is a file's name, whatever characters it has

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)


@dataclass(frozen=True)
class Listing:
    """The source's files, sorted by path."""

    files: tuple[FileState, ...]
    ignored: tuple[str, ...] = field(default=())  # of a kind that format = "auto" does not know, or links out of the source
    unreadable: Mapping[str, str] = field(default_factory=dict)  # escaped path → reason, of files that no reader can open


def locate(uri: str) -> Origin:
    """The file system, folder and pattern behind a URI. Touches the store only to tell a file from a folder."""
    scheme, _, query = "", "", ""
    path = uri
    if "://" in uri:
        scheme = uri.partition("://")[0] + "://"
        path, _, query = uri.removeprefix(scheme).partition("?")
        scheme = scheme.replace("az://", "abfs://")
    parts = path.split("/")
    wild = re.compile(r"[*\[{]" if scheme else r"[*?\[{]")  # in a URI, ? begins the query
    fixed = 0
    # A name with brackets or braces is a name where it exists.
    while fixed < len(parts) and (not wild.search(parts[fixed]) or (not scheme and Path("/".join(parts[: fixed + 1])).exists())):
        fixed += 1
    base, pattern = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    folder = scheme + base + ("?" + query if query else "")
    try:
        if scheme:
            filesystem, root = _open_store(folder)
        else:
            filesystem, root = fs.LocalFileSystem(), base or "/"
        info = filesystem.get_file_info(root)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = first_line(error).replace(folder, shown(folder))
        raise _blame(error)(f"source {shown(uri)}: {reason}: check [source] uri and the credentials") from None
    if info.type == fs.FileType.NotFound:
        raise SourceError(f"source {shown(uri)}: no such file or folder {root!r}: check [source] uri")
    if info.type == fs.FileType.File:
        return Origin(filesystem, root.rpartition("/")[0], root.rpartition("/")[2], single=True)
    return Origin(filesystem, root.rstrip("/"), pattern)


def identity(uri: str, table: str) -> str:
    """What a source is called in a table that lies there: folder and pattern with their store, without credentials.

    Spellings of one path are one source. Where both are local it is the way from the table to the source: a project may be moved or copied as a whole.
    """
    if "://" not in uri:
        path = os.path.normpath(Path(uri).expanduser().absolute())
        return path if "://" in table else os.path.relpath(path, Path(table).absolute())
    return shown(uri.replace("az://", "abfs://")).rstrip("/")  # without the endpoint: a store's address may change


def place_of(identity: str, table: str) -> str:
    """Where the source lies that a table there calls so."""
    return identity if "://" in identity or "://" in table else os.path.normpath(Path(table).absolute() / identity)


def list_files(origin: Origin, format: str) -> Listing:
    """All files of the source with their states. Names that begin with a dot, and what lies in such folders, are no part of it."""
    for _ in range(LOOKS):
        listing = _look(origin, format)
        if not _wait_out_tick(listing.files, LOCAL_TICK_NS if origin.local else STORE_TICK_NS):
            break
    return listing  # still changing: what is read from now on shows it, or differs from its state here


def current_state(origin: Origin, path: str) -> FileState | None:
    """The file's state now; None where it is gone."""
    with _reachable(f"{path}: its state cannot be read"):
        info = origin.filesystem.get_file_info(f"{origin.root}/{path}")
    return _state(origin, path, info) if info.type == fs.FileType.File else None


def first_line(error: BaseException) -> str:
    """The error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .:")


def _open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """As Arrow understands the URI; a request to S3 is repeated RETRIES times at most."""
    filesystem, root = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        parts = urlsplit(uri)
        given = {name: values[-1] for name, values in parse_qs(parts.query).items() if not name.startswith("allow_")}
        if parts.username:
            given |= {"access_key": unquote(parts.username), "secret_key": unquote(parts.password or "")}
        retries = fs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES)
        filesystem = fs.S3FileSystem(**given | {"region": filesystem.region}, retry_strategy=retries)
    return filesystem, root


def _look(origin: Origin, format: str) -> Listing:
    single = origin.single or (origin.pattern and not re.search(r"[*?\[{]", origin.pattern))
    with _reachable(f"source {origin.root}: cannot be listed"):
        if single or not origin.local:
            below = fs.FileSelector(origin.root, recursive=True)
            found = origin.filesystem.get_file_info([f"{origin.root}/{origin.pattern}"] if single else below)
            entries = [_entry(origin, info) for info in found if info.type == fs.FileType.File]
        else:
            entries = list(walk(origin.root))
    matches = _matcher("" if single else origin.pattern)
    states, ignored, unreadable = [], [], {}
    for entry in entries:
        if entry.leads_out:
            ignored.append(_escaped(entry.path))
        elif _hidden(entry.path) or not matches(entry.path):
            continue
        elif format == "auto" and format_of(entry.path) is None:
            ignored.append(_escaped(entry.path))
        elif (name := _escaped(entry.path)) != entry.path:
            unreadable[name] = "its name is not UTF-8: rename it"
        else:
            states.append(FileState(entry.path, entry.size, entry.modified))
    return Listing(tuple(sorted(states, key=lambda s: s.path)), tuple(sorted(ignored)), unreadable)


def _entry(origin: Origin, info: fs.FileInfo) -> Entry:
    state = _state(origin, info.path[len(origin.root) :].lstrip("/"), info)
    return Entry(state.path, state.size, state.modified)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _escaped(path: str) -> str:
    """Write bytes of the path that are not UTF-8 as escapes, so that it can be stored."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _matcher(pattern: str) -> Callable[[str], object]:
    """Whether a path matches the glob; each `{a,b}` of it stands for either."""
    return re.compile("|".join(f"(?:{glob_translate(p)})" for p in _alternatives(pattern or "**"))).match


BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")  # innermost: what holds no other


def _alternatives(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, as a shell expands them; braces without a comma are characters."""
    found = BRACES.search(pattern)
    if not found:
        return [pattern]
    before, behind = pattern[: found.start()], pattern[found.end() :]
    return list(dict.fromkeys(p for part in found[1].split(",") for p in _alternatives(before + part + behind)))


def _state(origin: Origin, path: str, info: fs.FileInfo) -> FileState:
    """Of a store's stamp the whole seconds: some list a file's time to the millisecond, and tell whole seconds of the file alone."""
    stamp = info.mtime_ns or 0
    return FileState(path, info.size, stamp if origin.local else stamp - stamp % 1_000_000_000)


@contextlib.contextmanager
def _reachable(what: str) -> Iterator[None]:
    """What a file system raises, in one line."""
    try:
        yield
    except UnicodeError:
        raise SourceError(f"{what}: a file's name is not UTF-8: rename it") from None
    except OSError as error:
        raise _blame(error)(f"{what}: {first_line(error)}") from None


def _blame(error: BaseException) -> type[SourceError]:
    """A store or disk that fails may answer later; what may not be read, or is no URI, will not."""
    return SourceUnreachable if isinstance(error, OSError) and not isinstance(error, PermissionError) else SourceError


def _wait_out_tick(states: Iterable[FileState], tick_ns: int) -> bool:
    """Sleep until the youngest stamp is a tick old; False if it already was. Stamps in a future that waiting will not reach are passed by."""
    now = time.time_ns()
    age = now - max((s.modified for s in states if s.modified < now + tick_ns), default=0)
    if age >= tick_ns:
        return False
    time.sleep((tick_ns - age) / 1e9)
    return True
