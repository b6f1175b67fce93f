"""What rank 0 tells the others at the start: everything that makes a run, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from longtake.launch.config import settings_from
from longtake.launch.draft import Draft, make_draft
from longtake.scheduler.request import Cue

ORDER = "order"  # its key in the control store
NOTHING = "null"  # in place of an order, where rank 0 has nothing to do or can't begin


@dataclass(frozen=True)
class Order:
    """A run, and the torch threads that each worker on a CPU takes: sums keep their order by it.

    `check`: the run is not to be made, only the links between its workers are to be measured;
    `given`: its input are frames that rank 0 is given, no file.
    """

    draft: Draft
    threads: int
    check: bool = False
    trace: bool = False  # whether every worker records what it does
    given: bool = False

    def to_json(self) -> str:
        """For the control store."""
        return json.dumps(
            {
                "config": asdict(self.draft.settings),
                "cues": [asdict(cue) for cue in self.draft.request.cues],
                "seconds": self.draft.request.seconds,
                "threads": self.threads,
                "trace": self.trace,
                "check": self.check,
                "given": self.given,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Order:
        """The inverse; checks the run again on this host, so paths must exist here too.

        Raises:
            UserError: what the run needs is not on this host.
        """
        told = json.loads(text)
        cues = [Cue(cue["at"], cue["text"]) for cue in told["cues"]]
        draft = make_draft(settings_from(told["config"]), cues, told["seconds"])
        return cls(draft, told["threads"], told["check"], told["trace"], told["given"])
