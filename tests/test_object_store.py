"""Source and table in an object store: a real S3 server, and before it a proxy that fails in the ways that stores and networks do."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Desk, words
from s3 import ENVIRONMENT, KINDS, PATIENCE, Proxy, Request, Rule, S3Server, nth, rate, since

from latent.config import Source
from latent.errors import FileUnreadable, PipelineError, SourceUnreachable
from latent.ingest import maintenance, run
from latent.ingest.status import status
from latent.ingest.verify import verify
from latent.search import open_table
from latent.sources import Origin, Reader, list_files, locate, scan_file
from latent.types import FileState
from latent.workers import WorkerPool

pytest.importorskip("moto")

Files = dict[str, list[dict[str, object]]]


def documents(letter: str, *numbers: int) -> list[dict[str, object]]:
    return [{"id": f"{letter}{i}", "text": words(100 + i, n)} for i, n in enumerate(numbers)]


BEFORE: Files = {"a.jsonl": documents("a", *range(10)), "b.jsonl": documents("b", *range(10)), "c.jsonl": documents("c", 1, 2)}
# Of a: five changed, one gone. c is gone, d is new, b is as it was.
AFTER: Files = {
    "a.jsonl": documents("a", 20, 21, 22, 23, 24, 5, 6, 7, 8),
    "b.jsonl": BEFORE["b.jsonl"],
    "d.jsonl": documents("d", 1, 2, 3),
}


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    threads = pa.io_thread_count()
    pa.set_io_thread_count(64)  # cases that wait would hold up those beside them
    with pytest.MonkeyPatch.context() as patch, S3Server() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("LATENT_SOURCE__MAX_DELETED_SHARE", "1")  # each case moves its table to another source
        assert server.ask("PUT", "bkt")[0] == 200
        for folder, files in (("before", BEFORE), ("after", AFTER)):
            for name, rows in files.items():
                server.put(f"bkt/{folder}/{name}", jsonl(rows))
        yield server
    pa.set_io_thread_count(threads)


@dataclass(frozen=True)
class Ground:
    """What every case begins with: the table of BEFORE, and the rows that AFTER must give."""

    desk_for: Callable[..., Desk]
    server: S3Server
    lake: Path
    kept: Path  # the table of AFTER, behind its maintenance
    clean: dict[tuple[str, int], tuple[object, ...]]

    def desk(self, folder: Path, proxy: Proxy, *, source: bool, table: bool, fresh: bool = False) -> Desk:
        """AFTER as source and the table of BEFORE, or none yet; each in the store behind the proxy, or on this disk."""
        uri = f"s3://bkt/after/*.jsonl?scheme=http&endpoint_override=127.0.0.1:{proxy.port}" if source else "src/*.jsonl"
        desk = self.desk_for(folder, uri=uri, more=in_store(f"s3://{folder.name}/lake", proxy.port) if table else "")
        assert self.server.ask("PUT", folder.name)[0] == 200  # a bucket of its own: the server looks at all keys for each listing
        if not source:
            for name, rows in AFTER.items():
                desk.write(name, rows)
        if not fresh and table:
            self.server.upload(self.lake, f"{folder.name}/lake")
        if not fresh and not table:
            shutil.copytree(self.lake, folder / "data/lancedb")
        return desk


def in_store(uri: str, port: int) -> str:
    """[table] of a config whose table lies in the store."""
    options = {
        "aws_endpoint": f"http://127.0.0.1:{port}",
        "allow_http": "true",
        "aws_virtual_hosted_style_request": "false",
    } | PATIENCE
    return f"[table]\nuri = {json.dumps(uri)}\nstorage_options = {{{', '.join(f'{k} = {json.dumps(v)}' for k, v in options.items())}}}\n"


@pytest.fixture(scope="module")
def ground(server: S3Server, desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    before, after = desk_for(folder / "before", uri="src/*.jsonl"), desk_for(folder / "after", uri="src/*.jsonl")
    for desk, files in ((before, BEFORE), (after, AFTER)):
        for name, rows in files.items():
            desk.write(name, rows)
        desk.embed()
    maintenance.maintain(after.config)
    return Ground(desk_for, server, before.folder / "data/lancedb", after.folder / "data/lancedb", after.rows())


@dataclass(frozen=True)
class Outcome:
    """How a run under faults ended."""

    error: PipelineError | None
    faults: list[tuple[str, Request]]
    seconds: float

    def __str__(self) -> str:
        ended = "ended right" if self.error is None else f"{type(self.error).__name__}: {self.error}"
        return f"{len(self.faults):>3} faults, {self.seconds:5.1f} s, {ended}"


def play(
    ground: Ground, folder: Path, rule: Rule, *, source: bool, table: bool, fresh: bool = False, maintain: bool = False
) -> Outcome:
    """A run under faults and, where it ended with an error, one without. The table must then be that of a clean run."""
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(folder, proxy, source=source, table=table, fresh=fresh)
        error, started = None, time.monotonic()
        with proxy.faulty(rule) as faults:
            try:
                desk.embed()
                if maintain:
                    maintenance.maintain(desk.config)
            except PipelineError as raised:
                error = raised
        outcome = Outcome(error, faults, time.monotonic() - started)
        if error is not None:
            desk.embed()
        assert desk.rows() == ground.clean
        assert [check for check in verify(desk.config) if not check.ok] == []
        assert desk.side("quarantine") == []
    return outcome


# --- the job, on a store that works ---------------------------------------------------------------------------------


def test_the_whole_job_with_source_and_table_in_a_store_and_real_workers(ground: Ground, tmp_path: Path) -> None:
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(tmp_path / "whole", proxy, source=True, table=True, fresh=True)
        assert desk.embed(engine=WorkerPool).documents.added == sum(map(len, AFTER.values()))
        assert desk.embed(engine=None).documents.unchanged == len(ground.clean)
        assert [check for check in verify(desk.config) if not check.ok] == []
        maintenance.maintain(desk.config)
        assert desk.rows() == ground.clean
        assert open_table(desk.config_path).search(words(102, 22), 1)[0].doc_id == "a2"


def test_a_table_in_a_store_follows_its_source(ground: Ground, tmp_path: Path) -> None:
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(tmp_path / "follows", proxy, source=True, table=True)
        report = desk.embed()
        assert (report.documents.added, report.documents.changed, report.documents.deleted) == (3, 5, 3)
        assert desk.rows() == ground.clean


def test_a_table_in_a_store_takes_other_metadata_columns_in_place(ground: Ground, tmp_path: Path) -> None:
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(tmp_path / "columns", proxy, source=True, table=True, fresh=True)
        desk.embed()
        for columns in (["id"], []):
            text = desk.config_path.read_text()
            desk.config_path.write_text(re.sub("metadata = .*", f"metadata = {json.dumps(columns)}", text))
            report = desk.embed()
            assert (report.documents.changed, report.chunks.encoded) == (len(ground.clean), 0)
            assert ("id" in desk.table().column_names) == bool(columns)
        assert desk.rows() == ground.clean


def test_the_server_refuses_to_make_an_object_that_is_there_as_conditional_put_wants_it(server: S3Server) -> None:
    answers = [server.ask("PUT", "bkt/once", data, **{"If-None-Match": "*"})[0] for data in (b"first", b"second")]
    assert answers == [200, 412]
    assert server.ask("GET", "bkt/once") == (200, b"first")


def test_every_version_is_made_by_a_conditional_put(ground: Ground, tmp_path: Path) -> None:
    with Proxy(ground.server.port) as proxy:
        ground.desk(tmp_path / "conditional", proxy, source=False, table=True, fresh=True).embed()
        made = [r for r in proxy.seen if r.operation == "PUT" and r.path.endswith(".manifest")]
    assert len(made) > 5
    assert all(r.conditional for r in made)


RIVAL = """
import sys
from conftest import HereAndNow
from latent import PipelineError, load
from latent.ingest import run
from latent.ingest import maintenance
from latent.ingest import rollback
from latent.ingest import backfill
import sentence_transformers
print("ready", flush=True)
sys.stdin.readline()
try:
    run.embed(load("config.toml"), engine=HereAndNow)
    print("done")
