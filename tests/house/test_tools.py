"""The linters and the type checker are content."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check"],
        ["ruff", "format", "--check"],
        pytest.param(["mypy", "-p", "longtake"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_tool_is_content(command: list[str], root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
