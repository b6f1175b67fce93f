"""Does a cluster lose work? Twelve mixed requests from a second process, and faults all the while.

    python benchmarks/survival.py --seed 1 [--hosts] [--faults 30] [--requests 12] [--devices 4]

A central scheduler in a process of its own serves them on devices of this machine or, with
`--hosts`, of two hosts that Ray makes one cluster: network namespaces with a link between them,
which takes root. At moments and of kinds that the seed draws, processes are killed, stopped for 20
seconds and let go on, or slowed down; a host is lost, the link is cut, a disk is filled. At the end
every video must be, byte by byte, that of a run that nothing happened to, and no block may have
been denoised again after it was finished. Prints the faults and what came of them; exits with 1 if
work was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from survival_faults import (
    HOST_KINDS,
    KINDS,
    Faults,
    Site,
    ThisMachine,
    TwoHosts,
    this_machine,
    two_hosts_with_ray,
)
from survival_scheduler import Asked, Scheduler


def requests(draw: random.Random, devices: int) -> list[Asked]:
    """Twelve of different lengths, strategies and plans, two of them of several workers."""
    return [
        Asked(6.0, draw.randrange(1000), cues=2),
        Asked(4.0, draw.randrange(1000), steps=16),
        Asked(6.0, draw.randrange(1000), strategy="rolling", steps=5),
        Asked(5.0, draw.randrange(1000), cues=2, workers=2),
        Asked(4.0, draw.randrange(1000), strategy="cascade"),
        Asked(3.0, draw.randrange(1000), priority="interactive"),
        Asked(8.0, draw.randrange(1000), cues=3),
        Asked(3.0, draw.randrange(1000), strategy="stream", steps=4),
        Asked(4.0, draw.randrange(1000), strategy="bidirectional", steps=12),
        Asked(4.0, draw.randrange(1000), strategy="deep", priority="interactive"),
        Asked(4.0, draw.randrange(1000), steps=12, workers=devices),
        Asked(5.0, draw.randrange(1000), settings=("strategy.window=9",)),
    ]


@dataclass
class Work:
    """What the journals, and the news of runners, tell of the blocks of all jobs.

    Attributes:
        finished: blocks that were.
        twice: of these, those that were more than once.
        again: blocks that had begun when their group was lost or stopped, and were begun again.
        most: of these, how many in one group.
    """

    finished: int = 0
    twice: int = 0
    again: int = 0
    most: int = 0
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, job: dict[str, Any], begun: dict[int, int]) -> None:
        """`begun` is the last block that each epoch has begun."""
        path = Path(job["folder"]) / "video.run" / "journal.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        made = [(line["block"], line["epoch"]) for line in lines if "block" in line]
        twice = [block for block, times in Counter(b for b, _ in made).items() if times > 1]
        if twice:
            self.wrong[job["id"]].append(f"blocks {twice} were finished more than once")
        if len(made) - len(twice) != job["blocks"]:
            self.wrong[job["id"]].append(f"{len(made)} of {job['blocks']} blocks are there")
        self.finished += len(made)
        self.twice += len(twice)
        for epoch, last in begun.items():
            kept = sum(by <= epoch for _, by in made)
            self.again += max(0, last + 1 - kept)
            self.most = max(self.most, last + 1 - kept)


def compare(job: dict[str, Any], asked: Asked, alone: Path) -> list[str]:
    """What is wrong with a job, compared with the same video made in one go."""
    from longtake.launch.api import generate

    if job["status"] != "completed":
        return [f"it is {job['status']}: {job['error']}"]
    generate(
        asked.prompt,
        seconds=asked.seconds,
        seed=asked.seed,
        strategy=asked.strategy,
        steps=asked.steps,
        workers=asked.workers,
        settings=asked.settings,
        out=alone,
        overwrite=True,
    )
    same = (Path(job["folder"]) / "video.mp4").read_bytes() == alone.read_bytes()
    return [] if same else ["its bytes differ"]


def judge(
    scheduler: Scheduler, jobs: Sequence[dict[str, Any]], asked: Sequence[Asked], logs: Path
) -> Work:
    """What became of the jobs."""
    begun: dict[str, dict[int, int]] = defaultdict(dict)
    for line in scheduler.notes.read_text().splitlines():
        told = json.loads(line)
        begun[told["job"]][told["epoch"]] = told["block"]
    work = Work()
    for job, each in zip(jobs, asked, strict=True):
        wrong = compare(job, each, logs / "alone.mp4")
        if wrong:
            work.wrong[job["id"]] += wrong
        else:
            work.add(job, begun[job["id"]])
    return work


def trial(options: argparse.Namespace, site: Site, logs: Path) -> bool:
    """One seed; returns whether all survived, and prints what came of it."""
    draw = random.Random(options.seed)
    asked = [
        replace(each, seconds=options.times * each.seconds)
        for each in requests(draw, options.devices)[: options.requests]
    ]
    kinds = [kind for kind in options.kinds or site.kinds if kind in site.kinds]
    scheduler = site.scheduler
    ids = [scheduler.submit(each) for each in asked]
    faults, start, begun = Faults(draw, site, kinds), time.monotonic(), False
    while any(job["ended_at"] is None for job in scheduler.jobs()):
        if time.monotonic() - start > options.limit:
            break
        time.sleep(draw.uniform(*options.pause))
        begun = begun or any(job["blocks_done"] for job in scheduler.jobs())
        if begun and faults.done.total() < options.faults:
            faults.strike()
    took = time.monotonic() - start
    found = {job["id"]: job for job in scheduler.jobs()}
    scheduler.close()
    work = judge(scheduler, [found[id_] for id_ in ids], asked, logs)
    for id_, wrong in work.wrong.items():
        print(f"{id_}: {'; '.join(wrong)}")
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(faults.done.items()))
    epochs = sum(job["epoch"] for job in found.values())
    print(
        f"seed {options.seed}: {len(asked) - len(work.wrong)} of {len(asked)} videos are whole and "
        f"the same after {faults.done.total()} faults ({told}); {epochs} groups in {took:.0f} s; "
        f"{work.finished} blocks finished, {work.twice} of them twice; {work.again} that had begun "
        f"were begun again, {work.most} of a group at most"
    )
    return not work.wrong


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hosts", action="store_true", help="on two hosts of a Ray cluster")
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--times", type=float, default=1.0, help="as long as usual, all of them")
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, *HOST_KINDS), metavar="KIND")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all to be through")
    parser.add_argument("--pause", type=float, nargs=2, default=(2.0, 8.0), metavar=("MIN", "MAX"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # hosts and disks are taken down then
    logs = Path(tempfile.mkdtemp(prefix="survival-"))
    with ExitStack() as end:
        make = two_hosts_with_ray if options.hosts else this_machine
        site: ThisMachine | TwoHosts = end.enter_context(make(logs, options.devices))
        survived = trial(options, site, logs)
        if not survived:
            shutil.copytree(site.scheduler.folder, logs / "cluster")
    if survived:
        shutil.rmtree(logs)
    else:
        print(f"logs are in {logs}")
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
