"""What surrounds this process: who started it, which rank it has, and where its world meets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

from longtake.scheduler.errors import UserError

LAUNCHERS = ("auto", "local", "torchrun", "slurm", "ray")
_TORCHRUN_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_TORCHRUN = (*_TORCHRUN_RANKS, "MASTER_ADDR", "MASTER_PORT")
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
)
_SLURM_SPECIAL_STEPS = 0xFFFFFFF0  # from here on: batch scripts, shells of salloc, and the like
_PORTS = range(20000, 30000)
_PORTS_BETWEEN_STEPS = 1009  # far apart, so that a step does not meet the next job's


@dataclass(frozen=True)
class Hosts:
    """Where the workers of a run are, as far as that is known before they are up.

    Attributes:
        workers: how many each host has, in order of rank; empty: all are on this one.
        device: what `auto` means there; None: what it means here.
        gpu: what the GPUs there are called, where that is known; None: as here.
    """

    workers: tuple[int, ...] = ()
    device: str | None = None
    gpu: str | None = None


ALL_HERE = Hosts()


@dataclass(frozen=True)
class Surroundings:
    """A place in a world that somebody else started.

    Attributes:
        launcher: who did. Under `ray` this process is the one that drives a cluster: it is alone in
            its world, `address` is all of RAY_ADDRESS, and `port` is 0.
        rank: 0 .. world - 1.
        world: how many processes there are.
        local_rank: 0 .. local_world - 1, among those of this host.
        local_world: how many of them are on this host.
        address: the host of rank 0, where all meet.
        port: the port there.
        listen: whether rank 0 has to listen there; under torchrun its agent may do so already.
        attempt: sets this world apart from those that met there before, such as before a restart.
        counts: workers of each host, by rank; empty: as many on each as on this one.
    """

    launcher: Literal["torchrun", "slurm", "ray"]
    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int
    listen: bool = True
    attempt: str = ""
    counts: tuple[int, ...] = ()

    @property
    def hosts(self) -> Hosts:
        """All hosts of this world."""
        full, rest = divmod(self.world, self.local_world)
        alike = (*(self.local_world,) * full, *((rest,) if rest else ()))
        return Hosts(self.counts or alike)

    def workers(self, asked: int | None) -> int | None:
        """How many workers share the work: all that were started; under `ray`, as many as asked.

        Raises:
            UserError: another number was asked for.
        """
        if self.launcher == "ray":
            return asked
        if asked not in (None, self.world):
            raise UserError(
                f"{self.launcher} started {self.world} workers, but --workers asks for {asked}; "
                "leave it out"
            )
        return self.world

    def __post_init__(self) -> None:
        if not 0 <= self.local_rank < self.local_world <= self.world:
            raise UserError(
                f"the variables of {self.launcher} contradict each other: local rank "
                f"{self.local_rank} of {self.local_world} in a world of {self.world}"
            )
        if not self.local_rank <= self.rank < self.world:
            raise UserError(
                f"the variables of {self.launcher} contradict each other: rank {self.rank} (local "
                f"rank {self.local_rank}) in a world of {self.world}"
            )


def choose(
    environment: Mapping[str, str], launcher: str, ray_address: str | None
) -> Surroundings | None:
    """What surrounds this process by the user's word.

    Args:
        environment: the variables of this process.
        launcher: one of `LAUNCHERS`; `auto` takes what `find` does.
        ray_address: of a cluster to use, HOST:PORT; with `ray` alone, RAY_ADDRESS or the cluster
            that this host is part of.

    Raises:
        UserError: that launcher is not there, or the two contradict each other.
    """
    if launcher not in LAUNCHERS:
        raise UserError(f"--launcher must be one of {', '.join(LAUNCHERS)}; got {launcher!r}")
    if ray_address is not None and launcher not in ("auto", "ray"):
        raise UserError(f"--ray-address is for --launcher ray, got --launcher {launcher}")
    if launcher == "ray" or ray_address is not None:
        address = ray_address or environment.get("RAY_ADDRESS") or "auto"
        return Surroundings("ray", 0, 1, 0, 1, address, 0)
    if launcher == "local":
        return None
    found = find(environment)
    if launcher != "auto" and (found is None or found.launcher != launcher):
        starter = {"torchrun": "torchrun", "slurm": "srun"}[launcher]
        raise UserError(
            f"--launcher {launcher}, but {starter} did not start this process: its variables are "
            "not set"
        )
    return found


def find(environment: Mapping[str, str]) -> Surroundings | None:
    """What the variables tell; the innermost launcher counts: torchrun, then srun, then Ray.

    None where this process is a world of its own. That is so inside a SLURM allocation too, unless
    `srun` started the process: a batch script, or the shell of salloc, has variables of SLURM, a
    rank and a number of tasks among them, but there is no second process that it could meet.

    Raises:
        UserError: variables are missing, malformed, or contradict each other.
    """
    if any(name in environment for name in _TORCHRUN_RANKS):
        return _torchrun(environment)
    if _number(environment, "SLURM_STEP_ID", _SLURM_SPECIAL_STEPS) < _SLURM_SPECIAL_STEPS:
        return _slurm(environment)
    if environment.get("RAY_ADDRESS"):
        return Surroundings("ray", 0, 1, 0, 1, environment["RAY_ADDRESS"], 0)
    return None


def expand_hosts(text: str) -> list[str]:
    """The hosts of SLURM's short form, in order: `gpu[01-03,07],login1` are five.

    Raises:
        UserError: it is not of that form.
    """
    wrong = UserError(f"not a list of hosts such as gpu[01-03,07],login1: {text!r}")
    hosts: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        pieces = re.split(r"\[([0-9,-]+)\]", part)  # plain, in brackets, plain, ...
        if not part or any(re.search(r"[\[\],\s]", plain) for plain in pieces[::2]):
            raise wrong
        choices = [
            [number for span in piece.split(",") for number in _numbers(span, wrong)]
            if at % 2
            else [piece]
            for at, piece in enumerate(pieces)
        ]
        hosts.extend("".join(choice) for choice in product(*choices))
    return hosts


def expand_counts(text: str) -> list[int]:
    """The tasks of each node in SLURM's short form, in order: `4(x2),1` is 4, 4, 1.

    Raises:
        UserError: it is not of that form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]*)(?:\(x([1-9][0-9]*)\))?", part)
        if match is None:
            raise UserError(f"not a list of counts such as 4(x2),1: {text!r}")
        counts.extend([int(match[1])] * int(match[2] or 1))
    return counts


