"""What a run does with its journal: begin it, take prompts that change, and give them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.launch.draft import Draft, warn_of_grammar
from longtake.launch.manifest import new_manifest
from longtake.launch.places import Places, remove_run
from longtake.runtime.journal import Journal
from longtake.scheduler.errors import UserError
from longtake.scheduler.schedule import Schedule, Switch


def begin_journal(
    draft: Draft, run_dir: Path, places: Places | None, epoch: int | None = None
) -> Journal:
    """Start a run directory, in place of an older run where that was allowed.

    Raises:
        UserError: it is in use or can't be written; nothing half-made is left then.
    """
    if places is not None and places.overwrite:
        remove_run(run_dir)
    was_there = run_dir.exists()
    manifest = new_manifest(draft, None if places is None else places.to_dict())
    try:
        return Journal.create(run_dir, manifest, epoch)
    except UserError:
        if not was_there:
            remove_run(run_dir)
        raise


def replay(journal: Journal, schedule: Schedule) -> None:
    """Switch the prompts again that were switched while the run was watched, at the same blocks."""
    for event in journal.events():
        schedule.switch(event["text"], block=event["block"])


def change_prompt(
    draft: Draft,
    schedule: Schedule,
    journal: Journal | None,
    prompt: str,
    facts: Mapping[str, Any] | None = None,
) -> tuple[int, float]:
    """Change the prompt from the next block on that has not begun.

    With a journal it is recorded first, with `facts` beside it.

    Returns:
        From which block, and from which second of the video on it holds.

    Raises:
        UserError: the prompt is empty, the last block has begun, or the disk refuses.
    """

    def record(switch: Switch) -> None:
        if journal is not None:
            journal.record_event({"block": switch.block, "text": prompt, **(facts or {})})

    switch = schedule.switch(prompt, record=record)
    warn_of_grammar(draft, prompt)
    return switch.block, schedule.script.cues[switch.cue].at
