"""What a worker has sent and waited for, in a few numbers: kept of every run, traced or not."""

from __future__ import annotations

import threading
from collections import Counter

from longtake.scheduler.timeline import MAIN, Action, Activity, Record, forget


class Tally:
    """A `Record` of the main lane's transfers, for any of a worker's threads; it passes all on.

    Attributes:
        sent: bytes by name of transfer.
        waited: seconds that the worker stood still for transfers.
    """

    def __init__(self, record: Record = forget) -> None:
        self._record, self._lock = record, threading.Lock()
        self.sent: Counter[str] = Counter()
        self.waited = 0.0

    def __call__(self, action: Action) -> None:
        """Count an action that is over."""
        with self._lock:
            if action.lane != MAIN:
                pass  # what goes on beside, such as decoding, keeps nobody waiting
            elif action.activity is Activity.TRANSFER:
                self.sent[action.name] += action.bytes
            elif action.activity is Activity.WAIT:
                self.waited += action.stop - action.start
        self._record(action)
