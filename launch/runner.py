"""The process of a group's rank 0: does runs, one after the other, as the central scheduler says.

It reads JSON lines from stdin, each with what to `do`,

    start   a run: job, epoch, folder, order; blocks up to `granted`; `switches` still to be made
    grant   the right to begin blocks up to `block`
    switch  the prompt, from the next block on: number, text
    stop    after the blocks that have begun; the journal is kept
    ping    nothing: it only shows that somebody is there
    quit    after a `stop`

and answers on stdout with what it has to `tell`: `hello` once, `beat` every second, with what its
workers tell of themselves, `begun`, `block` (one more is in the journal), `progress` and `switched`
of a run, and at its end one of `finished`, `stopped`, `failed`. When it has not been spoken to for
`lease` seconds, or when stdin ends, it stops by itself at the next block. All that it logs goes to
stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from longtake.launch.assignment import Assignment
from longtake.launch.logs import log_to, logged_as
from longtake.launch.session import quiet_libraries
from longtake.launch.shelf import Shelf

BEAT = 1.0  # seconds between signs of life

logger = logging.getLogger(__name__)


class Runner:
    """Does what it is told, in the thread that calls `work`; it hears and beats in others."""

    def __init__(self, out: TextIO, lease: float) -> None:
        """`out` takes lines; `lease` is in seconds."""
        self._out, self._lease = out, lease
        self._writing = threading.Lock()
        self._starts: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._assignment: Assignment | None = None
        self._heard = time.monotonic()
        self._shelf = Shelf()

    def tell(self, kind: str, **facts: Any) -> None:
        """Say something; in vain if nobody listens any more, which ends stdin as well."""
        line = json.dumps({"tell": kind, **facts}) + "\n"
        with self._writing:
            try:
                self._out.write(line)
                self._out.flush()
            except BrokenPipeError:
                self._stop()

    def work(self) -> None:
        """Do one run after the other, until there is nobody to tell of them."""
        self.tell("hello", pid=os.getpid())
        while (assignment := self._starts.get()) is not None:
            with logged_as(job=assignment.job, epoch=assignment.epoch):
                kind, facts = assignment.execute(self._shelf)
            self.tell(kind, job=assignment.job, epoch=assignment.epoch, **facts)

    def listen(self, lines: Iterable[str]) -> None:
        """Hear what to do, until the lines end."""
        for line in lines:
            self._heard = time.monotonic()
            told = json.loads(line)
            if told["do"] == "quit":
                break
            self._hear(told)
        self._stop()
        self._starts.put(None)

    def beat(self) -> None:
        """Give signs of life, for ever."""
        while True:
            loads = {} if self._assignment is None else self._assignment.loads()
            self.tell("beat", warm=self._shelf.name, **loads)
            if time.monotonic() - self._heard > self._lease:
                self._stop()
            time.sleep(BEAT)

    def _hear(self, told: Mapping[str, Any]) -> None:
        if told["do"] == "start":
            self._assignment = Assignment(told, self.tell)
            self._starts.put(self._assignment)
        elif self._assignment is not None and told.get("job") == self._assignment.job:
            self._assignment.hear(told)

    def _stop(self) -> None:
        if self._assignment is not None:
            self._assignment.stop()


def main() -> None:
    """Work until stdin ends."""
    parser = argparse.ArgumentParser(description="A worker of the central scheduler.")
    parser.add_argument("--lease", type=float, required=True)
    parser.add_argument("--log", choices=("text", "json"), default="text")
    parser.add_argument("--worker", default="")
    asked = parser.parse_args()
    quiet_libraries()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    log_to(sys.stderr, asked.log)
    with logged_as(worker=asked.worker):
        runner = Runner(out, asked.lease)
        for target, arguments in ((runner.listen, (sys.stdin,)), (runner.beat, ())):
            threading.Thread(target=target, args=arguments, daemon=True).start()
        runner.work()


if __name__ == "__main__":
    main()
