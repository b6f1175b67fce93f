"""The jobs that have not ended, as they are at this moment; the store has them as last saved."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from longtake.launch.job_store import JobStore
from longtake.launch.jobs import Job, NoSuchJob

LIVE = ("stage", "progress", "seconds_left", "frames", "blocks_done", "strikes")


class Desk:
    """Changes are made under `lock` by whoever reads first what they depend on.

    Attributes:
        jobs: by id, in the order in which they came.
    """

    def __init__(self, store: JobStore) -> None:
        self.store, self.lock = store, threading.RLock()
        self.jobs = {job.id: job for job in store.unfinished()}
        self._changed = threading.Condition(self.lock)
        self._changes: Counter[str] = Counter()
        self._closed = False

    def add(self, job: Job) -> None:
        """Take a new job; it is in the store when this returns."""
        with self.lock:
            self.store.add(job)
            self.jobs[job.id] = job
            self.touch(job.id)

    def get(self, id_: str, owner: str | None = None) -> Job:
        """A job as it is now; raises `NoSuchJob`, also where it is somebody else's."""
        with self.lock:
            job = self.jobs.get(id_) or self.store.get(id_)
        if owner not in (None, job.owner):
            raise NoSuchJob(f"there is no video {id_!r}")
        return job

    def save(
        self,
        id_: str,
        event: str | None = None,
        facts: Mapping[str, Any] | None = None,
        epoch: int | None = None,
        **changes: Any,
    ) -> Job:
        """Change a job durably; see `JobStore.update`."""
        with self.lock:
            job = self.jobs[id_]
            live = {name: getattr(job, name) for name in LIVE}
            job = self.store.update(id_, epoch, event, facts, **{**live, **changes})
            if job.status.ended:
                del self.jobs[id_]
            else:
                self.jobs[id_] = job
            self.touch(id_)
        return job

    def note(self, id_: str, **changes: Any) -> None:
        """Change what is told of a job but not worth a word on the disk: fields of `LIVE`."""
        with self.lock:
            self.jobs[id_] = replace(self.jobs[id_], **changes)
            self.touch(id_)

    def delete(self, id_: str) -> None:
        """Forget a job that has ended."""
        with self.lock:
            self.store.delete(id_)
            self.touch(id_)
            del self._changes[id_]

    def touch(self, id_: str) -> None:
        """Wake those who wait for something new of a job."""
        with self.lock:
            self._changes[id_] += 1
            self._changed.notify_all()

    def changed(self, id_: str, seen: int, timeout: float) -> int:
        """Wait for something new of a job; see `Central.changed`."""
        with self.lock:
            self.get(id_)
            self._changed.wait_for(lambda: self._closed or self._changes[id_] != seen, timeout)
            self.get(id_)
            return self._changes[id_]

    def close(self) -> None:
        """Nobody has to wait any longer."""
        with self.lock:
            self._closed = True
            self._changed.notify_all()
