"""Published figures of other systems, as runs that the simulator can predict.

A figure says in words how its system shares out the work; `recipe_of` turns them into a strategy,
degrees and a number to read off. Nothing here knows any figure: rows of the same kinds, of other
models, devices, sizes and degrees, are read alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import gcd

from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.known_models import known_model
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import CountsSteps, Strategy
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.strategies.chunks import Chunks
from longtake.scheduler.strategies.rolling import Rolling

FPS = 16
STREAM_WINDOW, STREAM_SINK = 12, 3  # where none is stated: LongLive's, and this project's default
STREAM_BLOCKS = 24  # of an endless stream, enough for its pace to be steady
METRICS = ("e2e_s", "denoise_s", "s_per_step", "fps", "ttff_s", "ttfc_s", "tpoc_s")


class Skip(Exception):
    """A figure that can't be expressed, and why."""


@dataclass(frozen=True)
class Figure:
    """A row: what was run, and `value` of its `metric`, or None where it is to be predicted."""

    id: str
    system: str
    model: str
    height: int | None
    width: int | None
    pixel_frames: int | None  # 0: an endless stream
    steps: int | None
    cfg: int
    gpu: str
    gpus: int | None
    interconnect: str
    parallelism: str
    metric: str
    value: float | None
    note: str = ""


class Decoding(StrEnum):
    """Where the VAE works."""

    APART = "apart"  # not counted, or on a device of its own
    TOGETHER = "together"  # on a device that denoises, which stands still meanwhile


class Layout(StrEnum):
    """What a lane of the figure's system is."""

    SCHEDULE = "schedule"  # as in this project: simulate its schedule
    STEPS = "steps"  # a device for each denoising step, through which blocks go
    LAYERS = "layers"  # runs of layers with the VAE's two halves at either end, all balanced


@dataclass(frozen=True)
class Recipe:
    """How to predict a figure.

    Attributes:
        devices: all that it uses; those of `degrees` denoise.
        decoding: for rates; times from end to end always end with the VAE's work.
        endless: a stream, whose steady pace counts.
    """

    layout: Layout
    spec: ModelSpec
    request: Request
    steps: int
    strategy: Strategy
    degrees: Degrees
    devices: int
    decoding: Decoding
    endless: bool

    def check(self) -> None:
        """Refuse, with a `UserError`, what the strategy or the model can't do."""
        self.strategy.check(self.request, self.spec)
        if isinstance(self.strategy, CountsSteps):
            self.strategy.check_steps(self.steps)


def recipe_of(figure: Figure) -> Recipe:
    """Read a figure.

    Raises:
        Skip: with what it does not say, or what can't be expressed.
    """
    spec = known_model(figure.model)
    if spec is None:
        raise Skip(f"the shape of {figure.model} is not known here")
    if figure.metric not in METRICS:
        raise Skip(f"{figure.metric} has no definition here; known: {', '.join(METRICS)}")
    missing = [
        name
        for name in ("height", "width", "pixel_frames", "steps", "gpus")
        if getattr(figure, name) is None
    ]
    if missing:
        raise Skip(f"it does not state {', '.join(missing)}")
    words = figure.parallelism.lower()
    if "clip parallel" in words:
        raise Skip("clip parallelism of a U-Net; only transformers have a cost here")
    for pattern, read in _READERS:
        if re.search(pattern, words):
            return read(figure, spec, words)
    raise Skip(f"the parallelism {figure.parallelism!r} has no meaning here")


def with_same(figures: Sequence[Figure]) -> list[Figure]:
    """Rows whose parallelism is `same` get that of the row before; `same with ...` too."""
    found: list[Figure] = []
    for figure in figures:
        if re.match(r"same\b", figure.parallelism.strip().lower()) and found:
            before = found[-1].parallelism.split(" | ")[0]
            figure = replace(figure, parallelism=f"{before} | {figure.parallelism}")
        found.append(figure)
    return found


