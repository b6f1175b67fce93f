"""Jobs to groups: who starts where, who makes room, and what becomes of a job whose group fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any

from longtake.launch.admission import shared_out
from longtake.launch.counts import Counts
from longtake.launch.desk import Desk
from longtake.launch.estimates import Estimates
from longtake.launch.fleet import Fleet, Group, Message
from longtake.launch.groups import Assigned, Ending, Groups, Member, warmest
from longtake.launch.jobs import Job, Status
from longtake.launch.logs import logged_as
from longtake.launch.rules import Rules
from longtake.scheduler.errors import UserError
from longtake.scheduler.queue import decide
from longtake.scheduler.queue_state import (
    FleetDevice,
    JobView,
    Policy,
    Priority,
    Run,
    Start,
)

logger = logging.getLogger(__name__)
WAITING: Mapping[str, Any] = {
    "status": Status.QUEUED,
    "stage": "waiting",
    "devices": (),
    "seconds_left": None,
}
OWN_FAULTS = ("refused", "crash")  # of a run; what else befalls it is more likely its machine's
LEAST = 1e-3  # of a job that has all of its blocks, but not all of its file


class Dispatcher:
    """Keeps the groups. All methods are called under the lock of the desk.

    What raises `StoreBroken` has changed nothing, and can be called again.

    Attributes:
        assigned: which group each job has that has one, by its id.
        seen: all devices that there ever were.
        closing: no more runs are started.
    """

    def __init__(
        self,
        desk: Desk,
        fleet: Fleet,
        estimates: Estimates,
        counts: Counts,
        rules: Rules,
        policy: Policy,
        clock: Callable[[], float],
        hear: Callable[[Group, Message], None],
    ) -> None:
        self._desk, self._fleet = desk, fleet
        self._estimates, self._counts = estimates, counts
        self._rules, self._clock = rules, clock
        # NCCL has one rank on a GPU at most.
        self._policy = replace(policy, sharing=policy.sharing and fleet.kind != "cuda")
        self.groups = Groups(fleet, hear)
        self.assigned: dict[str, Assigned] = {}
        self.seen: dict[str, FleetDevice] = {}
        self._last_seen: dict[str, float] = {}
        self._leaving: dict[str, float] = {}  # nodes, and when they do
        self._not_before: dict[str, float] = {}  # of jobs and of devices
        self._disk_full_since: dict[str, float] = {}
        self.closing = False

    def recover(self) -> None:
        """Take over what an earlier process left."""
        for job in list(self._desk.jobs.values()):
            if job.status is Status.CANCELLING:
                self._end(job, Status.CANCELLED)
            elif job.status is Status.IN_PROGRESS:
                facts = {"kind": "scheduler", "reason": "the scheduler was restarted"}
                self._desk.save(job.id, "fault", facts, faults=job.faults + 1, **WAITING)
                self._counts.faults["scheduler"] += 1

    def decide(self) -> float:
        """Start and preempt what is to be started and preempted; returns when to ask again."""
        if self.closing:
            return inf
        now = self._clock()
        devices = self.devices(now)
        jobs = [view for job in self._desk.jobs.values() if (view := self._view(job, now))]
        decision = decide(now, jobs, devices, self._policy)
        for id_, reason in decision.preempts.items():
            logger.info("%s makes room: %s", id_, reason)
            self.stop(self.assigned[id_], "preempt")
        for id_ in decision.late:
            if not self._desk.jobs[id_].late:
                self._desk.save(id_, "late", late=True)
        for start in decision.starts:
            self._start(start, devices, decision.starts, now)
        held_back = [at for at in self._not_before.values() if at > now]
        return min(decision.again, *held_back, inf)

    def devices(self, now: float) -> list[FleetDevice]:
        """Those that can be had, with the speeds that they have shown."""
        there = self._fleet.devices()
        self.seen |= {device.name: device for device in there}
        self._last_seen |= dict.fromkeys((device.name for device in there), time.monotonic())
        busy = {name for each in self.assigned.values() for name in each.devices}
        return [
            replace(
                device,
                speed=self._estimates.speed(device.name),
                until=self._leaving.get(device.node, device.until),
            )
            for device in there
            if self._not_before.get(device.name, 0.0) <= now or device.name in busy
        ]

    def leave(self, node: str, at: float) -> None:
        """A node is about to leave: its jobs are moved in time, and it gets no others."""
        self._leaving[node] = at

    @property
    def lost(self) -> list[str]:
        """Devices that were there a while ago, and are not."""
        now, there = time.monotonic(), {device.name for device in self._fleet.devices()}
        return [
            name
            for name, seen in self._last_seen.items()
            if name not in there and now - seen < self._rules.missed
        ]

    def watch(self) -> None:
        """Give up groups that are silent or hang, and show the others that somebody is there."""
        now = time.monotonic()
        for each in list(self.assigned.values()):
            trouble = self._rules.trouble(each, now)
            if trouble is not None:
                self.lose(each, *trouble)
        busy = self._busy()
        for member in list(self.groups):
            silent = now - member.heard_at > self._rules.silence
            if member not in busy and member.ready_at is not None and silent:
                self.groups.end(member)
            member.group.send({"do": "ping"})

    def stop(self, assigned: Assigned, ending: Ending) -> None:
        """Have a run end after the blocks that have begun."""
        assigned.ending = ending
        if assigned.stopped_at is None:
            assigned.stopped_at = time.monotonic()
        assigned.send("stop")

    def move(self, assigned: Assigned, factor: float) -> None:
        """A job takes so many times as long as it should: give it to others, if any are free, and
        it is not through before these have their weights."""
        left = self._desk.jobs[assigned.job].seconds_left
        if left is not None and left < self._estimates.restore:
            return
        busy = {name for each in self.assigned.values() for name in each.devices}
        free = [d for d in self.devices(self._clock()) if d.name not in busy and d.speed >= 1]
        if assigned.ending is None and len(free) >= len(assigned.devices):
            names = ", ".join(assigned.devices)
            logger.warning("%s is moved: %s took %.1f times as long", assigned.job, names, factor)
            self._counts.faults["slow"] += 1
            self._estimates.slow(assigned.devices, factor)
            self.stop(assigned, "move")

    def lose(self, assigned: Assigned, kind: str, reason: str, alive: bool = False) -> None:
        """A group has failed a job, which goes on with another, or is given up for good.

        `alive`: its runner is of further use.
        """
        with logged_as(job=assigned.job, epoch=assigned.epoch):
            logger.warning("%s: %s", kind, reason)
        job, now = self._desk.jobs[assigned.job], self._clock()
        strikes = self._strikes(job, kind, now)
        changes = {"faults": job.faults + 1, "strikes": strikes}
        facts = {"kind": kind, "reason": reason, "epoch": assigned.epoch}
        if job.status is Status.CANCELLING:
            self._end(job, Status.CANCELLED, facts, assigned, **changes)
        elif strikes > self._rules.strikes:
            error = f"no group made a block more of it, {job.epoch} in all; the last: {reason}"
            self._end(job, Status.FAILED, facts, assigned, error=error, **changes)
        else:
            self._requeue(assigned, "fault", facts, **changes)
            self._counts.survived += 1
            until = now + self._rules.pause(kind, strikes)
            for name in (job.id, *(assigned.devices if not alive else ())):
                self._not_before[name] = until
        self._counts.faults[kind] += 1
        if not alive:
            self.groups.end(assigned.group)

    def finish(self, assigned: Assigned, message: Message) -> None:
        """The video is whole."""
        job = self._desk.jobs[assigned.job]
        if assigned.epoch == 1 and message["seconds"]:
            expected = assigned.option.seconds
            self._estimates.learn(assigned.devices, expected, message["seconds"])
        changes = {"frames": message["frames"], "progress": 1.0, "blocks_done": job.blocks}
        cancelled = job.status is Status.CANCELLING
        status = Status.CANCELLED if cancelled else Status.COMPLETED
        self._end(job, status, {"frames": message["frames"]}, assigned, **changes)

    def stopped(self, assigned: Assigned) -> None:
        """The run came to the end of a block, because it was told to, or missed our word."""
        job = self._desk.jobs[assigned.job]
        if job.status is Status.CANCELLING:
            self._end(job, Status.CANCELLED, {}, assigned)
            return
        preempted = assigned.ending == "preempt"
        events = {"preempt": "preempted", "move": "moved"}
        event = events.get(assigned.ending or "", "stopped")
        facts = {"epoch": assigned.epoch, "blocks": job.blocks_done}
        self._requeue(assigned, event, facts, preemptions=job.preemptions + preempted)
        self._counts.preemptions += preempted

    def _requeue(
        self, assigned: Assigned, event: str, facts: Mapping[str, Any], **changes: Any
    ) -> None:
        """A job has no group any more, and waits for another."""
        held = self._desk.jobs[assigned.job].held + time.monotonic() - assigned.given_at
        self._desk.save(assigned.job, event, facts, assigned.epoch, **WAITING, held=held, **changes)
        del self.assigned[assigned.job]

    def end_waiting(self, job: Job) -> None:
        """A job that has no group is cancelled."""
        self._end(job, Status.CANCELLED)

    def _end(
        self,
        job: Job,
        status: Status,
        facts: Mapping[str, Any] | None = None,
        assigned: Assigned | None = None,
        **changes: Any,
    ) -> None:
        if assigned is not None:
            changes["held"] = job.held + time.monotonic() - assigned.given_at
        changes |= {"status": status, "stage": str(status), "devices": (), "seconds_left": None}
        epoch = None if assigned is None else assigned.epoch
        self._desk.save(job.id, str(status), facts, epoch, ended_at=self._clock(), **changes)
        self._counts.ended[str(status)] += 1
        if status is Status.COMPLETED:
            self._counts.video_seconds += job.seconds
        if assigned is not None:
            del self.assigned[job.id]
        for known in (self._not_before, self._disk_full_since):
            known.pop(job.id, None)

    def _strikes(self, job: Job, kind: str, now: float) -> int:
        """A full disk is nobody's fault for a while."""
        if kind != "disk":
            return job.strikes + (self._rules.own_fault if kind in OWN_FAULTS else 1)
        since = self._disk_full_since.setdefault(job.id, now)
        return job.strikes + (now - since > self._rules.disk)

    def _busy(self) -> list[Member]:
        return [each.group for each in self.assigned.values()]

    def _start(
        self, start: Start, devices: Sequence[FleetDevice], starts: Sequence[Start], now: float
    ) -> None:
        job, names = self._desk.jobs[start.job], tuple(dict.fromkeys(start.devices))
        names = self._warmest(job, names, devices, starts)
        try:
            member = self.groups.take(names, self._busy(), time.monotonic())
        except UserError as error:
            logger.warning("no runner on %s: %s", ", ".join(names), error)
            self._not_before |= dict.fromkeys(names, now + self._rules.disk_pause)
            return
        degrees, epoch = asdict(start.option.degrees), job.epoch + 1
        job = self._desk.save(
            job.id,
            "started",
            {"epoch": epoch, "devices": names, "blocks": job.blocks_done},
            status=Status.IN_PROGRESS,
            stage="starting",
            new_epoch=epoch,
            devices=names,
            degrees=degrees,
            started_at=now if job.started_at is None else job.started_at,
        )
        granted = job.blocks_done + self._rules.ahead
        assigned = Assigned(
            job.id,
            epoch,
            member,
            start.option,
            names,
            time.monotonic(),
            max(LEAST, start.ends - now),
            granted,
            job.blocks_done,
        )
        self.assigned[job.id] = assigned
        switches = self._desk.store.open_switches(job.id)
        assigned.send(
            "start",
            folder=job.folder,
            order={
                "config": shared_out(job.config, degrees),
                "cues": [{"at": at, "text": text} for at, text in job.ask.prompt],
                "seconds": job.config["seconds"],
            },
            granted=granted,
            switches=[{"number": each.number, "text": each.text} for each in switches],
        )

    def _warmest(
        self,
        job: Job,
        names: tuple[str, ...],
        devices: Sequence[FleetDevice],
        starts: Sequence[Start],
    ) -> tuple[str, ...]:
        by_name = {device.name: device for device in devices}
        taken = {name for start in starts for name in start.devices}
        taken |= {name for each in self.assigned.values() for name in each.devices}
        own = by_name[names[0]]
        alike = [
            device.name
            for device in devices
            if device.name not in taken
            and (device.node, device.memory, device.speed) == (own.node, own.memory, own.speed)
        ]
        idle = {m.devices[0]: m for m in self.groups if m not in self._busy()}
        return warmest(job.ask.model, names, idle, alike)

    def _view(self, job: Job, now: float) -> JobView | None:
        """What the queue knows of a job; None while it is held back."""
        assigned = self.assigned.get(job.id)
        if assigned is None and self._not_before.get(job.id, 0.0) > now:
            return None
        begun = job.degrees is not None
        options = [
            self._estimates.paced(option)
            for option in job.options
            if not begun or asdict(option.degrees) == job.degrees
        ]
        return JobView(
            job.id,
            Priority(job.priority),
            job.created_at,
            tuple(options),
            job.deadline,
            remaining=max(LEAST, 1 - job.blocks_done / job.blocks),
            restore=self._estimates.restore if job.epoch else 0.0,
            begun=begun,
            held=job.held,
            run=None if assigned is None else self._run(job, assigned, now),
        )

    def _run(self, job: Job, assigned: Assigned, now: float) -> Run:
        at = time.monotonic() - assigned.given_at
        left = assigned.expected - at if job.seconds_left is None else job.seconds_left
        block = assigned.option.seconds / job.blocks
        return Run(
            assigned.option,
            assigned.devices,
            now - at,
            now + max(0.0, left),
            now + block,
            stopping=assigned.ending is not None,
        )
