"""Train tinyworld's transformer for every strategy at once.

Three kinds of batches are mixed, all with a noise level for each block:

- causal: noisy blocks look at clean copies of the blocks before them (teacher forcing), at times
  with the clip's first block in front as a sink; the copies are at times noisy, or what the model
  itself makes of them, so that in a rollout it mends its own mistakes instead of keeping them;
- joint: all blocks at one level, every token sees every other;
- rolling: blocks at independent or rising levels, seen both ways or block-causally.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from tinyworld.folder import TEXT_TOKENS, make_text_encoder, make_tokenizer, make_transformer
from tinyworld.latents import BLOCK, Clips
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from longtake.kernels.rotary import rotary_table, rotate
from longtake.runtime.wan_transformer import WanTransformer

TOKENS = 3456  # tokens in a batch, about
SHIFT = 3.0
DROP_TEXT = 0.1


@dataclass(frozen=True)
class MaskedAttention:
    """`table`: rotations of the sequence; `bias`: (S, S), -inf where a query may not look.

    Plain matrix products: their gradients cost a processor half of what those of the fused kernels
    do at this size.
    """

    table: Tensor
    bias: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See `wan_transformer.Attention`."""
        heads = q.shape[2]
        q, k = rotate(q, self.table), rotate(k, self.table)
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        scores = torch.baddbmm(
            self.bias.to(q.dtype), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5
        )
        return (scores.softmax(dim=-1) @ v).unflatten(0, (-1, heads)).transpose(1, 2)


@dataclass
class Batch:
    """Clean latents (B, C, F, h, w), levels sigma (B, F), and which frames carry loss (B, F)."""

    clean: Tensor
    sigma: Tensor
    told: Tensor  # the level the model is told; less than sigma where the context is corrupted
    weight: Tensor
    captions: list[str]
    positions: list[int]
    mask: Tensor  # (F, F), True where a frame may look
    context: int = 0  # frames in front that are copies of later ones, to look at only


