"""`longtake simulate`: what a run would take on a described cluster, and how it would look."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from longtake.launch import auto_plan
from longtake.launch.auto_plan import Described
from longtake.launch.painting import check_picture, write_picture
from longtake.launch.plan import Question
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.forecast import Outlook
from longtake.scheduler.gantt import draw_gantt
from longtake.scheduler.perfetto import Process, write_trace
from longtake.scheduler.picture import Picture
from longtake.scheduler.plan import Plan
from longtake.scheduler.planner import needs_more
from longtake.scheduler.prediction import Prediction
from longtake.scheduler.simulator import CALM, Conditions, Job, Loss, simulate
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.timeline import Action

LARGE = 150_000  # parts of tasks; beyond, a run is reckoned from its rhythm where it has one


@dataclass(frozen=True)
class Simulated:
    """A simulated run; `actions` are there where they were asked for."""

    question: Question
    plan: Plan
    efforts: ClusterEfforts
    prediction: Prediction
    actions: tuple[Action, ...]


def run_simulation(
    question: Question, conditions: Conditions = CALM, keep_actions: bool = False
) -> Simulated:
    """Simulate the plan of a question's settings.

    Raises:
        UserError: the plan is impossible, or needs more memory or devices than there are.
    """
    strategy, request, spec = question.strategy, question.request, question.spec
    job = Job(strategy, request, spec, question.steps)
    degrees = choose_degrees(question)
    plan = Plan(degrees, 2 if request.guidance > 1 else 1, strategy.label)
    costs = question.costs(strategy, degrees, question.cluster)
    efforts = ClusterEfforts(plan, costs, question.cluster)
    if short := efforts.shortages:
        told = needs_more(short[0], question.cluster)
        raise UserError(f"{degrees.describe()} {told}; `longtake plan` finds what fits")
    actions: list[Action] = []
    if keep_actions:
        found = simulate(job, plan, efforts, conditions, actions.append)
    elif conditions == CALM:
        found = predict(job, plan, efforts)
    else:
        found = simulate(job, plan, efforts, conditions)
    return Simulated(question, plan, efforts, found, tuple(actions))


def predict(job: Job, plan: Plan, efforts: ClusterEfforts, large: int = LARGE) -> Prediction:
    """Simulate a job; beyond `large` parts of tasks from its rhythm, where it has one.

    Raises:
        UserError: the strategy can't do it.
    """
    outlook = Outlook(job)
    if _parts(outlook, plan) > large:
        return outlook.predict(plan, efforts)
    return simulate(job, plan, efforts)


def choose_degrees(question: Question) -> Degrees:
    """As a run would place its workers.

    Raises:
        UserError: they can't be placed so, or the cluster has fewer devices.
    """
    settings, cluster = question.settings.parallel, question.cluster
    if settings.workers > len(cluster.devices):
        raise UserError(
            f"{settings.workers} workers need a device each, but {cluster.name} has "
            f"{len(cluster.devices)}"
        )
    job = Job(question.strategy, question.request, question.spec, question.steps)
    described = Described(cluster, cluster.name)
    spread = not cluster.nodes[0].shares_memory
    placed = auto_plan.choose_degrees(
        settings, job, question.itemsize, lambda: described, spread=spread
    )
    return placed.degrees


def _parts(outlook: Outlook, plan: Plan) -> float:
    apart = plan.branches if plan.degrees.stages > 1 and plan.degrees.cfg == 1 else 1
    return sum(count.number for count in outlook.counts) * plan.degrees.stages * apart


def read_conditions(
    seed: int,
    jitter: float,
    stragglers: Sequence[str],
    losses: Sequence[str],
    restart: float,
) -> Conditions:
    """What goes wrong: RANK=FACTOR for a straggler, SECONDS or SECONDS=RANK for a loss.

    Raises:
        UserError: one of them is not of that form.
    """
    slow = dict(_pair(text, "straggler", "RANK=FACTOR, such as 3=1.5") for text in stragglers)
    lost = [
        _pair(text if "=" in text else f"{text}=0", "lose", "SECONDS or SECONDS=RANK")
        for text in losses
    ]
    return Conditions(
        seed=seed,
        jitter=jitter,
        stragglers={int(rank): factor for rank, factor in slow.items()},
        losses=tuple(Loss(at, int(worker)) for at, worker in lost),
        restart=restart,
    )


def _pair(text: str, option: str, form: str) -> tuple[float, float]:
    first, _, second = text.partition("=")
    try:
        return float(first), float(second)
    except ValueError:
        raise UserError(f"--{option} must be {form}; got {text!r}") from None


def tell_simulation(
    question: Question, conditions: Conditions, draw: Path | None, trace: Path | None, as_json: bool
) -> None:
    """Simulate, write what was asked for, and tell."""
    if draw is not None:
        check_picture(draw)
    made = run_simulation(question, conditions, draw is not None or trace is not None)
    names = lane_names(made)
    if draw is not None:
        write_picture(gantt_of(made, names), draw)
    if trace is not None:
        hosts = {rank: question.cluster.devices[rank].name for rank in names}
        processes = (
            Process(rank, hosts[rank], [a for a in made.actions if a.worker == rank])
            for rank in names
        )
        write_trace(trace, processes, 0.0)
    degrees = made.plan.degrees
    if as_json:
        told = {
            **question.to_dict(),
            "strategy": question.settings.strategy.kind,
            "label": question.strategy.label,
            "degrees": asdict(degrees),
            "workers": degrees.world,
            **made.prediction.to_dict(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        return
    from longtake.launch.plan_tables import prediction_text

    sys.stdout.write(prediction_text(question, degrees.describe(), made.prediction) + "\n")


def lane_names(made: Simulated) -> dict[int, str]:
    """What to call the first worker of each lane."""
    named = {}
    for name, workers in made.efforts.workers.items():
        many = f"{len(workers)} workers" if len(workers) > 1 else f"worker {workers[0]}"
        named[workers[0]] = f"{name} ({many})"
    return named


def gantt_of(made: Simulated, names: Mapping[int, str]) -> Picture:
    """Who does what when."""
    kind, degrees = made.question.settings.strategy.kind, made.plan.degrees.describe()
    title = f"{kind} on {made.question.cluster.name}, {degrees}"
    return draw_gantt(made.actions, names, title, made.question.steps)
