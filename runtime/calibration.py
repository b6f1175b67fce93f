"""How fast a machine is, in the terms of `scheduler.cluster.Device`.

Products and attention are timed alone, at several numbers of tokens; then whole forwards of a small
random Wan, and what these take longer is what elementwise kernels and launches take. The fitted
numbers are those of `scheduler.costs`, whose formulas are solved for them here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from statistics import median
from time import perf_counter

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional

from longtake.kernels.attention import attention
from longtake.parallel.mesh import Mesh, alone
from longtake.parallel.preflight import Links, measure_links
from longtake.runtime.calibration_scene import (
    Scene,
    decoding,
    forward,
    nobody_else,
    random_transformer,
    random_vae,
    writing,
)
from longtake.runtime.rehearsal import Beside, Rehearsal
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler import flops
from longtake.scheduler.cluster import Cluster, Device, Efficiency, Link, Node
from longtake.scheduler.decode_costs import VAE_PASSES
from longtake.scheduler.decode_degrees import decode_piece
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.software import LONGTAKE

LARGE = {"cpu": 1024, "cuda": 8192}  # side of a matrix
RATHER_SMALL = (3, 9)  # a launch of whose size a run can be rehearsed


@torch.inference_mode()
def calibrate(scene: Scene, name: str, memory: float, mesh: Mesh) -> tuple[Device, Links | None]:
    """Measure the device that a scene is on, and what joins it to others. Not what it draws: it has
    0 watts.

    All workers of the mesh, a ring, do the same at the same time: so each is measured beside others
    at work, as it will be. What rank 0 finds is what counts.

    Args:
        scene: what to measure with.
        name: of the device.
        memory: its bytes.

    Raises:
        UserError: the model's VAE is not a Wan VAE.
    """
    scene = replace(scene, meet=mesh.world.barrier)
    peak = measure_products(scene)
    transformer = random_transformer(scene)
    linear, linear_half = measure_linear(scene, peak)
    attends, attention_half = measure_attention(scene, peak)
    dtype = str(scene.dtype).removeprefix("torch.")
    device = Device(
        name=name,
        memory=memory,
        peak={dtype: peak, "tf32": measure_convolution(scene)},
        bytes_per_second=measure_copy(scene),
        efficiency=Efficiency(
            {"flash-2": attends}, linear, 1.0, attention_half, linear_half, memory=1.0
        ),
        launch_floor=0.0,
        convolution_floor=0.0,
        watts=0.0,
    )
    device = settle_forward(scene, transformer, device)
    links = measure_links(mesh) if mesh.world.size > 1 else None
    vae = random_vae(scene)
    with writing(scene, decoding(scene, vae, piece_of(scene))) as decode:
        if mesh.rank == 0:  # alone: nobody else decodes, and most of it comes after all else
            device = settle_decoding(replace(scene, meet=nobody_else), vae, decode, device)
        if RATHER_SMALL in scene.launches():
            rehearsal = Rehearsal(scene, transformer)
            device = settle_hosts(rehearsal, mesh, device, links, decode)
    return device, links


def piece_of(scene: Scene) -> int:
    """Latent frames that are decoded at once."""
    return decode_piece(scene.spec, 1)


def measure_products(scene: Scene) -> float:
    """FLOP per second of large matrix products."""
    side = LARGE[scene.device.type]
    a, b = scene.random(side, side), scene.random(side, side)
    return 2 * side**3 / scene.time(lambda: functional.linear(a, b))


def measure_convolution(scene: Scene) -> float:
    """... of large convolutions in float32, which GPUs do in TF32."""
    channels, side = 128, LARGE[scene.device.type] // 16
    x = torch.randn(1, channels, side, side, device=scene.device)
    kernel = torch.randn(channels, channels, 3, 3, device=scene.device)
    work = 2 * (channels * side) ** 2 * 9
    return work / scene.time(lambda: functional.conv2d(x, kernel, padding=1))


def measure_copy(scene: Scene) -> float:
    """Bytes per second that are read or written, of a tensor too large for any cache."""
    size = 1 << (26 if scene.device.type == "cpu" else 30)
    source = torch.zeros(size, dtype=torch.uint8, device=scene.device)
    target = torch.empty_like(source)
    return 2 * size / scene.time(lambda: target.copy_(source))


def measure_linear(scene: Scene, peak: float) -> tuple[float, float]:
    """The share of the peak that a layer's products reach, and `linear_half`.

    n / (n + half) of a share means that seconds grow as `each * tokens + start`.
    """
    spec = scene.spec
    square = scene.random(spec.width, spec.width)
    up, down = scene.random(spec.ffn_dim, spec.width), scene.random(spec.width, spec.ffn_dim)
    work = 2 * (6 * spec.width**2 + 2 * spec.width * spec.ffn_dim)
    rows, seconds = [], []
    for frames in sorted({frames for frames, _ in scene.launches()}):
        x = scene.random(frames * scene.tokens, spec.width)

        def layer(x: Tensor = x) -> Tensor:
            for _ in range(6):  # self-attention's four, and two of cross-attention
                functional.linear(x, square)
            return functional.linear(functional.linear(x, up), down)

        rows.append((float(len(x)), 1.0))
        seconds.append(scene.time(layer))
    each, start = fit(rows, seconds)
    return work / each / peak, start / each * spec.width


def measure_attention(scene: Scene, peak: float) -> tuple[float, float]:
    """The share of the peak that attention reaches, and `attention_half`."""
    spec, rows, seconds = scene.spec, [], []
    for frames, kept in scene.launches():
        queries, keys = frames * scene.tokens, (frames + kept) * scene.tokens
        q, k, v = (scene.random(1, n, spec.heads, spec.head_dim) for n in (queries, keys, keys))
        rows.append((float(queries * keys), float(keys)))
        seconds.append(scene.time(partial(attention, q, k, v)))
    each, start = fit(rows, seconds)
    return 4 * spec.width / each / peak, start / each * spec.heads


def settle_forward(scene: Scene, transformer: WanTransformer, device: Device) -> Device:
    """Find what elementwise kernels and launches take, given what the rest does.

    A GPU computes while its host launches, so a forward takes the longer of both. A CPU does one
    after the other: launches take their time besides, and `linear_half` is made to hold it.
    """
    spec, layers = scene.spec, len(transformer.module.blocks)
    rows, seconds, rests = [], [], []
    for frames, kept in scene.launches():
        took = scene.time(forward(scene, transformer, frames, kept)) / layers
        tokens = frames * scene.tokens
        known = layer_seconds(scene, device, tokens, (frames + kept) * scene.tokens, layers)
        moved = LONGTAKE.layer_bytes(spec, scene.dtype.itemsize) * tokens * spec.width
        rows.append((moved, 0.0 if scene.runs_ahead else 1.0))
        seconds.append(took)
        rests.append(took - known)
    each, floor = fit(rows, rests, seconds)
    if scene.runs_ahead:
        floor = scene.time(forward(scene.smallest(), transformer, 1, 0)) / layers
    found = device.efficiency
    half = found.linear_half
    if not scene.runs_ahead:
        peak = device.peak_of(str(scene.dtype).removeprefix("torch."))
        work = _layer_work(spec, 1, spec.layers)
        half += floor * spec.width * peak * found.linear / work
    settled = replace(found, memory=1 / each / device.bytes_per_second, linear_half=half)
    return replace(device, launch_floor=floor, efficiency=settled)


def layer_seconds(scene: Scene, device: Device, tokens: int, keys: int, layers: int) -> float:
    """Products and attention of a layer, and its part of what comes before and after all layers."""
    spec, found = scene.spec, device.efficiency
    peak = device.peak_of(str(scene.dtype).removeprefix("torch."))
    linear = _layer_work(spec, tokens, layers)
    slower = 1 + found.linear_half / (tokens * spec.width)
    attended = flops.attention_flops(spec, tokens, keys + spec.text_tokens, spec.heads)
    slower_attention = 1 + found.attention_half / (tokens * spec.heads)
    return (
        linear / peak / found.linear * slower
        + attended / peak / found.attention["flash-2"] * slower_attention
    )


def _layer_work(spec: ModelSpec, tokens: int, layers: int) -> float:
    around = flops.embed_flops(spec, tokens) + flops.head_flops(spec, tokens)
    return flops.layer_flops(spec, tokens) + around / layers


def settle_decoding(
    scene: Scene, vae: AutoencoderKLWan, decode: Callable[[], None], device: Device
) -> Device:
    """Find how fast the VAE's convolutions are, given how fast its numbers move; `decode` makes and
    writes the images of a piece."""
    shape, spec = scene.spec.vae, scene.spec
    smallest = scene.smallest()
    convolutions = len(shape.decoder)
    floor = scene.time(decoding(smallest, vae, 1)) / convolutions
    frames, took = piece_of(scene), scene.time(decode)
    pixels = scene.tokens * spec.patch**2
    moved = VAE_PASSES * 4 * shape.decode_results(pixels, frames, from_start=False)
    rest = took - moved / (device.bytes_per_second * device.efficiency.memory)
    work = shape.decode_flops(pixels, frames, from_start=False)
    share = work / max(rest, 0.05 * took) / device.peak_of("tf32")
    return replace(
        device,
        convolution_floor=floor,
        efficiency=replace(device.efficiency, convolution=share),
    )


def settle_hosts(
    rehearsal: Rehearsal,
    mesh: Mesh,
    device: Device,
    links: Links | None,
    decode: Callable[[], None],
) -> Device:
    """Find what launches and exchanges take besides what is known by now, and how much decoding
    beside them slows both down. A GPU is shared by both: 1."""
    size, meet = mesh.world.size, mesh.world.barrier
    ring = Degrees(ring=size)
    link = link_of(links, size, device)

    def rest(degrees: Degrees, took: float, count: int) -> float:
        cluster = Cluster("here", (Node(device, size, link),))
        known, *counts = rehearsal.expected(cluster, degrees)
        return max(0.0, took - known) / max(1, counts[count])

    took = rehearsal.walk(alone(mesh.device), meet)
    device = replace(device, task_floor=rest(Degrees(), took, 0))
    together = rehearsal.walk(mesh, meet) if size > 1 else took
    if size > 1:
        device = replace(device, exchange_floor=rest(ring, together, 1))
    if mesh.device.type == "cuda":
        return device
    by_itself = median(time_each(decode)) if mesh.rank == 0 else 0.0
    meet()
    with Beside(decode) if mesh.rank == 0 else nullcontext() as beside:
        slower = rehearsal.walk(alone(mesh.device), meet) / took
        crowded = rehearsal.walk(mesh, meet) if size > 1 else together * slower
    if beside is None:
        return device
    device = replace(
        device,
        decode_shares=max(0.0, slower - 1),
        decode_yields=max(0.0, median(beside.took) / by_itself - 1),
    )
    if size == 1:
        return device
    _, _, exchanges = rehearsal.expected(Cluster("here", (Node(device, size, link),)), ring)
    waited = exchanges * device.exchange_floor
    more = crowded - (together - waited) * (1 + device.decode_shares)
    return replace(device, exchange_beside=max(device.exchange_floor, more / exchanges))


def time_each(act: Callable[[], None]) -> list[float]:
    """Seconds of each of several times."""
    took = []
    for _ in range(12):
        start = perf_counter()
        act()
        took.append(perf_counter() - start)
    return took


def link_of(links: Links | None, workers: int, device: Device) -> Link:
    """The usual link, and what all take in together; one worker gets the speed of its memory."""
    if links is None:
        return Link(device.bytes_per_second, 0.0)
    speed = median(pair.megabytes for pair in links.pairs) * 1e6
    latency = median(pair.microseconds for pair in links.pairs) * 1e-6
    return Link(speed, latency, links.together * workers * 1e6)


def fit(
    rows: Sequence[tuple[float, float]], values: Sequence[float], scale: Sequence[float] = ()
) -> tuple[float, float]:
    """The a > 0 and b >= 0 whose a * x + b * y are nearest to the values, relative to `scale`.

    `scale` is the values themselves if none is given. Where the best b is negative, it is 0.
    """
    weights = torch.tensor(scale or values, dtype=torch.float64).reciprocal()
    x, y = (
        torch.tensor(column, dtype=torch.float64) * weights for column in zip(*rows, strict=True)
    )
    target = torch.tensor(values, dtype=torch.float64) * weights
    xx, xy, yy = (float(p @ q) for p, q in ((x, x), (x, y), (y, y)))
    xt, yt = float(x @ target), float(y @ target)
    determinant = xx * yy - xy * xy
    if determinant > 1e-9 * xx * yy > 0:
        a, b = (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant
        if a > 0 and b >= 0:
            return a, b
    return max(xt / xx, 1e-3 * float(x.sum()) / xx), 0.0
