"""Predicted against published: every figure that can be expressed, and what it rests on.

A software stack has one efficiency for each device and one launch floor, each settled by one
figure. Where neither is known but the figures at hand hold several of that stack and device, the
one on the fewest devices settles the efficiency of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import median

from longtake.scheduler.cluster import Cluster
from longtake.scheduler.costs import Costs
from longtake.scheduler.efforts import Effort
from longtake.scheduler.errors import UserError
from longtake.scheduler.plan import Plan
from longtake.scheduler.published import (
    Decoding,
    Figure,
    Layout,
    Recipe,
    Skip,
    recipe_of,
    with_same,
)
from longtake.scheduler.simulator import Job, simulate
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.software import Software
from longtake.scheduler.task import Kind, Part, Seen, Span, Task

ITEMSIZE = 2  # bytes: all figures are of bfloat16 activations
FindCluster = Callable[[Figure], Cluster]  # raises Skip


@dataclass(frozen=True)
class Stack:
    """A software whose figures are known.

    Attributes:
        systems: what the names of its systems contain, in lower case.
        settled_by: by device, the figure that settled the efficiency.
        floor_by: the figure that settled the launch floor; None: that of the devices holds.
    """

    systems: tuple[str, ...]
    software: Software
    settled_by: Mapping[str, str]
    floor_by: str | None = None

    def matches(self, system: str) -> bool:
        """Whether a figure's system is one of this stack."""
        return any(name in system.lower() for name in self.systems)


@dataclass(frozen=True)
class Outcome:
    """A figure and its prediction, or why there is none.

    `rests_on` is the figure that settled the efficiency, which may be itself; None: nothing did.
    """

    figure: Figure
    predicted: float | None = None
    skipped: str | None = None
    stack: str = ""
    efficiency: float = 1.0
    rests_on: str | None = None
    settles: bool = False

    @property
    def error(self) -> float | None:
        """Relative, of the prediction."""
        if self.predicted is None or not self.figure.value:
            return None
        return self.predicted / self.figure.value - 1


@dataclass(frozen=True)
class _Case:
    figure: Figure
    recipe: Recipe
    cluster: Cluster
    stack: Stack

    @property
    def device(self) -> str:
        return self.cluster.devices[0].name

    def predict(self, software: Software) -> float:
        return measure(self.recipe, self.figure.metric, self.cluster, software)


def validate(
    figures: Sequence[Figure], stacks: Sequence[Stack], find_cluster: FindCluster
) -> list[Outcome]:
    """Predict every figure that can be expressed, in order."""
    cases = _cases(figures, stacks, find_cluster)
    found = [case for case in cases if isinstance(case, _Case)]
    settled = _settled_here(found)
    outcomes = []
    for case in cases:
        if isinstance(case, Outcome):
            outcomes.append(case)
            continue
        software, by = settled.get((case.stack.software.name, case.device), (None, None))
        if software is None:
            software, by = _assumed(case, stacks)
        settles = case.figure.id in (by, case.stack.floor_by)
        outcomes.append(
            Outcome(
                case.figure,
                predicted=case.predict(software),
                stack=software.name,
                efficiency=software.on(case.device),
                rests_on=by,
                settles=settles,
            )
        )
    return outcomes


def settle(
    stacks: Sequence[Stack], figures: Sequence[Figure], find_cluster: FindCluster
) -> list[Stack]:
    """The stacks with efficiencies and floors such that the figures that settle them are met."""
    cases = {
        case.figure.id: case
        for case in _cases(figures, stacks, find_cluster)
        if isinstance(case, _Case)
    }
    found = []
    for stack in stacks:
        software = stack.software
        for _ in range(6):  # an efficiency and a floor may depend on each other
            for device, id_ in stack.settled_by.items():
                software = _solve(cases[id_], software, device)
            if stack.floor_by is not None:
                software = _solve_floor(cases[stack.floor_by], software)
        found.append(replace(stack, software=software))
    return found


def measure(recipe: Recipe, metric: str, cluster: Cluster, software: Software) -> float:
    """What a recipe's run gives for a metric, in seconds or frames per second."""
    if recipe.layout is Layout.SCHEDULE:
        return _simulated(recipe, metric, cluster, software)
    costs = _costs(recipe, cluster, software)
    frames = recipe.spec.block_frames
    decode = costs.vae.seconds(Span(1, 1 + frames), 0)
    if recipe.layout is Layout.STEPS:
        step = costs.seconds(_late_step(recipe, 1), 0)
        pace = max(step, decode) if recipe.decoding is Decoding.APART else step + decode
        first = recipe.steps * step + decode
    else:
        forward = costs.seconds(_late_step(recipe, recipe.steps), 0)
        encode = costs.vae.encode_seconds(frames)
        ends = max(decode, encode) + forward / recipe.spec.layers
        total = forward + decode + encode
        pace = max(total / recipe.devices, ends)
        first = recipe.devices * recipe.steps * pace
    made = frames * recipe.spec.temporal_stride
    values = {"fps": made / pace, "tpoc_s": pace, "ttff_s": first, "ttfc_s": first}
    if metric not in values:
        raise Skip(f"{metric} of an endless stream")
    return values[metric]


