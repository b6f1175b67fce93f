"""What a machine is measured with: a clock, and forwards and decodes of random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from longtake.kernels.attention import attention
from longtake.kernels.rotary import rotary_table, rotate
from longtake.runtime.decoding import LoneDecoder
from longtake.runtime.lanes import BackgroundLane
from longtake.runtime.video import Mp4Writer
from longtake.runtime.wan_transformer import WanTransformer
from longtake.scheduler import flops
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec

FRAMES = ((1, 0), (3, 0), (3, 9), (9, 3), (6, 18), (24, 0))  # of launches, and kept ones they see
MOST_WEIGHTS = 1 << 30  # bytes of the random transformer, but for its first two layers
MOST_FLOPS = {"cpu": 1e11, "cuda": 1e15}  # of a launch that is timed
REPEATS = 5


def nobody_else() -> None:
    """Where one worker measures, there is nobody to wait for."""


@dataclass(frozen=True)
class Scene:
    """What is measured with: a model's shape, a size in pixels, where, and in which dtype.

    Attributes:
        seconds: for each thing that is timed, about.
        meet: called before each, where other workers do the same at the same time.
    """

    spec: ModelSpec
    height: int
    width: int
    device: torch.device
    dtype: torch.dtype
    seconds: float = 0.4
    meet: Callable[[], None] = nobody_else

    @property
    def tokens(self) -> int:
        """Of a latent frame."""
        rows, columns = self.spec.grid(self.height, self.width)
        return rows * columns

    @property
    def runs_ahead(self) -> bool:
        """Whether the host launches kernels while the device computes."""
        return self.device.type == "cuda"

    def launches(self) -> list[tuple[int, int]]:
        """Frames and kept frames of the forwards that are timed, those that are not too large."""
        most = MOST_FLOPS[self.device.type]
        found = [
            (frames, kept)
            for frames, kept in FRAMES
            if flops.forward_flops(self.spec, frames * self.tokens, (frames + kept) * self.tokens)
            <= most
        ]
        return found or [FRAMES[0]]

    def time(self, act: Callable[[], object]) -> float:
        """Seconds that something takes, the median of several times after one in vain: runs are
        disturbed as often."""
        took: list[float] = []
        self._time_once(act)
        self.meet()
        while len(took) < REPEATS or (sum(took) < self.seconds and len(took) < 20 * REPEATS):
            took.append(self._time_once(act))
        return median(took)

    def _time_once(self, act: Callable[[], object]) -> float:
        start = perf_counter()
        act()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter() - start

    def random(self, *shape: int) -> Tensor:
        """Numbers to compute with."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def smallest(self) -> Scene:
        """With a picture of one token."""
        side = self.spec.spatial_stride * self.spec.patch
        return replace(self, height=side, width=side)


def random_transformer(scene: Scene) -> WanTransformer:
    """A Wan of the scene's shape, with as many layers as fit in 1 GiB, but two at least."""
    spec = scene.spec
    layer = flops.layer_weights(spec) * scene.dtype.itemsize
    with torch.device(scene.device):
        module = WanTransformer3DModel(
            patch_size=(1, spec.patch, spec.patch),
            num_attention_heads=spec.heads,
            attention_head_dim=spec.head_dim,
            in_channels=spec.latent_channels,
            out_channels=spec.latent_channels,
            text_dim=spec.text.width,
            freq_dim=spec.waves,
            ffn_dim=spec.ffn_dim,
            num_layers=min(spec.layers, max(2, MOST_WEIGHTS // layer)),
            cross_attn_norm=True,
        )
    for name, weight in module.named_parameters():
        if not any(kept in name for kept in WanTransformer3DModel._keep_in_fp32_modules):
            weight.data = weight.data.to(scene.dtype)
    return WanTransformer(module.requires_grad_(False).eval())


def random_vae(scene: Scene) -> AutoencoderKLWan:
    """A Wan VAE of the scene's shape, in float32.

    Raises:
        UserError: it is another make.
    """
    shape = scene.spec.vae
    if shape.flops_per_pixel is not None:
        raise UserError("only the VAEs of Wan can be measured; take another --model")
    patched = 3 * shape.patch**2
    with torch.device(scene.device):
        vae = AutoencoderKLWan(
            base_dim=shape.width,
            decoder_base_dim=shape.decoder_width,
            z_dim=shape.channels,
            dim_mult=list(shape.multipliers),
            num_res_blocks=shape.blocks,
            attn_scales=[],
            temperal_downsample=list(reversed(shape.doubles_time)),
            latents_mean=[0.0] * shape.channels,
            latents_std=[1.0] * shape.channels,
            is_residual=shape.residual,
            in_channels=patched,
            out_channels=patched,
            patch_size=shape.patch if shape.patch > 1 else None,
            scale_factor_temporal=scene.spec.temporal_stride,
            scale_factor_spatial=scene.spec.spatial_stride,
        )
    return vae.requires_grad_(False).eval()


@dataclass(frozen=True)
class _Seeing:
    """Self-attention over a launch's own tokens and some that are kept."""

    kept: tuple[Tensor, Tensor]
    table: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `wan_transformer.Attention`."""
        k, v = (torch.cat(both, dim=1) for both in zip(self.kept, (k, v), strict=True))
        own = self.table[-q.shape[1] :]
        return attention(rotate(q, own), rotate(k, self.table), v)


def forward(
    scene: Scene, transformer: WanTransformer, frames: int, kept: int
) -> Callable[[], Tensor]:
    """One forward over so many latent frames, which see as many kept ones besides."""
    spec = scene.spec
    rows, columns = spec.grid(scene.height, scene.width)
    latents = scene.random(1, spec.latent_channels, frames, rows * spec.patch, columns * spec.patch)
    levels = torch.full((1, frames), 500.0, device=scene.device)
    text = transformer.text_keys(scene.random(1, spec.text_tokens, spec.text.width))
    old = scene.random(1, kept * scene.tokens, spec.heads, spec.head_dim)
    table = rotary_table(range(frames + kept), rows, columns, spec.head_dim, scene.device)
    seeing = _Seeing((old, old), table)

    @torch.inference_mode()
    def act() -> Tensor:
        hidden = transformer.embed(latents, levels)
        last = len(transformer.module.blocks)
        return transformer.head(transformer.layers(hidden, 0, last, seeing, text))

    return act


def decoding(scene: Scene, vae: AutoencoderKLWan, frames: int) -> Callable[[], np.ndarray]:
    """Decode so many latent frames that are not a video's first, to images."""
    spec = scene.spec
    rows, columns = (side * spec.patch for side in spec.grid(scene.height, scene.width))
    latents = torch.randn(1, spec.latent_channels, frames, rows, columns, device=scene.device)
    decoder = LoneDecoder(vae)

    @torch.inference_mode()
    def act() -> np.ndarray:
        return decoder.decode(latents)

    act()
    return act


@contextmanager
def writing(scene: Scene, decode: Callable[[], np.ndarray]) -> Iterator[Callable[[], None]]:
    """Decode, and have the images written to a video beside, as runs do."""
    with TemporaryDirectory() as folder:
        path, size = Path(folder) / "video.mp4", (scene.height, scene.width)
        video = Mp4Writer(path, fps=16, height=size[0], width=size[1])
        try:
            with closing(BackgroundLane("write", video.write)) as lane:
                yield lambda: lane.put(decode())
        finally:
            video.abort()  # nobody wants to see it
