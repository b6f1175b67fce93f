"""What can never run, and what can't be in time any more."""

from __future__ import annotations

from collections.abc import Sequence

from longtake.scheduler.queue_placement import Profile
from longtake.scheduler.queue_state import FleetDevice, JobView, Option, Policy

GIB = 2**30


def refusal(options: Sequence[Option], devices: Sequence[FleetDevice]) -> str | None:
    """Why no group of a fleet could ever run a job, in one line; None: one could.

    Args:
        devices: all that the fleet has or can grow to, free or not.
    """
    profile = Profile(0.0, devices, (), Policy())
    if any(profile.fits(option, begun=False) for option in options):
        return None
    if not options:
        return "no way to run it is known"
    if not devices:
        return "there are no devices"
    least = min(options, key=lambda option: (option.memory, option.workers))
    fewest = min(options, key=lambda option: (option.workers, option.memory))
    wanted = " or ".join(
        f"{option.workers} of {option.memory / GIB:.1f} GiB"
        for option in dict.fromkeys((fewest, least))
    )
    largest = max(device.memory for device in devices)
    return (
        f"it needs at least {wanted}, and there are {len(devices)} devices, the largest of "
        f"{largest / GIB:.1f} GiB"
    )


def hopeless(now: float, jobs: Sequence[JobView], devices: Sequence[FleetDevice]) -> frozenset[str]:
    """Ids of jobs that can't meet their deadline, even if they had the fleet alone from now on."""
    speeds = _Speeds(devices)
    return frozenset(job.id for job in jobs if now + speeds.least_seconds(now, job) > job.due)


class _Speeds:
    """How fast the best groups are."""

    def __init__(self, devices: Sequence[FleetDevice]) -> None:
        self._devices = sorted(devices, key=lambda device: -device.speed)
        self._known: dict[tuple[int, float], float] = {}

    def least_seconds(self, now: float, job: JobView) -> float:
        if job.deadline is None:
            return 0.0
        if job.run is not None:
            return job.run.ends - now
        return min(job.seconds(option, self._best(option)) for option in job.options)

    def _best(self, option: Option) -> float:
        """The speed of the slowest in the best group; if there is none now, one may come."""
        key = (option.workers, option.memory)
        if key not in self._known:
            fit = [device.speed for device in self._devices if device.memory >= option.memory]
            fastest = fit[: option.workers] or [device.speed for device in self._devices[:1]]
            self._known[key] = fastest[-1] if fastest else 1.0
        return self._known[key]
