"""What one frame of the procedural world shows, measured from its pixels alone.

The paper is the median of the border. The ink is everything far from it; its largest connected part
is the shape, whose colour is the median of its core and whose kind is the one of the world's shapes
that overlaps it best. Edges are read as coverage, so positions and sizes are finer than a pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longtake.runtime import world
from longtake.scheduler.errors import UserError

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

# RGB distances. The palette's colours are at least 104 apart and at least 93 from any background,
# so a colour that has gone four tenths of the way to another one is not that colour any more.
COLOR_TOLERANCE = 40.0
CONTRAST = 45.0  # a pixel this far from the paper is ink
MIN_OVERLAP = 0.77  # intersection over union with the drawn shape, both softened
MAX_STRAY = 0.15  # ink outside of the shape, as a share of the shape's
SPECK = 5  # pixels; fewer are noise, not a second shape
MIN_AREA = 30.0  # pixels; the world's smallest shape has 78
EDGE = 3  # pixels, how far the edges of a shape may reach inside
CORE_AREA = 8  # pixels that are enough to tell the ink from
_BORDER = 2  # pixels, the margin that the world keeps free
_RADIUS_SEARCH = np.array([0.94, 1.0, 1.06])


def _form(shape: str) -> tuple[float, float]:
    """Area over the squared radius, and how far the centroid sinks below the centre over it."""
    radius, middle = 16.0, world.SIZE / 2
    cover = world.coverage(shape, np.array([[middle, middle]]), np.array([radius]))[0]
    rows = np.arange(world.SIZE) + 0.5 - middle
    area = float(cover.sum())
    return area / radius**2, float(cover.sum(axis=1) @ rows) / area / radius


_FORMS = {shape: _form(shape) for shape in world.SHAPES}
AREA = {shape: area for shape, (area, _) in _FORMS.items()}  # of a shape of radius 1


@dataclass(frozen=True)
class Sighting:
    """One frame. What was not seen is None, or NaN in an array.

    `paper` and `ink` are (3,) RGB, `center` is (2,) x then y in pixels, `area` is in pixels;
    `background`, `color` and `shape` are the world's words.
    """

    paper: FloatArray
    ink: FloatArray
    center: FloatArray
    area: float
    background: str | None
    color: str | None
    shape: str | None


@dataclass(frozen=True)
class Sightings:
    """A whole video, one row per frame: arrays as in `Sighting`, and `change`.

    `change` is (n,): the mean absolute difference to the frame before in grey levels (0 to 255),
    NaN for the first frame. `height` and `width` are the frames' size in pixels.
    """

    paper: FloatArray
    ink: FloatArray
    center: FloatArray
    area: FloatArray
    background: tuple[str | None, ...]
    color: tuple[str | None, ...]
    shape: tuple[str | None, ...]
    change: FloatArray
    height: int
    width: int


def watch(frames: Iterable[npt.NDArray[np.uint8]]) -> Sightings:
    """Measure every frame, (H, W, 3) uint8 RGB; two frames are held at a time.

    Shapes are looked for only where frames have the world's size.

    Raises:
        UserError: there is no frame, or the frames differ in size.
    """
    sightings: list[Sighting] = []
    changes: list[float] = []
    before: npt.NDArray[np.int16] | None = None
    for frame in frames:
        now = frame.astype(np.int16)
        if before is not None and before.shape != now.shape:
            raise UserError(f"the frames differ in size: {before.shape} and {now.shape}")
        changes.append(np.nan if before is None else float(np.abs(now - before).mean()))
        sightings.append(observe(frame))
        before = now
    if before is None:
        raise UserError("the video holds no frame")
    return Sightings(
        paper=np.stack([s.paper for s in sightings]),
        ink=np.stack([s.ink for s in sightings]),
        center=np.stack([s.center for s in sightings]),
        area=np.array([s.area for s in sightings]),
        background=tuple(s.background for s in sightings),
        color=tuple(s.color for s in sightings),
        shape=tuple(s.shape for s in sightings),
        change=np.array(changes),
        height=before.shape[0],
        width=before.shape[1],
    )


def observe(frame: npt.NDArray[np.uint8]) -> Sighting:
    """Measure one frame, (H, W, 3) uint8 RGB."""
    paper = _border_color(frame)
    background = _nearest(paper, world.BACKGROUNDS)
    unseen = Sighting(paper, np.full(3, np.nan), np.full(2, np.nan), np.nan, background, None, None)
    if frame.shape[:2] != (world.SIZE, world.SIZE):
        return unseen
    offset = frame.astype(np.float32) - paper
    found = np.einsum("hwc,hwc->hw", offset, offset) > CONTRAST**2
    blob, stray = _largest_part(found)
    if blob.sum() < MIN_AREA:
        return unseen
    contrast = np.median(offset[_core(blob)], axis=0)
    # Along the way from paper to ink, so 0 is paper, 1 is ink, and an edge is its coverage.
    cover = (offset @ contrast) / (contrast @ contrast) * _dilate(_dilate(blob))
    area = float(cover.sum())
    if area < MIN_AREA:
        return unseen
    grid = np.arange(world.SIZE) + 0.5
    center = np.array([cover.sum(axis=0) @ grid, cover.sum(axis=1) @ grid]) / area
    shape = _fit(cover, center, area) if stray <= MAX_STRAY * blob.sum() else None
    ink = paper + contrast
    return Sighting(paper, ink, center, area, background, _nearest(ink, world.COLORS), shape)


def _border_color(frame: npt.NDArray[np.uint8]) -> FloatArray:
    b = _BORDER
    sides = (frame[:b], frame[-b:], frame[b:-b, :b], frame[b:-b, -b:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    return np.asarray(np.median(border, axis=0), dtype=np.float64)


def _nearest(color: FloatArray, palette: dict[str, world.Rgb]) -> str | None:
    distances = {name: float(np.linalg.norm(color - rgb)) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= COLOR_TOLERANCE else None


def _largest_part(mask: BoolArray) -> tuple[BoolArray, int]:
    """The largest 4-connected part of a mask, and how many pixels the others (no specks) have."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0).astype(np.int32)
    while True:  # every part takes over the highest label in it, a pixel further per round
        grown = labels.copy()
        np.maximum(grown[1:], labels[:-1], out=grown[1:])
        np.maximum(grown[:-1], labels[1:], out=grown[:-1])
        np.maximum(grown[:, 1:], labels[:, :-1], out=grown[:, 1:])
        np.maximum(grown[:, :-1], labels[:, 1:], out=grown[:, :-1])
        grown *= mask
        if np.array_equal(grown, labels):
            break
        labels = grown
    sizes = np.bincount(labels[mask], minlength=1)
    largest = int(sizes.argmax())
    others = np.delete(sizes, largest)
    return mask & (labels == largest), int(others[others >= SPECK].sum())


