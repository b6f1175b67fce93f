"""Predicted against measured, in real runs; and how good the planner's choice of two workers is.

    python benchmarks/foretold.py MODEL --calibrate     # writes foretold-MODEL-1.yaml and -2.yaml
    python benchmarks/foretold.py MODEL [--part told|chosen|page] [--only causal dual ...]

Every strategy is run on one worker and by every legal plan of two (`told`); 12 requests, six of
them guided, are run by every legal plan of two (`chosen`), to compare the planner's choice with.
MODEL is `tinyworld`, or `wider`: the same with a transformer of random weights, whose tokens take 9
times as many FLOPs. Each worker is a process of its own, forked from one that has the libraries.
What runs took is kept in foretold.json, so parts can be measured at different times; foretold.md is
written from that and from what is predicted now.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.resources import files
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import Empty
from statistics import median
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from live_memory import LiveMemory, build

from longtake.launch.calibrate import measure_cluster, write_cluster
from longtake.launch.cli import app
from longtake.launch.comparison import GREETINGS
from longtake.launch.manifest import read_manifest
from longtake.launch.plan import Question, candidates, read_question
from longtake.launch.session import quiet_libraries
from longtake.launch.simulate import choose_degrees, run_simulation
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.planner import Planner, Wish
from longtake.scheduler.request import Cue

PROMPT = "a large red circle bouncing around slowly on a gray background"
NAMES = (
    "bidirectional", "causal", "cascade", "rolling", "chunks", "buffer", "stream", "dual", "clip",
    "windows", "keyframes", "deep", "memflow",
)  # fmt: skip
REQUESTED = ("bidirectional", "causal", "cascade", "rolling", "dual", "clip")
AXES = ("cfg", "stages", "clip", "ring", "ulysses")
MOST_SECONDS = 300.0  # that a run may take
KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_suffix(".md")
BUILT = Path(tempfile.gettempdir()) / "longtake-foretold"  # what can be made again


@dataclass(frozen=True)
class Setting:
    """A model, and how large and how long its videos are; `changed` is of its transformer."""

    name: str
    size: str
    seconds: float
    steps: int = 4
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        return [f"model.folder={json.dumps(str(self.folder))}"] if self.changed else []

    @property
    def folder(self) -> Path:
        """Where its weights are, if they are not tinyworld's; they are made if need be."""
        folder = BUILT / self.name
        if not folder.exists():
            packaged = Path(str(files("longtake.models"))) / "tinyworld"
            shutil.copytree(packaged, folder, ignore=shutil.ignore_patterns("transformer"))
            torch.manual_seed(0)
            config = WanTransformer3DModel.load_config(packaged / "transformer")
            made = WanTransformer3DModel.from_config({**config, **self.changed})
            made.save_pretrained(folder / "transformer")
        return folder


