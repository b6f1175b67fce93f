"""Layers that move between stages while a run goes on: exact, agreed upon, by measured times."""

from __future__ import annotations

import copy
from dataclasses import replace
from time import sleep
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from tests.distributed.test_stream import CUES, WINDOW
from tests.distributed.walks import (
    CPU,
    TEXT_TOKENS,
    TEXT_WIDTH,
    TOLERANCE,
    Blocks,
    Walk,
    alone_made,
    distance,
    encode,
    transformer,
)
from torch import Tensor, nn

from longtake.parallel.balance import LAUNCHES, MeasuredBalance
from longtake.parallel.mesh import Mesh, Rendezvous, alone, open_mesh
from longtake.runtime.member import Member
from longtake.runtime.noise import SeededNoise
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.plan import Plan
from longtake.scheduler.schedule import Verdict
from longtake.scheduler.strategies.rolling import Rolling
from longtake.scheduler.strategies.stream import StreamBatch
from longtake.scheduler.task import Kind
from longtake.scheduler.timeline import Action, Activity, forget

LAYERS = 5
STREAM = Walk(StreamBatch(WINDOW, 3, apart=2), 16, cues=CUES, layers=LAYERS)
ROLLING = Walk(Rolling(replace(WINDOW, window=8), 3), 16, layers=LAYERS)


class Script:
    """Layers move before the blocks of the book; the others do as rank 0 says."""

    def __init__(self, book: dict[int, tuple[int, ...]]) -> None:
        self.book, self.block = book, -1
        self.seen: list[tuple[int, ...]] = []

    def note(self, action: Action) -> None:
        pass

    def propose(self) -> tuple[int, ...] | None:
        self.block += 1
        return self.book.get(self.block)

    def moved(self, layers: tuple[int, ...]) -> None:
        self.seen.append(layers)


def share(walk: Walk, mesh: Mesh) -> WanTransformer:
    """Only this worker's layers, so that what moves has to come from another."""
    module: WanTransformer3DModel = copy.deepcopy(transformer(walk.layers).module)
    own = mesh.degrees.layers(mesh.place.stage, walk.schedule().spec).frames()
    for layer in range(walk.layers):
        if layer not in own:
            module.blocks[layer] = nn.Identity()
    return WanTransformer(module)


def take(
    rendezvous: Rendezvous, walk: Walk, degrees: Degrees, balance: Any, slow: int | None = None
) -> tuple[Tensor | None, list[tuple[int, ...]], list[int]]:
    """What is made, on rank 0; the layouts that came to be; the layers that are here at last.

    `balance` is a book, or None for a measured one; layers take long on the stage `slow`.
    """
    torch.set_num_threads(1)
    blocks = Blocks()
    with open_mesh(rendezvous, degrees, CPU) as mesh:
        own = share(walk, mesh)
        if mesh.place.stage == slow:
            project = own._project
            own._project = lambda *args: (sleep(0.01), project(*args))[1]  # type: ignore[method-assign]
        schedule, first = walk.schedule(), mesh.rank == 0
        decides = Script(balance) if balance is not None else Measured(mesh, schedule.spec, forget)
        Member(
            own,
            schedule,
            walk.make_sampler(),
            SeededNoise(3),
            mesh,
            (TEXT_TOKENS, TEXT_WIDTH),
            encode if first else None,
            blocks if first else None,
            balance=decides,
        ).run()
        here = [i for i, b in enumerate(own.module.blocks) if not isinstance(b, nn.Identity)]
    return blocks.latents if first else None, decides.seen, here


