"""How well the VAE reconstructs clips that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from tinyworld.vae import to_tensor

from longtake.runtime import world
from longtake.runtime.wan_vae import DecodeStream, EncodeStream

FRAMES = (0, 8, 80, 960)
HELD_OUT = 99  # a seed that training never uses


@torch.inference_mode()
def reconstruct(vae: AutoencoderKLWan, clips: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips and their reconstructions, streamed, each (clips, frames, H, W, 3) uint8."""
    rng = np.random.default_rng(HELD_OUT)
    videos = []
    for _ in range(clips):
        scene = world.random_scene(rng)
        videos.append(world.render(scene, world.random_track(scene, frames, rng)))
    truth = np.stack(videos)
    encoder, decoder = EncodeStream(vae), DecodeStream(vae)
    pieces = []
    for start in [0, *range(1, frames, 16)]:
        stop = 1 if start == 0 else min(frames, start + 16)
        pixels = decoder.decode(encoder.encode(to_tensor(list(truth[:, start:stop]))))
        pieces.append(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy())
    return truth, np.concatenate(pieces, axis=1)


def psnr(truth: np.ndarray, made: np.ndarray) -> float:
    """Peak signal to noise in dB of uint8 pictures."""
    error = np.square(truth.astype(np.float64) - made).mean()
    return float(10 * np.log10(255**2 / error))


def report_vae(vae: AutoencoderKLWan, clips: int, picture: Path | None = None) -> None:
    """Print PSNR over all clips at the four frames; `picture` gets truth and result in a sheet."""
    truth, made = reconstruct(vae, clips, FRAMES[-1] + 1)
    for frame in FRAMES:
        value = psnr(truth[:, frame], made[:, frame])
        print(f"frame {frame:4d}: {value:.2f} dB over {clips} held-out clips")
    if picture is not None:
        pairs = np.concatenate([truth[:8, FRAMES], made[:8, FRAMES]], axis=1)  # (8, 8, H, W, 3)
        sheet = pairs.transpose(0, 2, 1, 3, 4).reshape(-1, 8 * truth.shape[3], 3)
        Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save(picture)
