from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scheduler.reckoned import SPEC, STRATEGIES, cluster, device, planned, request

from longtake.scheduler.bounds import bound
from longtake.scheduler.decode_degrees import DecodeDegrees
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.efforts import Effort, Travel
from longtake.scheduler.errors import UserError
from longtake.scheduler.forecast import Outlook
from longtake.scheduler.plan import EVALUATIONS
from longtake.scheduler.simulator import Conditions, Job, Loss, simulate
from longtake.scheduler.simulator_decoding import Decoder, Piece
from longtake.scheduler.simulator_lanes import Channel
from longtake.scheduler.task import Kind, Payload, Span, Task
from longtake.scheduler.timeline import Action, Activity
from longtake.scheduler.usage import usage_by_worker

STEPS = 4
NAMES = st.sampled_from(sorted(STRATEGIES))
DEGREES = st.builds(
    Degrees,
    cfg=st.sampled_from([1, 2]),
    stages=st.integers(1, 8),
    clip=st.just(1),
    ring=st.integers(1, 3),
    ulysses=st.sampled_from([1, 2, 4]),
)


def job(name: str = "causal", seconds: float = 12.0, guidance: float = 1.0, *at: float) -> Job:
    return Job(STRATEGIES[name], request(seconds, guidance, *at), SPEC, STEPS)


