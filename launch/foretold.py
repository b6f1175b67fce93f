"""What a run should have taken, kept beside what it took."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from longtake.launch.comparison import predicted_facts
from longtake.launch.devices import describe_devices
from longtake.launch.draft import Draft
from longtake.launch.simulate import predict
from longtake.launch.surroundings import Hosts
from longtake.scheduler.costs import Costs
from longtake.scheduler.errors import UserError
from longtake.scheduler.plan import Plan
from longtake.scheduler.simulator import Job
from longtake.scheduler.simulator_efforts import ClusterEfforts

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


def measured_facts(
    run: Mapping[str, Any], draft: Draft, hosts: Hosts, sent: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is kept of a run that ended, besides `run`: what it sent, and what it should have taken
    where it made its whole video in one go."""
    whole = run["finished"] and not run["blocks_restored"] and draft.request.seconds is not None
    live = draft.settings.live  # waits for its input
    return {**(sent or {}), "predicted": foretell(draft, hosts) if whole and not live else None}
