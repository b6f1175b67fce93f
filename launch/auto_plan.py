"""Which degrees a run takes where some are left open: those by which it should be through first.

The strategy is never changed, so the video is the same, but for the order of float sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from longtake.launch.settings import ParallelSettings
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.costs import Costs
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import AXES, Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.planner import Advice, Planner, Wish
from longtake.scheduler.schedule import Strategy
from longtake.scheduler.simulator import Job

SIMULATED = 12  # plans at most: a fraction of a second


@dataclass(frozen=True)
class Described:
    """Devices as the simulator knows them, and `by` what they were described."""

    cluster: Cluster
    by: str


@dataclass(frozen=True)
class Placement:
    """Who shares what, and why: a part of a sentence, empty where there was nothing to choose."""

    degrees: Degrees
    decode: DecodeDegrees
    why: str = ""

    def settle(self, settings: ParallelSettings) -> ParallelSettings:
        """Leave nothing open."""
        decode = {f"vae_{name}": degree for name, degree in asdict(self.decode).items()}
        return replace(settings, **asdict(self.degrees), **decode)


def choose_degrees(
    settings: ParallelSettings,
    job: Job,
    itemsize: int,
    describe: Callable[[], Described],
    spread: bool = False,
) -> Placement:
    """Settle what the settings leave open.

    Args:
        settings: `plan` says how, `workers` and degrees what is settled.
        job: what is to be made; without an end, degrees are chosen by the rule of `fit`.
        itemsize: bytes of a number of the transformer's dtype.
        describe: the devices, by rank; only called where there is something to choose.
        spread: whether all are to decode, if nothing is said of that; see `DecodeDegrees.fit`.

    Raises:
        UserError: the strategy can't do the job, the workers can't be shared out as asked, or no
            plan fits the memory.
    """
    job.schedule()
    spec, request = job.spec, job.request
    decode = settings.decode(settings.workers, spec, request, spread=spread)
    settled = settings.workers == 1 or all(settings.degrees[name] for name in AXES)
    if settled or settings.plan == "fit" or request.seconds is None:
        clips = job.strategy.clips(request, spec)
        wanted, guidance = settings.degrees, request.guidance
        degrees = Degrees.fit(settings.workers, spec, guidance, wanted, clips)
        return Placement(degrees, decode, "" if settled else "by the rule of --plan fit")
    devices = describe()
    advice = _search(settings, job, itemsize, devices.cluster, decode)
    if not advice.best:
        _refuse(settings, job, advice, devices)
    best, *others = advice.best
    why = f"{best.prediction.seconds:.3g} s are predicted, by {devices.by}"
    if others:
        second = others[0]
        other = second.candidate.degrees.describe()
        why += f"; {other} would take {second.prediction.seconds:.3g} s"
    return Placement(best.candidate.degrees, decode, why)


def _search(
    settings: ParallelSettings, job: Job, itemsize: int, cluster: Cluster, decode: DecodeDegrees
) -> Advice:
    def costs(strategy: Strategy, degrees: Degrees, there: Cluster) -> Costs:
        spec, request = job.spec, job.request
        return Costs(spec, request, degrees, there, itemsize, strategy, decode=decode)

    planner = Planner(job.request, job.spec, job.steps, cluster, costs)
    wish = Wish(
        best=2,
        simulated=SIMULATED,
        workers=settings.workers,
        degrees=settings.degrees,
        in_order=True,
    )
    return planner.search({"any plan": job.strategy}, wish)


def _refuse(settings: ParallelSettings, job: Job, advice: Advice, devices: Described) -> None:
    """No plan is possible; say why."""
    clips, guidance = job.strategy.clips(job.request, job.spec), job.request.guidance
    Degrees.fit(settings.workers, job.spec, guidance, settings.degrees, clips)  # may say it better
    closest = advice.rejected[-1].describe()
    raise UserError(f"no plan of {settings.workers} workers is possible by {devices.by}: {closest}")
