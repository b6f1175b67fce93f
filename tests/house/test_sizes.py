"""One file, one idea: what does not fit is split."""

from __future__ import annotations

import ast
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60


def test_files_are_short(root: Path, everything: dict[str, ast.Module]) -> None:
    lengths = {path: len((root / path).read_text("utf-8").splitlines()) for path in everything}
    assert {path: n for path, n in lengths.items() if n > FILE_LINES} == {}


def test_functions_are_short(everything: dict[str, ast.Module]) -> None:
    lengths = {
        f"{path}:{node.lineno}: {node.name}": length(node)
        for path, tree in everything.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LINES} == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)
