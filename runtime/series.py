"""Numbers out of per-frame series: movement, drift, seams. NaN marks frames that do not count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from longtake.runtime import world
from longtake.runtime.track import BoolArray, FloatArray

# Grey levels, added to both sides of the seam ratio: a still video's ratio is 1, and the flicker of
# a codec (under 0.005) makes no seam. The world's motions change a frame by 0.05 to 5, most by 0.5.
SEAM_FLOOR = 0.1
STRIDE = 4  # frames: a latent frame, so that unevenness inside of one does not hide a motion
STILL_SPEED = 0.35  # pixels per frame; the world's slowest motion has 0.5
STILL_GROWTH = 0.1  # pixels of radius per frame; the world's slowest growth has 0.2
AXIS_RATIO = 0.35  # the slower axis over the faster; the world's flattest bounce has 0.59
GROWTH_SECONDS = 4.0  # hold one whole slow growing and shrinking


@dataclass(frozen=True)
class Movement:
    """The shape's movement per frame, NaN where frames do not count.

    `center` is (n, 2) and `radius` (n,) in pixels; `velocity` (n, 2) and `growth` (n,) are taken
    over STRIDE frames, in pixels per frame; `step` (n,) is the distance to the frame before in
    pixels, `jerk` (n,) the size of the third difference of the position.
    """

    center: FloatArray
    radius: FloatArray
    velocity: FloatArray
    growth: FloatArray
    step: FloatArray
    jerk: FloatArray


def move(center: FloatArray, radius: FloatArray) -> Movement:
    """Differentiate positions (n, 2) and radii (n,), both in pixels."""
    steps = _difference(center, 1)
    thirds = _difference(_difference(steps, 1), 1)
    return Movement(
        center=center,
        radius=radius,
        velocity=_difference(center, STRIDE) / STRIDE,
        growth=_difference(radius, STRIDE) / STRIDE,
        step=np.hypot(*steps.T),
        jerk=np.hypot(*thirds.T),
    )


def _difference(values: FloatArray, stride: int) -> FloatArray:
    result = np.full_like(values, np.nan)
    result[stride:] = values[stride:] - values[:-stride]
    return result


def motion_word(movement: Movement, part: slice) -> str | None:
    """The world's word for the movement in some frames; None if half of them do not count."""
    growth = movement.growth[part]
    if 2 * np.isfinite(growth).sum() < len(growth) or not len(growth):
        return None
    across, down = np.nanmedian(np.abs(movement.velocity[part]), axis=0)
    if np.hypot(across, down) < STILL_SPEED:
        grows = np.nanmedian(np.abs(growth)) >= STILL_GROWTH
        return "growing and shrinking" if grows else "standing still"
    if down < AXIS_RATIO * across:
        return "moving left and right"
    if across < AXIS_RATIO * down:
        return "moving up and down"
    return "bouncing around"


def pace_word(movement: Movement, part: slice, motion: str | None) -> str | None:
    """The world's word for the speed of a motion, the nearest by ratio; None if nothing moves."""
    if motion in (None, "standing still"):
        return None
    if motion == "growing and shrinking":
        pace = np.nanmedian(np.abs(movement.growth[part])) / world.GROWTH
    else:
        pace = np.nanmedian(np.hypot(*movement.velocity[part].T))
    return min(world.SPEEDS, key=lambda word: abs(float(np.log(pace / world.SPEEDS[word]))))


def drift(values: FloatArray, window: int) -> float | None:
    """Distance of the means of the first and last `window` rows of (n, channels) that count."""
    rows = values[np.isfinite(values).all(axis=1)]
    window = min(window, len(rows) // 2)
    if window == 0:
        return None
    return float(np.linalg.norm(rows[-window:].mean(axis=0) - rows[:window].mean(axis=0)))


def slope(values: FloatArray, fps: float) -> float | None:
    """Length of the slope, per minute, of the straight lines through (n, channels)."""
    counts = np.isfinite(values).all(axis=1)
    if counts.sum() < 2:
        return None
    minutes = np.flatnonzero(counts) / (60 * fps)
    return float(np.linalg.norm(np.polyfit(minutes, values[counts], 1)[0]))


def size_drift(radius: FloatArray, fps: float, growing: bool) -> float | None:
    """Relative change of the radius (n,) from the first to the last second.

    Where the radius is meant to change, the largest of the first and last GROWTH_SECONDS count.
    """
    counted = radius[np.isfinite(radius)]
    seconds, quantile = (GROWTH_SECONDS, 0.95) if growing else (1.0, 0.5)
    window = min(round(seconds * fps), len(counted) // 2)
    if window == 0:
        return None
    first, last = (np.quantile(part, quantile) for part in (counted[:window], counted[-window:]))
    return float(last / first - 1)


def seam_ratio(change: FloatArray, counts: BoolArray, starts: Sequence[int]) -> float | None:
    """Mean change of frames that start a block over that of all others, SEAM_FLOOR added to both.

    `change` (n,) is each frame's difference to the one before in grey levels, `counts` (n,) says
    which frames do. None where either side has no frame. A turn in the motion changes the picture
    less than the frames around it, so where many turns meet seams the ratio is under 1.
    """
    seams = mask(len(change), starts)
    counts = counts & np.isfinite(change)
    if not (counts & seams).any() or not (counts & ~seams).any():
        return None
    seam, inside = change[counts & seams].mean(), change[counts & ~seams].mean()
    return float((seam + SEAM_FLOOR) / (inside + SEAM_FLOOR))


def mask(total: int, frames: Sequence[int]) -> BoolArray:
    """Which of `total` frames are listed; what lies outside of the video is left out."""
    chosen = np.zeros(total, bool)
    chosen[[frame for frame in frames if 0 <= frame < total]] = True
    return chosen


def median(values: FloatArray) -> float | None:
    """The median of the entries that count."""
    counted = values[np.isfinite(values)]
    return float(np.median(counted)) if len(counted) else None


def largest(values: Iterable[float | None]) -> float | None:
    """The entry that is largest in size, sign kept, among those that count."""
    counted = [float(value) for value in values if value is not None and np.isfinite(value)]
    return max(counted, key=abs, default=None)
