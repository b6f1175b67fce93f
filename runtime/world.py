"""The procedural world that tinyworld was trained on: one coloured shape moving on a coloured
background.

A `Scene` is what a caption of the grammar says; `render` draws it exactly, so training data, the
evaluation's ground truth and the command line's hints all come from this one definition.

Grammar of a caption (words in brackets may be left out, in training too)::

    a [small|large] COLOR SHAPE MOTION [slowly|quickly] on a BACKGROUND background
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

SIZE = 64  # pixels, height and width
FPS = 16

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (225, 45, 45),
    "green": (55, 185, 75),
    "blue": (50, 95, 230),
    "yellow": (250, 220, 50),
    "purple": (150, 50, 195),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, Rgb] = {
    "black": (15, 15, 20),
    "gray": (120, 120, 125),
    "brown": (105, 65, 35),
    "teal": (15, 105, 110),
    "pink": (240, 170, 190),
}
SHAPES = ("circle", "square", "triangle")
RADII = {"small": 10.0, "large": 14.0}  # pixels, centre to edge
SPEEDS = {"slowly": 0.5, "quickly": 1.0}  # pixels per frame
MOTIONS = (
    "standing still",
    "moving left and right",
    "moving up and down",
    "bouncing around",
    "growing and shrinking",
)
SOFTNESS = 3.0  # pixels over which an edge fades into the background
GROWTH = 0.4  # pixels of radius per pixel of speed
MARGIN = 4.0  # pixels that a shape keeps from the frame's edge

_CAPTION = re.compile(
    rf"^an? (?:(?P<size>{'|'.join(RADII)}) )?(?P<color>{'|'.join(COLORS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) (?P<motion>{'|'.join(MOTIONS)})"
    rf"(?: (?P<speed>{'|'.join(SPEEDS)}))? "
    rf"on an? (?P<background>{'|'.join(BACKGROUNDS)}) background$"
)


@dataclass(frozen=True)
class Scene:
    """What a caption says. `size` and `speed` are None where the caption leaves them open."""

    shape: str
    color: str
    background: str
    motion: str
    size: str | None = None
    speed: str | None = None

    @property
    def caption(self) -> str:
        """The sentence of the grammar that describes this scene."""
        size = f"{self.size} " if self.size else ""
        speed = f" {self.speed}" if self.speed else ""
        return (
            f"a {size}{self.color} {self.shape} {self.motion}{speed} "
            f"on a {self.background} background"
        )


@dataclass(frozen=True)
class Track:
    """Where the shape is. `centers` is (frames, 2) as x, y and `radii` (frames,), both in
    pixels."""

    centers: np.ndarray
    radii: np.ndarray


def parse_caption(text: str) -> Scene:
    """Read a caption of the grammar.

    Raises:
        ValueError: the text is not a sentence of the grammar; the message shows one that is.
    """
    match = _CAPTION.match(" ".join(text.lower().replace(".", " ").split()))
    if match is None:
        raise ValueError(
            f"{text!r} is not a caption of the world; a legal one is "
            f"{Scene('circle', 'red', 'gray', 'bouncing around', 'large', 'slowly').caption!r} "
            f"(shapes: {', '.join(SHAPES)}; colors: {', '.join(COLORS)}; "
            f"motions: {', '.join(MOTIONS)}; backgrounds: {', '.join(BACKGROUNDS)})"
        )
    return Scene(**match.groupdict())


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene with every attribute drawn evenly; size and speed are sometimes left open."""
    return Scene(
        shape=str(rng.choice(SHAPES)),
        color=str(rng.choice(list(COLORS))),
        background=str(rng.choice(list(BACKGROUNDS))),
        motion=str(rng.choice(MOTIONS)),
        size=None if rng.random() < 0.15 else str(rng.choice(list(RADII))),
        speed=None if rng.random() < 0.15 else str(rng.choice(list(SPEEDS))),
    )


def _bounce(start: float, velocity: float, frames: int, low: float, high: float) -> np.ndarray:
    """Positions of a point that moves evenly and is reflected at `low` and `high`."""
    span = high - low
    phase = np.mod(start - low + velocity * np.arange(frames), 2 * span)
    return low + np.where(phase > span, 2 * span - phase, phase)


def random_track(scene: Scene, frames: int, rng: np.random.Generator) -> Track:
    """A trajectory that the caption allows, from a random start, `frames` pixel frames long."""
    radius = RADII[scene.size or str(rng.choice(list(RADII)))]
    speed = SPEEDS[scene.speed or str(rng.choice(list(SPEEDS)))]
    low, high = radius + MARGIN, SIZE - radius - MARGIN
    x0, y0 = rng.uniform(low, high, 2)
    vx = vy = 0.0
    radii = np.full(frames, radius)
    sign = float(rng.choice([-1.0, 1.0]))
    if scene.motion == "moving left and right":
        vx = sign * speed
    elif scene.motion == "moving up and down":
        vy = sign * speed
    elif scene.motion == "bouncing around":
        angle = np.pi / 4 + rng.uniform(-0.25, 0.25)
        vx = sign * speed * np.cos(angle)
        vy = float(rng.choice([-1.0, 1.0])) * speed * np.sin(angle)
    elif scene.motion == "growing and shrinking":
        smallest = 0.7 * radius
        start = rng.uniform(smallest, radius)
        radii = _bounce(start, sign * GROWTH * speed, frames, smallest, radius)
    xs = _bounce(x0, vx, frames, low, high)
    ys = _bounce(y0, vy, frames, low, high)
    return Track(np.stack([xs, ys], axis=1), radii)


def coverage(shape: str, centers: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """How much of each pixel the shape covers, in [0, 1], as (frames, SIZE, SIZE) float32.

    `centers` is (frames, 2) in pixels, x then y; `radii` is (frames,).

    Raises:
        ValueError: `shape` is not one of SHAPES.
    """
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centers[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centers[:, 1, None, None].astype(np.float32)
    r = radii[:, None, None].astype(np.float32)
    if shape == "circle":
        distance = np.hypot(x, y) - r
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * r
    elif shape == "triangle":  # upright, base at the bottom
        distance = np.maximum(y - 0.8 * r, 0.9 * np.abs(x) - 0.44 * y - 0.44 * r)
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return np.clip(0.5 - distance / SOFTNESS, 0.0, 1.0).astype(np.float32)


def render(scene: Scene, track: Track) -> np.ndarray:
    """Draw the scene along the track as (frames, SIZE, SIZE, 3) uint8 RGB, with soft edges."""
    cover = coverage(scene.shape, track.centers, track.radii)[..., None]
    ink = np.array(COLORS[scene.color], dtype=np.float32)
    paper = np.array(BACKGROUNDS[scene.background], dtype=np.float32)
    return np.rint(cover * ink + (1 - cover) * paper).astype(np.uint8)


def recolor(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with another shape, color and (half of the time) background: a prompt switch."""
    other = random_scene(rng)
    while other.color == scene.color or other.shape == scene.shape:
        other = random_scene(rng)
    background = other.background if rng.random() < 0.5 else scene.background
    return replace(scene, shape=other.shape, color=other.color, background=background)
