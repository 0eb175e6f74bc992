"""The commands. Data goes to stdout, words and progress to stderr.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage; 130, 143, 129 stopped by SIGINT, SIGTERM, SIGHUP. Any key of config.toml can be set for one call:
`--table.uri s3://bucket/x`, or in the environment: `LATENT_TABLE__URI`.

`keep` keeps the table true, `retrieve` searches it, `space` looks at it whole; `show` is what people see, `app` what commands share.
"""

import contextlib
import io
import json
import os
import select
import signal
import sys

from latent import interruption


def main() -> None:
    """Entry point of the `latent` script. Stop signals are heard before the commands are imported, which takes seconds."""
    for stream in (sys.stdout, sys.stderr):  # an output that is not UTF-8 shows what it has no character for as ?
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    as_json = "--json" in sys.argv[1:]
    interruption.install(lambda _: _stopped(as_json=as_json))
    try:
        _run(as_json=as_json)
    except BaseException:
        if (number := interruption.received()) is None:
            raise
        interruption.ignore()  # whatever a library made of it
        _stopped(as_json=as_json)
        raise SystemExit(128 + number) from None


def _run(*, as_json: bool) -> None:
    from latent.cli import analysis, search, table  # noqa: F401  they register their commands
    from latent.cli.app import TRACEBACK, call, unexpected
    from latent.cli.output import failed
    from latent.errors import PipelineError

    try:
        code = call(sys.argv[1:])
    except PipelineError as error:
        if interruption.received() is None:
            failed(error, as_json=as_json)
        code = error.exit_code
    except Exception as error:
        if interruption.received() is not None:
            raise
        if _stdout_is_gone():
            code = 128 + signal.SIGPIPE
        elif os.environ.get(TRACEBACK):
            raise
        else:
            failed(unexpected(error), as_json=as_json)
            code = 1
    raise SystemExit(code)


def _stdout_is_gone() -> bool:
    """Whether who read the output has gone, as `head` does. Nothing more is written there then: Python tries again when it ends."""
    with contextlib.suppress(OSError, ValueError):  # closed, or no file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            interruption.silence(sys.stdout.fileno())
            return True
    return False


def _stopped(*, as_json: bool) -> None:
    """Say what a stop signal left done, on stderr and with `--json` as the one object on stdout. Either may be closed, or a terminal that is gone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{interruption.message()}\n")
        sys.stderr.flush()
    if as_json:
        try:
            sys.stdout.write(json.dumps({"error": interruption.message(), "kind": "Interrupted"}) + "\n")
            sys.stdout.flush()
        except OSError:  # nobody reads it; Python tries again when it ends
            interruption.silence(sys.stdout.fileno())
