"""What a job takes, whichever way it is shared out: what the queue decides by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log2

from longtake.launch.draft import Draft
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.costs import Costs
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.flops import forward_flops
from longtake.scheduler.forecast import Outlook
from longtake.scheduler.plan import Plan
from longtake.scheduler.planner import worlds
from longtake.scheduler.queue_state import FleetDevice, Option
from longtake.scheduler.simulator import Job
from longtake.scheduler.simulator_efforts import ClusterEfforts

# FLOP per second of a device that nothing is known of; what runs take soon corrects it.
ASSUMED = {"cpu": 2e10, "cuda": 1e14}
ACROSS = 1.25  # so much longer on several nodes, where nothing is known of their network
STARTS = {"cpu": 10.0, "cuda": 60.0}  # seconds to load a model, before any was loaded
NEWEST = 0.3  # weight of the last measurement in the mean


class Estimates:
    """Options of jobs, for a fleet of one kind of devices; what runs took corrects them."""

    def __init__(self, kind: str, described: Cluster | None = None) -> None:
        """`kind` is cpu or cuda; `described` a cluster that begins with the fleet's devices."""
        self._kind, self._described = kind, described
        self._pace = 1.0  # seconds that runs took, to those that were expected
        self._slowness: dict[str, float] = {}  # the same of each device, to the pace of all
        self._start: float | None = None

    def options(self, draft: Draft, shared: bool, devices: Sequence[FleetDevice]) -> list[Option]:
        """Ways to run a draft on such devices, fewest workers first; none where it never fits.

        `shared`: it says itself how it is shared out, and there is no choice.
        """
        found = []
        for degrees in [draft.degrees] if shared else self._degrees(draft, len(devices)):
            placed = replace(draft, degrees=degrees, decode=self._decode(draft, degrees))
            memory = max(need.total for need in placed.needs(draft.device))
            across = 1.0 if degrees.world == 1 else ACROSS
            found.append(Option(degrees, self.seconds(draft, degrees), memory, across))
        return found

    def seconds(self, draft: Draft, degrees: Degrees) -> float:
        """Until the last frame is there, weights aside; at the pace that is expected."""
        if self._described is None or degrees.world > len(self._described.devices):
            return _flops(draft) / ASSUMED[self._kind] / degrees.world
        steps = len(draft.sampler.timesteps)
        plan = Plan(degrees, 2 if draft.request.guidance > 1 else 1, draft.strategy.label)
        costs = Costs(
            draft.spec,
            draft.request,
            degrees,
            self._described,
            draft.dtype.itemsize,
            draft.strategy,
            decode=self._decode(draft, degrees),
        )
        efforts = ClusterEfforts(plan, costs, self._described, False, None)
        job = Job(draft.strategy, draft.request, draft.spec, steps)
        return Outlook(job).predict(plan, efforts).seconds

    def paced(self, option: Option) -> Option:
        """An option at the pace that runs have shown."""
        return replace(option, seconds=option.seconds * self._pace)

    def learn(self, devices: Sequence[str], expected: float, taken: float) -> None:
        """A run took so long on these devices, for which so much was expected at speed 1."""
        ratio = taken / expected
        if not self.measured:
            self._pace, self._slowness = self._pace * ratio, dict.fromkeys(devices, 1.0)
            return
        known = max(self._slowness.get(name, 1.0) for name in devices)
        now = known + NEWEST * (ratio - known)
        self._slowness |= dict.fromkeys(devices, now)
        self._pace *= 1 + NEWEST * (ratio / known - 1)

    def slow(self, devices: Sequence[str], factor: float) -> None:
        """A run on these devices takes so many times as long as on others."""
        self._slowness |= dict.fromkeys(devices, factor)

    @property
    def measured(self) -> bool:
        """Whether any run has told what others will take."""
        return bool(self._slowness)

    def speed(self, device: str) -> float:
        """Of a device against the others: 1, or a half or less where it is far slower.

        In steps, because devices of one speed make better groups than those of nearly one.
        """
        return 0.5 ** max(0, round(log2(self._slowness.get(device, 1.0))))

    def began(self, seconds: float) -> None:
        """A run came to its first task after so long, weights loaded and blocks restored."""
        self._start = (
            seconds if self._start is None else self._start + NEWEST * (seconds - self._start)
        )

    @property
    def restore(self) -> float:
        """Seconds until a new group is where the last one stopped."""
        return STARTS[self._kind] if self._start is None else self._start

    def _decode(self, draft: Draft, degrees: Degrees) -> DecodeDegrees:
        """Who decodes; see `admission.shared_out`."""
        if degrees.world == draft.degrees.world:
            return draft.decode
        return DecodeDegrees.fit(
            degrees.world,
            draft.spec,
            draft.request,
            bands=None,
            stages=None,
            spread=self._kind == "cuda",
        )

    def _degrees(self, draft: Draft, devices: int) -> Iterator[Degrees]:
        """All that might pay; one worker alone where nobody knows what more would bring."""
        clips = draft.strategy.clips(draft.request, draft.spec)
        for world in worlds(devices) if self._described is not None else [1]:
            try:
                yield Degrees.fit(world, draft.spec, draft.request.guidance, {}, clips)
            except UserError:
                continue  # this number can't be placed, another may


def _flops(draft: Draft) -> float:
    """FLOPs of all evaluations, roughly: every launch as long as the longest."""
    request, spec, strategy = draft.request, draft.spec, draft.strategy
    rows, columns = spec.grid(request.height, request.width)
    frames = strategy.longest_launch(request, spec)
    keys = frames + strategy.cached_frames(request, spec)
    launches = -(-spec.latent_frames(request.pixel_frames) // frames)
    evaluations = launches * (len(draft.sampler.timesteps) + 1)
    branches = 2 if request.guidance > 1 else 1
    one = forward_flops(spec, frames * rows * columns, keys * rows * columns)
    return float(branches * evaluations * one)
