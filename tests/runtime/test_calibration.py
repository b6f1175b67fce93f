"""Measuring a machine: what is measured is not checked against a clock, but solved for rightly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from longtake.parallel.mesh import alone
from longtake.runtime import calibration, calibration_scene
from longtake.runtime.calibration import (
    calibrate,
    fit,
    layer_seconds,
    settle_forward,
    settle_hosts,
)
from longtake.runtime.calibration_scene import Scene, forward, random_transformer, random_vae
from longtake.runtime.rehearsal import Rehearsal
from longtake.scheduler import flops
from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.shapes import TextShape, VaeShape
from longtake.scheduler.software import LONGTAKE
from longtake.scheduler.strategies.causal import Causal
from longtake.scheduler.task import Kind, Span, Task

SPEC = ModelSpec(
    2, 2, 12, 48, 4, 2, 64, 3,
    waves=16, text_tokens=8, text=TextShape(2, 24, 32, 2, 12, 40),
    vae=VaeShape(8, multipliers=(1, 1, 1, 1), blocks=1, channels=4),
)  # fmt: skip
DEVICE = Device(
    "paper", 1e9, {"float32": 4e10, "tf32": 5e10}, 2e10,
    Efficiency({"flash-2": 0.5}, 0.8, 1.0, 40.0, 300.0, 1.0), 0.0, 0.0, 0.0,
)  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    return Scene(SPEC, 32, 48, torch.device("cpu"), torch.float32, seconds=0.0)


def test_a_fit_finds_what_values_were_made_of() -> None:
    rows = [(1.0, 1.0), (2.0, 1.0), (5.0, 1.0), (9.0, 3.0)]
    assert fit(rows, [3 * x + 2 * y for x, y in rows]) == pytest.approx((3, 2))
    assert fit(rows, [3 * x for x, _ in rows]) == pytest.approx((3, 0), abs=1e-9)


def test_a_fit_never_finds_less_than_nothing() -> None:
    rows = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]
    each, start = fit(rows, [1.0, 3.0, 5.0])  # the best would be 2 and -1
    assert each > 0 and start == 0
    each, start = fit(rows, [-1.0, -2.0, -3.0], [1.0, 1.0, 1.0])
    assert each > 0 and start == 0


def test_a_small_machine_is_described_whole(scene: Scene) -> None:
    device, links = calibrate(scene, "here", 5e8, alone(scene.device))
    assert (device.name, device.memory) == ("here", 5e8)
    assert set(device.peak) == {"float32", "tf32"}
    found = device.efficiency
    measured = (*device.peak.values(), device.bytes_per_second, found.linear, found.memory)
    assert all(0 < value < float("inf") for value in (*measured, found.convolution))
    assert found.attention["flash-2"] > 0 and min(found.linear_half, found.attention_half) >= 0
    assert min(*device.contention, device.task_floor) >= 0
    assert links is None and device.exchange_floor == 0  # there is nobody else
    assert device.convolution_floor > 0


@pytest.mark.parametrize(("frames", "kept"), [(1, 0), (3, 9)])
def test_a_forward_makes_a_flow_of_its_frames(scene: Scene, frames: int, kept: int) -> None:
    transformer = random_transformer(scene)
    assert len(transformer.module.blocks) == SPEC.layers
    assert forward(scene, transformer, frames, kept)().shape == (1, 4, frames, 4, 6)


def test_in_16_bits_norms_stay_in_32(scene: Scene) -> None:
    transformer = random_transformer(replace(scene, dtype=torch.bfloat16))
    assert transformer.dtype == torch.bfloat16
    assert transformer.module.blocks[0].scale_shift_table.dtype == torch.float32


def test_the_random_vae_has_the_shape(scene: Scene) -> None:
    vae = random_vae(scene)
    own = sum(p.numel() for n, p in vae.named_parameters() if n.startswith("decoder."))
    own += sum(p.numel() for p in vae.post_quant_conv.parameters())
    assert own == sum(conv.parameters for conv in SPEC.vae.decoder)


def test_another_make_of_vae_is_refused(scene: Scene) -> None:
    spec = replace(SPEC, vae=VaeShape(8, flops_per_pixel=1e6))
    with pytest.raises(UserError, match="only the VAEs of Wan"):
        random_vae(replace(scene, spec=spec))


def test_a_settled_device_costs_what_its_forwards_took(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards that take 1e-4 s a layer for launches and move 7 GB/s are found to, and costs
    reckon the same seconds from what was found."""
    launch, moves = 1e-4, 7e9

    def seconds(frames: int, kept: int) -> float:
        tokens, keys = frames * scene.tokens, (frames + kept) * scene.tokens
        moved = LONGTAKE.layer_bytes(SPEC, 4) * tokens * SPEC.width
        known = layer_seconds(scene, DEVICE, tokens, keys, SPEC.layers)
        return SPEC.layers * (known + launch + moved / moves)

    def pretend(_: Scene, __: object, frames: int, kept: int) -> tuple[int, int]:
        return frames, kept

    def clock(_: Scene, act: tuple[int, int]) -> float:
        return seconds(*act)

    monkeypatch.setattr(calibration, "forward", pretend)
    monkeypatch.setattr(Scene, "time", clock)
    settled = settle_forward(scene, random_transformer(scene), DEVICE)
    assert settled.launch_floor == pytest.approx(launch)
    assert settled.efficiency.memory * settled.bytes_per_second == pytest.approx(moves)
    costs = costs_on(settled)
    for frames, kept in ((3, 0), (3, 9)):
        seen = (Span(0, kept),) if kept else ()
        task = Task(0, Kind.DENOISE, 0, Span(kept, kept + frames), 0, context=seen)
        assert costs.seconds(task, 0) == pytest.approx(seconds(frames, kept), rel=0.02)


