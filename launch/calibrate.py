"""`longtake calibrate`: measure this machine, and describe it in a file that `--cluster` takes."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import OmegaConf

from longtake.launch.ask import read_settings
from longtake.launch.check import ANY_PROMPT, check_run
from longtake.launch.clusters import load_cluster
from longtake.launch.crew import WorkerLost
from longtake.launch.devices import device_name, share_cores
from longtake.launch.draft import Draft, make_draft
from longtake.launch.learn import learn
from longtake.launch.plan import catalogue_name, model_spec
from longtake.parallel.preflight import Links
from longtake.runtime.calibration import calibrate
from longtake.runtime.calibration_scene import Scene
from longtake.runtime.memory import available_bytes
from longtake.scheduler.cluster import Cluster, Device, Link, Node
from longtake.scheduler.errors import UserError

LINKED = "tinyworld"  # whose workers measure links: it is always there


def measure_cluster(
    name: str, model: str, workers: int, device: str, seconds: float | None = None
) -> Cluster:
    """This machine as a node of so many workers.

    Args:
        name: of the cluster.
        model: whose shape, size and dtype are measured with.
        workers: processes that share this machine's cores, or have a GPU each.
        device: auto, cpu, cuda or cuda:N.
        seconds: for each thing that is timed, about; None: long enough to be exact.

    Raises:
        UserError: the device, the model or so many workers are not possible, or a worker died.
    """
    settings = read_settings(
        model=LINKED, strategy=None, steps=None, size=None, settings=[], workers=workers,
        device=device,
    )  # fmt: skip
    draft = make_draft(settings, [ANY_PROMPT], settings.seconds)
    measured = read_settings(
        model=catalogue_name(model), strategy=None, steps=None, size=None, settings=[]
    )
    share_cores(draft.device, workers)
    own = measured.model
    scene = Scene(model_spec(measured), own.height, own.width, draft.device, draft.dtype)
    if seconds is not None:
        scene = replace(scene, seconds=seconds)
    found = calibrate(
        scene, device_name(draft.device), _memory(draft.device), _crowd(draft, workers)
    )
    links = _measure_links(draft) if workers > 1 else None
    shares = draft.device.type == "cpu"
    return Cluster(name, (Node(found, workers, link_of(links, workers, found), shares),))


def _measure_links(draft: Draft) -> Links | None:
    try:
        report = check_run(draft, None)
    except WorkerLost as error:
        raise UserError(f"links can't be measured: {error}") from error
    if report.survey.problems:
        raise UserError(f"links can't be measured: {'; '.join(report.survey.problems)}")
    return report.links


def _memory(device: torch.device) -> float:
    """Of a GPU; or of the host, which all workers share."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(available_bytes(device))


def _crowd(draft: Draft, workers: int) -> float:
    """How far all workers and the decoder lack cores, 0 to 1: by so much each is slowed down."""
    if draft.device.type == "cuda":
        return 1.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = (workers + 1) * torch.get_num_threads()
    return min(1.0, max(0.0, wanted / (cores or 1) - 1))


def link_of(links: Links | None, workers: int, device: Device) -> Link:
    """The usual link, and what all take in together; one worker gets the speed of its memory."""
    if links is None:
        return Link(device.bytes_per_second, 0.0)
    speed = median(pair.megabytes for pair in links.pairs) * 1e6
    latency = median(pair.microseconds for pair in links.pairs) * 1e-6
    return Link(speed, latency, links.together * workers * 1e6)


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
        f"  decoding slows the transformer down by {device.decode_shares:.0%}, and is slowed down",
    ]
    if node.count > 1:
        link = node.link
        lines.append(
            f"  links     {link.bytes_per_second / 1e6:.4g} MB/s, {link.latency * 1e6:.3g} "
            "microseconds"
        )
    return "\n".join(lines)
