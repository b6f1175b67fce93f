"""What runners tell, and what follows from it for their jobs."""

from __future__ import annotations

import logging
import time

from longtake.launch.counts import Counts
from longtake.launch.desk import Desk
from longtake.launch.dispatcher import Dispatcher
from longtake.launch.estimates import Estimates
from longtake.launch.fleet import GONE, Group, Message
from longtake.launch.groups import Assigned, Member
from longtake.launch.rules import Rules

SAVE_EVERY = 0.5  # seconds between two blocks that are worth a word on the disk

logger = logging.getLogger(__name__)


class News:
    """Takes messages one at a time, under the lock of the desk.

    A message whose job is no longer its group's says nothing any more, and is dropped.
    """

    def __init__(
        self,
        desk: Desk,
        dispatcher: Dispatcher,
        estimates: Estimates,
        counts: Counts,
        rules: Rules,
    ) -> None:
        self._desk, self._dispatcher, self._estimates = desk, dispatcher, estimates
        self._counts, self._rules = counts, rules

    def hear(self, group: Group, message: Message) -> bool:
        """Take a message; returns whether there may be something to decide now."""
        member, kind = self._dispatcher.groups.of(group), message["tell"]
        if member is None:
            return False
        member.heard_at = time.monotonic()
        if kind == "hello":
            member.ready_at = member.heard_at
        elif kind == "beat":
            member.warm = message["warm"]
            if (assigned := self._assigned(member, message)) is not None:
                self._counts.measure(assigned, message["loads"])
        elif kind == GONE:
            self._gone(group, "crash" if message["crashed"] else "lost", message["reason"])
            return True
        elif (assigned := self._assigned(member, message)) is not None:
            return self._hear(assigned, kind, message)
        return False

    def _assigned(self, member: Member, message: Message) -> Assigned | None:
        """What a message is about, if that is still its group's."""
        assigned = self._dispatcher.assigned.get(message.get("job", ""))
        if assigned is None or assigned.group is not member:
            return None
        return assigned if message["epoch"] == assigned.epoch else None

    def _gone(self, group: Group, kind: str, reason: str) -> None:
        for assigned in list(self._dispatcher.assigned.values()):
            if assigned.group.group is group:
                self._dispatcher.lose(assigned, kind, reason)
        self._dispatcher.groups.forget(group)

    def _hear(self, assigned: Assigned, kind: str, message: Message) -> bool:
        match kind:
            case "begun":
                self._move(assigned)
                assigned.begun = message["block"]
                if assigned.begun + self._rules.ahead > assigned.granted:
                    assigned.granted = assigned.begun + self._rules.ahead
                    assigned.send("grant", block=assigned.granted)
            case "block":
                self._move(assigned)
                self._block(assigned, message["blocks"], message["frames"])
            case "progress":
                self._move(assigned)
                self._progress(assigned, message)
            case "switched":
                self._desk.store.settle_switch(assigned.job, message["number"], message["second"])
                self._desk.touch(assigned.job)
            case "finished":
                self._counts.leave(assigned, message)
                self._dispatcher.finish(assigned, message)
                return True
            case "stopped":
                self._counts.leave(assigned, message)
                self._dispatcher.stopped(assigned)
                return True
            case "failed":
                self._dispatcher.lose(assigned, message["fault"], message["reason"], alive=True)
                return True
        return False

    def _move(self, assigned: Assigned) -> None:
        now = time.monotonic()
        if assigned.moved_at is None:
            self._estimates.began(now - assigned.given_at)
        assigned.move(now)

    def _block(self, assigned: Assigned, blocks: int, frames: int) -> None:
        job, now = self._desk.jobs[assigned.job], time.monotonic()
        if blocks <= job.blocks_done:
            return
        self._counts.blocks += blocks - job.blocks_done
        self._desk.note(job.id, blocks_done=blocks, strikes=0)
        due = now - assigned.saved_at >= SAVE_EVERY
        if due or blocks == job.blocks or job.strikes:
            assigned.saved_at = now
            facts = {"blocks": blocks, "of": job.blocks, "frames": frames}
            self._desk.save(job.id, "block", facts, assigned.epoch)
        if self._estimates.measured and blocks - assigned.kept >= self._rules.slow_blocks:
            expected = assigned.option.seconds / job.blocks
            factor = assigned.seconds_per_block(blocks, now) / expected
            if factor >= self._rules.slow:
                self._dispatcher.move(assigned, factor)

    def _progress(self, assigned: Assigned, message: Message) -> None:
        job = self._desk.jobs[assigned.job]
        frames = message["frames"]
        self._desk.note(
            job.id,
            stage=message["stage"],
            frames=frames,
            progress=max(job.progress, min(1.0, frames / job.total_frames)),
            seconds_left=message["seconds_left"],
        )
