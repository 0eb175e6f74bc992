"""The commands. Data goes to stdout, words and progress to stderr.

Exit codes: 0 done, 1 an error in one line, 2 wrong usage, 130 stopped by a signal. Any key of config.toml can be set for one call:
`--table.uri s3://bucket/x`, or in the environment: `LATENT_TABLE__URI`.

`keep` keeps the table true, `retrieve` searches it, `space` looks at it whole; `show` is what people see, `app` what commands share.
"""

from pipeline.cli import keep, retrieve, space
from pipeline.cli.app import app, main

__all__ = ["app", "keep", "main", "retrieve", "space"]
