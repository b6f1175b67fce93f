"""`longtake calibrate`: measure this machine, and describe it in a file that `--cluster` takes."""

from __future__ import annotations

import json
import multiprocessing
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from longtake.launch.ask import read_settings
from longtake.launch.check import ANY_PROMPT
from longtake.launch.clusters import load_cluster
from longtake.launch.crew import LOCALHOST
from longtake.launch.devices import device_name, share_cores
from longtake.launch.draft import make_draft
from longtake.launch.follow import worker_device
from longtake.launch.learn import learn
from longtake.launch.plan import catalogue_name, model_spec, read_size
from longtake.parallel.errors import CommunicationError
from longtake.parallel.mesh import Mesh, Rendezvous, alone, connect, open_mesh
from longtake.runtime.calibration import calibrate, link_of
from longtake.runtime.calibration_scene import Scene
from longtake.runtime.memory import available_bytes
from longtake.scheduler.cluster import Cluster, Node
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError

LINKED = "tinyworld"  # by which devices and workers are checked: it is always there
PATIENCE = 300.0  # seconds that a worker waits for the others


def measure_cluster(
    name: str,
    model: str,
    workers: int,
    device: str,
    seconds: float | None = None,
    size: str | None = None,
    settings: Sequence[str] = (),
) -> Cluster:
    """This machine as a node of so many workers.

    Args:
        name: of the cluster.
        model: whose shape and dtype are measured with.
        workers: processes that share this machine's cores, or have a GPU each.
        device: auto, cpu, cuda or cuda:N.
        seconds: for each thing that is timed, about; None: long enough to be exact.
        size: of frames, WIDTHxHEIGHT; None: the model's own.
        settings: `key=value` for any key of the configuration.

    Raises:
        UserError: the device, the model or so many workers are not possible, or a worker died.
    """
    linked = read_settings(
        model=LINKED, strategy=None, steps=None, size=None, settings=[], workers=workers,
        device=device,
    )  # fmt: skip
    draft = make_draft(linked, [ANY_PROMPT], linked.seconds)
    measured = read_settings(
        model=catalogue_name(model), strategy=None, steps=None, size=size, settings=settings
    )
    share_cores(draft.device, workers)
    width, height = measured.model.width, measured.model.height
    if measured.size is not None:
        width, height = read_size(measured.size)
    scene = Scene(model_spec(measured), height, width, draft.device, draft.dtype)
    if seconds is not None:
        scene = replace(scene, seconds=seconds)
    name_of, memory = device_name(draft.device), _memory(draft.device)
    with _ring(scene, workers) as mesh:
        found, links = calibrate(scene, name_of, memory, mesh)
    shares = draft.device.type == "cpu"
    return Cluster(name, (Node(found, workers, link_of(links, workers, found), shares),))


@contextmanager
def _ring(scene: Scene, workers: int) -> Iterator[Mesh]:
    """A mesh of so many workers of this host; the others measure what this one does.

    Raises:
        UserError: one of them is lost.
    """
    if workers == 1:
        yield alone(scene.device)
        return
    meeting = Rendezvous(LOCALHOST, 0, 0, workers, PATIENCE)
    store = connect(meeting)
    meeting = replace(meeting, port=store.table.port)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(
            target=accompany,
            args=(replace(meeting, rank=rank), scene, torch.get_num_threads()),
            daemon=True,
        )
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    try:
        mesh = open_mesh(meeting, Degrees(ring=workers), scene.device, store=store)
        with closing(mesh):
            yield mesh
            mesh.world.barrier()
    except CommunicationError as error:
        raise UserError(f"a worker beside this one is lost: {error}") from error
    finally:
        for process in others:
            process.join(1.0)
            process.kill()


def accompany(meeting: Rendezvous, scene: Scene, threads: int) -> None:
    """Measure in a process of its own what rank 0 does."""
    if scene.device.type == "cpu":
        torch.set_num_threads(threads)
    device = worker_device(scene.device, meeting.rank)
    with closing(open_mesh(meeting, Degrees(ring=meeting.world), device)) as mesh:
        calibrate(replace(scene, device=device), "beside", 0.0, mesh)
        mesh.world.barrier()


