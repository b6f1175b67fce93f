"""A run before it is run: the schedule that workers would walk, with reckoned times.

A discrete-event simulation. Every lane is a process with a clock; so is the decoder, which shares a
device with rank 0; messages between lanes wait for each other where they pass the same link, for
their sender and for their receiver. The parts, their order and what travels come from the same
`Schedule` and `Plan` that real workers walk, so what is simulated is what would happen, but for the
seconds, which a cost model gives.

Workers of one lane keep step: they exchange tokens in every layer. So a lane is simulated once,
with the slowest of them, and thousands of workers take no longer than a few.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import exp, inf
from statistics import NormalDist
from typing import Protocol

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import DECODE, Plan
from longtake.scheduler.prediction import BlockTimes, LaneUse, Prediction, steady_pace
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Schedule, Strategy, Verdict
from longtake.scheduler.simulator_decoding import DecodedEfforts, Decoding, Piece
from longtake.scheduler.simulator_lanes import Channel, Lane
from longtake.scheduler.task import Kind, Task
from longtake.scheduler.timeline import Action, Activity, Record, Timeline, forget

_NORMAL = NormalDist()
PROMPT = 0  # no channel's id


@dataclass(frozen=True)
class Job:
    """What is to be made, whoever makes it."""

    strategy: Strategy
    request: Request
    spec: ModelSpec
    steps: int

    def schedule(self) -> Schedule:
        """The schedule, at its start; a `UserError` if the strategy can't do it."""
        return Schedule(self.strategy, self.request, self.spec, self.steps)


@dataclass(frozen=True)
class Loss:
    """A worker is lost at so many seconds of the run."""

    at: float
    worker: int = 0


@dataclass(frozen=True)
class Conditions:
    """What goes wrong.

    Attributes:
        seed: another one draws other delays.
        jitter: the standard deviation of the logarithm of how long a worker takes for a part.
        stragglers: how many times longer than reckoned some workers take, by rank.
        losses: when workers are lost; the run then goes on from the last finished block.
        restart: seconds from a loss until all workers are there again, with their weights.
    """

    seed: int = 0
    jitter: float = 0.0
    stragglers: Mapping[int, float] = field(default_factory=dict)
    losses: tuple[Loss, ...] = ()
    restart: float = 60.0

    def __post_init__(self) -> None:
        if self.jitter < 0 or self.restart < 0:
            raise UserError("jitter and restart must be at least 0")
        if any(factor < 1 for factor in self.stragglers.values()):
            raise UserError("a straggler takes at least 1 times as long as reckoned")
        if any(loss.at <= 0 for loss in self.losses):
            raise UserError("a worker can be lost only after the run has begun, after 0 s")


CALM = Conditions()


class DeviceEfforts(DecodedEfforts, Protocol):
    """Efforts, and what the workers are."""

    @property
    def memory(self) -> tuple[int, ...]:
        """Bytes that each worker holds at its peak."""
        ...

    @property
    def peak_memory(self) -> int:
        """The largest of these."""
        ...

    @property
    def watts(self) -> tuple[tuple[float, float], ...]:
        """What each worker's device takes at work and idle."""
        ...


def simulate(
    job: Job,
    plan: Plan,
    efforts: DeviceEfforts,
    conditions: Conditions = CALM,
    record: Record = forget,
) -> Prediction:
    """Simulate a run.

    Args:
        job: its request must have an end.
        plan: who does what.
        efforts: what it takes.
        conditions: what goes wrong.
        record: hears of what the first worker of each lane does, and of decoding as a lane of its
            own beside it; seconds count from the start of the run.

    Raises:
        UserError: the strategy can't do it, or a worker is lost that isn't there.
    """
    if job.request.seconds is None:
        raise UserError("a simulation needs an end; give the length of the video in seconds")
    world = plan.degrees.world
    strange = [loss.worker for loss in conditions.losses if not 0 <= loss.worker < world]
    strange += [rank for rank in conditions.stragglers if not 0 <= rank < world]
    if strange:
        raise UserError(f"there is no worker {strange[0]}; the ranks are 0 to {world - 1}")
    run = _Run(job, plan, efforts, conditions, record)
    start = 0.0
    for loss in sorted(conditions.losses, key=lambda loss: loss.at):
        if loss.at < start:
            continue  # all are down anyway
        leg = run.walk(start, loss.at)
        if leg.end <= loss.at:
            return run.result(leg.end)
        run.lose(leg, loss.at)
        start = loss.at + conditions.restart
    return run.result(run.walk(start, None).end)


