"""`latent serve`: the deployments on a server, and their runs started by this process, without a work pool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import serve

from latent import interruption
from latent.config import Config
from latent.flows.deployments import deployments


def serve_flows(config: Path, settings: Config, overrides: Mapping[str, Any]) -> None:
    """Register the flows on the server and run them when they are due, until a signal."""
    with interruption.ending_in_order():
        serve(*deployments(str(config), settings, overrides), print_starting_message=False)
