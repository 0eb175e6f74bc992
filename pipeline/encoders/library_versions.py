"""Versions of what decides a vector and how it is stored: with each run, and with each canary."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "latent": "latent",
    "torch": "torch",
    "sentence-transformers": "sentence-transformers",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "lance": "pylance",
}


def installed(more: Iterable[str] = ()) -> dict[str, str]:
    """Package → version. A package that runs from a folder of source has none: "unknown". Imports nothing."""
    return {name: _version(package) for name, package in (PACKAGES | {name: name for name in more}).items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
