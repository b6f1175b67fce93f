"""A whole SLURM on this one machine, for as long as the tests run."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")  # of the daemons; not on every user's path
PATIENCE = 180.0

CONFIGURATION = """\
ClusterName=longtake
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=long Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster of one node. `environment` makes SLURM's commands speak to it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        """The output of a command that must go well."""
        done = self.attempt(*words, cwd=cwd)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(
        self, *words: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command with the environment of the cluster."""
        command = [str(word) for word in words]
        return subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False
        )

    @staticmethod
    def wait_for(ask: Callable[[], bool], explain: Callable[[], str]) -> None:
        """Ask until the answer is yes; fails the test, with an explanation, when patience ends."""
        end = time.monotonic() + PATIENCE
        while not ask():
            if time.monotonic() > end:
                pytest.fail(f"waited {PATIENCE:g} s in vain: {explain()}")
            time.sleep(0.2)

    def facts(self, job: int) -> dict[str, str]:
        """What scontrol tells of a job: JobState, Restarts, ExitCode and many more."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: int, *states: str) -> dict[str, str]:
        """Wait until the job is in one of the states; returns its facts."""
        self.wait_for(
            lambda: self.facts(job)["JobState"] in states,
            lambda: f"job {job} is not {' or '.join(states)}: {self.facts(job)}",
        )
        return self.facts(job)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Starts munged, slurmctld and slurmd, and stops them by their process ids."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS))
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if os.geteuid() != 0:
        pytest.skip("starting a SLURM needs root")
    if absent:
        pytest.skip(f"needs the packages slurm-wlm and munge; absent: {', '.join(absent)}")
    with ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path is short
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "slurm.conf").write_text(configuration(folder))
        environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        cluster = Slurm(folder, environment)
        start_daemons(cluster, undo)
        undo.callback(end_jobs, cluster)
        yield cluster


def configuration(folder: Path) -> str:
    """The text of slurm.conf."""
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            controller_port=one.getsockname()[1],
            node_port=other.getsockname()[1],
            folder=folder,
            cpus=os.cpu_count(),
        )


def start_daemons(cluster: Slurm, undo: ExitStack) -> None:
    """All in the foreground, so that they are ours to stop."""
    folder = cluster.folder
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, munge_socket = folder / "munge.key", folder / "munge.socket"
    cluster.run("mungekey", "--create", f"--keyfile={key}")
    start(
        cluster,
        undo,
        *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge_socket}"),
        *(f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"),
        f"--log-file={folder}/munged.log",
    )
    cluster.wait_for(munge_socket.exists, lambda: f"no socket: {told(folder)}")
    start(cluster, undo, "slurmctld", "-D")
    start(cluster, undo, "slurmd", "-D")
    ready = ("sinfo", "--noheader", "--format=%T")
    cluster.wait_for(
        lambda: cluster.attempt(*ready).stdout.strip() == "idle",
        lambda: f"the node is not idle: {told(folder)}",
    )


def start(cluster: Slurm, undo: ExitStack, *command: str) -> None:
    """Start a daemon, which `undo` stops."""
    log = undo.enter_context((cluster.folder / f"{command[0]}.out").open("w"))
    process = subprocess.Popen(
        command, env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
    )

    def stop() -> None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    undo.callback(stop)


def end_jobs(cluster: Slurm) -> None:
    """No step may outlive the daemons."""
    cluster.attempt("scancel", "--user=root")
    cluster.wait_for(
        lambda: not cluster.run("squeue", "--noheader").strip(),
        lambda: cluster.run("squeue", "--long"),
    )


def told(folder: Path) -> str:
    """The end of what each daemon said."""
    logs = {path.name: path.read_text().splitlines()[-5:] for path in folder.glob("*.out")}
    return "\n".join(f"{name}: {line}" for name, lines in logs.items() for line in lines)
