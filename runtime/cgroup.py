"""The memory that a container or a batch job may still take, by its control groups."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# Limit and use, of version 2 and of version 1.
FILES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def free_bytes(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the tightest group around this process leaves; None where nothing limits it.

    Pages that only cache files count as free, since they make room when asked.
    """
    if not groups.exists():
        return None
    found = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(FILES):
            own = PurePosixPath(path.lstrip("/"))
            for group in (own, *own.parents):
                left = _left(mount / controller / group, *FILES[controller])
                found += [] if left is None else [left]
    return min(found, default=None)


def _left(group: Path, limit: str, use: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        used = int((group / use).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # not a group that counts memory, or not ours to see
        return None
    if most == "max":
        return None
    return max(0, int(most) - used + int(stat.get("inactive_file", 0)))
