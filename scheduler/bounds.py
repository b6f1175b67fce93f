"""The least that a plan can take, without simulating it: so only promising plans need to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from longtake.scheduler.efforts import Effort
from longtake.scheduler.forecast import Count, Outlook
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.simulator import DeviceEfforts
from longtake.scheduler.task import Kind, Task


@dataclass(frozen=True)
class Bound:
    """No simulation of the plan has less of any of these; see `Prediction`."""

    seconds: float
    first_frame: float
    peak_memory: int
    joules: float


def bound(outlook: Outlook, plan: Plan, efforts: DeviceEfforts, shapes: int | None = None) -> Bound:
    """The least of a plan; `shapes`: for what is done most alone, which is sooner found.

    A lane can't be through before it has done all its parts. Where stages can't be filled, because
    an evaluation's flow is waited for before the next one begins, they take turns. Decoding, where
    it shares the first device, is slowed down or slows down, unless that one stands still.
    """
    counts = sorted(outlook.counts, key=lambda count: -count.number * count.task.length)[:shapes]
    busy = _Busy(plan, efforts, counts)
    beside = min(busy.compute, max(0.0, busy.decoding - busy.exposed))
    slowed = _least_delay(*(each * busy.contention for each in efforts.contention))
    first_lane = busy.compute + busy.exposed + slowed * beside
    opening = [count for count in outlook.opening if count.task.kind is not Kind.DECODE]
    opened = _Busy(plan, efforts, opening[:shapes])  # then all is still to be decoded
    first = opened.compute + opened.exposed
    seconds = max(busy.in_turns, first_lane, first + busy.decoding)
    joules = 0.0
    for (at_work, idle), devices in Counter(efforts.watts).items():
        joules += devices * (idle * seconds + (at_work - idle) * min(busy.least, seconds))
    return Bound(seconds, first, efforts.peak_memory, joules)


def _least_delay(of_work: float, of_decoding: float) -> float:
    """What each second of decoding adds to the first lane's, beside it, or else after it."""
    return min(1.0, of_work * (1 + of_decoding) / (1 + of_work))


def ideal(outlook: Outlook, plan: Plan, efforts: DeviceEfforts) -> Bound:
    """What one worker computes, by itself: shared out among n, it takes each an n-th at least."""
    alone = _Busy(plan, efforts, outlook.counts)
    opening = (count for count in outlook.opening if count.task.kind is not Kind.DECODE)
    return Bound(alone.compute, _Busy(plan, efforts, opening).compute, 0, 0.0)


class _Busy:
    """How long lanes are busy with tasks, in seconds.

    Attributes:
        compute, exposed: of the first lane.
        in_turns: where evaluations that are waited for pass all lanes one after another.
        least: computing of the lane that computes least.
        decoding: of what decodes beside the first lane.
    """

    def __init__(self, plan: Plan, efforts: DeviceEfforts, counts: Iterable[Count]) -> None:
        apart = plan.branches > 1 and plan.degrees.stages > 1 and plan.degrees.cfg == 1
        self._branches, self._stages = plan.branches if apart else 1, plan.degrees.stages
        self._apart, self._efforts = apart, efforts
        same = len(set(efforts.watts)) == 1 and plan.degrees.stage_layers is None
        self._asked = sorted({0, self._stages - 1}) if same else range(self._stages)
        self.compute = self.exposed = self.in_turns = self.least = self.decoding = 0.0
        self._convolving = 0.0
        for count in counts:
            if count.task.kind is Kind.DECODE:
                effort = efforts.decode(count.task)[plan.lane_of_stage(0)]
                self.decoding += count.number * _seconds(effort)
                self._convolving += count.number * effort.compute
            elif count.task.kind in EVALUATIONS:
                self._add(*count)

    @property
    def contention(self) -> float:
        """The part of decoding in which it computes."""
        return self._convolving / self.decoding if self.decoding else 0.0

    def _add(self, task: Task, number: float, waited: float) -> None:
        """Tasks of one shape. Of devices of one kind the first stage has most to do, the last one
        least."""
        branch = 0 if self._apart else None
        found = [
            self._efforts.effort(replace(task, branch=branch, stage=stage)) for stage in self._asked
        ]
        own = _seconds(found[0])
        others = min(map(_seconds, found)) * (self._stages - 1)
        self.compute += number * self._branches * found[0].compute
        self.exposed += number * self._branches * (own - found[0].compute)
        self.in_turns += number * own * self._branches + waited * others
        self.least += number * self._branches * min(effort.compute for effort in found)


def _seconds(effort: Effort) -> float:
    return effort.exchange + max(effort.compute, effort.beside)
