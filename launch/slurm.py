"""Batch jobs: `longtake slurm submit` writes a script and hands it to SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from longtake.scheduler.errors import UserError

app = typer.Typer(help="Batch jobs on a SLURM cluster.", no_args_is_help=True)

_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?:(?P<h>\d+):(?=\d+:))?(?P<m>\d+)(?::(?P<s>\d+))?)"
)
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS")  # the other variables are of a job

_SCRIPT = """\
#!/bin/bash
# Written by `longtake slurm submit`. Where the run has begun, as after a requeue, it goes on.
%(directives)s

run_dir=%(run_dir)s
kept_blocks() { cat "$run_dir/journal.jsonl" 2>/dev/null | wc -l; }

blocks=$(kept_blocks)
if %(begun)s; then
    %(resume)s
else
    %(generate)s
fi
code=$?
%(requeue)sexit "$code"
"""

_REQUEUE = """
# 143: SIGTERM, before the time limit. A job that made no block would come back for ever.
if [ "$code" -eq 143 ] && [ "$(kept_blocks)" -gt "$blocks" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM; None leaves it to the cluster.

    Attributes:
        gpus_per_node: a number, or TYPE:NUMBER.
        tasks_per_node: workers on each node; None: one for each GPU, or one.
        time: a limit as sbatch takes it.
        requeue: start again after a lost node, a preemption or the time limit.
        signal: how many seconds before the time limit the run is told to stop.
    """

    name: str = "longtake"
    nodes: int = 1
    gpus_per_node: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    requeue: bool = True
    signal: int = 60

    def __post_init__(self) -> None:
        for option in ("nodes", "tasks_per_node", "cpus_per_task"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
        if self.gpus_per_node is not None and not re.fullmatch(
            r"(?:[\w.-]+:)?0*[1-9][0-9]*", self.gpus_per_node, re.ASCII
        ):
            raise UserError(
                "--gpus-per-node must be a number of at least 1, or TYPE:NUMBER such as a100:4; "
                f"got {self.gpus_per_node!r}"
            )
        if not 0 <= self.signal <= 65535:
            raise UserError(f"--signal must be within 0 .. 65535 seconds, got {self.signal}")
        if self.time is not None and read_time(self.time) <= self.signal:
            raise UserError(
                f"--time {self.time} ends before the run is told to stop, {self.signal} seconds "
                "before the end; give more time, or a smaller --signal"
            )

    @property
    def tasks(self) -> int:
        """Workers on each node."""
        if self.tasks_per_node is not None:
            return self.tasks_per_node
        return 1 if self.gpus_per_node is None else int(self.gpus_per_node.rpartition(":")[2])

    def directives(self, log: str, folder: Path) -> str:
        """The lines that sbatch reads; in `log`, %j becomes the number of the job, %% a percent."""
        values = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "signal": f"TERM@{self.signal}",  # to the workers alone, not to the script
            "chdir": folder,
            "output": log,
            "open-mode": "append",
        }
        lines = [_directive(name, str(v)) for name, v in values.items() if v is not None]
        return "\n".join([*lines, f"#SBATCH --{'requeue' if self.requeue else 'no-requeue'}"])


def read_time(text: str) -> int:
    """Seconds of a time limit in any form that sbatch takes.

    Raises:
        UserError: it is of none.
    """
    match = _TIME.fullmatch(text)
    if match is None or not text.isascii():
        raise UserError(
            "--time must be MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
            f"DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS; got {text!r}"
        )
    part = {name: int(number or 0) for name, number in match.groupdict().items()}
    hours = 24 * part["days"] + part["hours"] + part["h"]
    seconds = 3600 * hours + 60 * (part["minutes"] + part["m"]) + part["seconds"] + part["s"]
    if not seconds:
        raise UserError(f"--time must be more than 0, got {text!r}; leave it out for no limit")
    return seconds


@dataclass(frozen=True)
class Batch:
    """A generation as a job.

    Attributes:
        words: what follows `longtake generate`.
        run_dir: an absolute path.
        anew: a run that was there before this job was submitted is replaced, not gone on with.
    """

    job: Job
    words: tuple[str, ...]
    run_dir: Path
    anew: bool = False

    @property
    def path(self) -> Path:
        """Where the script is put: beside the run directory."""
        return Path(f"{self.run_dir}.sbatch")

    def log(self, number: int) -> Path:
        """Where a job of that number puts what it tells: beside the run directory."""
        return Path(f"{self.run_dir}.{number}.log")

    def script(self, folder: Path) -> str:
        """The text of the batch script, for a job that works in `folder`.

        Raises:
            UserError: SLURM could not read what it would hold.
        """
        if "\\" in str(self.run_dir):
            raise UserError(f"SLURM takes no path of a log with a backslash: {self.run_dir}")
        log = str(self.run_dir).replace("%", "%%") + ".%j.log"
        manifest = '"$run_dir/manifest.json"'
        begun = f"-e {manifest}"
        if self.anew:
            begun = f"{manifest} -nt {shlex.quote(str(self.path))}"
        parts = {
            "directives": self.job.directives(log, folder),
            "run_dir": shlex.quote(str(self.run_dir)),
            "begun": f"[ {begun} ]",
            "resume": self._srun("resume") + ' "$run_dir"',
            "generate": self._srun("generate", *self.words),
            "requeue": _REQUEUE if self.job.requeue else "",
        }
        return _SCRIPT % parts

    def _srun(self, *words: str) -> str:
        # The Python of the one who submits; -P: nothing is imported from the working directory.
        command = ["srun"]
        if self.job.cpus_per_task is not None:  # srun does not take it over from sbatch
            command.append(f"--cpus-per-task={self.job.cpus_per_task}")
        return shlex.join([*command, sys.executable, "-P", "-m", "longtake", *words])


def _directive(name: str, value: str) -> str:
    """A line that sbatch reads: in its quotes a backslash takes the meaning off what follows."""
    if "\n" in value:
        raise UserError(f"SLURM takes no --{name} with a line break: {value!r}")
    if not re.fullmatch(r"[\w@%:.,/+-]+", value, re.ASCII):
        value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return f"#SBATCH --{name}={value}"


def submit_batch(batch: Batch) -> int:
    """Write the script, hand it to sbatch, and return the number of the job.

    Raises:
        UserError: the script can't be written, sbatch is not there, or it refuses the job.
    """
    text = batch.script(Path.cwd())
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on the path; submit where SLURM is, or look with --dry-run")
    try:
        batch.path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {batch.path}: {error.strerror}") from error
    # A job that is submitted out of another one must not take over that one's shape.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in _OF_THE_CLUSTER
    }
    done = subprocess.run(
        ["sbatch", "--parsable", str(batch.path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = re.fullmatch(r"(\d+)(;.*)?", done.stdout.strip())
    if done.returncode or told is None:
        lines = (done.stderr or done.stdout).strip().splitlines()
        why = "; ".join(re.sub(r"^sbatch: (error: )?", "", line) for line in lines)
        raise UserError(f"sbatch refused the job: {why or f'exit code {done.returncode}'}")
    return int(told[1])


@app.callback()
def _slurm() -> None:
    pass


@app.command()
def submit(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(metavar="-- PROMPT [OPTIONS]", help="All that `longtake generate` takes."),
    ],
    nodes: Annotated[int, typer.Option(help="Hosts.")] = 1,
    gpus_per_node: Annotated[
        str | None, typer.Option(metavar="[TYPE:]NUMBER", help="None: on CPUs.")
    ] = None,
    tasks_per_node: Annotated[
        int | None, typer.Option(help="Workers on each host; else one for each GPU, or one.")
    ] = None,
    cpus_per_task: Annotated[int | None, typer.Option(help="Cores of each worker.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="[DAYS-]HOURS:MINUTES:SECONDS", help="The limit.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="A queue of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Whose time it is.")] = None,
    job_name: Annotated[str, typer.Option(help="As the queue shows it.")] = "longtake",
    requeue: Annotated[
        bool, typer.Option(help="Start again, and go on, after a lost host or the time limit.")
    ] = True,
    signal: Annotated[
        int,
        typer.Option(metavar="SECONDS", help="How long before the limit to stop after a block."),
    ] = 60,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the script.")] = False,
) -> None:
    """Write a batch script beside the run directory and submit it.

    For example: longtake slurm submit --nodes 2 --gpus-per-node 4 --time 2:00:00 --
    "a red circle standing still on a gray background" --out far.mp4
    """
    job = Job(
        name=job_name,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        time=time,
        partition=partition,
        account=account,
        requeue=requeue,
        signal=signal,
    )
    batch = _plan(context, job, words)
    if dry_run:
        typer.echo(batch.script(Path.cwd()), nl=False)
        return
    number = submit_batch(batch)
    typer.echo(
        f"job {number} is submitted; its script is {batch.path}, its log {batch.log(number)}"
    )


def _plan(context: typer.Context, job: Job, words: list[str]) -> Batch:
    """Read the words as `generate` will, so that mistakes are told now and not out of a queue."""
    from longtake.launch.places import Places, check_run_dir, default_run_dir

    root = context.find_root().command
    assert isinstance(root, TyperGroup)
    generate = root.get_command(context, "generate")
    assert generate is not None
    asked = generate.make_context("longtake slurm submit --", list(words)).params
    given, video, force = asked["run_dir"], asked["out"], asked["force"]
    run_dir = (given or default_run_dir(video)).absolute()
    if (run_dir / "manifest.json").exists() and not force:
        typer.echo(f"{run_dir} holds a run: the job goes on with it, as it was asked for", err=True)
    else:
        Places(video, run_dir, asked["frames"], force).check()
        check_run_dir(run_dir, force)
    kept = [] if given is not None else ["--run-dir", str(run_dir)]
    return Batch(job, (*kept, *words), run_dir, anew=force)
