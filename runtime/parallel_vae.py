"""Wan's causal VAE decoder over several workers: in space by bands of rows, in time by stages.

In space, each worker decodes a band of rows; a convolution borrows its neighbours' border rows just
before it runs, and the attention in the middle gathers keys and values. In time, the causal memory
makes a chain of the frames, so workers take successive layers instead, each with the memory of its
own; frames in flight fill the stages. Both are exact, and any product of them is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    DupUp3D,
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanUpBlock,
)
from torch import Tensor, nn

from longtake.parallel.group import Group
from longtake.parallel.halo import Bands
from longtake.parallel.link import Handle, Link
from longtake.runtime.wan_vae import from_normalised, to_pixels
from longtake.scheduler.decode_degrees import cut


@dataclass(frozen=True)
class Size:
    """A feature map's channels, and its frames and side per latent frame and latent row."""

    channels: int
    frames: int
    scale: int

    def shape(self, batch: int, rows: int, columns: int, first: bool) -> torch.Size:
        """Of what a latent frame of so many rows and columns gives; the first one is one frame."""
        frames = 1 if first else self.frames
        sides = (rows * self.scale, columns * self.scale)
        return torch.Size((batch, self.channels, frames, *sides))


@dataclass(frozen=True)
class Layer:
    """A step of the decoder: what no cut between stages divides.

    Attributes:
        module: one of diffusers' modules.
        out: the feature map after it, in the steady state.
        kept: the map that is kept, from here on, for the shortcut at a residual block's end.
        opens: its input is what is kept.
        shortcut: adds what was kept.
        cost: multiply-adds per latent pixel, in the steady state.
    """

    module: nn.Module
    out: Size
    kept: Size | None
    opens: bool
    shortcut: DupUp3D | None
    cost: int


@dataclass
class Flow:
    """What goes from layer to layer: (B, C, frames, rows, columns) each."""

    hidden: Tensor
    kept: Tensor | None = None


def pack(flow: Flow) -> Tensor:
    """A flow as one message."""
    if flow.kept is None:
        return flow.hidden
    return torch.cat([flow.hidden.flatten(), flow.kept.flatten()])


def unpack(message: Tensor, shapes: Sequence[torch.Size]) -> Flow:
    """The inverse of `pack`."""
    parts = message.split([shape.numel() for shape in shapes])
    return Flow(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def decoder_layers(vae: AutoencoderKLWan) -> list[Layer]:
    """The decoder as a list of layers, in order."""
    decoder = vae.decoder
    modules: list[tuple[nn.Module, bool, DupUp3D | None]] = [
        (part, False, None)
        for part in (vae.post_quant_conv, decoder.conv_in, decoder.mid_block.resnets[0])
    ]
    middle = zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True)
    modules += [(part, False, None) for pair in middle for part in pair if part is not None]
    for block in decoder.up_blocks:
        if isinstance(block, WanUpBlock):
            upsamplers, shortcut = block.upsamplers or [], None
        else:
            upsamplers, shortcut = [block.upsampler], block.avg_shortcut
        parts = [*block.resnets, *(part for part in upsamplers if part is not None)]
        for part in parts:
            opens, closes = part is parts[0], part is parts[-1]
            modules.append((part, opens and shortcut is not None, shortcut if closes else None))
    modules.append((nn.Sequential(decoder.norm_out, decoder.nonlinearity), False, None))
    modules.append((decoder.conv_out, False, None))

    layers: list[Layer] = []
    size, kept = Size(vae.config.z_dim, 1, 1), None
    for module, opens, shortcut in modules:
        kept = size if opens else kept
        kept = None if shortcut is not None else kept
        cost, size = _measure(module, size)
        layers.append(Layer(module, size, kept, opens, shortcut, cost))
    return layers


def _measure(module: nn.Module, size: Size) -> tuple[int, Size]:
    """Multiply-adds per latent pixel, and the size of what comes out."""
    convolutions = (nn.Conv2d, nn.Conv3d)
    weights = [part.weight.numel() for part in module.modules() if isinstance(part, convolutions)]
    cost = sum(weights) * size.frames * size.scale**2
    if isinstance(module, WanCausalConv3d):
        return cost, replace(size, channels=module.out_channels)
    if isinstance(module, WanResidualBlock):
        return cost, replace(size, channels=module.out_dim)
    if not isinstance(module, WanResample):
        return cost, size
    doubles = module.mode == "upsample3d"
    after = module.resample[1]
    out = Size(after.out_channels, size.frames * (1 + doubles), size.scale * 2)
    cost -= after.weight.numel() * size.frames * size.scale**2
    return cost + after.weight.numel() * out.frames * out.scale**2, out


