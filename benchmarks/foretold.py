"""Predicted against measured, in real runs; and how good the planner's choice of two workers is.

    longtake calibrate --workers 2 --out here.yaml
    python benchmarks/foretold.py --cluster here.yaml [--model FOLDER] [--only causal dual ...]

Every strategy is run on 1 and on 2 workers; then 12 requests are run by every legal plan of 2
workers. Each run is a process of its own. Times are from the first task to the last frame, without
loading, as the manifest has them, and medians of `--repeat`. Peak memory is rank 0's: on a GPU what
torch allocated at most, else what the process grew by after its imports. Writes foretold.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPT = "a large red circle bouncing around slowly on a gray background"
NAMES = (
    "bidirectional", "causal", "cascade", "rolling", "chunks", "buffer", "stream", "dual", "clip",
    "windows", "keyframes", "deep", "memflow",
)  # fmt: skip
AXES = ("cfg", "stages", "clip", "ring", "ulysses")


@dataclass(frozen=True)
class Ask:
    """A run. `degrees` are all settled, or empty where the planner is to choose."""

    model: str
    strategy: str
    seconds: float
    workers: int
    cluster: str
    guidance: float = 1.0
    steps: int = 4
    device: str = "auto"
    degrees: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        return [
            f"guidance={self.guidance}",
            *(f"parallel.{name}={degree}" for name, degree in self.degrees.items()),
        ]

    def describe(self) -> str:
        guided = ", guided" if self.guidance > 1 else ""
        return f"{self.strategy}, {self.seconds:g} s{guided}"


@dataclass(frozen=True)
class Made:
    """What a run took, and what it should have taken; bytes None for one worker."""

    degrees: str
    seconds: float
    predicted: float
    sent: int | None
    expected: int | None
    peak: float
    footprint: float


def run_here(ask: Ask) -> Made:
    """Make a run in this process, which does nothing else."""
    import torch

    import longtake
    from longtake.launch.against import compare_again
    from longtake.launch.clusters import load_cluster

    torch.zeros(1) @ torch.zeros(1)
    before = status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        result = longtake.generate(
            PROMPT, model=ask.model, strategy=ask.strategy, seconds=ask.seconds, steps=ask.steps,
            workers=ask.workers, cluster=ask.cluster, device=ask.device, settings=ask.settings,
            out=Path(folder) / "video.mp4",
        )  # fmt: skip
        gpu = torch.cuda.is_available() and ask.device != "cpu"
        peak = torch.cuda.max_memory_allocated() if gpu else status("VmHWM") - before
        simulated, found = compare_again(result.run_dir, load_cluster(ask.cluster))
    assert found.total.measured is not None and found.total.predicted is not None
    sent, expected = found.sent.measured, found.sent.predicted
    return Made(
        simulated.plan.degrees.describe(),
        found.total.measured,
        found.total.predicted,
        None if sent is None else int(sent),
        None if expected is None else int(expected),
        peak,
        simulated.prediction.memory[0],
    )


def status(key: str) -> float:
    """Bytes, of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def measure(ask: Ask, repeat: int) -> Made:
    """The median run of several, each in a process of its own."""
    command = [sys.executable, "-P", __file__, "--one", json.dumps(asdict(ask))]
    found = []
    for _ in range(repeat):
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(Made(**json.loads(run.stdout.splitlines()[-1])))
    found.sort(key=lambda made: made.seconds)
    middle = found[len(found) // 2]
    print(
        f"{ask.describe()} on {middle.degrees}: {middle.predicted:.3g} for {middle.seconds:.3g} s"
    )
    return middle


def legal(ask: Ask) -> list[dict[str, int]]:
    """All plans of a request with so many workers, in a process that stays small."""
    from longtake.launch.plan import candidates, read_question
    from longtake.scheduler.planner import Planner, Wish
    from longtake.scheduler.request import Cue

    question = read_question(
        [Cue(0.0, PROMPT)], cluster=ask.cluster, model=ask.model, seconds=ask.seconds, size=None,
        strategy=ask.strategy, steps=ask.steps, settings=ask.settings,
    )  # fmt: skip
    planner = Planner(
        question.request, question.spec, question.steps, question.cluster, question.costs
    )
    wish = Wish(workers=ask.workers, in_order=True)
    ((name, strategy),) = candidates(question, [ask.strategy]).items()
    found = planner.legal(name, strategy, wish)
    return [{axis: getattr(each.degrees, axis) for axis in AXES} for each in found]


def requests(arguments: argparse.Namespace) -> Iterator[Ask]:
    """Twelve of different kinds."""
    base = {"model": arguments.model, "workers": 2, "cluster": arguments.cluster,
            "device": arguments.device}  # fmt: skip
    for strategy in ("bidirectional", "causal", "cascade", "rolling", "dual", "clip"):
        if arguments.only and strategy not in arguments.only:
            continue
        yield Ask(strategy=strategy, seconds=arguments.seconds, **base)
        yield Ask(strategy=strategy, seconds=arguments.seconds / 2, guidance=3.0, **base)


def told(arguments: argparse.Namespace) -> Iterator[str]:
    """Every strategy on 1 and 2 workers."""
    yield (
        "| strategy | plan | predicted / measured, s | error | sent / predicted, bytes | "
        "memory predicted / measured |"
    )
    yield "|---|---|--:|--:|--:|--:|"
    errors, memory, exact = [], [], True
    rows = []
    for strategy in arguments.only or NAMES:
        for workers in (1, 2):
            ask = Ask(
                arguments.model, strategy, arguments.seconds, workers, arguments.cluster,
                device=arguments.device,
            )  # fmt: skip
            made = measure(ask, arguments.repeat)
            errors.append(made.predicted / made.seconds - 1)
            memory.append(made.footprint / made.peak - 1)
            exact &= made.sent == made.expected
            sent = "-" if made.sent is None else f"{made.sent} / {made.expected}"
            rows.append(
                f"| {strategy} | {made.degrees} | {made.predicted:.3g} / {made.seconds:.3g} | "
                f"{errors[-1]:+.0%} | {sent} | {made.footprint / 2**20:.0f} / "
                f"{made.peak / 2**20:.0f} MiB, {memory[-1]:+.0%} |"
            )
    yield from rows
    near = sum(abs(error) <= 0.15 for error in errors)
    held = sum(abs(error) <= 0.10 for error in memory)
    yield (
        f"\nWithin 15 % of the time: {near} of {len(errors)}, median "
        f"{statistics.median(errors):+.0%}. Bytes {'equal' if exact else 'DIFFER'}. Within 10 % of "
        f"the memory: {held} of {len(memory)}."
    )


def chosen(arguments: argparse.Namespace) -> Iterator[str]:
    """Each request by every legal plan, and the planner's choice among them."""
    yield "| request | the planner takes | it takes | the fastest | further |"
    yield "|---|---|--:|---|--:|"
    good = count = 0
    for ask in requests(arguments):
        every = [
            measure(Ask(**{**asdict(ask), "degrees": d}), arguments.repeat) for d in legal(ask)
        ]
        fastest = min(every, key=lambda made: made.seconds)
        taken = min(every, key=lambda made: made.predicted)
        further = taken.seconds / fastest.seconds - 1
        good, count = good + (further <= 0.10), count + 1
        yield (
            f"| {ask.describe()} | {taken.degrees} | {taken.seconds:.3g} s | {fastest.degrees}, "
            f"{fastest.seconds:.3g} s | {further:+.0%} |"
        )
    yield f"\nThe fastest, or within 10 % of it: {good} of {count}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", default="here.yaml")
    parser.add_argument("--model", default="tinyworld")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every video")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="STRATEGY")
    parser.add_argument("--note", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(asdict(run_here(Ask(**json.loads(arguments.one))))))
        return
    lines: Sequence[Any] = [
        "# Predicted against measured",
        f"\n`python benchmarks/foretold.py`, {time.strftime('%Y-%m-%d')}: {arguments.model}, "
        f"{arguments.seconds:g} s of video, under {Path(arguments.cluster).name}, medians of "
        f"{arguments.repeat}; {platform.processor() or platform.machine()}, Python "
        f"{platform.python_version()}, torch {version('torch')}.\n",
        *told(arguments),
        "\n## The planner's choice of two workers\n",
        *chosen(arguments),
    ]
    arguments.note.write_text("\n".join(lines) + "\n")
    print(f"written to {arguments.note}")


if __name__ == "__main__":
    main()
