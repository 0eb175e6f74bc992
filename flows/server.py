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

from pipeline.errors import EngineError

PORT = 4200  # Prefect's own
START_S = 120  # a busy machine took 22 s; Prefect's own limit of 20 s for an ephemeral server is too short


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


def use_own_home(folder: Path) -> None:
    """Prefect's state below data/, its telemetry off, its servers patient and quiet. Before Prefect is imported."""
    settings = {
        "PREFECT_HOME": str(folder / "data" / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_S),
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextmanager
def local_server(folder: Path) -> Iterator[str]:
    """The address of the configured server, or of one started here and stopped at the end. Raises EngineError where it does not come up."""
    if configured := configured_server():
        yield configured.removesuffix("/api")
        return
    use_own_home(folder)
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    environment = os.environ | {"PREFECT_SERVER_UI_API_URL": f"{address}/api"}
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    log_path = Path(os.environ["PREFECT_HOME"]) / "server.log"
    with log_path.open("ab") as log:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        # A session of its own: Ctrl-C reaches the runner first, the server is stopped when that is done.
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
        try:
            _wait_until_up(server, address, log_path)
            yield address
        finally:
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


def _free_port() -> int:
    """Prefect's own port, or any other where that is taken."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EngineError("no free port on 127.0.0.1 for the Prefect server")
