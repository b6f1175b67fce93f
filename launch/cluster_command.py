"""`longtake cluster`: a Ray cluster of this machine and of others that ssh reaches."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from longtake.launch.ray_token import MODE, TOKEN, make_token
from longtake.scheduler.errors import UserError

PORT = 6379
RAY = ("-m", "ray.scripts.scripts")
SSH = ("ssh", "-o", "BatchMode=yes")
# A host reads the token from stdin: command lines are seen by all. Without one, Ray asks for none.
WITH_TOKEN = f'read -r {TOKEN}; [ -n "${TOKEN}" ] && export {TOKEN} {MODE}=token; '

app = typer.Typer(
    help="Start, show and stop a Ray cluster of this machine and others, for `longtake serve`.",
    no_args_is_help=True,
)

Hosts = Annotated[
    list[str] | None, typer.Argument(metavar="[HOST]...", help="Others, as ssh knows them.")
]
Python = Annotated[
    str, typer.Option(metavar="PATH", help="Of the Python there that has longtake and Ray.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be run.")]


@app.command()
def up(
    hosts: Hosts = None,
    address: Annotated[
        str | None, typer.Option(metavar="IP", help="Of this machine, where others reach it.")
    ] = None,
    port: Annotated[int, typer.Option(help="Where the cluster listens.")] = PORT,
    cpus: Annotated[
        int | None, typer.Option(metavar="N", help="Workers of each host, where it has no GPUs.")
    ] = None,
    python: Python = sys.executable,
    dry_run: DryRun = False,
) -> None:
    """Start Ray here, and on each host by ssh; all must have longtake, models and a shared folder.
    Where a host fails, those that were started are stopped again.

    For example: longtake cluster up gpu1 gpu2 --address 10.0.0.1
    """
    if hosts and address is None:
        raise UserError("with other hosts, say with --address where they reach this machine")
    here = address or "127.0.0.1"
    token = None
    if not dry_run:
        _check_free(here, port)
        token = make_token()
    size = [] if cpus is None else [f"--num-cpus={cpus}"]
    start = ["start", "--disable-usage-stats", *size]
    head = [*start, "--head", f"--node-ip-address={here}", f"--port={port}"]
    _run([sys.executable, *RAY, *head, "--include-dashboard=false"], dry_run, token)
    started: list[str] = []
    try:
        for host in hosts or []:
            join = [python, *RAY, *start, f"--address={here}:{port}"]
            _run(_there(host, join, WITH_TOKEN), dry_run, token)
            started.append(host)
    except UserError as error:
        _stop(started, python, dry_run)
        raise UserError(f"{error}; nothing was left running") from error
    typer.echo(f"the cluster is up; serve it with: longtake serve --ray-address {here}:{port}")


@app.command()
def status(
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the cluster; else that of this host.")
    ] = "auto",
) -> None:
    """Show the nodes of a cluster, and what they have.

    For example: longtake cluster status --address 10.0.0.1:6379
    """
    for node in _nodes(address):
        has = node["Resources"]
        state = "alive" if node["Alive"] else "lost"
        gpus, cpus = (int(has.get(kind, 0)) for kind in ("GPU", "CPU"))
        host = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        typer.echo(f"{state:6} {host}: {gpus} GPUs, {cpus} CPUs")


@app.command()
def down(
    hosts: Hosts = None,
    python: Python = sys.executable,
    dry_run: DryRun = False,
) -> None:
    """Stop Ray on each host and then here, whatever runs there; jobs go on when it is up again.

    For example: longtake cluster down gpu1 gpu2
    """
    _stop(hosts or [], python, dry_run)


def _stop(hosts: Sequence[str], python: str, dry_run: bool) -> None:
    for host in hosts:
        _run(_there(host, [python, *RAY, "stop"]), dry_run)
    _run([sys.executable, *RAY, "stop"], dry_run)


def _check_free(here: str, port: int) -> None:
    try:
        socket.create_server((here, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"{here}:{port} is in use; if that is a cluster, see `longtake cluster status`, "
                "and end it with `longtake cluster down` or take another --port"
            ) from error


def _nodes(address: str) -> list[dict[str, Any]]:
    from longtake.launch.ray_cluster import import_ray, join_cluster

    join_cluster(address)
    return list(import_ray().nodes())


def _there(host: str, words: Sequence[str], first: str = "") -> list[str]:
    if host.startswith("-"):
        raise UserError(f"{host!r} is no host")
    return [*SSH, host, first + shlex.join(words)]


def _run(words: Sequence[str], dry_run: bool, token: str | None = None) -> None:
    """Run a command that must go well; it is given the token, and finds it on its stdin.

    Raises:
        UserError: it did not; with what it said.
    """
    if dry_run:
        typer.echo(shlex.join(words))
        return
    known = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    if token is not None:
        known |= {MODE: "token", TOKEN: token}
    said = f"{token or ''}\n"
    try:
        done = subprocess.run(
            words, input=said, capture_output=True, text=True, check=False, env=known
        )
    except OSError as error:
        raise UserError(f"cannot run {words[0]}: {error.strerror}") from error
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{shlex.join(words)} failed: {' '.join(why) or done.returncode}")
