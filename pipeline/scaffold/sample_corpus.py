"""A corpus that is always there: Python's own documentation, taken from the running interpreter.

Language topics (`pydoc_data.topics`) and the docstrings of the standard library's public modules, classes, functions and methods. Real,
free, the same for everyone with the same Python, and anyone can judge whether "how do I parse a date" finds the right function.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import pkgutil
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

# Importing these opens a browser, prints a poem, needs a screen, or is no library.
LEFT_OUT = frozenset(
    {"antigravity", "this", "idlelib", "turtledemo", "tkinter", "turtle", "test", "lib2to3", "ensurepip", "venv", "__main__"}
)
LEAST_WORDS = 5  # a docstring of fewer says nothing to search for


@dataclass(frozen=True)
class Entry:
    """One document: a topic, or what a docstring documents."""

    id: str  # the dotted name
    text: str
    module: str
    kind: str  # topic | module | class | function | method


def write_sample(folder: Path) -> int:
    """Write the corpus as one JSONL file a top-level module; returns how many documents. Files already there are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries():
        files[entry.module.partition(".")[0]].append(entry)
    for name, members in files.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(asdict(e), ensure_ascii=False) + "\n" for e in members), encoding="utf-8")
    return sum(map(len, files.values()))


def entries() -> Iterator[Entry]:
    """All documents, each id once, sorted within a module."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Entry(f"topic:{name}", topics[name].strip(), "python", "topic")
    seen: set[str] = set()
    for module in _modules():
        for entry in _of_module(module):
            if entry.id not in seen and len(entry.text.split()) >= LEAST_WORDS:
                seen.add(entry.id)
                yield entry


def _modules() -> Iterator[ModuleType]:
    """The public modules of the standard library that import on this machine."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for top in sorted(sys.stdlib_module_names - LEFT_OUT):
            if top.startswith("_"):
                continue
            try:
                module = importlib.import_module(top)
            except Exception:  # noqa: BLE001, S112  a module for another system, or without its C library
                continue
            yield module
            for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{top}."):
                if any(part.startswith("_") or part in LEFT_OUT or part == "tests" for part in found.name.split(".")):
                    continue
                try:
                    yield importlib.import_module(found.name)
                except Exception:  # noqa: BLE001, S112
                    continue


def _of_module(module: ModuleType) -> Iterator[Entry]:
    name = module.__name__
    if module.__doc__:
        yield Entry(name, inspect.cleandoc(module.__doc__), name, "module")
    public = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    for attribute in sorted(set(public)):
        value = getattr(module, attribute, None)
        if getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value):
            yield from _documented(f"{name}.{attribute}", value, name, "class")
            for member in sorted(n for n in vars(value) if not n.startswith("_")):
                yield from _documented(f"{name}.{attribute}.{member}", vars(value)[member], name, "method")
        elif callable(value):
            yield from _documented(f"{name}.{attribute}", value, name, "function")


def _literal(default: object) -> object:
    """A parameter's default as it may be shown: what is no plain value may hold this process' environment, as cgi's does."""
    plain = default is inspect.Parameter.empty or isinstance(default, int | float | str | bytes | None)
    return default if plain and default != sys.executable else ...


def _documented(name: str, value: object, module: str, kind: str) -> Iterator[Entry]:
    """The entry of an object with a docstring of its own: its name and signature, then the docstring."""
    doc = getattr(value, "__doc__", None)
    if not isinstance(doc, str) or not doc.strip() or (kind == "method" and not callable(getattr(value, "__func__", value))):
        return
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
        signature = str(found.replace(parameters=[p.replace(default=_literal(p.default)) for p in found.parameters.values()]))
    except (TypeError, ValueError):
        signature = ""
    heading = f"{name}{signature if ' at 0x' not in signature else '(...)'}"
    yield Entry(name, f"{heading}\n\n{inspect.cleandoc(doc)}", module, kind)
