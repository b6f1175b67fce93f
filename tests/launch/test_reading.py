"""Weights are read in turns, by whoever lives."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from longtake.launch import reading
from longtake.launch.reading import turn_to_read
from longtake.scheduler.errors import UserError

PATIENCE = 60.0


def test_weights_are_read_one_by_one(tmp_path: Path) -> None:
    at_it, most = 0, 0
    lock = threading.Lock()

    def read() -> None:
        nonlocal at_it, most
        with turn_to_read(PATIENCE, tmp_path):
            with lock:
                at_it += 1
                most = max(most, at_it)
            threading.Event().wait(0.01)
            with lock:
                at_it -= 1

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (at_it, most) == (0, 1)


def test_a_reader_that_fails_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(KeyError), turn_to_read(PATIENCE, tmp_path):
        raise KeyError("own trouble")
    with turn_to_read(PATIENCE, tmp_path):
        pass


def test_a_reader_that_hangs_is_named(tmp_path: Path) -> None:
    with (tmp_path / f"longtake-reading-{os.getuid()}.lock").open("wb") as held:
        held.write(b"4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        told = r"process 4711 of this host .* no sign of life for 0\.1 s"
        with pytest.raises(UserError, match=told), turn_to_read(0.1, tmp_path):
            pass
    with turn_to_read(0.1, tmp_path):
        pass


def test_a_reader_that_takes_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is counted in looks, of which it outlasts twice as many as it has patience for."""
    looks, enough, patience = count(), threading.Event(), 20

    def look() -> int:
        now = next(looks)
        if now > 2 * patience:
            enough.set()
        return now

    monkeypatch.setattr(reading, "EVERY", 0.001)
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=look, sleep=time.sleep))
    inside, turns = threading.Event(), []

    def read() -> None:
        with turn_to_read(patience, tmp_path):
            inside.set()
            enough.wait(PATIENCE)
            turns.append("slow")

    slow = threading.Thread(target=read)
    slow.start()
    inside.wait(PATIENCE)
    with turn_to_read(patience, tmp_path):
        turns.append("patient")
    slow.join()
    assert turns == ["slow", "patient"]
