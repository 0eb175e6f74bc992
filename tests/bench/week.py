"""A nightly week in fast time: seven due runs of `nightly` on a real Prefect server, with changes between, a crash, an overlap, and a night when nobody was there.

    .venv/bin/python tests/bench/week.py [FOLDER]       (five to ten minutes; with a folder also pictures of the server's pages, by headless Chromium)

The due times are shifted: each night's run is due as soon as it is made. `latent serve` starts the runs, `latent verify` looks at the table after each night.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

LATENT = str(Path(sys.executable).with_name("latent"))
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
WORDS = [
    "harbour",
    "winter",
    "copper",
    "signal",
    "river",
    "market",
    "garden",
    "letter",
    "engine",
    "window",
    "forest",
    "paper",
    "bridge",
    "stone",
    "ladder",
    "mirror",
]
DOCUMENTS = 600


@dataclass
class Week:
    """A source, its table, and the server that runs the nights."""

    folder: Path
    address: str
    environment: dict[str, str]
    chance: random.Random

    def ask(self, path: str, body: dict | None = None) -> list[dict]:
        return httpx.post(f"{self.address}/api/{path}", json=body or {}, timeout=60).raise_for_status().json()

    def due(self, hours_ago: float = 0.0) -> str:
        """A run of the nightly deployment, as its schedule makes them."""
        nightly = next(d for d in self.ask("deployments/filter") if d["entrypoint"].endswith("nightly"))
        when = dt.datetime.now(dt.UTC) - dt.timedelta(hours=hours_ago)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when.isoformat()}}
        body = {"parameters": {"reason": "scheduled"}, "state": state}
        return self.ask(f"deployments/{nightly['id']}/create_flow_run", body)["id"]

    def run(self, flow_run: str) -> dict:
        return httpx.get(f"{self.address}/api/flow_runs/{flow_run}", timeout=60).json()

    def wait_for(self, flow_run: str, *types: str) -> dict:
        while (run := self.run(flow_run))["state"]["type"] not in (types or ENDED):
            time.sleep(0.3)
        return run

    def write(self, file: str, numbers: range, edition: int) -> None:
        lines = ({"id": f"{file}-{i}", "text": f"{i} {edition} " + " ".join(self.chance.choices(WORDS, k=40))} for i in numbers)
        (self.folder / f"src/{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def latent(self, *given: str) -> dict:
        done = subprocess.run(
            [LATENT, *given, "--json"], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        return json.loads(done.stdout)

    def tell(self, night: int, what: str, runs: list[dict]) -> None:
        """A line of the log."""
        status, sound = self.latent("status"), self.latent("verify")["ok"]
        last = status["runs"][0]
        documents = last["report"].get("documents", {}) if runs[0]["state"]["type"] != "CANCELLED" else {}
        counts = "/".join(str(documents.get(k, 0)) for k in ("added", "changed", "deleted"))
        states = ", ".join(run["state"]["name"] for run in runs)
        print(f"| {night} | {what} | {states} | {counts} | {status['chunks']} | {'yes' if sound else 'NO'} |", flush=True)


def main() -> None:
    pictures = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as week:
        print(
            "| night | what happened | state | added/changed/deleted | rows | verify ok |\n|---|---|---|---|---:|---|", flush=True
        )
        runs = seven_nights(week)
        if pictures:
            draw(week, runs, pictures)


def seven_nights(week: Week) -> list[str]:
    """The runs, night by night."""
    told: list[str] = []

    def night(number: int, what: str, *runs: str) -> None:
        told.extend(runs)
        week.tell(number, what, [week.wait_for(run) for run in runs])

    with served(week):
        week.write("a", range(DOCUMENTS), 1)
        night(1, "everything is new", week.due())
        week.write("a", range(30, DOCUMENTS + 10), 1)
        week.write("b", range(20), 1)
        night(2, "a file changed, one new", week.due())
        week.write("c", range(DOCUMENTS), 1)
        run = week.due()
        kill_flow(week, run)
        night(3, "crash: the flow's process is killed", run)
        night(4, "the night after goes on", week.due())
        week.write("b", range(20), 2)
        first = week.due()
        week.wait_for(first, "RUNNING")
        night(5, "overlap: a second run while one runs", first, week.due())
    # `latent serve` died with its machine; the server, elsewhere, goes on and keeps what is due.
    week.write("d", range(50), 1)
    run = week.due(hours_ago=2)
    late = time.monotonic()
    while week.run(run)["state"]["name"] != "Late" and time.monotonic() - late < 60:
        time.sleep(0.5)
    with served(week):
        night(6, "nobody was there when it was due", run)
        (week.folder / "src/c.jsonl").unlink()
        night(7, "what two days changed", week.due())
    return told


def kill_flow(week: Week, run: str) -> None:
    """SIGKILL to the process of a flow run that has begun to encode."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    while not any(a["description"].startswith("encode") for a in week.ask("artifacts/filter", wanted)):
        time.sleep(0.1)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            asked, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"prefect" in asked and b"ray" not in asked and f"PREFECT__FLOW_RUN_ID={run}".encode() in variables:
            os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def server(folder: Path) -> Iterator[Week]:
    """A Prefect server and an empty desk."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    (folder / "src").mkdir()
    (folder / "config.toml").write_text('[source]\nuri = "src/*.jsonl"\n[ray]\nworkers = 1\n')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {
        "HOME": str(folder),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
    }
    (folder / "prefect").mkdir()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not answers(address):
                time.sleep(0.5)
            yield Week(folder, address, environment, random.Random(7))
        finally:
            process.terminate()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/api/health", timeout=2).is_success
    except httpx.HTTPError:
        return False


@contextmanager
def served(week: Week) -> Iterator[None]:
    """`latent serve` on that server, killed at the end."""
    with subprocess.Popen(
        [LATENT, "serve"], cwd=week.folder, env=week.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while not week.ask("deployments/filter"):
                time.sleep(0.5)
            yield
        finally:
            process.kill()


def draw(week: Week, runs: list[str], folder: Path) -> None:
    """The pages an operator looks at."""
    from playwright.sync_api import sync_playwright

    pages = {"nights": "runs", "night": f"runs/flow-run/{runs[3]}"}
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        for name, path in pages.items():
            page.goto(f"{week.address}/{path}")
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(3000)
            page.screenshot(path=str(folder / f"{name}.png"))
        browser.close()


if __name__ == "__main__":
    main()