def _whole(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """All frames jointly; the workers share tokens, heads and branches of guidance."""
    if not figure.pixel_frames:
        raise Skip("joint generation of an endless video")
    degrees = _sequence(figure, spec, words)
    return _recipe(figure, spec, Bidirectional(), degrees, Decoding.TOGETHER)


def _sequence(figure: Figure, spec: ModelSpec, words: str) -> Degrees:
    """Degrees as stated, or else guidance where it is named, then Ulysses as far as heads go."""
    devices, branches = figure.gpus or 1, 2 if figure.cfg > 1 else 1
    stated = {
        name: int(number)
        for name, number in re.findall(r"(cfg|ulysses|ring|cp)[ =:-]?(\d+)", words)
    }
    grid = re.search(r"attention2d[ =:-]?(\d+) ?x ?(\d+)", words)
    if grid:  # a grid of workers hides what it sends; the ring here stands for it
        stated["ring"] = int(grid[1]) * int(grid[2])
    stated["ring"] = stated.get("ring", 1) * stated.pop("cp", 1)
    cfg = min(branches, stated.get("cfg", 2 if "cfg" in words and devices % 2 == 0 else 1))
    rest = devices // cfg
    if "ulysses" in stated or stated["ring"] > 1:
        ulysses = stated.get("ulysses", rest // stated["ring"])
        degrees = Degrees(cfg=cfg, ring=stated["ring"], ulysses=ulysses)
    elif re.search(r"\bring\b", words) and "ulysses" not in words:
        degrees = Degrees(cfg=cfg, ring=rest)
    elif "usp" in words and spec.heads % rest:
        degrees = Degrees(cfg=cfg, ring=rest)  # as Wan's README has it: one or the other
    else:
        ulysses = gcd(rest, spec.heads)
        degrees = Degrees(cfg=cfg, ring=rest // ulysses, ulysses=ulysses)
    if degrees.world != devices:
        raise Skip(f"{degrees.describe()} does not make {devices} devices")
    if spec.heads % degrees.ulysses:
        raise Skip(f"a Ulysses degree of {degrees.ulysses} does not divide {spec.heads} heads")
    return degrees


def _causal(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """Block after block over a window of the past, and a clean evaluation of each."""
    spec = _blocks(spec, words)
    strategy = Causal(_retention(figure, spec, words))
    degrees = _sequence(figure, spec, words)
    return _recipe(figure, spec, strategy, degrees, _counted(figure))


def _rolling(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """Several blocks jointly, each a step behind the one in front."""
    joint = re.search(r"(\d+)-block joint window", words)
    assert joint is not None
    spec = _blocks(spec, words)
    in_flight = int(joint[1])
    window = _number(r"(\d+)-frame window", words) or (in_flight + 2) * spec.block_frames
    sink = _number(r"(\d+) sink frames", words) or STREAM_SINK
    retention = Retention(window, sink, Positions.RELATIVE, recache=False)
    degrees = _sequence(figure, spec, words)
    return _recipe(figure, spec, Rolling(retention, in_flight), degrees, _counted(figure))


def _cascaded(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """Blocks in flight side by side, a device for each."""
    cascaded = re.search(r"(\d+) blocks cascaded", words)
    assert cascaded is not None
    spec, blocks = _blocks(spec, words), int(cascaded[1])
    strategy = Cascade(_retention(figure, spec, words), blocks, 1, "both")
    degrees = Degrees(clip=min(blocks, figure.gpus or 1))
    return _recipe(figure, spec, strategy, degrees, _counted(figure))


def _chunked(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """Chunks in flight, noisier ones behind, in one launch that all workers share."""
    flying = re.search(r"(\d+) chunks in flight", words)
    assert flying is not None
    count = int(flying[1])
    strategy = Chunks(tuple(range(count + 1, 1, -1)), positions=Positions.RELATIVE)
    degrees = _sequence(figure, spec, words)
    return _recipe(figure, spec, strategy, degrees, _counted(figure))


def _step_by_step(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """A device for each denoising step, and perhaps one for the VAE."""
    spec = _blocks(spec, words)
    apart = bool(re.search(r"gpu for the vae|vae gpu", words))
    strategy = Causal(_retention(figure, spec, words))
    needed = (figure.steps or 0) + apart
    if figure.gpus != needed:
        raise Skip(f"{figure.steps} steps take {needed} devices so, but it states {figure.gpus}")
    decoding = Decoding.APART if apart else Decoding.TOGETHER
    return _recipe(figure, spec, strategy, Degrees(), decoding, Layout.STEPS)


def _layered(figure: Figure, spec: ModelSpec, words: str) -> Recipe:
    """A pipeline of layers through which a batch of all steps goes."""
    spec = _blocks(spec, words)
    strategy = Causal(_retention(figure, spec, words))
    return _recipe(figure, spec, strategy, Degrees(), Decoding.TOGETHER, Layout.LAYERS)


def _recipe(
    figure: Figure,
    spec: ModelSpec,
    strategy: Strategy,
    degrees: Degrees,
    decoding: Decoding,
    layout: Layout = Layout.SCHEDULE,
) -> Recipe:
    frames = figure.pixel_frames or spec.pixel_frames(STREAM_BLOCKS * spec.block_frames)
    unit = spec.spatial_stride * spec.patch
    request = Request(
        cues=(Cue(0.0, figure.id),),
        seconds=frames / FPS,
        height=(figure.height or 0) // unit * unit,
        width=(figure.width or 0) // unit * unit,
        fps=FPS,
        guidance=5.0 if figure.cfg > 1 else 1.0,
    )
    return Recipe(
        layout,
        spec,
        request,
        figure.steps or 1,
        strategy,
        degrees,
        figure.gpus or 1,
        decoding,
        endless=not figure.pixel_frames,
    )


def _counted(figure: Figure) -> Decoding:
    """Rates of clips leave the VAE out, as their authors say or let guess; streams have pixels."""
    return Decoding.APART if figure.pixel_frames else Decoding.TOGETHER


def _blocks(spec: ModelSpec, words: str) -> ModelSpec:
    frames = _number(r"(\d+)-frame (?:blocks?|chunks?)", words)
    return spec if frames is None else replace(spec, block_frames=frames)


def _retention(figure: Figure, spec: ModelSpec, words: str) -> Retention:
    """The window as stated; or else all of a clip, and of a stream what this project keeps."""
    window, sink = _number(r"(\d+)-frame window", words), _number(r"(\d+) sink frames", words) or 0
    if window is None and figure.pixel_frames:
        clip = -(-spec.latent_frames(figure.pixel_frames) // spec.block_frames)
        window = clip * spec.block_frames
    elif window is None:
        window, sink = STREAM_WINDOW, STREAM_SINK
    return Retention(window, sink, Positions.RELATIVE, recache=False)


def _number(pattern: str, words: str) -> int | None:
    match = re.search(pattern, words)
    return None if match is None else int(match[1])


_READERS = (
    (r"one denoising step a (gpu|device)", _step_by_step),
    (r"layer pipeline", _layered),
    (r"\d+ blocks cascaded", _cascaded),
    (r"\d+ chunks in flight", _chunked),
    (r"\d+-block joint window", _rolling),
    (r"causal|-frame blocks", _causal),
    (r"^(-|none|)$|usp|ulysses|ring|sequence|context parallel|cfg|attention2d", _whole),
)
