"""Stop signals: SIGINT (Ctrl-C), SIGTERM (systemd, docker stop, timeout) and SIGHUP (the terminal is gone).

The first signal raises `Stopped` in the main thread; the end has then begun, and later ones change nothing. Libraries hide the exception: Lance makes a
ValueError of it, Ray a SystemError, typer an exit code without a word. So the signal is kept here, and `raise_if_received` raises it again.

Native code, such as an index that Lance builds, may keep the main thread from its handlers for minutes. A second thread therefore hears each signal at once and
ends the process after GRACE_S. It waits for what is inside `deferred`: a commit, Ray's start and its shutdown. What it ends is as after kill -9: nothing stored is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFERRED = (*SIGNALS, signal.SIGALRM)  # the last is a time limit of Prefect's
GRACE_S = 5.0  # docker stop kills after 10 s, Kubernetes after 30 s, systemd after 90 s
NOTHING_UNSAFE = "stopped: nothing was under way that is not safe; run the command again"


class Stopped(KeyboardInterrupt):
    """A stop signal came."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


@dataclass
class _State:
    """Of this process. The main thread and the one that hears signals share it."""

    stop: BaseException | None = None  # what the first signal raised
    number: signal.Signals | None = None
    message: str = NOTHING_UNSAFE
    deferring: int = 0  # blocks of `deferred` and `ending_in_order` that are open
    in_order: bool = False  # the command ends well by a stop signal
    before: dict[signal.Signals, Any] = field(default_factory=dict)  # handlers that `install` replaced


_state = _State()
_hearing: _Hearing | None = None


def install(end: Callable[[signal.Signals], None]) -> None:
    """Have stop signals end this process in order. Call it in the main thread.

    `end` prints what is to be said where the main thread is not heard of for GRACE_S; the process then ends.
    """
    global _hearing  # noqa: PLW0603  signals are the process's
    uninstall()
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if number is signal.SIGHUP and handler is signal.SIG_IGN:  # nohup
            continue
        # SIGINT even where it is ignored: a shell without job control starts background jobs so.
        _state.before[number] = signal.signal(number, _handle)
    _hearing = _Hearing(_state, end)


def uninstall() -> None:
    """Put back the handlers that `install` replaced."""
    global _state, _hearing  # noqa: PLW0603
    for number, handler in _state.before.items():
        signal.signal(number, handler)
    _state = _State()
    if _hearing is not None:
        _hearing.close()
        _hearing = None


def received() -> signal.Signals | None:
    """The first stop signal that came; None where the command is one that ends well by it."""
    return None if _state.in_order else _state.number


def ignore() -> None:
    """Let no further stop signal end the process: what was to be said is said, and Python's own end gives signals back their default."""
    for number in _state.before:
        signal.signal(number, signal.SIG_IGN)


def raised() -> BaseException | None:
    """What a stop signal raised, if one came."""
    return _state.stop


def raise_if_received() -> None:
    """Raise that again. For the places where a library makes another error of it; inside `deferred` errors are what they say."""
    if _state.stop is not None and not _state.deferring and threading.current_thread() is threading.main_thread():
        raise _state.stop from None


def describe(text: str) -> None:
    """Set what `message` says from now on."""
    _state.message = text


def message() -> str:
    """One line on what a stop left done, and how to go on."""
    return _state.message


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a stop signal that comes meanwhile take effect at the end. For what must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread only
        return
    came: list[int] = []
    # Where getsignal gives None the handler is a library's own, and could not be put back.
    stops = [stop for stop in DEFERRED if callable(signal.getsignal(stop))]
    handlers = {stop: signal.signal(stop, lambda number, _: came.append(number)) for stop in stops}
    _state.deferring += 1
    try:
        yield
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
        _state.deferring -= 1
        for number in came[:1]:
            signal.raise_signal(number)


def reinstall() -> None:
    """Put the handlers of the moment in place again, after a library's native code has replaced them without Python's knowledge."""
    for number in DEFERRED:
        if callable(handler := signal.getsignal(number)):
            signal.signal(number, handler)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Keep what the handlers of the moment raise, for `raise_if_received`: where a stop signal is another program's to handle, such as Prefect's.

    SIGHUP, where nobody handles it, does as SIGTERM does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {stop: signal.getsignal(stop) for stop in DEFERRED}
    if handlers[signal.SIGHUP] is signal.SIG_DFL:
        handlers[signal.SIGHUP] = handlers[signal.SIGTERM]
    before = {stop: signal.signal(stop, _noting(handler)) for stop, handler in handlers.items() if callable(handler)}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        if not _state.before:  # the process goes on after this run: the signal was the run's
            _state.stop = _state.number = None


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Around a server: a stop signal is how it ends, so the command ends well. It may take longer than GRACE_S.

    SIGINT has Python's own handler meanwhile: where it finds that one, asyncio cancels its main task.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    _state.deferring += 1
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code:
            raise
    finally:
        _state.in_order = True
        _state.deferring -= 1
        signal.signal(signal.SIGINT, handler)


def _noting(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if _state.stop is not None:
            return
        try:
            handler(number, frame)
        except BaseException as stop:
            _state.stop, _state.number = stop, signal.Signals(number)
            raise

    return handle


def _handle(number: int, _: FrameType | None) -> None:
    if _state.stop is not None:
        return
    _state.number = _state.number or signal.Signals(number)
    _state.stop = Stopped(_state.number)
    if number == signal.SIGHUP:
        silence_dead_terminal()
    raise _state.stop


def silence_dead_terminal() -> None:
    """Let what is written to a terminal that is gone go nowhere: the error would hide that work is committed."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            descriptor = stream.fileno()
            try:
                termios.tcgetattr(descriptor)
            except termios.error as error:
                if error.args[0] == 5:  # EIO; ENOTTY: a file or a pipe
                    silence(descriptor)


def silence(descriptor: int) -> None:
    """Let what is written there go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Hearing:
    """The thread that hears signals while the main thread does not."""

    def __init__(self, state: _State, end: Callable[[signal.Signals], None]) -> None:
        self._state, self._end = state, end
        self._heard, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._closed.set()
        os.write(self._wake, b"\0")
        self._thread.join()
        os.close(self._heard)
        os.close(self._wake)

    def _listen(self) -> None:
        while not self._closed.is_set():
            number = os.read(self._heard, 1)[0]
            if number in self._state.before and not self._closed.is_set():
                self._state.number = self._state.number or signal.Signals(number)
                self._wait_and_end(self._state.number)

    def _wait_and_end(self, number: signal.Signals) -> None:
        until = time.monotonic() + GRACE_S
        while (self._state.deferring or time.monotonic() < until) and not self._closed.is_set():
            if self._state.deferring:
                until = time.monotonic() + GRACE_S
            self._closed.wait(0.05)
        if not self._closed.is_set():
            if not self._state.in_order:
                self._end(number)
            os._exit(0 if self._state.in_order else 128 + number)
