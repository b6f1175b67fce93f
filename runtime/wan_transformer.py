"""Wan's transformer as the runtime sees it: embed, a range of layers, head.

The modules and weights are those of diffusers; only the wiring is ours, because here the noise
level is per latent frame, any run of layers can be evaluated alone, and self-attention is passed
in. The adapter knows nothing of caches, windows and ranks: they stand behind `Attention.attend`.

Shapes: B batch, f latent frames, n tokens of a frame, S = f * n tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from longtake.kernels.attention import attention
from longtake.scheduler.errors import UserError


class Attention(Protocol):
    """Self-attention of one launch, whatever stands behind it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take unrotated q, k and v, each (B, S, H, head_dim); return the mix, same shape."""
        ...


@dataclass(frozen=True)
class Hidden:
    """What travels from layer to layer, and from stage to stage."""

    tokens: Tensor  # (B, S, D), or the same share of every frame's tokens
    modulation: Tensor  # (B, f, 6, D) float32: shift, scale, gate of attention, then feed-forward
    time: Tensor  # (B, f, D)
    grid: tuple[int, int, int]  # latent frames, patch rows, patch columns


class Text(Protocol):
    """Cross-attention of one launch."""

    def attend(self, index: int, q: Tensor) -> Tensor:
        """Queries of a layer, (B, S, H, head_dim), to what they see of the text, same shape."""
        ...


class TextKeys:
    """Keys and values of one prompt for every cross-attention layer, computed once each."""

    def __init__(self, module: WanTransformer3DModel, embeddings: Tensor) -> None:
        self._module = module
        self._text = module.condition_embedder.text_embedder(embeddings)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Key and value of a layer, each (B, text tokens, H, head_dim)."""
        if index not in self._layers:
            attn = self._module.blocks[index].attn2
            key = attn.norm_k(attn.to_k(self._text)).unflatten(2, (attn.heads, -1))
            value = attn.to_v(self._text).unflatten(2, (attn.heads, -1))
            self._layers[index] = (key, value)
        return self._layers[index]

    def attend(self, index: int, q: Tensor) -> Tensor:
        """See `Text`."""
        return attention(q, *self.layer(index))


@dataclass(frozen=True)
class BranchKeys:
    """One row of a batch of prompts."""

    keys: TextKeys
    row: int

    def attend(self, index: int, q: Tensor) -> Tensor:
        """See `Text`."""
        key, value = self.keys.layer(index)
        return attention(q, key[self.row : self.row + 1], value[self.row : self.row + 1])


