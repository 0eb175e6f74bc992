"""`python -m latent.cli`: the `latent` script where it is not installed."""

from latent.cli import main

main()
