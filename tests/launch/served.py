"""A central scheduler without workers, for tests of the server: jobs move when a test says so."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from longtake.launch.central import Central
from longtake.launch.cluster_view import ClusterView, DeviceView, Figures, Health
from longtake.launch.job_store import JobStore, StoreBroken
from longtake.launch.jobs import Ask, Event, Job, JobConflict, NoSuchJob, Status, new_id
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import Limits
from longtake.launch.server.offers import Offer, make_offers
from longtake.launch.server.services import Services
from longtake.launch.server.serving import Wishes, make_services
from longtake.runtime.video import Mp4Writer
from longtake.scheduler.errors import UserError
from longtake.scheduler.tally import Occupancy

FPS, SIDE = 16, 64
MAX_BODY = 1 << 20


class FakeCentral(Central):
    """Keeps jobs as the real one does, and makes their videos out of noise."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = JobStore(folder / "jobs.sqlite"), folder
        self.changes: Counter[str] = Counter()
        self.writers: dict[str, Mp4Writer] = {}
        self.problems: tuple[str, ...] = ()
        self.inputs: list[bytes] = []
        self._bell = threading.Condition()

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.store.close()

    def submit(
        self,
        ask: Ask,
        owner: str = "",
        priority: str = "batch",
        deadline: float | None = None,
    ) -> Job:
        if ask.prompt[0][1] == "refuse":
            raise UserError("no weights at /srv/models/wan/weights.safetensors, or elsewhere")
        if ask.prompt[0][1] == "full":
            raise StoreBroken("database or disk is full")
        if ask.prompt[0][1] == "crash":
            raise RuntimeError("a secret: /srv/models/wan")
        if ask.input_video is not None:
            self.inputs.append(Path(ask.input_video).read_bytes())
        seconds = ask.seconds or 4.0
        id_ = new_id()
        job = Job(
            id=id_,
            owner=owner,
            ask=ask,
            config={},
            folder=str(self.folder / id_),
            created_at=1000.0 + len(self.changes),
            width=SIDE,
            height=SIDE,
            fps=FPS,
            total_frames=round(seconds * FPS),
            blocks=4,
            priority=priority,
            deadline=deadline,
        )
        Path(job.folder).mkdir()
        self.store.add(job)
        self._change(id_)
        return job

    def get(self, id_: str, owner: str | None = None) -> Job:
        job = self.store.get(id_)
        if owner not in (None, job.owner):
            raise NoSuchJob(f"there is no video {id_!r}")
        return job

    def list(
        self,
        owner: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> Sequence[Job]:
        return self.store.list(owner, after, limit, newest_first)

    def cancel(self, id_: str) -> Job:
        if self.get(id_).status in (Status.COMPLETED, Status.FAILED):
            raise JobConflict(f"video {id_} has ended")
        return self.set(id_, "cancelled", status=Status.CANCELLED)

    def delete(self, id_: str) -> None:
        if not self.get(id_).status.ended:
            raise JobConflict(f"video {id_} has not ended; cancel it first")
        self.store.delete(id_)
        self._change(id_)

    def switch(self, id_: str, prompt: str, patience: float = 5.0) -> float | None:
        if self.get(id_).status.ended:
            raise JobConflict(f"video {id_} has ended")
        self.set(id_, "switched", second=1.5)
        return 1.5

    def events(self, id_: str, since: int = 0) -> Sequence[Event]:
        self.get(id_)
        return self.store.events(id_, since)

    def changed(self, id_: str, seen: int, timeout: float) -> int:
        with self._bell:
            self._bell.wait_for(lambda: self.changes[id_] != seen, timeout)
        self.get(id_)
        return self.changes[id_]

    def cluster(self) -> ClusterView:
        working = [job for job in self.store.unfinished() if job.status is Status.IN_PROGRESS]
        id_ = working[0].id if working else None
        device = DeviceView("cpu:0", "here", "cpu", 8.0, job=id_, stage=id_ and "denoise")
        return ClusterView((device,), ("cpu:1",), queued=1, in_progress=len(working))

    def health(self) -> Health:
        return Health(self.problems)

    def figures(self) -> Figures:
        return Figures(
            ended={"completed": 3},
            faults={"lost": 2},
            survived=2,
            video_seconds=8.0,
            busy_seconds=4.0,
            stage_seconds={"denoise": 3.0},
            waited={"cpu:0": 0.25},
            sent={("cpu:0", "cpu:1"): 4096},
            cache={"cpu:0": Occupancy(30, 100)},
            oldest_wait=1.5,
        )

    def plan(self, ask: Ask) -> dict[str, Any]:
        return {"plans": [], "asked": asdict(ask)["seconds"]}

    def set(self, id_: str, event: str | None = None, second: float = 0.0, **changes: Any) -> Job:
        """What becomes of a job."""
        facts = {"second": second} if event == "switched" else {}
        job = self.store.update(id_, event=event, facts=facts, **changes)
        self._change(id_)
        return job

    def begin(self, id_: str) -> None:
        """A job gets workers, at first or again; its video begins."""
        epoch = self.get(id_).epoch + 1
        changes = {"status": Status.IN_PROGRESS, "stage": "denoise", "new_epoch": epoch}
        job = self.set(id_, "started", **changes)
        self.writers[id_] = Mp4Writer(Path(job.video), fps=FPS, height=SIDE, width=SIDE)

    def make(self, id_: str, frames: int) -> None:
        """So many more frames are in its file."""
        job = self.get(id_)
        self.writers[id_].write(noise(job.frames, frames))
        there = job.frames + frames
        self.set(id_, "block", frames=there, progress=there / job.total_frames)

    def interrupt(self, id_: str) -> None:
        """Its workers are lost; what is made will be made again, to the bit."""
        self.writers[id_].abort()
        self.set(id_, "fault", status=Status.QUEUED, frames=0, faults=1)

    def finish(self, id_: str) -> None:
        """The video is whole."""
        self.writers.pop(id_).close()
        self.set(id_, "completed", status=Status.COMPLETED, ended_at=2000.0, progress=1.0)

    def whole(self, id_: str) -> Job:
        """All of it at once."""
        job = self.get(id_)
        self.begin(id_)
        self.make(id_, job.total_frames)
        self.finish(id_)
        return self.get(id_)

    def _change(self, id_: str) -> None:
        with self._bell:
            self.changes[id_] += 1
            self._bell.notify_all()


def noise(start: int, count: int) -> np.ndarray:
    """Frames by number, (count, SIDE, SIDE, 3) uint8; the same each time."""
    frames = [
        np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        for number in range(start, start + count)
    ]
    return np.stack(frames)


def services_of(central: Central, folder: Path, door: Door, **wishes: Any) -> Services:
    """What endpoints share, with tinyworld on offer."""
    wanted = Wishes("127.0.0.1", 0, folder, (), Limits(), MAX_BODY, (), False)
    return make_services(replace(wanted, **wishes), central, door, offers())


@cache
def offers() -> Mapping[str, Offer]:
    """Composing them takes longer than most tests."""
    return make_offers(["tinyworld"])
