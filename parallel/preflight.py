"""Before a run: what the workers tell each other, and how fast the links between them are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.distributed import is_nccl_available

from longtake.parallel.group import Group
from longtake.parallel.mesh import Mesh
from longtake.parallel.store import Store

SECONDS = 5.0  # for the collective, and once more for all pairs of workers
PAIR_SECONDS = 0.2  # for one pair at most
PINGS = 20
SLOW = 0.25  # of the usual speed
SMALLEST, GROWTH, LARGEST = 1 << 16, 4, 1 << 26  # bytes of a message


@dataclass(frozen=True)
class PairSpeed:
    """The link from one worker to another.

    Attributes:
        source, target: ranks.
        megabytes: per second, of 10^6 bytes, in large messages.
        microseconds: half of the shortest round trip.
    """

    source: int
    target: int
    megabytes: float
    microseconds: float


@dataclass(frozen=True)
class Links:
    """All links.

    Attributes:
        pairs: every ordered pair of workers; each was measured while the others were silent.
        together: megabytes per second that each worker receives while all send to all.
    """

    pairs: tuple[PairSpeed, ...]
    together: float


def share(
    store: Store, rank: int, world: int, topic: str, text: str, timeout: float | None = None
) -> list[str]:
    """Tell the others a text, once for a topic, and hear theirs; the result is by rank.

    Rank 0 keeps the store, so it returns when all others have heard it too.

    Raises:
        CommunicationError: somebody does not tell theirs within `timeout` seconds.
    """
    store.set(f"preflight/{topic}/{rank}", text)
    told = recall(store, world, topic, timeout)
    store.set(f"preflight/{topic}/{rank}/heard", "")
    if rank == 0:
        for peer in range(1, world):
            store.get(f"preflight/{topic}/{peer}/heard", timeout)
    return told


def recall(store: Store, world: int, topic: str, timeout: float | None = None) -> list[str]:
    """What has been told of a topic, by rank; errors as in `share`."""
    return [store.get(f"preflight/{topic}/{rank}", timeout) for rank in range(world)]


def nccl_version() -> str:
    """That of the NCCL in this torch; `none` where there is none."""
    if not is_nccl_available():
        return "none"
    return ".".join(map(str, torch.cuda.nccl.version()))


def find_differences(told: Sequence[Mapping[str, str]]) -> dict[str, dict[str, list[int]]]:
    """What is not the same on all workers: name to value to the ranks that have it.

    The value of most workers comes first, or that of the lowest rank. All tell the same names.
    """
    differences = {}
    for name in told[0]:
        ranks: dict[str, list[int]] = {}
        for rank, mapping in enumerate(told):
            ranks.setdefault(mapping[name], []).append(rank)
        if len(ranks) > 1:
            differences[name] = dict(sorted(ranks.items(), key=lambda entry: -len(entry[1])))
    return differences


def find_slow(pairs: Sequence[PairSpeed], hosts: Sequence[str]) -> list[PairSpeed]:
    """Links that have less than a quarter of the median speed of their kind, slowest first.

    There are two kinds: within a host, and between hosts. `hosts` are by rank.
    """
    slow = []
    for within in (True, False):
        kind = [pair for pair in pairs if (hosts[pair.source] == hosts[pair.target]) == within]
        if kind:
            usual = median(pair.megabytes for pair in kind)
            slow += [pair for pair in kind if pair.megabytes < SLOW * usual]
    return sorted(slow, key=lambda pair: pair.megabytes)


def measure_links(mesh: Mesh, seconds: float = SECONDS) -> Links:
    """Measure what lies between all workers, who must all call this, and learn the same.

    Args:
        mesh: of two workers at least; it is not measured twice.
        seconds: for the collective at most, and once more for all pairs.

    Raises:
        CommunicationError: a worker is gone or does not answer.
    """
    world = mesh.world
    together = _measure_together(world, seconds)
    pairs = list(permutations(range(world.size), 2))
    limit = min(PAIR_SECONDS, seconds / len(pairs))
    own = []
    for source, target in pairs:
        world.barrier()
        if world.index == source:
            own.append(asdict(_measure_pair(world, target, limit)))
        elif world.index == target:
            _answer_pair(world, source)
    told = json.dumps({"pairs": own, "together": together})
    heard = [json.loads(text) for text in share(mesh.store, mesh.rank, world.size, "links", told)]
    measured = tuple(PairSpeed(**pair) for worker in heard for pair in worker["pairs"])
    return Links(measured, min(worker["together"] for worker in heard))


def _measure_together(world: Group, seconds: float) -> float:
    """All-gather ever more until the time is up; index 0 says how much."""
    begin, best, size = perf_counter(), 0.0, SMALLEST
    while size := _agree(world, size):
        own = torch.zeros(size, dtype=torch.uint8, device=world.device)
        world.barrier()
        start = perf_counter()
        world.all_gather(own, [size] * world.size, 0)
        _settle(world.device)
        now = perf_counter()
        best = max(best, (world.size - 1) * size / (now - start))
        size *= GROWTH
        over = now - begin + GROWTH * (now - start) > seconds or size * world.size > LARGEST
        size = 0 if over else size
    return best / 1e6


def _agree(world: Group, size: int) -> int:
    told = torch.tensor([size], device=world.device)
    return int(world.broadcast(told, 0).item())


def _measure_pair(world: Group, target: int, limit: float) -> PairSpeed:
    """Send ever larger messages to `target` until one takes long; see `_answer_pair`."""
    trips = [_time_message(world, target, 1) for _ in range(PINGS)]
    best, size = 0.0, SMALLEST
    while True:
        spent = _time_message(world, target, size)
        best = max(best, size / spent)
        if size == LARGEST or GROWTH * spent > limit:
            break
        size *= GROWTH
    _send(world, target, torch.zeros(1, dtype=torch.int64, device=world.device))
    return PairSpeed(world.ranks[world.index], world.ranks[target], best / 1e6, min(trips) * 5e5)


def _answer_pair(world: Group, source: int) -> None:
    """Take what `source` sends, each after its length, with a receipt, until the length is 0."""
    receipt = torch.zeros(1, dtype=torch.uint8, device=world.device)
    while size := int(_receive(world, source, 1, torch.int64).item()):
        _receive(world, source, size, torch.uint8)
        _send(world, source, receipt)


def _time_message(world: Group, target: int, size: int) -> float:
    message = torch.zeros(size, dtype=torch.uint8, device=world.device)
    _send(world, target, torch.tensor([size], device=world.device))
    _settle(world.device)
    start = perf_counter()
    _send(world, target, message)
    _receive(world, target, 1, torch.uint8)
    _settle(world.device)
    return perf_counter() - start


def _send(world: Group, target: int, message: Tensor) -> None:
    nothing = message.new_empty(0)
    chunks = [message if peer == target else nothing for peer in range(world.size)]
    world.all_to_all(chunks, [(0,)] * world.size)


def _receive(world: Group, source: int, size: int, dtype: torch.dtype) -> Tensor:
    nothing = torch.empty(0, dtype=dtype, device=world.device)
    shapes = [(size if peer == source else 0,) for peer in range(world.size)]
    return world.all_to_all([nothing] * world.size, shapes)[source]


def _settle(device: torch.device) -> None:
    """On GPUs it is the computing stream that waits for messages, so wait for that."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
