"""The simulator against published figures: reads them, finds their hardware, tells the outcome."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Literal

from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from longtake.launch.clusters import load_device, load_link
from longtake.launch.config import CONFIGS, options
from longtake.launch.strict import load
from longtake.scheduler.cluster import Cluster, Device, Link, Node
from longtake.scheduler.errors import UserError
from longtake.scheduler.published import Figure, Skip
from longtake.scheduler.software import Software
from longtake.scheduler.validation import Outcome, Stack
from longtake.scheduler.validation import validate as validate_figures

COLUMNS = (
    "id",
    "system",
    "model",
    "task",
    "height",
    "width",
    "pixel_frames",
    "steps",
    "cfg",
    "gpu",
    "gpus",
    "interconnect",
    "parallelism",
    "metric",
    "value",
    "note",
)
NODE = 8  # devices of a node, where there are more
NVLINK = {"a100": "nvlink3", "a800": "nvlink3-a800", "h800": "nvlink4-h800", "b200": "nvlink5"}
WITHOUT_PEERS = ("rtx",)  # cards that reach each other through the host's memory
SAME_DEVICE = {"gb200": "b200", "rtx6000ada": "l40s"}


@dataclass(frozen=True)
class StackSettings:
    """A software stack of `configs/stacks.yaml`."""

    name: str
    systems: tuple[str, ...]
    attention: str
    fused: bool
    linear: str | None
    vae: Literal["float32", "bfloat16"]
    hides: Literal["nothing", "ring", "all"]
    synchronises: bool
    parallel_vae: bool
    floor: float
    floor_by: str | None
    efficiency: dict[str, float]
    settled_by: dict[str, str]


@dataclass(frozen=True)
class StacksSettings:
    """All of them; the first that matches a system's name is taken."""

    stacks: tuple[StackSettings, ...]


def validate(path: Path, as_json: bool = False) -> str:
    """Predict the figures of a CSV file.

    Returns:
        A table with a summary, or a JSON list of objects with `id`, `published` and either
        `predicted` or `skipped`; and what the prediction rests on.

    Raises:
        UserError: the file is missing or of another form.
    """
    outcomes = validate_figures(read_figures(path), stacks(), find_cluster)
    if as_json:
        return json.dumps([as_dict(outcome) for outcome in outcomes], indent=2)
    return _table(outcomes)


def read_figures(path: Path) -> list[Figure]:
    """The rows of a file; lines that begin with # are comments.

    Raises:
        UserError: a column is missing, or holds no number where one should be.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    reader = csv.DictReader(line for _, line in numbered)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: missing column {missing[0]!r}; needed: {', '.join(COLUMNS)}")
    return [
        _figure(row, f"{path}, line {number}")
        for row, (number, _) in zip(reader, numbered[1:], strict=True)
    ]


def stacks() -> list[Stack]:
    """The software stacks that come with this version."""
    text = (files(CONFIGS) / "stacks.yaml").read_text(encoding="utf-8")
    tree = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    return [
        Stack(
            each.systems,
            Software(
                name=each.name,
                attention=each.attention,
                fused=each.fused,
                linear=each.linear,
                vae=each.vae,
                hides=each.hides,
                synchronises=each.synchronises,
                parallel_vae=each.parallel_vae,
                efficiency=each.efficiency,
                floor=each.floor,
            ),
            each.settled_by,
            each.floor_by,
        )
        for each in load(StacksSettings, tree, "stacks.yaml").stacks
    ]


def find_cluster(figure: Figure) -> Cluster:
    """The hardware of a figure.

    Raises:
        Skip: it isn't stated, or isn't known here.
    """
    device, count = find_device(figure.gpu), figure.gpus or 1
    words = figure.interconnect.lower()
    if count == 1:
        return Cluster(figure.id, (Node(device, 1, load_link("pcie4")),))
    link = _link_of(device, words)
    if count <= NODE or "nvl72" in words:
        return Cluster(figure.id, (Node(device, count, link),))
    if count % NODE:
        raise Skip(f"{count} devices are no whole nodes of {NODE}")
    slow = "infiniband-hdr" if device.name.startswith("a") else "infiniband-ndr"
    network = load_link("ethernet-100g" if re.search(r"ether|roce", words) else slow)
    nodes = tuple(Node(device, NODE, link) for _ in range(count // NODE))
    return Cluster(figure.id, nodes, network)


@cache
def find_device(name: str) -> Device:
    """A device by any of its usual names, such as `A100-80G` or `NVIDIA H100 SXM`.

    Raises:
        Skip: it isn't known here.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    known = {**{option: option for option in options("device")}, **SAME_DEVICE}
    for alias in sorted(known, key=len, reverse=True):
        if alias in plain or alias.removeprefix("rtx") == plain:
            return load_device(known[alias])
    raise Skip(f"no description of {name or 'a device that is not stated'}")


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """For JSON."""
    figure = outcome.figure
    found: dict[str, Any] = {"id": figure.id, "published": figure.value}
    if outcome.skipped is not None:
        return {**found, "skipped": outcome.skipped}
    return {
        **found,
        "predicted": round(outcome.predicted or 0.0, 4),
        "metric": figure.metric,
        "stack": outcome.stack,
        "efficiency": round(outcome.efficiency, 3),
        "efficiency_from": outcome.rests_on,
        "calibration": outcome.settles,
    }


