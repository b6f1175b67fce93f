"""Two workers against one: the same denoising on the same two cores, one thread a worker.

    python benchmarks/scaling.py [--repeat 3] [--only NAME ...]

Two processes live through the whole benchmark. For each plan they take turns: rank 0 alone, then
both together, so that ratios are of neighbours in time. Only denoising is timed, from a barrier to
the last latents on rank 0; the VAE, files and start-up are not. Pairs are kept in scaling.json; a
case that is measured again replaces its own, and scaling.md is written from all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from time import perf_counter

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from longtake.parallel.mesh import Mesh, Rendezvous, alone, open_mesh
from longtake.runtime.member import Member
from longtake.runtime.noise import SeededNoise
from longtake.runtime.samplers import Solver
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.bank_retention import BankRetention
from longtake.scheduler.deep_retention import DeepRetention
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Script, Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.buffer import Buffer
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.chunks import Chunks
from longtake.scheduler.strategies.clip import Clip, Scopes
from longtake.scheduler.strategies.dual import Dual
from longtake.scheduler.strategies.keyframes import Keyframes
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.strategies.windows import Windows
from longtake.scheduler.task import Kind, Span, Task

LAYERS, HEADS, HEAD_DIM, FFN = 8, 12, 32, 1536
GRID = (16, 16)  # patches in a frame
TEXT = (16, 64)
CPU = torch.device("cpu")
SEED = 0
WINDOW = Retention(9, 3, Positions.RELATIVE, recache=False)
LONG = replace(WINDOW, window=18)


@dataclass(frozen=True)
class SideBySide(Bidirectional):
    """So many blocks that don't see each other, a step of each in turn: all are in flight."""

    label: str = "lossy"
    number: int = 4

    def blocks(self, request: Request, spec: ModelSpec) -> int:
        """All of them."""
        return self.number

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Anything goes."""

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """A block."""
        return spec.block_frames

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Step by step."""
        ticks = count()
        frames = [
            Span(b * spec.block_frames, (b + 1) * spec.block_frames) for b in range(self.number)
        ]
        for block, span in enumerate(frames):
            cue = script.begin(block) or 0
            if block == 0:
                yield Task(next(ticks), Kind.ENCODE, 0, span, cue)
        for step in range(steps):
            for block, span in enumerate(frames):
                last = step == steps - 1
                yield Task(next(ticks), Kind.DENOISE, block, span, cue, step, last=last)


@dataclass(frozen=True)
class Case:
    """What is timed: a strategy under a plan, over so many latent frames in blocks of so many.

    `asked` is the speed-up that the project wants of it, if it has set one.
    """

    strategy: Strategy
    degrees: Degrees
    asked: float | None
    frames: int
    block: int
    steps: int = 3
    guidance: float = 1.0


CASES = {
    "ring": Case(Bidirectional(), Degrees(ring=2), 1.75, 12, 12),
    "Ulysses": Case(Bidirectional(), Degrees(ulysses=2), 1.75, 12, 12),
    "cfg": Case(Bidirectional(), Degrees(cfg=2), 1.85, 6, 6, guidance=4.0),
    "stages, 4 blocks in flight": Case(SideBySide(), Degrees(stages=2), 1.6, 24, 6),
    "clip: 4 clips": Case(Clip(Scopes(2, 2), None, 4), Degrees(clip=2), 1.8, 24, 3),
    "dual": Case(Dual(3, 1), Degrees(stages=2), 1.6, 24, 3, 4),
    "cascade: 2 in flight": Case(Cascade(WINDOW), Degrees(clip=2), 1.5, 24, 3, 4),
    "keyframes": Case(Keyframes(fanout=4), Degrees(clip=2), 1.7, 51, 3),
    "stream": Case(StreamBatch(WINDOW, 4, apart=2), Degrees(stages=2), 1.6, 48, 3, 4),
    "causal": Case(Causal(WINDOW), Degrees(ring=2), None, 12, 3),
    "deep": Case(Causal(DeepRetention(15, 12, 6, 4)), Degrees(ring=2), None, 24, 3),
    "memflow": Case(Causal(BankRetention(12)), Degrees(ring=2), None, 24, 3),
    "rolling": Case(Rolling(LONG, 4), Degrees(clip=2), None, 12, 3, 4),
    "chunks": Case(Chunks((4, 3, 2, 1)), Degrees(clip=2), None, 12, 3, 4),
    "buffer": Case(Buffer(4), Degrees(clip=2), None, 12, 3, 4),
    "windows": Case(Windows(6, 3), Degrees(clip=2), None, 15, 3),
}
KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_suffix(".md")


