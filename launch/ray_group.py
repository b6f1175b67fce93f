"""A group on a Ray cluster: a runner on one node and, if it has several, workers on the others."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longtake.launch.crew import meeting_of
from longtake.launch.fleet import GONE, Hear, Message
from longtake.launch.ray_cluster import brief, import_ray
from longtake.launch.surroundings import Surroundings
from longtake.scheduler.degrees import shares

FETCH_SECONDS = 1.0
KILL_SECONDS = 5.0  # for an actor to end its processes, before it is ended itself


@dataclass(frozen=True)
class Post:
    """An `Outpost` and the devices that it has."""

    actor: Any
    devices: tuple[str, ...]


class RayGroup:
    """What the scheduler says goes to the first post's runner, in order.

    Attributes:
        gone: it has ended, and said so.
    """

    def __init__(
        self, posts: Sequence[Post], hear: Hear, folder: Path, lease: float, log_format: str
    ) -> None:
        self.devices = tuple(name for post in posts for name in post.devices)
        self.gone = threading.Event()
        self._ray, self._posts, self._hear, self._folder = import_ray(), posts, hear, folder
        self._runner = posts[0].actor
        self._opened = self._runner.open.remote(self.devices, str(folder), lease, log_format)
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        for target, name in ((self._listen, "says"), (self._speak, "hears")):
            threading.Thread(target=target, name=f"{self.devices[0]} {name}", daemon=True).start()

    def send(self, message: Message) -> None:
        """See `Group`."""
        self._outbox.put(message)

    def kill(self) -> None:
        """See `Group`; returns at once, for its devices are Ray's to give away again."""
        threading.Thread(target=self._end, daemon=True).start()

    def _speak(self) -> None:
        """Hand on what is to be told, one after the other: calls of an actor may overtake."""
        try:
            self._ray.get(self._opened)
            while (message := self._outbox.get()) is not None:
                if message["do"] == "start" and len(self._posts) > 1:
                    message = self._with_others(message)
                self._ray.get(self._runner.send.remote(message))
        except self._ray.exceptions.RayError as error:
            self._give_up(error)

    def _with_others(self, message: Message) -> Message:
        """Start the other nodes' workers, and tell the runner where to meet them."""
        world = message["order"]["config"]["parallel"]["workers"]
        asked = [self._runner.address.remote(), self._runner.free_port.remote()]
        arounds = self._arounds(world, *self._ray.get(asked))
        following = [
            post.actor.follow.remote([_place(a) for p, a in arounds if p is post and a.rank > 0])
            for post in self._posts
        ]
        self._ray.get(following)
        return {**message, "around": asdict(arounds[0][1])}

    def _arounds(self, world: int, address: str, port: int) -> list[tuple[Post, Surroundings]]:
        """The place of each rank; devices that are too few have several neighbouring ones."""
        per_device = shares(world, len(self.devices))
        found: list[tuple[Post, Surroundings]] = []
        for post in self._posts:
            own = [per_device[self.devices.index(name)] for name in post.devices]
            ranks = range(own[0].start, own[-1].stop)
            found += [
                (post, Surroundings("ray", rank, world, local, len(ranks), address, port))
                for local, rank in enumerate(ranks)
            ]
        return found

    def _listen(self) -> None:
        try:
            self._ray.get(self._opened)
            gone = False
            while not gone:
                for message in self._ray.get(self._runner.fetch.remote(FETCH_SECONDS)):
                    gone = gone or message["tell"] == GONE
                    self._hear(self, message)
            self._end()
        except self._ray.exceptions.RayError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        reason = f"its actor was lost: {brief(error)}"
        self._hear(self, {"tell": GONE, "crashed": False, "reason": reason})
        self._end()

    def _end(self) -> None:
        self._outbox.put(None)
        ending = [post.actor.kill.remote() for post in self._posts]
        self._ray.wait(ending, num_returns=len(ending), timeout=KILL_SECONDS)
        for post in self._posts:
            self._ray.kill(post.actor)
        self.gone.set()


def _place(around: Surroundings) -> tuple[str, int]:
    """What an outpost needs to know of a worker."""
    return json.dumps(asdict(meeting_of(around))), around.local_rank
