"""What a run should have taken, kept beside what it took."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from longtake.launch.comparison import predicted_facts
from longtake.launch.devices import describe_devices
from longtake.launch.draft import Draft
from longtake.launch.simulate import predict
from longtake.launch.surroundings import Hosts
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh
from longtake.parallel.store import Store
from longtake.scheduler.costs import Costs
from longtake.scheduler.errors import UserError
from longtake.scheduler.plan import Plan
from longtake.scheduler.simulator import Job
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.tally import Tally

FEW = 10_000  # parts that are simulated one by one; longer runs by their rhythm

logger = logging.getLogger(__name__)


def foretell(draft: Draft, hosts: Hosts) -> dict[str, Any] | None:
    """The facts of a prediction; None where nothing can be predicted."""
    job = Job(draft.strategy, draft.request, draft.spec, len(draft.sampler.timesteps))
    plan = Plan(draft.degrees, 2 if draft.request.guidance > 1 else 1, draft.strategy.label)
    try:
        described = describe_devices(draft.device, draft.settings.parallel, hosts)
        there, itemsize = described.cluster, draft.dtype.itemsize
        spec, request, degrees = draft.spec, draft.request, draft.degrees
        strategy, decode = draft.strategy, draft.decode
        costs = Costs(spec, request, degrees, there, itemsize, strategy, decode=decode)
        found = predict(job, plan, ClusterEfforts(plan, costs, there), FEW)
    except UserError as error:  # the video is there; only this can't be told
        logger.debug("nothing was predicted: %s", error)
        return None
    return predicted_facts(found, described.by)


def hand_in(store: Store, rank: int, tally: Tally) -> None:
    """Leave what a worker has sent, for rank 0.

    Raises:
        CommunicationError: rank 0 is gone.
    """
    store.set(_key(rank), json.dumps(tally.sent))


def collect(mesh: Mesh, tally: Tally, timeout: float) -> dict[str, Any]:
    """What all workers have sent, by name of transfer, and how long rank 0 has waited.

    Other workers hand theirs in as soon as they are through; who does not is lost, which whoever
    waits for its end notices next.
    """
    sent = Counter(tally.sent)
    try:
        for rank in range(1, mesh.degrees.world):
            sent.update(json.loads(mesh.store.get(_key(rank), timeout)))
    except CommunicationError as error:
        logger.debug("what was sent is not known: %s", error)
        return {"waited": tally.waited}
    return {"sent": dict(sent), "waited": round(tally.waited, 3)}


def measured_facts(
    run: Mapping[str, Any], draft: Draft, hosts: Hosts, sent: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is kept of a run that ended, besides `run`: what it sent, and what it should have taken
    where it made its whole video in one go."""
    whole = run["finished"] and not run["blocks_restored"] and draft.request.seconds is not None
    live = draft.settings.live  # waits for its input
    return {**(sent or {}), "predicted": foretell(draft, hosts) if whole and not live else None}


def _key(rank: int) -> str:
    return f"sent/{rank}"
