"""A run as it was asked for, checked before a weight is read or a file is written."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from longtake.launch.auto_plan import choose_degrees
from longtake.launch.catalogue import PACKAGED, locate
from longtake.launch.devices import describe_devices
from longtake.launch.settings import (
    FewStepSettings,
    ModelSettings,
    Settings,
    SolverSettings,
)
from longtake.launch.surroundings import ALL_HERE, Hosts
from longtake.runtime import world
from longtake.runtime.memory import Need, check_memory, worker_needs
from longtake.runtime.model import ModelConfig, read_spec
from longtake.runtime.noise import Noise
from longtake.runtime.samplers import FewStep, Sampler, Solver
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.simulator import Job
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal

logger = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Draft:
    """Everything that a run is made of. `settings` has nothing left to choose: no auto, no null.

    `why` tells why the work is shared out as it is; empty where there was nothing to choose.
    """

    settings: Settings
    request: Request
    config: ModelConfig
    spec: ModelSpec
    strategy: Strategy
    sampler: Sampler
    device: torch.device
    dtype: torch.dtype
    degrees: Degrees
    decode: DecodeDegrees
    why: str = ""

    def schedule(self) -> Schedule:
        """The schedule, at its start."""
        return Schedule(self.strategy, self.request, self.spec, len(self.sampler.timesteps))

    def needs(self, device: torch.device) -> list[Need]:
        """What each worker needs, by rank, on devices of such a kind."""
        return worker_needs(
            self.spec,
            self.strategy,
            self.request,
            self.dtype.itemsize,
            self.degrees,
            self.decode,
            on_cpu=device.type == "cpu",
        )

    @property
    def context_timestep(self) -> float:
        """The noise level at which clean blocks are committed; see `runtime.engine.Engine`."""
        return self.settings.strategy.told_clean

    @property
    def noise(self) -> Noise:
        """Where the noise of the run comes from."""
        return self.settings.strategy.noise(self.request.seed)


def make_draft(
    settings: Settings,
    cues: Sequence[Cue],
    seconds: float | None,
    hosts: Hosts = ALL_HERE,
    warm: bool = False,
) -> Draft:
    """Check a run and settle what was left open. `seconds` is None for an endless one.

    `hosts`: where the workers are. Where that is not here, they check the run again against what
    they have. `warm`: the weights are in the device's memory already.

    Raises:
        UserError: whatever can be known to fail before a weight is read.
    """
    width, height = _size(settings)
    settings = replace(
        settings,
        fps=settings.model.fps if settings.fps is None else settings.fps,
        size=f"{width}x{height}",
    )
    assert settings.fps is not None
    request = Request(
        cues=tuple(cues),
        seconds=seconds,
        height=height,
        width=width,
        fps=settings.fps,
        seed=settings.seed,
        guidance=settings.guidance,
        negative=settings.negative,
    )
    here = hosts.device is None
    device = _far(settings.device, hosts.device) if hosts.device else _device(settings.device)
    dtype = _dtype(settings, device)
    config = model_config(settings.model)
    spec = read_spec(config)
    model = _with_settled_paths(settings.model, config)
    sampler = _sampler(settings.sampler, device if here else torch.device("cpu"))
    strategy = settings.strategy.strategy_of(len(sampler.timesteps))
    placed = choose_degrees(
        settings.parallel,
        Job(strategy, request, spec, len(sampler.timesteps)),
        DTYPES[dtype].itemsize,
        lambda: describe_devices(device, settings.parallel, hosts),
        spread=device.type == "cuda",  # workers on a CPU share its cores
    )
    parallel = placed.settle(settings.parallel)
    draft = Draft(
        settings=replace(settings, device=str(device), dtype=dtype, model=model, parallel=parallel),
        request=request,
        config=config,
        spec=spec,
        strategy=strategy,
        sampler=sampler,
        device=device,
        dtype=DTYPES[dtype],
        degrees=placed.degrees,
        decode=placed.decode,
        why=placed.why,
    )
    _check_rebalance(draft)
    if settings.input_video is not None:
        check_input(draft)
    _check_weights(draft, here, warm)
    for cue in cues:
        warn_of_grammar(draft, cue.text)
    return draft


def _dtype(settings: Settings, device: torch.device) -> Dtype:
    usual: Dtype = "bfloat16" if device.type == "cuda" else "float32"
    return usual if settings.dtype == "auto" else settings.dtype


def _check_rebalance(draft: Draft) -> None:
    if not draft.settings.parallel.rebalance:
        return
    if draft.degrees.stages == 1:
        raise UserError(
            "parallel.rebalance moves layers between stages, and there is one; set parallel.stages"
        )
    if isinstance(draft.strategy, Causal | Bidirectional):
        kind = draft.settings.strategy.kind
        raise UserError(
            f"parallel.rebalance is for strategies with several blocks in flight, and {kind} has "
            "one; leave it out"
        )


def check_input(draft: Draft) -> None:
    """See that an input video can be taken.

    Raises:
        UserError: not by this strategy, or with these steps.
    """
    mixing = draft.settings.strategy.mixing
    if mixing is None:
        kind = draft.settings.strategy.kind
        raise UserError(f"the strategy {kind} takes no input video; legal is stream")
    draft.sampler.starting_at(mixing.least_timestep)


def warn_of_grammar(draft: Draft, prompt: str) -> None:
    """Say so where a model only knows the sentences of a grammar and the prompt is none."""
    if draft.settings.model.grammar == "world":
        try:
            world.parse_caption(prompt)
        except ValueError as error:
            logger.warning("%s may not understand the prompt: %s", draft.config.name, error)


def _size(settings: Settings) -> tuple[int, int]:
    if settings.size is None:
        return settings.model.width, settings.model.height
    match = re.fullmatch(r"(\d+)[xX](\d+)", settings.size)
    if match is None:
        raise UserError(f"size must be WIDTHxHEIGHT, such as 832x480; got {settings.size!r}")
    return int(match[1]), int(match[2])


def _device(name: str) -> torch.device:
    gpus = torch.cuda.device_count()
    legal = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in legal:
        raise UserError(f"device {name!r} is not there; legal here: {', '.join(legal)}")
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    return torch.device(name)


def _far(name: str, auto: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {name!r} is not known on other hosts; legal: auto, cpu, cuda")
    return torch.device(auto if name == "auto" else name)


def model_config(model: ModelSettings) -> ModelConfig:
    """Where a model's files lie; a `UserError` if they are not here."""
    folder, checkpoint = locate(model)
    return ModelConfig(
        name=model.name,
        folder=folder,
        checkpoint=checkpoint,
        fps=model.fps,
        height=model.height,
        width=model.width,
        block_frames=model.block_frames,
        text_tokens=model.text_tokens,
    )


def _with_settled_paths(model: ModelSettings, config: ModelConfig) -> ModelSettings:
    """Paths that hold from any working directory; what ships with the package moves with it."""
    packaged = model.folder is not None and model.folder.startswith(PACKAGED)
    return replace(
        model,
        folder=model.folder if packaged else str(config.folder),
        checkpoint=None if config.checkpoint is None else str(config.checkpoint),
    )


def _sampler(settings: FewStepSettings | SolverSettings, device: torch.device) -> Sampler:
    if isinstance(settings, FewStepSettings):
        return FewStep(settings.steps, settings.shift, settings.warp)
    return Solver(settings.scheduler, settings.steps, settings.options, device)


def _check_weights(draft: Draft, here: bool, warm: bool) -> None:
    layout = draft.config.layout()
    layout.preflight()
    if not here:
        return
    if draft.degrees.world == 1:  # else `launch.preflight` looks at the memory of every worker
        (need,) = draft.needs(draft.device)
        weights = 0 if warm else need.weights
        check_memory(need.run + need.decode, draft.device, draft.request, weights)