def sigmas(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    """Noise levels in (0, 1), most of them shifted towards noise as at inference.

    The others, a third, are even: the outline of the shape is decided at low levels.
    """
    u = torch.from_numpy(rng.uniform(0.001, 1.0, shape)).float()
    even = torch.from_numpy(rng.random((shape[0], 1)) < 1 / 3)
    return torch.where(even, u, SHIFT * u / (1 + (SHIFT - 1) * u))


def pick(
    clips: Clips, rng: np.random.Generator, blocks: int, sink: bool
) -> tuple[Tensor, Tensor, str]:
    """A window of a clip: latents (C, F, h, w), loss weight (F,), caption.

    With `sink`, the first block is the clip's first, and the others follow from somewhere later.
    A window across a switch gets the new caption, and loss only from the switch on.
    """
    index = int(rng.integers(len(clips.latents)))
    latents, (before, after, switch) = clips.latents[index], clips.scenes[index]
    total = latents.shape[1] // BLOCK
    low = 0 if rng.random() < 0.35 else 1
    start = 0 if low == 0 else int(rng.integers(1, total - blocks + 1))
    if switch and rng.random() < 0.6:  # have the switch inside, most of the time
        start = int(np.clip(switch - rng.integers(1, blocks), 0, total - blocks))
    chosen = list(range(start, start + blocks))
    weight = torch.full((blocks,), clips.weights[index])
    if sink and start > 1:
        chosen[0] = 0
        weight[1] = 0
    caption = before.caption
    if switch and chosen[-1] >= switch:
        caption = after.caption
        weight[[b < switch for b in chosen]] = 0
    frames = [b * BLOCK + i for b in chosen for i in range(BLOCK)]
    return latents[:, frames].float(), weight.repeat_interleave(BLOCK), caption


def draw_batch(clips: Clips, rng: np.random.Generator, longest: int) -> Batch:
    """A batch of one of the three kinds; `longest` bounds the blocks of a causal window."""
    kind = rng.choice(["causal", "joint", "rolling"], p=[0.65, 0.15, 0.20])
    blocks = int(rng.integers(2, longest + 1)) if kind == "causal" else int(rng.integers(3, 8))
    copies = 2 * blocks - 1 if kind == "causal" else blocks
    size = max(2, round(TOKENS / (copies * BLOCK * 16)))
    sink = kind == "causal" and blocks > 2 and rng.random() < 0.5
    picked = [pick(clips, rng, blocks, sink) for _ in range(size)]
    clean = torch.stack([latents for latents, _, _ in picked])
    weight = torch.stack([w for _, w, _ in picked])
    captions = ["" if rng.random() < DROP_TEXT else caption for *_, caption in picked]
    frames = blocks * BLOCK
    positions = list(range(frames))
    gap = int(rng.integers(0, 300)) if sink and rng.random() < 0.3 else 0
    positions = [p + gap if p >= BLOCK else p for p in positions]
    block_of = torch.arange(frames) // BLOCK
    everything = torch.ones(frames, frames, dtype=torch.bool)
    if kind == "causal":
        return _teacher(rng, clean, weight, captions, positions, block_of)
    if kind == "joint":
        sigma = sigmas(rng, (size, 1)).expand(size, frames)
        return Batch(clean, sigma, sigma, weight, captions, positions, everything)
    levels = sigmas(rng, (size, blocks))
    if rng.random() < 0.5:
        levels = levels.sort(dim=1).values
    if rng.random() < 0.5:
        levels[:, : int(rng.integers(1, blocks))] = 0
    sigma = levels.repeat_interleave(BLOCK, dim=1)
    mask = block_of[:, None] >= block_of[None, :] if rng.random() < 0.5 else everything
    return Batch(clean, sigma, sigma, weight * (sigma > 0), captions, positions, mask)


def _teacher(
    rng: np.random.Generator,
    clean: Tensor,
    weight: Tensor,
    captions: list[str],
    positions: list[int],
    block_of: Tensor,
) -> Batch:
    size, frames = weight.shape
    context = frames - BLOCK
    sigma = sigmas(rng, (size, frames // BLOCK)).repeat_interleave(BLOCK, dim=1)
    corrupt = torch.from_numpy(rng.uniform(0, 0.4, (size, 1)) * (rng.random((size, 1)) < 0.6))
    corrupt = corrupt.float().expand(size, context)
    c, n = block_of[:context], block_of
    mask = torch.cat(
        [
            torch.cat(
                [c[:, None] >= c[None, :], torch.zeros(context, frames, dtype=torch.bool)], 1
            ),
            torch.cat([n[:, None] > c[None, :], n[:, None] == n[None, :]], 1),
        ]
    )
    return Batch(
        clean=torch.cat([clean[:, :, :context], clean], dim=2),
        sigma=torch.cat([corrupt, sigma], dim=1),
        told=torch.cat([torch.zeros(size, context), sigma], dim=1),
        weight=torch.cat([torch.zeros(size, context), weight], dim=1),
        captions=captions,
        positions=positions[:context] + positions,
        mask=mask,
        context=context,
    )


@torch.no_grad()
def live_context(
    adapter: WanTransformer,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Batch:
    """Let most clips of a causal batch look at what the model makes of their past.

    The copies are noised, half or more, and denoised in one step; what the clip really shows stays
    the aim. After Resampling Forcing (arXiv 2512.15702).
    """
    size, frames = batch.sigma.shape
    blocks = (frames - batch.context) // BLOCK
    sigma = batch.sigma.clone()
    levels = torch.from_numpy(rng.uniform(0.2, 0.85, (size, blocks))).float()
    sigma[:, batch.context :] = levels.repeat_interleave(BLOCK, dim=1)
    first = replace(batch, sigma=sigma, told=sigma * (batch.told > 0))
    noisy, _, flow = predict(adapter, text_encoder, tokenizer, first, generator)
    made = noisy - sigma[:, None, :, None, None].to(noisy.device) * flow
    made = made[:, :, batch.context : 2 * batch.context].cpu()
    mine = torch.from_numpy(rng.random((size, 1, 1, 1, 1)) < 0.7)
    clean = batch.clean.clone()
    clean[:, :, : batch.context] = torch.where(mine, made, clean[:, :, : batch.context])
    sigma = batch.sigma.clone()
    sigma[:, : batch.context] *= ~mine[:, :, 0, 0, 0]  # one kind of mistake at a time
    return replace(batch, clean=clean, sigma=sigma)


def loss_of(
    adapter: WanTransformer,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the flow, over frames with weight."""
    _, aim, flow = predict(adapter, text_encoder, tokenizer, batch, generator)
    error = (flow - aim).square().mean(dim=(1, 3, 4))
    weight = batch.weight.to(error.device)
    return (error * weight).sum() / weight.sum().clamp(min=1)


def predict(
    adapter: WanTransformer,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, the true flow and the model's, (B, C, F, h, w) each."""
    config, device = adapter.module.config, adapter.device
    clean, sigma = batch.clean.to(device), batch.sigma.to(device)
    noise = torch.randn(batch.clean.shape, generator=generator).to(device)
    level = sigma[:, None, :, None, None]
    noisy = (1 - level) * clean + level * noise
    tokens = tokenizer(
        batch.captions, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt"
    ).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mask = tokens.attention_mask
        text = text_encoder(tokens.input_ids, mask).last_hidden_state * mask.unsqueeze(-1)
        side = clean.shape[-1] // config.patch_size[1]
        table = rotary_table(batch.positions, side, side, config.attention_head_dim, device)
        seen = batch.mask.repeat_interleave(side**2, 0).repeat_interleave(side**2, 1).to(device)
        bias = torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf)
        hidden = adapter.embed(noisy, batch.told.to(device) * 1000)
        hidden = adapter.layers(
            hidden, 0, config.num_layers, MaskedAttention(table, bias), adapter.text_keys(text)
        )
        flow = adapter.head(hidden)
    return noisy, noise - clean, flow.float()


class Trainer:
    """Everything that a checkpoint holds."""

    def __init__(
        self,
        folder: Path,
        seed: int = 0,
        start: Path | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer = make_tokenizer()
        if start is None:
            transformer = make_transformer()
            text_encoder = make_text_encoder(len(self.tokenizer))
        else:
            transformer = WanTransformer3DModel.from_pretrained(start / "transformer")
            text_encoder = UMT5EncoderModel.from_pretrained(start / "text_encoder")
        parts = {"transformer": transformer, "text_encoder": text_encoder}
        self.model = nn.ModuleDict(parts).float().to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step, self.spent, self.seed = 0, 0.0, seed
        self._path = folder / "transformer_state.pt"
        if self._path.exists():
            state = torch.load(self._path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]

    def save(self, spent: float) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": spent,
        }
        torch.save(state, self._path.with_suffix(".tmp"))
        self._path.with_suffix(".tmp").replace(self._path)

    @torch.no_grad()
    def follow(self) -> None:
        """Let the averaged weights follow; quickly at first."""
        decay = min(0.998, (1 + self.step) / (20 + self.step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - decay)


def train(
    folder: Path,
    seconds: float,
    seed: int,
    device: torch.device,
    start: Path | None = None,
    lr: float = 1.5e-3,
) -> None:
    """Train for a wall-clock budget in all; goes on from the checkpoint where there is one.

    `start` is a folder of tinyworld whose weights a new training begins with.
    """
    trainer = Trainer(folder, seed, start, device)
    clips = Clips(folder)
    adapter = WanTransformer(trainer.model["transformer"])
    rng = np.random.default_rng([seed, trainer.step])
    generator = torch.Generator().manual_seed(seed * 1_000_003 + trainer.step)
    log = (folder / "transformer_log.jsonl").open("a")
    begun = saved = time.monotonic()
    losses: list[float] = []
    while (elapsed := trainer.spent + time.monotonic() - begun) < seconds:
        part = elapsed / seconds
        rate = lr * min(1.0, (trainer.step + 1) / 100) * max(0.01, min(1.0, 2 * (1 - part)))
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        batch = draw_batch(clips, rng, longest=3 if part < 0.3 else 5)
        text = trainer.model["text_encoder"], trainer.tokenizer
        if batch.context and rng.random() < 0.5:
            batch = live_context(adapter, *text, batch, rng, generator)
        loss = loss_of(adapter, *text, batch, generator)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.step += 1
        trainer.follow()
        losses.append(loss.item())
        if trainer.step % 25 == 0:
            row = {
                "step": trainer.step,
                "seconds": round(elapsed, 1),
                "loss": round(float(np.mean(losses)), 4),
                "lr": rate,
                "clips": len(clips.latents),
            }
            log.write(json.dumps(row) + "\n")
            log.flush()
            losses.clear()
            clips.refresh()
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            trainer.save(trainer.spent + saved - begun)
    trainer.save(seconds)
