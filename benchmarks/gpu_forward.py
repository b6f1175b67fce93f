"""Forwards of Wan 2.1's 1.3B shape on a GPU, with random weights in bfloat16, at 480x832.

    python benchmarks/gpu_forward.py [--repeat 10] [--report FILE.md]

*joint*: 21 latent frames at once. *causal*: a block of 3 over a full window of 21. Told are time
and peak memory of one forward of all layers, and its share of the matrix products per second
that the same GPU was measured to reach right before.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from diffusers import WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode

from longtake.kernels.rotary import rotary_table
from longtake.parallel.mesh import alone
from longtake.parallel.sequence import SequenceParallel
from longtake.runtime.contexts import JointAttention, Window
from longtake.runtime.kv_cache import KVCache
from longtake.runtime.wan_transformer import Attention, WanTransformer
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.task import Span

FRAMES, BLOCK = 21, 3
HEADS, HEAD_DIM = 12, 128
DTYPE = torch.bfloat16
Forward = Callable[[], torch.Tensor]


def build(layers: int, device: torch.device) -> WanTransformer:
    """Random weights, in bfloat16 where the loader would leave them so."""
    with device:
        module = WanTransformer3DModel(
            num_layers=layers, num_attention_heads=HEADS, ffn_dim=8960
        ).requires_grad_(False)
    for name, parameter in module.named_parameters():
        if not any(part in name for part in WanTransformer3DModel._keep_in_fp32_modules):
            parameter.data = parameter.data.to(DTYPE)
    return WanTransformer(module.eval())


def make_forward(
    transformer: WanTransformer, frames: int, attention: Attention, grid: tuple[int, int]
) -> Forward:
    """A forward of fixed inputs under an attention that is settled."""
    device = transformer.device
    text = transformer.text_keys(torch.randn(1, 512, 4096, device=device))
    latents = torch.randn(1, 16, frames, 2 * grid[0], 2 * grid[1], device=device)
    levels = torch.full((1, 1), 500.0, device=device)
    layers = transformer.module.config.num_layers

    def forward() -> torch.Tensor:
        hidden = transformer.embed(latents, levels)
        return transformer.head(transformer.layers(hidden, 0, layers, attention, text))

    return forward


def joint(transformer: WanTransformer, grid: tuple[int, int]) -> Forward:
    table = rotary_table(range(FRAMES), *grid, HEAD_DIM, transformer.device)
    return make_forward(
        transformer,
        FRAMES,
        JointAttention(one_worker(grid, transformer.device), FRAMES, table),
        grid,
    )


def one_worker(grid: tuple[int, int], device: torch.device) -> SequenceParallel:
    return SequenceParallel(alone(device), grid[0] * grid[1])


def causal(transformer: WanTransformer, grid: tuple[int, int], positions: Positions) -> Forward:
    """A block in a window that is full and has wrapped around."""
    retention, device = Retention(FRAMES, BLOCK, positions), transformer.device
    capacity = FRAMES * grid[0] * grid[1]
    layers = transformer.module.config.num_layers
    cache = KVCache(range(layers), capacity, 1, HEADS, HEAD_DIM, device, DTYPE)
    window = Window(cache, retention, grid, HEAD_DIM, device, one_worker(grid, device))
    for start in range(0, FRAMES + 2 * BLOCK, BLOCK):
        frames = Span(start, start + BLOCK)
        attention = window.attention(frames, retention.context(frames))
    return make_forward(transformer, BLOCK, attention, grid)


def seconds_of(run: Forward, repeat: int) -> list[float]:
    """Wall time of each run, after three that do not count."""
    measured = []
    for _ in range(3 + repeat):
        start = perf_counter()
        run().view(-1)[:1].cpu()  # waits for the device
        measured.append(perf_counter() - start)
    return measured[3:]


def matrix_peak(device: torch.device, size: int, repeat: int) -> float:
    """The most floating point operations per second of a square product in bfloat16."""
    a, b = (torch.randn(size, size, device=device, dtype=DTYPE) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, repeat))


def measure(name: str, run: Forward, repeat: int, peak: float) -> str:
    """One row of the table."""
    with FlopCounterMode(display=False) as counter:
        run()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(run, repeat)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if on_gpu else "-"
    median, flops = statistics.median(seconds), counter.get_total_flops()
    return (
        f"| {name} | {1000 * median:.1f} ms | {1000 * min(seconds):.1f} .. "
        f"{1000 * max(seconds):.1f} ms | {memory} | {flops / 1e12:.2f} | "
        f"{flops / median / 1e12:.0f} | {flops / median / peak:.0%} |"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--device", default="cuda", help="cpu is for trying the script out")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--matrix", type=int, default=8192, help="side of the measured product")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    device = torch.device(options.device)
    grid = options.height // 16, options.width // 16
    peak = matrix_peak(device, options.matrix, options.repeat)
    transformer = build(options.layers, device)
    rows = [measure("joint, 21 frames", joint(transformer, grid), options.repeat, peak)]
    for positions in Positions:
        run = causal(transformer, grid, positions)
        rows.append(measure(f"causal, 3 of 21, {positions}", run, options.repeat, peak))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    text = "\n".join(
        [
            "# Forwards of Wan 2.1 1.3B on a GPU",
            "",
            "    python benchmarks/gpu_forward.py",
            "",
            f"{options.layers} layers, {options.width}x{options.height}, bfloat16, random weights; "
            f"{options.repeat} runs after 3 of warm-up, medians. The measured peak is a product of "
            f"{options.matrix}x{options.matrix} matrices: {peak / 1e12:.0f} TFLOP/s.",
            "",
            "| forward | time | of single runs | peak memory | TFLOP | TFLOP/s | of the peak |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"{name}; Python {platform.python_version()}, torch {torch.__version__}, "
            f"diffusers {version('diffusers')}.",
            "",
        ]
    )
    print(text)
    options.report.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
