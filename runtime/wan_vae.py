"""Wan's causal VAE as streams: any number of frames goes through in bounded memory.

A stream keeps what diffusers' causal convolutions remember between calls, so a video decoded piece
by piece equals the video decoded at once. State belongs to the stream, never to the VAE module.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    patchify,
    unpatchify,
)
from torch import Tensor, nn


def _empty_cache(module: nn.Module) -> list[Tensor | str | None]:
    return [None] * sum(isinstance(part, WanCausalConv3d) for part in module.modules())


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents per channel, as (1, C, 1, 1, 1)."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=like.device, dtype=like.dtype)
    std = torch.tensor(vae.config.latents_std, device=like.device, dtype=like.dtype)
    return mean.view(shape), std.view(shape)


def from_normalised(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Latents as the transformer makes them to latents as the VAE's decoder takes them."""
    latents = latents.to(vae.dtype)
    mean, std = _statistics(vae, latents)
    return latents * std + mean


def to_pixels(vae: AutoencoderKLWan, hidden: Tensor) -> Tensor:
    """What the decoder makes, perhaps in patches, to pixels (B, 3, frames, H, W) in [-1, 1]."""
    if vae.config.patch_size is not None:
        hidden = unpatchify(hidden, patch_size=vae.config.patch_size)
    return hidden.clamp(-1.0, 1.0)


class _Stream:
    def __init__(self, vae: AutoencoderKLWan, part: nn.Module) -> None:
        self._vae = vae
        self._cache = _empty_cache(part)
        self._started = False

    def detach(self) -> None:
        """Cut the gradient between what was streamed and what comes: truncated backpropagation."""
        self._cache = [c.detach() if isinstance(c, Tensor) else c for c in self._cache]


class DecodeStream(_Stream):
    """Latents in, pixels out, in order. The first latent frame gives 1 pixel frame, others 4."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.decoder)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latent frames.

        Args:
            latents: (B, C, f, h, w), normalised as the transformer makes them.

        Returns:
            (B, 3, frames, H, W) in [-1, 1], in the VAE's dtype.
        """
        pieces = []
        for frame in from_normalised(self._vae, latents).split(1, dim=2):
            # Frame by frame here too: a convolution rounds otherwise in a batch of another size.
            hidden = self._vae.post_quant_conv(frame)
            pieces.append(
                self._vae.decoder(
                    hidden, feat_cache=self._cache, feat_idx=[0], first_chunk=not self._started
                )
            )
            self._started = True
        return to_pixels(self._vae, torch.cat(pieces, dim=2))


class EncodeStream(_Stream):
    """Pixels in, latents out, in order: the first call takes 1 + 4n frames, later ones 4n."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__(vae, vae.encoder)

    def moments(self, pixels: Tensor) -> Tensor:
        """The latent distribution's mean and log variance, not normalised: (B, 2C, f, h, w)."""
        stride = self._vae.config.scale_factor_temporal
        first = 0 if self._started else 1
        if (pixels.shape[2] - first) % stride:
            raise ValueError(
                f"the VAE encodes {'1 + ' if first else ''}a multiple of {stride} frames, "
                f"got {pixels.shape[2]}"
            )
        pixels = pixels.to(self._vae.dtype)
        if self._vae.config.patch_size is not None:
            pixels = patchify(pixels, patch_size=self._vae.config.patch_size)
        sizes = [1] * first + [stride] * ((pixels.shape[2] - first) // stride)
        pieces = [
            self._vae.quant_conv(self._vae.encoder(chunk, feat_cache=self._cache, feat_idx=[0]))
            for chunk in pixels.split(sizes, dim=2)
        ]
        self._started = True
        return torch.cat(pieces, dim=2)

    def encode(self, pixels: Tensor, normalise: bool = True) -> Tensor:
        """Encode the next frames, (B, 3, frames, H, W) in [-1, 1], to latents, (B, C, f, h, w)."""
        latents = self.moments(pixels).chunk(2, dim=1)[0]
        if not normalise:
            return latents
        mean, std = _statistics(self._vae, latents)
        return (latents - mean) / std