except PipelineError as error:
    print(type(error).__name__)
"""


def test_of_two_processes_that_make_one_table_at_once_neither_harms_the_other(ground: Ground, tmp_path: Path) -> None:
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(tmp_path / "rivals", proxy, source=False, table=True, fresh=True)
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        with subprocess.Popen(
            [sys.executable, "-c", RIVAL],
            cwd=desk.folder,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as rival:
            assert rival.stdout is not None
            assert rival.stdout.readline() == "ready\n"
            with ThreadPoolExecutor(1) as pool:
                theirs = pool.submit(rival.communicate, "\n")
                try:
                    desk.embed()
                    ours = "done"
                except PipelineError as error:
                    ours = type(error).__name__
            endings = {ours, theirs.result()[0].strip()}
        assert endings <= {"done", "TableBusy"}
        assert rival.returncode == 0
        desk.embed()
        assert desk.rows() == ground.clean
        assert [check for check in verify(desk.config) if not check.ok] == []


# --- one request fails ----------------------------------------------------------------------------------------------

# Not asked again: a refusal; by Lance, a listing whose body breaks off, and a conditional PUT that got no answer and is not there either.
PASSING_KINDS = tuple(kind for kind in KINDS if kind not in ("403", "cut", "late"))


def single_faults(ground: Ground, folder: Path, step: int, turn: int = 0) -> dict[str, Outcome]:
    """Runs in each of which one request fails: the first, the one `step` after it, and so on to the last. Kinds take turns."""
    with Proxy(ground.server.port) as proxy:
        ground.desk(folder / "count", proxy, source=True, table=True).embed()
        requests = len(proxy.seen)

    def one(n: int) -> tuple[str, Outcome]:
        kind = PASSING_KINDS[(n // step + turn) % len(PASSING_KINDS)]
        return f"{kind} {n}", play(ground, folder / f"single-{n}", nth(kind, lambda seen: seen == n), source=True, table=True)

    with ThreadPoolExecutor(4) as pool:
        return dict(pool.map(one, range(1, requests + 1, step)))


def test_a_request_that_fails_once_is_asked_again(ground: Ground, tmp_path: Path) -> None:
    for which, outcome in single_faults(ground, tmp_path, step=21).items():
        assert outcome.error is None, f"{which}: {outcome}"


def test_a_commit_whose_answer_is_lost_is_made_once(ground: Ground, tmp_path: Path) -> None:
    def one(kind: str, version: int) -> Outcome:
        rule = nth(kind, lambda seen: seen == version, "PUT", r"/docs\.lance/_versions/")
        folder = tmp_path / f"answer-{kind}-{version}"
        return play(ground, folder, rule, source=False, table=True, fresh=version == 2)  # of a new table the first version is empty

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(one, ("lost", "lost", "late"), (1, 2, 1)))
    assert [(outcome.error, len(outcome.faults)) for outcome in outcomes] == [(None, 1)] * 3


# --- the store fails and goes on failing ----------------------------------------------------------------------------

# Where, and from which request on: while the second file is read; at the first fragment. A late answer to a read is a stalled one, and
# a lost one a dropped one; the answer to a PUT has no body to cut.
PLACES = {
    "source": ("GET|HEAD|LIST", r"after/d", ("500", "503", "403", "drop", "stall", "cut")),
    "table": ("PUT", r"/docs\.lance/data/", ("500", "503", "403", "drop", "lost", "stall", "late")),
}
CASES = [(kind, place) for place, (_, _, kinds) in PLACES.items() for kind in kinds]
QUICK = [case for case in CASES if case != ("stall", "source")]  # half a minute by itself


def go_on_failing(ground: Ground, folder: Path, case: tuple[str, str]) -> Outcome:
    """A run in which this place fails in this way from some moment on."""
    kind, place = case
    operation, path, _ = PLACES[place]
    rule = since(kind, operation, path)
    return play(ground, folder / f"{kind}-{place}", rule, source=place == "source", table=place == "table")


def storm(ground: Ground, folder: Path, count: int, first_seed: int = 0, *, source: bool, share: float = 0.15) -> list[Outcome]:
    """Runs, and maintenance behind them, during which this share of all requests fails in some way."""

    def one(seed: int) -> Outcome:
        rule = rate(share, seed, KINDS)
        return play(ground, folder / f"storm-{seed}", rule, source=source, table=True, fresh=seed % 2 == 0, maintain=True)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(first_seed, first_seed + count)))


@dataclass(frozen=True)
class Played:
    """How runs ended in which a place failed from some moment on, and how those in a storm."""

    by_case: dict[tuple[str, str], Outcome]
    storms: list[Outcome]


@pytest.fixture(scope="module")
def played(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All at once: most of it is waiting."""
    folder = tmp_path_factory.mktemp("played")

    with ThreadPoolExecutor(len(QUICK) + 1) as pool:
        storms = pool.submit(storm, ground, folder, count=3, source=False)
        found = Played(dict(zip(QUICK, pool.map(partial(go_on_failing, ground, folder), QUICK), strict=True)), storms.result())
    for (kind, place), outcome in [*found.by_case.items(), *((("any", "storm"), outcome) for outcome in found.storms)]:
        print(f"{place:6} {kind:5} {outcome}")
    return found


