"""How many workers a task is split over, along which axis, and who sits where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import gcd, prod
from typing import Any

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.task import Span

AXES = ("cfg", "stages", "clip", "ring", "ulysses")


@dataclass(frozen=True, order=True)
class Place:
    """A worker's coordinates on the axes of `Degrees`."""

    cfg: int = 0
    stage: int = 0
    clip: int = 0
    ring: int = 0
    ulysses: int = 0


@dataclass(frozen=True)
class Degrees:
    """Workers along each axis, the outermost first: ranks of one Ulysses group are neighbours.

    Attributes:
        cfg: 2 evaluates the two branches of guidance side by side.
        stages: runs of layers, each on its own lane.
        clip: shares of a launch's parts, which are runs of frames.
        ring: shares of every frame's tokens; keys and values travel around.
        ulysses: shares of every frame's tokens that become shares of heads inside attention.
        stage_layers: how many layers each stage has; None: as many, or one less than those before.
    """

    cfg: int = 1
    stages: int = 1
    clip: int = 1
    ring: int = 1
    ulysses: int = 1
    stage_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.stage_layers is not None:
            object.__setattr__(self, "stage_layers", tuple(self.stage_layers))  # JSON has lists
        for name in AXES:
            if getattr(self, name) < 1:
                raise UserError(f"the {name} degree must be at least 1, got {getattr(self, name)}")
        own = self.stage_layers
        if own is not None and (len(own) != self.stages or min(own) < 1):
            raise UserError(
                f"stage_layers must name at least 1 layer for each of {self.stages} stages, got "
                f"{list(own)}"
            )

    @classmethod
    def fit(
        cls,
        workers: int,
        spec: ModelSpec,
        guidance: float,
        wanted: Mapping[str, Any],
        clips: int = 1,
    ) -> Degrees:
        """Degrees for so many workers; `wanted` are those that are settled, None or absent if not,
        and the layers of stages.

        Guidance first, because its branches hardly talk; then clips, as many as the strategy has;
        then Ulysses, as far as heads divide; the rest goes to the ring, or to stages where the ring
        is settled.

        Raises:
            UserError: the workers can't be placed so.
        """
        found = {name: degree for name, degree in wanted.items() if degree is not None}
        if "stage_layers" in found:
            found.setdefault("stages", len(found["stage_layers"]))
        settled = cls(**found)
        rest, left_over = divmod(workers, settled.world)
        if workers < 1 or left_over:
            raise UserError(
                f"{workers} workers can't be shared out as {settled.describe()}: the degrees of "
                "cfg, clip, stages, ring and ulysses must multiply to the number of workers"
            )
        if "cfg" not in found:
            found["cfg"] = 2 if guidance > 1 and rest % 2 == 0 else 1
            rest //= found["cfg"]
        if "clip" not in found:
            found["clip"] = max(d for d in range(1, rest + 1) if rest % d == 0 and d <= clips)
            rest //= found["clip"]
        if "ulysses" not in found:
            found["ulysses"] = gcd(rest, spec.heads)
            rest //= found["ulysses"]
        for name in ("ring", "stages"):
            if name not in found:
                found[name] = rest
                rest = 1
        if rest > 1:
            raise UserError(
                f"{workers} workers don't fit {cls(**found).describe()}; leave one of cfg, clip, "
                "stages, ring and ulysses open, or let them multiply to the number of workers"
            )
        degrees = cls(**found)
        degrees.check(spec, guidance, clips)
        return degrees

    @property
    def world(self) -> int:
        """Workers in all."""
        return self.cfg * self.clip * self.stages * self.sequence

    @property
    def sequence(self) -> int:
        """Workers that share the tokens of one frame."""
        return self.ring * self.ulysses

    def place(self, rank: int) -> Place:
        """Where a rank sits."""
        rank, ulysses = divmod(rank, self.ulysses)
        rank, ring = divmod(rank, self.ring)
        rank, clip = divmod(rank, self.clip)
        cfg, stage = divmod(rank, self.stages)
        return Place(cfg, stage, clip, ring, ulysses)

    def rank(self, place: Place) -> int:
        """The inverse of `place`."""
        outer = (place.cfg * self.stages + place.stage) * self.clip + place.clip
        return (outer * self.ring + place.ring) * self.ulysses + place.ulysses

    def places(self) -> Iterator[Place]:
        """All places, in order of rank."""
        axes = (self.cfg, self.stages, self.clip, self.ring, self.ulysses)
        return (Place(*at) for at in product(*map(range, axes)))

    def check(self, spec: ModelSpec, guidance: float, clips: int = 1) -> None:
        """Refuse what the model, or the strategy's launches of so many clips, can't be split into.

        Raises:
            UserError: it names the legal degrees.
        """
        if spec.heads % self.ulysses:
            legal = ", ".join(str(d) for d in range(1, spec.heads + 1) if spec.heads % d == 0)
            raise UserError(
                f"a Ulysses degree of {self.ulysses} doesn't divide the model's {spec.heads} "
                f"heads; legal are {legal}; more workers can go to ring"
            )
        if self.stages > spec.layers:
            raise UserError(
                f"{self.stages} stages need a layer each, but the model has {spec.layers}; "
                f"legal are 1 to {spec.layers}"
            )
        if self.stage_layers is not None and sum(self.stage_layers) != spec.layers:
            raise UserError(
                f"stage_layers {list(self.stage_layers)} are {sum(self.stage_layers)} layers, but "
                f"the model has {spec.layers}"
            )
        if self.cfg > 2 or (self.cfg == 2 and guidance == 1):
            legal = "1: guidance is 1, so there is one branch" if guidance == 1 else "1 and 2"
            raise UserError(f"a cfg degree of {self.cfg} has too few branches; legal is {legal}")

        if self.clip > clips:
            legal = f"1 to {clips}" if clips > 1 else "1, as it evaluates one block at a time"
            raise UserError(
                f"a clip degree of {self.clip} shares out the parts of a launch, which this "
                f"strategy does not have; legal is {legal}"
            )

    def layers(self, stage: int, spec: ModelSpec) -> Span:
        """The layers of a stage, start .. stop - 1."""
        if self.stage_layers is not None:
            start = sum(self.stage_layers[:stage])
            return Span(start, start + self.stage_layers[stage])
        return shares(spec.layers, self.stages)[stage]

    def describe(self) -> str:
        """Such as `cfg 2 x stages 2 (20+10)`; `one worker` where nothing is split."""
        axes = {name: getattr(self, name) for name in AXES}
        own = "" if self.stage_layers is None else f" ({'+'.join(map(str, self.stage_layers))})"
        split = [
            f"{name} {degree}{own if name == 'stages' else ''}"
            for name, degree in axes.items()
            if degree > 1
        ]
        return " x ".join(split) if prod(axes.values()) > 1 else "one worker"


def shares(total: int, parts: int) -> list[Span]:
    """Cut `total` into contiguous parts that differ by one at most, the larger ones first.

    A part may be empty. Whoever shares something out calls this, so that no sizes need to travel.
    """
    small, extra = divmod(total, parts)
    stops = [small * (part + 1) + min(part + 1, extra) for part in range(parts)]
    return [Span(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]
