"""What the central scheduler asks of machines: which devices there are, and runners on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from longtake.scheduler.queue_state import FleetDevice

Message = Mapping[str, Any]
# The last word of a group, made up by its fleet: with a `reason`, and whether it `crashed`.
GONE = "gone"


class Group(Protocol):
    """A runner, `launch.runner`, and the devices that its workers have."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Their names; the runner, which is rank 0, is on the first."""
        ...

    def send(self, message: Message) -> None:
        """Tell the runner; silently in vain if it is gone, which it is about to say itself."""
        ...

    def kill(self) -> None:
        """End the runner and all its workers at once; returns when they are gone."""
        ...


Hear = Callable[[Group, Message], None]


class Fleet(Protocol):
    """Machines. Any thread may call."""

    @property
    def kind(self) -> str:
        """What all its devices are: cpu or cuda."""
        ...

    def devices(self) -> Sequence[FleetDevice]:
        """The devices that are there now."""
        ...

    def open(self, devices: Sequence[str], hear: Hear) -> Group:
        """Start a runner; `hear` is called with all it says, from another thread, `GONE` at last.

        Raises:
            UserError: it can't be started there.
        """
        ...

    def close(self) -> None:
        """End all groups."""
        ...
