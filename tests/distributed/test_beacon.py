"""Who fell silent, failed, hangs or ended is told apart, and nobody outlives rank 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from longtake.parallel import beacon as module
from longtake.parallel.beacon import OVER, Beacon, Guard, Sign, Stage, find_lost, gather, look
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Rendezvous, connect
from longtake.parallel.store import LocalStore, Store

SOON = 10.0  # seconds; far more than it takes


def wait_for(done: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def leave(store: Store, rank: int, action: str, error: Exception | None) -> None:
    """Be a worker that ends, with an error or without."""
    with suppress(LookupError, CommunicationError), Beacon(store, rank) as beacon:
        beacon.at(action)
        if error is not None:
            raise error


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every 50 ms."""
    monkeypatch.setattr(module, "EVERY", 0.05)


def test_signs_tell_who_lives_where_and_does_what(fast: None) -> None:
    store = LocalStore()
    assert look(store, range(2)) == {0: None, 1: None}
    with Beacon(store, 1) as beacon:
        beacon.at("denoise of block 3, step 2")
        beacon.reach(Stage.READY)
        wait_for(lambda: (sign := look(store, range(1, 2))[1]) and sign.stage is Stage.READY)
        sign = look(store, range(1, 2))[1]
        assert sign is not None and sign.action == "denoise of block 3, step 2"
        assert sign.name == f"worker 1 (host {socket.gethostname()}, process {os.getpid()})"
        wait_for(lambda: look(store, range(1, 2))[1] != sign)
    last = look(store, range(1, 2))[1]
    assert last is not None and (last.stage, last.failed) == (Stage.DONE, None)


def test_error_is_the_last_sign_in_one_line() -> None:
    store = LocalStore()
    leave(store, 1, "loading weights", LookupError("no such tensor\nat line 1"))
    sign = look(store, range(1, 2))[1]
    assert sign is not None and sign.failed == "LookupError: no such tensor"
    assert (sign.action, sign.own_failure) == ("loading weights", True)


def test_own_failure_is_blamed_before_silence() -> None:
    store = LocalStore()
    leave(store, 1, "loading weights", LookupError("no such tensor"))
    leave(store, 2, "commit of block 1", CommunicationError("ring exchange", 2, (1,), "gone"))
    here = f"(host {socket.gethostname()}, process {os.getpid()})"
    told = f"worker 1 {here} failed at loading weights: LookupError: no such tensor"
    assert find_lost(store, range(1, 4), 0) == told


def test_silence_is_blamed_before_those_who_missed_it(fast: None) -> None:
    store = LocalStore()
    gone = Sign(1, "far", 77, 5, "denoise of block 3, step 2", Stage.LOADED)
    store.set("beacon/1", json.dumps(asdict(gone)))
    leave(store, 2, "commit of block 1", CommunicationError("ring exchange", 2, (1,), "gone"))
    with Beacon(store, 3) as alive:
        alive.reach(Stage.LOADED)
        wait_for(lambda: look(store, range(3, 4))[3])
        told = find_lost(store, range(1, 5), 0.5)
    assert told == (
        "worker 4 never gave a sign of life; worker 1 (host far, process 77) fell silent; it was "
        "last at: denoise of block 3, step 2"
    )


def test_who_works_on_while_others_gave_up_hangs(fast: None) -> None:
    store = LocalStore()
    leave(store, 2, "commit of block 1", CommunicationError("ring exchange", 2, (1,), "late"))
    leave(store, 3, "the end", None)
    with Beacon(store, 1) as stuck:
        stuck.at("decode of block 0")
        wait_for(lambda: look(store, range(1, 2))[1])
        told = find_lost(store, range(1, 4), 0.5)
    assert told.startswith("worker 1 (") and told.endswith(
        ") does not answer; it is at: decode of block 0"
    )


def test_all_gave_up_on_rank_0() -> None:
    store = LocalStore()
    leave(store, 1, "commit of block 1", CommunicationError("ring exchange", 1, (0,), "late"))
    told = find_lost(store, range(1, 2), 0)
    assert told.startswith("worker 1 (")
    assert told.endswith(
        ") gave up at commit of block 1: CommunicationError: worker 1: ring exchange with worker "
        "0: late"
    )


