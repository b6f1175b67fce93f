"""Every command's help ends with an example, and every one of them runs.

What is not here has a stand-in: `sbatch`, `ssh`, Ray, and the loop of the server, which
`test_server_real.py` runs in earnest.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from longtake.launch import calibrate, cluster_command
from longtake.launch.central import Central
from longtake.launch.cli import app
from longtake.launch.server import serving

NODE = {
    "Alive": True,
    "NodeManagerHostname": "gpu1",
    "NodeManagerAddress": "10.0.0.1",
    "Resources": {"GPU": 8.0, "CPU": 64.0},
}
ORDER = ("generate", "serve keys add")  # these leave what others need


def commands() -> list[str]:
    """All of them, by their words, in an order in which they can be run."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    found = list(below(root, ()))
    return [*ORDER, *(words for words in found if words not in ORDER)]


def below(group: TyperGroup, words: tuple[str, ...]) -> Iterator[str]:
    for name, command in group.commands.items():
        path = (*words, name)
        if isinstance(command, TyperCommand) or command.invoke_without_command:
            yield " ".join(path)
        if isinstance(command, TyperGroup):
            yield from below(command, path)


def example_of(words: str) -> list[str]:
    """Out of what `--help` tells."""
    asked = [*words.split(), "--help"]
    told = CliRunner().invoke(app, asked, prog_name="longtake", terminal_width=500)
    assert told.exit_code == 0
    found = re.search(rf"For example: (longtake {words}\b.*?)\n\n", told.output, re.DOTALL)
    assert found, f"longtake {words} --help has no example"
    return shlex.split(found[1])[1:]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, said in (("sbatch", "42"), ("ssh", "")):
        (programs / name).write_text(f"#!/bin/sh\necho {said}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray's token is kept
    real = subprocess.run

    def run(words: Any, **how: Any) -> Any:
        ray = words[0] == sys.executable and words[2] == cluster_command.RAY[1]
        return subprocess.CompletedProcess(words, 0, "", "") if ray else real(words, **how)

    def serve(
        wishes: serving.Wishes, open_central: Callable[[], Central], ready: Callable[[str], None]
    ) -> None:
        serving.make_door(wishes)
        with open_central():
            ready(f"http://{wishes.host}:{wishes.port}")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cluster_command, "_nodes", lambda address: [NODE])
    monkeypatch.setattr(serving, "serve", serve)
    hurried = partial(calibrate.measure_cluster, seconds=0.0)
    monkeypatch.setattr(calibrate, "measure_cluster", hurried)


@pytest.mark.usefixtures("stand_ins")
def test_the_example_of_every_command_runs(cli: Callable[..., Result]) -> None:
    key = ""
    for words in commands():
        example = example_of(words)
        if words == "serve keys revoke":
            example[-1] = key
        told = cli(*example)
        assert told.exit_code == 0, (words, told.output)
        if words == "serve keys add":
            key = told.output.split("_")[1]
    for made in ("circle.mp4", "gantt.svg", "here.yaml", "far.run.sbatch", "longtake-data"):
        assert Path(made).exists()
