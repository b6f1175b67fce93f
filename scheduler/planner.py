"""Which plan to take, what it will cost, and why another is impossible.

Every strategy with every share of the devices that is legal is looked at: first whether it fits the
memory, then the least that it can take. The most promising are simulated, until no other one can be
better than the best of those. So that one is the best by simulation, not by a rule of thumb; those
told after it are the best of the others that were simulated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from heapq import heapify, heappop, heappush
from itertools import chain, count
from math import inf
from typing import Any

from longtake.scheduler.bounds import Bound, bound, ideal
from longtake.scheduler.cluster import Cluster, Node
from longtake.scheduler.degrees import AXES, Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.fitting import Shortage
from longtake.scheduler.forecast import Outlook
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import Plan
from longtake.scheduler.prediction import Prediction
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.simulator import Job
from longtake.scheduler.simulator_efforts import ClusterEfforts, WorkerCosts
from longtake.scheduler.task import Kind
from longtake.scheduler.uneven import suit_stages

# Ever better bounds: of so many workers of each lane, and for so many shapes of tasks.
LOOKS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, None))

MakeCosts = Callable[[Strategy, Degrees, Cluster], WorkerCosts]


class Goal(StrEnum):
    """What is wanted least, or most."""

    LATENCY = "latency"  # the whole video soonest
    THROUGHPUT = "throughput"  # most videos by all devices, which share them out
    FIRST_FRAME = "first-frame"  # the first frame soonest
    MEMORY = "memory"  # the least memory of a device
    ENERGY = "energy"  # the least energy of the devices that take part


@dataclass(frozen=True)
class Wish:
    """What a plan is to be good for.

    Attributes:
        label: `exact` forbids whatever computes something else.
        deadline: seconds until the whole video is there, at most.
        best: how many plans are told.
        simulated: how many are simulated at most.
        workers: take exactly so many; None: as many as are best.
        degrees: those that are settled, and `stage_layers`, by name; None or absent if not.
        in_order: the workers' devices are the cluster's first ones, as they stand.
    """

    goal: Goal = Goal.LATENCY
    label: str | None = None
    deadline: float | None = None
    best: int = 5
    simulated: int = 40
    workers: int | None = None
    degrees: Mapping[str, Any] = field(default_factory=dict)
    in_order: bool = False

    def __post_init__(self) -> None:
        if self.label not in (None, "exact", "rounding", "lossy"):
            raise UserError(f"a label is exact, rounding or lossy, not {self.label!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise UserError(f"the deadline must be more than 0 s, got {self.deadline:g}")
        if self.best < 1:
            raise UserError(f"at least 1 plan is told, got {self.best}")

    def allows(self, degrees: Degrees) -> bool:
        """Whether all that is settled is so."""
        return all(self.degrees.get(name) in (None, getattr(degrees, name)) for name in AXES)


ANYTHING = Wish()


@dataclass(frozen=True)
class Candidate:
    """A legal plan, on the first devices of a cluster."""

    name: str
    strategy: Strategy
    degrees: Degrees
    cluster: Cluster

    def describe(self) -> str:
        """Such as `causal, cfg 2 x ulysses 4`."""
        return f"{self.name}, {self.degrees.describe()}"


@dataclass(frozen=True)
class Choice:
    """A plan and what it is predicted to take."""

    candidate: Candidate
    prediction: Prediction


@dataclass(frozen=True)
class Rejected:
    """Plans that are impossible, or not wanted, all for one reason; `degrees` are an example."""

    name: str
    degrees: Degrees | None
    reason: str
    plans: int = 1

    def describe(self) -> str:
        """One line."""
        where = self.name if self.degrees is None else f"{self.name}, {self.degrees.describe()}"
        more = f" (and {self.plans - 1} more)" if self.plans > 1 else ""
        return f"{where}{more}: {self.reason}"


@dataclass(frozen=True)
class Advice:
    """What a search found: the best plan first. `fitting` fit, and `simulated` were simulated."""

    best: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]
    fitting: int
    simulated: int


class Planner:
    """Searches the plans of one request on one cluster."""

    def __init__(
        self,
        request: Request,
        spec: ModelSpec,
        steps: int,
        cluster: Cluster,
        make_costs: MakeCosts,
    ) -> None:
        """`make_costs` reckons for a strategy whose ranks are the first devices of a cluster."""
        self._request, self._spec, self._steps = request, spec, steps
        self._cluster, self._make_costs = cluster, make_costs
        self._branches = 2 if request.guidance > 1 else 1
        self._rejected: dict[tuple[str, str], tuple[Rejected, float]] = {}

    def search(self, strategies: Mapping[str, Strategy], wish: Wish) -> Advice:
        """The best plans.

        Raises:
            UserError: the request has no end.
        """
        if self._request.seconds is None:
            raise UserError("a plan needs an end; give the length of the video in seconds")
        self._rejected.clear()
        outlooks: dict[str, Outlook] = {}
        candidates: list[Candidate] = []
        for name, strategy in strategies.items():
            job = Job(strategy, self._request, self._spec, self._steps)
            if wish.label == "exact" and strategy.label != "exact":
                self._reject(name, None, f"it is {strategy.label}, and only exact is wanted")
                continue
            try:
                outlooks[name] = Outlook(job)
            except UserError as error:
                self._reject(name, None, str(error))
                continue
            candidates += self.legal(name, strategy, wish)
        return self._choose(candidates, outlooks, wish)

    def legal(self, name: str, strategy: Strategy, wish: Wish = ANYTHING) -> Iterator[Candidate]:
        """All plans of a strategy that the model and the strategy allow, whatever they take."""
        clips = strategy.clips(self._request, self._spec)
        own = wish.degrees.get("stage_layers")
        for world in [wish.workers] if wish.workers else worlds(len(self._cluster.devices)):
            there = [self._cluster] if wish.in_order else orders(self._cluster, world)
            for degrees in filter(wish.allows, all_degrees(world)):
                try:
                    degrees = replace(degrees, stage_layers=own)
                    degrees.check(self._spec, self._request.guidance, clips)
                except UserError as error:
                    self._reject(name, degrees, str(error))
                    continue
                for cluster in there:
                    suited = degrees
                    if own is None and degrees.stages > 1:
                        suited = self._suit(strategy, degrees, cluster)
                    yield Candidate(name, strategy, suited, cluster)

    def _suit(self, strategy: Strategy, degrees: Degrees, cluster: Cluster) -> Degrees:
        if len({device.name for device in cluster.devices[: degrees.world]}) == 1:
            return degrees
        schedule = Job(strategy, self._request, self._spec, self._steps).schedule()
        task = next(task for task in schedule if task.kind is Kind.DENOISE)

        def costs_of(split: Degrees) -> WorkerCosts:
            return self._make_costs(strategy, split, cluster)

        try:
            return suit_stages(degrees, self._spec, cluster, task, costs_of)
        except UserError:  # what is settled besides the degrees does not go with them, see `_fits`
            return degrees

    def plan_of(self, candidate: Candidate) -> Plan:
        """Who does what."""
        return Plan(candidate.degrees, self._branches, candidate.strategy.label)

    def efforts_of(self, candidate: Candidate, most_kinds: int | None = None) -> ClusterEfforts:
        """What it takes; `most_kinds` as of `ClusterEfforts`."""
        costs = self._make_costs(candidate.strategy, candidate.degrees, candidate.cluster)
        plan = self.plan_of(candidate)
        return ClusterEfforts(plan, costs, candidate.cluster, False, most_kinds)

    def _choose(
        self, candidates: Sequence[Candidate], outlooks: Mapping[str, Outlook], wish: Wish
    ) -> Advice:
        fitting = [each for each in candidates if self._fits(each)]
        ideals = {name: self._ideal(name, outlook) for name, outlook in outlooks.items()}
        order = count()
        queue: list[tuple[tuple[float, ...], int, Candidate, int]] = []
        for candidate in sorted(fitting, key=_simplest):
            least = self._score(_shared(ideals[candidate.name], candidate), candidate, wish)
            queue.append((least, next(order), candidate, 0))
        heapify(queue)
        found: list[tuple[tuple[float, ...], Choice]] = []
        simulated = 0
        while queue:
            least, number, candidate, looked_at = heappop(queue)
            enough = len(found) >= wish.best and least >= found[0][0]
            if enough or (found and simulated >= wish.simulated):
                break
            outlook, plan = outlooks[candidate.name], self.plan_of(candidate)
            if looked_at < len(LOOKS):
                workers, shapes = LOOKS[looked_at]
                known = bound(outlook, plan, self.efforts_of(candidate, workers), shapes)
                better = max(least, self._score(known, candidate, wish))
                heappush(queue, (better, number, candidate, looked_at + 1))
            elif self._in_time(candidate, least[-1], wish, "at least "):
                simulated += 1
                prediction = outlook.predict(plan, self.efforts_of(candidate))
                if self._in_time(candidate, prediction.seconds, wish):
                    score = self._score(prediction, candidate, wish)
                    found.append((score, Choice(candidate, prediction)))
                    found.sort(key=lambda each: each[0])
        best = tuple(choice for _, choice in found[: wish.best])
        rejected = tuple(each for each, _ in self._rejected.values())
        return Advice(best, rejected, len(fitting), simulated)

    def _in_time(self, candidate: Candidate, seconds: float, wish: Wish, exactly: str = "") -> bool:
        if wish.deadline is None or seconds <= wish.deadline:
            return True
        reason = f"it takes {exactly}{seconds:.3g} s, the deadline is {wish.deadline:g} s"
        by = seconds - wish.deadline
        self._reject(candidate.name, candidate.degrees, reason, "late", by)
        return False

    def _ideal(self, name: str, outlook: Outlook) -> Bound:
        """What one worker takes, on devices of one kind; else nothing is known."""
        if len(orders(self._cluster, 1)) > 1:
            return Bound(0.0, 0.0, 0, 0.0)
        alone = Candidate(name, outlook.job.strategy, Degrees(), self._cluster)
        try:
            return ideal(outlook, self.plan_of(alone), self.efforts_of(alone))
        except UserError:  # one worker can't do it
            return Bound(0.0, 0.0, 0, 0.0)

    def _fits(self, candidate: Candidate) -> bool:
        try:
            short = self.efforts_of(candidate).shortages
        except UserError as error:  # what is settled besides the degrees may not go with them
            self._reject(candidate.name, candidate.degrees, str(error))
            return False
        if not short:
            return True
        worst = max(short, key=lambda shortage: shortage.missing)
        reason = needs_more(worst, candidate.cluster)
        self._reject(candidate.name, candidate.degrees, reason, "memory", worst.missing)
        return False

    def _score(
        self, taken: Bound | Prediction, candidate: Candidate, wish: Wish
    ) -> tuple[float, ...]:
        """Less is better; after what is wanted, and always last, come seconds."""
        if wish.deadline is not None and taken.seconds > wish.deadline:
            return inf, taken.seconds
        at_once = len(self._cluster.devices) // candidate.degrees.world
        match wish.goal:
            case Goal.LATENCY:
                return (taken.seconds,)
            case Goal.THROUGHPUT:
                return taken.seconds / at_once, taken.seconds
            case Goal.FIRST_FRAME:
                return taken.first_frame, taken.seconds
            case Goal.MEMORY:
                return taken.peak_memory, taken.seconds
            case Goal.ENERGY:
                return taken.joules, taken.seconds

    def _reject(
        self,
        name: str,
        degrees: Degrees | None,
        reason: str,
        kind: str | None = None,
        by: float = 0.0,
    ) -> None:
        """Keep one of all reasons that differ in numbers alone, or are of one `kind`: that of the
        plan which comes closest, where it is known `by` how much it fails."""
        key = (name, kind or re.sub(r"\d+", "0", reason))
        known, known_by = self._rejected.get(key, (None, 0.0))
        if known is None:
            self._rejected[key] = Rejected(name, degrees, reason), by
        elif by < known_by:
            self._rejected[key] = Rejected(name, degrees, reason, known.plans + 1), by
        else:
            self._rejected[key] = replace(known, plans=known.plans + 1), known_by


def needs_more(short: Shortage, cluster: Cluster) -> str:
    """Such as `needs 81.0 GiB on worker 0, but h100 has 79.6 GiB`."""
    one = len(short.ranks) == 1
    who = f"worker {short.ranks[0]}" if one else f"{len(short.ranks)} workers of one host"
    return (
        f"needs {short.needed / 2**30:.1f} GiB on {who}, but "
        f"{cluster.devices[short.ranks[0]].name} has {short.free / 2**30:.1f} GiB"
    )


def _shared(alone: Bound, candidate: Candidate) -> Bound:
    """At best every worker does an equal share."""
    world = candidate.degrees.world
    return replace(alone, seconds=alone.seconds / world, first_frame=alone.first_frame / world)


def _simplest(candidate: Candidate) -> tuple[int, tuple[int, ...]]:
    degrees = candidate.degrees
    return degrees.world, tuple(getattr(degrees, name) for name in AXES)


def worlds(devices: int) -> list[int]:
    """Numbers of workers that are tried: those that divide the devices, and powers of two."""
    return [
        number
        for number in range(1, devices + 1)
        if devices % number == 0 or number & (number - 1) == 0
    ]


def all_degrees(world: int) -> Iterator[Degrees]:
    """Every way to share out so many workers; guidance has two branches at most."""
    for cfg in (1, 2) if world % 2 == 0 else (1,):
        for stages in _divisors(world // cfg):
            for clip in _divisors(world // cfg // stages):
                rest = world // cfg // stages // clip
                for ulysses in _divisors(rest):
                    yield Degrees(cfg, stages, clip, rest // ulysses, ulysses)


def orders(cluster: Cluster, world: int) -> list[Cluster]:
    """The cluster with each of its kinds of nodes first: ranks follow the nodes, node by node.

    Only those whose first `world` devices differ.
    """
    kinds = list(dict.fromkeys(_kind(node) for node in cluster.nodes))
    found: dict[tuple[object, ...], Cluster] = {}
    for first in kinds:
        nodes = sorted(cluster.nodes, key=lambda node: _kind(node) != first)
        order = replace(cluster, nodes=tuple(nodes)) if len(kinds) > 1 else cluster
        found.setdefault(tuple(device.name for device in order.devices[:world]), order)
    return list(found.values())


def _kind(node: Node) -> tuple[str, int]:
    return node.device.name, node.count


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*chain.from_iterable((d, number // d) for d in small)})
