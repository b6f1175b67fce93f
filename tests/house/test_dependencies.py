"""pyproject.toml declares what the package imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

MODULES = {
    "hydra-core": "hydra",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
}
WITH_TORCH = {"triton"}  # comes with torch wherever there is a GPU to run it


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return project


@pytest.fixture(scope="module")
def imports(package: dict[str, ast.Module]) -> set[str]:
    """The top-level names that the package imports from others."""
    found = set()
    for node in (node for tree in package.values() for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"longtake"}


def test_every_import_is_declared(project: dict[str, Any], imports: set[str]) -> None:
    extras = project["optional-dependencies"]
    declared = modules(project["dependencies"])
    for name in extras.keys() - {"dev"}:
        declared |= modules(extras[name])
    assert imports - declared - WITH_TORCH == set()


def test_every_dependency_is_imported(project: dict[str, Any], imports: set[str]) -> None:
    assert modules(project["dependencies"]) - imports == set()


def modules(requirements: list[str]) -> set[str]:
    """`hydra-core>=1.3,<2` is imported as `hydra`."""
    names = [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]
    return {MODULES.get(name, name) for name in names}