@pytest.mark.parametrize(("kind", "place"), QUICK)
def test_a_store_that_fails_and_goes_on_failing_ends_the_run_in_one_line(played: Played, kind: str, place: str) -> None:
    error = played.by_case[kind, place].error
    assert error is not None
    assert error.transient
    assert "\n" not in str(error)


@pytest.mark.parametrize("place", PLACES)
def test_a_store_where_nobody_listens_is_one_line(ground: Ground, tmp_path: Path, place: str) -> None:
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(tmp_path / f"nobody-{place}", proxy, source=place == "source", table=place == "table")
    with pytest.raises(PipelineError) as caught:
        desk.embed()
    assert caught.value.transient
    assert "\n" not in str(caught.value)


def test_whatever_a_storm_breaks_the_next_run_mends(played: Played) -> None:
    assert all(outcome.faults for outcome in played.storms)


COMMANDS: dict[str, Callable[[Desk], object]] = {
    "plan": lambda desk: run.plan(desk.config),
    "run": lambda desk: desk.embed(engine=None),  # with nothing to encode
    "search": lambda desk: open_table(desk.config_path).search(words(102, 22)),
    "status": lambda desk: status(desk.config),
    "verify": lambda desk: verify(desk.config),
    "maintain": lambda desk: maintenance.maintain(desk.config),
}


