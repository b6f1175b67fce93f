"""The door of the central scheduler: what is asked for becomes a job, or an error that says why."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from longtake.launch.ask import read_prompt, read_settings
from longtake.launch.draft import Draft, make_draft
from longtake.launch.estimates import Estimates
from longtake.launch.jobs import PRIORITIES, Ask, Job, new_id
from longtake.launch.plan import advice_dict, make_advice, read_question
from longtake.launch.surroundings import Hosts
from longtake.runtime.durable import disk_errors
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.planner import Wish
from longtake.scheduler.queue_admission import refusal
from longtake.scheduler.queue_state import FleetDevice

OURS = ("device", "parallel.workers")  # settings that are not the asker's to choose


class Admission:
    """Checks requests against a fleet of one kind of devices. Any thread may call."""

    def __init__(self, kind: str, estimates: Estimates, folder: Path, crew_timeout: float) -> None:
        """`crew_timeout`: seconds that a worker may keep the others of its group waiting."""
        self._kind, self._estimates, self._folder = kind, estimates, folder
        self._crew_timeout = crew_timeout
        self._composing = threading.Lock()  # Hydra has a global state

    def admit(
        self,
        ask: Ask,
        owner: str,
        priority: str,
        deadline: float | None,
        now: float,
        devices: Sequence[FleetDevice],
    ) -> Job:
        """A job with a folder of its own, which can be run on these devices.

        Raises:
            UserError: it can't be done here, now or ever.
        """
        if priority not in PRIORITIES:
            raise UserError(f"a priority is {' or '.join(PRIORITIES)}; got {priority!r}")
        if deadline is not None and deadline <= now:
            raise UserError("the deadline is over")
        draft = self.draft(ask)
        options = self._estimates.options(draft, ask.workers is not None, devices)
        never = refusal(options, devices)
        if never is not None:
            raise UserError(f"the video can't be made here: {never}")
        request, blocks = draft.request, draft.schedule().blocks
        assert blocks is not None
        id_ = new_id()
        job = Job(
            id=id_,
            owner=owner,
            ask=ask,
            config=asdict(draft.settings),
            folder=str(self._folder / id_),
            created_at=now,
            width=request.width,
            height=request.height,
            fps=request.fps,
            total_frames=request.pixel_frames,
            blocks=blocks,
            priority=priority,
            deadline=deadline,
            options=tuple(options),
        )
        return self._settle_files(job)

    def draft(self, ask: Ask) -> Draft:
        """What is asked for, checked as far as that goes without a device.

        Raises:
            UserError: it can't be done.
        """
        for setting in ask.settings:
            key = setting.partition("=")[0].strip()
            if key in OURS:
                raise UserError(f"{key} can't be set here; it is the scheduler's to choose")
        with self._composing:
            settings = read_settings(
                model=ask.model,
                strategy=ask.strategy,
                steps=ask.steps,
                size=ask.size,
                settings=[f"parallel.timeout={self._crew_timeout}", *ask.settings],
                workers=ask.workers,
                seconds=ask.seconds,
                seed=ask.seed,
                fps=ask.fps,
                guidance=ask.guidance,
                negative=ask.negative,
                device=self._kind,
                input_video=ask.input_video,
            )
        return make_draft(
            settings, read_prompt(ask.prompt), settings.seconds, Hosts(device=self._kind)
        )

    def plan(self, ask: Ask, cluster: str) -> dict[str, Any]:
        """What the planner tells of a request on a described cluster, as `longtake plan --json`.

        Raises:
            UserError: it can't be done.
        """
        with self._composing:
            question = read_question(
                read_prompt(ask.prompt),
                cluster=cluster,
                model=ask.model,
                seconds=ask.seconds,
                size=ask.size,
                strategy=ask.strategy,
                steps=ask.steps,
                settings=ask.settings,
                workers=ask.workers,
            )
            wish = Wish()
            advice = make_advice(question, [] if ask.strategy is None else [ask.strategy], wish)
        return advice_dict(question, advice, wish)

    def _settle_files(self, job: Job) -> Job:
        """A job's folder, with a copy of its input: what was asked with may be taken away."""
        folder = Path(job.folder)
        with disk_errors(folder):
            folder.mkdir(parents=True)
            if job.ask.input_video is None:
                return job
            source = Path(job.ask.input_video)
            copy = folder / f"input{source.suffix}"
            try:
                shutil.copyfile(source, copy)
            except OSError:
                shutil.rmtree(folder)
                raise
        ask = replace(job.ask, input_video=str(copy))
        return replace(job, ask=ask, config={**job.config, "input_video": str(copy)})


def shared_out(config: Mapping[str, Any], degrees: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose work is shared out so. Who decodes was settled for as many workers as
    were asked for; where these are more or fewer, it is open again."""
    parallel, workers = config["parallel"], Degrees(**degrees).world
    if parallel["workers"] != workers:
        parallel = {**parallel, "vae_bands": None, "vae_stages": None}
    return {**config, "parallel": {**parallel, **degrees, "workers": workers}}
