"""Ring attention over a slow link: how much of the transfers hides behind attention.

    python benchmarks/overlap.py [--rate 400] [--repeat 3] [--report FILE.md]

Two workers in two network namespaces, joined by a link of a known rate (`tc tbf`). One forward of
Wan over so many tokens that attention to a share takes longer than its transfer. Beside it, in
turns, the same forward without any transfer: compute alone (its results are nonsense, its work is
the same). Needs root, `ip` and `tc`; leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from unittest.mock import patch

import torch

from longtake.parallel.group import Group, Nothing
from longtake.parallel.mesh import Mesh, Rendezvous, open_mesh
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import JointAttention, segment_table
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.trace import Trace

HOSTS = ("longtake-a", "longtake-b")
ADDRESSES = ("10.78.0.1", "10.78.0.2")
PORT = 29500
LAYERS, HEADS, HEAD_DIM = 3, 12, 32
FRAMES, GRID = 8, (32, 32)
TOKENS = FRAMES * GRID[0] * GRID[1]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    """One pair of forwards, by rank 0's trace; seconds."""

    alone: float
    together: float
    transfer: float
    exposed: float

    @property
    def hidden(self) -> float:
        """Share of the transfers for which nobody stood still."""
        return 1 - self.exposed / self.transfer


def make_transformer() -> WanTransformer:
    """Wan of random weights, the same on both workers."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=16,
        out_channels=16,
        text_dim=64,
        freq_dim=256,
        ffn_dim=4 * HEADS * HEAD_DIM,
        num_layers=LAYERS,
    )
    return WanTransformer(module.eval().requires_grad_(False))


@torch.inference_mode()
def forward(transformer: WanTransformer, mesh: Mesh) -> float:
    """Seconds that this worker's share of a forward takes."""
    sequence = SequenceParallel(mesh, GRID[0] * GRID[1])
    table = segment_table(range(FRAMES), GRID, HEAD_DIM, CPU, sequence)
    text = transformer.text_keys(torch.zeros(1, 16, 64))
    latents = torch.zeros(1, 16, FRAMES, 2 * GRID[0], 2 * GRID[1])
    hidden = transformer.embed(latents, torch.full((1, 1), 500.0))
    own = sequence.split(hidden.tokens)
    hidden = transformer.resume(own, torch.full((1, 1), 500.0), hidden.grid)
    attention = JointAttention(sequence, FRAMES, table)
    mesh.world.barrier()
    start = monotonic()
    transformer.layers(hidden, 0, LAYERS, attention, text)
    return monotonic() - start


def work(rank: int, repeat: int) -> None:
    """One worker; rank 0 prints what it measured as JSON."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    transformer = make_transformer()
    traces = [Trace(rank, HOSTS[rank], monotonic())]
    meeting = Rendezvous(ADDRESSES[0], PORT, rank, 2, 600.0)
    record = lambda action: traces[-1](action)  # noqa: E731  # a new trace for each forward
    with closing(open_mesh(meeting, Degrees(ring=2), CPU, record)) as mesh:
        for turn in range(-1, repeat):  # the first does not count
            with patch.object(Group, "exchange", lambda *_: Nothing()):
                alone = forward(transformer, mesh)
            mesh.world.barrier()
            traces.append(Trace(rank, HOSTS[rank], monotonic()))
            together = forward(transformer, mesh)
            actions = traces[-1].recording(monotonic()).actions
            ring = [action for action in actions if action.name.startswith("ring exchange")]
            spans = {
                kind: sum(a.stop - a.start for a in ring if a.activity == kind)
                for kind in ("transfer", "wait")
            }
            mesh.world.barrier()
            if rank == 0 and turn >= 0:
                measured = Measured(alone, together, spans["transfer"], spans["wait"])
                print(json.dumps(vars(measured)), flush=True)


@contextmanager
def two_hosts(rate: int) -> Iterator[None]:
    """Two namespaces and a link of `rate` Mbit/s between them, for as long as it is entered."""
    ends = ("longtake0", "longtake1")
    try:
        for host in HOSTS:
            run("ip", "netns", "add", host)
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end, address in zip(HOSTS, ends, ADDRESSES, strict=True):
            run("ip", "link", "set", end, "netns", host)
            run("ip", "-n", host, "address", "add", f"{address}/24", "dev", end)
            for device in ("lo", end):
                run("ip", "-n", host, "link", "set", device, "up")
            shape = ["tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "100ms"]
            run(*inside(host), "tc", "qdisc", "add", "dev", end, "root", *shape)
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], stderr=subprocess.DEVNULL, check=False)


def inside(host: str) -> tuple[str, ...]:
    """The start of a command that runs on one of the hosts."""
    return ("ip", "netns", "exec", host)


def run(*command: str) -> None:
    """A command that must succeed."""
    subprocess.run(command, check=True)


def measure(repeat: int) -> list[Measured]:
    """Start both workers and collect what rank 0 says."""
    processes = [
        subprocess.Popen(
            [*inside(host), sys.executable, __file__, f"--rank={rank}", f"--repeat={repeat}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(HOSTS)
    ]
    try:
        said = [process.communicate(timeout=1200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Measured(**json.loads(line)) for line in said[0].splitlines()]


def report(found: list[Measured], rate: int) -> str:
    """The page."""
    share = TOKENS // 2 * HEADS * HEAD_DIM * 4 * 2 / 1e6
    lines = [
        "# Ring attention over a slow link",
        f"    python benchmarks/overlap.py --rate {rate}",
        f"Wan of {LAYERS} layers, {HEADS} heads of {HEAD_DIM}, random weights, float32; {TOKENS} "
        f"tokens on two workers, a torch thread and a core each, gloo over a link of {rate} Mbit/s "
        f"each way; {share:.1f} MB of keys and values a hop. *compute alone* is the same forward "
        "without transfers; the two take turns, before those that count came one of each. "
        "*transfer* and *waiting* are of the ring's hops, by the trace of rank 0; *hidden* is the "
        "share of the transfer time for which it did not stand still.",
        "| compute alone | over the link | ratio | transfer | waiting | hidden |\n"
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for m in found:
        lines[-1] += (
            f"\n| {m.alone:.2f} s | {m.together:.2f} s | {m.together / m.alone:.3f} | "
            f"{m.transfer:.2f} s | {m.exposed:.3f} s | {m.hidden:.1%} |"
        )
    ratio = statistics.median(m.together / m.alone for m in found)
    hidden = statistics.median(m.hidden for m in found)
    lines.append(
        f"Medians: ratio **{ratio:.3f}** (asked for: at most 1.15), hidden **{hidden:.1%}** "
        "(asked for: at least 80 %)."
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    lines.append(
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}; Python {platform.python_version()}, {packages}."
    )
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=400, help="of the link, Mbit/s")
    parser.add_argument("--repeat", type=int, default=3, help="pairs of forwards that count")
    parser.add_argument("--report", type=Path, help="write the page here too")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        work(args.rank, args.repeat)
        return
    if os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2:
        parser.error("this needs root, for network namespaces, and two cores")
    with two_hosts(args.rate):
        found = measure(args.repeat)
    page = report(found, args.rate)
    print(page)
    if args.report is not None:
        args.report.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
