"""Encode clips of the world once; the transformer trains on random windows of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import save_file
from tinyworld.vae import to_tensor
from torch import Tensor

from longtake.runtime import world
from longtake.runtime.wan_vae import EncodeStream

BLOCKS = 16  # of 3 latent frames: 48 latent frames, 189 pixel frames
BLOCK = 3
SHARD = 32  # clips in a file
SWITCHES = 0.3  # share of clips that change scene once


def draw(rng: np.random.Generator) -> tuple[np.ndarray, world.Scene, world.Scene, int]:
    """A clip, its scene before and after a switch, and the block at which it switches (0:
    never)."""
    frames = 1 + 4 * (BLOCKS * BLOCK - 1)
    before = after = world.random_scene(rng)
    video = world.render(before, world.random_track(before, frames, rng))
    switch = 0
    if rng.random() < SWITCHES:
        switch = int(rng.integers(2, BLOCKS - 2))
        after = world.recolor(before, rng)
        cut = 1 + 4 * (switch * BLOCK - 1)
        track = world.random_track(after, frames - cut, rng)
        video = np.concatenate([video[:cut], world.render(after, track)])
    return video, before, after, switch


@torch.inference_mode()
def statistics(vae: AutoencoderKLWan, rng: np.random.Generator) -> None:
    """Set the VAE's latent mean and deviation per channel from a sample of clips."""
    videos = [draw(rng)[0][:49] for _ in range(48)]
    pixels = to_tensor(videos).to(vae.device)
    latents = EncodeStream(vae).moments(pixels).chunk(2, dim=1)[0]
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(),
        latents_std=latents.std(dim=(0, 2, 3, 4)).tolist(),
    )


@torch.inference_mode()
def write_shards(vae: AutoencoderKLWan, out: Path, clips: int, seed: int) -> None:
    """Write clips as normalised float16 latents; shards that exist are kept."""
    for shard in range(-(-clips // SHARD)):
        path = out / f"latents_{shard:04d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, shard])
        drawn = [draw(rng) for _ in range(SHARD)]
        stream = EncodeStream(vae)
        videos = to_tensor([video for video, *_ in drawn]).to(vae.device)
        with torch.autocast(vae.device.type, dtype=torch.bfloat16):
            latents = [
                stream.encode(part) for part in videos.split([9, *[12] * (BLOCKS - 1)], dim=2)
            ]
        notes = [[asdict(before), asdict(after), switch] for _, before, after, switch in drawn]
        save_file(
            {"latents": torch.cat(latents, dim=2).half().cpu()},
            path.with_suffix(".tmp"),
            {"scenes": json.dumps(notes)},
        )
        path.with_suffix(".tmp").replace(path)


def emphasis(latents: Tensor) -> float:
    """How much a clip's loss counts: more where the shape hardly stands out from its background.

    Latents are (C, f, h, w). Between green on gray and yellow on teal the energy of the shape
    differs by a factor of 30, and so would the care that its outline gets.
    """
    values = latents.float().flatten(1)
    energy = (values - values.median(dim=1, keepdim=True).values).square().mean().item()
    return float(np.clip(0.3 / max(energy, 1e-6), 0.5, 8.0))


class Clips:
    """All shards written so far: latents (clips, C, 48, h, w), what each clip shows, and its
    weight."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[Path] = set()
        self.latents: list[Tensor] = []
        self.scenes: list[tuple[world.Scene, world.Scene, int]] = []
        self.weights: list[float] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that have appeared since."""
        for path in sorted(set(self._folder.glob("latents_*.safetensors")) - self._seen):
            with safe_open(path, "pt") as file:
                latents = file.get_tensor("latents").unbind(0)
                self.latents.extend(latents)
                self.weights.extend(map(emphasis, latents))
                for before, after, switch in json.loads(file.metadata()["scenes"]):
                    self.scenes.append((world.Scene(**before), world.Scene(**after), switch))
            self._seen.add(path)
