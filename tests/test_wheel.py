"""The wheel, installed in an environment of its own outside the checkout, beside a user's own `pipeline.py` and `flows/`. About 70 s.

The environment finds the engines by a .pth file, so that nothing is downloaded. The checkout is not on its path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = (".typed", ".html", ".css", ".js", ".json", ".toml")  # files of the package that are not Python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that are under way here, built from a copy: a build leaves files in its source."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "flows"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(made), "."]
    subprocess.run(pip, cwd=source, check=True, env=clean(), timeout=120)
    return next(made.glob("latent-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and the engines of the present one."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    # A line that names a folder adds it to the path, and runs none of the .pth files in it: the editable checkout stays out.
    (site / "engines.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    made = home / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(made),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
    ]
    subprocess.run([*pip, str(wheel)], check=True, env=clean(), timeout=120)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working folder. Its modules fail if anything of ours imports them."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cat.txt").write_text("The cat sleeps on the warm sofa.\n")
    (tmp_path / "docs" / "saw.txt").write_text("A saw cuts wooden boards.\n")
    (tmp_path / "flows").mkdir()
    for name in ("pipeline.py", "flows/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('the user’s own module was imported')\n", encoding="utf-8")
    return tmp_path


def clean() -> dict[str, str]:
    """The environment without what points to the checkout or to a Prefect server."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PREFECT_", "LATENT_"))}


def called(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], cwd=folder, env=clean(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_module_and_all_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    wanted = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in (("pipeline", "latent"), ("flows", "latent/flows"))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", *DATA} and "__pycache__" not in path.parts
    }
    assert held == wanted


def test_installed_latent_works_beside_a_users_own_pipeline_and_flows(python: Path, folder: Path) -> None:
    where = Path(called(python, folder, "-c", "import latent; print(latent.__file__)").strip())
    assert where.is_relative_to(python.parents[1])
    command = python.with_name("latent")
    for arguments in (("init", "docs"), ("plan", "--json")):
        subprocess.run([command, *arguments], cwd=folder, env=clean(), check=True, timeout=240, capture_output=True)
    cli = ("-m", "latent.cli")
    assert json.loads(called(python, folder, *cli, "run", "--json"))["documents"]["added"] == 2
    hits = json.loads(called(python, folder, *cli, "search", "a pet that naps", "-k", "1", "--json"))["hits"]
    assert hits[0]["doc_id"].endswith("cat.txt")
    (folder / "docs" / "nail.txt").write_text("A nail holds two boards together.\n")
    assert json.loads(called(python, folder, *cli, "run", "--flow", "--json"))["documents"]["added"] == 1
