"""Disks that fill up, folders that may not be written or read, files that change under the reader, clocks that go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Desk, HereAndNow, words

from latent.config import Source
from latent.errors import FileUnreadable, PipelineError, SourceError, StoreError
from latent.ingest import run
from latent.ingest.verify import verify
from latent.search import open_table
from latent.sources import Reader, list_files, locate, scan_file
from latent.sources.listing import LOCAL_TICK_NS

PAGE = 4096  # what the smallest file takes on the small disk
DISK_PAGES = 512


def document(name: str, *numbers: int) -> dict[str, object]:
    return {"id": name, "text": words(*numbers)}


def before(desk: Desk) -> None:
    desk.write("a.jsonl", [document(f"a{i}", 100 + i) for i in range(10)])
    desk.write("b.jsonl", [document(f"b{i}", 200 + i) for i in range(10)])


def after(desk: Desk) -> None:
    desk.write("a.jsonl", [document(f"a{i}", 120 + i) for i in range(9)])
    desk.write("c.jsonl", [document(f"c{i}", 300 + i) for i in range(10)])


def clean(desk_for: Callable[..., Desk], desk: Desk, folder: Path) -> dict[tuple[str, int], tuple[object, ...]]:
    """The rows that a first run over the desk's source makes."""
    fresh = desk_for(folder / "clean")
    shutil.copytree(desk.source, fresh.source, dirs_exist_ok=True)
    fresh.embed()
    return fresh.rows()


def assert_right(desk: Desk, rows: dict[tuple[str, int], tuple[object, ...]]) -> None:
    assert desk.rows() == rows
    assert [check for check in verify(desk.config) if not check.ok] == []


# --- a full disk, a read-only one -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallDisk:
    """A disk of DISK_PAGES in memory."""

    path: Path

    @contextmanager
    def filled(self, free_pages: int) -> Iterator[None]:
        """All but so many pages taken."""
        room = os.statvfs(self.path)
        ballast = self.path / "ballast"
        ballast.write_bytes(bytes(max(room.f_bavail - free_pages, 0) * room.f_frsize))
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        mount("-o", "remount,ro", str(self.path))
        try:
            yield
        finally:
            mount("-o", "remount,rw", str(self.path))


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or mount("-t", "tmpfs", "-o", f"size={DISK_PAGES * PAGE}", "latent-test", str(folder)).returncode
    ):
        pytest.skip("this machine lets the tests mount no disk of their own")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_at_each_step(desk: Desk, disk: SmallDisk, step: int) -> list[PipelineError | None]:
    """Runs that find ever more room, until one ends right: how each ended. Meanwhile the table is what it was, or what it should become."""
    old = desk.rows()
    endings: list[PipelineError | None] = []
    for free_pages in range(0, DISK_PAGES, step):
        endings.append(None)
        with disk.filled(free_pages):
            try:
                desk.embed()
            except PipelineError as error:
                endings[-1] = error
        if endings[-1] is None:
            break
        assert desk.rows() == old or {key[0] for key in desk.rows()} == {
            f"{f}{i}" for f, n in (("a", 9), ("b", 10), ("c", 10)) for i in range(n)
        }
    return endings


def test_a_disk_that_fills_up_at_any_moment_ends_in_one_line_and_a_run_with_room_mends_it(
    desk_for: Callable[..., Desk], tmp_path: Path, small_disk: SmallDisk
) -> None:
    desk = desk_for(tmp_path / "desk", more=f'[table]\nuri = "{small_disk.path}/lancedb"\n')
    before(desk)
    desk.embed()
    after(desk)
    endings = fill_at_each_step(desk, small_disk, step=3)
    failures = [error for error in endings if error is not None]
    assert endings[-1] is None
    assert len(failures) > 3
    for error in failures:
        assert isinstance(error, StoreError)
        assert "No space left on device" in str(error)
        assert "\n" not in str(error)
    desk.embed()
    assert_right(desk, clean(desk_for, desk, tmp_path))


