"""Replay traces over the central scheduler's policy and write docs/queue.md.

    python scripts/queue_study.py

Nothing but arithmetic: no GPU, no weights, a few minutes on one core. What was measured on real
workers is taken from benchmarks/queue_load.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import longtake
from longtake.scheduler.queue import decide
from longtake.scheduler.queue_simulator import Decide, Outcome, simulate
from longtake.scheduler.queue_state import Policy, Priority
from longtake.scheduler.queue_traces import Demand, Mishaps, Model, Trace, make_trace, nodes
from longtake.scheduler.queue_yardsticks import (
    backfilled,
    first_come_first_served,
    most_in_time,
)

ROOT = Path(__file__).resolve().parent.parent
DOCS, REAL = ROOT / "docs", ROOT / "benchmarks" / "queue_load.md"
LOADS = (0.4, 0.6, 0.8, 1.0, 1.2)
POLICIES: dict[str, Decide] = {
    "FIFO": first_come_first_served,
    "backfilling": backfilled,
    "Longtake": decide,
}
NODES, PER_NODE = 8, 8
ALL = 1e9  # jobs in a burst
MISHAPS = Mishaps(lost_every=900.0)

TEXT = """\
# Who has which devices, and when

A central scheduler has many jobs and many devices. Whenever something happens (a job arrives,
ends, or is lost with its group; a device comes or goes) it asks `scheduler/queue.py`, a pure
function of the instant, the jobs and the devices. This page says what that answers, what it
promises, and what became of replayed traces.

## The policy

- **Admission.** A job that no group of the fleet could ever run is refused at once, in one line
  that says what it needs and what there is. A deadline that can't be met any more is told; the
  job stays.
- **Order.** Interactive jobs before batch jobs. Within a class the earliest deadline first, then
  jobs without one, or without hope of it, the oldest first. If not all deadlines can be met, the
  job that takes most work is given up for the sake of the others (Moore and Hodgson), until there
  is room.
- **How many devices.** A job brings options: degrees, seconds and memory. Several plans of all
  that wait are made, from as little work as each deadline allows to ever more devices; the one in
  which most are in time counts, then the one with the least sum of ends. Options that waste more
  than a fifth of their work are taken only where somebody would else be late, because they leave
  nothing for who comes next; a job that is alone on the fleet gets the fastest one. A job that
  has blocks in the journal keeps its degrees, because bits depend on them; if the fleet has
  become too small for these, several ranks share a device, where memory and the backend allow.
- **Which devices.** One node if possible, the one whose hole it fits best, so that large holes
  stay for large groups; nobody is put on several nodes where waiting for one is faster. A group
  goes at the pace of its slowest device and is not mixed if that costs time. Devices that are
  about to leave are emptied at a tick, {drain:g} s before.
- **Backfilling.** The first {reserved} that wait have places in time. Whoever comes later may run
  before them, in the holes that they leave, but delays none.
- **Preemption.** A batch job makes room for an interactive one that can't start now and would be
  late or has no deadline, and for a batch job that would be late, if fewer are late then. It
  stops at a tick and keeps its blocks. Nothing makes room that would be through sooner than
  starting it again takes, that has aged, or that is not needed. Interactive jobs never do.
- **Ageing.** A job that has waited {patience:g} s in all has aged. It comes before all others
  while aged jobs have less than {share:.0%} of the devices, is reserved for, and is not preempted
  any more.

## What is guaranteed

Let P be the patience, S the longest time that any group holds its devices, and n the number of
jobs that have aged before this one and still wait then. Whatever else arrives, a job waits at
most

    P + 2 (n + 1) S

