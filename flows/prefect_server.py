"""Which Prefect server is meant: the configured one, or one of our own on this machine. Reads no Prefect code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from latent import interruption
from latent.errors import EngineError, shown
from latent.monitoring.hosts import is_loopback

PORT = 4200  # Prefect's own: of a server that stays. Two that came up at once would both take it for free
ANSWER_S = 10
START_S = 120  # a busy machine took 22 s
LOG_BYTES = 10 << 20  # of the server's log, at a start; then the one before is dropped
# A run says so often that it lives; 30 is the least. A run that says nothing for four times as long is taken for dead: infra/automations.yaml.
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def configured_server() -> str:
    """PREFECT_API_URL, from the environment or the active profile; empty where it is not set."""
    if address := os.environ.get("PREFECT_API_URL"):
        return address
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml"))
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return ""
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return str(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL", ""))


def _use_own_home(folder: Path) -> None:
    """Prefect's state below data/, its telemetry off, its server quiet. Before Prefect is imported."""
    settings = {
        "PREFECT_HOME": str(folder / "data" / "prefect"),
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # by default runs stay for ever; so they go 90 days after their end
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # without it the server waits for its database in vain


def on_loopback(address: str) -> bool:
    """Whether a server is on this machine, as far as its address tells."""
    return is_loopback(httpx.URL(address).host)


def require_answer(address: str) -> None:
    """Raises EngineError where nobody answers at a server's API address."""
    try:
        httpx.get(f"{address}/health", timeout=ANSWER_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"the Prefect server at {shown(address)} does not answer ({error}): start it, or unset PREFECT_API_URL to run without one"
        ) from None


@contextmanager
def local_server(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of the configured server, or of one started here and stopped at the end; at this port where it is free, 0 for any.

    Raises EngineError where it does not come up.
    """
    for name, value in HEARTBEAT.items():
        os.environ.setdefault(name, value)
    if configured := configured_server():
        require_answer(configured)
        try:
            yield shown(configured).removesuffix("/api")
        except httpx.HTTPStatusError as error:
            raise EngineError(
                f"the Prefect server at {shown(configured)} answers {error.response.status_code}: check PREFECT_API_AUTH_STRING"
            ) from None
        return
    _use_own_home(folder)
    port = _free_port(port)
    address = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    environment = os.environ | {"PREFECT_SERVER_UI_API_URL": f"{address}/api"}
    log_path = Path(os.environ["PREFECT_HOME"]) / "server.log"
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))
    with log_path.open("ab") as log:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        # A session of its own: Ctrl-C does not reach it, so what is under way can still be reported.
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        try:
            _wait_until_up(server, address, log_path)
            yield address
        finally:
            with interruption.deferred():  # it is in a session of its own: no signal of a terminal would end it
                del os.environ["PREFECT_API_URL"]
                server.terminate()
                server.wait(timeout=30)


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{address}/api/health", timeout=2).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise EngineError(f"the Prefect server at {address} did not come up in {START_S} s: see {log_path}")


def _free_port(wanted: int) -> int:
    """This port, or any other where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EngineError("no free port on 127.0.0.1 for the Prefect server")
