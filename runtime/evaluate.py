"""How well a video keeps to its prompts, measured from pixels: no pretrained model is the judge.

Each frame is held against the caption in force. Numbers about change over time leave out the frames
in which a prompt switch takes effect: a cue has *settled* once frames match it for half a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longtake.runtime import series, world
from longtake.runtime.track import AREA, BoolArray, Sightings, watch
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

LAST_SECONDS = 10.0
STABLE_SECONDS = 0.5
SETTLING_FRAMES = 4  # left out after a switch: those of the first latent frame that matches


@dataclass(frozen=True)
class Second:
    """One second of a video: shares of its frames in [0, 1] and medians, None where nothing fits.

    `motion` and `pace` are the world's words for what was seen; `speed` and `growth` (the radius'
    speed) are in pixels per frame, `radius`, `x` and `y` in pixels; `change` is the difference from
    frame to frame in grey levels.
    """

    second: int
    matching: float | None
    background: float | None
    color: float | None
    shape: float | None
    motion: str | None
    pace: str | None
    speed: float | None
    growth: float | None
    radius: float | None
    x: float | None
    y: float | None
    change: float | None


@dataclass(frozen=True)
class Report:
    """What was measured of one video. None: nothing to measure it on, or no caption to judge by.

    Attributes:
        matching: share of frames whose background, color and shape are all the caption's; also each
            alone, and each over the last ten seconds.
        found: share of frames in which any shape is seen.
        motion: share of seconds whose motion is the caption's.
        pace: share of moving seconds whose speed is the caption's "slowly" or "quickly".
        speed: median speed of the shape's centroid over four frames, pixels per frame.
        growth: median change of its radius, likewise.
        jerk: median size of the third difference of its position, pixels per frame cubed: about 0
            for even motion that turns now and then, large where the shape trembles.
        largest_step: the centroid's largest step between two frames, in pixels.
        radius: median radius in pixels, of the caption's shape (else of a circle) of equal area.
        size_drift: relative change of the radius from the first to the last second; of the largest
            radius in the first and last four seconds where the caption says growing.
        color_drift, background_drift: RGB distance between the means of the first and last second
            in which there is one to see (one level of one channel is 1).
        color_slope, background_slope: RGB distance per minute, by a straight line through all.
        seam_ratio: mean change between frames where blocks meet, over that inside of blocks, both
            with a small floor added. 1 is seamless.
        latent_ratio: the same between the first frames of those latent frames that start no block,
            and the frames inside of latent frames: what the VAE alone adds to the seam ratio.
        block_ratio: the same between the first frames of blocks and those of their other latent
            frames: what is left of the seam ratio without the VAE's part.
        switch_seconds: for each cue after the first, seconds from its mark to the first of half a
            second of frames that match it; None if they never do.
        per_second: one entry per second of video.

    With several cues a drift or slope is the largest among the cues, each over its settled frames.
    """

    frames: int
    seconds: float
    matching: float | None
    background: float | None
    color: float | None
    shape: float | None
    matching_last: float | None
    background_last: float | None
    color_last: float | None
    shape_last: float | None
    found: float
    motion: float | None
    pace: float | None
    speed: float | None
    growth: float | None
    jerk: float | None
    largest_step: float | None
    radius: float | None
    size_drift: float | None
    color_drift: float | None
    color_slope: float | None
    background_drift: float | None
    background_slope: float | None
    seam_ratio: float | None
    latent_ratio: float | None
    block_ratio: float | None
    switch_seconds: tuple[float | None, ...]
    per_second: tuple[Second, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Span:
    """Frames [begin, end) of one cue; `scene` is None where there is no caption."""

    begin: int
    end: int
    scene: world.Scene | None

    @property
    def part(self) -> slice:
        return slice(self.begin, self.end)


def causal_block_starts(frames: int, block_frames: int = 3, temporal_stride: int = 4) -> list[int]:
    """Pixel frames with which the blocks after the first start, in a video of `frames` frames.

    Blocks are `block_frames` latent frames; the first latent frame of a video is one pixel frame,
    every later one `temporal_stride`: 9, 21, 33, ... with 3 and 4.
    """
    block = block_frames * temporal_stride
    return list(range(block - temporal_stride + 1, frames, block))


def evaluate(
    frames: Iterable[npt.NDArray[np.uint8]],
    timeline: Sequence[Cue],
    fps: float,
    block_starts: Sequence[int] | None = None,
    temporal_stride: int = 4,
) -> Report:
    """Measure a video against its prompts, in memory that grows by some numbers per frame only.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        timeline: captions of the world's grammar, the first at 0 seconds; empty to judge by none.
        fps: frames per second.
        block_starts: pixel frames with which blocks start; None for blocks of 3 latent frames.
        temporal_stride: pixel frames per latent frame of the VAE, after the first.

    Raises:
        UserError: a caption is not the world's, the timeline is out of order, there is no frame, or
            frames to be judged by captions don't have the world's size.
    """
    captions = _read(timeline)
    seen = watch(frames)
    if captions and (seen.height, seen.width) != (world.SIZE, world.SIZE):
        raise UserError(
            f"captions can be judged in videos of {world.SIZE}x{world.SIZE} pixels only, "
            f"this one has {seen.width}x{seen.height}"
        )
    if block_starts is None:
        block_starts = causal_block_starts(len(seen.change), temporal_stride=temporal_stride)
    return _report(seen, captions, fps, block_starts, temporal_stride)


def _report(
    seen: Sightings,
    captions: list[tuple[float, world.Scene]],
    fps: float,
    block_starts: Sequence[int],
    temporal_stride: int,
) -> Report:
    total = len(seen.change)
    cues = _spans(captions, fps, total)
    matches = _match(seen, cues) if captions else {}
    last = slice(max(0, total - round(LAST_SECONDS * fps)), total)
    delays = _switch_delays(cues, matches["matching"], fps) if captions else []
    settled = _settle(cues, delays, fps)
    counts = np.zeros(total, bool)
    for span in settled:
        counts[span.part] = True
    movement = _move(seen, settled, counts)
    seconds = _seconds(seen, matches, movement, fps)
    latent_starts = range(1, total, temporal_stride)
    first = series.mask(total, latent_starts)  # of a latent frame
    inside = counts & ~series.mask(total, block_starts)
    return Report(
        frames=total,
        seconds=total / fps,
        matching=_share(matches.get("matching")),
        background=_share(matches.get("background")),
        color=_share(matches.get("color")),
        shape=_share(matches.get("shape")),
        matching_last=_share(matches.get("matching"), last),
        background_last=_share(matches.get("background"), last),
        color_last=_share(matches.get("color"), last),
        shape_last=_share(matches.get("shape"), last),
        found=float(np.isfinite(seen.area).mean()),
        motion=_motion_share(seconds, settled, fps),
        pace=_pace_share(seconds, settled, fps),
        speed=series.median(np.hypot(*movement.velocity.T)),
        growth=series.median(np.abs(movement.growth)),
        jerk=series.median(movement.jerk),
        largest_step=series.largest(movement.step),
        radius=series.median(movement.radius),
        size_drift=series.largest(_size_drift(movement, span, fps) for span in settled),
        color_drift=series.largest(series.drift(seen.ink[s.part], round(fps)) for s in settled),
        color_slope=series.largest(series.slope(seen.ink[s.part], fps) for s in settled),
        background_drift=series.largest(
            series.drift(seen.paper[s.part], round(fps)) for s in settled
        ),
        background_slope=series.largest(series.slope(seen.paper[s.part], fps) for s in settled),
        seam_ratio=series.seam_ratio(seen.change, counts, block_starts),
        latent_ratio=series.seam_ratio(seen.change, inside, latent_starts),
        block_ratio=series.seam_ratio(seen.change, counts & first, block_starts),
        switch_seconds=tuple(delays),
        per_second=tuple(seconds),
    )


def _read(timeline: Sequence[Cue]) -> list[tuple[float, world.Scene]]:
    times = [cue.at for cue in timeline]
    if times and (times[0] != 0 or times != sorted(set(times))):
        raise UserError(f"a timeline starts at 0 s and goes on in order of time, got {times}")
    try:
        return [(cue.at, world.parse_caption(cue.text)) for cue in timeline]
    except ValueError as error:
        raise UserError(str(error)) from error


def _spans(captions: list[tuple[float, world.Scene]], fps: float, total: int) -> list[_Span]:
    """Each caption from its first frame to the next one's; without captions, one span of all."""
    if not captions:
        return [_Span(0, total, None)]
    marks = [min(math.ceil(at * fps - 1e-6), total) for at, _ in captions]
    ends = [*marks[1:], total]
    return [
        _Span(begin, end, scene)
        for begin, end, (_, scene) in zip(marks, ends, captions, strict=True)
    ]


