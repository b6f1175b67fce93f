"""Every invariant of `docs/invariants.md` is held by tests of its number, and by no others."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ((?:clip |dual )?\d\d) \| .+? \| (.+) \|$", re.MULTILINE)
NUMBERED = re.compile(r"^(?:async )?def test_(clip_|dual_)?(\d\d(?:_\d\d)*)_", re.MULTILINE)


def told() -> dict[str, set[str]]:
    """By number, the files that the page names."""
    page = (ROOT / "docs" / "invariants.md").read_text("utf-8")
    return {
        number: set(re.findall(r"`(tests/\S+\.py)`", cell)) for number, cell in ROW.findall(page)
    }


def test_the_page_names_the_tests_that_there_are() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for list_, numbers in NUMBERED.findall(path.read_text("utf-8")):
            for number in numbers.split("_"):
                found[f"{list_} {number}".replace("_", "").strip()].add(str(path.relative_to(ROOT)))
    assert found == {number: files for number, files in told().items() if files}


def test_all_invariants_are_told() -> None:
    clips = [f"clip {number:02}" for number in range(1, 11)]
    queues = [f"dual {number:02}" for number in range(11, 21)]
    assert list(told()) == [*(f"{number:02}" for number in range(1, 31)), *clips, *queues]