def test_a_table_on_a_read_only_disk_is_searched_and_not_written(
    desk_for: Callable[..., Desk], tmp_path: Path, small_disk: SmallDisk
) -> None:
    desk = desk_for(tmp_path / "desk", more=f'[table]\nuri = "{small_disk.path}/lancedb"\n')
    before(desk)
    desk.embed()
    with small_disk.read_only():
        assert desk.embed(engine=None).documents.unchanged == 20
        after(desk)
        with pytest.raises(StoreError, match="Read-only file system") as caught:
            desk.embed()
        assert "\n" not in str(caught.value)
        assert run.plan(desk.config).documents.changed == 9
        assert open_table(desk.config_path).search("w205", 1)[0].doc_id == "b5"
        assert all(check.ok for check in verify(desk.config))
    desk.embed()
    assert_right(desk, clean(desk_for, desk, tmp_path))


def test_a_source_on_a_read_only_disk_is_enough(desk_for: Callable[..., Desk], tmp_path: Path, small_disk: SmallDisk) -> None:
    desk = desk_for(tmp_path / "desk", uri=f"{small_disk.path}/src/*.jsonl")
    before(desk)
    shutil.copytree(desk.source, small_disk.path / "src")
    with small_disk.read_only():
        assert desk.embed().documents.added == 20


# --- what may not be read or written --------------------------------------------------------------------------------

NOBODY = 65534


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to pass by permissions. Modules that are loaded late must have been loaded before."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def commons(desk_for: Callable[..., Desk], small_model: Path) -> Iterator[Desk]:
    """A desk that nobody may write to, embedded once."""
    with tempfile.TemporaryDirectory(prefix="latent-test-") as folder:
        shutil.copytree(small_model, f"{folder}/model")
        desk = desk_for(Path(folder) / "desk", model=f"{folder}/model")
        before(desk)
        desk.embed()
        verify(desk.config)
        open_up(Path(folder))
        after(desk)
        yield desk
        open_up(Path(folder))


