"""Everything that can be set, as frozen dataclasses; `configs/` holds the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from longtake.launch.strategies import AnyStrategy
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import AXES
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request


@dataclass(frozen=True)
class ModelSettings:
    """A model. `folder_from` and `checkpoint_from` are commands that fetch what the model needs."""

    name: str
    folder: str | None
    checkpoint: str | None
    folder_from: str | None
    checkpoint_from: str | None
    fps: int
    height: int
    width: int
    block_frames: int
    text_tokens: int
    grammar: Literal["world"] | None

    def __post_init__(self) -> None:
        for name in ("block_frames", "text_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class FewStepSettings:
    """See `runtime.samplers.FewStep`."""

    kind: Literal["few-step"]
    steps: tuple[float, ...]
    shift: float
    warp: bool

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise UserError(f"sampler.shift must be more than 0, got {self.shift:g}")


@dataclass(frozen=True)
class SolverSettings:
    """A scheduler class of diffusers and its options; see `runtime.samplers.Solver`."""

    kind: Literal["solver"]
    scheduler: str
    steps: int
    options: dict[str, Any]


@dataclass(frozen=True)
class ParallelSettings:
    """How many workers, the degrees of `scheduler.degrees.Degrees`, and, as `vae_`, those of
    `scheduler.decode_degrees.DecodeDegrees`; None: by the `plan`, or whatever fits.

    `plan` is `auto`, which asks the planner, or `fit`, a rule; `cluster` describes the devices.
    """

    workers: int
    plan: Literal["auto", "fit"]
    cluster: str | None
    cfg: int | None
    stages: int | None
    clip: int | None
    ring: int | None
    ulysses: int | None
    stage_layers: tuple[int, ...] | None
    vae_bands: int | None
    vae_stages: int | None
    rebalance: bool
    timeout: float

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"a run needs at least 1 worker, got {self.workers}")
        if self.timeout <= 0:
            raise UserError(f"parallel.timeout must be more than 0 s, got {self.timeout:g}")

    @property
    def degrees(self) -> dict[str, Any]:
        """Those that are settled, None for the others; and the layers of stages."""
        return {name: getattr(self, name) for name in (*AXES, "stage_layers")}

    def decode(
        self, workers: int, spec: ModelSpec, request: Request, *, spread: bool
    ) -> DecodeDegrees:
        """Who of so many decodes; see `DecodeDegrees.fit`."""
        bands, stages = self.vae_bands, self.vae_stages
        return DecodeDegrees.fit(workers, spec, request, bands=bands, stages=stages, spread=spread)


@dataclass(frozen=True)
class Settings:
    """The whole configuration. None: what the model has as its own."""

    seconds: float
    seed: int
    guidance: float
    negative: str
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    fps: int | None
    size: str | None
    input_video: str | None
    live: bool
    latency: float | None
    strategy: AnyStrategy
    sampler: FewStepSettings | SolverSettings
    parallel: ParallelSettings
    model: ModelSettings
