"""How a flow run that is cancelled, or comes to its time limit, stops its workers and is seen as what it is.

Prefect cancels with SIGTERM, and takes the run for a crashed one where that signal is not its own to handle. Ray takes it when it starts, and makes
SystemExit of it. So Prefect gets it back. What Prefect then raises is no Exception, and at such the pipeline commits what is finished.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from prefect.exceptions import TerminationSignal

from pipeline.engine import Casualty, Engine, Finished
from pipeline.schema import Shard


class Cancellable(Engine):
    """Workers of a run that Prefect may cancel."""

    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGTERM)
        super().__enter__()
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        return self

    def work(self, shards: Iterable[Shard]) -> Iterator[Finished | Casualty | None]:
        try:
            yield from super().work(shards)
        except SystemError as stop:  # what a signal raises while Ray waits comes out of it as the cause of such
            if stop.__cause__ is None:
                raise
            raise stop.__cause__ from None


@contextmanager
def cancellable() -> Iterator[None]:
    """Around a run: Prefect sees its own signal again."""
    try:
        yield
    except SystemExit as stop:
        raise TerminationSignal(signal.SIGTERM) from stop
