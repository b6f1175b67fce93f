"""The central scheduler against runners that the tests play: grants, faults, turns, restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from longtake.launch.central import Central
from longtake.launch.fleet import GONE, Hear, Message
from longtake.launch.job_store import JobStore, StoreBroken
from longtake.launch.jobs import Ask, Job, JobConflict, NoSuchJob, Status
from longtake.launch.rules import Rules
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_simulator import simulate
from longtake.scheduler.queue_state import FleetDevice, JobView, Priority
from longtake.scheduler.queue_traces import Asked, Trace

PROMPT = "a large red circle bouncing around slowly on a gray background"
ASK = Ask(((0.0, PROMPT),), seconds=4.0, steps=2)
BLOCKS = 6
RULES = Rules(ping=0.05, backoff=0.02, longest_backoff=0.05, strikes=8, close=0.2)
GIB = 2**30


class FakeGroup:
    """A runner that does nothing by itself."""

    def __init__(self, devices: Sequence[str], hear: Hear) -> None:
        self.devices, self._hear = tuple(devices), hear
        self.told: list[Message] = []
        self.killed = False
        self.tell("hello")

    def send(self, message: Message) -> None:
        self.told.append(message)

    def kill(self) -> None:
        self.killed = True

    def tell(self, kind: str, **facts: Any) -> None:
        self._hear(self, {"tell": kind, **facts})

    def heard(self, do: str) -> list[Message]:
        return [message for message in self.told if message["do"] == do]


class FakeFleet:
    kind = "cpu"

    def __init__(self, count: int) -> None:
        self.names = [f"cpu{number}" for number in range(count)]
        self.opened: list[FakeGroup] = []

    def devices(self) -> Sequence[FleetDevice]:
        return [FleetDevice(name, "here", 8 * GIB) for name in self.names]

    def open(self, devices: Sequence[str], hear: Hear) -> FakeGroup:
        self.opened.append(FakeGroup(devices, hear))
        return self.opened[-1]

    def close(self) -> None:
        for group in self.opened:
            group.kill()


class Play:
    """A scheduler, and its runners in the hands of the test."""

    def __init__(self, folder: Path, count: int, rules: Rules = RULES) -> None:
        self.fleet = FakeFleet(count)
        self.store = JobStore(folder / "jobs.sqlite")
        self.central = Central(self.store, self.fleet, folder / "videos", rules=rules)

    def wait(self, done: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    def at_work(self, id_: str, epoch: int) -> FakeGroup:
        """The group that has been given a job for the so many-th time."""

        def found() -> list[FakeGroup]:
            return [
                group
                for group in self.fleet.opened
                for told in group.heard("start")
                if (told["job"], told["epoch"]) == (id_, epoch)
            ]

        self.wait(found)
        return found()[0]

    def wait_for(self, id_: str, status: Status) -> None:
        self.wait(lambda: self.central.get(id_).status is status)

    def kinds(self, id_: str) -> list[str]:
        return [event.kind for event in self.central.events(id_)]


@contextmanager
def play(folder: Path, count: int = 1, rules: Rules = RULES) -> Iterator[Play]:
    player = Play(folder, count, rules)
    with player.store, player.central:
        yield player


def finish(group: FakeGroup, id_: str, epoch: int, seconds: float = 1.0) -> None:
    stages = {"denoise": 0.5}
    group.tell(
        "finished", job=id_, epoch=epoch, frames=64, seconds=seconds, stages=stages, loads={}
    )


def test_grants_are_extended_ahead_of_need(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        id_ = scene.central.submit(ASK).id
        group = scene.at_work(id_, 1)
        [start] = group.heard("start")
        assert start["granted"] == RULES.ahead and start["order"]["seconds"] == 4.0
        group.tell("begun", job=id_, epoch=1, block=1)
        scene.wait(lambda: [told["block"] for told in group.heard("grant")] == [1 + RULES.ahead])
        group.tell("block", job=id_, epoch=1, blocks=2, frames=9)
        facts = {"stage": "denoise", "frames": 16, "seconds_left": 3.0}
        group.tell("progress", job=id_, epoch=1, **facts)
        scene.wait(lambda: scene.central.get(id_).frames == 16)
        job = scene.central.get(id_)
        assert (job.progress, job.seconds_left, job.blocks_done) == (0.25, 3.0, 2)
        [device] = scene.central.cluster().devices
        assert (device.job, device.rank, device.stage) == (id_, 0, "denoise")
        finish(group, id_, 1)
        scene.wait_for(id_, Status.COMPLETED)
        assert scene.kinds(id_) == ["created", "started", "block", "completed"]
        assert scene.central.figures().video_seconds == 4.0
        scene.wait(lambda: group.heard("ping"))
        assert not group.killed


def test_what_can_never_be_done_is_refused_at_once(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        for asked, reason in [
            (Ask(((0.0, ""),)), "prompt"),
            (Ask(((0.0, PROMPT),), model="nobody"), "unknown model"),
            (Ask(((0.0, PROMPT),), settings=("device=cuda",)), "device can't be set here"),
            (Ask(((0.0, PROMPT),), workers=2, settings=("parallel.ring=2",)), "2 of .* 1 devices"),
            (Ask(((0.0, PROMPT),), size="8192x8192"), "the video can't be made here: it needs"),
        ]:
            with pytest.raises(UserError, match=reason):
                scene.central.submit(asked)
        with pytest.raises(UserError, match="interactive or batch"):
            scene.central.submit(ASK, priority="now")
        assert scene.central.list() == [] and [*tmp_path.glob("videos/*")] == []


def test_a_lost_group_is_replaced_and_what_it_says_later_is_not_heard(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        id_ = scene.central.submit(ASK).id
        first = scene.at_work(id_, 1)
        first.tell("block", job=id_, epoch=1, blocks=3, frames=21)
        first.tell(GONE, crashed=False, reason="killed by signal 9")
        second = scene.at_work(id_, 2)
        assert second is not first and second.heard("start")[0]["granted"] == 3 + RULES.ahead
        finish(first, id_, 1)
        second.tell("begun", job=id_, epoch=2, block=5)
        scene.wait(lambda: second.heard("grant"))
        assert scene.central.get(id_).status is Status.IN_PROGRESS
        finish(second, id_, 2)
        scene.wait_for(id_, Status.COMPLETED)
        job = scene.central.get(id_)
        assert (job.epoch, job.faults) == (2, 1)
        assert scene.central.figures().faults == {"lost": 1}


def test_a_fault_is_not_forgotten_while_the_store_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with play(tmp_path) as scene:
        id_ = scene.central.submit(ASK).id
        first = scene.at_work(id_, 1)
        full = threading.Event()
        full.set()

        def update(*words: Any, **changes: Any) -> Job:
            if full.is_set():
                raise StoreBroken("the disk is full")
            return JobStore.update(scene.store, *words, **changes)

        monkeypatch.setattr(scene.store, "update", update)
        first.tell(GONE, crashed=False, reason="killed")
        scene.wait(lambda: scene.central.health().problems == ("the disk is full",))
        full.clear()
        second = scene.at_work(id_, 2)
        assert scene.central.get(id_).faults == 1
        scene.wait(lambda: scene.central.health().ok)
        finish(second, id_, 2)
        scene.wait_for(id_, Status.COMPLETED)


@pytest.mark.parametrize(
    ("rules", "kind"),
    [({"silence": 0.1}, "silent"), ({"hang": 0.1, "silence": 60.0}, "hung")],
)
def test_silent_and_hung_groups_are_killed(
    rules: dict[str, float], kind: str, tmp_path: Path
) -> None:
    fast = Rules(ping=0.02, backoff=0.02, strikes=8, close=0.1, **rules)
    with play(tmp_path, rules=fast) as scene:
        id_ = scene.central.submit(ASK).id
        first = scene.at_work(id_, 1)
        first.tell("begun", job=id_, epoch=1, block=0)
        scene.at_work(id_, 2)
        assert first.killed
        fault = next(e for e in scene.central.events(id_) if e.kind == "fault")
        assert fault.facts["kind"] == kind


def test_a_poison_job_fails_with_its_reason_and_others_go_on(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        poison, other = (scene.central.submit(ASK).id for _ in range(2))
        for epoch in (1, 2, 3):
            group = scene.at_work(poison, epoch)
            group.tell("block", job=poison, epoch=epoch, blocks=1, frames=0)
            group.tell("failed", job=poison, epoch=epoch, fault="refused", reason="bad weights")
            if epoch == 1:
                finish(scene.at_work(other, 1), other, 1)
        scene.wait_for(poison, Status.FAILED)
        error = scene.central.get(poison).error
        assert error == "no group made a block more of it, 3 in all; the last: bad weights"
        scene.wait_for(other, Status.COMPLETED)


def test_an_interactive_job_preempts_at_a_block(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        batch = scene.central.submit(Ask(((0.0, PROMPT),), seconds=600.0)).id
        group = scene.at_work(batch, 1)
        live = scene.central.submit(ASK, priority="interactive").id
        scene.wait(lambda: group.heard("stop"))
        group.tell("block", job=batch, epoch=1, blocks=7, frames=70)
        group.tell("stopped", job=batch, epoch=1, frames=80, seconds=1.0, stages={}, loads={})
        finish(scene.at_work(live, 1), live, 1)
        assert scene.at_work(live, 1) is group  # the runner is used again
        again = scene.at_work(batch, 2)
        assert again.heard("start")[-1]["granted"] == 7 + RULES.ahead
        job = scene.central.get(batch)
        assert (job.preemptions, job.faults, job.blocks_done) == (1, 0, 7)


def test_a_job_on_a_slow_device_is_moved_to_a_free_one(tmp_path: Path) -> None:
    with play(tmp_path, count=2, rules=Rules(ping=0.05, slow=4.0, close=0.2)) as scene:
        quick = scene.central.submit(ASK).id
        finish(scene.at_work(quick, 1), quick, 1, seconds=0.06)
        scene.wait_for(quick, Status.COMPLETED)
        slow = scene.central.submit(ASK).id
        first = scene.at_work(slow, 1)
        first.tell("begun", job=slow, epoch=1, block=0)
        time.sleep(0.5)  # the clock is what this is about: three blocks should take 0.03 s
        first.tell("block", job=slow, epoch=1, blocks=3, frames=21)
        scene.wait(lambda: first.heard("stop"))
        first.tell("stopped", job=slow, epoch=1, frames=33, seconds=1.0, stages={}, loads={})
        assert scene.at_work(slow, 2).devices != first.devices
        assert "moved" in scene.kinds(slow)
        assert scene.central.figures().faults == {"slow": 1}
        speeds = {device.name: device.speed for device in scene.central.cluster().devices}
        assert speeds[first.devices[0]] < 0.5


def test_a_node_that_will_leave_is_left_in_time(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        id_ = scene.central.submit(Ask(((0.0, PROMPT),), seconds=600.0)).id
        group = scene.at_work(id_, 1)
        scene.central.leave("here", time.time() + 30.0)
        scene.wait(lambda: group.heard("stop"))
        group.tell("stopped", job=id_, epoch=1, frames=33, seconds=1.0, stages={}, loads={})
        scene.wait_for(id_, Status.QUEUED)
        other = scene.central.submit(ASK).id
        time.sleep(4 * RULES.ping)  # nothing is to happen
        assert scene.central.get(other).epoch == 0


def test_what_ended_long_ago_is_deleted(tmp_path: Path) -> None:
    with play(tmp_path, rules=Rules(ping=0.02, keep=0.3, close=0.2)) as scene:
        id_ = scene.central.submit(ASK).id
        finish(scene.at_work(id_, 1), id_, 1)
        scene.wait_for(id_, Status.COMPLETED)
        scene.wait(lambda: not scene.central.list())
        assert [*tmp_path.glob("videos/*")] == []


def test_cancel_and_delete(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        working, waiting = (scene.central.submit(ASK, owner="anna").id for _ in range(2))
        group = scene.at_work(working, 1)
        assert scene.central.cancel(waiting).status is Status.CANCELLED
        assert scene.central.cancel(working).status is Status.CANCELLING
        with pytest.raises(JobConflict, match="is cancelling; cancel it first"):
            scene.central.delete(working)
        group.tell("stopped", job=working, epoch=1, frames=9, seconds=1.0, stages={}, loads={})
        scene.wait_for(working, Status.CANCELLED)
        assert scene.central.cancel(working).status is Status.CANCELLED  # once more
        folder = Path(scene.central.get(working, owner="anna").folder)
        assert folder.is_dir()
        with pytest.raises(NoSuchJob):
            scene.central.get(working, owner="bert")
        scene.central.delete(working)
        assert not folder.exists()
        with pytest.raises(NoSuchJob):
            scene.central.get(working)


def test_a_switch_is_told_where_it_holds_and_survives_its_group(tmp_path: Path) -> None:
    with play(tmp_path) as scene, ThreadPoolExecutor(1) as other:
        id_ = scene.central.submit(ASK).id
        first = scene.at_work(id_, 1)
        asked = other.submit(scene.central.switch, id_, "one", 20.0)
        scene.wait(lambda: first.heard("switch"))
        first.tell("switched", job=id_, epoch=1, number=0, block=2, second=1.3125)
        assert asked.result() == 1.3125
        assert scene.central.switch(id_, "two", patience=0.0) is None
        first.tell(GONE, crashed=False, reason="killed")
        second = scene.at_work(id_, 2)
        assert second.heard("start")[0]["switches"] == [{"number": 1, "text": "two"}]
        asked = other.submit(scene.central.switch, id_, "three", 20.0)
        scene.wait(lambda: second.heard("switch"))
        second.tell("switched", job=id_, epoch=2, number=2, second=None, reason="too late")
        with pytest.raises(JobConflict, match="the last block has begun"):
            asked.result()


def test_a_queued_job_changes_its_prompt_at_once(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        _, waiting = (scene.central.submit(ASK).id for _ in range(2))
        assert scene.central.switch(waiting, "another") == 0.0
        assert scene.central.get(waiting).ask.prompt == ((0.0, "another"),)
        with pytest.raises(UserError, match="the prompt is empty"):
            scene.central.switch(waiting, " ")


def test_a_new_process_goes_on_with_all_that_was_accepted(tmp_path: Path) -> None:
    with play(tmp_path) as scene:
        working, cancelled, waiting = (scene.central.submit(ASK).id for _ in range(3))
        scene.at_work(working, 1).tell("block", job=working, epoch=1, blocks=4, frames=33)
        scene.wait(lambda: scene.central.get(working).blocks_done == 4)
    assert scene.store is not None  # its runners are gone, and the last word was not said
    store = JobStore(tmp_path / "jobs.sqlite")
    store.update(cancelled, status=Status.CANCELLING)
    store.update(working, status=Status.IN_PROGRESS)
    store.close()
    orphan = tmp_path / "videos" / "video_0123"
    orphan.mkdir()
    with play(tmp_path) as scene:
        group = scene.at_work(working, 2)
        assert group.heard("start")[0]["granted"] == 4 + RULES.ahead
        assert scene.central.get(cancelled).status is Status.CANCELLED
        finish(group, working, 2)
        finish(scene.at_work(waiting, 1), waiting, 1)
        scene.wait_for(waiting, Status.COMPLETED)
        assert not orphan.exists()


def test_lost_devices_are_told_and_jobs_share_what_is_left(tmp_path: Path) -> None:
    with play(tmp_path, count=2) as scene:
        asked = Ask(((0.0, PROMPT),), seconds=4.0, workers=2, settings=("parallel.ring=2",))
        id_ = scene.central.submit(asked).id
        first = scene.at_work(id_, 1)
        assert first.devices == ("cpu0", "cpu1") and scene.central.health().ok
        scene.fleet.names.remove("cpu1")
        first.tell(GONE, crashed=False, reason="its node is gone")
        second = scene.at_work(id_, 2)
        assert second.devices == ("cpu0",)
        assert second.heard("start")[0]["order"]["config"]["parallel"]["ring"] == 2
        assert scene.central.health().problems == ("devices are gone: cpu1",)


def test_jobs_are_served_in_the_order_that_the_simulator_tells(tmp_path: Path) -> None:
    batch, interactive = "batch", "interactive"
    asked = [(batch, None), (batch, None), (batch, 9e3), (interactive, 8e3), (batch, 7e3)]
    asked += [(interactive, None), (batch, 5e3), (interactive, 6e3)]
    with play(tmp_path) as scene:
        jobs, start = [scene.central.submit(ASK)], time.time()
        scene.at_work(jobs[0].id, 1)
        for kind, left in asked[1:]:
            jobs.append(scene.central.submit(ASK, "", kind, left and start + left))
        views = [  # as if all had come while the first one runs, which takes little there
            JobView(job.id, Priority(job.priority), start + at * 1e-6, job.options, job.deadline)
            for at, job in enumerate(jobs)
        ]
        order = simulate(Trace(tuple(map(Asked, views)), tuple(scene.fleet.devices()))).order
        assert [*order[1:5]] == [jobs[at].id for at in (7, 3, 5, 6)]
        for id_ in order:  # each begins as the one before is through; any other, and this waits
            finish(scene.at_work(id_, 1), id_, 1, seconds=jobs[0].options[0].seconds)
            scene.wait_for(id_, Status.COMPLETED)