def test_gather_waits_for_the_slow_as_long_as_they_live(fast: None) -> None:
    store, order = LocalStore(), []

    def load() -> None:
        with Beacon(store, 1) as beacon:
            time.sleep(1.0)  # many times its patience
            order.append("loaded")
            beacon.reach(Stage.LOADED)

    thread = threading.Thread(target=load)
    thread.start()
    gather(store, range(1, 2), Stage.LOADED, 0.5)
    order.append("gathered")
    thread.join()
    assert order == ["loaded", "gathered"]


def test_gather_names_who_is_silent_or_failed() -> None:
    store = LocalStore()
    with pytest.raises(CommunicationError, match=r"no sign of life within 0\.2 s") as silent:
        gather(store, range(1, 3), Stage.READY, 0.2)
    assert silent.value.peers == (1, 2)
    leave(store, 2, "starting", LookupError("no"))
    with pytest.raises(CommunicationError, match="waiting for ready with worker 2: failed"):
        gather(store, range(1, 3), Stage.READY, SOON)


def test_gather_asks_the_launcher_meanwhile() -> None:
    def check() -> None:
        raise CommunicationError("start", 0, (1,), "the process has ended")

    with pytest.raises(CommunicationError, match="the process has ended"):
        gather(LocalStore(), range(1, 2), Stage.READY, SOON, check)


def test_guard_is_quiet_while_rank_0_lives_and_when_it_is_left(fast: None) -> None:
    store, told = LocalStore(), list[str]()
    with Beacon(store, 0), Guard(store, 0.5, told.append):
        time.sleep(1.0)
    time.sleep(0.6)
    assert told == []


def test_guard_gives_up_when_rank_0_is_silent(fast: None) -> None:
    store, told = LocalStore(), list[str]()
    with Beacon(store, 0):
        wait_for(lambda: look(store, range(1))[0])
    with Guard(store, 0.3, told.append):
        wait_for(lambda: told)
    assert told == ["rank 0 was silent for 0.3 s"]


def test_guard_gives_up_after_the_end(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    store, told = LocalStore(), list[str]()
    with Beacon(store, 0), Guard(store, 60.0, told.append):
        store.set(OVER, "")
        wait_for(lambda: told)
    assert told == ["rank 0 has ended"]


def outlive(meeting: Rendezvous, pids: str) -> str | None:
    """Rank 1 stops or kills rank 0, then hangs in whatever; `Guard` gets it out."""
    store = connect(meeting)
    with pytest.MonkeyPatch.context() as patch, Beacon(store, meeting.rank):
        patch.setattr(module, "GRACE", 0.5)
        if meeting.rank == 0:
            Path(pids).write_text(str(os.getpid()))
            store.set("up", "")
            time.sleep(meeting.timeout)
            return None
        store.get("up")
        told: list[str] = []
        with Guard(store, 2.0, told.append):
            time.sleep(0.3)
            os.kill(int(Path(pids).read_text()), signal.SIGKILL)
            wait_for(lambda: told)
        return told[0]


def test_killed_rank_0_is_noticed(workers: Any, tmp_path: Path) -> None:
    assert workers.run(2, outlive, str(tmp_path / "pid"), may_die=[0])[1] == "rank 0 has ended"


def freeze(meeting: Rendezvous, pids: str) -> str | None:
    """As `outlive`, but rank 0 stands still, so that its store answers no more."""
    store = connect(meeting)
    if meeting.rank == 0:
        with Beacon(store, 0):
            Path(pids).write_text(str(os.getpid()))
            store.set("up", "")
            time.sleep(1.0)  # in the other's time, which stops this one meanwhile
            return None
    store.get("up")
    rank_0, told = int(Path(pids).read_text()), list[str]()
    with Guard(store, 2.0, told.append):
        time.sleep(0.3)
        os.kill(rank_0, signal.SIGSTOP)
        try:
            wait_for(lambda: told)
        finally:
            os.kill(rank_0, signal.SIGCONT)
    return told[0]


def test_standstill_of_rank_0_is_noticed(workers: Any, tmp_path: Path) -> None:
    told = workers.run(2, freeze, str(tmp_path / "pid"))[1]
    assert told == "rank 0 was silent for 2 s"