class Latents:
    """A store that forgets, but for the time at which the last block came."""

    def read(self, block: int) -> Tensor | None:
        """Nothing was kept."""
        return None

    def write(self, block: int, latents: Tensor) -> None:
        """Nothing is kept."""

    def read_state(self) -> None:
        """Nothing was kept."""

    def write_state(self, tick: int, tensors: dict[str, Tensor]) -> None:
        """Nothing is kept."""


def make_transformer() -> WanTransformer:
    """Wan of random weights, the same on all workers."""
    torch.manual_seed(SEED)
    module = WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT[1],
        freq_dim=256,
        ffn_dim=FFN,
        num_layers=LAYERS,
    )
    return WanTransformer(module.eval().requires_grad_(False))


def denoise(transformer: WanTransformer, mesh: Mesh, case: Case) -> float:
    """Seconds that a run takes, by this worker's clock."""
    spec = ModelSpec(LAYERS, HEADS, HEAD_DIM, FFN, 16, 2, 1024, case.block)
    seconds = spec.pixel_frames(case.frames) / 16
    height, width = (16 * side for side in GRID)
    request = Request((Cue(0, "x"),), seconds, height, width, 16, SEED, case.guidance)
    sampler = Solver("FlowMatchEulerDiscreteScheduler", case.steps, {"shift": 3.0}, CPU)
    member = Member(
        transformer,
        Schedule(case.strategy, request, spec, case.steps),
        sampler,
        SeededNoise(SEED),
        mesh,
        TEXT,
        (lambda text: torch.zeros(1, *TEXT)) if mesh.rank == 0 else None,
        Latents() if mesh.rank == 0 else None,
    )
    mesh.world.barrier()
    start = perf_counter()
    member.run()
    mesh.world.barrier()
    return perf_counter() - start


def work(
    rank: int, port: int, repeat: int, names: list[str], results: multiprocessing.Queue[object]
) -> None:
    """One process: every plan of these in turn with the other, and rank 0 alone in between."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    transformer = make_transformer()
    for offset, name in enumerate(names):
        case = CASES[name]
        meeting = Rendezvous("127.0.0.1", port + offset, rank, 2, 600.0)
        with closing(open_mesh(meeting, case.degrees, CPU)) as mesh:
            for turn in range(-1, repeat):  # the first does not count
                one = denoise(transformer, alone(CPU), case) if rank == 0 else 0.0
                mesh.world.barrier()
                two = denoise(transformer, mesh, case)
                if rank == 0 and turn >= 0:
                    results.put((name, one, two))
            mesh.world.barrier()


def report(measured: dict[str, list[tuple[float, float]]]) -> str:
    """The page."""
    lines = [
        "# Two workers against one",
        "    python benchmarks/scaling.py",
        f"Wan of {LAYERS} layers, {HEADS} heads of {HEAD_DIM}, feed-forward {FFN}, random weights; "
        f"{GRID[0]} x {GRID[1]} patches a latent frame, Euler, float32, one torch thread a worker, "
        "each worker on a core of its own, gloo over the loopback device. Runs of "
        "one and of two workers alternate; before those that count came one of each.",
        "| what | plan | frames in blocks of | one worker | two workers | speed-up "
        "| of single pairs | asked for | pairs |\n|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, case in CASES.items():
        if not (pairs := measured.get(name)):
            continue
        ratios = [one / two for one, two in pairs]
        one, two = (statistics.median(side) for side in zip(*pairs, strict=True))
        lines[-1] += (
            f"\n| {name} | {case.degrees.describe()} | {case.frames} in {case.block} "
            f"| {one:.2f} s | {two:.2f} s | **{statistics.median(ratios):.2f}** "
            f"| {min(ratios):.2f} .. {max(ratios):.2f} | {case.asked or '-'} | {len(pairs)} |"
        )
    lines.append("Times and speed-ups are medians; the speed-up is that of neighbouring runs.")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    lines.append(
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}; Python {platform.python_version()}, {packages}."
    )
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="pairs of runs that count")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--port", type=int, default=29400, help=f"the first of {len(CASES)} free ports"
    )
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("this needs two cores")
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[str, float, float]] = context.Queue()
    processes = [
        context.Process(
            target=work, args=(rank, args.port, args.repeat, args.only, results), daemon=True
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in args.only}
    for _ in range(args.repeat * len(args.only)):
        name, one, two = results.get(timeout=1200)
        measured[name].append((one, two))
        print(f"{name}: {one:.2f} s, {two:.2f} s, {one / two:.2f}", flush=True)
    for process in processes:
        process.join()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept.update(measured)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    PAGE.write_text(report(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
