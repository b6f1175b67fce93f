"""The central scheduler: takes requests, and sees each of them through whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longtake.launch.cluster_view import ClusterView, Figures, Health
from longtake.launch.fleet import Fleet
from longtake.launch.job_store import JobStore
from longtake.launch.jobs import Ask, Event, Job


class Central:
    """Jobs from acceptance to a video. All methods may be called from any thread.

    What was accepted is in the store before `submit` returns; a `Central` that is made of the same
    store later, after a crash too, goes on with all of it.
    """

    def __init__(
        self,
        store: JobStore,
        fleet: Fleet,
        folder: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Videos and journals go to `folder`, which all machines of the fleet must see there."""
        self._store, self._fleet, self._folder, self._clock = store, fleet, folder, clock

    def start(self) -> None:
        """Begin to give jobs to workers."""
        raise NotImplementedError

    def close(self) -> None:
        """End all groups after the blocks at work; what is not done goes on with the next start."""
        raise NotImplementedError

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
        raise NotImplementedError

    def get(self, id_: str, owner: str | None = None) -> Job:
        """A job as it is now; raises `NoSuchJob`, also where it is not that owner's."""
        raise NotImplementedError

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
        raise NotImplementedError

    def cancel(self, id_: str) -> Job:
        """End a job; it is `cancelling` until the block at work is through.

        Cancelling twice is no mistake.

        Raises:
            NoSuchJob: there is none.
            JobConflict: it is completed, or has failed.
        """
        raise NotImplementedError

    def delete(self, id_: str) -> None:
        """Remove a job that has ended, and its files.

        Raises:
            NoSuchJob: there is none.
            JobConflict: it has not ended; cancel it first.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def events(self, id_: str, since: int = 0) -> Sequence[Event]:
        """What happened to a job after the event of that number, in order; raises `NoSuchJob`."""
        raise NotImplementedError

    def changed(self, id_: str, seen: int, timeout: float) -> int:
        """Wait until there is something new of a job: an event, progress, or its end.

        Returns:
            How many times the job has changed, to be given as `seen` the next time; the same
            number when `timeout` seconds are over.

        Raises:
            NoSuchJob: there is none, or it was deleted.
        """
        raise NotImplementedError

    def cluster(self) -> ClusterView:
        """Which device does what now."""
        raise NotImplementedError

    def health(self) -> Health:
        """What an operator should know of: lost devices, a full disk, a scheduler that stands."""
        raise NotImplementedError

    def figures(self) -> Figures:
        """What has been counted since the start."""
        raise NotImplementedError

    def plan(self, ask: Ask) -> dict[str, Any]:
        """What the planner tells of a request on this cluster; as `longtake plan --json`.

        Raises:
            UserError: it can't be done.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