def refusals(ground: Ground, folder: Path, count: int) -> list[str]:
    """What commands say to whom the store refuses everything from some moment on: so many moments of each, spread over its requests."""

    def one(command: str) -> list[str]:
        said = []
        with Proxy(ground.server.port) as proxy:
            desk = ground.desk(folder / f"refused-{command}", proxy, source=True, table=True, fresh=True)
            ground.server.upload(ground.kept, f"refused-{command}/lake")
            COMMANDS[command](desk)
            requests = len(proxy.seen)
            for i in range(count):
                first = 1 + i * requests // count
                with proxy.faulty(nth("403", lambda seen, first=first: seen >= first)):
                    try:
                        COMMANDS[command](desk)
                        said.append("")
                    except PipelineError as error:
                        said.append(str(error))
        return said

    with ThreadPoolExecutor(len(COMMANDS)) as pool:
        return [line for said in pool.map(one, COMMANDS) for line in said]


def test_a_command_that_the_store_refuses_says_so_in_one_line(ground: Ground, tmp_path: Path) -> None:
    said = refusals(ground, tmp_path, count=2)
    assert len(said) == 2 * len(COMMANDS)
    assert all("\n" not in line for line in said)


@pytest.mark.parametrize("where", ["after", "LIST", "PUT"])
def test_no_secret_stands_in_what_a_run_says(ground: Ground, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str) -> None:
    folder = tmp_path / f"secret-{where.lower()}"
    with Proxy(ground.server.port) as proxy:
        desk = ground.desk(folder, proxy, source=True, table=True)
        text = desk.config_path.read_text().replace("s3://", "s3://AKIA:hush-uri@")
        desk.config_path.write_text(
            text.replace("{", '{aws_secret_access_key = "hush-option", aws_session_token = "hush-token", ', 1)
        )
        with (
            proxy.faulty(lambda r: "403" if where in (r.operation, r.path.split("/")[1]) else None),
            pytest.raises(PipelineError) as caught,
        ):
            desk.embed()
    assert "hush" not in str(caught.value)
    assert "hush" not in caplog.text