def cluster_of(device: Device) -> Cluster:
    return Cluster("paper", (Node(device, 1, Link(1e9, 0.0)),))


def costs_on(device: Device) -> Costs:
    cluster = cluster_of(device)
    request = Request((Cue(0.0, "anything"),), 2.0, 32, 48, 16)
    return Costs(SPEC, request, Degrees(), cluster, 4, Causal(Retention(12, 3, Positions.RELATIVE)))


def test_launches_that_are_too_large_are_left_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = scene.launches()
    assert len(every) == len(calibration_scene.FRAMES)
    work = flops.forward_flops(SPEC, 3 * scene.tokens, 3 * scene.tokens)
    monkeypatch.setattr(calibration_scene, "MOST_FLOPS", {"cpu": float(work)})
    assert scene.launches() == [(1, 0), (3, 0)]


def test_hosts_are_charged_with_what_a_walk_takes_besides(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launches that take 2 ms more than their kernels are found to; then a walk takes what it
    should by the costs."""
    rehearsal, mesh = Rehearsal(scene, random_transformer(scene)), alone(scene.device)
    known, launches, exchanges = rehearsal.expected(cluster_of(DEVICE), Degrees())
    monkeypatch.setattr(Rehearsal, "walk", lambda *_: known + 2e-3 * launches)
    found = settle_hosts(rehearsal, mesh, DEVICE, None, lambda: None)
    assert found.task_floor == pytest.approx(2e-3) and exchanges == 0
    again, _, _ = rehearsal.expected(cluster_of(found), Degrees())
    assert again == pytest.approx(known + 2e-3 * launches)


@pytest.mark.gpu
def test_a_gpu_is_described_whole(scene: Scene) -> None:
    on_gpu = replace(scene, device=torch.device("cuda"), dtype=torch.bfloat16)
    device, _ = calibrate(on_gpu, "here", 5e8, alone(on_gpu.device))
    assert set(device.peak) == {"bfloat16", "tf32"}
    assert device.launch_floor > 0 and device.decode_shares == 1
