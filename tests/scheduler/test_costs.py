"""The cost model: what it adds up, and what makes it larger or smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest

from longtake.scheduler import flops
from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.known_models import WAN_1_3B
from longtake.scheduler.plan import EVALUATIONS, Plan
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Strategy
from longtake.scheduler.software import Software
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.cascade import Cascade
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Task

# Reaches its peak whatever the size, and moves bytes in no time: seconds are FLOPs.
IDEAL = Device(
    "ideal",
    1e18,
    {"bfloat16": 1e12, "tf32": 1e12},
    1e30,
    Efficiency({"flash-2": 1.0}, 1.0, 1.0),
    launch_floor=0.0,
    convolution_floor=0.0,
    watts=1.0,
)
WINDOW = Retention(12, 3, Positions.RELATIVE, recache=False)
STEPS = 4


def request(seconds: float = 5.0, guidance: float = 1.0) -> Request:
    return Request((Cue(0.0, "a"),), seconds, 480, 832, 16, guidance=guidance)


def costs(
    strategy: Strategy,
    degrees: Degrees | None = None,
    device: Device = IDEAL,
    guidance: float = 1.0,
    software: Software | None = None,
    spec: ModelSpec = WAN_1_3B,
) -> Costs:
    degrees = degrees or Degrees()
    cluster = Cluster("one", (Node(device, degrees.world, Link(1e9, 0.0)),))
    software = software or Software()
    return Costs(spec, request(guidance=guidance), degrees, cluster, 2, strategy, software)


def tasks(strategy: Strategy, guidance: float = 1.0) -> list[Task]:
    return list(Schedule(strategy, request(guidance=guidance), WAN_1_3B, STEPS))


def first(strategy: Strategy, kind: Kind, guidance: float = 1.0) -> Task:
    return next(task for task in tasks(strategy, guidance) if task.kind is kind)


def test_an_ideal_device_takes_what_there_is_to_compute() -> None:
    step = first(Bidirectional(), Kind.DENOISE)
    reckoned = flops.forward_flops(WAN_1_3B, 32_760) - flops.time_flops(WAN_1_3B, 1)
    assert costs(Bidirectional()).seconds(step, 0) == pytest.approx(reckoned / 1e12, rel=1e-9)


def test_a_causal_step_attends_to_its_window() -> None:
    causal = Causal(WINDOW)
    steps = [task for task in tasks(causal) if task.kind is Kind.DENOISE]
    seen = {sum(map(len, task.context)) + 3 for task in steps}
    assert seen == {3, 6, 9, 12}
    whole = costs(causal)
    for task in steps:
        keys = 1560 * (3 + sum(map(len, task.context)))
        reckoned = flops.forward_flops(WAN_1_3B, 4680, keys) - flops.time_flops(WAN_1_3B, 1)
        assert whole.seconds(task, 0) == pytest.approx(reckoned / 1e12, rel=1e-9)


@pytest.mark.parametrize(
    "degrees",
    [
        Degrees(cfg=2),
        Degrees(ring=4),
        Degrees(ulysses=6),
        Degrees(stages=5),
        Degrees(cfg=2, stages=3, ring=2, ulysses=2),
    ],
    ids=Degrees.describe,
)
def test_workers_share_the_whole_and_nothing_more(degrees: Degrees) -> None:
    """On an ideal device, the seconds of all workers add up to those of one."""
    for strategy in (Bidirectional(), Causal(WINDOW)):
        one, many = costs(strategy, guidance=5.0), costs(strategy, degrees, guidance=5.0)
        plan = Plan(degrees, 2)
        for kind in (Kind.DENOISE, Kind.COMMIT):
            whole = [task for task in tasks(strategy, 5.0) if task.kind is kind][:1]
            parts = [part for part in plan.parts(whole) if part.kind in EVALUATIONS]
            total = sum(many.seconds(part, rank) for part in parts for rank in range(degrees.world))
            assert total == pytest.approx(sum(one.seconds(task, 0) for task in whole), rel=1e-9)


def test_the_parts_of_a_launch_are_shared_out() -> None:
    cascade = Cascade(WINDOW, 3, 1, "both")
    launch = max((t for t in tasks(cascade) if t.parts), key=lambda task: len(task.parts))
    one, three = costs(cascade), costs(cascade, Degrees(clip=3))
    shares = [three.seconds(launch, rank) for rank in range(3)]
    assert sum(shares) == pytest.approx(one.seconds(launch, 0), rel=1e-9)
    assert max(shares) < 0.5 * sum(shares)


def test_rank_0_alone_reads_and_decodes() -> None:
    shared = costs(Bidirectional(), Degrees(ring=2))
    decode = first(Bidirectional(), Kind.DECODE)
    assert shared.seconds(decode, 0) > 0 == shared.seconds(decode, 1)
    encode = first(Bidirectional(), Kind.ENCODE)
    assert shared.seconds(encode, 0) > shared.seconds(encode, 1) > 0
    assert shared.memory(0) > shared.memory(1)


def test_small_launches_are_less_efficient() -> None:
    tiled = replace(IDEAL, efficiency=Efficiency({"flash-2": 1.0}, 1.0, 1.0, 8448, 2_162_688))
    small, large = (first(s, Kind.DENOISE) for s in (Causal(WINDOW), Bidirectional()))
    slower = [
        costs(s, device=tiled).seconds(task, 0) / costs(s).seconds(task, 0)
        for s, task in ((Causal(WINDOW), small), (Bidirectional(), large))
    ]
    assert slower[0] > 1.15 > 1.05 > slower[1] > 1


def test_no_forward_is_faster_than_its_launches() -> None:
    step = first(Causal(WINDOW), Kind.DENOISE)
    slow = replace(IDEAL, launch_floor=10.0)
    assert costs(Causal(WINDOW), device=slow).seconds(step, 0) == 300.0
    halves = costs(Causal(WINDOW), Degrees(stages=2), slow)
    assert halves.seconds(replace(step, stage=1), 1) == 150.0
    compiled = Software(floor=0.1)
    assert costs(Causal(WINDOW), device=slow, software=compiled).seconds(step, 0) == 30.0


def test_a_host_that_waits_for_the_device_can_not_launch_ahead() -> None:
    step = first(Causal(WINDOW), Kind.DENOISE)
    slow = replace(IDEAL, launch_floor=10.0)
    waits = costs(Causal(WINDOW), device=slow, software=Software(synchronises=True))
    assert waits.seconds(step, 0) > 300.0


@pytest.mark.parametrize("field", ["bytes_per_second", "peak", "memory_share"])
def test_more_never_takes_longer(field: str) -> None:
    """Of a real device's description, with every strategy's launches."""
    found = Efficiency({"flash-2": 0.37}, 0.68, 0.27, 8448, 2_162_688)
    peak = {"bfloat16": 1e15, "tf32": 5e14}
    device = replace(IDEAL, peak=peak, bytes_per_second=3e12, efficiency=found, launch_floor=1e-3)
    better = {
        "bytes_per_second": replace(device, bytes_per_second=6e12),
        "peak": replace(device, peak={name: 2 * value for name, value in peak.items()}),
        "memory_share": replace(device, efficiency=replace(found, memory=1.0)),
    }[field]
    for strategy in (Bidirectional(), Causal(WINDOW), Cascade(WINDOW, 3)):
        for task in tasks(strategy)[:12]:
            now = costs(strategy, device=better).seconds(task, 0)
            assert now <= costs(strategy, device=device).seconds(task, 0)


def test_volumes_are_those_of_the_books() -> None:
    """Ulysses sends 4 N d / P a layer, less what stays; a ring 2 N d, less its own share."""
    tokens, width, layers, itemsize, workers = 32_760, 1536, 30, 2, 4
    step = first(Bidirectional(), Kind.DENOISE)
    ulysses = costs(Bidirectional(), Degrees(ulysses=workers)).exchanges(step, 0)
    sent = sum(e.bytes for e in ulysses if e.name.startswith("ulysses"))
    share = 4 * tokens * width / workers * (workers - 1) / workers
    assert sent == layers * share * itemsize
    assert not any(e.overlappable for e in ulysses)

    ring = costs(Bidirectional(), Degrees(ring=workers)).exchanges(step, 0)
    (around,) = (e for e in ring if e.name.startswith("ring"))
    assert around.bytes == layers * 2 * tokens * width * (workers - 1) / workers * itemsize
    assert around.overlappable
    assert around.ranks == (0, 1, 2, 3)


def test_memory_of_a_cache() -> None:
    """One latent frame's keys and values of Wan 1.3B take 287.5 MB in bfloat16."""
    held = costs(Causal(WINDOW)).footprint(0)
    assert held.cache == 12 * 2 * 30 * 1560 * 1536 * 2
    assert held.cache / 12 == pytest.approx(287.5e6, rel=1e-3)
    assert held.transformer == 2 * flops.transformer_weights(WAN_1_3B)
    split = [
        costs(Causal(WINDOW), Degrees(stages=2, ring=2)).footprint(rank).cache for rank in range(4)
    ]
    assert sum(split) == held.cache