SETTINGS = {
    "tinyworld": Setting("tinyworld", "64x64", 24.0),
    "wider": Setting(
        "wider", "128x128", 4.0,
        changed={"num_layers": 8, "num_attention_heads": 12, "ffn_dim": 1536},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """A run. `degrees` are all settled, or empty where the planner is to choose."""

    strategy: str
    seconds: float
    workers: int
    guidance: float = 1.0
    degrees: dict[str, int] = field(default_factory=dict)

    def settings(self, setting: Setting) -> list[str]:
        return [
            *setting.settings,
            f"guidance={self.guidance}",
            *(f"parallel.{name}={degree}" for name, degree in self.degrees.items()),
        ]

    def describe(self) -> str:
        guided = ", guided" if self.guidance > 1 else ""
        return f"{self.strategy}, {self.seconds:g} s{guided}"

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Made:
    """What a run took: `memory` in bytes by rank, `sent` None for one worker."""

    seconds: float
    sent: int | None
    memory: tuple[int, ...]
    kinds: dict[str, float]


def question_of(ask: Ask, setting: Setting, cluster: str) -> Question:
    return read_question(
        [Cue(0.0, PROMPT)], cluster=cluster, model="tinyworld", seconds=ask.seconds,
        size=setting.size, strategy=ask.strategy, steps=setting.steps,
        settings=ask.settings(setting), workers=ask.workers,
    )  # fmt: skip


def legal(ask: Ask, question: Question) -> list[Ask]:
    """All plans of a request with so many workers."""
    planner = Planner(
        question.request, question.spec, question.steps, question.cluster, question.costs
    )
    wish = Wish(workers=ask.workers, in_order=True)
    ((name, strategy),) = candidates(question, [ask.strategy]).items()
    found = planner.legal(name, strategy, wish)
    return [
        replace(ask, degrees={axis: getattr(each.degrees, axis) for axis in AXES}) for each in found
    ]


def take_part(
    ask: Ask, setting: Setting, rank: int, port: int, counter: Path, told: multiprocessing.Queue
) -> None:
    """One worker of a run, in a process that ends next; rank 0 tells what it took."""
    quiet_libraries()
    memory, world = LiveMemory(counter), {}
    if ask.workers > 1:
        world = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ask.workers),
            "LOCAL_WORLD_SIZE": str(ask.workers), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    words = ["generate", PROMPT, "--device", "cpu", "--strategy", ask.strategy]
    words += ["--seconds", str(ask.seconds), "--steps", str(setting.steps), "--size", setting.size]
    words += [word for each in ask.settings(setting) for word in ("--set", each)]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        out, run = Path(folder) / "video.mp4", None
        ended = CliRunner().invoke(app, [*words, "--out", str(out)], env=world)
        assert ended.exit_code == 0, ended.output
        if rank == 0:
            manifest = read_manifest(out.with_suffix(".run"))
            assert manifest is not None
            run = manifest["runs"][-1]
    told.put((rank, memory.most, run))


def make(ask: Ask, setting: Setting, counter: Path, context: ForkServerContext) -> Made:
    """Make a run."""
    told = context.Queue()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    processes = [
        context.Process(target=take_part, args=(ask, setting, rank, port, counter, told))
        for rank in range(ask.workers)
    ]
    for process in processes:
        process.start()
    try:
        found = sorted(told.get(timeout=MOST_SECONDS) for _ in processes)
    except Empty:
        raise SystemExit(f"{ask.describe()} by {ask.degrees} did not end") from None
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    run = found[0][2]
    sent = run.get("sent")
    if sent is not None:
        sent = sum(size for name, size in sent.items() if not name.endswith(GREETINGS))
    kinds = {kind: each["seconds"] for kind, each in run["timeline"].items()}
    if run.get("waited") is not None:
        kinds["communication"] = run["waited"]
    return Made(run["seconds"], sent, tuple(most for _, most, _ in found), kinds)


class Bench:
    """Runs that are kept: what is measured again is added to what was."""

    def __init__(self, setting: Setting, clusters: Path) -> None:
        self.setting, self._clusters = setting, clusters
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        self._kept: dict[str, list[dict[str, Any]]] = kept.get(setting.name, {})

    def cluster(self, workers: int) -> str:
        """The file that describes this machine with so many workers."""
        return str(self._clusters / f"foretold-{self.setting.name}-{workers}.yaml")

    def question(self, ask: Ask) -> Question:
        return question_of(ask, self.setting, self.cluster(ask.workers))

    def runs(self, ask: Ask) -> list[Made]:
        return [Made(**each) for each in self._kept.get(ask.key, [])]

    def median(self, ask: Ask) -> Made | None:
        """The latest run, with the median seconds of all."""
        runs = self.runs(ask)
        return replace(runs[-1], seconds=median(run.seconds for run in runs)) if runs else None

    def keep(self, ask: Ask, made: Made) -> None:
        self._kept.setdefault(ask.key, []).append(asdict(made))
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps({**kept, self.setting.name: self._kept}, indent=1) + "\n")

    def told(self, only: Sequence[str] | None) -> Iterator[Ask]:
        """Every strategy on one worker, and by every legal plan of two."""
        for strategy in only or NAMES:
            for workers in (1, 2):
                ask = Ask(strategy, self.setting.seconds, workers)
                yield from legal(ask, self.question(ask))

    def requests(self, only: Sequence[str] | None) -> Iterator[Ask]:
        """Twelve of different kinds."""
        for strategy in only or REQUESTED:
            yield Ask(strategy, self.setting.seconds, 2)
            yield Ask(strategy, self.setting.seconds / 2, 2, guidance=3.0)

    def chosen(self, only: Sequence[str] | None) -> Iterator[Ask]:
        """Every legal plan of these."""
        for ask in self.requests(only):
            yield from legal(ask, self.question(ask))


