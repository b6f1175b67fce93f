"""Stages of a plan on devices of several kinds: more layers for those that are faster or larger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from longtake.scheduler.balance import balance
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.simulator_efforts import WorkerCosts, ranks_of_stages
from longtake.scheduler.task import Task


def suit_stages(
    degrees: Degrees,
    spec: ModelSpec,
    cluster: Cluster,
    task: Task,
    costs_of: Callable[[Degrees], WorkerCosts],
) -> Degrees:
    """The same degrees, with as many layers on each stage as suit its slowest, smallest device.

    They stay as they are where all stages have devices of the same kinds, or no split fits.

    Args:
        degrees: without `stage_layers`.
        spec: of the model.
        cluster: ranks are its first devices.
        task: an evaluation that is typical of the strategy.
        costs_of: reckons for degrees.
    """
    members = [
        {cluster.devices[rank].name: rank for rank in reversed(ranks)}
        for ranks in ranks_of_stages(degrees)
    ]
    even = [len(own) for own in shares(spec.layers, degrees.stages)]
    if all(set(found) == set(members[0]) for found in members) or spec.layers == degrees.stages:
        return degrees
    costs = costs_of(degrees)
    pace, room = [], []
    for stage, found in enumerate(members):
        part = replace(task, stage=stage)
        pace.append(max(costs.seconds(part, rank) for rank in found.values()) / even[stage])
        by, other = (-1 if even[stage] > 1 else 1), int(stage == 0)
        moved = list(even)
        moved[stage] += by
        moved[other] -= by
        less = costs_of(replace(degrees, stage_layers=tuple(moved)))
        free = []
        for rank in found.values():
            held = costs.memory(rank)
            per_layer = (less.memory(rank) - held) / by
            free.append(int((cluster.devices[rank].memory - held) // per_layer))
        room.append(even[stage] + min(free))
    own = balance(spec.layers, pace, room)
    return degrees if own is None else replace(degrees, stage_layers=own)
