"""What goes wrong between workers."""

from __future__ import annotations

from collections.abc import Sequence


class CommunicationError(RuntimeError):
    """A peer did not do its part: it is gone, it hangs, or it sent something else.

    After this error the group is of no more use; close the mesh.

    Attributes:
        action: what was tried, beginning with the group, for example `ring exchange`.
        worker: the rank to which it happened.
        peers: ranks of whom it waited for.
        detail: what happened.
    """

    def __init__(self, action: str, worker: int, peers: Sequence[int], detail: str) -> None:
        self.action, self.worker, self.peers, self.detail = action, worker, tuple(peers), detail
        noun = "worker" if len(self.peers) == 1 else "workers"
        names = ", ".join(map(str, self.peers)) or "nobody"
        super().__init__(f"worker {worker}: {action} with {noun} {names}: {detail}")

    def __reduce__(self) -> tuple[type[CommunicationError], tuple[object, ...]]:
        return type(self), (self.action, self.worker, self.peers, self.detail)
