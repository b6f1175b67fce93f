"""How long the central scheduler waits for whom, and how often it tries again."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.launch.groups import Assigned


@dataclass(frozen=True)
class Rules:
    """All times in seconds.

    Attributes:
        ping: between two words to a runner; it stops by itself after the fleet's lease without one.
        ahead: blocks that may begin beyond those that have.
        start: for a new runner to say hello.
        silence: without a sign of life, after which a runner is given up.
        load: for a run to begin its first task; a large model is read and compiled meanwhile.
        hang: without progress, after which a run is given up, but never less than `hang_steps`
            times its longest pause before.
        crew: that a worker may keep the others of its group waiting.
        stop: for a run that was told to stop, likewise never less than `hang_steps` pauses.
        slow: times as long as expected that a block takes, after `slow_blocks` of them, for a job
            to be moved to devices that are free.
        strikes: how often groups may be lost under a job without one block more before it is given
            up for good; what its run says or shows itself counts `own_fault` times.
        backoff: before the next attempt, doubled by each strike up to `longest_backoff`.
        disk: for which a job whose disk is full is tried again, every `disk_pause`.
        keep: after its end, until a job and its files are deleted; None: for ever.
        missed: for a device that is gone to be held against the fleet's health.
        close: for all runs to come to the end of a block, when the scheduler is closed.
    """

    ping: float = 1.0
    ahead: int = 4
    start: float = 120.0
    silence: float = 10.0
    load: float = 900.0
    hang: float = 60.0
    hang_steps: float = 20.0
    crew: float = 60.0
    stop: float = 60.0
    slow: float = 4.0
    slow_blocks: int = 3
    strikes: int = 16
    own_fault: int = 4
    backoff: float = 0.5
    longest_backoff: float = 30.0
    disk: float = 3600.0
    disk_pause: float = 5.0
    keep: float | None = None
    missed: float = 600.0
    close: float = 60.0

    def pause(self, kind: str, strikes: int) -> float:
        """Before the next attempt after so many strikes, the last of this kind."""
        if kind == "disk":
            return self.disk_pause
        return min(self.longest_backoff, self.backoff * 2.0 ** (strikes - 1))

    def trouble(self, assigned: Assigned, now: float) -> tuple[str, str] | None:
        """What is wrong with a group, as a kind of fault and a reason; None: nothing is known.

        `now` is of the same clock as the instants of `assigned`.
        """
        group = assigned.group
        if group.ready_at is None:
            waited = now - group.opened_at
            late = waited > self.start
            return ("silent", f"the runner did not say hello for {waited:.0f} s") if late else None
        if now - group.heard_at > self.silence:
            silent = now - group.heard_at
            return "silent", f"the runner gave no sign of life for {silent:.0f} s"
        patience = max(self.hang, self.hang_steps * assigned.longest_pause)
        if assigned.moved_at is None:
            since, patience = now - max(assigned.given_at, group.ready_at), self.load
        else:
            since = now - assigned.moved_at
        if since > patience:
            return "hung", f"the run made no progress for {since:.0f} s"
        limit = max(self.stop, self.hang_steps * assigned.longest_pause)
        if assigned.stopped_at is not None and now - assigned.stopped_at > limit:
            return "hung", f"the run did not stop within {limit:.0f} s"
        return None
