"""An S3 server that takes its time over rows and writes down who brought them: `python store.py PACE`, on port 5000 of all addresses.

A run lasts as long as the store takes for its fragments, so long enough to be struck, and no core is busy meanwhile. The file PACE holds the seconds
that it takes for each; it is read again for each.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

PORT = 5000
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


def slowly(serve: Application, pace: Path) -> Application:
    """Says on stdout who brought a fragment of the table `docs`: seconds since 1970, bucket, address."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        by_driver = environ["REMOTE_ADDR"].endswith(".4")  # it builds indexes, which are no fragments
        rows = environ["REQUEST_METHOD"] == "PUT" and "/docs.lance/data/" in path and not by_driver
        if rows:
            time.sleep(float(pace.read_text()))
        answered = serve(environ, start_response)
        if rows:
            print(f"{time.time():.3f} {path.split('/')[1]} {environ['REMOTE_ADDR']}", flush=True)
        return answered

    return answer


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    run_simple("0.0.0.0", PORT, slowly(application, Path(sys.argv[1])), threaded=True)
