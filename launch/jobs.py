"""A job: an accepted request on its way to a video, as everybody outside of its run sees it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import Option


class Status(StrEnum):
    """Where a job stands. The last three are for ever."""

    QUEUED = "queued"  # it waits for devices: at first, between two attempts, or preempted
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"  # until its workers have ended
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self in (Status.CANCELLED, Status.COMPLETED, Status.FAILED)


PRIORITIES = ("interactive", "batch")  # the first is served before the second


class NoSuchJob(UserError):
    """There is no job of that id, or it is somebody else's."""


class JobConflict(UserError):
    """What was asked for can't be done with a job where it stands."""


@dataclass(frozen=True)
class Ask:
    """What a video is asked to be; None: the model's own. See `launch.api.generate`.

    Attributes:
        prompt: (second, text) pairs, the first at 0 seconds.
        size: "832x480", width first.
        input_video: a file of this machine, for strategies that take one.
        workers: how many share the work; None: the scheduler chooses.
        settings: `key=value` for any key of the configuration but `device` and `parallel.workers`.
    """

    prompt: tuple[tuple[float, str], ...]
    model: str = "tinyworld"
    seconds: float | None = None
    size: str | None = None
    fps: int | None = None
    seed: int | None = None
    strategy: str | None = None
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    input_video: str | None = None
    workers: int | None = None
    settings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Ask:
        """The inverse."""
        prompt = tuple((float(at), str(text)) for at, text in told["prompt"])
        return cls(**{**told, "prompt": prompt, "settings": tuple(told["settings"])})


@dataclass(frozen=True)
class Job:
    """One row of the store; times are seconds since 1970, None where there is none yet.

    Attributes:
        id: "video_" and 32 hexadecimal digits that nobody can guess.
        owner: who may see it; the server's name of an API key.
        config: the settled configuration, so that a newer default changes nothing of it.
        deadline: when the whole video should be there.
        stage: what is being done, in one word: waiting, starting, denoise, decode, write, ...
        progress: share of the frames that are in the file, 0 .. 1.
        seconds_left: by the pace of the run so far; None before there is one.
        frames: pixel frames in the file by now, of `total_frames`.
        blocks_done: finished blocks in the journal, of `blocks`.
        epoch: counts the groups of workers that it was given to; only the last one may write.
        faults: how often a group failed it; `strikes`, since the last block that was finished.
        preemptions: how often it made room for another.
        held: seconds for which it had devices, in epochs that are over.
        late: it can't meet its deadline any more.
        options: ways to share its work out, and what each takes at the pace that was expected.
        degrees: the one that was taken, which its bits depend on; None before it first begins.
        devices: that work at it now.
        error: why it failed.
        folder: what is kept of it; the video in it grows as `video.part.mp4`.
    """

    id: str
    owner: str
    ask: Ask
    config: Mapping[str, Any]
    folder: str
    created_at: float
    width: int
    height: int
    fps: int
    total_frames: int
    blocks: int
    priority: str = "batch"
    deadline: float | None = None
    status: Status = Status.QUEUED
    stage: str = "waiting"
    progress: float = 0.0
    seconds_left: float | None = None
    frames: int = 0
    blocks_done: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    epoch: int = 0
    faults: int = 0
    strikes: int = 0
    preemptions: int = 0
    held: float = 0.0
    late: bool = False
    options: tuple[Option, ...] = ()
    degrees: Mapping[str, Any] | None = None
    devices: tuple[str, ...] = ()
    error: str | None = None

    @property
    def video(self) -> str:
        """The whole video; it is there when the job is completed."""
        return f"{self.folder}/video.mp4"

    @property
    def part(self) -> str:
        """The video while it grows; it plays as far as it has come.

        A new epoch makes it anew: another file, whose bytes become the same.
        """
        return f"{self.folder}/video.part.mp4"

    @property
    def run_dir(self) -> str:
        """Journal, manifest and logs of its workers."""
        return f"{self.folder}/video.run"

    @property
    def seconds(self) -> float:
        """The length of the whole video."""
        return self.total_frames / self.fps

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "ask": self.ask.to_dict(),
            "options": [asdict(option) for option in self.options],
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Job:
        """The inverse."""
        return cls(
            **{
                **told,
                "ask": Ask.from_dict(told["ask"]),
                "status": Status(told["status"]),
                "devices": tuple(told["devices"]),
                "options": tuple(
                    Option(**{**option, "degrees": Degrees(**option["degrees"])})
                    for option in told["options"]
                ),
            }
        )


def new_id() -> str:
    """An id for a job."""
    return f"video_{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Event:
    """Something that happened to a job.

    Attributes:
        number: rises from event to event, of all jobs.
        job: its id.
        at: seconds since 1970.
        kind: created, started, block, switched, fault, preempted, moved, stopped, late,
            cancelling, or how it ended: completed, failed, cancelled.
        facts: more of it, by kind.
    """

    number: int
    job: str
    at: float
    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSwitch:
    """A change of prompt that was asked for; `number` tells it from the job's others."""

    job: str
    number: int
    text: str