class Memory:
    """Runs layers on a band of rows and remembers the frames that causal convolutions look at."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def run(self, layer: Layer, flow: Flow, bands: Bands, first: bool) -> Flow:
        """Call a layer; `first` is the stream's first latent frame."""
        kept = flow.hidden if layer.opens else flow.kept
        hidden = self._call(layer.module, flow.hidden, bands, first)
        if layer.shortcut is None:
            return Flow(hidden, kept)
        return Flow(hidden + layer.shortcut(kept, first_chunk=first))

    def _call(self, module: nn.Module, hidden: Tensor, bands: Bands, first: bool) -> Tensor:
        if isinstance(module, WanCausalConv3d):
            return self._convolve(module, hidden, bands)
        if isinstance(module, WanResidualBlock):
            return self._residual(module, hidden, bands)
        if isinstance(module, WanAttentionBlock):
            return attend(module, hidden, bands)
        if isinstance(module, WanResample):
            return self._upsample(module, hidden, bands, first)
        return module(hidden)  # of each pixel alone

    def _convolve(self, conv: WanCausalConv3d, hidden: Tensor, bands: Bands) -> Tensor:
        """A causal convolution of stride 1 that keeps the size."""
        time, height, width = conv.kernel_size
        if height > 1:
            hidden = bands.with_halo(hidden)
        if time > 1:
            hidden = self._after_past(conv, hidden, time - 1)
        return F.conv3d(hidden, conv.weight, conv.bias, padding=(0, 0, width // 2))

    def _after_past(self, conv: nn.Module, hidden: Tensor, frames: int) -> Tensor:
        """The frames behind those that came before them; before the first all is zero."""
        past = self._past.get(conv)
        if past is None:
            past = torch.zeros_like(hidden[:, :, :1]).repeat(1, 1, frames, 1, 1)
        hidden = torch.cat([past, hidden], dim=2)
        self._past[conv] = hidden[:, :, -frames:].clone()
        return hidden

    def _residual(self, block: WanResidualBlock, hidden: Tensor, bands: Bands) -> Tensor:
        inner = block.nonlinearity(block.norm1(hidden))
        inner = self._convolve(block.conv1, inner, bands)
        inner = block.dropout(block.nonlinearity(block.norm2(inner)))
        return self._convolve(block.conv2, inner, bands) + block.conv_shortcut(hidden)

    def _upsample(self, module: WanResample, hidden: Tensor, bands: Bands, first: bool) -> Tensor:
        if module.mode == "upsample3d" and not first:
            # The first latent frame stays one frame, and is zero in the memory of this convolution.
            pairs = self._convolve(module.time_conv, hidden, bands)
            hidden = pairs.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        frames = hidden.shape[2]
        upsample, conv = module.resample
        images = bands.with_halo(upsample(hidden.transpose(1, 2).flatten(0, 1)))
        images = F.conv2d(images, conv.weight, conv.bias, padding=(0, 1))
        return images.unflatten(0, (-1, frames)).transpose(1, 2)


class ParallelDecodeStream:
    """Latents in, pixels out, in order, as `DecodeStream` does it: by a grid of bands x stages.

    All workers of the grid call the same methods in the same order. A call returns as soon as this
    worker's part is done, so the first stages work on later frames than the last one.
    """

    def __init__(self, vae: AutoencoderKLWan, bands: Group, stages: Group) -> None:
        """`bands` are the workers of one stage, in order of their rows; `stages` the workers of one
        band, in order of their layers. Nothing else may use these groups during a call.

        Raises:
            UserError: the decoder has fewer layers than there are stages.
        """
        self._vae, self._group, self._stages = vae, bands, stages
        layers = decoder_layers(vae)
        own = cut([layer.cost for layer in layers], stages.size)[stages.index]
        self._before = layers[own.start - 1] if own.start else None
        self._layers = layers[own.start : own.stop]
        self._scale = layers[-1].out.scale * (vae.config.patch_size or 1)
        self._memory = Memory()
        self._link = Link(stages)
        self._frames = 0  # decoded so far

    @property
    def last(self) -> bool:
        """Whether this worker is of the last stage, where the pixels come out."""
        return self._stages.index == self._stages.size - 1

    def decode(self, latents: Tensor) -> Tensor | None:
        """Decode the next latent frames.

        Args:
            latents: (B, C, f, h, w), normalised as the transformer makes them. Their values are
                read by the first stage alone, their shape by all.

        Returns:
            (B, 3, frames, H, W) in [-1, 1], in the VAE's dtype, of this worker's band; on the
            workers of the last stage alone.
        """
        bands = Bands.of(latents.shape[3], self._group)
        if not len(bands.own):
            return self._decode_nothing(latents, bands)
        pieces = []
        for flow in self._arriving(latents, bands):
            for layer in self._layers:
                flow = self._memory.run(layer, flow, bands, first=self._frames == 0)
            self._frames += 1
            if self.last:
                pieces.append(flow.hidden)
            else:
                self._link.send(pack(flow), self._stages.index + 1)
        return to_pixels(self._vae, torch.cat(pieces, dim=2)) if self.last else None

    def collect(self, band: Tensor, rows: int) -> Tensor | None:
        """Join the bands of the last stage's workers, pixels (..., H, W) of any dtype, made of
        latents of so many rows; on the first of these workers alone."""
        return Bands.of(rows, self._group).collect(band, per_row=self._scale)

    def _decode_nothing(self, latents: Tensor, bands: Bands) -> Tensor | None:
        """With more workers than rows, the last ones only take part where all gather."""
        batch, _, frames, _, columns = latents.shape
        for _ in range(frames):
            for layer in self._layers:
                if isinstance(layer.module, WanAttentionBlock):
                    nothing = latents.new_empty(batch, 0, 2 * layer.out.channels)
                    bands.gather(nothing.to(self._vae.dtype), dim=1, per_row=columns)
        size = self._layers[-1].out
        shapes = [size.shape(batch, 0, columns, first=self._frames + i == 0) for i in range(frames)]
        self._frames += frames
        if not self.last:
            return None
        pieces = [latents.new_empty(shape, dtype=self._vae.dtype) for shape in shapes]
        return to_pixels(self._vae, torch.cat(pieces, dim=2))

    def close(self) -> None:
        """Wait until the next stage has all that it was sent; errors as in `Link.send`."""
        self._link.flush()

    def _arriving(self, latents: Tensor, bands: Bands) -> Iterator[Flow]:
        """What goes into the first of these layers, by latent frames; the next one is under way
        while one is worked on."""
        if self._before is None:
            own = latents[..., bands.own.start : bands.own.stop, :]
            yield from map(Flow, from_normalised(self._vae, own).split(1, dim=2))
            return
        batch, _, frames, _, columns = latents.shape
        start = self._frames
        posted: deque[tuple[Handle, list[torch.Size]]] = deque()
        for frame in range(frames + 1):
            if frame < frames:
                shapes = [
                    size.shape(batch, len(bands.own), columns, first=start + frame == 0)
                    for size in (self._before.out, self._before.kept)
                    if size is not None
                ]
                total = sum(shape.numel() for shape in shapes)
                handle = self._link.post((total,), self._vae.dtype, self._stages.index - 1)
                posted.append((handle, shapes))
            if frame:
                handle, shapes = posted.popleft()
                yield unpack(handle.wait(), shapes)


def attend(block: WanAttentionBlock, hidden: Tensor, bands: Bands) -> Tensor:
    """Attention among the pixels of each frame, with the keys and values of all bands."""
    channels, frames, _, columns = hidden.shape[1:]
    qkv = block.to_qkv(block.norm(hidden.transpose(1, 2).flatten(0, 1))).flatten(2).mT
    query, keys_values = qkv.split([channels, 2 * channels], dim=-1)
    key, value = bands.gather(keys_values, dim=1, per_row=columns).chunk(2, dim=-1)
    out = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
    out = block.proj(out.mT.unflatten(2, (-1, columns)))
    return hidden + out.unflatten(0, (-1, frames)).transpose(1, 2)