def nodes_for(degrees: Degrees, **others: float) -> object:
    return cluster(*[4] * -(-degrees.world // 4), **others)


def test_one_worker_takes_as_long_as_its_tasks():
    made = job()
    plan, efforts = planned(made, Degrees(), cluster(1), shares=0.0)
    found = simulate(made, plan, efforts)
    tasks = [task for task in made.schedule() if task.kind is not Kind.DECODE]
    work = sum(efforts.effort(task).compute for task in tasks)
    last = [task for task in made.schedule() if task.kind is Kind.DECODE][-1]
    assert found.seconds == pytest.approx(work + efforts.decode(last)["denoise"].compute)
    assert found.lanes["denoise"].compute == pytest.approx(work)
    assert found.bytes == 0 and found.exposed == 0
    assert len(found.blocks) == made.strategy.blocks(made.request, SPEC)


def test_the_first_frame_is_there_when_the_first_piece_is_decoded():
    made = job("bidirectional")
    plan, efforts = planned(made, Degrees(), cluster(1))
    found = simulate(made, plan, efforts)
    decode = next(task for task in made.schedule() if task.kind is Kind.DECODE)
    whole = efforts.decode(decode)["denoise"].compute
    finished = found.blocks[0].finished
    assert found.seconds == pytest.approx(finished + whole)
    assert found.first_frame == pytest.approx(finished + whole * 3 / len(decode.frames))
    assert found.steady_fps == pytest.approx(found.fps)


def test_decoding_on_the_same_device_slows_both_down():
    made = job()
    apart, beside = (
        simulate(made, *planned(made, Degrees(), cluster(1), shares=shares)) for shares in (0, 1)
    )
    assert apart.decoding == pytest.approx(beside.decoding)
    both = apart.lanes["denoise"].compute + apart.decoding
    assert apart.seconds < beside.seconds <= both + 1e-9
    assert beside.seconds == pytest.approx(both, rel=0.01)  # neither ever waits for long


def piece(block: int, compute: float, exchange: float = 0.0, ready: float = 0.0) -> Piece:
    return Piece(block, 0, True, Effort(compute, exchange), ready)


def test_a_decoder_that_is_too_slow_holds_up_its_lane():
    ready: dict[int, float] = {}
    decoder = Decoder((0.0, 0.0), lambda piece, start, stop: ready.update({piece.block: stop}))
    freed = []
    for block in range(5):
        decoder.put(piece(block, 10.0))
        freed.append(decoder.wait_for_room(0.0))
    assert freed == [0.0, 0.0, 0.0, 10.0, 20.0]  # two wait beside the one at work
    assert decoder.close() == 50.0
    assert ready == {block: 10.0 * (block + 1) for block in range(5)}


def test_two_at_work_on_one_device_share_it():
    ready: list[float] = []
    decoder = Decoder((1.0, 1.0), lambda piece, start, stop: ready.append(stop))
    decoder.put(piece(0, 3.0))
    assert decoder.beside(0.0, 5.0) == 8.0
    assert ready == [6.0] and decoder.alone == 0.0


def test_decoding_that_waits_for_rows_leaves_the_device_to_others():
    ready: list[tuple[float, float]] = []
    decoder = Decoder((1.0, 1.0), lambda piece, start, stop: ready.append((start, stop)))
    decoder.put(piece(0, 2.0, exchange=2.0, ready=1.0))
    assert decoder.beside(0.0, 5.0) == 7.0  # alone until 1, then both half as fast again
    assert ready == [(1.0, 7.0)]
    decoder.put(piece(1, 1.0, exchange=1.0, ready=8.0))
    assert decoder.close() == 10.0
    assert decoder.alone == 1.0 and decoder.worked == 6.0


GRIDS = [DecodeDegrees(2), DecodeDegrees(4), DecodeDegrees(1, 2), DecodeDegrees(2, 2)]


@pytest.mark.parametrize("decode", GRIDS, ids=DecodeDegrees.describe)
@pytest.mark.parametrize("degrees", [Degrees(ulysses=4), Degrees(stages=2, ulysses=2)], ids=str)
def test_whoever_decodes_is_slowed_down(degrees, decode):
    """And nobody else is; with several, the frames are there sooner."""
    made = job("dual", 20.0)
    alone = simulate(made, *planned(made, degrees, cluster(4)))
    plan, efforts = planned(made, degrees, cluster(4), 1.0, decode)
    actions: list[Action] = []
    found = simulate(made, plan, efforts, record=actions.append)
    assert found.decoding < alone.decoding and found.seconds < alone.seconds
    assert {a.worker for a in actions if a.lane == "decode"} == {
        workers[0] for workers in efforts.decoders.values()
    }
    free = simulate(made, *planned(made, degrees, cluster(4), 0.0, decode))
    for name, lane in found.lanes.items():
        more = lane.compute + lane.decode - free.lanes[name].compute
        assert (more > 1e-6) == (name in efforts.decoders)
    assert sorted(found.blocks) == sorted(alone.blocks)


def test_decoding_may_yield_more_than_it_takes():
    ready: list[float] = []
    decoder = Decoder((0.5, 2.0), lambda piece, start, stop: ready.append(stop))
    decoder.put(piece(0, 2.0))
    assert decoder.beside(0.0, 6.0) == 8.0  # 6 s pass beside, of which it does 4 s of work
    assert ready == [6.0] and not decoder.busy


def test_exchanges_take_longer_while_the_decoder_is_at_work():
    made = job()
    degrees, shared = Degrees(ring=2), cluster(2)
    known = {}
    for beside in (0.0, 1e-3):
        crowded = replace(device(shares=0.0), exchange_floor=0.0, exchange_beside=beside)
        nodes = tuple(replace(node, device=crowded) for node in shared.nodes)
        known[beside] = simulate(made, *planned(made, degrees, replace(shared, nodes=nodes), 0.0))
    assert known[1e-3].seconds > known[0.0].seconds
    assert known[1e-3].bytes == known[0.0].bytes


def test_messages_wait_for_sender_receiver_and_link():
    ports: dict[str, float] = {}
    one, other = Channel(ports), Channel(ports)
    travel = Travel(0.5, 2.0, ("wire",))
    assert one.send(1.0, travel) == 0
    assert one.there(0) is None  # nobody expects it yet
    one.expect(4.0)
    assert (one.left(0), one.there(0)) == (6.0, 6.5)
    other.expect(0.0)
    other.send(0.0, travel)
    assert other.there(0) == 8.5  # the wire was taken until 6


def test_stages_that_a_strategy_cannot_fill_take_turns():
    alone, staged = (
        simulate(made, *planned(made, degrees, cluster(4), shares=0.0))
        for made in [job("causal")]
        for degrees in (Degrees(), Degrees(stages=4))
    )
    assert staged.seconds > 0.85 * alone.seconds  # only the commits run beside other evaluations
    assert staged.bubble > 0.6


def test_stages_that_a_queue_of_blocks_fills_save_time():
    made = job("dual", 40.0)
    alone, staged = (
        simulate(made, *planned(made, degrees, cluster(4)))
        for degrees in (Degrees(), Degrees(stages=4))
    )
    assert staged.seconds < 0.5 * alone.seconds


@settings(max_examples=25, deadline=None)
@given(NAMES, DEGREES, st.sampled_from([1.0, 5.0]), st.floats(2, 14), st.sampled_from([0, 0.3]))
def test_no_plan_deadlocks_and_time_adds_up(name, degrees, guidance, seconds, jitter):
    degrees = replace(degrees, cfg=degrees.cfg if guidance > 1 else 1)
    made = job(name, seconds, guidance)
    plan, efforts = planned(made, degrees, nodes_for(degrees))
    found = simulate(made, plan, efforts, Conditions(jitter=jitter))
    blocks = made.strategy.blocks(made.request, SPEC)
    assert sorted(found.blocks) == list(range(blocks))
    for times in found.blocks.values():
        assert 0 <= times.begun < times.finished < times.decoded <= found.seconds
    assert found.first_frame <= found.blocks[0].decoded
    for lane in found.lanes.values():
        assert lane.compute + lane.exposed <= found.seconds * (1 + 1e-9)
        assert lane.compute + lane.exposed + lane.bubble == pytest.approx(found.seconds)
    assert found.utilisation + found.exposed + found.bubble == pytest.approx(1)
    evaluations = sum(task.kind in EVALUATIONS for task in made.schedule())
    least = evaluations * (2 if plan.branches == 2 and degrees.stages > 1 == degrees.cfg else 1)
    assert all(lane.parts >= least for lane in found.lanes.values())


@settings(max_examples=15, deadline=None)
@given(NAMES, DEGREES, st.sampled_from([1.0, 5.0]))
def test_bytes_are_those_of_all_workers_and_edges(name, degrees, guidance):
    degrees = replace(degrees, cfg=degrees.cfg if guidance > 1 else 1)
    made = job(name, 6.0, guidance)
    decode = DecodeDegrees(min(2, degrees.world))
    plan, efforts = planned(made, degrees, nodes_for(degrees), decode=decode)
    costs = efforts._costs
    sent = 0
    for part in plan.parts(made.schedule()):
        lane = range(2) if part.kind is Kind.DECODE else efforts.workers[plan.lane_of(part)]
        sent += sum(each.bytes for rank in lane for each in costs.exchanges(part, rank))
        for edge in plan.outgoing(part):
            if edge.payload is not Payload.LATENT:
                sent += sum(costs.edge_bytes(edge, part, rank) for rank in lane)
    for frame in range(2):  # to warm up
        sent += sum(e.bytes for e in efforts.decode(decode_of(Span(frame, frame + 1))).values())
    assert simulate(made, plan, efforts).bytes == sent


def decode_of(frames: Span) -> Task:
    return Task(0, Kind.DECODE, 0, frames, 0)


@settings(max_examples=25, deadline=None)
@given(NAMES, DEGREES, st.sampled_from([1.0, 5.0]), st.floats(6, 60), st.data())
def test_a_bound_is_never_above_what_is_simulated(name, degrees, guidance, seconds, data):
    degrees = replace(degrees, cfg=degrees.cfg if guidance > 1 else 1)
    made = job(name, seconds, guidance)
    shares, bands = data.draw(st.sampled_from([0.0, 1.0])), data.draw(st.integers(1, degrees.world))
    decode = DecodeDegrees(bands, data.draw(st.integers(1, degrees.world // bands)))
    plan, efforts = planned(made, degrees, nodes_for(degrees), shares, decode)
    found, least = simulate(made, plan, efforts), bound(Outlook(made), plan, efforts)
    assert least.seconds <= found.seconds * (1 + 1e-9)
    assert least.first_frame <= found.first_frame * (1 + 1e-9)
    assert least.joules <= found.joules * (1 + 1e-9)
    assert least.peak_memory == found.peak_memory


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("degrees", [Degrees(), Degrees(stages=4, ulysses=2)], ids=str)
def test_a_short_video_tells_of_a_long_one(name, degrees):
    made = job(name, 70.0, 5.0)
    plan, efforts = planned(made, degrees, cluster(4, 4))
    whole, reckoned = simulate(made, plan, efforts), Outlook(made).predict(plan, efforts)
    assert reckoned.seconds == pytest.approx(whole.seconds, rel=2e-3)
    assert reckoned.first_frame == pytest.approx(whole.first_frame)
    assert reckoned.joules == pytest.approx(whole.joules, rel=2e-3)
    assert reckoned.bytes == pytest.approx(whole.bytes, rel=2e-3)
    assert reckoned.steady_fps == pytest.approx(whole.steady_fps, rel=0.05)
    assert reckoned.exact == (name == "bidirectional")


def test_a_short_video_tells_of_switches_of_prompt():
    made = job("causal", 70.0, 1.0, 20.0, 40.0)
    plan, efforts = planned(made, Degrees(ulysses=2), cluster(2))
    whole, reckoned = simulate(made, plan, efforts), Outlook(made).predict(plan, efforts)
    plain = job("causal", 70.0)
    none = simulate(plain, plan, efforts)
    assert reckoned.seconds == pytest.approx(whole.seconds, rel=1e-3)
    assert whole.seconds > none.seconds


@settings(max_examples=15, deadline=None)
@given(NAMES, DEGREES, st.floats(1, 4), st.floats(1, 4))
def test_faster_devices_and_links_never_make_a_plan_slower(name, degrees, speed, width):
    made = job(name, 6.0, 5.0)
    slow, fast = (
        simulate(made, *planned(made, degrees, nodes))
        for s, w in ((1.0, 1.0), (speed, width))
        for nodes in [
            cluster(
                *[4] * -(-degrees.world // 4),
                bandwidth=w * 1e8,
                of=(device(speed=s * 1e9),) * -(-degrees.world // 4),
            )
        ]
    )
    assert fast.seconds <= slow.seconds * (1 + 1e-9)


def test_jitter_comes_from_the_seed():
    made = job()
    planning = planned(made, Degrees(ulysses=4), cluster(4))
    calm = simulate(made, *planning)
    one, same, other = (
        simulate(made, *planning, Conditions(seed=seed, jitter=0.2)) for seed in (1, 1, 2)
    )
    assert one.seconds == same.seconds != other.seconds
    assert one.seconds > calm.seconds  # a lane waits for the slowest of four


def test_a_straggler_holds_up_its_lane():
    made = job()
    planning = planned(made, Degrees(ulysses=4), cluster(4), 0.0)
    calm = simulate(made, *planning)
    slowed = simulate(made, *planning, Conditions(stragglers={3: 2.0}))
    assert slowed.lanes["denoise"].compute == pytest.approx(2 * calm.lanes["denoise"].compute)


@pytest.mark.parametrize("name", ["causal", "cascade", "rolling"])
def test_a_lost_worker_costs_the_restart_and_what_was_not_finished(name):
    made = job(name, 20.0)
    planning = planned(made, Degrees(stages=2), cluster(4))
    calm = simulate(made, *planning)
    at = calm.seconds / 2
    lost = simulate(made, *planning, Conditions(losses=(Loss(at, 1),), restart=5.0))
    assert sorted(lost.blocks) == sorted(calm.blocks)
    again = lost.seconds - calm.seconds - 5.0
    assert 0 < again < at  # blocks that were finished are not denoised again
    before = [b for b, times in calm.blocks.items() if times.decoded <= at]
    assert before and all(lost.blocks[b].decoded == calm.blocks[b].decoded for b in before)
    assert lost.first_frame == calm.first_frame
    assert lost.lost >= 5.0


def test_a_loss_after_the_end_changes_nothing():
    made = job()
    planning = planned(made, Degrees(), cluster(1))
    calm = simulate(made, *planning)
    late = simulate(made, *planning, Conditions(losses=(Loss(calm.seconds + 1),)))
    assert late.seconds == calm.seconds and late.lost == 0


def test_actions_say_the_same_as_the_numbers():
    made = job("dual", 20.0, 5.0)
    plan, efforts = planned(made, Degrees(stages=2, ulysses=2), cluster(4), 0.0)
    actions: list[Action] = []
    found = simulate(made, plan, efforts, record=actions.append)
    used = usage_by_worker([action for action in actions if action.lane == "main"])
    assert sorted(used) == [lane.workers[0] for lane in found.lanes.values()]
    for lane in found.lanes.values():
        assert used[lane.workers[0]].compute == pytest.approx(lane.compute)
    tracks: dict[int, list[Action]] = {}
    for action in actions:
        if action.lane == "main" and action.activity is Activity.COMPUTE:
            tracks.setdefault(action.worker, []).append(action)
    for track in tracks.values():
        assert all(a.stop <= b.start + 1e-12 for a, b in pairwise(track))
    decoded = Counter(action.name for action in actions if action.lane == "decode")
    assert set(decoded) == {f"decode of block {block}" for block in found.blocks}


def test_a_timeline_counts_what_a_run_would_count():
    made = job("causal", 12.0, 1.0, 6.0)
    found = simulate(made, *planned(made, Degrees(), cluster(1)))
    kinds = Counter(str(task.kind) for task in made.schedule() if task.kind is not Kind.DECODE)
    counted = {k: n for k, n in found.timeline.counts.items() if k != "decode"}
    assert counted == kinds
    assert sum(found.timeline.seconds[k] for k in kinds) <= found.seconds


def test_what_cannot_be_simulated_is_refused():
    made = job()
    planning = planned(made, Degrees(), cluster(1))
    endless = replace(made, request=replace(made.request, seconds=None))
    with pytest.raises(UserError, match="needs an end"):
        simulate(endless, *planning)
    with pytest.raises(UserError, match="no worker 3; the ranks are 0 to 0"):
        simulate(made, *planning, Conditions(losses=(Loss(1.0, 3),)))
    with pytest.raises(UserError, match="at least 1 times"):
        Conditions(stragglers={0: 0.5})
