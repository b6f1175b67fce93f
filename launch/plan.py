"""`longtake plan`: which plan to take on a described cluster, and what it will cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from longtake.launch.ask import read_settings
from longtake.launch.catalogue import PACKAGED, locate
from longtake.launch.clusters import load_cluster
from longtake.launch.config import compose_settings, options, plain_strategies
from longtake.launch.settings import FewStepSettings, Settings
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.known_models import known_model
from longtake.scheduler.planner import Advice, Choice, Planner, Wish
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.schedule import Strategy

POSITIONS = 1024  # of Wan's rotary table
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What a model makes of a video depends on how it was trained. These take one that has seen whole
# clips at one level; all others one that has seen clean frames before noisy ones.
FOR_JOINT_MODELS = ("bidirectional", "clip", "dual", "keyframes", "windows")


@dataclass(frozen=True)
class Question:
    """A request and a cluster, as the scheduler knows them; no weight is needed."""

    settings: Settings
    request: Request
    spec: ModelSpec
    steps: int
    cluster: Cluster
    itemsize: int

    @property
    def strategy(self) -> Strategy:
        """The one that was asked for, or the model's own."""
        return self.settings.strategy.strategy_of(self.steps)

    def costs(self, strategy: Strategy, degrees: Degrees, cluster: Cluster) -> Costs:
        """What tasks take where ranks are the first devices of a cluster."""
        spec, request = self.spec, self.request
        spread = not cluster.nodes[0].shares_memory
        decode = self.settings.parallel.decode(degrees.world, spec, request, spread=spread)
        return Costs(spec, request, degrees, cluster, self.itemsize, strategy, decode=decode)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "model": self.settings.model.name,
            "request": asdict(self.request),
            "steps": self.steps,
            "cluster": self.cluster.name,
            "devices": len(self.cluster.devices),
            "itemsize": self.itemsize,
        }


def read_question(
    cues: Sequence[Cue],
    *,
    cluster: str,
    model: str,
    seconds: float | None,
    size: str | None,
    strategy: str | None,
    steps: int | None,
    settings: Sequence[str],
    workers: int | None = None,
    all_devices: bool = False,
) -> Question:
    """Compose settings and read the shapes that they name; `all_devices` stands for `workers`.

    Raises:
        UserError: something is not known, or the model's shape is neither known nor here.
    """
    described = load_cluster(cluster)
    composed = read_settings(
        model=catalogue_name(model),
        strategy=strategy,
        steps=steps,
        size=size,
        settings=settings,
        workers=len(described.devices) if all_devices else workers,
        seconds=seconds,
    )
    own = composed.model
    width, height = own.width, own.height
    if composed.size is not None:
        width, height = read_size(composed.size)
    request = Request(
        cues=tuple(cues),
        seconds=composed.seconds,
        height=height,
        width=width,
        fps=own.fps if composed.fps is None else composed.fps,
        seed=composed.seed,
        guidance=composed.guidance,
        negative=composed.negative,
    )
    itemsize = item_size(composed.dtype, described)
    spec, taken = model_spec(composed), count_steps(composed)
    return Question(composed, request, spec, taken, described, itemsize)


def count_steps(settings: Settings) -> int:
    """Denoising steps of a block."""
    sampler = settings.sampler
    return len(sampler.steps) if isinstance(sampler, FewStepSettings) else sampler.steps


def catalogue_name(model: str) -> str:
    """A name of the catalogue, where `t2v` may be left out; anything else stays."""
    found = [name for name in options("model") if name.replace("-t2v", "") == model]
    return found[0] if found else model


def model_spec(settings: Settings) -> ModelSpec:
    """A model's shape, from its files where they are here, or else as it was published.

    Raises:
        UserError: neither is known.
    """
    model = settings.model
    known = known_model(model.name) or known_model(model.folder_from or "")
    if known is not None and (model.folder or PACKAGED).startswith(PACKAGED):
        return replace(
            known,
            block_frames=model.block_frames,
            text_tokens=model.text_tokens,
            rotary_rows=POSITIONS,
        )
    locate(model)
    from longtake.launch.draft import model_config
    from longtake.runtime.model import read_spec

    return read_spec(model_config(model))


def item_size(dtype: str, cluster: Cluster) -> int:
    """Bytes of a number: `auto` is bfloat16 where all devices have it."""
    if dtype == "auto":
        every = all("bfloat16" in device.peak for device in cluster.devices)
        dtype = "bfloat16" if every else "float32"
    return ITEM_SIZES[dtype]


def read_size(size: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT."""
    width, times, height = size.lower().partition("x")
    if not (times and width.isdigit() and height.isdigit()):
        raise UserError(f"size must be WIDTHxHEIGHT, such as 832x480; got {size!r}")
    return int(width), int(height)


def candidates(question: Question, chosen: Sequence[str]) -> dict[str, Strategy]:
    """The strategies to choose from: those named, or else all that suit the model's training."""
    steps, own = question.steps, question.settings.strategy
    if chosen:
        found = {name: compose_settings({"strategy": name}).strategy for name in chosen}
        return {name: strategy.strategy_of(steps) for name, strategy in found.items()}
    model = question.settings.model
    joint = own.kind in FOR_JOINT_MODELS
    every = model.grammar is not None  # the model that ships with Longtake is trained for all
    strategies: dict[str, Strategy] = {own.kind: own.strategy_of(steps)}
    for name, settings in plain_strategies().items():
        if name != own.kind and (every or (name in FOR_JOINT_MODELS) == joint):
            strategies[name] = settings.strategy_of(steps)
    return strategies


def make_advice(question: Question, chosen: Sequence[str], wish: Wish) -> Advice:
    """The best plans.

    Raises:
        UserError: nothing is known of a strategy, or the request has no end.
    """
    planner = Planner(
        question.request, question.spec, question.steps, question.cluster, question.costs
    )
    return planner.search(candidates(question, chosen), wish)


def tell_plan(question: Question, chosen: Sequence[str], wish: Wish, as_json: bool) -> int:
    """Search and tell; the exit code is 2 where no plan is possible."""
    advice = make_advice(question, chosen, wish)
    if as_json:
        sys.stdout.write(json.dumps(advice_dict(question, advice, wish)) + "\n")
    else:
        from longtake.launch.plan_tables import advice_text

        sys.stdout.write(advice_text(question, advice, wish) + "\n")
    return 0 if advice.best else 2


def advice_dict(question: Question, advice: Advice, wish: Wish) -> dict[str, Any]:
    """All that was found, for programs."""
    return {
        **question.to_dict(),
        "goal": str(wish.goal),
        "plans": [plan_dict(choice) for choice in advice.best],
        "rejected": [
            {**asdict(rejected), "told": rejected.describe()} for rejected in advice.rejected
        ],
        "fitting": advice.fitting,
        "simulated": advice.simulated,
    }


def plan_dict(choice: Choice) -> dict[str, Any]:
    """A plan for programs."""
    candidate = choice.candidate
    nodes: Mapping[str, Any] = {
        "nodes": list(dict.fromkeys(device.name for device in candidate.cluster.devices))
    }
    return {
        "strategy": candidate.name,
        "label": candidate.strategy.label,
        "degrees": asdict(candidate.degrees),
        "workers": candidate.degrees.world,
        **nodes,
        **choice.prediction.to_dict(),
    }
