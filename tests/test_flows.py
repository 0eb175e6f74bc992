"""The flows on a real Prefect server, which `latent serve` starts itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from conftest import Desk, words

from pipeline.space.analysis import analyze
from pipeline.store import Lease
from pipeline.survey import scene

LATENT = str(Path(sys.executable).with_name("latent"))


@dataclass
class Served:
    desk: Desk
    address: str
    environment: dict[str, str]

    def ask(self, path: str, body: dict | None = None) -> list[dict]:
        return httpx.post(f"{self.address}/api/{path}", json=body or {}, timeout=30).raise_for_status().json()

    def wait_for(self, flow_run: str, timeout_s: float = 180) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            run = httpx.get(f"{self.address}/api/flow_runs/{flow_run}", timeout=30).json()
            if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return run
            time.sleep(1)
        raise AssertionError(f"flow run {flow_run} did not end")


@pytest.fixture(scope="module")
def served(desk_for: Callable[..., Desk], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    desk = desk_for(tmp_path_factory.mktemp("served"))
    desk.write("a.jsonl", [{"id": str(i), "text": words(100 + i)} for i in range(50)])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment["HOME"] = str(desk.folder)  # no profile of whoever runs the tests
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
        served = Served(desk, address, environment | {"PREFECT_API_URL": f"{address}/api"})
        deadline = time.monotonic() + 60
        while not served.ask("deployments/filter") and time.monotonic() < deadline:
            time.sleep(0.5)
        yield served
        process.send_signal(signal.SIGINT)
        assert process.wait(90) in (0, 130)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/api/health")


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


def test_run_goes_through_prefect_where_a_server_is_configured_and_reports_there(served: Served) -> None:
    done = subprocess.run(
        [LATENT, "run", "--json"], cwd=served.desk.folder, env=served.environment, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["documents"]["added"] == 50, done.stderr
    runs = [r for r in served.ask("flow_runs/filter") if r["name"].startswith("embed-served")]
    assert [r["state"]["type"] for r in runs] == ["COMPLETED"]
    artifacts = {a["key"]: a for a in served.ask("artifacts/filter")}
    assert artifacts["progress-docs"]["data"] == 100
    assert "done: 50 of 50 documents" in artifacts["progress-docs"]["description"]
    assert "| added | 50 |" in artifacts["summary-docs"]["data"]
    logs = [log["message"] for log in served.ask("logs/filter")]
    assert any("50 documents" in message or "rows in" in message for message in logs)


def test_the_nightly_deployment_is_scheduled_and_runs_when_asked(served: Served) -> None:
    nightly = next(d for d in served.ask("deployments/filter") if d["parameters"]["reason"] == "nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["parameters"]["overrides"] == {"ray.workers": 1, "schedule.analyze": "0 5 * * 0"}, (
        "what may hold credentials is not for Prefect to store"
    )
    served.desk.write("b.jsonl", [{"id": "new", "text": words(1)}])
    config = served.desk.config_path.read_text()
    served.desk.config_path.write_text(config.replace("src/**", "none/**"))  # the run has the flags all the same
    flow_run = served.ask(f"deployments/{nightly['id']}/create_flow_run")["id"]
    ended = served.wait_for(flow_run)
    served.desk.config_path.write_text(config)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    assert re.fullmatch(r"nightly-served\d*-nightly-\d{8}-\d{6}", ended["name"])
    assert ("new", 0) in served.desk.rows()


def test_the_analysis_is_scheduled_where_the_config_says_so_and_tells_what_changed(served: Served) -> None:
    deployment = next(d for d in served.ask("deployments/filter") if d["entrypoint"].endswith("analyze"))
    assert deployment["schedules"][0]["schedule"]["cron"] == "0 5 * * 0"
    analyze(served.desk.config)  # the last time
    served.desk.write("grown.jsonl", [{"id": f"more{i}", "text": words(300 + i)} for i in range(30)])
    served.desk.embed()
    ended = served.wait_for(served.ask(f"deployments/{deployment['id']}/create_flow_run")["id"])
    assert ended["state"]["type"] == "COMPLETED", ended["state"]
    told = next(a["data"] for a in served.ask("artifacts/filter") if a["key"] == "changes-docs")
    assert "30 documents new, 0 changed, 0 gone" in told
    assert "groups of near-duplicates" in told
    folder = served.desk.folder / "data/analysis"
    names = {file.name.partition("-")[2].partition("-")[2] for file in folder.iterdir()}
    assert names == {"changes.html", "map.png"}
    assert analyze(served.desk.config) is None, "no row changed since"


def test_a_flow_run_that_meets_another_run_fails_with_its_name(served: Served) -> None:
    served.desk.write("c.jsonl", [{"id": "late", "text": words(2)}])
    by_hand = next(d for d in served.ask("deployments/filter") if d["parameters"]["reason"] == "by hand")
    with Lease(scene(served.desk.config).store, "another"):
        done = subprocess.run(
            [LATENT, "run"], cwd=served.desk.folder, env=served.environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 1
        assert "is being written by run another" in done.stderr.splitlines()[-1]
    assert served.wait_for(served.ask(f"deployments/{by_hand['id']}/create_flow_run")["id"])["state"]["type"] == "COMPLETED"
    assert ("late", 0) in served.desk.rows()
