"""Long runs in short time: where a schedule repeats itself, a few blocks tell of all of them.

Between two finished blocks a strategy with a window does the same evaluations again and again. Once
that is so, each block more takes as long as the one before it. So two short videos are simulated,
and what the longer one takes more is what every further block takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.prediction import LaneUse, Prediction
from longtake.scheduler.request import Cue
from longtake.scheduler.simulator import DeviceEfforts, Job, simulate
from longtake.scheduler.simulator_efforts import Shapes
from longtake.scheduler.task import Kind, Task
from longtake.scheduler.timeline import Timeline

ALIKE = 3  # so often must a run of blocks have been repeated
LONGEST = 6  # blocks of such a run, at most


class Count(NamedTuple):
    """Tasks of one shape: the first of them, and how many there are.

    Of `waited` the flow is needed before anything else can be evaluated.
    """

    task: Task
    number: float
    waited: float


@dataclass(frozen=True)
class Rhythm:
    """How a schedule repeats itself.

    Attributes:
        blocks: of the whole video.
        short: blocks of a video that is long enough to have the rhythm; None: it has none, or the
            whole video is hardly longer.
        period: blocks after which it repeats itself.
        frames: latent frames of each further block.
    """

    blocks: int
    short: int | None
    period: int
    frames: int


class Outlook:
    """What a job consists of, whoever does it. It is found out once, for all plans."""

    def __init__(self, job: Job) -> None:
        """Raises `UserError` if the strategy can't do it; the request must have an end."""
        job.schedule()
        self.job = job

    @cached_property
    def rhythm(self) -> Rhythm:
        """How the schedule repeats itself, prompts aside."""
        plain = self._with_cues(self.job, self.job.request.cues[:1])
        blocks = plain.strategy.blocks(plain.request, plain.spec)
        assert blocks is not None
        tunes: list[Hashable] = []
        now: list[Hashable] = []
        begun: set[int] = set()
        for task in self._decodes(plain, blocks, now, begun):
            tunes.append(tuple(now))
            now.clear()
            least = len(tunes) + len(begun) + ALIKE
            if least + LONGEST >= blocks:
                break
            for period in range(1, LONGEST + 1):
                if len(tunes) > period * ALIKE and _repeats(tunes, period):
                    short = least + (blocks - least) % period
                    return Rhythm(blocks, short, period, len(task.frames))
        return Rhythm(blocks, None, 0, 0)

    @cached_property
    def counts(self) -> tuple[Count, ...]:
        """All tasks by shape; of a schedule with a rhythm, reckoned from short videos."""
        return self._counted[0]

    @cached_property
    def opening(self) -> tuple[Count, ...]:
        """The tasks before the first block is decoded, by shape; that decode included."""
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[tuple[Count, ...], tuple[Count, ...]]:
        if self.rhythm.short is None:
            counts, opening = _count(self.job)
            return tuple(counts.values()), opening
        (less, opening), (more, _) = (_count(job) for job in self._short_jobs())
        further = (self.rhythm.blocks - self.rhythm.short) / self.rhythm.period

        def reckon(known: float, now: float) -> float:
            return known + (now - known) * further

        reckoned = tuple(
            Count(task, reckon(known.number, number), reckon(known.waited, waited))
            for key, (task, number, waited) in more.items()
            for known in [less.get(key, Count(task, 0, 0))]
        )
        return reckoned, opening

    def predict(self, plan: Plan, efforts: DeviceEfforts) -> Prediction:
        """As `simulate`, without disturbances, but in a time that hardly depends on the length."""
        if self.rhythm.short is None:
            return simulate(self.job, plan, efforts)
        less, more = (simulate(job, plan, efforts) for job in self._short_jobs())
        further = (self.rhythm.blocks - self.rhythm.short) / self.rhythm.period
        terms = [(1 - further, less), (further, more)]
        if switches := len(self.job.request.cues) - 1:
            switched = simulate(self._short_jobs(switch=True)[1], plan, efforts)
            terms += [(-switches, more), (switches, switched)]
        pace = (more.frames - less.frames) / (more.seconds - less.seconds)
        return replace(_sum(terms, self.job.request.pixel_frames), steady_fps=pace)

    def _short_jobs(self, switch: bool = False) -> list[Job]:
        """Two short videos under the first prompt; with a switch after half of each."""
        rhythm, request, spec = self.rhythm, self.job.request, self.job.spec
        assert rhythm.short is not None
        jobs = []
        for blocks in (rhythm.short, rhythm.short + rhythm.period):
            left_out = (rhythm.blocks - blocks) * rhythm.frames * spec.temporal_stride
            frames = request.pixel_frames - left_out
            cues = request.cues[:1]
            if switch:
                cues = (*cues, Cue(frames / 2 / request.fps, "another prompt"))
            shorter = replace(request, seconds=frames / request.fps, cues=cues)
            jobs.append(replace(self.job, request=shorter))
        return jobs

    @staticmethod
    def _with_cues(job: Job, cues: tuple[Cue, ...]) -> Job:
        return replace(job, request=replace(job.request, cues=cues))

    @staticmethod
    def _decodes(job: Job, blocks: int, now: list[Hashable], begun: set[int]) -> Iterator[Task]:
        """Each DECODE, unless all blocks are made at once; what is evaluated before it goes to
        `now`, and to `begun` the blocks of that which aren't decoded yet."""
        shapes, decoded = Shapes(), set[int]()
        for task in job.schedule():
            if task.kind in EVALUATIONS:
                now.append((task.kind, shapes.of(task)))
                begun.update(block for block in task.blocks if block not in decoded)
                if len(begun) == blocks:
                    return
            elif task.kind is Kind.DECODE:
                begun.discard(task.block)
                decoded.add(task.block)
                yield task


