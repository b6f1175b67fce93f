"""What a clairvoyant could reach at best, by trying everything. For a few jobs on one node."""

from __future__ import annotations

from collections.abc import Sequence

from longtake.scheduler.queue_state import JobView


def most_in_time(jobs: Sequence[JobView], devices: int) -> int:
    """How many jobs can meet their deadlines on devices alike, if no job is interrupted.

    Jobs are placed in every order with every option, each at the soonest, on the devices that would
    else stand idle the least. In the order of the starts of a best schedule that gives one as good:
    whenever a job starts, no device is free later than in the best one.
    """
    return _search((0.0,) * devices, [job for job in jobs if job.deadline is not None], 0, 0)


def _search(free: tuple[float, ...], jobs: list[JobView], done: int, best: int) -> int:
    best = max(best, done)
    for job in jobs:
        if best >= done + len(jobs):
            return best
        for option in job.options:
            if option.workers > len(free):
                continue
            start = max(free[option.workers - 1], job.arrived)
            end = start + job.seconds(option)
            if end <= job.due:
                idle = sum(each <= start for each in free)
                left = free[: idle - option.workers] + free[idle:]
                after = tuple(sorted((*left, *[end] * option.workers)))
                best = _search(after, [j for j in jobs if j is not job], done + 1, best)
    return best