def _dilate(mask: BoolArray) -> BoolArray:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _core(blob: BoolArray) -> BoolArray:
    """The blob without its edges, which are mixed with the paper, as long as enough is left."""
    core = blob
    for _ in range(EDGE):
        smaller = ~_dilate(~core)
        if smaller.sum() < CORE_AREA:
            break
        core = smaller
    return core


def _soften(cover: FloatArray) -> FloatArray:
    """Blur (..., H, W) by a pixel, as video codecs blur colour, so that sharp edges don't count."""
    rows = 0.5 * cover
    rows[..., 1:, :] += 0.25 * cover[..., :-1, :]
    rows[..., :-1, :] += 0.25 * cover[..., 1:, :]
    soft = 0.5 * rows
    soft[..., 1:] += 0.25 * rows[..., :-1]
    soft[..., :-1] += 0.25 * rows[..., 1:]
    return soft


def _fit(cover: FloatArray, center: FloatArray, area: float) -> str | None:
    """The shape that overlaps the coverage best where moments say it is, if it does so enough."""
    ink = _soften(np.clip(cover, 0.0, 1.0))
    best, best_overlap = None, MIN_OVERLAP
    for shape, (unit_area, sink) in _FORMS.items():
        radii = np.sqrt(area / unit_area) * _RADIUS_SEARCH
        centers = np.stack([np.full(radii.shape, center[0]), center[1] - sink * radii], axis=1)
        drawn = _soften(world.coverage(shape, centers, radii))
        shared = np.minimum(drawn, ink).sum(axis=(1, 2))
        overlap = float((shared / np.maximum(drawn, ink).sum(axis=(1, 2))).max())
        if overlap > best_overlap:
            best, best_overlap = shape, overlap
    return best