def measure(bench: Bench, asks: Sequence[Ask], repeat: int) -> None:
    """Make runs until each was made so often, all once before any is made again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    counter = build(BUILT / "counter")
    for turn in range(repeat):
        for ask in asks:
            if len(bench.runs(ask)) > turn:
                continue
            made = make(ask, bench.setting, counter, context)
            bench.keep(ask, made)
            predicted = run_simulation(bench.question(ask)).prediction.seconds
            print(
                f"{ask.describe()} by {plan_of(ask)}: {predicted:.3g} for {made.seconds:.3g} s "
                f"({predicted / made.seconds - 1:+.0%})",
                flush=True,
            )


def table_told(bench: Bench) -> Iterator[str]:
    yield (
        "| strategy | plan | predicted / measured, s | error | sent / predicted, bytes | "
        "memory predicted / measured, MiB | error |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|"
    errors, memory, exact = [], [], True
    for ask in bench.told(None):
        made = bench.median(ask)
        if made is None:
            continue
        found = run_simulation(bench.question(ask))
        errors.append(found.prediction.seconds / made.seconds - 1)
        expected, sent = found.prediction.bytes, "-"
        if made.sent is not None:
            exact &= made.sent == expected
            sent = f"{made.sent} / {expected}"
        pairs = zip(found.prediction.memory, made.memory, strict=True)
        each = [told / held - 1 for told, held in pairs]
        memory.append(max(each, key=abs))
        yield (
            f"| {ask.strategy} | {found.plan.degrees.describe()} | "
            f"{found.prediction.seconds:.3g} / {made.seconds:.3g} | {errors[-1]:+.0%} | {sent} | "
            f"{mebibytes(found.prediction.memory)} / {mebibytes(made.memory)} | {memory[-1]:+.0%} |"
        )
    if errors:
        near = sum(abs(error) <= 0.15 for error in errors)
        held = sum(abs(error) <= 0.10 for error in memory)
        yield (
            f"\nWithin 15 % of the time: {near} of {len(errors)}, median "
            f"{median(errors):+.1%}. Bytes {'equal' if exact else 'DIFFER'}. Within "
            f"10 % of the memory of every worker: {held} of {len(memory)}."
        )


def table_chosen(bench: Bench) -> Iterator[str]:
    yield "| request | the planner takes | it takes | the fastest | further | of plans |"
    yield "|---|---|--:|---|--:|--:|"
    good = count = 0
    for request in bench.requests(None):
        question = bench.question(request)
        made = [(ask, bench.median(ask)) for ask in legal(request, question)]
        known = [(run.seconds, plan_of(ask)) for ask, run in made if run is not None]
        if len(known) < len(made):
            continue
        plan = choose_degrees(question).describe()
        taken = next(seconds for seconds, name in known if name == plan)
        fastest, best = min(known)
        good, count = good + (taken <= 1.1 * fastest), count + 1
        yield (
            f"| {request.describe()} | {plan} | {taken:.3g} s | {best}, {fastest:.3g} s | "
            f"{taken / fastest - 1:+.0%} | {len(known)} |"
        )
    yield f"\nThe fastest, or within 10 % of it: {good} of {count}."


def mebibytes(workers: Sequence[int]) -> str:
    return ", ".join(f"{held / 2**20:.1f}" for held in workers)


def plan_of(ask: Ask) -> str:
    return Degrees(**ask.degrees).describe()


def calibrate(bench: Bench) -> None:
    """Describe this machine with one worker, and with two."""
    for workers in (1, 2):
        out, setting = Path(bench.cluster(workers)), bench.setting
        cluster = measure_cluster(
            out.stem, "tinyworld", workers, "cpu", size=setting.size, settings=setting.settings
        )
        write_cluster(cluster, f"This machine with {workers}, for {setting.name}.", out)


def write_page(clusters: Path) -> None:
    lines = [
        "# Predicted against measured\n",
        "    python benchmarks/foretold.py MODEL --calibrate",
        "    python benchmarks/foretold.py MODEL",
        f"\n{os.cpu_count()} cores ({platform.machine()}), {platform.system()} "
        f"{platform.release()}; Python {platform.python_version()}, torch {version('torch')}; "
        f"{time.strftime('%Y-%m-%d')}.",
    ]
    for setting in SETTINGS.values():
        bench = Bench(setting, clusters)
        if Path(bench.cluster(2)).is_file():
            lines += [f"\n## {setting.name}, {setting.size}, {setting.seconds:g} s of video\n"]
            lines += [*table_told(bench), "\n### The planner's choice of two workers\n"]
            lines += table_chosen(bench)
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SETTINGS)
    parser.add_argument("--calibrate", action="store_true", help="measure this machine, no more")
    parser.add_argument("--part", choices=("told", "chosen", "page"), help="else both")
    parser.add_argument("--only", nargs="*", metavar="STRATEGY")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--clusters", type=Path, default=Path(), help="a folder for descriptions")
    arguments = parser.parse_args()
    bench = Bench(SETTINGS[arguments.model], arguments.clusters)
    if arguments.calibrate:
        calibrate(bench)
        return
    if arguments.part in (None, "told"):
        measure(bench, list(bench.told(arguments.only)), arguments.repeat)
    if arguments.part in (None, "chosen"):
        measure(bench, list(bench.chosen(arguments.only)), arguments.repeat)
    write_page(arguments.clusters)


if __name__ == "__main__":
    main()