# --- objects --------------------------------------------------------------------------------------------------------


def test_a_store_that_lists_times_to_the_millisecond_and_tells_whole_seconds_of_a_file_is_read(
    ground: Ground, tmp_path: Path
) -> None:
    with Proxy(ground.server.port) as proxy:
        proxy.edit = lambda request, body: body.replace(b".000Z", b".678Z") if request.operation == "LIST" else body
        desk = ground.desk(tmp_path / "fine", proxy, source=True, table=False)
        assert desk.embed().files_refused == 0
        assert desk.rows() == ground.clean


def put_in_bucket(server: S3Server, bucket: str, objects: dict[str, bytes]) -> None:
    assert server.ask("PUT", bucket)[0] == 200
    for name, data in objects.items():
        server.put(f"{bucket}/{name}", data)


def reading(port: int, bucket: str) -> tuple[Origin, Reader, dict[str, FileState]]:
    origin = locate(f"s3://{bucket}?scheme=http&endpoint_override=127.0.0.1:{port}")
    return origin, Reader(origin, "auto", Source(), pa.schema([])), {f.path: f for f in list_files(origin, "auto").files}


def test_an_object_that_changes_between_listing_and_reading_is_refused_whole(server: S3Server) -> None:
    data = jsonl(documents("a", *range(10)))
    put_in_bucket(server, "changing", dict.fromkeys(("gone.jsonl", "other.jsonl", "shorter.jsonl"), data))
    origin, reader, files = reading(server.port, "changing")
    server.ask("DELETE", "changing/gone.jsonl")
    server.put("changing/other.jsonl", data.replace(b"w1", b"w2"))
    server.put("changing/shorter.jsonl", data[: data.index(b"\n") + 1])
    for file in files.values():
        with pytest.raises(FileUnreadable):
            scan_file(reader, origin, file, 0)


def test_an_object_that_becomes_shorter_while_it_is_read_is_refused_whole(server: S3Server) -> None:
    data = jsonl([{"id": str(i), "text": "w1 " * 1000} for i in range(2000)])  # more than is read at a time
    put_in_bucket(server, "shrinking", {"a.jsonl": data})
    _, reader, files = reading(server.port, "shrinking")
    batches = reader.batches(files["a.jsonl"])
    next(batches)
    server.put("shrinking/a.jsonl", data[:1000])
    with pytest.raises(FileUnreadable, match="changed while it was read"):
        list(batches)


def test_what_the_store_fails_at_is_no_damage_whatever_the_file_is_called(server: S3Server) -> None:
    put_in_bucket(server, "parquet-lake", {"decompressed.parquet": parquet()})
    with Proxy(server.port) as proxy:
        _, reader, files = reading(proxy.port, "parquet-lake")
        with proxy.faulty(lambda _: "403"), pytest.raises(SourceUnreachable, match=r"^decompressed\.parquet: the store failed"):
            list(reader.batches(files["decompressed.parquet"]))


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "lz4", "brotli"])
def test_damage_is_no_failure_of_the_store_whatever_the_codec(server: S3Server, codec: str) -> None:
    data = parquet(codec)
    put_in_bucket(server, f"damaged-{codec}", {"a.parquet": data[:1000] + bytes(1000) + data[2000:]})
    _, reader, files = reading(server.port, f"damaged-{codec}")
    with pytest.raises(FileUnreadable):
        list(reader.batches(files["a.parquet"]))


def parquet(codec: str = "snappy") -> bytes:
    sink = io.BytesIO()
    names = [random.Random(i).randbytes(20).hex() for i in range(1000)]
    pq.write_table(pa.table({"id": names, "text": names}), sink, compression=codec, use_dictionary=False)
    return sink.getvalue()
