"""A run: load, generate, write, and keep what a later run needs to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longtake.launch.children import Children
from longtake.launch.crew import begin, crew
from longtake.launch.devices import share_cores
from longtake.launch.draft import Draft
from longtake.launch.engine import OnProgress, load_first_share, make_engine
from longtake.launch.foretold import measured_facts
from longtake.launch.live import make_live
from longtake.launch.loads import Loads
from longtake.launch.manifest import draft_from, ended
from longtake.launch.order import Order
from longtake.launch.places import Places, check_run_dir, remove_run
from longtake.launch.run_journal import begin_journal, change_prompt, replay
from longtake.launch.surroundings import ALL_HERE, Hosts, Surroundings
from longtake.launch.tracing import TraceFile
from longtake.parallel.mesh import Mesh, alone
from longtake.runtime.engine import Engine, Outcome
from longtake.runtime.journal import Journal
from longtake.runtime.model import Model
from longtake.runtime.video import VideoWriter
from longtake.scheduler.errors import UserError
from longtake.scheduler.schedule import Schedule

if TYPE_CHECKING:
    from longtake.launch.ray_run import RayEngine

LoadModel = Callable[[Draft], Model]


@dataclass(frozen=True)
class Result:
    """A video that was made. `frames` are those in the file; `manifest` tells all about the run."""

    path: Path
    run_dir: Path
    frames: int
    manifest: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the video is whole; a run that was stopped can be resumed."""
        return bool(self.manifest["status"] == "finished")


CLOSING = "closing"  # a run whose video is whole and gets its name


