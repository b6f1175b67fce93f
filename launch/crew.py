"""The workers of a run as rank 0 sees them: started here, or by torchrun or SLURM around us."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from longtake.launch.children import Children
from longtake.launch.loads import Loads
from longtake.launch.order import NOTHING, ORDER, Order
from longtake.launch.preflight import preflight
from longtake.launch.surroundings import Surroundings
from longtake.parallel.beacon import OVER, Beacon, Stage, find_lost, gather
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh, Rendezvous, connect, open_mesh
from longtake.parallel.store import SharedStore, Store

LOCALHOST = "127.0.0.1"
MEETING_SECONDS = 300.0  # for all workers of a cluster to be up
GO = "go"  # the entry that tells the others that all are there

logger = logging.getLogger(__name__)


class WorkerLost(RuntimeError):
    """A worker died or hangs; the message says which, where, and what it did last."""


@contextmanager
def crew(
    order: Order,
    around: Surroundings | None,
    children: Children,
    loads: Loads | None = None,
) -> Iterator[Mesh]:
    """Start or meet the other workers of a run, tell them what to do, and connect with them.

    Without `around` they are `children` of this process; `loads` hears of what they do. When the
    block is left, so have they; when it is left by an error, they are made to.

    Raises:
        WorkerLost: instead of the `CommunicationError` that it was noticed by.
    """
    draft = order.draft
    others, loads = range(1, draft.degrees.world), loads or Loads()
    with ExitStack() as end:
        rendezvous, store = _open_meeting(around, draft.degrees.world)
        if around is None:
            end.push(children.end)
            children.start(rendezvous)
        end.enter_context(Beacon(store, 0))
        end.callback(_say_over, store)
        try:
            store.set(ORDER, order.to_json())
            gather(store, others, Stage.READY, MEETING_SECONDS, children.check)
            store.set(GO, "")
            preflight(store, 0, draft, draft.device)
            meeting = replace(rendezvous, timeout=draft.settings.parallel.timeout)
            loads.listen(store, draft.degrees.world)
            end.callback(loads.close)
            tally, decode = loads.tally, draft.decode
            mesh = open_mesh(meeting, draft.degrees, draft.device, tally, store, decode)
            end.callback(mesh.close)
            yield mesh
            _part(store, others, meeting.timeout)
        except CommunicationError as error:
            raise WorkerLost(_explain(store, others, children, error)) from error


@contextmanager
def passing_children() -> Iterator[Children]:
    """For a crew of which nothing is kept: what workers say goes to a temporary folder, which stays
    only if one is lost."""
    logs, lost = Path(mkdtemp(prefix="longtake-workers-")), False
    try:
        yield Children(logs)
    except WorkerLost:
        lost = True  # it says where the logs are that tell why
        raise
    finally:
        if not lost:
            shutil.rmtree(logs, ignore_errors=True)


def begin(mesh: Mesh, timeout: float) -> None:
    """Wait until the others have their weights, however long that takes.

    Raises:
        CommunicationError: one failed, or gave no sign of life for `timeout` seconds.
    """
    gather(mesh.store, range(1, mesh.world.size), Stage.LOADED, timeout)


def dismiss(around: Surroundings) -> None:
    """Tell the others of a world that somebody else started that there is nothing to do.

    Returns when all have heard it, which takes until all are up; but for 300 s at most.
    """
    try:
        _, store = _open_meeting(around, around.world)
        store.set(ORDER, NOTHING)
        gather(store, range(1, around.world), Stage.DONE, MEETING_SECONDS)
    except (CommunicationError, WorkerLost) as error:
        logger.warning("the other workers may still wait for a run: %s", error)


def meeting_of(around: Surroundings) -> Rendezvous:
    """Where the workers of a world that somebody else started meet."""
    return Rendezvous(
        around.address,
        around.port,
        around.rank,
        around.world,
        MEETING_SECONDS,
        listen=around.listen,
        prefix=f"longtake/{around.attempt}",
    )


def _open_meeting(around: Surroundings | None, world: int) -> tuple[Rendezvous, SharedStore]:
    """Where the others find rank 0, and the control store there."""
    if around is None:
        rendezvous = Rendezvous(LOCALHOST, 0, 0, world, MEETING_SECONDS)  # any free port
    else:
        rendezvous = meeting_of(around)
    try:
        store = connect(rendezvous)
    except CommunicationError as error:
        raise WorkerLost(f"the workers can't meet: {error}") from error
    if around is None:
        rendezvous = replace(rendezvous, port=store.table.port)
    return rendezvous, store


def _part(store: Store, others: range, timeout: float) -> None:
    """Keep the store until the others need it no more; the work is done, whatever they do."""
    try:
        gather(store, others, Stage.DONE, timeout)
    except CommunicationError as error:
        logger.warning("a worker did not end as it should: %s; %s", error, find_lost(store, others))


def _say_over(store: Store) -> None:
    with suppress(CommunicationError):  # whoever kept the store is gone, which tells the same
        store.set(OVER, "")


def _explain(store: Store, others: range, children: Children, error: CommunicationError) -> str:
    try:
        lost = find_lost(store, others)
    except CommunicationError:  # the store was torchrun's
        lost = str(error)
    return "; ".join([lost, *children.deaths(), f"noticed at {error.action}"])
