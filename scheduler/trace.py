"""What one worker did: the newest actions in full, the usage of all of them."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from statistics import median_high
from typing import Self

from longtake.scheduler.timeline import Action, Activity
from longtake.scheduler.usage import Usage, counts, usage_of

LIMIT = 100_000  # actions: some 20 MB of memory a worker, and a file that a browser still opens
# Half as many actions must end while one runs before its beginning is overlooked. A forward of all
# layers on a ring takes 1,000 or so; summing up stops the worker for 10 ms or so.
_UNSETTLED = 8_192


@dataclass(frozen=True)
class Recording:
    """What a `Trace` knows at its end.

    Attributes:
        host: the name of the machine.
        start: when the trace began, in seconds of the clock of `actions`.
        actions: the newest ones, in the order in which they ended.
        dropped: older actions that `actions` has no room for; they are part of `usage`.
        late: actions that count, but began in a time already summed up; that part of them is
            missing from `usage`, which is then too low in what they did.
        usage: of the whole time since `start`.
    """

    worker: int
    host: str
    start: float
    actions: tuple[Action, ...]
    dropped: int
    late: int
    usage: Usage

    def on_clock(self, shared: Callable[[float], float]) -> Recording:
        """The same on another clock, for instance that of rank 0 (`parallel/clock.py`)."""
        actions = (replace(a, start=shared(a.start), stop=shared(a.stop)) for a in self.actions)
        return replace(self, start=shared(self.start), actions=tuple(actions))

    def to_json(self) -> str:
        """A text for the way to another worker: some 10 MB where `actions` is full."""
        rows = [(a.activity, a.name, a.start, a.stop, a.bytes, a.lane) for a in self.actions]
        return json.dumps({**vars(self), "actions": rows, "usage": astuple(self.usage)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        actions = (
            Action(fields["worker"], Activity(activity), *rest)
            for activity, *rest in fields["actions"]
        )
        usage = Usage(*fields["usage"])
        return cls(**{**fields, "actions": tuple(actions), "usage": usage})


class Trace:
    """The `Record` of one worker, for any of its threads, in constant memory.

    The newest `limit` actions are kept for a picture. The usage is of all of them: whenever many
    actions have piled up, the time in which the older half ended is summed up for good. An action
    is handed in when it ends, so one that lasts longer than thousands of others is counted only
    from where the sum stands; `Recording.late` says how often that happened.

    Args:
        worker: its rank.
        host: the name of its machine.
        start: when its wall time begins, in seconds of the clock that the actions use.
        limit: how many actions to keep, at least 1.
    """

    def __init__(self, worker: int, host: str, start: float, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"a trace keeps at least 1 action, got a limit of {limit}")
        self._worker, self._host, self._start = worker, host, start
        self._newest: deque[Action] = deque(maxlen=limit)
        self._count = self._late = 0
        self._settled, self._usage = start, Usage()  # the usage of start .. settled
        self._unsettled: list[Action] = []  # those that end later
        self._lock = threading.Lock()

    def __call__(self, action: Action) -> None:
        """Record an action that is over.

        Raises:
            ValueError: it is another worker's, or ends before it starts.
        """
        if action.worker != self._worker or not action.start <= action.stop:
            raise ValueError(f"worker {self._worker} cannot record {action}")
        with self._lock:
            self._count += 1
            self._newest.append(action)
            if not counts(action):
                return
            self._late += action.start < self._settled
            if action.stop > self._settled:
                self._unsettled.append(action)
            if len(self._unsettled) >= _UNSETTLED:
                self._settle(median_high(a.stop for a in self._unsettled))

    def recording(self, stop: float) -> Recording:
        """What was recorded; its usage is of the time from the trace's start to `stop`.

        Raises:
            ValueError: `stop` lies before actions that are already summed up.
        """
        with self._lock:
            return Recording(
                worker=self._worker,
                host=self._host,
                start=self._start,
                actions=tuple(self._newest),
                dropped=self._count - len(self._newest),
                late=self._late,
                usage=self._usage + usage_of(self._unsettled, self._settled, stop),
            )

    def _settle(self, until: float) -> None:
        self._usage += usage_of(self._unsettled, self._settled, until)
        self._unsettled = [a for a in self._unsettled if a.stop > until]
        self._settled = until