def _link_of(device: Device, words: str) -> Link:
    if "nvlink" in words or "nvl72" in words or "nvswitch" in words:
        return load_link(NVLINK.get(device.name, "nvlink4"))
    match = re.search(r"pcie ?([45])?", words)
    if match is None:
        raise Skip(f"the interconnect {words or 'that is not stated'} is not known here")
    through_host = device.name.startswith(WITHOUT_PEERS)
    return load_link(f"pcie{match[1] or '4'}{'-host' if through_host else ''}")


def _figure(row: dict[str, str], where: str) -> Figure:
    def whole(name: str) -> int | None:
        number = real(name)
        return None if number is None else int(number)

    def real(name: str) -> float | None:
        text = (row[name] or "").strip()
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            raise UserError(f"{where}: {name} must be a number, got {text!r}") from None

    return Figure(
        id=row["id"],
        system=row["system"],
        model=row["model"],
        height=whole("height"),
        width=whole("width"),
        pixel_frames=whole("pixel_frames"),
        steps=whole("steps"),
        cfg=whole("cfg") or 1,
        gpu=row["gpu"],
        gpus=whole("gpus"),
        interconnect=row["interconnect"] or "",
        parallelism=row["parallelism"] or "",
        metric=row["metric"],
        value=real("value"),
        note=row["note"] or "",
    )


def _table(outcomes: Sequence[Outcome]) -> str:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("id", "published", "predicted", "error", "rests on"):
        table.add_column(column, overflow="fold")
    for outcome in outcomes:
        figure = outcome.figure
        published = "-" if figure.value is None else f"{figure.value:g} {figure.metric}"
        if outcome.skipped is not None:
            table.add_row(figure.id, published, "-", "", f"skipped: {outcome.skipped}")
            continue
        error = "" if outcome.error is None else f"{outcome.error:+.1%}"
        rests = "itself" if outcome.settles else outcome.rests_on or "no figure"
        table.add_row(figure.id, published, f"{outcome.predicted:.4g}", error, rests)
    text = io.StringIO()
    Console(file=text, width=110).print(table)
    return f"{text.getvalue()}\n{summary(outcomes)}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many figures were expressed, and how far off those are that settled nothing."""
    expressed = [outcome for outcome in outcomes if outcome.skipped is None]
    apart = [o for o in expressed if not o.settles and o.error is not None]
    errors = sorted(abs(o.error or 0.0) for o in apart)
    line = f"{len(expressed)} of {len(outcomes)} figures expressed"
    if not errors:
        return line
    beyond = [o.figure.id for o in apart if abs(o.error or 0.0) > 0.2]
    return (
        f"{line}; {len(errors)} of them settled nothing: median error {median(errors):.1%}, "
        f"largest {errors[-1]:.1%}, over 20%: {', '.join(beyond) or 'none'}"
    )
