"""What Ray prints by itself in the driver's process.

Of a dead worker it prints some lines on stdout, colored even where that is no terminal, whatever `log_to_driver` says. Stdout is for data, and the run says
itself what became of the worker's documents: so these lines become debug lines of the log. Ray has no setting for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("latent")


def send_to_log() -> None:
    """From now on, in this process. Before Ray is started: a thread of its own prints."""
    from ray._private import worker

    worker.print_to_stdstream = _log


def _log(data: Mapping[str, Any], ignore_prefix: bool) -> None:  # noqa: ARG001  Ray's signature
    for line in data["lines"]:
        log.debug("ray: %s", line)