def _simulated(recipe: Recipe, metric: str, cluster: Cluster, software: Software) -> float:
    plan = Plan(recipe.degrees, 2 if recipe.request.guidance > 1 else 1)
    whole = metric in ("e2e_s", "ttff_s", "ttfc_s")
    counted = whole or recipe.decoding is Decoding.TOGETHER
    efforts = _Efforts(plan, _costs(recipe, cluster, software), cluster, counted)
    job = Job(recipe.strategy, recipe.request, recipe.spec, recipe.steps)
    run = simulate(job, plan, efforts)
    blocks, spec = len(run.blocks), recipe.spec
    denoising = max(block.finished for block in run.blocks.values()) - run.blocks[0].begun
    total = blocks * spec.block_frames if blocks > 1 else spec.latent_frames(run.frames)
    fps = run.steady_fps if recipe.endless else spec.pixel_frames(total) / denoising
    return {
        "e2e_s": run.seconds,
        "denoise_s": denoising,
        "s_per_step": denoising / (recipe.steps * blocks),
        "fps": fps,
        "ttff_s": run.first_frame,
        "ttfc_s": run.blocks[0].decoded - run.blocks[0].begun,
        "tpoc_s": spec.block_frames * spec.temporal_stride / fps,
    }[metric]


class _Efforts(ClusterEfforts):
    """Where the VAE isn't counted it takes no time."""

    def __init__(self, plan: Plan, costs: Costs, cluster: Cluster, counted: bool) -> None:
        super().__init__(plan, costs, cluster, count_all=False)
        self._counted = counted

    def decode(self, piece: Task) -> dict[str, Effort]:
        """As of all clusters."""
        if not self._counted:
            return dict.fromkeys(self.decoders, Effort(0.0))
        return super().decode(piece)


def _costs(recipe: Recipe, cluster: Cluster, software: Software) -> Costs:
    return Costs(
        recipe.spec,
        recipe.request,
        recipe.degrees,
        cluster,
        ITEMSIZE,
        recipe.strategy,
        software,
    )


def _late_step(recipe: Recipe, rows: int) -> Task:
    """A launch of so many blocks in the middle of a stream, each over keys of its own."""
    job = Job(recipe.strategy, recipe.request, recipe.spec, recipe.steps)
    late = [task for task in job.schedule() if task.kind is Kind.DENOISE][-1]
    parts = tuple(
        Part(
            late.block + row,
            late.frames,
            row,
            late.cue,
            0,
            tuple(Seen(span, 0, row) for span in late.context),
        )
        for row in range(rows)
    )
    return replace(late, context=(), parts=parts)


def _cases(
    figures: Sequence[Figure], stacks: Sequence[Stack], find_cluster: FindCluster
) -> list[_Case | Outcome]:
    found: list[_Case | Outcome] = []
    for figure in with_same(figures):
        try:
            recipe = recipe_of(figure)
            cluster = find_cluster(figure)
            recipe.check()
        except (Skip, UserError) as reason:
            found.append(Outcome(figure, skipped=str(reason)))
        else:
            found.append(_Case(figure, recipe, cluster, _stack_of(figure, stacks)))
    return found


def _stack_of(figure: Figure, stacks: Sequence[Stack]) -> Stack:
    for stack in stacks:
        if stack.matches(figure.system):
            return stack
    return Stack((figure.system.lower(),), Software(figure.system), {})


def _settled_here(cases: Sequence[_Case]) -> dict[tuple[str, str], tuple[Software, str | None]]:
    """For each stack and device: as known, or settled by one of several figures at hand."""
    groups: dict[tuple[str, str], list[_Case]] = {}
    for case in cases:
        groups.setdefault((case.stack.software.name, case.device), []).append(case)
    found: dict[tuple[str, str], tuple[Software, str | None]] = {}
    for (name, device), group in groups.items():
        stack = group[0].stack
        if device in stack.software.efficiency:
            found[name, device] = stack.software, stack.settled_by.get(device)
            continue
        told = [case for case in group if case.figure.value]
        if len(told) > 1:
            first = min(told, key=lambda case: case.recipe.devices)
            found[name, device] = _solve(first, stack.software, device), first.figure.id
    return found


def _assumed(case: _Case, stacks: Sequence[Stack]) -> tuple[Software, None]:
    """An efficiency that no figure settled: the stack's elsewhere, or others' on that device."""
    own = case.stack.software
    others = [s.software.efficiency[case.device] for s in _with(case.device, stacks)]
    known = list(own.efficiency.values()) or others or [1.0]
    return replace(own, efficiency={**own.efficiency, case.device: median(known)}), None


def _with(device: str, stacks: Iterable[Stack]) -> list[Stack]:
    return [stack for stack in stacks if device in stack.software.efficiency]


def _solve(case: _Case, software: Software, device: str) -> Software:
    """With the efficiency at which the prediction is what was published."""

    def at(efficiency: float) -> Software:
        return replace(software, efficiency={**software.efficiency, device: efficiency})

    return at(_meet(case, at, 0.05, 20.0))


def _solve_floor(case: _Case, software: Software) -> Software:
    def at(floor: float) -> Software:
        return replace(software, floor=floor)

    return at(_meet(case, at, 100.0, 0.001))


def _meet(case: _Case, at: Callable[[float], Software], slow: float, fast: float) -> float:
    """Between a value that makes a run slow and one that makes it fast, by bisection of logs."""
    value = case.figure.value
    if not value:
        raise UserError(f"{case.figure.id} settles an efficiency, but has no value")
    faster_is_more = case.figure.metric == "fps"
    for _ in range(40):
        middle = sqrt(slow * fast)
        predicted = case.predict(at(middle))
        too_slow = predicted < value if faster_is_more else predicted > value
        slow, fast = (middle, fast) if too_slow else (slow, middle)
    return sqrt(slow * fast)