def _match(seen: Sightings, cues: list[_Span]) -> dict[str, BoolArray]:
    """Which frames match their caption: in the three attributes and, as "matching", in all."""
    scenes = [cue.scene for cue in cues for _ in range(cue.begin, cue.end)]
    words = {"background": seen.background, "color": seen.color, "shape": seen.shape}
    matches = {
        name: np.array(
            [word == getattr(scene, name) for word, scene in zip(column, scenes, strict=True)]
        )
        for name, column in words.items()
    }
    return {"matching": np.logical_and.reduce(list(matches.values())), **matches}


def _share(values: BoolArray | None, part: slice = slice(None)) -> float | None:
    return None if values is None else float(values[part].mean())


def _switch_delays(cues: list[_Span], matching: BoolArray, fps: float) -> list[float | None]:
    """For each cue after the first, seconds until it is matched stably; None if it never is."""
    needed = math.ceil(STABLE_SECONDS * fps)
    delays: list[float | None] = []
    for cue in cues[1:]:
        runs = (t for t in range(cue.begin, cue.end - needed + 1) if matching[t : t + needed].all())
        first = next(runs, None)
        delays.append(None if first is None else (first - cue.begin) / fps)
    return delays


def _settle(cues: list[_Span], delays: list[float | None], fps: float) -> list[_Span]:
    """The cues without the frames in which they take effect.

    The pause also keeps differences over some frames from reaching across two cues.
    """
    begins = [cues[0].begin]
    for cue, delay in zip(cues[1:], delays, strict=True):
        begins.append(cue.begin + round((delay or 0.0) * fps) + SETTLING_FRAMES)
    return [
        _Span(min(begin, cue.end), cue.end, cue.scene)
        for begin, cue in zip(begins, cues, strict=True)
    ]


