"""Run directories: what is removed with a run."""

from __future__ import annotations

from pathlib import Path

import torch

from longtake.launch.places import remove_run
from longtake.runtime.journal import Journal


def test_nothing_of_a_run_outlives_it_but_what_is_not_its_own(tmp_path: Path) -> None:
    """A state that stayed would be taken for that of the next run."""
    for own in (True, False):
        run_dir = tmp_path / "video.run"
        with Journal.create(run_dir, {}) as journal:
            journal.write(0, torch.zeros(1))
            journal.write_state(3, {"0/latents": torch.zeros(1)})
        (run_dir / "workers").mkdir()
        (run_dir / "workers" / "worker-1.log").touch()
        if not own:
            (run_dir / "notes.txt").touch()
        remove_run(run_dir)
        assert run_dir.exists() is not own
    assert [path.name for path in run_dir.iterdir()] == ["notes.txt"]
