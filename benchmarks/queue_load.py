"""The central scheduler under load: requests with deadlines on two workers, for real and simulated.

    python benchmarks/queue_load.py [--requests 200] [--load 0.8] [--cases 12]

First it measures what requests of each length take. Then requests of mixed length arrive by chance,
interactive ones and others, with deadlines; what really became of them is laid beside what the
queue's simulator makes of the same arrivals and the same times. The same with small cases, where
all is known at the start and the best possible can be computed. Writes benchmarks/queue_load.md,
which docs/queue.md shows.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

import torch

import longtake
from longtake.launch.central import Central
from longtake.launch.job_store import JobStore
from longtake.launch.jobs import Ask, Job, Status
from longtake.launch.local_fleet import LocalFleet
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.queue_simulator import Outcome, simulate
from longtake.scheduler.queue_state import JobView, Option, Priority
from longtake.scheduler.queue_traces import Asked, Trace, nodes
from longtake.scheduler.queue_yardsticks import most_in_time

PROMPT = "a large red circle bouncing around slowly on a gray background"
LENGTHS = (1.0, 2.0, 4.0)  # seconds of video
STEPS = 2
WORKERS = 2
INTERACTIVE = 0.4
BOUND = 0.7  # the share of batch jobs that have a deadline
SUBMITTING = 0.6  # seconds until the workers have begun
PAGE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Wish:
    """A request: when it comes, and when it should be through, in seconds from the start."""

    at: float
    length: float
    priority: Priority
    deadline: float | None


@dataclass(frozen=True)
class Served:
    """What became of a request; instants are seconds from the start, `took` is on a device."""

    id: str
    wish: Wish
    arrived: float
    started: float
    ended: float
    took: float

    @property
    def in_time(self) -> bool:
        return self.wish.deadline is None or self.ended <= self.wish.deadline


class Bench:
    """A central scheduler, and what its requests have taken."""

    def __init__(self, central: Central) -> None:
        self._central = central
        self._usual = {length: 1.0 for length in LENGTHS}

    def serve(self, wishes: Sequence[Wish]) -> list[Served]:
        """Have requests come at their times, and wait until all are through."""
        start = time.time()
        ids = []
        for wish in wishes:
            time.sleep(max(0.0, start + wish.at - time.time()))
            ids.append(self._submit(wish, start))
        return [self._await(id_, wish, start) for id_, wish in zip(ids, wishes, strict=True)]

    def measure(self) -> dict[str, float]:
        """What each length takes with all workers at work, the first of them aside."""
        self.serve([Wish(0.0, LENGTHS[-1], Priority.BATCH, None)] * WORKERS)  # loads the model
        for length in LENGTHS:
            served = self.serve([Wish(0.0, length, Priority.BATCH, None)] * 4 * WORKERS)
            self._usual[length] = median(each.took for each in served[WORKERS:])
        return {f"{length:g} s": usual for length, usual in self._usual.items()}

    def usual(self, length: float) -> float:
        """Seconds that a request of such a length takes."""
        return self._usual[length]

    def demand(self, draw: random.Random, count: int, load: float) -> list[Wish]:
        """Requests that come independently, for so large a share of what the workers can do."""
        rate = load * WORKERS / (sum(self._usual.values()) / len(LENGTHS))
        at, wishes = 0.0, []
        for _ in range(count):
            at += draw.expovariate(rate)
            length = draw.choice(LENGTHS)
            interactive = draw.random() < INTERACTIVE
            kind = Priority.INTERACTIVE if interactive else Priority.BATCH
            deadline = at + draw.uniform(2.0, 7.0 if interactive else 12.0) * self._usual[length]
            bound = interactive or draw.random() < BOUND
            wishes.append(Wish(at, length, kind, deadline if bound else None))
        return wishes

    def small_case(self, draw: random.Random, kind: Priority) -> list[Wish]:
        """Six with deadlines that are hard to meet, and first some that keep the workers busy until
        all are there."""
        first = [Wish(0.0, LENGTHS[-1], Priority.INTERACTIVE, None)] * WORKERS
        lengths = [draw.choice(LENGTHS) for _ in range(6)]
        start = self._usual[LENGTHS[-1]] + SUBMITTING
        return first + [
            Wish(0.0, length, kind, start + draw.uniform(1.2, 5.0) * self._usual[length])
            for length in lengths
        ]

    def _submit(self, wish: Wish, start: float) -> str:
        ask = Ask(((0.0, PROMPT),), seconds=wish.length, steps=STEPS, seed=1)
        deadline = None if wish.deadline is None else start + wish.deadline
        return self._central.submit(ask, priority=wish.priority, deadline=deadline).id

    def _await(self, id_: str, wish: Wish, start: float) -> Served:
        seen = 0
        while not (job := self._central.get(id_)).status.ended:
            seen = self._central.changed(id_, seen, 60.0)
        if job.status is not Status.COMPLETED:
            raise RuntimeError(f"{id_} is {job.status}: {job.error}")
        return served(job, wish, start)


def served(job: Job, wish: Wish, start: float) -> Served:
    """What became of a completed job."""
    assert job.started_at is not None and job.ended_at is not None
    times = (job.created_at - start, job.started_at - start, job.ended_at - start)
    return Served(job.id, wish, *times, job.held)


def replayed(found: Sequence[Served], bench: Bench) -> Outcome:
    """What the simulator makes of the same arrivals, if each takes as long as it really took."""
    asked = []
    for each in found:
        usual = bench.usual(each.wish.length)
        view = JobView(
            each.id,
            each.wish.priority,
            each.arrived,
            (Option(Degrees(), usual, memory=1.0),),
            each.wish.deadline,
        )
        blocks = round(each.wish.length * 4 / 3) + 1
        asked.append(Asked(view, blocks, pace=each.took / usual))
    return simulate(Trace(tuple(asked), nodes(1, WORKERS)))


def best_possible(found: Sequence[Served]) -> int:
    """How many deadlines somebody meets who tries every order of what these really took, from when
    the first of those that keep the workers busy is through."""
    begin = min(each.ended for each in found[:WORKERS])
    views = [
        JobView(
            each.id,
            each.wish.priority,
            begin,
            (Option(Degrees(), each.took, memory=1.0),),
            each.wish.deadline,
        )
        for each in found[WORKERS:]
    ]
    return most_in_time(views, WORKERS)


def order(found: Sequence[Served]) -> list[str]:
    """Ids as they were served."""
    return [each.id for each in sorted(found, key=lambda each: each.started)]


def same_order(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of pairs that two orders have alike."""
    place = {id_: at for at, id_ in enumerate(other)}
    pairs = [place[first] < place[second] for first, second in combinations(one, 2)]
    return sum(pairs) / len(pairs)


