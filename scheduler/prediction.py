"""What a simulation tells of a run: when it is through, what stood still, what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from longtake.scheduler.timeline import Timeline


@dataclass(frozen=True)
class LaneUse:
    """Where the time of a lane's workers goes, in seconds; they keep step, so it is that of each.

    What decodes beside them, on the same devices, makes computing longer.

    Attributes:
        workers: its ranks.
        compute: evaluating, as long as its slowest worker takes.
        exposed: standing still while bytes travel, inside the lane or between lanes.
        bubble: standing still because another lane has nothing to send yet, and at the ends.
        decode: of that standing still, in which those that decode do.
        bytes: what all its workers send, to each other and to the next lane.
        parts: how many parts of tasks it did.
    """

    workers: tuple[int, ...]
    compute: float
    exposed: float
    bubble: float
    decode: float
    bytes: int
    parts: int


@dataclass(frozen=True)
class BlockTimes:
    """A block's instants, in seconds of the run: it begins, has its latents, and its pixels."""

    begun: float
    finished: float
    decoded: float


@dataclass(frozen=True)
class Prediction:
    """A simulated run.

    Attributes:
        seconds: until the last frame is decoded.
        first_frame: seconds until the first one is.
        frames: pixel frames that were asked for, or that the simulated blocks have.
        blocks: of each block that was made, by index.
        lanes: by name; decoding, which runs beside the first one, is in `decoding`.
        decoding: seconds in which rank 0 decodes, with others or alone.
        memory: bytes that each worker holds at its peak, by rank.
        joules: of all devices.
        timeline: seconds of rank 0's main lane by kind of task, as a run measures them.
        lost: seconds of work that was done again, or waited for, after workers were lost.
        exact: False where the end was reckoned from the pace of fewer blocks or steps.
    """

    seconds: float
    first_frame: float
    frames: int
    blocks: Mapping[int, BlockTimes]
    lanes: Mapping[str, LaneUse]
    decoding: float
    memory: tuple[int, ...]
    joules: float
    timeline: Timeline = field(compare=False)
    steady_fps: float = 0.0
    lost: float = 0.0
    exact: bool = True

    @property
    def fps(self) -> float:
        """Frames a second, from the start to the end."""
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.memory)

    @property
    def peak_memory(self) -> int:
        """Bytes of the worker that holds most."""
        return max(self.memory)

    @property
    def bytes(self) -> int:
        """What all workers send."""
        return sum(lane.bytes for lane in self.lanes.values())

    @property
    def utilisation(self) -> float:
        """The share of all workers' time that they compute, 0 to 1."""
        return self._share("compute")

    @property
    def bubble(self) -> float:
        """The share of all workers' time in which they wait for work, 0 to 1."""
        return self._share("bubble")

    @property
    def exposed(self) -> float:
        """The share of all workers' time in which they wait for bytes, 0 to 1."""
        return self._share("exposed")

    @property
    def latencies(self) -> tuple[float, ...]:
        """Seconds from a block's beginning to its pixels, by block."""
        return tuple(times.decoded - times.begun for times in self.blocks.values())

    def to_dict(self) -> dict[str, Any]:
        """For programs: all numbers, none of the blocks."""
        latencies = self.latencies
        return {
            "seconds": self.seconds,
            "first_frame_seconds": self.first_frame,
            "frames": self.frames,
            "fps": self.fps,
            "steady_fps": self.steady_fps,
            "blocks": len(self.blocks),
            "block_seconds": {
                "mean": sum(latencies) / len(latencies),
                "max": max(latencies),
            },
            "utilisation": self.utilisation,
            "bubble": self.bubble,
            "exposed": self.exposed,
            "bytes": self.bytes,
            "decode_seconds": self.decoding,
            "memory_bytes": list(self.memory),
            "peak_memory_bytes": self.peak_memory,
            "watt_hours": self.joules / 3600,
            "lost_seconds": self.lost,
            "exact": self.exact,
            "lanes": {name: asdict(use) for name, use in self.lanes.items()},
            "kinds": self.timeline.summary(),
        }

    def _share(self, name: str) -> float:
        whole = self.seconds * self.workers
        used = sum(getattr(lane, name) * len(lane.workers) for lane in self.lanes.values())
        return used / whole if whole else 0.0


def steady_pace(finished: Mapping[int, float], frames: Mapping[int, int], overall: float) -> float:
    """Frames a second in the middle of the run; `overall` where all blocks come at once.

    Args:
        finished: when each block's latents were there. Not its pixels: where all blocks come at
            once, those follow each other at the pace of the VAE alone.
        frames: how many pixel frames each block has.
        overall: frames a second of the whole run.
    """
    order = sorted(finished, key=lambda block: finished[block])
    middle = order[len(order) // 4 : -(len(order) // 4) or None]
    if len(middle) < 2 or finished[middle[-1]] <= finished[middle[0]]:
        return overall
    made = sum(frames[block] for block in middle if finished[block] > finished[middle[0]])
    return made / (finished[middle[-1]] - finished[middle[0]])
