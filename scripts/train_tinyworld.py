"""Train tinyworld from nothing: `python scripts/train_tinyworld.py all --work WORK`.

Every stage goes on where it was stopped: it keeps its checkpoint and a log of losses in WORK.
Stages can be run one by one; `export` writes the diffusers folder that Longtake loads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKLWan
from tinyworld import folder, latents, transformer, vae
from tinyworld.check import report_vae

app = typer.Typer(no_args_is_help=True, add_completion=False)
Work = Annotated[Path, typer.Option(help="checkpoints, latents and logs")]
Seed = Annotated[int, typer.Option(help="of data, weights and noise")]
Threads = Annotated[int, typer.Option(help="processor threads")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
OUT = Path(__file__).parents[1] / "models" / "tinyworld"


def _vae(work: Path, device: str = "cpu") -> AutoencoderKLWan:
    """The trained VAE, with the latent statistics of the world where they are known."""
    model = AutoencoderKLWan(**vae.CONFIG)
    stages = [work / f"{name}_state.pt" for name in ("polished", "refined", "vae")]
    state = next((path for path in stages if path.exists()), stages[-1])
    model.load_state_dict(torch.load(state, weights_only=True)["vae"])
    latents.statistics(model, np.random.default_rng(0))  # on the CPU, so the same everywhere
    return model.eval().requires_grad_(False).to(device)


@app.command("vae")
def train_vae(
    work: Work,
    seconds: float = 2000,
    refine: float = 2000,
    polish: float = 2700,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
) -> None:
    """Train the autoencoder on clips with many cuts, on clips as they are, then its decoder."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    vae.train(work, seconds, seed, torch.device(device))
    vae.refine(work, refine, seed, torch.device(device))
    vae.polish(work, polish, seed, torch.device(device))


@app.command("take-vae")
def take_vae(work: Work, start: Path = OUT) -> None:
    """Begin WORK with the VAE of a tinyworld folder, so that only the transformer is left to do."""
    work.mkdir(parents=True, exist_ok=True)
    weights = AutoencoderKLWan.from_pretrained(start / "vae").state_dict()
    torch.save({"vae": weights}, work / "vae_state.pt")


@app.command("check-vae")
def check_vae(work: Work, clips: int = 24, picture: Path | None = None) -> None:
    """Print the reconstruction of held-out clips at frames 0, 8, 80 and 960."""
    report_vae(_vae(work), clips, picture)


@app.command("latents")
def encode(
    work: Work, clips: int = 1536, seed: Seed = 1, threads: Threads = 2, device: Device = "cpu"
) -> None:
    """Encode clips of the world."""
    torch.set_num_threads(threads)
    latents.write_shards(_vae(work, device), work, clips, seed)


@app.command("transformer")
def train_transformer(
    work: Work,
    seconds: float = 5400,
    seed: Seed = 0,
    threads: Threads = 2,
    device: Device = "cpu",
    start: Annotated[Path | None, typer.Option(help="a tinyworld folder to begin with")] = None,
) -> None:
    """Train transformer and text encoder on the latents."""
    torch.set_num_threads(threads)
    transformer.train(work, seconds, seed, torch.device(device), start)


@app.command()
def export(work: Work, out: Path = OUT) -> None:
    """Write the averaged weights as a diffusers folder."""
    trainer = transformer.Trainer(work)
    average = trainer.average
    folder.save(out, average["transformer"], _vae(work), trainer.tokenizer, average["text_encoder"])


@app.command("all")
def everything(work: Work, out: Path = OUT) -> None:
    """All stages in order."""
    train_vae(work)
    check_vae(work)
    encode(work)
    train_transformer(work)
    export(work, out)


if __name__ == "__main__":
    app()