def goodput(found: Sequence[Served]) -> float:
    """The share of deadlines that were met."""
    bound = [each for each in found if each.wish.deadline is not None]
    return sum(each.in_time for each in bound) / len(bound)


def load_rows(bench: Bench, requests: int, loads: Sequence[float], seed: int) -> list[list[str]]:
    """A row for what really happened and one for the simulator, at each load."""
    rows = []
    for load in loads:
        found = bench.serve(bench.demand(random.Random(seed), requests, load))
        told = replayed(found, bench)
        waits = {kind: longest(found, kind) for kind in Priority}
        rows += [
            [f"{load:.0%}", "real", f"{goodput(found):.1%}", *map(seconds, waits.values()), ""],
            [
                f"{load:.0%}",
                "simulated",
                f"{told.goodput():.1%}",
                *(seconds(told.longest_wait(kind)) for kind in Priority),
                f"{same_order(order(found), told.order):.1%}",
            ],
        ]
        print(rows[-2], rows[-1], flush=True)
    return rows


def longest(found: Sequence[Served], priority: Priority) -> float:
    """Seconds that one of a class waited at most."""
    own = [each for each in found if each.wish.priority is priority]
    return max(each.ended - each.arrived - each.took for each in own)


def seconds(amount: float) -> str:
    return f"{amount:.1f}"


def small_cases(bench: Bench, cases: int, seed: int) -> str:
    """A sentence on few jobs whose best order can be computed."""
    draw, met, simulated, best, alike, pairs = random.Random(seed), 0, 0, 0, 0, []
    for case in range(cases):
        found = bench.serve(bench.small_case(draw, list(Priority)[case % 2]))
        told = replayed(found, bench)
        met += sum(each.in_time for each in found[WORKERS:])
        simulated += sum(record.in_time for record in told.records) - WORKERS
        best += best_possible(found)
        alike += order(found) == list(told.order)
        pairs.append(same_order(order(found), told.order))
    return SMALL.format(
        cases=cases,
        met=met,
        best=best,
        share=met / best,
        simulated=simulated,
        alike=alike,
        pairs=sum(pairs) / len(pairs),
    )


TEXT = """\
## The same for real, on two workers

`benchmarks/queue_load.py`: {requests} requests of {lengths} s of video ({steps} steps, tinyworld)
come by chance to a central scheduler with two runners, which keep the model from one to the next.
Such requests take {usual}. 40 % are interactive,
70 % of the others have a deadline, with the slack of above. Beside it, what the simulator makes of
the same arrivals and of the times that the requests really took, which it does not know before
either. Waits are in seconds; *same order*: the share of pairs of requests that were served in the
same order. All requests were completed."""

SMALL = """\
Small cases: six requests of one class, all there when the two workers are free, with deadlines at
1.2 to 5 times what each takes. In {cases} of them {met} deadlines were met, {simulated} by the
simulator, and {best} by somebody who knows the times and tries every order: {share:.1%} of the best
possible. In {alike} of {cases} the order of service was the simulator's; {pairs:.1%} of all pairs
had the same order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--loads", type=float, nargs="+", default=(0.8,))
    parser.add_argument("--cases", type=int, default=24, help="small cases")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="queue-load-") as name:
        folder = Path(name)
        fleet, store = LocalFleet(folder / "fleet", "cpu", WORKERS), JobStore(folder / "jobs")
        with store, Central(store, fleet, folder / "videos") as central:
            bench = Bench(central)
            usual = bench.measure()
            print(usual, flush=True)
            rows = load_rows(bench, args.requests, args.loads, args.seed)
            small = small_cases(bench, args.cases, args.seed)
    head = ["load", "run", "in time", "longest wait, interactive", "batch", "same order"]
    rule = ["---", "---", *["---:"] * 4]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
    text = TEXT.format(
        requests=args.requests,
        lengths=", ".join(f"{length:g}" for length in LENGTHS),
        steps=STEPS,
        usual=", ".join(f"{took:.2f} s ({length})" for length, took in usual.items()),
    )
    made = (
        f"Made by `{shlex.join(['python', *sys.argv])}` with longtake {longtake.__version__}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, on {os.cpu_count()} CPU "
        f"cores ({platform.machine()})."
    )
    PAGE.write_text("\n\n".join([text, table, small, made]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
