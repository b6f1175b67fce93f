"""Clusters out of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.launch.clusters import load_cluster, load_device, load_link
from longtake.launch.config import options
from longtake.scheduler.errors import UserError

NODE = """
nodes:
  - {device: h100, count: 2, link: nvlink4, copies: 2}
network: infiniband-ndr
"""


@pytest.mark.parametrize("name", options("cluster"))
def test_every_cluster_loads(name: str) -> None:
    cluster = load_cluster(name)
    stated = name.rpartition("x")[2]
    if stated.isdigit():
        assert len(cluster.devices) == int(stated)
    assert all(device.peak_of("bfloat16") > 1e13 for device in cluster.devices)


@pytest.mark.parametrize("kind", ["device", "link"])
def test_every_part_loads_under_its_own_name(kind: str) -> None:
    for name in options(kind):
        if kind == "device":
            assert load_device(name).name == name
        else:
            assert load_link(name).bytes_per_second > 1e8


def test_a_file_may_name_parts_or_write_them_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(NODE)
    cluster = load_cluster(str(file))
    assert (cluster.name, len(cluster.nodes), len(cluster.devices)) == ("mine", 2, 4)
    file.write_text(NODE.replace("nvlink4", "{bytes_per_second: 1e9, latency: 0.5, total: null}"))
    assert load_cluster(str(file)).link(0, 1).latency == 0.5


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("device: h100", "device: h1000", "unknown device 'h1000'; known: .*h100"),
        ("link: nvlink4", "lnk: nvlink4", "unknown key 'lnk'; known: device, count, link, copies"),
        ("count: 2", "count: two", "expected int, got 'two'"),
        ("count: 2", "count: 0", "at least 1 device"),
        ("infiniband-ndr", "null", "needs a network"),
        ("nodes:", "nods:", "unknown key 'nods'"),
        ("copies: 2}", "copies: 2", "mine.yaml"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, before: str, after: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(NODE.replace(before, after))
    with pytest.raises(UserError, match=words):
        load_cluster(str(file))


def test_an_unknown_cluster_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"unknown cluster 'h100x7'; known: .*h100x8"):
        load_cluster("h100x7")
    with pytest.raises(UserError, match="no cluster file"):
        load_cluster("nowhere.yaml")
