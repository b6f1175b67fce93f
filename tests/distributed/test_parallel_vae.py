"""Workers that decode together, by bands of rows and by stages, equal one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longtake.parallel.group import Group
from longtake.parallel.halo import Bands
from longtake.parallel.mesh import Rendezvous, alone, open_mesh
from longtake.runtime.parallel_vae import Memory, ParallelDecodeStream
from longtake.runtime.wan_vae import DecodeStream
from longtake.scheduler.degrees import Degrees, Place

CPU = torch.device("cpu")
TINYWORLD = Path(__file__).parents[2] / "models" / "tinyworld" / "vae"
PLANS = [
    Degrees(ring=bands, stages=stages)
    for bands in range(1, 5)
    for stages in range(1, 5)
    if bands * stages <= 4
]
SIZES = [2, 1, 2]  # latent frames of the pieces of a stream
TOLERANCE = {"atol": 2e-5, "rtol": 0.0}  # pixels are in [-1, 1]


def load(kind: str) -> AutoencoderKLWan:
    """`residual`: as in Wan 2.2, with trained weights; `plain`: as in Wan 2.1, with random ones."""
    if kind == "residual":
        return AutoencoderKLWan.from_pretrained(TINYWORLD).eval()
    torch.manual_seed(0)
    config = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
    return AutoencoderKLWan(**config, temperal_downsample=[False, True, True]).eval()


def random_latents(vae: AutoencoderKLWan, rows: int, frames: int = sum(SIZES)) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(1, vae.config.z_dim, frames, rows, 3, generator=generator)


@cache
def reference(kind: str, rows: int) -> Tensor:
    vae = load(kind)
    with torch.inference_mode():
        return DecodeStream(vae).decode(random_latents(vae, rows))


def decode(
    bands: Group, stages: Group, kind: str, rows: int, forgets: bool = False
) -> Tensor | None:
    """Decode a stream piece by piece, on purpose without the memory of the pieces before or not."""
    vae = load(kind)
    stream = ParallelDecodeStream(vae, bands, stages)
    pieces = []
    with torch.inference_mode():
        for latents in random_latents(vae, rows).split(SIZES, dim=2):
            if stages.index:  # only the first stage is to read them
                latents = torch.full_like(latents, torch.nan)
            band = stream.decode(latents)
            pieces.append(None if band is None else stream.collect(band, rows))
            if forgets:
                stream._memory = Memory()
    stream.close()
    made = [piece for piece in pieces if piece is not None]
    return torch.cat(made, dim=2) if made else None


Case = tuple[str, int]


def decode_cases(
    rendezvous: Rendezvous, degrees: Degrees, cases: Sequence[Case]
) -> list[Tensor | None]:
    with open_mesh(rendezvous, degrees, CPU) as mesh:
        return [decode(mesh.ring, mesh.stage, *case) for case in cases]


@pytest.mark.parametrize("degrees", PLANS, ids=Degrees.describe)
def test_every_grid_of_workers_equals_one_process(workers: Any, degrees: Degrees) -> None:
    cases = [("residual", 5), ("plain", 5)]  # of 5 rows, 4 workers have 2, 1, 1 and 1
    results = workers.run(degrees.world, decode_cases, degrees, cases, timeout=60)
    expected = [reference(*case) for case in cases]
    for rank, result in enumerate(results):
        for pixels, whole in zip(result, expected, strict=True):
            if rank == degrees.rank(Place(stage=degrees.stages - 1)):
                torch.testing.assert_close(pixels, whole, **TOLERANCE)
            else:
                assert pixels is None


@pytest.mark.parametrize("degrees", [Degrees(ring=3), Degrees(ring=2, stages=2)])
def test_workers_without_rows_are_no_trouble(workers: Any, degrees: Degrees) -> None:
    rows = degrees.ring - 1
    whole = reference("plain", rows)
    results = workers.run(degrees.world, decode_cases, degrees, [("plain", rows)], timeout=60)
    (pixels,) = [result for [result] in results if result is not None]
    torch.testing.assert_close(pixels, whole, **TOLERANCE)


class ZeroHalo(Group):
    """Neighbours' rows are zeros."""

    def all_to_all(self, chunks: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        received = super().all_to_all(chunks, shapes)
        bands = any(len(shape) > 1 and shape[-2] > 1 for shape in shapes)  # pixels are collected
        return received if bands else [torch.zeros_like(chunk) for chunk in received]


class OwnKeys(Group):
    """Attention sees the own band's keys and values instead of the others'."""

    def all_gather(self, tensor: Tensor, lengths: Sequence[int], dim: int) -> Tensor:
        return tensor.repeat_interleave(2, dim).narrow(dim, 0, sum(lengths))


def decode_wrongly(rendezvous: Rendezvous, make: type[Group], forgets: bool) -> Tensor | None:
    with open_mesh(rendezvous, Degrees(ring=2), CPU) as mesh:
        right = mesh.ring
        bands = make("wrong", right.ranks, right.index, right._wire, right.device)
        return decode(bands, mesh.stage, "plain", 4, forgets)


@pytest.mark.parametrize(("make", "forgets"), [(ZeroHalo, False), (OwnKeys, False), (Group, True)])
def test_what_is_left_out_is_noticed(workers: Any, make: type[Group], forgets: bool) -> None:
    """The comparison above fails if halo, attention or memory is wrong."""
    whole = reference("plain", 4)
    pixels, _ = workers.run(2, decode_wrongly, make, forgets, timeout=60)
    assert pixels.shape == whole.shape
    assert not torch.allclose(pixels, whole, **TOLERANCE)


class Peak(TorchDispatchMode):
    """Notes the size of the largest feature map that any operation made."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def peak(bands: Group, stages: Group, kind: str, rows: int) -> int:
    vae = load(kind)
    stream = ParallelDecodeStream(vae, bands, stages)
    with torch.inference_mode(), Peak() as noted:
        stream.decode(random_latents(vae, rows, frames=3))
    return noted.elements


def peaks(rendezvous: Rendezvous, rows: int) -> list[int]:
    with open_mesh(rendezvous, Degrees(ring=rendezvous.world), CPU) as mesh:
        return [peak(mesh.ring, mesh.stage, kind, rows) for kind in ("residual", "plain")]


def test_no_worker_makes_a_larger_map_than_its_bands(workers: Any) -> None:
    rows, mesh = 7, alone(CPU)
    whole = [peak(mesh.ring, mesh.stage, kind, rows) for kind in ("residual", "plain")]
    results = workers.run(3, peaks, rows, timeout=60)
    for result, own in zip(results, (3, 2, 2), strict=True):
        for found, alone_, scale in zip(result, whole, (4, 8), strict=True):
            assert found * (rows * scale + 2) <= alone_ * (own * scale + 2)


def run_ahead(rendezvous: Rendezvous) -> Tensor | None:
    """The last stage begins only when the first one has done two frames."""
    with open_mesh(rendezvous, Degrees(stages=2), CPU) as mesh, torch.inference_mode():
        vae = load("residual")
        stream = ParallelDecodeStream(vae, mesh.ring, mesh.stage)
        if stream.last:
            mesh.store.get("two frames ahead")
        pixels = stream.decode(random_latents(vae, 2, frames=2))  # in a single band
        if not stream.last:
            mesh.store.set("two frames ahead", "yes")
        stream.close()
        return pixels


def test_frames_in_flight_fill_the_stages(workers: Any) -> None:
    vae = load("residual")
    _, pixels = workers.run(2, run_ahead, timeout=60)
    with torch.inference_mode():
        whole = DecodeStream(vae).decode(random_latents(vae, 2, frames=2))
    torch.testing.assert_close(pixels, whole, **TOLERANCE)


def halos(rendezvous: Rendezvous, rows: int) -> tuple[Tensor, Tensor]:
    """This band between its neighbours' rows, and what that should be."""
    image = torch.arange(float(2 * rows * 3)).view(2, rows, 3) + 1
    with open_mesh(rendezvous, Degrees(ulysses=rendezvous.world), CPU) as mesh:
        bands = Bands.of(rows, mesh.ulysses)
        own = bands.own
        expected = F.pad(image, (0, 0, 1, 1))[:, own.start : own.stop + 2]
        if not len(own):
            return image[:0], image[:0]
        return bands.with_halo(image[:, own.start : own.stop]), expected


@pytest.mark.parametrize(("world", "rows"), [(1, 2), (2, 2), (3, 7), (4, 3)])
def test_a_band_has_its_neighbours_rows_around_it(workers: Any, world: int, rows: int) -> None:
    for found, expected in workers.run(world, halos, rows, timeout=60):
        assert torch.equal(found, expected)
