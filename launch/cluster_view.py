"""What the central scheduler shows of its cluster: who does what now, and how it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from longtake.launch.jobs import Status
from longtake.scheduler.tally import Occupancy

if TYPE_CHECKING:
    from longtake.launch.desk import Desk
    from longtake.launch.dispatcher import Dispatcher
    from longtake.launch.fleet import Fleet
    from longtake.scheduler.queue_state import FleetDevice


@dataclass(frozen=True)
class DeviceView:
    """A device and what its worker does now.

    Attributes:
        name, node: of the device, and of the host that it is in.
        kind: cpu or cuda.
        memory_gib: all that it has.
        speed: pace of its last jobs against what was predicted, 1 before there was one.
        job: that it works at; None: it is free.
        rank: of its worker in the group of that job.
        stage: what the group does: waiting, starting, denoise, decode, write, ...
        warm: the model that is loaded there and would start at once.
        silent: seconds since the group was last heard; None where there is no group.
    """

    name: str
    node: str
    kind: str
    memory_gib: float
    speed: float = 1.0
    job: str | None = None
    rank: int | None = None
    stage: str | None = None
    warm: str | None = None
    silent: float | None = None


@dataclass(frozen=True)
class ClusterView:
    """All devices that are there now; `lost` are those that went lately."""

    devices: tuple[DeviceView, ...]
    lost: tuple[str, ...]
    queued: int
    in_progress: int


@dataclass(frozen=True)
class Health:
    """Whether all is well; `problems` are sentences for an operator."""

    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is none."""
        return not self.problems


@dataclass(frozen=True)
class Figures:
    """What has been counted since the start; all only rise but `cache` and `oldest_wait`.

    Attributes:
        ended: jobs by status.
        faults: by kind: lost (its process ended), silent, hung, crew (another worker), disk, crash.
        survived: faults whose job went on.
        preemptions: of batch jobs for interactive ones.
        blocks: that were finished.
        video_seconds: of video that was generated, in `busy_seconds` of groups at work.
        stage_seconds: of rank 0, by stage.
        waited: seconds that workers stood still for bytes of others, by device.
        sent: bytes between workers, by the devices that they left and went to.
        cache: of the workers that have a job now, by device.
        oldest_wait: seconds that the longest waiting job has been waiting.
    """

    ended: Mapping[str, int] = field(default_factory=dict)
    faults: Mapping[str, int] = field(default_factory=dict)
    survived: int = 0
    preemptions: int = 0
    blocks: int = 0
    video_seconds: float = 0.0
    busy_seconds: float = 0.0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    waited: Mapping[str, float] = field(default_factory=dict)
    sent: Mapping[tuple[str, str], int] = field(default_factory=dict)
    cache: Mapping[str, Occupancy] = field(default_factory=dict)
    oldest_wait: float = 0.0


def view_cluster(desk: Desk, dispatcher: Dispatcher, fleet: Fleet, now: float) -> ClusterView:
    """All devices and jobs as they are now; under the lock of the desk."""
    there = {device.name: device for device in fleet.devices()}
    speeds = {device.name: device.speed for device in dispatcher.devices(now)}
    statuses = [job.status for job in desk.jobs.values()]
    return ClusterView(
        devices=tuple(
            _view_device(device, fleet.kind, speeds.get(device.name, 1.0), desk, dispatcher)
            for device in there.values()
        ),
        lost=tuple(dispatcher.lost),
        queued=statuses.count(Status.QUEUED),
        in_progress=statuses.count(Status.IN_PROGRESS) + statuses.count(Status.CANCELLING),
    )


def occupied(dispatcher: Dispatcher) -> dict[str, Occupancy]:
    """The caches of workers that have a job, by device."""
    found: dict[str, Occupancy] = {}
    for assigned in dispatcher.assigned.values():
        for rank, load in assigned.loads.items():
            device, one = assigned.device_of(rank), load.cache
            before = found.get(device, Occupancy())
            found[device] = Occupancy(before.used + one.used, before.room + one.room)
    return found


def _view_device(
    device: FleetDevice, kind: str, speed: float, desk: Desk, dispatcher: Dispatcher
) -> DeviceView:
    assigned = next((a for a in dispatcher.assigned.values() if device.name in a.devices), None)
    member = next((m for m in dispatcher.groups if device.name in m.devices), None)
    return DeviceView(
        name=device.name,
        node=device.node,
        kind=kind,
        memory_gib=device.memory / 2**30,
        speed=speed,
        job=None if assigned is None else assigned.job,
        rank=None if assigned is None else assigned.devices.index(device.name),
        stage=None if assigned is None else desk.jobs[assigned.job].stage,
        warm=None if member is None else member.warm,
        silent=None if member is None else time.monotonic() - member.heard_at,
    )
