"""Train tinyworld's video autoencoder on endless streams of the procedural world.

Clips of one batch run on for many steps; what the causal convolutions remember is carried over and
cut from the gradient. So every step costs a few frames, yet the VAE sees videos far longer than its
memory: a VAE that has seen short clips only drifts as soon as its memory is full.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor
from torch.nn import functional as F

from longtake.runtime import world
from longtake.runtime.wan_vae import DecodeStream, EncodeStream

CONFIG = {
    "base_dim": 16,
    "decoder_base_dim": 16,
    "z_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
}
STREAMS = 6  # interleaved, so that neighbouring steps see other clips
STILLS = 400  # first steps: single frames of many scenes, to learn colors before motion


def clip(rng: np.random.Generator, frames: int, cut: float = 0.5) -> np.ndarray:
    """A random video of the world, (frames, H, W, 3) uint8, more often moving than the world is.

    At the start of every latent frame another scene begins with probability `cut`: the frames of
    one scene share their colors, so without cuts a batch would hold only as many colors as clips.
    """
    starts = [0, *(at for at in range(1, frames, 4) if rng.random() < cut), frames]
    pieces = []
    for start, stop in itertools.pairwise(starts):
        scene = world.random_scene(rng)
        if scene.motion == "standing still" and rng.random() < 0.8:
            scene = replace(scene, motion="bouncing around")
        pieces.append(world.render(scene, world.random_track(scene, stop - start, rng)))
    return np.concatenate(pieces)


def to_tensor(videos: list[np.ndarray]) -> Tensor:
    """Stack uint8 videos to (B, 3, frames, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float()
    return pixels / 127.5 - 1.0


@torch.no_grad()
def start_still(vae: AutoencoderKLWan) -> None:
    """Let the untrained VAE treat a video as stills: no look back, time halved and doubled by
    copying.

    What it learns from single frames then carries over to clips, where it only has to learn motion.
    """
    for part in vae.modules():
        if isinstance(part, WanCausalConv3d) and part.kernel_size[0] == 3:
            if part.kernel_size[1] == 3:
                part.weight[:, :, 2] *= 3**0.5
                part.weight[:, :, :2] = 0
            else:  # the convolutions that halve or double time
                copies = part.out_channels // part.in_channels
                part.weight.normal_(std=0.02)
                part.weight[:, :, 2, 0, 0] += torch.eye(part.in_channels).repeat(copies, 1)
                part.bias.zero_()


def edge_weight(pixels: Tensor) -> Tensor:
    """Weigh the shape and its surroundings more than the flat background; the mean stays near 1.

    `pixels` is (B, 3, frames, H, W); the corner pixel is always background.
    """
    ink = (pixels - pixels[..., :1, :1]).abs().amax(dim=1) > 0.05
    near = F.max_pool2d(ink.float(), 7, stride=1, padding=3)
    return (0.5 + 3.5 * near).unsqueeze(1)


class Stream:
    """A batch of clips on their way through the VAE, one latent frame a step."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        rng: np.random.Generator,
        batch: int,
        chunks: int,
        cut: float,
    ) -> None:
        self.encoder, self.decoder = EncodeStream(vae), DecodeStream(vae)
        self._video = np.stack([clip(rng, 1 + 4 * chunks, cut) for _ in range(batch)])
        self._at = 0
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def finished(self) -> bool:
        """Whether all frames have been taken."""
        return self._at >= self._video.shape[1]

    def jump(self, output: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
        """How far the change from frame to frame is from the true one, the last call's included.

        Without this a VAE shows each latent frame as four still ones, and motion as a staircase.
        """
        made, true = output, pixels
        if self._last is not None:
            made, true = (torch.cat(p, dim=2) for p in zip(self._last, (made, true), strict=True))
        self._last = (output[:, :, -1:].detach(), pixels[:, :, -1:])
        if made.shape[2] == 1:
            return output.new_zeros(())
        error = (made.diff(dim=2) - true.diff(dim=2)).abs()
        return (weight[:, :, -error.shape[2] :] * error).mean()

    def next_pixels(self) -> Tensor:
        """The next 4 frames; at the start the first frame and 4 more, if there are."""
        start = self._at
        self._at = min(self._video.shape[1], start + (4 if start else 5))
        return to_tensor(list(self._video[:, start : self._at]))


def train(out: Path, seconds: float, seed: int, device: torch.device, lr: float = 2e-3) -> None:
    """Train for a wall-clock budget; goes on from `out`/vae_state.pt where there is one."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**CONFIG)
    start_still(vae)
    vae.to(device)
    _fit(vae, list(vae.parameters()), out, "vae", 0, seconds, seed, lr, (0.1, 0.5, 0.9))


def refine(out: Path, seconds: float, seed: int, device: torch.device, lr: float = 1.5e-3) -> None:
    """Go on for `seconds` with clips as they are, almost without cuts: now motion counts."""
    vae = AutoencoderKLWan(**CONFIG)
    begun = torch.load(out / "vae_state.pt", weights_only=True)
    vae.load_state_dict(begun["vae"])
    vae.to(device)
    _fit(vae, list(vae.parameters()), out, "refined", STILLS, seconds, seed + 1, lr, (0.0, 0.1))


def polish(out: Path, seconds: float, seed: int, device: torch.device, lr: float = 1.5e-3) -> None:
    """Train the decoder alone for `seconds`, also on noisy latents such as a transformer makes.

    The encoder stays, and with it the latents, so a transformer can be trained meanwhile.
    """
    vae = AutoencoderKLWan(**CONFIG)
    vae.load_state_dict(torch.load(out / "refined_state.pt", weights_only=True)["vae"])
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    vae.to(device)
    trained = [p for p in vae.parameters() if p.requires_grad]
    _fit(vae, trained, out, "polished", STILLS, seconds, seed + 2, lr, (0.0,), noise=0.1, jumps=10)


def _fit(
    vae: AutoencoderKLWan,
    parameters: list[torch.nn.Parameter],
    out: Path,
    name: str,
    step: int,
    seconds: float,
    seed: int,
    lr: float,
    cuts: tuple[float, ...],
    noise: float = 0.0,
    jumps: float = 4.0,
) -> None:
    """Train `parameters`, with a checkpoint `name`_state.pt and a log beside it.

    `noise` is the most that is added to the latents, as a share of their deviation; `jumps` is the
    weight of changes from frame to frame in the loss.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    spent = 0.0
    state_path = out / f"{name}_state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    rng = np.random.default_rng([seed, step])
    log = (out / f"{name}_log.jsonl").open("a")
    streams: list[Stream] = []
    start = last_save = time.monotonic()
    while (elapsed := spent + time.monotonic() - start) < seconds:
        rate = min(1.0, (step + 1) / 50) * max(0.02, 1 - elapsed / seconds) * lr
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels, stream = _next(vae, streams, rng, step, cuts)
        row = _step(pixels, stream, parameters, optimizer, noise, jumps)
        step += 1
        if step % 20 == 0:
            log.write(
                json.dumps({"step": step, "seconds": round(elapsed, 1), "lr": rate} | row) + "\n"
            )
            log.flush()
        if time.monotonic() - last_save > 120:
            last_save = time.monotonic()
            _save(state_path, vae, optimizer, step, spent + last_save - start)
    _save(state_path, vae, optimizer, step, seconds)


def _next(
    vae: AutoencoderKLWan,
    streams: list[Stream],
    rng: np.random.Generator,
    step: int,
    cuts: tuple[float, ...],
) -> tuple[Tensor, Stream]:
    if step < STILLS:
        streams[:] = [Stream(vae, rng, batch=32, chunks=0, cut=0)]
    streams[:] = [s for s in streams if not s.finished]
    while len(streams) < (1 if step < STILLS else STREAMS):
        chunks, cut = int(rng.integers(1, 16)), float(rng.choice(cuts))
        streams.append(Stream(vae, rng, batch=16, chunks=chunks, cut=cut))
    stream = streams[step % len(streams)]
    return stream.next_pixels().to(vae.device), stream


def _step(
    pixels: Tensor,
    stream: Stream,
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    noise: float,
    jumps: float,
) -> dict[str, float]:
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        mean, logvar = stream.encoder.moments(pixels).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        deviation = mean.std(dim=(0, 2, 3, 4), keepdim=True).detach()
        share = noise * torch.rand(len(mean), 1, 1, 1, 1, device=mean.device)
        spread = (logvar.exp() + (share * deviation).square()).sqrt()
        latents = mean + spread * torch.randn_like(mean)
        output = stream.decoder.decode(latents).float()
    weight = edge_weight(pixels)
    l1 = (weight * (output - pixels).abs()).mean()
    l2 = F.mse_loss(output, pixels)
    jump = stream.jump(output, pixels, weight)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = l1 + 4 * l2 + jumps * jump + 2e-4 * kl
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    stream.encoder.detach()
    stream.decoder.detach()
    return {
        "frames": pixels.shape[2],
        "l1": l1.item(),
        "jump": jump.item(),
        "psnr": -10 * math.log10(l2.item() / 4),
        "kl": kl.item(),
    }


def _save(
    path: Path, vae: AutoencoderKLWan, optimizer: torch.optim.Optimizer, step: int, spent: float
) -> None:
    state = {
        "vae": vae.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
