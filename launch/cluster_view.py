"""What the central scheduler shows of its cluster: who does what now, and how it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    """All devices that are there now; `lost` are those that were there before."""

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
    """What has been counted since the start; all only rise but for `oldest_wait`.

    Attributes:
        ended: jobs by status.
        faults: by kind: lost (its process ended), silent, hung, crew (another worker), disk, crash.
        survived: faults whose job went on.
        preemptions: of batch jobs for interactive ones.
        blocks: that were finished.
        video_seconds: of video that was generated, in `busy_seconds` of groups at work.
        stage_seconds: of rank 0, by stage.
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
    oldest_wait: float = 0.0