def open_up(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


def test_a_file_that_may_not_be_read_is_quarantined_and_its_documents_stay(
    desk_for: Callable[..., Desk], commons: Desk, tmp_path: Path
) -> None:
    rows = clean(desk_for, commons, tmp_path)
    (commons.source / "b.jsonl").chmod(0)
    os.utime(commons.source / "b.jsonl", (1, 1))  # or it would not be opened
    with nobody():
        report = commons.embed()
        assert report.files_refused == 1
        assert ["Permission denied" in q["reason"] for q in commons.side("quarantine")] == [True]
        assert commons.rows() == rows
    (commons.source / "b.jsonl").chmod(0o666)
    commons.embed()
    assert commons.side("quarantine") == []
    assert_right(commons, rows)


def test_a_folder_that_may_not_be_read_ends_in_one_line_and_deletes_no_document(commons: Desk) -> None:
    folder = commons.source / "more"
    folder.mkdir()
    shutil.move(commons.source / "b.jsonl", folder)
    commons.embed()
    rows = commons.rows()
    open_up(commons.folder)
    folder.chmod(0)
    with nobody():
        with pytest.raises(SourceError, match="Permission denied") as caught:
            commons.embed()
        assert not caught.value.transient
        assert commons.rows() == rows


@pytest.mark.parametrize("place", ["data/lancedb", "data/lancedb/docs.lance/data", "data/lancedb/docs.runs.lance/_versions"])
def test_a_table_that_may_not_be_written_ends_in_one_line(
    desk_for: Callable[..., Desk], commons: Desk, tmp_path: Path, place: str
) -> None:
    for path in ((commons.folder / place), *(commons.folder / place).rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with nobody(), pytest.raises(StoreError, match="Permission denied") as caught:
        commons.embed()
    assert "\n" not in str(caught.value)
    open_up(commons.folder)
    commons.embed()
    assert_right(commons, clean(desk_for, commons, tmp_path))


def test_a_table_that_may_not_be_read_is_no_missing_table(commons: Desk) -> None:
    (commons.folder / "data/lancedb/docs.lance/_versions").chmod(0)
    with nobody(), pytest.raises(StoreError, match="Permission denied"):
        commons.embed()


def test_a_table_whose_place_is_a_file_is_one_line(desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    desk = desk_for(tmp_path / "desk", more=f'[table]\nuri = "{tmp_path}/taken"\n')
    before(desk)
    with pytest.raises(StoreError, match="taken") as caught:
        desk.embed()
    assert "\n" not in str(caught.value)


# --- files that change under the reader -----------------------------------------------------------------------------


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "grown": lambda p: p.write_bytes(p.read_bytes() + b'{"id": "new", "text": "w1"}\n'),
    "shorter": lambda p: p.write_bytes(b"".join(p.read_bytes().splitlines(keepends=True)[:3])),
    "emptied": lambda p: p.write_bytes(b""),
    "rewritten": lambda p: p.write_bytes(p.read_bytes().replace(b"w10", b"w20")),
    "gone": Path.unlink,
    "folder": replace_by_folder,
    "set back": lambda p: os.utime(p, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_between_listing_and_reading_is_refused_whole(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": "a{i}", "text": "w{100 + i}"}}\n' for i in range(10)))
    origin = locate(str(tmp_path))
    (file,) = list_files(origin, "auto").files
    change(path)
    with pytest.raises(FileUnreadable) as caught:
        scan_file(Reader(origin, "auto", Source(), pa.schema([])), origin, file, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_between_plan_and_encoding_is_right_after_the_next_run(
    desk_for: Callable[..., Desk], tmp_path: Path, change: Callable[[Path], object]
) -> None:
    desk = desk_for(tmp_path / "desk")
    before(desk)
    desk.embed()
    after(desk)

    class Meddler(HereAndNow):
        def work(self, shards):
            change(desk.source / "a.jsonl")
            change(desk.source / "c.jsonl")
            yield from super().work(shards)

    report = desk.embed(engine=Meddler)
    found = {key[0] for key in desk.rows()}
    assert found >= {f"a{i}" for i in range(9)} | {f"b{i}" for i in range(10)}  # stale or fresh, but there
    assert report.stale + report.documents.added + report.documents.changed == 19
    desk.embed()
    desk.embed()  # what a run could not read is not held against the next
    assert_right(desk, clean(desk_for, desk, tmp_path))


# --- clocks ---------------------------------------------------------------------------------------------------------

LONG_AGO, FAR_AHEAD = -1_000_000_000 * 10**9, 4_000_000_000 * 10**9  # 1938 and 2096


@pytest.mark.parametrize("stamp", [LONG_AGO, 0, FAR_AHEAD], ids=["1938", "1970", "2096"])
def test_stamps_of_any_year_tell_changes(desk: Desk, stamp: int) -> None:
    path = desk.write("a.jsonl", [document("x", 1)])
    os.utime(path, ns=(stamp, stamp))
    desk.embed()
    assert desk.embed(engine=None).files_opened == 0
    desk.write("a.jsonl", [document("x", 2)])
    assert desk.embed().documents.changed == 1
    desk.write("a.jsonl", [document("x", 3)])
    os.utime(path, ns=(stamp - 10**9, stamp - 10**9))  # a clock that was set back, or a backup put in place
    assert desk.embed().documents.changed == 1
    assert desk.rows()["x", 0][0] == "w3"


def test_a_file_from_the_future_does_not_keep_a_listing_from_waiting_for_the_clock(tmp_path: Path) -> None:
    (tmp_path / "far.md").write_text("x")
    os.utime(tmp_path / "far.md", ns=(FAR_AHEAD, FAR_AHEAD))
    (tmp_path / "new.md").write_text("one")
    new = list_files(locate(str(tmp_path)), "auto").files[1]
    assert time.time_ns() - new.modified >= LOCAL_TICK_NS


def test_a_folder_that_is_written_to_all_the_time_is_listed_nonetheless(tmp_path: Path) -> None:
    path = tmp_path / "log.md"
    path.write_text("x")
    os.utime(path, ns=(time.time_ns() + 10**9, time.time_ns() + 10**9))
    writer = subprocess.Popen(["sh", "-c", 'while :; do date >> "$0"; done', str(path)])
    try:
        assert [f.path for f in list_files(locate(str(tmp_path)), "auto").files] == ["log.md"]
    finally:
        writer.kill()
        writer.wait()
