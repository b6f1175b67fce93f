"""A background lane keeps order, hands its error on, and never leaves its caller waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from longtake.runtime.lanes import Ahead, BackgroundLane

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


def test_who_waits_for_room_need_not_wait_to_put() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[int] = []

    def work(item: int) -> None:
        begun.set()
        go.wait(LONG)
        done.append(item)

    lane = BackgroundLane("aside", work, depth=None)
    for item in range(3):
        lane.put(item)
    assert begun.wait(LONG)
    room = threading.Thread(target=lane.wait_for_room, args=(2,))
    room.start()
    room.join(0.1)
    assert room.is_alive()  # one is at work, two wait
    go.set()
    room.join(LONG)
    assert not room.is_alive() and done
    lane.close()
    assert done == [0, 1, 2]


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


def test_ahead_gives_all_items_in_order_and_takes_few_before_they_are_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    ahead = Ahead("ahead", items(), 3)
    assert taken == []
    for item in range(5):
        assert next(ahead) == item and len(taken) <= item + 1 + 3 + 1
    assert list(ahead) == list(range(5, 20))


def test_ahead_raises_an_error_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise Broken

    ahead = Ahead("ahead", items(), 3)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(Broken):
            next(ahead)


def test_ahead_lets_go_of_who_waits_when_it_is_closed() -> None:
    release, waiting = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        waiting.set()
        release.wait(LONG)
        yield 1

    ahead = Ahead("ahead", items(), 1)
    closer = threading.Thread(target=lambda: (waiting.wait(LONG), ahead.close()))
    closer.start()
    assert list(ahead) == []
    release.set()
    closer.join(LONG)