class Run:
    """A checked run that makes a file. Use `new` or `kept`, then `execute`, once."""

    def __init__(
        self,
        draft: Draft,
        places: Places,
        journal: Journal | None = None,
        around: Surroundings | None = None,
        trace: TraceFile | None = None,
        epoch: int | None = None,
    ) -> None:
        """`journal` is the one of a run to go on with, None for a new one; `around` is the world
        that this process is rank 0 of, None to start other workers where they are needed; `epoch`
        is of `runtime.hold.Hold`."""
        self.draft, self.places, self._epoch = draft, places, epoch
        self.schedule = draft.schedule()
        self.trace = TraceFile(None) if trace is None else trace
        self._journal, self._around = journal, around
        self._engine: Engine | RayEngine | None = None
        self._children = Children(places.run_dir / "workers")
        self.loads = Loads(self.trace.own.record)
        self.shared = False  # whether other workers were told to take part

    @staticmethod
    def hosts(around: Surroundings | None, workers: int | None = None) -> Hosts:
        """Where the workers are; `workers` is how many are asked for."""
        return ALL_HERE if around is None else around.hosts

    @classmethod
    def new(
        cls,
        draft: Draft,
        places: Places,
        around: Surroundings | None = None,
        trace: Path | None = None,
        epoch: int | None = None,
    ) -> Run:
        """A run from the start; `trace` is the file to tell what all workers did.

        Raises:
            UserError: a place holds something that may not be replaced, or can't be written; or
                another number of workers is around.
        """
        _check_world(draft, around)
        make_live(draft)
        places.check()
        check_run_dir(places.run_dir, places.overwrite)
        traced = TraceFile(trace, places.overwrite)
        return cls(draft, places, around=around, trace=traced, epoch=epoch)

    @classmethod
    def kept(
        cls,
        run_dir: Path,
        out: Path | None = None,
        around: Surroundings | None = None,
        epoch: int | None = None,
        warm: bool = False,
    ) -> Run:
        """A run to go on with; `out` is needed where it began as a stream, without a file.

        `warm`: the weights are in the device's memory already.

        Raises:
            UserError: there is none, it is in use, or it can't be followed here.
        """
        with ExitStack() as undo:
            journal = Journal.open(run_dir, epoch=epoch)
            undo.callback(journal.close)
            draft = draft_from(run_dir, journal.manifest, cls.hosts(around), warm)
            places = _kept_places(run_dir, journal.manifest, out)
            if draft.request.seconds is None:
                raise UserError(f"{run_dir} is an endless stream; it has no end to go on to")
            if not _is_done(journal.manifest, places):
                _check_world(draft, around)
                places.check()
            undo.pop_all()
        return cls(draft, places, journal, around, epoch=epoch)

    @property
    def blocks(self) -> tuple[int, int | None]:
        """How many blocks are kept, and how many there will be."""
        kept = 0 if self._journal is None else len(self._journal.blocks())
        return kept, self.schedule.blocks

    @property
    def begun(self) -> bool:
        """Whether there is a run directory by now."""
        return self._journal is not None

    @property
    def done(self) -> bool:
        """Whether the video of a kept run is there, whole, so that nothing is left to do."""
        return self._journal is not None and _is_done(self._journal.manifest, self.places)

    @property
    def at_work(self) -> bool:
        """Whether there may be a block at work."""
        return self._engine is not None

    def stop(self) -> None:
        """End after the block at work; callable from a signal handler.

        Raises:
            KeyboardInterrupt: no block is at work yet, so there is nothing to wait for.
        """
        if self._engine is None:
            raise KeyboardInterrupt
        self._engine.stop()

    def abandon(self) -> None:
        """Leave no worker of this host behind, since this process ends next; from any thread."""
        self._children.kill()

    def switch(self, prompt: str, **facts: Any) -> tuple[int, float]:
        """Change the prompt while the run is at work; it is in the journal when this returns.

        Returns:
            From which block, and from which second of the video on it holds.

        Raises:
            UserError: the prompt is empty, the last block has begun, or the disk refuses.
        """
        assert self._journal is not None
        return change_prompt(self.draft, self.schedule, self._journal, prompt, facts)

    def switched(self, number: int) -> tuple[int, float] | None:
        """What `switch` returned when it recorded a fact of that name; None: it never did."""
        assert self._journal is not None
        for event in self._journal.events():
            if event.get("number") == number:
                block = int(event["block"])
                return block, self.schedule.second_of(block)
        return None

    def execute(
        self,
        on_progress: OnProgress = lambda progress: None,
        load: LoadModel | None = None,
    ) -> Result:
        """Do the whole run; `on_progress` is called from several threads, one at a time.

        `load` gives this worker's share of the model, None: it is read from its files.

        Raises:
            UserError: weights don't load, memory is short, or the disk is full; blocks that were
                finished are kept.
            WorkerLost: another worker died or hangs; likewise.
        """
        if self._journal is not None and self.done:
            self._journal.close()
            return self._result(self._journal.manifest)
        with ExitStack() as end:
            if self._journal is not None:
                end.callback(self._journal.close)
            self._settle_threads()
            return self._execute(end, on_progress, load or load_first_share)

    def _execute(self, end: ExitStack, on_progress: OnProgress, load: LoadModel) -> Result:
        if self.draft.degrees.world == 1:  # nobody to start: weights that fail leave no trace
            model, mesh = load(self.draft), alone(self.draft.device)
            journal, files = self._open(end)
        else:
            if self._journal is None:
                end.push(self._forget_refused)
            journal, files = self._open(end)
            order = Order(self.draft, torch.get_num_threads(), trace=self.trace.own.wanted)
            self.shared = True
            mesh = end.enter_context(crew(order, self._around, self._children, self.loads))
            model = load(self.draft)
            begin(mesh, self.draft.settings.parallel.timeout)
        end.enter_context(self.trace)
        return self._generate(model, mesh, journal, files, on_progress)

    def _forget_refused(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Where workers refuse a new run, nothing is left of it."""
        made = self._journal is not None and self._journal.blocks()
        if isinstance(error, UserError) and not made:
            remove_run(self.places.run_dir)

    def _open(self, end: ExitStack) -> tuple[Journal, VideoWriter]:
        """The journal first: who holds it is the only one to write the files."""
        run_dir = self.places.run_dir
        if self._journal is not None:
            files = self.places.open(self.draft.request)
            end.callback(files.abort)  # does nothing after `close`
            return self._journal, files
        journal = begin_journal(self.draft, run_dir, self.places, self._epoch)
        end.callback(journal.close)
        try:
            files = self.places.open(self.draft.request)
        except UserError:
            journal.close()
            remove_run(run_dir)
            raise
        end.callback(files.abort)
        self._journal = journal
        return journal, files

    def _generate(
        self,
        model: Model,
        mesh: Mesh,
        journal: Journal,
        files: VideoWriter,
        on_progress: OnProgress,
    ) -> Result:
        schedule = self.schedule
        replay(journal, schedule)
        tracing = self.trace.own
        # What is left of a broken live run only makes its file whole: nobody watches.
        live = None if journal.manifest["runs"] or journal.blocks() else make_live(self.draft)
        self._engine = make_engine(
            self.draft,
            model,
            schedule,
            files,
            journal,
            on_progress,
            mesh,
            tracing.record,
            live=live,
        )
        self.loads.tally.cache = self._engine.occupancy
        outcome = self._engine.run(tracing.walk(mesh))
        shared, timeout = mesh.degrees.world > 1, self.draft.settings.parallel.timeout
        sent = self.loads.collect(mesh, timeout) if shared else None
        return self._conclude(outcome, schedule, journal, files, sent)

    def _conclude(
        self,
        outcome: Outcome,
        schedule: Schedule,
        journal: Journal,
        files: VideoWriter,
        sent: Mapping[str, Any] | None = None,
    ) -> Result:
        """`sent` is what `collect` has found."""
        if outcome.finished:
            journal.update_manifest(status=CLOSING)
            files.close()
        else:
            files.abort()
        cues = schedule.script.cues
        journal.update_manifest(**ended(journal.manifest, outcome, cues, outcome.finished))
        *earlier, last = journal.manifest["runs"]
        hosts = self.hosts(self._around, self.draft.degrees.world)
        last = {**last, **measured_facts(last, self.draft, hosts, sent)}
        if (traced := self.trace.finish()) is not None:
            last["usage"] = traced.usage()
        journal.update_manifest(runs=[*earlier, last])
        return self._result(journal.manifest)

    def _result(self, manifest: dict[str, Any]) -> Result:
        frames = manifest["runs"][-1]["frames"]
        return Result(self.places.video, self.places.run_dir, frames, manifest)

    def _settle_threads(self) -> None:
        if self._journal is not None and self.draft.device.type == "cpu":
            torch.set_num_threads(self._journal.manifest["threads"])  # sums keep their order
        else:
            here = self.draft.degrees.world if self._around is None else self._around.local_world
            share_cores(self.draft.device, here)


def _kept_places(run_dir: Path, manifest: dict[str, Any], out: Path | None) -> Places:
    if out is not None:
        return Places(out, run_dir)
    if manifest["output"] is None:
        raise UserError(f"{run_dir} began as a stream, without a file; say where to with --out")
    places = Places.from_dict(run_dir, manifest["output"])
    # Killed between the video's last byte and the manifest's: what lies there is this run's own.
    return replace(places, overwrite=True) if manifest["status"] == CLOSING else places


def _check_world(draft: Draft, around: Surroundings | None) -> None:
    if around is not None and draft.degrees.world != around.world:
        raise UserError(
            f"this run is for {draft.degrees.describe()}, {draft.degrees.world} in all, but "
            f"{around.launcher} started {around.world}; its bits depend on that number"
        )


def _is_done(manifest: dict[str, Any], places: Places) -> bool:
    return manifest["status"] == "finished" and places.video.is_file()
