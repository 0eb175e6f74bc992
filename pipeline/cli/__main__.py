"""`python -m pipeline.cli`: the `latent` script where it is not installed."""

from pipeline.cli import main

main()
