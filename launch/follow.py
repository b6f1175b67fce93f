"""The part of all workers but rank 0: they learn what to do from rank 0, and leave no files."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from diffusers import AutoencoderKLWan

from longtake.launch.balance import measured_balance
from longtake.launch.crew import GO
from longtake.launch.input import open_source
from longtake.launch.loads import hand_in
from longtake.launch.order import NOTHING, ORDER, Order
from longtake.launch.preflight import preflight
from longtake.launch.reading import turn_to_read
from longtake.launch.tracing import Tracing
from longtake.parallel.beacon import GRACE, Beacon, Guard, Stage
from longtake.parallel.mesh import Mesh, Rendezvous, connect, open_mesh
from longtake.parallel.preflight import measure_links
from longtake.parallel.store import SharedStore
from longtake.runtime.member import Member
from longtake.runtime.model import load_decoder, load_transformer
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler.plan import DECODE
from longtake.scheduler.tally import Tally
from longtake.scheduler.task import Task

A_WEEK = 7 * 24 * 3600.0  # for rank 0's word; it is `Guard` that ends a worker whose rank 0 is gone


def follow(rendezvous: Rendezvous, local_rank: int, give_up: Callable[[str], None]) -> None:
    """Take part in a run as `rendezvous.rank`, on this host's device `local_rank`.

    From when there is a run, Ctrl-C and SIGTERM are left to rank 0, which ends it for all.
    `give_up` must end the process: see `parallel.beacon.Guard`.

    Raises:
        CommunicationError: the others are gone.
        UserError: what the run needs is not on this host.
    """
    store = connect(rendezvous)
    with Beacon(store, rendezvous.rank) as beacon:
        text = store.get(ORDER)
        if text == NOTHING:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        order = Order.from_json(text)
        draft, timeout = order.draft, order.draft.settings.parallel.timeout
        device = worker_device(draft.device, local_rank)
        if device.type == "cpu":
            torch.set_num_threads(order.threads)
        patient = SharedStore(store.table, rendezvous.rank, A_WEEK)
        with Guard(store, timeout + GRACE, give_up):
            beacon.reach(Stage.READY)
            patient.get(GO)
            beacon.at("preflight")
            preflight(patient, rendezvous.rank, draft, device)
            beacon.at("meeting the others")
            meeting = replace(rendezvous, timeout=timeout)
            tracing = Tracing(order.trace)
            tally = Tally(tracing.record)
            beacon.carry(lambda: tally.load().to_dict())
            opened = open_mesh(meeting, draft.degrees, device, tally, patient, draft.decode)
            with closing(opened) as mesh:
                if order.check:
                    beacon.at("measuring links")
                    measure_links(mesh)
                    return
                beacon.at("loading weights")
                own = draft.degrees.layers(mesh.place.stage, draft.spec)
                layers = range(own.start, own.stop)
                with turn_to_read(timeout):
                    transformer = load_transformer(draft.config, device, draft.dtype, layers)
                    decodes = mesh.decoders is not None
                    vae = load_decoder(draft.config, device) if decodes else None
                beacon.reach(Stage.LOADED)
                with tracing.handing_in():
                    take_part(order, transformer, vae, mesh, beacon, tracing, tally)
                hand_in(mesh.store, mesh.rank, tally)


def take_part(
    order: Order,
    transformer: WanTransformer,
    vae: AutoencoderKLWan | None,
    mesh: Mesh,
    beacon: Beacon,
    tracing: Tracing,
    tally: Tally,
) -> None:
    """Walk the schedule of a run with the others.

    Raises:
        CommunicationError: the others are gone.
    """

    def watch(tasks: Iterator[Task]) -> Iterator[Task]:
        for task in tasks:
            beacon.at(task.describe())
            yield task
        beacon.at("the end" if vae is None else "decoding")

    draft = order.draft
    member = Member(
        transformer,
        draft.schedule(),
        draft.sampler,
        draft.noise,
        mesh,
        (draft.config.text_tokens, transformer.module.config.text_dim),
        context_timestep=draft.context_timestep,
        record=tracing.record,
        source=open_source(draft, mesh, None, () if order.given else None),
        balance=measured_balance(draft, mesh, tracing.record),
    )
    tally.cache = member.worker.occupancy
    if vae is None:
        member.run(watch=watch, walk=tracing.walk(mesh))
        return
    member.warm_decoder(vae)
    with member.decode_worker(vae) as decode:
        member.run({DECODE: decode}, watch, tracing.walk(mesh))


def worker_device(device: torch.device, local_rank: int) -> torch.device:
    """Each worker of a host has a GPU of its own, unless it only sees one; a CPU they share."""
    if device.type != "cuda":
        return device
    return torch.device("cuda", local_rank % torch.cuda.device_count())
