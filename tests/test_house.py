"""The house keeps its order: imports run one way, each engine has one home, and the README tells no lies."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Latent

from pipeline.cli import keep, retrieve, space  # noqa: F401  they register their commands
from pipeline.cli.app import app
from pipeline.sample import write_sample

ROOT = Path(__file__).parents[1]
PURE = {
    "schema",
    "errors",
    "interruption",
    "rendering",
    "serialization",
    "hosts",
    "versions",
    "plan",
    "chunk",
    "evaluate",
    "cluster",
    "directions",
    "layout",
    "neighbours",
    "drift",
    "codec",
}
EDGE = {"source", "judgments", "model", "encode", "store", "engine", "metrics", "exposition"}
HOMES = {
    "lance": {"store"},
    "lancedb": {"store"},
    "ray": {"engine"},
    "torch": {"encode"},
    "sentence_transformers": {"encode"},
    "openvino": {"encode"},
    "nncf": {"encode"},
    "onnxruntime": {"encode"},
    "sklearn": {"cluster", "layout", "neighbours", "codec"},
    "umap": {"layout"},
    "embedding_atlas": {"space"},
    "matplotlib": {"space"},
    "evoc": {"cluster"},
    "jinja2": {"space"},
    "prometheus_client": {"metrics", "exposition", "service"},
    "prefect": {"flows"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "pipeline" else parts[0]


MODULES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("flows/*.py")])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way_and_engines_have_one_home(path: Path) -> None:
    own = room(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.")}
    used &= {room(module) for module in MODULES}
    if own in PURE:
        assert used <= PURE
    if own in EDGE:
        assert used <= PURE | {own}, "edges do not import each other"
    if own not in ("flows", "cli"):
        assert "flows" not in {name.split(".")[0] for name in imports(path)}
    for engine, homes in HOMES.items():
        if engine in {name.split(".")[0] for name in imports(path)}:
            assert own in homes, f"{engine} has its home in {homes}"


def test_the_map_of_the_package_names_every_room() -> None:
    told = (ROOT / "pipeline/__init__.py").read_text()
    rooms = {room(path) for path in MODULES if path.is_relative_to(ROOT / "pipeline")} - {"__init__"}
    assert {name for name in rooms if not re.search(rf"\b{name}\b", told)} == set()


README = (ROOT / "README.md").read_text()


def test_the_readme_shows_every_command() -> None:
    for command in app.registered_commands:
        assert f"latent {command.name or command.callback.__name__}" in README


def commands_of_the_readme() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_readme_run(tmp_path: Path, latent: Latent) -> None:
    shutil.copy(ROOT / "config.toml", tmp_path)
    write_sample(tmp_path / "all")
    (tmp_path / "data/sample").mkdir(parents=True)
    for module in ("datetime", "time", "json", "subprocess"):  # a small part, for a short test
        shutil.copy(tmp_path / f"all/{module}.jsonl", tmp_path / "data/sample")
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook/leave.md").write_text("# Leave\n\nAsk your lead two weeks ahead.\n")
    commands = [c for c in commands_of_the_readme() if c.startswith("latent ") and not c.startswith("latent serve")]
    assert len(commands) >= 7
    for command in commands:
        done = latent(tmp_path, *shlex.split(command)[1:])
        assert done.code == 0, f"{command}: {done.err}"
