"""Who may import whom, and what importing the pure part costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

IMPORT_THE_SCHEDULER = """
import importlib, pkgutil, sys
import longtake.scheduler as scheduler

for module in pkgutil.walk_packages(scheduler.__path__, "longtake.scheduler."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_import_contracts_hold(root: Path) -> None:
    # In a process of its own: it silences all loggers of the process that it runs in.
    run = subprocess.run(
        [sys.executable, "-c", LINT_IMPORTS, "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


PLAN_WITHOUT_TORCH = """
import sys
from longtake.launch.cli import app

words = ["plan", "--seconds", "2", "--strategy", "causal", "--cluster", "h100x1"]
app(words, standalone_mode=False)
assert "torch" not in sys.modules
"""


def test_a_plan_is_made_without_torch() -> None:
    command = [sys.executable, "-P", "-c", PLAN_WITHOUT_TORCH]
    subprocess.run(command, check=True, capture_output=True)


OUTPOST = "import sys, longtake.launch.ray_outpost; assert 'torch' not in sys.modules"


def test_a_group_on_ray_starts_without_torch() -> None:
    """Its runner takes seconds to load it, and need not wait for an actor that does so first."""
    subprocess.run([sys.executable, "-P", "-c", OUTPOST], check=True, capture_output=True)


def test_the_scheduler_runs_without_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_THE_SCHEDULER], capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "longtake" in loaded
    assert not loaded & {"av", "diffusers", "hydra", "omegaconf", "torch", "transformers"}


def test_imports_say_longtake(everything: dict[str, ast.Module], folders: list[str]) -> None:
    """A bare `import scheduler` would be a second copy of every class in it."""
    bare = [
        f"{path}:{line}: {name}"
        for path, tree in everything.items()
        for line, name in imported(tree)
        if name.partition(".")[0] in folders
    ]
    assert bare == []


def test_torch_distributed_stays_in_parallel(package: dict[str, ast.Module]) -> None:
    strays = [
        f"{path}:{line}"
        for path, tree in package.items()
        for line, name in imported(tree)
        if f"{name}.".startswith("torch.distributed.") and not path.startswith("parallel/")
    ]
    assert strays == []


def imported(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, full name) of everything that a module imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found