class _Run:
    """What is known of a run while its legs are simulated, which losses of workers part."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        efforts: DeviceEfforts,
        conditions: Conditions,
        record: Record,
    ) -> None:
        self.job, self.plan, self.efforts = job, plan, efforts
        self.conditions, self.record = conditions, record
        self.begun: dict[int, float] = {}
        self.finished: dict[int, float] = {}
        self.decoded: dict[int, float] = {}
        self.frames: dict[int, int] = {}
        self.first_frame: float | None = None
        self.timeline = Timeline(origin=0.0)
        self.until = -1
        self.lost = 0.0
        self._use: dict[str, list[float]] = {name: [0.0] * 5 for name in efforts.workers}
        self._decoding = 0.0

    def walk(self, start: float, stop: float | None) -> _Leg:
        """Simulate from `start` on, up to `stop` or to the end."""
        leg = _Leg(self, start, stop)
        leg.walk()
        for lane in leg.lanes:
            decoder = lane.decoder
            sent, alone = (decoder.bytes, decoder.alone) if decoder else (0, 0.0)
            use = (lane.compute, lane.exposed, alone, lane.bytes + sent, lane.parts)
            self._use[lane.name] = [a + b for a, b in zip(self._use[lane.name], use, strict=True)]
        self._decoding += leg.decoding.worked
        return leg

    def lose(self, leg: _Leg, at: float) -> None:
        """What is left of a leg that a loss has ended."""
        self.finished = {block: t for block, t in self.finished.items() if t <= at}
        self.decoded = {block: t for block, t in self.decoded.items() if t <= at}
        self.begun = {block: t for block, t in self.begun.items() if t <= at}
        if self.first_frame is not None and self.first_frame > at:
            self.first_frame = None
        kept = [tick for tick, time in leg.states if time <= at]
        self.until = max([self.until, *kept])
        self.lost += at - max([leg.start, *self.finished.values()]) + self.conditions.restart

    def factor(self, workers: Sequence[int], leg: float) -> Callable[[], float]:
        """How much longer than reckoned the slowest of these workers takes, drawn each time."""
        conditions = self.conditions
        slowest = max((conditions.stragglers.get(worker, 1.0) for worker in workers), default=1.0)
        if not conditions.jitter:
            return lambda: slowest
        draw = random.Random(f"{conditions.seed}/{workers[0]}/{leg}")
        power = 1 / len(workers)

        def slowest_of_all() -> float:
            # The largest of n draws is where their distribution reaches the n-th root of a share.
            share = min(max(draw.random() ** power, 1e-12), 1 - 1e-12)
            return slowest * exp(conditions.jitter * _NORMAL.inv_cdf(share))

        return slowest_of_all

    def result(self, end: float) -> Prediction:
        """The whole run."""
        efforts, request = self.efforts, self.job.request
        lanes = {}
        joules = 0.0
        for name, workers in efforts.workers.items():
            compute, exposed, decode, sent, parts = self._use[name]
            bubble = max(0.0, end - compute - exposed)
            lanes[name] = LaneUse(
                workers, compute, exposed, bubble, decode, round(sent), round(parts)
            )
            decoding = efforts.decoders.get(name, ())
            for worker in workers:
                busy, idle = efforts.watts[worker]
                at_work = compute + (decode if worker in decoding else 0.0)
                joules += idle * end + (busy - idle) * min(end, at_work)
        overall = request.pixel_frames / end if end else 0.0
        times = {
            block: BlockTimes(self.begun[block], self.finished[block], self.decoded[block])
            for block in sorted(self.decoded)
        }
        return Prediction(
            seconds=end,
            first_frame=end if self.first_frame is None else self.first_frame,
            frames=request.pixel_frames,
            blocks=times,
            lanes=lanes,
            decoding=self._decoding,
            memory=efforts.memory,
            joules=joules,
            timeline=self.timeline,
            steady_fps=steady_pace(self.finished, self.frames, overall),
            lost=self.lost,
        )


class _Leg:
    """The time between two losses of workers."""

    def __init__(self, run: _Run, start: float, stop: float | None) -> None:
        self._run, self.start, self._stop = run, start, stop
        job, plan, efforts = run.job, run.plan, run.efforts
        self.states: list[tuple[int, float]] = []  # ticks of launches that finish blocks, and when
        kept, until = set(run.finished), run.until

        def decide(block: int) -> Verdict:
            return Verdict(kept=block in kept, until=until)

        self._parts = plan.parts(job.schedule().tasks(decide))
        self._queues: dict[str, deque[Task]] = {name: deque() for name in efforts.workers}
        self._first = next(iter(efforts.workers))
        ports: dict[str, float] = {}
        names = list(efforts.workers)
        around = zip(names, [*names[1:], names[0]], strict=True)
        self._channels = {ends: Channel(ports) for ends in around} if len(names) > 1 else {}
        self.decoding = Decoding(efforts, job.spec, start, self._decoded, self._there)
        self.lanes = [self._lane(name, workers) for name, workers in efforts.workers.items()]
        self.end = start
        self._order = count()
        self._ready: list[tuple[float, int, int]] = []  # clock, and which lane
        self._asleep: dict[int, list[int]] = {}  # lanes by what they wait for

    def _lane(self, name: str, workers: tuple[int, ...]) -> Lane:
        run = self._run
        lane = Lane(
            name,
            workers[0],
            run.plan,
            run.efforts,
            lambda: self._next(name),
            self._channels,
            run.factor(workers, self.start),
            self._record if run.record is not forget else forget,
            self.start,
        )
        lane.decoder = self.decoding.decoders.get(name)
        if name == self._first:
            lane.on_decode, lane.on_part = self._decode, self._ran
        return lane

    def walk(self) -> None:
        """Let the lane that is behind take its next step, until all are through or time is up."""
        walks = [iter(lane) for lane in self.lanes]
        for lane in self.lanes:
            lane.encoded = self.lanes[0].encoded
        for channel in self._channels.values():
            channel.on_left = partial(self._wake, id(channel))
        for index in range(len(walks)):
            self._is_ready(index)
        through = 0
        while self._ready:
            clock, _, index = heappop(self._ready)
            if self._stop is not None and clock >= self._stop:
                continue
            try:
                needed = next(walks[index])
            except StopIteration:
                through += 1
                continue
            if index == 0:
                self._wake(PROMPT)
            if needed is None:
                self._is_ready(index)
            else:
                key = PROMPT if isinstance(needed, int) else id(needed)
                self._asleep.setdefault(key, []).append(index)
        self.end = max([self.decoding.close(), *(lane.clock for lane in self.lanes)])
        if through < len(walks):
            self._check_time_is_up()
            self.end = inf

    def _check_time_is_up(self) -> None:
        if self._stop is None:
            stuck = ", ".join(self.lanes[i].name for some in self._asleep.values() for i in some)
            raise RuntimeError(f"the schedule deadlocks: {stuck} wait for each other")

    def _is_ready(self, index: int) -> None:
        heappush(self._ready, (self.lanes[index].clock, next(self._order), index))

    def _wake(self, key: int) -> None:
        """Let lanes go on that wait for a channel, or for a prompt."""
        if key in self._asleep:
            for index in self._asleep.pop(key):
                self._is_ready(index)

    def _next(self, name: str) -> Task | None:
        """The lane's next part; parts of others that come before it are laid aside for them."""
        own = self._queues[name]
        while not own:
            part = next(self._parts, None)
            if part is None:
                return None
            lane = self._run.plan.lane_of(part)
            self._queues[self._first if lane == DECODE else lane].append(part)
        return own.popleft()

    def _ran(self, part: Task, start: float, stop: float) -> None:
        run = self._run
        if part.kind is Kind.DECODE:
            return
        run.timeline.note(Kind.DENOISE if part.kind is Kind.ADVANCE else part.kind, stop - start)
        for block in part.blocks:
            run.begun.setdefault(block, start)
        finishing = Kind.ADVANCE if run.plan.degrees.stages > 1 else Kind.DENOISE
        if part.kind not in (Kind.RESTORE, finishing) or not part.finishes:
            return
        for block in part.finishes:
            run.finished.setdefault(block, stop)
        if part.parts and part.kind is not Kind.RESTORE:
            self.states.append((part.tick, stop))

    def _decode(self, part: Task, now: float) -> None:
        spec, frames = self._run.job.spec, part.frames
        pixels = spec.pixel_frames(frames.stop) - spec.pixel_frames(frames.start)
        self._run.frames[part.block] = pixels
        self.decoding.put(part, now)

    def _decoded(self, worker: int, piece: Piece, start: float, stop: float) -> None:
        """A lane has its part of a piece."""
        name = f"decode of block {piece.block}"
        self._record(Action(worker, Activity.COMPUTE, name, start, stop, lane="decode"))
        if worker == 0:
            self._run.timeline.note("decode", stop - start)

    def _there(self, piece: Piece, there: float) -> None:
        """All have theirs, so its frames are there."""
        run = self._run
        if run.first_frame is None:
            run.first_frame = there
        if piece.last:
            run.decoded.setdefault(piece.block, there)

    def _record(self, action: Action) -> None:
        if self._stop is None:
            self._run.record(action)
        elif action.start < self._stop:
            self._run.record(replace(action, stop=min(action.stop, self._stop)))