def _repeats(tunes: Sequence[Hashable], period: int) -> bool:
    """Whether the last tunes are a run of so many, repeated."""
    last = tunes[-period * ALIKE :]
    return all(tune == last[index % period] for index, tune in enumerate(last))


def _count(job: Job) -> tuple[dict[Hashable, Count], tuple[Count, ...]]:
    """Tasks by shape: all of them, and those up to the first decode."""
    shapes, found = Shapes(), dict[Hashable, Count]()
    opening: tuple[Count, ...] = ()
    before: tuple[Hashable, Task] | None = None  # the last evaluation
    for task in job.schedule():
        key = (task.kind, shapes.of(task))
        known = found.get(key, Count(task, 0, 0))
        found[key] = known._replace(number=known.number + 1)
        if task.kind in EVALUATIONS:
            if before is not None and set(before[1].moves) & set(task.blocks):
                _wait(found, before[0])
            before = (key, task) if task.kind is Kind.DENOISE else None
        if task.kind is Kind.DECODE and not opening:
            opening = tuple(found.values())
    if before is not None:
        _wait(found, before[0])
    return found, opening


def _wait(found: dict[Hashable, Count], key: Hashable) -> None:
    found[key] = found[key]._replace(waited=found[key].waited + 1)


def _sum(terms: Sequence[tuple[float, Prediction]], frames: int) -> Prediction:
    """Predictions of one plan, weighted: the weights of all add up to 1."""
    longest = max((each for _, each in terms), key=lambda each: each.frames)

    def total(value: Callable[[Prediction], float]) -> float:
        return sum(weight * value(each) for weight, each in terms)

    def lane(name: str) -> LaneUse:
        def of(field: str) -> float:
            return max(0.0, total(lambda each: getattr(each.lanes[name], field)))

        return LaneUse(
            longest.lanes[name].workers,
            of("compute"),
            of("exposed"),
            of("bubble"),
            of("decode"),
            round(of("bytes")),
            round(of("parts")),
        )

    names = {name for _, each in terms for name in each.timeline.seconds}
    timeline = Timeline(origin=0.0)
    for name in names:
        timeline.seconds[name] = total(lambda each: each.timeline.seconds.get(name, 0.0))  # noqa: B023
        timeline.counts[name] = round(
            total(lambda each: each.timeline.counts.get(name, 0))  # noqa: B023
        )
    return replace(
        longest,
        seconds=total(lambda each: each.seconds),
        frames=frames,
        lanes={name: lane(name) for name in longest.lanes},
        decoding=total(lambda each: each.decoding),
        joules=total(lambda each: each.joules),
        timeline=timeline,
        exact=False,
    )
