"""The house keeps its order: imports run one way, each engine has one home, and the README tells no lies."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import Latent

from latent.cli import analysis, search, table  # noqa: F401  they register their commands
from latent.cli.app import app
from latent.config import load
from latent.ingest import run
from latent.scaffold.sample_corpus import write_sample

ROOT = Path(__file__).parents[1]
LAYERS = [  # A room imports rooms below it only. Rooms of one layer do not import each other.
    {"cli"},
    {"flows"},
    {"migration", "analysis", "scaffold"},
    {"evaluation"},
    {"search"},
    {"ingest"},
    {"sources", "chunking", "encoders", "store", "workers", "monitoring", "models", "outputs"},
    {"config", "schemas"},
    {"types", "errors", "interruption", "rendering", "serialization"},
]
HOMES = {  # Each engine is imported in one room.
    "lance": {"store"},
    "lancedb": {"store"},
    "ray": {"workers"},
    "torch": {"encoders"},
    "sentence_transformers": {"encoders"},
    "openvino": {"encoders"},
    "nncf": {"encoders"},
    "onnxruntime": {"encoders"},
    "sklearn": {"analysis", "store"},
    "umap": {"analysis"},
    "embedding_atlas": {"analysis"},
    "matplotlib": {"analysis"},
    "evoc": {"analysis"},
    "jinja2": {"analysis"},
    "prometheus_client": {"monitoring", "search"},
    "prefect": {"flows"},
}


def module_of(path: Path) -> str:
    """The dotted name that a file is imported by."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return re.sub(r"^pipeline\b", "latent", name) if name.startswith("pipeline") else f"latent.{name}"


MODULES = {module_of(path): path for path in sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("flows/*.py")])}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from modules
            if len(modules) < len(node.names):
                yield node.module


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def rank(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if room(module) in layer)


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"latent"}))
def test_imports_point_downward_and_engines_have_one_home(module: str) -> None:
    used = {name for name in imports(MODULES[module]) if name in MODULES and room(name) != room(module)} - {"latent"}
    assert {name for name in used if rank(name) <= rank(module)} == set()
    engines = {name.split(".")[0] for name in imports(MODULES[module])} & HOMES.keys()
    assert {engine for engine in engines if room(module) not in HOMES[engine]} == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_two_modules_never_share_a_name() -> None:
    counts = Counter(module.rpartition(".")[2] for module in MODULES)
    rooms = {module.rpartition(".")[2] for module, path in MODULES.items() if path.stem == "__init__"}
    assert {name for name, count in counts.items() if count > 1 and name not in rooms} == set()


def test_the_package_has_all_folders_and_names_every_room() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert packages == sorted(module for module, path in MODULES.items() if path.stem == "__init__")
    page = (ROOT / "pipeline/__init__.py").read_text()
    assert {name for name in {*map(room, MODULES)} if not re.search(rf"\b{name}\b", page)} == set()


README = (ROOT / "README.md").read_text()


def test_the_readme_shows_every_command() -> None:
    for command in app.registered_commands:
        assert f"latent {command.name or command.callback.__name__}" in README


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for folder in ("tutorials", "how-to") for path in (ROOT / "docs" / folder).glob("*.md")),
]


def commands_of(page: str) -> list[str]:
    """Commands of a page's `console` blocks. `sh` blocks need servers, buckets or GPUs."""
    blocks = re.findall(r"^ *```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    commands = [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip().startswith("$ latent ")]
    return [command for command in commands if not command.startswith("latent serve")]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small part of the sample corpus and its table, for pages to copy."""
    folder = tmp_path_factory.mktemp("embedded")
    shutil.copy(ROOT / "config.toml", folder)
    write_sample(folder / "all")
    (folder / "data/sample").mkdir(parents=True)
    for module in ("json", "time"):
        shutil.move(folder / f"all/{module}.jsonl", folder / "data/sample")
    shutil.rmtree(folder / "all")
    (folder / "handbook").mkdir()
    (folder / "handbook/leave.md").write_text("# Leave\n\nAsk your lead two weeks ahead.\n")
    run.embed(load(folder / "config.toml"))
    return folder


def test_pages_have_commands_that_run() -> None:
    assert len([command for page in PAGES for command in commands_of(page)]) >= 25


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path, embedded: Path, latent: Latent) -> None:
    folder = shutil.copytree(embedded, tmp_path / "folder")
    for command in commands_of(page):
        done = latent(folder, *shlex.split(command)[1:])
        assert done.code == 0, f"{command}: {done.err}"
