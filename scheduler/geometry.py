"""Seconds, pixel frames, latent frames, blocks and tokens: every off-by-one lives here."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.scheduler.errors import UserError
from longtake.scheduler.shapes import UMT5_XXL, WAN_VAE, TextShape, VaeShape


@dataclass(frozen=True)
class ModelSpec:
    """All that the scheduler knows of a model."""

    layers: int
    heads: int
    head_dim: int
    ffn_dim: int
    latent_channels: int
    patch: int  # latent pixels on a patch's side
    rotary_rows: int  # temporal positions that the model was made for
    block_frames: int  # latent frames denoised as a unit by causal strategies
    spatial_stride: int = 8  # pixels per latent pixel
    temporal_stride: int = 4  # pixel frames per latent frame, after the first
    waves: int = 256  # sines that a noise level is told in
    text_tokens: int = 512  # that prompts are padded to
    key_heads: int | None = None  # heads of keys and values; None: as many as of queries
    gated: bool = False  # feed-forwards of three matrices, not two
    joint_text: bool = False  # text goes through the layers with the video, with no cross-attention
    text: TextShape = UMT5_XXL
    vae: VaeShape = WAN_VAE

    @property
    def width(self) -> int:
        """Channels of a token between layers."""
        return self.heads * self.head_dim

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch rows and columns of a frame of `height` x `width` pixels.

        Raises:
            UserError: the VAE or the patches can't tile that size.
        """
        unit = self.spatial_stride * self.patch
        if height < unit or width < unit or height % unit or width % unit:
            raise UserError(
                f"size {width}x{height} can't be tiled: width and height must be "
                f"positive multiples of {unit} pixels"
            )
        return height // unit, width // unit

    def latent_frames(self, pixel_frames: int) -> int:
        """The fewest latent frames that hold so many pixel frames."""
        return 1 + -(-(pixel_frames - 1) // self.temporal_stride)

    def pixel_frames(self, latent_frames: int) -> int:
        """Pixel frames decoded from the first `latent_frames` of a video: the first gives one."""
        return 0 if latent_frames == 0 else 1 + (latent_frames - 1) * self.temporal_stride

    def first_block_from(self, pixel_frame: int) -> int:
        """The first causal block that begins at this pixel frame or later."""
        block = 0
        while self.pixel_frames(block * self.block_frames) < pixel_frame:
            block += 1
        return block
