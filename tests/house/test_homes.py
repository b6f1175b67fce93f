"""Some things have exactly one home in the house."""

from __future__ import annotations

import ast

import pytest

HOMES = {
    "environ": "launch/",
    "getenv": "launch/",
    "init_device_mesh": "parallel/mesh.py",
    "init_process_group": "parallel/mesh.py",
    "new_group": "parallel/mesh.py",
}


@pytest.mark.parametrize(("name", "home"), HOMES.items())
def test_is_used_at_home_only(name: str, home: str, package: dict[str, ast.Module]) -> None:
    strays = [
        f"{path}:{node.lineno}"
        for path, tree in package.items()
        for node in ast.walk(tree)
        if not path.startswith(home) and name in names(node)
    ]
    assert strays == []


def names(node: ast.AST) -> set[str]:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return {name}
        case ast.ImportFrom(names=aliases):
            return {alias.name for alias in aliases}
    return set()
