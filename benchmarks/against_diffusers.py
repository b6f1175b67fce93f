"""Longtake beside diffusers' WanPipeline: the same weights, noise, steps and frames, one after the
other in pairs.

    python benchmarks/against_diffusers.py [FOLDER] [--pairs 7] [--report FILE.md]

*denoising*: from noise and text embeddings to latents, in one process that holds both. *whole
process*: a fresh interpreter from its start to a finished mp4, with imports and loading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a whole process pays for the imports of its own side only
    from diffusers import WanPipeline
    from torch import Tensor

    from longtake.runtime.model import Model
    from longtake.scheduler.request import Request

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a large red circle bouncing around slowly on a gray background"
SHIFT = 3.0
SIDES = ("longtake", "diffusers")
PACKAGES = ("torch", "diffusers", "transformers", "av")


@dataclass(frozen=True)
class Work:
    """One video, made by either side."""

    folder: str
    seconds: float
    steps: int
    guidance: float
    height: int
    width: int
    fps: int
    text_tokens: int
    device: str
    dtype: str
    threads: int

    @property
    def frames(self) -> int:
        """Pixel frames: one and a multiple of four, as both sides can make them."""
        return 1 + 4 * round(self.seconds * self.fps / 4)


def load_longtake(work: Work) -> tuple[Model, Request]:
    import torch

    from longtake.runtime.model import ModelConfig, load_model
    from longtake.scheduler.request import Cue, Request

    torch.set_num_threads(work.threads)
    config = ModelConfig(
        name=Path(work.folder).name,
        folder=Path(work.folder),
        checkpoint=None,
        fps=work.fps,
        height=work.height,
        width=work.width,
        block_frames=3,
        text_tokens=work.text_tokens,
    )
    model = load_model(config, torch.device(work.device), getattr(torch, work.dtype))
    seconds = work.frames / work.fps
    cues = (Cue(0, PROMPT),)
    return model, Request(cues, seconds, work.height, work.width, work.fps, guidance=work.guidance)


def load_diffusers(work: Work) -> WanPipeline:
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

    torch.set_num_threads(work.threads)
    vae = AutoencoderKLWan.from_pretrained(work.folder, subfolder="vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(
        work.folder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        torch_dtype=getattr(torch, work.dtype),
    ).to(work.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_noise(work: Work) -> Tensor:
    import torch

    from longtake.runtime.noise import SeededNoise

    config = json.loads((Path(work.folder) / "transformer" / "config.json").read_text("utf-8"))
    shape = (1, config["in_channels"], 1 + work.frames // 4, work.height // 8, work.width // 8)
    return SeededNoise(0).initial(0, shape).to(torch.device(work.device))


def run_pipeline(pipeline: WanPipeline, work: Work, **arguments: Any) -> Any:
    return pipeline(
        height=work.height,
        width=work.width,
        num_frames=work.frames,
        num_inference_steps=work.steps,
        guidance_scale=work.guidance,
        max_sequence_length=work.text_tokens,
        **arguments,
    ).frames


def denoisers(work: Work) -> dict[str, Callable[[], Tensor]]:
    """For each side what goes from noise and embeddings to latents, ready to be timed."""
    import torch

    from longtake.runtime.engine import MemoryStore
    from longtake.runtime.noise import SeededNoise
    from longtake.runtime.samplers import Solver
    from longtake.runtime.workers import DenoiseWorker
    from longtake.scheduler.schedule import Schedule
    from longtake.scheduler.strategies.bidirectional import Bidirectional
    from longtake.scheduler.task import Edge, Kind, Payload

    model, request = load_longtake(work)
    pipeline, noise = load_diffusers(work), make_noise(work)
    texts = [model.encode_text(PROMPT)]
    if work.guidance > 1:
        texts.append(model.encode_text(""))
    device = torch.device(work.device)
    sampler = Solver("FlowMatchEulerDiscreteScheduler", work.steps, {"shift": SHIFT}, device)

    class Given(SeededNoise):
        """Noise that is there already, as the pipeline is given it."""

        def initial(self, block: int, shape: tuple[int, ...]) -> Tensor:
            return noise

    def longtake() -> Tensor:
        worker = DenoiseWorker(
            transformer=model.transformer,
            encode_text=lambda cue: torch.cat(texts[::-1]),
            request=request,
            grid=model.spec.grid(work.height, work.width),
            patch=model.spec.patch,
            sampler=sampler,
            noise=Given(0),
            store=MemoryStore(),
            window=None,
            history=0,
        )
        for task in Schedule(Bidirectional(), request, model.spec, work.steps):
            if task.kind is not Kind.DECODE:
                worker.run(task)
        worker.send(Edge(Payload.LATENT, 0, "denoise", "decode"))
        return worker.take(0)

    def diffusers() -> Tensor:
        embeddings = dict(zip(("prompt_embeds", "negative_prompt_embeds"), texts, strict=False))
        latents: Tensor = run_pipeline(
            pipeline, work, latents=noise, output_type="latent", **embeddings
        )
        return latents

    return {"longtake": longtake, "diffusers": diffusers}


def whole_longtake(work: Work, out: Path) -> None:
    """A finished mp4 through the engine."""
    import torch

    from longtake.runtime.engine import Engine
    from longtake.runtime.noise import SeededNoise
    from longtake.runtime.samplers import Solver
    from longtake.runtime.video import Mp4Writer
    from longtake.scheduler.schedule import Schedule
    from longtake.scheduler.strategies.bidirectional import Bidirectional

    model, request = load_longtake(work)
    device = torch.device(work.device)
    sampler = Solver("FlowMatchEulerDiscreteScheduler", work.steps, {"shift": SHIFT}, device)
    schedule = Schedule(Bidirectional(), request, model.spec, work.steps)
    writer = Mp4Writer(out, fps=work.fps, height=work.height, width=work.width)
    Engine(model, schedule, sampler, SeededNoise(0), writer).run()
    writer.close()


def whole_diffusers(work: Work, out: Path) -> None:
    """A finished mp4 through the pipeline, with the same codec and quality."""
    import av

    pipeline, noise = load_diffusers(work), make_noise(work)
    video = run_pipeline(pipeline, work, prompt=PROMPT, latents=noise, output_type="np")[0]
    with av.open(str(out), "w") as container:
        options = {"crf": "16", "preset": "fast", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=work.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = work.width, work.height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in (video * 255).round().astype("uint8"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def in_pairs(runs: dict[str, Callable[[], Any]], pairs: int, warm_up: int) -> list[list[float]]:
    """Seconds of each pair, in the order of `runs`; the pairs of the warm-up are dropped."""
    measured = []
    for _ in range(warm_up + pairs):
        seconds = []
        for run in runs.values():
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
        measured.append(seconds)
    return measured[warm_up:]


def measure_denoising(work: Work, pairs: int, warm_up: int) -> tuple[list[list[float]], float]:
    """Seconds of each pair, and the largest difference between the two sides' latents."""
    import torch

    def settled(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def settle() -> Tensor:
            return run().cpu()  # waits for the device

        return settle

    runs = {side: settled(run) for side, run in denoisers(work).items()}
    ours, theirs = (run() for run in runs.values())
    difference = (ours.float() - theirs.float()).abs().max().item()
    with torch.no_grad():
        return in_pairs(runs, pairs, warm_up), difference


def measure_processes(work: Work, pairs: int) -> list[list[float]]:
    """Seconds of fresh processes, after one of each that brings the files into memory."""
    with tempfile.TemporaryDirectory() as folder:

        def run(side: str) -> None:
            out = Path(folder) / f"{side}.mp4"
            out.unlink(missing_ok=True)
            given = [json.dumps(asdict(work)), str(out)]
            command = [sys.executable, __file__, "--whole", side, *given]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

        return in_pairs({side: partial(run, side) for side in SIDES}, pairs, warm_up=1)


def machine() -> str:
    """Processor, cores and system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def row(name: str, measured: list[list[float]]) -> str:
    ratios = [ours / theirs for ours, theirs in measured]
    ours, theirs = (statistics.median(side) for side in zip(*measured, strict=True))
    return (
        f"| {name} | {ours:.3f} s | {theirs:.3f} s | **{statistics.median(ratios):.3f}** "
        f"| {min(ratios):.3f} .. {max(ratios):.3f} | {len(ratios)} |"
    )


def report(work: Work, warm_up: int, difference: float, rows: list[str]) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    settings = ", ".join(f"{k} {v}" for k, v in asdict(work).items() if k != "folder")
    return "\n".join(
        [
            "# Beside diffusers' WanPipeline",
            "",
            "    python benchmarks/against_diffusers.py",
            "",
            f"Model {Path(work.folder).name}: {work.frames} frames, {settings}; bidirectional, "
            f"Euler with shift {SHIFT:g}. Both sides alternate within one run, on the same weights "
            f"and noise; their latents differ by at most {difference:.1e}. Before the pairs that "
            f"count came {warm_up} of denoising and one of whole processes.",
            "",
            "| | Longtake | diffusers | ratio | of single pairs | pairs |",
            "|---|--:|--:|--:|--:|--:|",
            *rows,
            "",
            "Times and ratios are medians; under 1, Longtake is faster. *denoising* goes from "
            "noise and text embeddings to latents; *whole process* from a fresh interpreter to a "
            "finished mp4, imports and loading included.",
            "",
            f"{machine()}; Python {platform.python_version()}, {versions}.",
            "",
        ]
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    tinyworld = ROOT / "models" / "tinyworld"
    parser.add_argument(
        "folder", type=Path, nargs="?", default=tinyworld, help="in diffusers' layout"
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--fps", type=int, default=16)
    parser.add_argument("--text-tokens", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["--whole"]:
        side, work, out = sys.argv[2], Work(**json.loads(sys.argv[3])), Path(sys.argv[4])
        {"longtake": whole_longtake, "diffusers": whole_diffusers}[side](work, out)
        return
    options = vars(parse())
    folder, pairs = options.pop("folder"), options.pop("pairs")
    warm_up, target = options.pop("warm_up"), options.pop("report")
    work = Work(str(folder.resolve()), **options)
    denoised, difference = measure_denoising(work, pairs, warm_up)
    rows = [row("denoising", denoised), row("whole process", measure_processes(work, pairs))]
    text = report(work, warm_up, difference, rows)
    print(text)
    target.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