def _numbers(span: str, wrong: UserError) -> list[str]:
    """`08-10` is 08, 09, 10: as wide as the first."""
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", span)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise wrong
    first, last = match[1], match[2] or match[1]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _torchrun(environment: Mapping[str, str]) -> Surroundings:
    _require(environment, _TORCHRUN, "torchrun")
    port = _number(environment, "MASTER_PORT")
    if not 1 <= port <= 65535:
        raise UserError(f"MASTER_PORT must be within 1 .. 65535, got {port}")
    rank, world, local_rank, local_world = (_number(environment, n) for n in _TORCHRUN_RANKS)
    return Surroundings(
        launcher="torchrun",
        rank=rank,
        world=world,
        local_rank=local_rank,
        local_world=local_world,
        address=environment["MASTER_ADDR"],
        port=port,
        listen=environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", ""),
    )


def _slurm(environment: Mapping[str, str]) -> Surroundings:
    _require(environment, _SLURM, "srun")
    hosts = expand_hosts(environment["SLURM_STEP_NODELIST"])
    counts = expand_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    world, node = _number(environment, "SLURM_NTASKS"), _number(environment, "SLURM_NODEID")
    if sum(counts) != world or len(counts) != len(hosts) or node >= len(hosts):
        told = ", ".join(f"{name}={environment[name]}" for name in _SLURM[4:])
        raise UserError(f"the variables of srun contradict each other: {told}")
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    return Surroundings(
        launcher="slurm",
        rank=_number(environment, "SLURM_PROCID"),
        world=world,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_world=counts[node],
        # On one node no name needs to be resolved; SLURM's names need not be known to DNS.
        address=hosts[0] if len(hosts) > 1 else "127.0.0.1",
        port=_PORTS[(job + _PORTS_BETWEEN_STEPS * step) % len(_PORTS)],
        counts=tuple(counts),
    )


def _require(environment: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        there = [name for name in names if name not in missing]
        raise UserError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set, but "
            f"{', '.join(there) or 'others of them'} {'is' if len(there) == 1 else 'are'}; "
            f"{launcher} sets all of them, so start with it or unset them"
        )


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name} must be a whole number, got {text!r}")
    return int(text)
