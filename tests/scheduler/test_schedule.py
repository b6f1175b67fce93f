"""Every schedule is legal, whatever the request and whatever happens while it is walked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.schedule import Schedule, Switch, Verdict
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Span, Task

MOST_TASKS = 400  # of an endless schedule


def make_spec(block_frames: int) -> ModelSpec:
    return ModelSpec(
        layers=2,
        heads=2,
        head_dim=16,
        ffn_dim=64,
        latent_channels=4,
        patch=2,
        rotary_rows=1024,
        block_frames=block_frames,
    )


@dataclass
class Run:
    """A causal schedule, and what happens at which of its tasks."""

    schedule: Schedule
    switches: dict[int, list[str]] = field(default_factory=dict)
    stop_at: int | None = None
    switched: list[Switch] = field(default_factory=list)

    @property
    def retention(self) -> Retention:
        assert isinstance(self.schedule.strategy, Causal)
        return self.schedule.strategy.retention

    def walk(self) -> Iterator[Task]:
        """The tasks, with everything that happens after each of them."""
        for index, task in enumerate(islice(self.schedule, MOST_TASKS)):
            yield task
            for text in self.switches.get(index, []):
                if task.block + 1 != self.schedule.blocks:
                    self.switched.append(self.schedule.switch(text))
            if index == self.stop_at:
                self.schedule.stop()


@st.composite
def runs(draw: st.DrawFn) -> Run:
    block = draw(st.integers(1, 4), label="block")
    sink = draw(st.integers(0, 4), label="sink")
    window = draw(st.none() | st.integers(sink + block, sink + block + 12), label="window")
    fps = draw(st.integers(4, 30))
    spec = make_spec(block)
    blocks = draw(st.integers(1, 12) | (st.nothing() if window is None else st.none()))
    begins = draw(st.sets(st.integers(1, 11 if blocks is None else max(1, blocks - 1)), max_size=3))
    cues = [Cue(0, "first")] + [
        Cue(spec.pixel_frames(b * block) / fps, f"from block {b}")
        for b in sorted(begins)
        if blocks is None or b < blocks
    ]
    cut = 0 if blocks is None else draw(st.integers(0, block - 1))
    seconds = None if blocks is None else spec.pixel_frames(blocks * block - cut) / fps
    if seconds is not None and cues[-1].at >= seconds:
        cues.pop()
    retention = Retention(
        window, sink, draw(st.sampled_from(Positions)), draw(st.booleans()), draw(st.booleans())
    )
    if blocks is None and retention.positions is Positions.ABSOLUTE:
        retention = replace(retention, positions=Positions.RELATIVE)
    request = Request(tuple(cues), seconds, 64, 64, fps)
    index = st.integers(0, 60)
    return Run(
        Schedule(Causal(retention), request, spec, draw(st.integers(1, 5), label="steps")),
        draw(st.dictionaries(index, st.lists(st.just("new"), min_size=1, max_size=2), max_size=3)),
        draw(st.none() | index),
    )


@given(runs())
def test_every_block_takes_each_step_once_then_is_committed_and_decoded(run: Run) -> None:
    tasks = list(run.walk())
    steps = run.schedule.steps
    ticks = [task.tick for task in tasks]
    assert ticks == sorted(set(ticks))
    if len(tasks) == MOST_TASKS:
        tasks = [task for task in tasks if task.block < tasks[-1].block]
    done = sorted({task.block for task in tasks})
    assert done == list(range(len(done)))
    event("stopped" if len(done) != run.schedule.blocks else "finished")
    for block in done:
        own = [task for task in tasks if task.block == block and task.kind is not Kind.ENCODE]
        own = [task for task in own if task.kind is not Kind.RECACHE]
        kinds = [*[Kind.DENOISE] * steps, Kind.COMMIT, Kind.DECODE]
        assert [task.kind for task in own] == kinds
        assert [task.step for task in own[:steps]] == list(range(steps))
        assert [task.last for task in own] == [False] * (steps - 1) + [True, False, False]
        size = run.schedule.spec.block_frames
        assert {task.frames for task in own} == {Span(block * size, (block + 1) * size)}


@given(runs())
def test_it_ends_with_the_request_unless_it_is_stopped(run: Run) -> None:
    tasks = list(run.walk())
    if run.stop_at is not None and run.stop_at < len(tasks):
        last = tasks[run.stop_at].block
    elif run.schedule.blocks is None:
        assert len(tasks) == MOST_TASKS
        return
    else:
        last = run.schedule.blocks - 1
    if len(tasks) < MOST_TASKS:
        assert (tasks[-1].kind, tasks[-1].block) == (Kind.DECODE, last)


@given(runs())
def test_contexts_stay_in_the_window_and_name_cached_frames(run: Run) -> None:
    """A cache is simulated that forgets whatever a task neither makes nor sees."""
    cached: set[int] = set()
    committed: set[int] = set()
    for task in run.walk():
        if task.kind in (Kind.ENCODE, Kind.DECODE):
            continue
        own = set(task.frames.frames())
        context = [frame for span in task.context for frame in span.frames()]
        assert context == sorted(set(context))
        assert own.isdisjoint(context)
        assert committed.issuperset(context)
        assert cached.issuperset(context)
        if run.retention.window is not None:
            assert len(own) + len(context) <= run.retention.window
        if task.kind is Kind.DENOISE:
            assert own.isdisjoint(committed)
        elif task.kind is Kind.RECACHE:
            assert committed.issuperset(own)
        else:
            committed |= own
        cached = own | set(context)


@given(runs())
def test_contexts_follow_the_retention(run: Run) -> None:
    first = 0
    seen: dict[int, set[tuple[Span, ...]]] = {}
    for task in run.walk():
        if task.kind is Kind.RECACHE:
            left, again, first = run.retention.recached(task.block * len_block(run), first)
            assert (task.context, task.frames) == (left, again)
        elif task.kind in (Kind.DENOISE, Kind.COMMIT):
            assert task.context == run.retention.context(task.frames, first)
            seen.setdefault(task.block, set()).add(task.context)
    assert all(len(contexts) == 1 for contexts in seen.values())


@given(runs())
def test_prompts_hold_from_their_block_on(run: Run) -> None:
    """Each change is encoded once, and recached before anything else of the block.

    A prompt changed by hand holds until the next one that was planned.
    """
    by_block: dict[int, list[Task]] = {}
    for task in run.walk():
        by_block.setdefault(task.block, []).append(task)
    switches = [Switch(b, i) for i, b in enumerate(planned_blocks(run.schedule))] + run.switched
    expected = [
        max((switch.block, switch.cue) for switch in switches if switch.block <= block)[1]
        for block in by_block
    ]
    for block, tasks in by_block.items():
        assert {task.cue for task in tasks} == {expected[block]}
        changed = block == 0 or expected[block] != expected[block - 1]
        recached = changed and block > 0 and run.retention.recache
        opening = [Kind.ENCODE] * changed + [Kind.RECACHE] * recached
        assert [task.kind for task in tasks if task.kind in (Kind.ENCODE, Kind.RECACHE)] == opening
        assert [task.kind for task in tasks[: len(opening)]] == opening


def len_block(run: Run) -> int:
    return run.schedule.spec.block_frames


def planned_blocks(schedule: Schedule) -> list[int]:
    """Where the cues of the request begin; those of these tests begin right with a block."""
    spec, request = schedule.spec, schedule.request
    begins = {spec.pixel_frames(b * spec.block_frames): b for b in range(12)}
    return [begins[round(cue.at * request.fps)] for cue in request.cues]


def causal(cues: tuple[Cue, ...], seconds: float | None, fps: int = 16) -> Schedule:
    request = Request(cues, seconds, 64, 64, fps)
    retention = Retention(12, 3, Positions.RELATIVE)
    return Schedule(Causal(retention), request, make_spec(3), steps=4)


def test_a_switch_holds_from_the_next_block_on() -> None:
    schedule = causal((Cue(0, "first"),), None)
    walk = iter(schedule)
    cues = [next(walk).cue for _ in range(10)]  # well into block 1
    assert schedule.switch("second") == Switch(block=2, cue=1)
    cues += [task.cue for task in islice(walk, 20)]
    assert cues == [0] * 13 + [1] * 17
    assert schedule.script.cues[1] == Cue(21 / 16, "second")


def test_blocks_wait_for_their_grant_and_prompts_can_change_meanwhile() -> None:
    schedule = causal((Cue(0, "first"),), 10)
    begun: list[int] = []

    def decide(block: int) -> Verdict:
        go = schedule.await_grant(block)
        begun.append(block)
        return Verdict(go)

    schedule.grant(1)
    with ThreadPoolExecutor(1) as walker:
        walk = walker.submit(lambda: [task.cue for task in schedule.tasks(decide)])
        while schedule.script.next_block < 3:  # block 2 is about to begin
            assert not walk.done()
        assert schedule.switch("second") == Switch(block=3, cue=1)
        assert begun == [0, 1]
        schedule.grant(4)
        while schedule.script.next_block < 6:
            assert not walk.done()
        schedule.stop()
        assert set(walk.result()) == {0, 1}
    assert begun == [0, 1, 2, 3, 4, 5]


def test_a_recorded_switch_is_replayed_where_it_was() -> None:
    schedule = causal((Cue(0, "first"),), 10)
    assert schedule.switch("second", block=4) == Switch(4, 1)
    cues = {task.block: task.cue for task in schedule}
    assert [cues[block] for block in sorted(cues)] == [0] * 4 + [1] * (len(cues) - 4)


def test_what_records_a_switch_can_refuse_it() -> None:
    schedule = causal((Cue(0, "first"),), 10)

    def refuse(switch: Switch) -> None:
        assert switch == Switch(0, 1)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="disk"):
        schedule.switch("second", record=refuse)
    assert {task.cue for task in schedule} == {0}


def test_a_switch_that_could_not_show_is_refused() -> None:
    schedule = causal((Cue(0, "first"),), 1)
    with pytest.raises(UserError, match=r"^the prompt is empty; say what the video should show$"):
        schedule.switch("  ")
    list(schedule)
    with pytest.raises(UserError, match=r"^the last block has begun; the prompt can't change"):
        schedule.switch("second")


def test_cues_count_in_the_frame_rate_of_the_request() -> None:
    schedule = causal((Cue(0, "first"), Cue(21 / 8, "second")), 10, fps=8)
    assert min(task.block for task in schedule if task.cue == 1) == 2


@pytest.mark.parametrize("at", [4.9, 0.01])
def test_a_prompt_that_would_never_be_seen_is_refused(at: float) -> None:
    """One begins after the last block, the other with the very first."""
    with pytest.raises(UserError, match=r"^the prompt at \S+ s would never be seen: .* every 0.75"):
        causal((Cue(0, "first"), Cue(at, "second")), 5)


def test_stopped_before_it_began_it_is_empty() -> None:
    schedule = causal((Cue(0, "first"),), None)
    schedule.stop()
    assert list(schedule) == []


def test_a_joint_schedule_stops_with_its_one_block() -> None:
    request = Request((Cue(0, "first"),), 5, 64, 64, 16)
    schedule = Schedule(Bidirectional(), request, make_spec(3), steps=3)
    tasks = []
    for task in schedule:
        schedule.stop()
        tasks.append(task.kind)
    assert tasks == [Kind.ENCODE, *[Kind.DENOISE] * 3, Kind.DECODE]
