"""The clocks of workers are brought together, whatever they show and however lopsided the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore

from longtake.parallel.clock import Drift, Offset, measure_offset
from longtake.parallel.mesh import Rendezvous, open_mesh
from longtake.scheduler.degrees import Degrees


class Memory:
    """A store in one process, for workers in threads."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._changed = threading.Condition()

    def set(self, key: str, text: str) -> None:
        with self._changed:
            assert key not in self._texts, f"{key} was set twice"
            self._texts[key] = text
            self._changed.notify_all()

    def get(self, key: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._texts, timeout=30), key
            return self._texts[key]


class Tcp:
    """A store as real workers have it, over a socket."""

    def __init__(self, port: int, serves: bool) -> None:
        self._store = TCPStore(
            "127.0.0.1", port, None, serves, timedelta(seconds=30), wait_for_workers=False
        )

    @property
    def port(self) -> int:
        return self._store.port

    def set(self, key: str, text: str) -> None:
        self._store.set(key, text)

    def get(self, key: str) -> str:
        return self._store.get(key).decode()


class Simulated:
    """Rank 0 answers in the middle of nothing: each way takes the time that the test says."""

    def __init__(self, skew: float, ways: list[tuple[float, float]]) -> None:
        self.true = 1000.0
        self._skew, self._ways = skew, iter(ways)
        self._back = 0.0
        self._answer = ""

    def now(self) -> float:
        return self.true - self._skew

    def set(self, key: str, text: str) -> None:
        there, self._back = next(self._ways)
        self.true += there
        self._answer = repr(self.true)

    def get(self, key: str) -> str:
        self.true += self._back
        return self._answer


ways = st.lists(st.tuples(st.floats(0, 0.1), st.floats(0, 0.1)), min_size=16, max_size=16)


@given(st.floats(-1e5, 1e5), ways)
def test_the_true_offset_is_within_the_uncertainty(
    skew: float, ways: list[tuple[float, float]]
) -> None:
    world = Simulated(skew, ways)
    offset = measure_offset(world, 1, 2, now=world.now)
    assert abs(offset.seconds - skew) <= offset.uncertainty + 1e-9
    assert offset.uncertainty == pytest.approx(min(sum(way) / 2 for way in ways), abs=1e-9)
    assert offset.shared(offset.at) == offset.at + offset.seconds


def shifted(by: float) -> Callable[[], float]:
    return lambda: monotonic() - by


@pytest.mark.parametrize("kind", ["memory", "tcp"])
def test_three_workers_find_rank_0s_time(kind: str) -> None:
    skews = [0.0, 12345.5, -0.75]
    server = Tcp(0, serves=True) if kind == "tcp" else Memory()
    stores = [
        Tcp(server.port, serves=False) if isinstance(server, Tcp) and rank else server
        for rank in range(3)
    ]

    def work(rank: int) -> tuple[Offset, Offset]:
        def measure(name: str) -> Offset:
            return measure_offset(stores[rank], rank, 3, name=name, now=shifted(skews[rank]))

        return measure("first"), measure("last")

    with ThreadPoolExecutor(3) as pool:
        offsets = list(pool.map(work, range(3)))
    assert [offset.seconds for offset in offsets[0]] == [0, 0]
    assert [offset.uncertainty for offset in offsets[0]] == [0, 0]
    for skew, pair in zip(skews, offsets, strict=True):
        for offset in pair:
            assert abs(offset.seconds - skew) <= offset.uncertainty + 1e-9
        local = pair[0].at
        assert Drift(*pair).shared(local) == pytest.approx(
            local + skew, abs=max(o.uncertainty for o in pair) + 1e-9
        )


def measured_in_a_process(rendezvous: Rendezvous, skews: list[float]) -> Offset:
    degrees = Degrees(ring=rendezvous.world)
    with open_mesh(rendezvous, degrees, torch.device("cpu")) as mesh:
        skewed = shifted(skews[mesh.rank])
        return measure_offset(mesh.store, mesh.rank, rendezvous.world, now=skewed)


def test_processes_meet_by_their_mesh(workers: Any) -> None:
    """Processes of one host share `time.monotonic`, so the true offsets are what is made up."""
    skews = [0.0, -500.25]
    offsets = workers.run(2, measured_in_a_process, skews)
    for skew, offset in zip(skews, offsets, strict=True):
        assert abs(offset.seconds - skew) <= offset.uncertainty + 1e-9
    assert offsets[1].uncertainty > 0


def test_one_worker_needs_nobody() -> None:
    offset = measure_offset(Memory(), 0, 1, now=lambda: 7.0)
    assert offset == Offset(0.0, 0.0, 7.0)
    assert offset.shared(3.5) == 3.5


def test_errors_of_the_store_pass_through() -> None:
    class Gone(Memory):
        def get(self, key: str) -> str:
            raise TimeoutError(f"nobody set {key}")

    with pytest.raises(TimeoutError, match="nobody set clock/1/0/question"):
        measure_offset(Gone(), 0, 2)


def test_a_measured_drift_is_followed() -> None:
    drift = Drift(Offset(5.0, 0.001, at=100.0), Offset(5.5, 0.001, at=1100.0))
    assert drift.shared(100.0) == pytest.approx(105.0)
    assert drift.shared(600.0) == pytest.approx(605.25)
    assert drift.shared(1100.0) == pytest.approx(1105.5)


def test_a_drift_within_the_uncertainty_is_none() -> None:
    sharp = Offset(5.0, 0.001, at=100.0)
    blurred = Offset(5.25, 0.5, at=100.1)
    for drift in (Drift(sharp, blurred), Drift(blurred, sharp)):
        assert [drift.shared(t) - t for t in (0.0, 1e6)] == [5.0, 5.0]
