"""The process of one worker, started by `launch.crew`: python -m longtake.launch.worker ..."""

from __future__ import annotations

import argparse
import sys

from longtake.launch.session import join, quiet_libraries
from longtake.parallel.mesh import Rendezvous


def main() -> int:
    """Follow rank 0; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    for name in ("port", "rank", "world"):
        parser.add_argument(name, type=int)
    parser.add_argument("timeout", type=float)
    asked = parser.parse_args()
    quiet_libraries()
    rendezvous = Rendezvous(asked.address, asked.port, asked.rank, asked.world, asked.timeout)
    return join(rendezvous, asked.rank)


if __name__ == "__main__":
    sys.exit(main())
