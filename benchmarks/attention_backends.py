"""Attention backends on a GPU: a block of 4,680 tokens over 32,760 keys, 12 heads of 128, bfloat16.

    python benchmarks/attention_backends.py [--repeat 20] [--report FILE.md]

That is a block of 3 latent frames of Wan 2.1 1.3B at 480x832 over a window of 21. Told are the time
of one call of every backend that runs here, and its share of the matrix products per second that
the same GPU was measured to reach right before; then the same keys in four parts, merged as a ring
of four workers merges them.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from longtake.kernels.attention import attention_with_lse
from longtake.kernels.attention_backends import Backend, backends, refusal
from longtake.kernels.merge import Partial

DTYPE = torch.bfloat16
PARTS = 4
Inputs = tuple[Tensor, Tensor, Tensor]


def seconds_of(run: Callable[[], Tensor], repeat: int) -> list[float]:
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


def at_once(backend: Backend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One call, of backends without a log-sum-exp too."""
    if backend.returns_lse:
        return attention_with_lse(q, k, v, backend)[0]
    return backend.run(q, k, v, None)[0]


def in_parts(backend: Backend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a worker in a ring of four computes, without the ring."""
    merged: Partial | None = None
    for key, value in zip(k.chunk(PARTS, 1), v.chunk(PARTS, 1), strict=True):
        part = attention_with_lse(q, key, value, backend)
        if merged is None:
            merged = Partial.start(*part)
        else:
            merged.add(*part)
    assert merged is not None
    return merged.result(q.dtype)


def row(
    name: str,
    way: Callable[[Backend, Tensor, Tensor, Tensor], Tensor],
    backend: Backend,
    inputs: Inputs,
    repeat: int,
    peak: float,
) -> str:
    """One row of the table."""
    q, k, _ = inputs
    seconds = seconds_of(lambda: way(backend, *inputs).contiguous(), repeat)
    flops = 4 * q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2] * q.shape[3]
    median = statistics.median(seconds)
    return (
        f"| {name} | {1000 * median:.2f} ms | {1000 * min(seconds):.2f} .. "
        f"{1000 * max(seconds):.2f} ms | {flops / median / 1e12:.0f} | "
        f"{flops / median / peak:.0%} |"
    )


def table(inputs: Inputs, repeat: int, peak: float) -> tuple[list[str], list[str]]:
    """The rows of all backends that run here, and why the others do not."""
    device, head_dim = inputs[0].device, inputs[0].shape[-1]
    rows, reasons = [], []
    for backend in backends():
        if backend.name in ("flex", "math"):
            reasons.append(f"- {backend.name}: it is there for tests, and holds all scores at once")
            continue
        reason = refusal(backend, device, DTYPE, head_dim, need_lse=False)
        if reason is not None:
            reasons.append(f"- {backend.name}: {reason}")
            continue
        name = backend.name if backend.returns_lse else f"{backend.name}, no log-sum-exp"
        rows.append(row(name, at_once, backend, inputs, repeat, peak))
        if backend.returns_lse:
            merged = f"{backend.name}, {PARTS} parts merged"
            rows.append(row(merged, in_parts, backend, inputs, repeat, peak))
    return rows, reasons


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--device", default="cuda", help="cpu is for trying the script out")
    parser.add_argument("--queries", type=int, default=4680)
    parser.add_argument("--keys", type=int, default=32760)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--matrix", type=int, default=8192, help="side of the measured product")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parse()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("attention_backends.py needs an NVIDIA GPU, and torch sees none")
    shape = options.heads, options.head_dim
    q = torch.randn(1, options.queries, *shape, device=device, dtype=DTYPE)
    k, v = (torch.randn(1, options.keys, *shape, device=device, dtype=DTYPE) for _ in range(2))
    peak = matrix_peak(device, options.matrix, options.repeat)
    rows, reasons = table((q, k, v), options.repeat, peak)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    text = "\n".join(
        [
            "# Attention backends on a GPU",
            "",
            "    python benchmarks/attention_backends.py",
            "",
            f"{options.queries:,} queries over {options.keys:,} keys, {options.heads} heads of "
            f"{options.head_dim}, bfloat16; {options.repeat} runs after 3 of warm-up, medians. The "
            f"measured peak is a product of {options.matrix}x{options.matrix} matrices: "
            f"{peak / 1e12:.0f} TFLOP/s.",
            "",
            "| backend | time | of single runs | TFLOP/s | of the peak |",
            "|---|--:|--:|--:|--:|",
            *rows,
            "",
            "Not run:",
            "",
            *reasons,
            "",
            f"{name}; Python {platform.python_version()}, torch {torch.__version__}.",
            "",
        ]
    )
    print(text)
    options.report.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
