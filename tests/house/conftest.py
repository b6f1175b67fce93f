"""The house as data: where it stands, which folders it has, and its source files, parsed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folders(root: Path) -> list[str]:
    """The folders at the root that make up the package."""
    links = [entry for entry in (root / "src/longtake").iterdir() if entry.is_symlink()]
    assert {"kernels", "launch", "parallel", "runtime", "scheduler"} <= {e.name for e in links}
    return sorted(link.name for link in links)


@pytest.fixture(scope="session")
def package(root: Path, folders: list[str]) -> dict[str, ast.Module]:
    """Every module of the package, by its path from the root."""
    return parse(root, folders)


@pytest.fixture(scope="session")
def everything(root: Path, package: dict[str, ast.Module]) -> dict[str, ast.Module]:
    """The package, and all that stands around it."""
    return package | parse(root, ["src/longtake/__init__.py", "scripts", "benchmarks", "tests"])


def parse(root: Path, places: list[str]) -> dict[str, ast.Module]:
    files = [
        file
        for place in places
        for file in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    ]
    return {str(f.relative_to(root)): ast.parse(f.read_text("utf-8")) for f in sorted(files)}
