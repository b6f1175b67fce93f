"""A run directory goes over to a later epoch, and whoever held it before can't write any more."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from longtake.runtime.hold import Fenced, Hold
from longtake.runtime.journal import Journal
from longtake.scheduler.errors import UserError


def latents(fill: float) -> torch.Tensor:
    return torch.full((1, 4, 3, 2, 2), fill)


def test_one_process_of_an_epoch_holds_it(tmp_path: Path) -> None:
    with closing(Hold(tmp_path, 3)), pytest.raises(UserError, match="in use by another process"):
        Hold(tmp_path, 3)
    with closing(Hold(tmp_path)) as hold:  # whoever doesn't count goes on where it stands
        assert hold.epoch == 3


def test_a_later_epoch_takes_it_from_one_that_still_lives(tmp_path: Path) -> None:
    with closing(Hold(tmp_path, 1)) as first, closing(Hold(tmp_path, 2)) as second:
        second.check()
        with pytest.raises(Fenced, match="went over to epoch 2, this is 1"):
            first.check()
        with pytest.raises(Fenced):
            Hold(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["lock.2"]


def test_a_directory_that_is_gone_is_held_by_nobody(tmp_path: Path) -> None:
    with closing(Hold(tmp_path, 1)) as hold:
        hold.remove()
        with pytest.raises(Fenced):
            hold.check()


def test_an_old_epoch_publishes_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with Journal.create(run_dir, {"seed": 1}, epoch=1) as old:
        old.write(0, latents(0.0))
        old.write_state(5, {"latents": latents(0.5)})
        old.record_event({"block": 1, "text": "now"})
        with Journal.open(run_dir, epoch=2) as new:
            for write in (
                lambda: old.write(1, latents(-1.0)),
                lambda: old.write_state(9, {"latents": latents(-1.0)}),
                lambda: old.record_event({"block": 2, "text": "never"}),
                lambda: old.update_manifest(seed=2),
            ):
                with pytest.raises(Fenced):
                    write()
            new.write(1, latents(1.0))
    with Journal.open(run_dir, epoch=3) as journal:
        assert journal.blocks() == {0, 1} and journal.manifest == {"seed": 1}
        kept = journal.read(1)
        assert kept is not None and torch.equal(kept, latents(1.0))
        state = journal.read_state()
        assert state is not None and state[0] == 5
        assert journal.events() == [{"block": 1, "text": "now"}]


def test_what_was_on_its_way_when_the_epoch_ended_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the question, before the answer's effect: the worst moment there is."""
    run_dir = tmp_path / "run"
    with Journal.create(run_dir, {}, epoch=1) as old:
        old.write_state(5, {"latents": latents(0.5)})
        with Journal.open(run_dir, epoch=2) as new:
            new.write(0, latents(1.0))
            monkeypatch.setattr(Hold, "check", lambda hold: None)
            old.write(0, latents(-1.0))
            old.write(1, latents(-1.0))
            old.write_state(9, {"latents": latents(-1.0)})
            old.record_event({"block": 2, "text": "never"})
            monkeypatch.undo()
    with Journal.open(run_dir, epoch=3) as journal:
        assert journal.blocks() == {0} and journal.events() == []
        kept = journal.read(0)
        assert kept is not None and torch.equal(kept, latents(1.0))
        state = journal.read_state()
        assert state is not None and state[0] == 5
