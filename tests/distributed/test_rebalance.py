"""Layers that move between stages while a run goes on: exact, agreed upon, by measured times."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
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
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.plan import Plan
from longtake.scheduler.rebalance import StagePace
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

    `balance` is a book, or None for a measured one, by which all takes long on the stage `slow`.
    """
    torch.set_num_threads(1)
    blocks = Blocks()
    with open_mesh(rendezvous, degrees, CPU) as mesh:
        own = share(walk, mesh)
        schedule, first = walk.schedule(), mesh.rank == 0
        measured = Measured(mesh, schedule.spec, mesh.place.stage == slow)
        decides = measured if balance is None else Script(balance)
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
    """Keeps the layouts; if it is `slow`, its clock says so, whatever else the machine does."""

    def __init__(self, mesh: Mesh, spec: ModelSpec, slow: bool) -> None:
        super().__init__(mesh, spec, forget, room=lambda: LAYERS)
        self.seen: list[tuple[int, ...]] = []
        self.slow = slow

    def note(self, action: Action) -> None:
        super().note(replace(action, stop=action.start + 100.0) if self.slow else action)

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
    assert found[0][1] == found[1][1] == [(4, 1)]


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
        balance = MeasuredBalance(mesh, spec, forget, lambda: LAYERS)
        notes(balance, range(LAUNCHES - 1), 1.0)
        assert not mesh.store.has("pace/0/0/0")
        notes(balance, range(LAUNCHES - 1, LAUNCHES), 1.0)
        assert told(mesh, 0, 0) == StagePace(LAYERS, 1.0, 0.0, room=LAYERS)
        notes(balance, range(LAUNCHES, 2 * LAUNCHES), 1.0, decode=1.5)
        assert told(mesh, 0, 1) == StagePace(LAYERS, 1.0, 0.5, room=LAYERS)
        balance.moved((LAYERS,))
        notes(balance, range(-LAUNCHES, 0), 1.0)  # of launches before the move
        assert not mesh.store.has("pace/1/0/0")


def told(mesh: Mesh, moves: int, number: int) -> StagePace:
    """The number-th round after so many moves, of the only stage."""
    return StagePace(**json.loads(mesh.store.get(f"pace/{moves}/{number}/0")))


def test_layers_go_by_the_latest_times_since_the_last_move() -> None:
    """There may be several rounds to a block; what has been read is gone."""
    with alone(CPU) as mesh:
        balance = MeasuredBalance(mesh, STREAM.schedule().spec, forget, lambda: LAYERS)
        balance._layers = (3, 2)

        def tell(moves: int, number: int, *paces: StagePace) -> list[str]:
            keys = [f"pace/{moves}/{number}/{stage}" for stage in range(len(paces))]
            for key, pace in zip(keys, paces, strict=True):
                mesh.store.set(key, json.dumps(asdict(pace)))
            return keys

        slow, fast = StagePace(2, 9.0, 0.0, LAYERS), StagePace(3, 1.0, 0.0, LAYERS)
        keys = tell(0, 0, fast, fast) + tell(0, 1, fast, slow)
        tell(0, 2, fast)  # not all stages have told
        assert balance.propose() == (4, 1)
        assert not any(mesh.store.has(key) for key in keys)
        balance.moved((4, 1))
        tell(0, 2, fast, slow)
        assert balance.propose() is None
        tell(1, 0, replace(fast, layers=4, own=9.0), replace(slow, layers=1, own=1.0))
        assert balance.propose() == (1, 4)
