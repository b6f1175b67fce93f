"""The central scheduler: takes requests, and sees each of them through whatever happens."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from longtake.launch.admission import Admission
from longtake.launch.cluster_view import ClusterView, Figures, Health, occupied, view_cluster
from longtake.launch.clusters import load_cluster
from longtake.launch.counts import Counts
from longtake.launch.desk import Desk
from longtake.launch.dispatcher import Dispatcher
from longtake.launch.estimates import Estimates
from longtake.launch.fleet import Fleet, Group, Message
from longtake.launch.job_store import JobStore, StoreBroken
from longtake.launch.jobs import Ask, Event, Job, JobConflict, NoSuchJob, PromptSwitch, Status
from longtake.launch.news import News
from longtake.launch.rules import Rules
from longtake.runtime.closable import Closable
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue_state import Policy

logger = logging.getLogger(__name__)


class Central(Closable):
    """Jobs from acceptance to a video. All methods may be called from any thread.

    What was accepted is in the store before `submit` returns; a `Central` that is made of the same
    store later, after a crash too, goes on with all of it.
    """

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        folder: Path,
        cluster: str | None = None,
        rules: Rules | None = None,
        policy: Policy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Videos and journals go to `folder`, which all machines of the fleet must see there.

        `cluster` describes the fleet's devices, for the cost model: see `launch.clusters`.

        Raises:
            UserError: there is no such cluster.
        """
        self._fleet, self._folder, self._cluster, self._clock = fleet, folder, cluster, clock
        self._rules, policy = rules or Rules(), policy or Policy()
        self._desk, self._counts = Desk(store), Counts()
        described = None if cluster is None else load_cluster(cluster)
        estimates = Estimates(fleet.kind, described)
        self._admission = Admission(fleet.kind, estimates, folder, self._rules.crew)
        self._inbox: queue.SimpleQueue[tuple[Group, Message] | None] = queue.SimpleQueue()
        self._dispatcher = Dispatcher(
            self._desk,
            fleet,
            estimates,
            self._counts,
            self._rules,
            policy,
            clock,
            lambda group, message: self._inbox.put((group, message)),
        )
        self._news = News(self._desk, self._dispatcher, estimates, self._counts, self._rules)
        self._thread = threading.Thread(target=self._work, name="central", daemon=True)
        self._closed = threading.Event()
        self._again = 0.0
        self._trouble: str | None = None

    def start(self) -> None:
        """Begin to give jobs to workers, those first that an earlier process left."""
        with self._desk.lock:
            self._dispatcher.recover()
            sweep(self._folder, self._desk.store)
        self._thread.start()

    def close(self) -> None:
        """End all groups after the blocks at work; what is not done goes on with the next start."""
        with self._desk.lock:
            self._dispatcher.closing = True
            for assigned in self._dispatcher.assigned.values():
                self._dispatcher.stop(assigned, "close")
        end = time.monotonic() + self._rules.close
        while self._dispatcher.assigned and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        self._closed.set()
        self._inbox.put(None)
        self._thread.join()
        self._fleet.close()
        self._desk.close()

    def submit(
        self,
        ask: Ask,
        owner: str = "",
        priority: str = "batch",
        deadline: float | None = None,
    ) -> Job:
        """Accept a request.

        `deadline` is seconds since 1970. The file of `ask.input_video` is copied.

        Raises:
            UserError: it can't be done here, now or ever; the reason in one line.
        """
        devices = list(self._dispatcher.seen.values()) or self._fleet.devices()
        job = self._admission.admit(ask, owner, priority, deadline, self._clock(), devices)
        self._desk.add(job)
        self._wake()
        return job

    def get(self, id_: str, owner: str | None = None) -> Job:
        """A job as it is now; raises `NoSuchJob`, also where it is not that owner's."""
        return self._desk.get(id_, owner)

    def list(
        self,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> Sequence[Job]:
        """Jobs by age, of one owner or of all; `after` is the id of the last one on another page.

        Raises:
            NoSuchJob: of `after`.
        """
        jobs = self._desk.store.list(owner, after, limit, newest_first)
        with self._desk.lock:
            return [self._desk.jobs.get(job.id, job) for job in jobs]

    def cancel(self, id_: str) -> Job:
        """End a job; it is `cancelling` until the block at work is through.

        Cancelling twice is no mistake.

        Raises:
            NoSuchJob: there is none.
            JobConflict: it is completed, or has failed.
        """
        with self._desk.lock:
            job = self._desk.get(id_)
            if job.status in (Status.COMPLETED, Status.FAILED):
                raise JobConflict(
                    f"the video {id_} is {job.status}; it can't be cancelled any more"
                )
            if job.status not in (Status.CANCELLING, Status.CANCELLED):
                assigned = self._dispatcher.assigned.get(id_)
                if assigned is None:
                    self._dispatcher.end_waiting(job)
                else:
                    self._desk.save(id_, "cancelling", status=Status.CANCELLING)
                    self._dispatcher.stop(assigned, "cancel")
            return self._desk.get(id_)

    def delete(self, id_: str) -> None:
        """Remove a job that has ended, and its files.

        Raises:
            NoSuchJob: there is none.
            JobConflict: it has not ended; cancel it first.
        """
        with self._desk.lock:
            job = self._desk.get(id_)
            if not job.status.ended:
                raise JobConflict(f"the video {id_} is {job.status}; cancel it first")
            self._desk.delete(id_)
        shutil.rmtree(job.folder, ignore_errors=True)

    def switch(self, id_: str, prompt: str, patience: float = 5.0) -> float | None:
        """Change the prompt of a job from the next block on; durable when this returns.

        Returns:
            From which second of the video on it holds, if that is known within `patience` seconds.
            None: from the next block on, when the job runs again; the event `switched` tells it.

        Raises:
            NoSuchJob: there is none.
            JobConflict: it has ended, or its last block has begun.
            UserError: the prompt is empty.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty; say what the video should show")
        with self._desk.lock:
            job = self._desk.get(id_)
            if job.status.ended or job.status is Status.CANCELLING:
                raise JobConflict(f"the video {id_} is {job.status}; its prompt can't change")
            if job.epoch == 0:
                first, *others = job.ask.prompt
                ask = replace(job.ask, prompt=((first[0], prompt), *others))
                self._desk.save(id_, "switched", {"number": None, "second": 0.0}, ask=ask)
                return 0.0
            switch = self._desk.store.add_switch(id_, prompt)
            assigned = self._dispatcher.assigned.get(id_)
            if assigned is not None:
                assigned.send("switch", number=switch.number, text=prompt)
        if assigned is None:
            return None
        return self._await_switch(switch, time.monotonic() + patience)

    def _await_switch(self, switch: PromptSwitch, end: float) -> float | None:
        seen = 0
        while (left := end - time.monotonic()) > 0:
            seen = self.changed(switch.job, seen, left)
            for event in self.events(switch.job):
                if event.kind == "switched" and event.facts["number"] == switch.number:
                    if event.facts["second"] is None:
                        raise JobConflict("the last block has begun; the prompt can't change")
                    return float(event.facts["second"])
        return None

    def events(self, id_: str, since: int = 0) -> Sequence[Event]:
        """What happened to a job after the event of that number, in order; raises `NoSuchJob`."""
        self._desk.get(id_)
        return self._desk.store.events(id_, since)

    def changed(self, id_: str, seen: int, timeout: float) -> int:
        """Wait until there is something new of a job: an event, progress, or its end.

        Returns:
            How many times the job has changed, to be given as `seen` the next time; the same
            number when `timeout` seconds are over.

        Raises:
            NoSuchJob: there is none, or it was deleted.
        """
        return self._desk.changed(id_, seen, timeout)

    def cluster(self) -> ClusterView:
        """Which device does what now."""
        with self._desk.lock:
            return view_cluster(self._desk, self._dispatcher, self._fleet, self._clock())

    def leave(self, node: str, at: float) -> None:
        """A node of the fleet is about to leave, as a cloud's notice tells; `at` is since 1970.

        Its jobs go elsewhere at the end of a block, and it gets none that could not end in time.
        """
        with self._desk.lock:
            self._dispatcher.leave(node, at)
        self._wake()

    def health(self) -> Health:
        """What an operator should know of: lost devices, a full disk, a scheduler that stands."""
        problems = []
        if not self._thread.is_alive():
            problems.append("the scheduler does not run")
        if self._trouble is not None:
            problems.append(self._trouble)
        lost = self.cluster().lost
        if lost:
            problems.append(f"devices are gone: {', '.join(lost)}")
        return Health(tuple(problems))

    def figures(self) -> Figures:
        """What has been counted since the start."""
        with self._desk.lock:
            now = self._clock()
            waiting = [job for job in self._desk.jobs.values() if job.status is Status.QUEUED]
            return Figures(
                ended=dict(self._counts.ended),
                faults=dict(self._counts.faults),
                survived=self._counts.survived,
                preemptions=self._counts.preemptions,
                blocks=self._counts.blocks,
                video_seconds=self._counts.video_seconds,
                busy_seconds=self._counts.busy_seconds,
                stage_seconds=dict(self._counts.stage_seconds),
                waited=dict(self._counts.waited),
                sent=dict(self._counts.sent),
                cache=occupied(self._dispatcher),
                oldest_wait=max((now - job.created_at - job.held for job in waiting), default=0.0),
            )

    def plan(self, ask: Ask) -> dict[str, Any]:
        """What the planner tells of a request on this cluster; as `longtake plan --json`.

        Raises:
            UserError: it can't be done.
        """
        if self._cluster is None:
            raise UserError("nobody has described the devices here, so nothing can be foretold")
        return self._admission.plan(ask, self._cluster)

    def _wake(self) -> None:
        self._again = 0.0
        self._inbox.put(None)

    def _work(self) -> None:
        """The scheduler's thread. What the disk refuses is tried again, in the same order."""
        waiting: deque[tuple[Group, Message]] = deque()
        pinged = 0.0
        while not self._closed.is_set():
            self._receive(waiting)
            try:
                with self._desk.lock:
                    while waiting:
                        if self._news.hear(*waiting[0]):
                            self._again = 0.0
                        waiting.popleft()
                    if time.monotonic() - pinged >= self._rules.ping:
                        pinged, self._again = time.monotonic(), 0.0
                        self._dispatcher.watch()
                        self._forget_old()
                    if self._clock() >= self._again:
                        self._again = self._dispatcher.decide()
                self._trouble = None
            except StoreBroken as error:
                logger.error("%s", error)
                self._trouble = str(error)
                self._closed.wait(self._rules.ping)

    def _forget_old(self) -> None:
        """Delete what ended long ago."""
        if self._rules.keep is not None:
            for id_ in self._desk.store.ended_before(self._clock() - self._rules.keep):
                self.delete(id_)

    def _receive(self, waiting: deque[tuple[Group, Message]]) -> None:
        """Wait for a message, or for something to do; take all that are there."""
        with suppress(queue.Empty):
            item = self._inbox.get(timeout=self._rules.ping / 4)
            while True:
                if item is not None:
                    waiting.append(item)
                item = self._inbox.get_nowait()

    def __enter__(self) -> Self:
        self.start()
        return self


def sweep(folder: Path, store: JobStore) -> None:
    """Remove what is left of jobs that were deleted, or not yet accepted, when a process ended."""
    for left_over in folder.glob("video_*"):
        try:
            store.get(left_over.name)
        except NoSuchJob:
            shutil.rmtree(left_over, ignore_errors=True)
