"""A background lane keeps order, hands its error on, and never leaves its caller waiting."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from longtake.runtime.lanes import BackgroundLane

LONG = 30  # seconds until a test that hangs fails


class Broken(Exception):
    """What the work of these tests raises."""


def test_items_are_done_in_order_and_elsewhere() -> None:
    done: list[tuple[int, str]] = []
    with closing(
        BackgroundLane[int]("aside", lambda i: done.append((i, threading.current_thread().name)))
    ) as lane:
        for item in range(50):
            lane.put(item)
    assert done == [(item, "aside") for item in range(50)]


def test_close_twice_is_close_once() -> None:
    lane = BackgroundLane[int]("aside", lambda item: None)
    lane.close()
    lane.close()


def test_after_an_error_nothing_more_is_done() -> None:
    """Otherwise what was done would have a gap."""
    done = []

    def work(item: int) -> None:
        if item == 2:
            raise Broken
        done.append(item)

    lane = BackgroundLane("aside", work, depth=9)
    for item in range(3):
        lane.put(item)
    with pytest.raises(Broken):
        for item in range(3, 20):
            lane.put(item)
    for _ in range(2):
        with pytest.raises(Broken):
            lane.put(99)
    with pytest.raises(Broken):
        lane.close()
    assert done == [0, 1]


def test_close_tells_the_error_of_the_last_item() -> None:
    def work(item: int) -> None:
        raise Broken

    lane = BackgroundLane("aside", work)
    lane.put(0)
    with pytest.raises(Broken):
        lane.close()


def test_the_queue_is_short() -> None:
    go = threading.Event()
    accepted = []

    def work(item: int) -> None:
        go.wait(LONG)

    lane = BackgroundLane("aside", work, depth=2)

    def produce() -> None:
        for item in range(5):
            lane.put(item)
            accepted.append(item)

    producer = threading.Thread(target=produce)
    producer.start()
    producer.join(0.2)
    assert len(accepted) <= 3  # one at work, two queued
    go.set()
    producer.join(LONG)
    lane.close()
    assert accepted == [0, 1, 2, 3, 4]


def test_a_lane_that_fails_frees_a_producer_that_waits_for_it() -> None:
    go = threading.Event()

    def work(item: int) -> None:
        go.wait(LONG)
        raise Broken

    lane = BackgroundLane("aside", work, depth=1)
    lane.put(0)
    lane.put(1)  # the queue is now full: the lane holds item 0 and waits
    errors = []

    def produce() -> None:
        try:
            for item in range(2, 10):
                lane.put(item)
        except Broken as error:
            errors.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    producer.join(0.1)
    assert producer.is_alive()
    go.set()
    producer.join(LONG)
    assert not producer.is_alive()
    assert len(errors) == 1
    with pytest.raises(Broken):
        lane.close()
