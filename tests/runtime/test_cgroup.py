"""What a control group leaves of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.runtime.cgroup import free_bytes


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Where a process says in which groups it is."""
    return tmp_path / "cgroup"


def make(group: Path, limit: tuple[str, str], use: tuple[str, int], cached: int) -> None:
    group.mkdir(parents=True)
    (group / limit[0]).write_text(limit[1] + "\n")
    (group / use[0]).write_text(f"{use[1]}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_the_tightest_group_around_counts(groups: Path, tmp_path: Path) -> None:
    groups.write_text("0::/job/step\n")
    make(tmp_path / "job", ("memory.max", "1000"), ("memory.current", 900), 50)
    make(tmp_path / "job" / "step", ("memory.max", "max"), ("memory.current", 700), 0)
    assert free_bytes(groups, tmp_path) == 150
    (tmp_path / "job" / "step" / "memory.max").write_text("800\n")
    assert free_bytes(groups, tmp_path) == 100


def test_the_first_version_is_read_too(groups: Path, tmp_path: Path) -> None:
    groups.write_text("5:devices:/x\n4:memory,hugetlb:/box\n0::/\n")
    make(
        tmp_path / "memory" / "box",
        ("memory.limit_in_bytes", "500"),
        ("memory.usage_in_bytes", 600),
        0,
    )
    assert free_bytes(groups, tmp_path) == 0


def test_without_a_limit_there_is_none(groups: Path, tmp_path: Path) -> None:
    assert free_bytes(groups, tmp_path) is None
    groups.write_text("0::/\n")
    assert free_bytes(groups, tmp_path) is None
