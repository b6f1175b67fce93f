"""The part of all workers but rank 0: they learn what to do from rank 0, and leave no files."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch

from longtake.launch.order import ORDER, Order
from longtake.parallel.beacon import Beacon
from longtake.parallel.mesh import Rendezvous, connect, open_mesh
from longtake.runtime.member import Member
from longtake.runtime.model import load_transformer
from longtake.runtime.noise import SeededNoise
from longtake.scheduler.task import Task


def follow(rendezvous: Rendezvous, local_rank: int) -> None:
    """Take part in a run as `rendezvous.rank`, on this host's device `local_rank`.

    Ctrl-C and SIGTERM are left to rank 0, which ends the run for all.

    Raises:
        CommunicationError: the others are gone.
        UserError: what the run needs is not on this host.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    store = connect(rendezvous)
    with Beacon(store, rendezvous.rank) as beacon:
        order = Order.from_json(store.get(ORDER))
        draft = order.draft
        device = worker_device(draft.device, local_rank)
        if device.type == "cpu":
            torch.set_num_threads(order.threads)
        beacon.at("meeting the others")
        mesh = open_mesh(rendezvous, draft.degrees, device, store=store)
        try:
            beacon.at("loading weights")
            own = draft.degrees.layers(mesh.place.stage, draft.spec)
            layers = range(own.start, own.stop)
            transformer = load_transformer(draft.config, device, draft.dtype, layers)
            text_shape = (draft.config.text_tokens, transformer.module.config.text_dim)

            def watch(tasks: Iterator[Task]) -> Iterator[Task]:
                for task in tasks:
                    beacon.at(task.describe())
                    yield task
                beacon.at("the end")

            Member(
                transformer,
                draft.schedule(),
                draft.sampler,
                SeededNoise(draft.request.seed),
                mesh,
                text_shape,
                context_timestep=draft.context_timestep,
            ).run(watch=watch)
        finally:
            mesh.close()


def worker_device(device: torch.device, local_rank: int) -> torch.device:
    """Each worker of a host has a GPU of its own, unless it only sees one; a CPU they share."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", local_rank % torch.cuda.device_count())
