"""What is shipped is whole: sdist, the wheel made from it, and every module of that wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

OPTIONAL = {
    "deepspeed", "fastapi", "prometheus_client", "pydantic", "ray", "starlette", "triton",
    "uvicorn", "xformers",
}  # fmt: skip
IMPORT_ALL = f"""
import importlib, pkgutil, sys
target, optional = sys.argv[1], {OPTIONAL}
sys.path.insert(0, target)
import longtake

assert longtake.__file__.startswith(target), longtake.__file__
for module in pkgutil.walk_packages(longtake.__path__, "longtake."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in optional:
            raise
"""


@pytest.fixture(scope="module")
def wheel(root: Path, folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the sdist made from a clean copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    clean = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ["src", *folders]:
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=clean)
    for file in ["pyproject.toml", "LICENSE", "README.md"]:
        shutil.copy(root / file, copy)
    run(["-m", "build", "--no-isolation", "--outdir", str(copy / "dist")], cwd=copy)
    return next((copy / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path, root: Path, folders: list[str]) -> None:
    own = {f"longtake/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    shipped = own | {
        f"longtake/{file.relative_to(root)}"
        for folder in folders
        for file in (root / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("longtake/")}
    assert held == shipped


@pytest.mark.slow
def test_every_module_of_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    run(["-m", "pip", "install", "--no-deps", "--no-index", "--target", ".", str(wheel)], tmp_path)
    run(["-P", "-c", IMPORT_ALL, str(tmp_path)], cwd=tmp_path)


def run(arguments: list[str], cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
