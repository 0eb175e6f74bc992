"""What Lance and lancedb raise, in one line of ours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from latent import interruption
from latent.errors import StoreError

NOISE = re.compile(
    r",? ?/\S*\.rs:\d+.*| \(\d+ bytes, LANCE_[^)]*\)|lance error: |LanceError\(IO\): |Generic N/A error: |Wrapped error: |(?<=//)[^/@\s]*@"
)


@contextlib.contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Lance's errors and lancedb's → StoreError in one line, without the place in their own source, their settings and a URI's credentials."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        interruption.raise_if_received()  # Lance makes an error of what the handler of a signal raises
        if isinstance(error, FileExistsError):
            raise
        raise StoreError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """What Lance or lancedb says, its noise left out."""
    return NOISE.sub("", (str(error).splitlines() or [type(error).__name__])[0])