def _memory(device: torch.device) -> float:
    """Of a GPU; or of the host, which all workers share."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(available_bytes(device))


def cluster_tree(cluster: Cluster) -> dict[str, Any]:
    """As a file holds it, node by node; numbers are rounded to six digits."""
    nodes = [
        {
            "device": _rounded(asdict(node.device)),
            "count": node.count,
            "link": _rounded(asdict(node.link)),
            "copies": 1,
            "shares_memory": node.shares_memory,
        }
        for node in cluster.nodes
    ]
    network = None if cluster.network is None else _rounded(asdict(cluster.network))
    return {"nodes": nodes, "network": network}


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    return float(f"{tree:.6g}") if isinstance(tree, float) else tree


def write_cluster(cluster: Cluster, about: str, out: Path) -> None:
    """Write a file that `load_cluster` reads.

    Raises:
        UserError: it can't be written.
    """
    text = f"# {about}\n{OmegaConf.to_yaml(OmegaConf.create(cluster_tree(cluster)))}"
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the file {out} can't be written: {error.strerror or error}") from error


def tell_calibration(
    out: Path, model: str, workers: int, device: str, force: bool, as_json: bool
) -> None:
    """Measure, write and tell.

    Raises:
        UserError: as `measure_cluster`; the file is there already, or is no .yaml file.
    """
    _check_out(out, force)
    cluster = measure_cluster(out.stem, model, workers, device)
    about = (
        f"{platform.node()} with {workers} worker{'s' if workers > 1 else ''}, measured in the "
        f"shape of {model} under torch {torch.__version__}. Watts are not measured."
    )
    write_cluster(cluster, about, out)
    _tell(cluster, out, as_json)


def tell_correction(
    runs: Sequence[Path], before: str, out: Path, force: bool, as_json: bool
) -> None:
    """Correct a described cluster by runs that were made on it, write and tell.

    Raises:
        UserError: as `learn`; the file is there already, or is no .yaml file.
    """
    _check_out(out, force)
    cluster = learn(load_cluster(before), runs)
    names = ", ".join(map(str, runs))
    write_cluster(cluster, f"{before}, corrected by {names}.", out)
    _tell(cluster, out, as_json)


def _check_out(out: Path, force: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"a cluster is a .yaml file, got {out}")
    if out.exists() and not force:
        raise UserError(f"{out} is there already; --force replaces it")


def _tell(cluster: Cluster, out: Path, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"file": str(out), **cluster_tree(cluster)}) + "\n")
    else:
        sys.stdout.write(f"{out}: {describe(cluster)}\n")


def describe(cluster: Cluster) -> str:
    """What was measured, in a few lines."""
    node = cluster.nodes[0]
    device, found = node.device, node.device.efficiency
    dtype = next(iter(device.peak))
    peak = device.peak[dtype]
    lines = [
        f"{node.count} x {device.name}",
        f"  products  {peak * found.linear / 1e9:.4g} GFLOP/s in {dtype}",
        f"  attention {peak * found.attention['flash-2'] / 1e9:.4g} GFLOP/s",
        f"  memory    {device.bytes_per_second / 1e9:.4g} GB/s; elementwise kernels "
        f"{device.bytes_per_second * found.memory / 1e9:.4g} GB/s",
        f"  launches  {device.launch_floor * 1e3:.3g} ms a layer",
        f"  tasks     {device.task_floor * 1e3:.3g} ms each besides; exchanges "
        f"{device.exchange_floor * 1e3:.3g} ms",
        "  decoding slows the transformer down by {:.0%}, and is slowed down by {:.0%}".format(
            *device.contention
        ),
    ]
    if node.count > 1:
        link = node.link
        lines.append(
            f"  links     {link.bytes_per_second / 1e6:.4g} MB/s, {link.latency * 1e6:.3g} "
            "microseconds"
        )
    return "\n".join(lines)