class WanTransformer:
    """Adapter over a loaded `WanTransformer3DModel`."""

    def __init__(self, module: WanTransformer3DModel) -> None:
        if module.config.image_dim is not None or module.config.added_kv_proj_dim is not None:
            raise UserError(
                "this is an image-to-video Wan; only text-to-video transformers are supported"
            )
        if next(iter(module.config.patch_size)) != 1:
            raise UserError("a Wan transformer must have a temporal patch of 1")
        self.module = module

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.module.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations; norms and time embedding stay in float32."""
        return cast(torch.dtype, self.module.patch_embedding.weight.dtype)

    def text_keys(self, embeddings: Tensor) -> TextKeys:
        """Prepare a prompt: (B, text tokens, text width)."""
        return TextKeys(self.module, embeddings.to(self.device, self.dtype))

    def embed(self, latents: Tensor, timesteps: Tensor) -> Hidden:
        """Patchify latents (B, C, f, h, w) at `timesteps` (B, f), or (B, 1) if all frames share
        one."""
        tokens = self.module.patch_embedding(latents.to(self.dtype))
        _, _, frames, rows, columns = tokens.shape
        tokens = tokens.flatten(2).transpose(1, 2).contiguous()
        return self.resume(tokens, timesteps, (frames, rows, columns))

    def resume(self, tokens: Tensor, timesteps: Tensor, grid: tuple[int, int, int]) -> Hidden:
        """What `layers` needs to go on with tokens (B, S, D), a share of each frame of `grid`."""
        embedder = self.module.condition_embedder
        batch, levels = timesteps.shape
        waves = embedder.timesteps_proj(timesteps.flatten().float()).unflatten(0, (batch, levels))
        time_dtype = embedder.time_embedder.linear_1.weight.dtype
        time = embedder.time_embedder(waves.to(time_dtype)).to(self.dtype)
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(2, (6, -1)).float()
        return Hidden(tokens, modulation, time, grid)

    def layers(
        self, hidden: Hidden, first: int, last: int, attention_: Attention, text: Text
    ) -> Hidden:
        """Evaluate layers first .. last - 1."""
        return self.layers_together([hidden], first, last, attention_, [text])[0]

    def layers_together(
        self,
        runs: Sequence[Hidden],
        first: int,
        last: int,
        attention_: Attention,
        texts: Sequence[Text],
    ) -> list[Hidden]:
        """As `layers`, for runs of tokens that meet in self-attention and nowhere else.

        So what becomes of a run does not depend on what is evaluated beside it, to the bit, unless
        it attends to it.
        """
        runs = list(runs)
        for index in range(first, last):
            qkv = [self._project(index, run) for run in runs]
            q, k, v = (_join(x) for x in zip(*qkv, strict=True))
            mixed = attention_.attend(index, q, k, v).flatten(2)
            each = mixed.split([run.tokens.shape[1] for run in runs], dim=1)
            runs = [
                replace(run, tokens=self._layer(index, run, part, text))
                for run, part, text in zip(runs, each, texts, strict=True)
            ]
        return runs

    def _table(self, index: int, hidden: Hidden) -> tuple[Tensor, ...]:
        """Shift, scale, gate of attention, then of the feed-forward, (B, f, 1, D) each."""
        table = self.module.blocks[index].scale_shift_table.unsqueeze(1) + hidden.modulation
        return table.unsqueeze(3).unbind(2)

    def _project(self, index: int, hidden: Hidden) -> tuple[Tensor, Tensor, Tensor]:
        """Unrotated q, k and v of self-attention, (B, S, H, head_dim) each."""
        block, frames = self.module.blocks[index], hidden.modulation.shape[1]
        shift, scale, *_ = self._table(index, hidden)
        normed = _modulate(block.norm1, hidden.tokens, shift, scale, frames)
        attn = block.attn1
        q = attn.norm_q(attn.to_q(normed)).unflatten(2, (attn.heads, -1))
        k = attn.norm_k(attn.to_k(normed)).unflatten(2, (attn.heads, -1))
        return q, k, attn.to_v(normed).unflatten(2, (attn.heads, -1))

    def _layer(self, index: int, hidden: Hidden, mixed: Tensor, text: Text) -> Tensor:
        """The tokens after a layer, given what self-attention mixed, (B, S, D)."""
        block, frames = self.module.blocks[index], hidden.modulation.shape[1]
        _, _, gate, ff_shift, ff_scale, ff_gate = self._table(index, hidden)
        tokens = _gated(hidden.tokens, block.attn1.to_out[0](mixed), gate, frames)

        attn = block.attn2
        q = attn.to_q(block.norm2(tokens.float()).type_as(tokens))
        q = attn.norm_q(q).unflatten(2, (attn.heads, -1))
        tokens = tokens + attn.to_out[0](text.attend(index, q).flatten(2))

        normed = _modulate(block.norm3, tokens, ff_shift, ff_scale, frames)
        return _gated(tokens, block.ffn(normed), ff_gate, frames)

    def head(self, hidden: Hidden) -> Tensor:
        """Project to flow, (B, C, f, h, w), in the adapter's dtype."""
        return self.assemble(self.project(hidden), hidden.grid)

    def project(self, hidden: Hidden) -> Tensor:
        """Flow in patches, (B, S, patch pixels * C), of whatever share of the tokens there is."""
        table = self.module.scale_shift_table.unsqueeze(1) + hidden.time.unsqueeze(2)
        shift, scale = table.unsqueeze(3).unbind(2)  # (B, f, 1, D) each
        normed = _modulate(self.module.norm_out, hidden.tokens, shift, scale, hidden.time.shape[1])
        patches: Tensor = self.module.proj_out(normed)
        return patches

    def assemble(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Put the patches of all tokens together to (B, C, f, h, w)."""
        _, rows, columns = grid
        _, p, q = self.module.config.patch_size
        patches = patches.unflatten(2, (p, q, -1)).unflatten(1, grid)
        flow = patches.permute(0, 6, 1, 2, 4, 3, 5)  # (B, C, f, rows, p, columns, q)
        return flow.reshape(*flow.shape[:3], rows * p, columns * q)


def _modulate(norm: nn.Module, tokens: Tensor, shift: Tensor, scale: Tensor, frames: int) -> Tensor:
    normed = norm(tokens.float()).unflatten(1, (frames, tokens.shape[1] // frames))
    return torch.addcmul(shift, normed, 1 + scale).flatten(1, 2).type_as(tokens)


def _gated(tokens: Tensor, update: Tensor, gate: Tensor, frames: int) -> Tensor:
    each = (frames, tokens.shape[1] // frames)  # a worker's share of a frame may be empty
    update, base = (x.float().unflatten(1, each) for x in (update, tokens))
    return torch.addcmul(base, update, gate).flatten(1, 2).type_as(tokens)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
