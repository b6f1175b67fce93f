"""Where requests are accepted: within the limits of whoever sends them, and passed on."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from longtake.launch.jobs import Ask, Job, NoSuchJob
from longtake.launch.server.auth import Caller, Door
from longtake.launch.server.cameras import Cameras
from longtake.launch.server.errors import ApiError
from longtake.launch.server.offers import Offer, find_offer, make_ask
from longtake.launch.server.quotas import Ledger
from longtake.launch.server.schemas import PlanRequest, VideoFields, VideoRequest
from longtake.launch.server.uploads import Uploads, from_data_url
from longtake.launch.server.watch import Watch

if TYPE_CHECKING:
    from longtake.launch.central import Central
    from longtake.launch.server.metrics import Metrics


class OpenJobs:
    """Which jobs of each owner have not ended; nobody else makes any while this server runs."""

    def __init__(self, central: Central) -> None:
        self._central = central
        self._open: defaultdict[str, set[str]] = defaultdict(set)
        after = None
        while page := central.list(after=after, limit=100):
            for job in page:
                self.add(job)
            after = page[-1].id

    def add(self, job: Job) -> None:
        """A job to remember as long as it is open."""
        if not job.status.ended:
            self._open[job.owner].add(job.id)

    def count(self, owner: str) -> int:
        """How many of them are open now."""
        self._open[owner] = {id_ for id_ in self._open[owner] if not self._ended(id_)}
        return len(self._open[owner])

    def _ended(self, id_: str) -> bool:
        try:
            return self._central.get(id_).status.ended
        except NoSuchJob:
            return True


@dataclass
class Services:
    """Everything that the endpoints share."""

    central: Central
    watch: Watch
    door: Door
    offers: Mapping[str, Offer]
    ledger: Ledger
    uploads: Uploads
    cameras: Cameras
    metrics: Metrics
    open_jobs: OpenJobs
    origins: tuple[str, ...] = ()
    local_only: bool = False
    _accepting: threading.Lock = field(default_factory=threading.Lock)
    _planning: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Let go of files."""
        self.ledger.close()

    def create(self, asked: VideoRequest, data: bytes | None, caller: Caller, now: float) -> Job:
        """Accept a video; `data` is what it begins from.

        Raises:
            ApiError, UserError: it can't be made, or not for this caller.
        """
        self._check_priority(asked, caller)
        if asked.input_reference is not None and data is None:
            data = from_data_url(asked.input_reference.image_url)
        with self._ask(asked, data, caller) as ask, self._accepting:
            self._check_open(caller)
            seconds = self._seconds(asked) if ask.input_video is None else ask.seconds
            self.ledger.check(caller.owner, seconds or 0.0, caller.limits)
            deadline = None if asked.deadline is None else now + asked.deadline
            job = self.central.submit(ask, caller.owner, asked.priority, deadline)
            self.ledger.note(caller.owner, job.seconds)
            self.open_jobs.add(job)
        return job

    def film(self, asked: VideoRequest, caller: Caller) -> Ask:
        """Accept a session with a camera; without `seconds` it lasts as long as this caller's may.

        Raises:
            ApiError: it can't be made, or not for this caller.
        """
        self._check_priority(asked, caller)
        if asked.seconds is None:
            asked = asked.model_copy(update={"seconds": caller.limits.seconds})
        else:
            self._check_length(asked.seconds, caller)
        ask = make_ask(asked, self.offers)
        self.ledger.check(caller.owner, asked.seconds or 0.0, caller.limits)
        self.ledger.note(caller.owner, asked.seconds or 0.0)
        return ask

    def plan(self, asked: PlanRequest, caller: Caller) -> dict[str, Any]:
        """What the planner tells; one question at a time, since a search takes a whole core.

        Raises:
            ApiError, UserError: it can't be told, or not now.
        """
        self._check_length(self._seconds(asked), caller)
        ask = make_ask(asked, self.offers)
        if not self._planning.acquire(blocking=False):
            words = "another plan is being looked for; try again"
            raise ApiError(429, words, "planner_busy", headers={"Retry-After": "2"})
        try:
            return self.central.plan(ask)
        finally:
            self._planning.release()

    def own(self, id_: str, caller: Caller) -> Job:
        """A job of the caller; raises `NoSuchJob` where it is somebody else's."""
        return self.central.get(id_, caller.owner)

    @contextmanager
    def _ask(self, asked: VideoRequest, data: bytes | None, caller: Caller) -> Iterator[Ask]:
        ask = make_ask(asked, self.offers)  # what is wrong with the words costs no decoding
        if data is None or asked.seconds is not None:
            self._check_length(self._seconds(asked), caller)
        if data is None:
            yield ask
            return
        with self.uploads.kept(data, self._seconds(asked)) as (path, length):
            if asked.seconds is None:
                self._check_length(length, caller)
                asked = asked.model_copy(update={"seconds": length})
            yield make_ask(asked, self.offers, str(path))

    def _seconds(self, asked: VideoFields) -> float:
        if asked.seconds is not None:
            return asked.seconds
        return find_offer(self.offers, asked.model).defaults.seconds

    def _check_priority(self, asked: VideoRequest, caller: Caller) -> None:
        if asked.priority == "interactive" and not caller.limits.interactive:
            raise ApiError(403, "this key may only ask for batch", "permission_denied", "priority")

    def _check_length(self, seconds: float, caller: Caller) -> None:
        most = caller.limits.seconds
        if most is not None and seconds > most:
            raise ApiError(
                400,
                f"a video may be {most:g} s long here, got {seconds:g} s",
                "too_long",
                "seconds",
            )

    def _check_open(self, caller: Caller) -> None:
        most = caller.limits.jobs
        if most is not None and self.open_jobs.count(caller.owner) >= most:
            raise ApiError(
                429,
                f"{most} videos of this key are waiting or being made, which is all it may have at "
                "a time",
                "too_many_videos",
                headers={"Retry-After": "10"},
            )
