"""`longtake cluster`: what it runs here and by ssh, and what it says when that goes wrong."""

from __future__ import annotations

import shlex
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Cli = Callable[..., Result]


def test_up_and_down_show_what_they_run(cli: Cli) -> None:
    hosts = ("gpu1", "gpu2")
    there = ("--address", "10.0.0.1", "--python", "/opt/venv/bin/python", "--dry-run")
    told = cli("cluster", "up", *hosts, *there, "--cpus", "2")
    assert told.exit_code == 0, told.output
    head, first, second, last = told.output.splitlines()
    start = "-m ray.scripts.scripts start --disable-usage-stats --num-cpus=2"
    assert f"{start} --head --node-ip-address=10.0.0.1 --port=6379" in head
    for line, host in ((first, "gpu1"), (second, "gpu2")):
        ssh, _, remote = line.partition(f" {host} ")
        assert ssh == "ssh -o BatchMode=yes"
        wanted = f"; /opt/venv/bin/python {start} --address=10.0.0.1:6379"
        assert shlex.split(remote)[0].endswith(wanted)
    assert last.endswith("longtake serve --ray-address 10.0.0.1:6379")
    told = cli("cluster", "down", *hosts, "--dry-run")
    assert [line.split()[-1].strip("'") for line in told.output.splitlines()] == ["stop"] * 3


def test_what_goes_wrong_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cli("cluster", "up", "gpu1")
    assert told.exit_code == 2 and "--address" in told.output
    told = cli("cluster", "down", "--dry-run", "--", "-oProxyCommand=true")
    assert told.exit_code == 2 and "is no host" in told.output
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 255\n")
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    ran: list[list[str]] = []
    tokens: list[object] = []
    real = subprocess.run

    def run(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        ran.append(words)
        tokens.append(how["env"].get("RAY_AUTH_TOKEN"))
        if words[0] == sys.executable:  # Ray itself is not started here
            return subprocess.CompletedProcess(words, 0, "", "")
        return real(words, **how)

    monkeypatch.setattr(subprocess, "run", run)
    told = cli("cluster", "up", "gpu1", "--address", "10.0.0.1")
    assert told.exit_code == 2
    assert told.output.strip().endswith("failed: no route to host; nothing was left running")
    assert [words[-1] for words in (ran[0], ran[-1])] == ["--include-dashboard=false", "stop"]
    kept = tmp_path / ".ray" / "auth_token"
    assert tokens[:2] == [kept.read_text()] * 2 and kept.stat().st_mode & 0o77 == 0
    assert kept.read_text() not in str(ran)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = cli("cluster", "up", "--port", taken.getsockname()[1])
    assert told.exit_code == 2 and "is in use; if that is a cluster" in told.output
