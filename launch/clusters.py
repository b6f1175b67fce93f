"""Described clusters: from `configs/cluster/` by name, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from longtake.launch.config import CONFIGS, options
from longtake.launch.strict import load
from longtake.scheduler.cluster import Cluster, Device, Link, Node
from longtake.scheduler.errors import UserError

# What no data sheet tells of a device and its host, and only `longtake calibrate` finds.
UNMEASURED = {
    "decode_yields": None,
    "task_floor": 0.0,
    "exchange_floor": 0.0,
    "exchange_beside": None,
}


@dataclass(frozen=True)
class NodeSettings:
    """`copies` nodes alike."""

    device: Device
    count: int
    link: Link
    copies: int
    shares_memory: bool


@dataclass(frozen=True)
class ClusterSettings:
    """A cluster's file, with names of devices and links replaced by what they stand for."""

    nodes: tuple[NodeSettings, ...]
    network: Link | None


def load_cluster(name: str) -> Cluster:
    """A cluster of `configs/cluster/`, or of a `.yaml` file of the same form.

    Devices and links may be names, out of `configs/device/` and `configs/link/`, or be written out.

    Raises:
        UserError: there is no such cluster, or its file is wrong; it says where.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"there is no cluster file at {path}")
        tree = _parse(path.read_text(encoding="utf-8"), str(path))
        name = path.stem
    else:
        tree = _read("cluster", name)
    tree = {**tree, "network": _named("link", tree.get("network"))}
    if isinstance(tree.get("nodes"), list):
        tree["nodes"] = [_with_names(node) for node in tree["nodes"]]
    settings = load(ClusterSettings, tree, f"cluster {name}")
    nodes = [
        Node(node.device, node.count, node.link, node.shares_memory)
        for node in settings.nodes
        for _ in range(node.copies)
    ]
    return Cluster(name, tuple(nodes), settings.network)


def load_device(name: str) -> Device:
    """A device of `configs/device/`; errors as of `load_cluster`."""
    return load(Device, {**UNMEASURED, **_read("device", name)}, f"device {name}")


def load_link(name: str) -> Link:
    """A link of `configs/link/`; errors as of `load_cluster`."""
    return load(Link, _read("link", name), f"link {name}")


def _with_names(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    node = {
        "shares_memory": False,
        **node,
        **{kind: _named(kind, node[kind]) for kind in ("device", "link") if kind in node},
    }
    if isinstance(node.get("device"), dict):
        node["device"] = {**UNMEASURED, **node["device"]}
    return node


def _named(kind: str, value: Any) -> Any:
    return _read(kind, value) if isinstance(value, str) else value


def _read(kind: str, name: str) -> dict[str, Any]:
    known = options(kind)
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    text = (files(CONFIGS) / kind / f"{name}.yaml").read_text(encoding="utf-8")
    return _parse(text, f"{kind} {name}")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected a group of keys, got {tree!r}")
    return {str(key): value for key, value in tree.items()}