class Measured(MeasuredBalance):
    """Keeps the layouts."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[int, ...]] = []

    def moved(self, layers: tuple[int, ...]) -> None:
        super().moved(layers)
        self.seen.append(layers)


@pytest.mark.parametrize(
    ("walk", "degrees", "book"),
    [
        (STREAM, Degrees(stages=2), {4: (1, 4), 6: (4, 1)}),
        (STREAM, Degrees(stages=3), {3: (1, 1, 3), 6: (3, 1, 1)}),
        (STREAM, Degrees(stages=2, clip=2), {5: (2, 3)}),
        (replace(STREAM, guidance=2.0), Degrees(stages=2, ulysses=2), {4: (4, 1)}),
        (ROLLING, Degrees(stages=2), {3: (1, 4), 5: (2, 3)}),
    ],
    ids=str,
)
def test_21_what_is_made_is_the_same_wherever_layers_move(
    workers: Any, walk: Walk, degrees: Degrees, book: dict[int, tuple[int, ...]]
) -> None:
    found = workers.run(degrees.world, take, walk, degrees, book, timeout=60)
    assert distance(found[0][0], alone_made(walk)) < TOLERANCE
    for rank, (_, seen, here) in enumerate(found):
        assert seen == list(book.values())
        before = sum(seen[-1][: degrees.place(rank).stage])
        assert here == list(range(before, before + seen[-1][degrees.place(rank).stage]))


def test_21_layers_leave_a_stage_that_is_slow(workers: Any) -> None:
    walk = replace(STREAM, frames=2 * (LAUNCHES + 14))
    found = workers.run(2, take, walk, Degrees(stages=2), None, 1, timeout=60)
    assert distance(found[0][0], alone_made(walk)) < TOLERANCE
    assert found[0][1] == found[1][1] and found[0][1][0] == (4, 1)


def test_all_flows_are_in_before_layers_move() -> None:
    schedule = STREAM.schedule()
    moved = schedule.tasks(lambda block: Verdict(layers=(1, 4) if block == 4 else None))
    parts = list(Plan(Degrees(stages=2)).parts(moved))
    at = [i for i, part in enumerate(parts) if part.kind is Kind.REBALANCE]
    assert [parts[i].stage for i in at] == [0, 1] and at[1] == at[0] + 1
    assert parts[at[0]].describe() == "rebalance to 1+4 layers"
    before = [part.kind for part in parts[: at[0]]]
    last = [part for part in parts[: at[0]] if part.kind is Kind.DENOISE and part.stage == 1]
    assert before.count(Kind.ADVANCE) == len(last)


def notes(balance: MeasuredBalance, launches: range, seconds: float, decode: float = 0.0) -> None:
    """Launches, beside each of which a block may be decoded that begins with it."""
    for index in launches:
        start = 100.0 * index
        if decode:
            balance.note(
                Action(0, Activity.COMPUTE, "decode", start, start + decode, lane="decode")
            )
        balance.note(Action(0, Activity.COMPUTE, "denoise of block 1", start, start + seconds))


def test_what_is_done_beside_a_launch_counts_once() -> None:
    spec = STREAM.schedule().spec
    with alone(CPU) as mesh:
        balance = MeasuredBalance(mesh, spec, forget)
        notes(balance, range(LAUNCHES - 1), 1.0)
        assert not mesh.store.has("pace/0/0")
        notes(balance, range(LAUNCHES - 1, LAUNCHES), 1.0)
        assert mesh.store.get("pace/0/0") == '{"layers": 5, "own": 1.0, "beside": 0.0}'
        notes(balance, range(LAUNCHES, 2 * LAUNCHES), 1.0, decode=1.5)
        assert mesh.store.get("pace/1/0") == '{"layers": 5, "own": 1.0, "beside": 0.5}'


def test_times_from_before_a_move_are_not_taken_for_those_after_it() -> None:
    spec = STREAM.schedule().spec
    with alone(CPU) as mesh:
        balance = MeasuredBalance(mesh, spec, forget)
        balance._layers = (3, 2)
        slow = '{"layers": %d, "own": %f, "beside": 0.0}'
        for tick, (layers, own) in enumerate([((3, 2), (1, 9)), ((3, 2), (1, 9))]):
            for stage in (0, 1):
                mesh.store.set(f"pace/{tick}/{stage}", slow % (layers[stage], own[stage]))
        assert balance.propose() == (4, 1)
        balance.moved((4, 1))
        assert balance.propose() is None
        assert balance.propose() is None  # nothing is there yet
