"""Peak memory of loading a transformer: Longtake's loader beside diffusers' `from_pretrained`.

    python benchmarks/load_memory.py FOLDER

FOLDER is a diffusers pipeline, such as `scripts/make_random_wan.py` writes. Every case runs in a
process of its own, loads to the CPU and reads every weight once. Told are the peak and, of what is
held in the end, the part that is the process's own (anonymous) and the part that is pages of files,
which processes share and the kernel may drop. diffusers needs the package accelerate for this.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

LOADERS = ("longtake", "diffusers")
DTYPES = ("bfloat16", "float32")


def measure(loader: str, dtype: str, folder: Path) -> dict[str, float]:
    """Load in this very process, and tell megabytes."""
    import torch
    from diffusers import WanTransformer3DModel

    from longtake.runtime.weights import load_transformer

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target = getattr(torch, dtype)
    if loader == "longtake":
        module = load_transformer(folder / "transformer", device=torch.device("cpu"), dtype=target)
    else:
        module = WanTransformer3DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=target
        )
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    for parameter in module.parameters():
        parameter.amax().item()  # mapped weights come into memory when they are read
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "imports": imported / 1024,
        "weights": weights / 2**20,
        "peak": peak / 1024,
        "own": int(status["RssAnon"].split()[0]) / 1024,
        "file": int(status["RssFile"].split()[0]) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("LOADER", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.folder)))
        return
    files = sorted((options.folder / "transformer").glob("*.safetensors"))
    print(f"files: {sum(file.stat().st_size for file in files) / 2**20:.0f} MiB\n")
    print("| loader | dtype | imports | weights | peak | peak - imports | own | file |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for dtype in DTYPES:
        for loader in LOADERS:
            command = [sys.executable, __file__, str(options.folder), "--one", loader, dtype]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            told = json.loads(output.splitlines()[-1])
            numbers = (
                *(told["imports"], told["weights"], told["peak"]),
                *(told["peak"] - told["imports"], told["own"], told["file"]),
            )
            print(f"| {loader} | {dtype} | {' | '.join(f'{n:.0f}' for n in numbers)} |")


if __name__ == "__main__":
    main()
