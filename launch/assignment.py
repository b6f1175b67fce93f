"""A run that a runner was given: executed in one thread, spoken to from another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longtake.launch.config import settings_from
from longtake.launch.crew import WorkerLost
from longtake.launch.draft import make_draft
from longtake.launch.places import Places
from longtake.launch.run import Run
from longtake.launch.shelf import Shelf
from longtake.launch.surroundings import Surroundings
from longtake.runtime.durable import DiskError
from longtake.runtime.hold import Fenced
from longtake.runtime.progress import Progress
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue

OFTEN = 0.2  # seconds between two pieces of news of the same kind

logger = logging.getLogger(__name__)


class Assignment:
    """One job, one epoch. `execute` it once."""

    def __init__(self, told: Mapping[str, Any], tell: Callable[..., None]) -> None:
        """`told` is the `start` of `launch.runner`; `tell` takes a kind and facts."""
        self.job, self.epoch = str(told["job"]), int(told["epoch"])
        self._told, self._tell_all = told, tell
        self._lock = threading.Lock()  # of all that the thread which hears sees, too
        self._granted, self._stopped = int(told["granted"]), False
        self._run: Run | None = None
        self._switches = list(told["switches"])
        self._open = False  # whether prompts can change: what is kept has been restored
        self._begun, self._blocks, self._last = -1, -1, 0.0

    def loads(self) -> dict[str, Any]:
        """What the workers last told of themselves, by rank; nothing before there is a run."""
        run = self._run
        now = {} if run is None else run.loads.now()
        loads = {str(rank): load.to_dict() for rank, load in now.items()}
        return {"job": self.job, "epoch": self.epoch, "loads": loads}

    def hear(self, told: Mapping[str, Any]) -> None:
        """Take a `grant`, `switch` or `stop` of this job."""
        match told["do"]:
            case "grant":
                with self._lock:
                    self._granted = int(told["block"])
                    if self._run is not None:
                        self._run.schedule.grant(self._granted)
            case "switch":
                with self._lock:
                    self._switches.append(told)
                    self._make_switches()
            case "stop":
                self.stop()

    def stop(self) -> None:
        """End after the blocks that have begun."""
        with self._lock:
            self._stopped = True
            if self._run is not None:
                self._run.schedule.stop()

    def execute(self, shelf: Shelf) -> tuple[str, dict[str, Any]]:
        """Do the run; returns how it ended, and what there is to say of that."""
        threads = torch.get_num_threads()
        try:
            run = self._make_run(shelf)
            with self._lock:
                self._run = run
                run.schedule.grant(self._granted)
                if self._stopped:
                    run.schedule.stop()
            result = run.execute(self._on_progress, shelf.load)
        except DiskError as error:
            return "failed", {"fault": "disk", "reason": str(error)}
        except Fenced as error:
            return "failed", {"fault": "fenced", "reason": str(error)}
        except WorkerLost as error:
            return "failed", {"fault": "crew", "reason": str(error)}
        except UserError as error:
            return "failed", {"fault": "refused", "reason": str(error)}
        finally:
            with self._lock:
                self._open = False
            torch.set_num_threads(threads)  # a run may have taken fewer
        last = result.manifest["runs"][-1]
        stages = {stage: told["seconds"] for stage, told in last["timeline"].items()}
        facts = {"frames": result.frames, "seconds": last["seconds"], "stages": stages}
        facts["loads"] = self.loads()["loads"]
        return ("finished" if result.finished else "stopped"), facts

    def _make_run(self, shelf: Shelf) -> Run:
        folder, order = Path(self._told["folder"]), self._told["order"]
        settings = settings_from(order["config"])
        shelf.make_room(settings)
        places = Places(folder / "video.mp4", folder / "video.run", overwrite=True)
        around = self._told.get("around")
        world = None if around is None else Surroundings(**around)
        warm = shelf.holds(settings)
        if (places.run_dir / "manifest.json").is_file():
            return Run.kept(places.run_dir, None, world, self.epoch, warm)
        cues = [Cue(cue["at"], cue["text"]) for cue in order["cues"]]
        draft = make_draft(settings, cues, order["seconds"], warm=warm)
        return Run.new(draft, replace(places, overwrite=False), world, epoch=self.epoch)

    def _on_progress(self, progress: Progress) -> None:
        run = self._run
        assert run is not None
        begun, (blocks, _) = run.schedule.script.next_block - 1, run.blocks
        if begun != self._begun:
            self._begun = begun
            self._tell("begun", block=begun)
        if blocks != self._blocks:
            self._blocks = blocks
            self._tell("block", blocks=blocks, frames=progress.frames)
        if not self._open and progress.stage == "denoise":
            with self._lock:
                self._open = True
                self._make_switches()
        now = time.monotonic()
        if now - self._last >= OFTEN:
            self._last = now
            self._tell("progress", **progress.to_dict())

    def _make_switches(self) -> None:
        """Change the prompt as often as was asked for, but what is in the journal has been changed.

        What is asked of a run that is to stop is left to the next one.
        """
        run = self._run
        if run is None or not self._open or self._stopped:
            return
        waiting, self._switches = self._switches, []
        for switch in waiting:
            number = switch["number"]
            try:
                made = run.switched(number) or run.switch(switch["text"], number=number)
            except UserError as error:
                self._tell("switched", number=number, second=None, reason=str(error))
            else:
                self._tell("switched", number=number, block=made[0], second=made[1])

    def _tell(self, kind: str, **facts: Any) -> None:
        self._tell_all(kind, job=self.job, epoch=self.epoch, **facts)