seconds in all, as long as runs take no longer than predicted, no device is lost, and the fleet
has a group for each of these jobs. The proof is in `scheduler/queue_order.py`; a property test
holds random traces and a continuous interactive load against it. The bound is relative to n,
because no policy bounds the wait of jobs that are asked for faster than they can be made.
"""


def policies(trace: Trace) -> dict[str, tuple[Outcome, float]]:
    """What becomes of a trace, and the CPU seconds that took."""
    found = {}
    for name, ask in POLICIES.items():
        began = time.process_time()
        outcome = simulate(trace, ask)
        found[name] = outcome, time.process_time() - began
    return found


def load_rows(requests: int, seeds: int) -> Iterator[list[str]]:
    """Medians over some traces of each load."""
    for load in LOADS:
        demand = Demand(load=load, burst=4.0, error=0.1)
        traces = [
            make_trace(seed, requests, nodes(NODES, PER_NODE), demand, MISHAPS)
            for seed in range(seeds)
        ]
        replayed = [policies(trace) for trace in traces]
        for name in POLICIES:
            outcomes = [each[name][0] for each in replayed]
            cells = [
                *(
                    f"{median(o.goodput(p) for o in outcomes):.1%}"
                    for p in (None, Priority.INTERACTIVE, Priority.BATCH)
                ),
                f"{median(o.utilisation for o in outcomes):.0%}",
                *(
                    f"{max(o.longest_wait(p) for o in outcomes) / 60:.0f}"
                    for p in (Priority.INTERACTIVE, Priority.BATCH)
                ),
                f"{median(sum(r.preempted for r in o.records) for o in outcomes):.0f}",
                f"{median(each[name][1] for each in replayed):.1f}",
            ]
            row = [f"{load:.0%}", name, *cells]
            print(" | ".join(row), flush=True)
            yield row


def small_rows(cases: int) -> Iterator[list[str]]:
    """Few jobs on few devices, against a clairvoyant who tries everything."""
    for known, burst in (("all known at the start", ALL), ("arriving unforeseen", 1.0)):
        for priority in ("batch", "interactive"):
            for options, most in (("one device", 1), ("any number", PER_NODE)):
                interactive = float(priority == "interactive")
                cells = [
                    small_cell(cases, Demand(burst=burst, interactive=interactive), most, slack)
                    for slack in (2.0, 4.0, 8.0)
                ]
                row = [known, priority, options, *cells]
                print(" | ".join(row), flush=True)
                yield row


def small_cell(cases: int, demand: Demand, most: int, slack: float) -> str:
    """Two to five jobs on one to four devices."""
    met = best = 0
    for seed in range(cases):
        devices = 1 + seed // 4 % 4
        model = Model(cost=4.0, memory=1.0, overhead=0.08, most=min(most, devices))
        asked = replace(
            demand,
            load=1.0,
            lengths=(2.0, 20.0),
            slack=(1.0, slack),
            bound=1.0,
            restore=1.0,
            models=(model,),
        )
        trace = make_trace(seed, 2 + seed % 4, nodes(1, devices), asked)
        met += sum(record.in_time for record in simulate(trace).records)
        best += most_in_time([each.job for each in trace.asked], len(trace.devices))
    return f"{met / best:.1%}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [
        "---" if head in ("load", "policy", "jobs", "class", "options") else "---:"
        for head in heads
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *rows])


def page(requests: int, seeds: int, cases: int) -> str:
    """The page."""
    policy = Policy()
    command = shlex.join(["python", "scripts/queue_study.py", *sys.argv[1:]])
    made = (
        f"Made by `{command}` with longtake {longtake.__version__}, Python "
        f"{platform.python_version()}, on one of {os.cpu_count()} CPU cores ({platform.machine()})."
    )
    text = TEXT.format(
        drain=policy.drain,
        reserved=policy.reserved,
        patience=policy.patience,
        share=policy.aged_share,
    )
    heads = ["load", "policy", "in time", "interactive", "batch", "utilisation"]
    heads += ["longest wait, interactive (min)", "batch (min)", "preempted", "CPU s"]
    loads = table(heads, list(load_rows(requests, seeds)))
    small = table(
        ["jobs", "class", "options", "slack to 2", "to 4", "to 8"], list(small_rows(cases))
    )
    return "\n\n".join(
        [
            text.rstrip(),
            LOAD_TEXT.format(requests=requests, seeds=seeds),
            loads,
            SMALL_TEXT.format(cases=cases),
            small,
            made,
            REAL.read_text("utf-8").rstrip(),
        ]
    )


LOAD_TEXT = """\
## Load against goodput, on 64 devices

{requests} requests on eight nodes of eight: two models of 4 and 30 device seconds per second of
video, 5 to 120 seconds long, 40 % interactive, in bursts of four on average; predictions are off
by 10 %, and every 15 minutes a device fails for ten, half of the times with a notice of two.
Interactive deadlines leave 2 to 7 times what the fastest option takes, those of batch jobs 2 to
12 times; 30 % of these have none. The load counts each job on as few devices as it can run on;
more devices are more work, so that utilisation is higher. Medians of {seeds} traces, longest
waits of all; *in time*: the share of jobs with a deadline that met it; *CPU s*: for all decisions
of a trace. *FIFO* starts one after another in order of arrival, each with the option that is
through soonest. *Backfilling* is the same order with this policy's places and options, without
classes, deadlines and preemption."""

SMALL_TEXT = """\
## Against the best possible

{cases} random cases for each cell, two to five jobs on one to four devices, asking for all that
these can do. Deadlines leave at least once and at most so many times what the fastest option
takes. The share of the deadlines that a clairvoyant meets who knows all arrivals and tries every
order and option, but interrupts nobody. What is known at the start is nearly always solved as
well. Batch jobs that arrive unforeseen are too, by preemption, and now and then better. With
interactive jobs that is not so: one that has begun is never interrupted, whatever arrives a moment
later, and the more devices it took to be through soon, the more that costs. No choice of how many
devices it gets did better here: with as few as it needs, as many deadlines are missed."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the policy of the central scheduler.")
    parser.add_argument("--requests", type=int, default=1000, help="of each trace")
    parser.add_argument("--seeds", type=int, default=3, help="traces for each load")
    parser.add_argument("--cases", type=int, default=400, help="small cases for each cell")
    args = parser.parse_args()
    text = page(args.requests, args.seeds, args.cases)
    (DOCS / "queue.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
