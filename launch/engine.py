"""Rank 0's part in making frames: its share of the model, and the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext

from longtake.launch.balance import measured_balance
from longtake.launch.draft import Draft
from longtake.launch.input import open_source
from longtake.launch.reading import turn_to_read
from longtake.parallel.mesh import Mesh, alone
from longtake.runtime.engine import Engine, FrameSink
from longtake.runtime.live import Live
from longtake.runtime.model import Model, load_model
from longtake.runtime.progress import Progress
from longtake.runtime.source import Frame
from longtake.runtime.workers import BlockStore
from longtake.scheduler.schedule import Schedule
from longtake.scheduler.timeline import Record, forget

OnProgress = Callable[[Progress], None]


def load_first_share(draft: Draft) -> Model:
    """All parts of the model, of the transformer rank 0's layers.

    Raises:
        UserError: files are missing, damaged or of another family; or another process of this host
            hangs while it reads its own.
    """
    own, patience = draft.degrees.layers(0, draft.spec), draft.settings.parallel.timeout
    with turn_to_read(patience) if draft.degrees.world > 1 else nullcontext():
        return load_model(draft.config, draft.device, draft.dtype, range(own.start, own.stop))


def make_engine(
    draft: Draft,
    model: Model,
    schedule: Schedule,
    sink: FrameSink,
    journal: BlockStore | None,
    on_progress: OnProgress,
    mesh: Mesh | None = None,
    record: Record = forget,
    frames: Iterable[Frame] | None = None,
    live: Live | None = None,
) -> Engine:
    """The one engine behind files and streams; `frames` are the input, None for that of the draft;
    `live` is the clock of a live run.

    Raises:
        UserError: the input can't be read.
    """
    mesh = alone(draft.device) if mesh is None else mesh
    return Engine(
        model,
        schedule,
        draft.sampler,
        draft.noise,
        sink,
        journal,
        on_progress,
        draft.context_timestep,
        mesh,
        record,
        open_source(draft, mesh, model, frames, live),
        live,
        measured_balance(draft, mesh, record),
    )
