"""A path, folder, glob or URI → the files it names, each with its state."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from pipeline.errors import SourceError, SourceUnreachable
from pipeline.schema import FileState
from pipeline.source.formats import format_of

# Two writes within one tick of the clock that stamps files leave the same time on both. A listing waits until the
# youngest stamp is past, so that any later write shows.
LOCAL_TICK_NS = 20_000_000  # Linux stamps with the kernel's tick: 1–10 ms
STORE_TICK_NS = 1_100_000_000  # object stores stamp whole seconds


@dataclass(frozen=True)
class Origin:
    """Where the source lies."""

    filesystem: fs.FileSystem
    root: str  # folder that paths and ids are below
    pattern: str  # glob below the root; a single file's name; "" for all files

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)


@dataclass(frozen=True)
class Listing:
    """The source's files, sorted by path."""

    files: tuple[FileState, ...]
    ignored: tuple[str, ...] = field(default=())  # of a kind that format = "auto" does not know


def locate(uri: str) -> Origin:
    """The file system, folder and pattern behind a URI. Touches the store only to tell a file from a folder."""
    scheme, _, query = "", "", ""
    path = uri
    if "://" in uri:
        scheme = uri.partition("://")[0] + "://"
        path, _, query = uri.removeprefix(scheme).partition("?")
        scheme = scheme.replace("az://", "abfs://")
    parts = path.split("/")
    wild = re.compile(r"[*\[]" if scheme else r"[*?\[]")  # in a URI, ? begins the query
    fixed = 0
    # A name with brackets is a name where it exists.
    while fixed < len(parts) and (not wild.search(parts[fixed]) or (not scheme and Path("/".join(parts[: fixed + 1])).exists())):
        fixed += 1
    base, pattern = "/".join(parts[:fixed]), "/".join(parts[fixed:])
    try:
        if scheme:
            filesystem, root = fs.FileSystem.from_uri(scheme + base + ("?" + query if query else ""))
        else:
            filesystem, root = fs.LocalFileSystem(), base or "/"
        info = filesystem.get_file_info(root)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise SourceError(f"source {shown(uri)}: {_first_line(error)}: check [source] uri and the credentials") from None
    if info.type == fs.FileType.NotFound:
        raise SourceError(f"source {shown(uri)}: no such file or folder {root!r}: check [source] uri")
    if info.type == fs.FileType.File:
        return Origin(filesystem, root.rpartition("/")[0], root.rpartition("/")[2])
    return Origin(filesystem, root.rstrip("/"), pattern)


def list_files(origin: Origin, format: str) -> Listing:
    """All files of the source with their states. Names that begin with a dot, and what lies in such folders, are no part of it."""
    single = origin.pattern and not re.search(r"[*?\[]", origin.pattern)
    below = fs.FileSelector(origin.root, recursive=True)
    try:
        infos = origin.filesystem.get_file_info([f"{origin.root}/{origin.pattern}"] if single else below)
    except OSError as error:
        raise SourceUnreachable(f"source {origin.root}: cannot be listed: {_first_line(error)}") from None
    loops = tuple(f"{info.path}/" for info in infos if origin.local and _leads_back(info)) or None
    matches = re.compile(glob_translate(origin.pattern or "**")).match
    states, ignored = [], []
    for info in infos:
        path = info.path[len(origin.root) :].lstrip("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if info.type != fs.FileType.File or hidden or not (single or matches(path)) or (loops and info.path.startswith(loops)):
            continue
        if format == "auto" and format_of(path) is None:
            ignored.append(path)
        else:
            states.append(FileState(path, info.size, info.mtime_ns or 0))
    if _wait_out_tick(states, LOCAL_TICK_NS if origin.local else STORE_TICK_NS):
        return list_files(origin, format)
    return Listing(tuple(sorted(states, key=lambda s: s.path)), tuple(sorted(ignored)))


def shown(uri: str) -> str:
    """The URI as it may stand in a message: without the credentials it may carry before the host or in its query."""
    return re.sub(r"//[^/@]*@", "//", uri).partition("?")[0] if "://" in uri else uri


def current_state(origin: Origin, path: str) -> FileState | None:
    """The file's state now; None where it is gone."""
    info = origin.filesystem.get_file_info(f"{origin.root}/{path}")
    return FileState(path, info.size, info.mtime_ns or 0) if info.type == fs.FileType.File else None


def _leads_back(info: fs.FileInfo) -> bool:
    """Whether a folder is a link to one that it lies in: what is below it is listed already."""
    path = Path(info.path)
    return info.type == fs.FileType.Directory and path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _wait_out_tick(states: list[FileState], tick_ns: int) -> bool:
    """Sleep until the youngest stamp is a tick old; False if it already was (or lies in a future that waiting will not reach)."""
    age = time.time_ns() - max((s.modified for s in states), default=0)
    if not -tick_ns < age < tick_ns:
        return False
    time.sleep((tick_ns - age) / 1e9)
    return True


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
