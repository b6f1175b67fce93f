"""The ring is exact, overlaps, holds two shares, and mistakes in it don't go unnoticed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longtake.kernels.attention import attention, attention_with_lse
from longtake.kernels.merge import Partial
from longtake.parallel.mesh import Rendezvous, open_mesh
from longtake.parallel.ring import RingAttention
from longtake.scheduler.degrees import Degrees, shares
from longtake.scheduler.timeline import Action, Activity

CPU = torch.device("cpu")
TOLERANCE = 2e-5  # of the largest value, in float32
HEADS, WIDTH = 2, 32


class DropHop(RingAttention):
    """Forgets the second share that it sees."""

    seen = 0

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        self.seen += 1
        if self.seen == 2 and partial is not None:
            return partial
        return super()._add(partial, q, k, v)


class CountTwice(RingAttention):
    """Takes its own keys in again when it has them already."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        first = partial is None
        partial = super()._add(partial, q, k, v)
        return super()._add(partial, q, k, v) if first else partial


class AttendPadding(RingAttention):
    """Attends to one key of zeros behind every share."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        k, v = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
        return super()._add(partial, q, k, v)


class RoundLse(RingAttention):
    """Keeps the log-sum-exp of each part in bfloat16."""

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        out, lse = attention_with_lse(q, k, v)
        lse = lse.bfloat16().float()
        if partial is None:
            return Partial.start(out, lse)
        partial.add(out, lse)
        return partial


def case(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, 2, tokens, HEADS, WIDTH, generator=draw).to(dtype)
    return 2 * q, k, v


def error(got: Tensor, tokens: int) -> float:
    """The largest difference from attention in one process, relative to the largest value."""
    want = attention(*case(tokens))
    return float((got - want).abs().max() / want.abs().max())


def attend(
    meeting: Rendezvous, kinds: list[type[RingAttention]], sizes: list[int], dtype: torch.dtype
) -> list[Tensor]:
    """Every kind of ring on every number of tokens; gathered on all workers."""
    answers = []
    with open_mesh(meeting, Degrees(ring=meeting.world), CPU) as mesh:
        for kind in kinds:
            ring = kind(mesh.ring)
            for tokens in sizes:
                parts = shares(tokens, meeting.world)
                lengths = [len(part) for part in parts]
                own = slice(parts[mesh.rank].start, parts[mesh.rank].stop)
                q, k, v = (x[:, own] for x in case(tokens, dtype))
                answers.append(mesh.ring.all_gather(ring.attend(q, k, v, lengths), lengths, 1))
    return answers


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_ring_equals_one_process(workers: Any, world: int) -> None:
    sizes = [*range(1, world + 1), *range(5 * world, 6 * world), 8]  # also: fewer after more
    for answers in workers.run(world, attend, [RingAttention], sizes, torch.float32):
        for tokens, got in zip(sizes, answers, strict=True):
            assert error(got, tokens) < TOLERANCE


def test_wrong_rings_are_noticed(workers: Any) -> None:
    kinds = [RingAttention, DropHop, CountTwice, AttendPadding, RoundLse]
    answers = workers.run(3, attend, kinds, [31], torch.float32)[0]
    right, *wrong = [error(got, 31) for got in answers]
    assert right < TOLERANCE
    assert min(wrong) > 10 * TOLERANCE, dict(zip(kinds[1:], wrong, strict=True))


def test_bfloat16_is_rounded_once(workers: Any) -> None:
    q, k, v = (x.float() for x in case(29, torch.bfloat16))
    once = attention(q, k, v).bfloat16().float()
    got = workers.run(4, attend, [RingAttention], [29], torch.bfloat16)[0][0]
    # Each kernel call rounds its part too; what must not be rounded is the sum over the ring.
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), once, rtol=2**-6, atol=2**-7)


class Patient(RingAttention):
    """Attends to a share only when the next one has come: impossible unless it is in flight."""

    actions: list[Action]
    seen = 0

    def _add(self, partial: Partial | None, q: Tensor, k: Tensor, v: Tensor) -> Partial:
        self.seen += 1
        if self.seen < 3:
            deadline = time.monotonic() + 5
            while hops(self.actions) < self.seen:
                assert time.monotonic() < deadline, "the next hop is not in flight"
                time.sleep(0.001)
        return super()._add(partial, q, k, v)


def hops(actions: list[Action]) -> int:
    return sum(done.name == "ring exchange" for done in actions if done.activity == "transfer")


def overlap(meeting: Rendezvous) -> list[Action]:
    actions: list[Action] = []
    with open_mesh(meeting, Degrees(ring=3), CPU, actions.append) as mesh:
        actions.clear()
        ring = Patient(mesh.ring)
        ring.actions = actions
        q, k, v = case(4)
        ring.attend(q, k, v, [4, 4, 4])
        return list(actions)


def test_the_next_hop_is_in_flight_while_this_one_computes(workers: Any) -> None:
    per_share = 2 * 2 * 4 * HEADS * WIDTH * 4  # keys and values, batch, tokens, float32
    for rank, actions in enumerate(workers.run(3, overlap)):
        done = [action for action in actions if action.activity is Activity.TRANSFER]
        assert [(hop.name, hop.bytes) for hop in done] == [("ring exchange", per_share)] * 2
        assert all(action.worker == rank and action.start <= action.stop for action in actions)
        assert done[0].stop <= done[1].start


def be_late(meeting: Rendezvous) -> list[Action]:
    actions: list[Action] = []
    with open_mesh(meeting, Degrees(ring=2), CPU, actions.append) as mesh:
        actions.clear()
        if mesh.rank == 1:
            time.sleep(0.2)
        mesh.ring.exchange(torch.ones(3), torch.empty(3)).wait()
        return list(actions)


def test_waiting_for_a_late_peer_is_recorded(workers: Any) -> None:
    prompt, _ = workers.run(2, be_late)
    (wait,) = [action for action in prompt if action.activity is Activity.WAIT]
    (move,) = [action for action in prompt if action.activity is Activity.TRANSFER]
    assert wait.name == move.name == "ring exchange" and wait.bytes == 0 and move.bytes == 12
    assert move.start <= wait.start < move.stop <= wait.stop


def peak(meeting: Rendezvous, keys: int) -> tuple[float, float]:
    """By how many shares the process grows at its peak, in a first and a second call."""
    share = 2 * keys * HEADS * WIDTH * 4
    draw = torch.Generator().manual_seed(meeting.rank)
    k, v = torch.randn(2, 1, keys, HEADS, WIDTH, generator=draw)
    q = torch.randn(1, 16, HEADS, WIDTH, generator=draw)
    with open_mesh(meeting, Degrees(ring=meeting.world), CPU) as mesh:
        ring = RingAttention(mesh.ring)
        ring.attend(q, k[:, :64], v[:, :64], [64] * meeting.world)  # what is loaded only once
        grown = []
        for _ in range(2):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
            before = resident("VmRSS")
            ring.attend(q, k, v, [keys] * meeting.world)
            grown.append((resident("VmHWM") - before) / share)
            mesh.ring.barrier()
    return grown[0], grown[1]


def resident(field: str) -> int:
    """Bytes of this process in memory, now or at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_worker_holds_two_shares_not_four(workers: Any) -> None:
    for first, second in workers.run(4, peak, 32_768):
        assert 1.0 < first < 2.5  # two buffers, or less from freed pages; gathering takes four
        assert second < 0.5  # the same two again