def _move(seen: Sightings, settled: list[_Span], counts: BoolArray) -> series.Movement:
    unit_area = np.full(len(counts), AREA["circle"])
    for span in settled:
        if span.scene is not None:
            unit_area[span.part] = AREA[span.scene.shape]
    radius = np.where(counts, np.sqrt(seen.area / unit_area), np.nan)
    return series.move(np.where(counts[:, None], seen.center, np.nan), radius)


def _seconds(
    seen: Sightings, matches: dict[str, BoolArray], movement: series.Movement, fps: float
) -> list[Second]:
    total = len(seen.change)
    seconds = []
    for second in range(int((total - 1) // fps) + 1):
        part = _frames_of(second, fps, total)
        motion = series.motion_word(movement, part)
        seconds.append(
            Second(
                second=second,
                matching=_share(matches.get("matching"), part),
                background=_share(matches.get("background"), part),
                color=_share(matches.get("color"), part),
                shape=_share(matches.get("shape"), part),
                motion=motion,
                pace=series.pace_word(movement, part, motion),
                speed=series.median(np.hypot(*movement.velocity[part].T)),
                growth=series.median(np.abs(movement.growth[part])),
                radius=series.median(movement.radius[part]),
                x=series.median(seen.center[part, 0]),
                y=series.median(seen.center[part, 1]),
                change=series.median(seen.change[part]),
            )
        )
    return seconds


def _frames_of(second: int, fps: float, total: int) -> slice:
    return slice(math.ceil(second * fps), min(math.ceil((second + 1) * fps), total))


def _judged(
    seconds: list[Second], settled: list[_Span], fps: float
) -> list[tuple[Second, world.Scene]]:
    """The seconds (at least half of one) in one cue's settled frames, with what that cue says."""
    judged = []
    for second in seconds:
        part = _frames_of(second.second, fps, settled[-1].end)
        for span in settled:
            whole = span.begin <= part.start and part.stop <= span.end
            if span.scene and whole and 2 * (part.stop - part.start) >= fps:
                judged.append((second, span.scene))
    return judged


def _motion_share(seconds: list[Second], settled: list[_Span], fps: float) -> float | None:
    judged = _judged(seconds, settled, fps)
    right = [second.motion == scene.motion for second, scene in judged]
    return float(np.mean(right)) if right else None


def _pace_share(seconds: list[Second], settled: list[_Span], fps: float) -> float | None:
    right = [
        second.pace == scene.speed
        for second, scene in _judged(seconds, settled, fps)
        if scene.speed and second.pace
    ]
    return float(np.mean(right)) if right else None


def _size_drift(movement: series.Movement, span: _Span, fps: float) -> float | None:
    growing = span.scene is not None and span.scene.motion == "growing and shrinking"
    return series.size_drift(movement.radius[span.part], fps, growing)
