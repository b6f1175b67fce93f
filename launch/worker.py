"""The process of one worker, started by `launch.crew`, or on another node by `ray_outpost`."""

from __future__ import annotations

import argparse
import json
import sys

from longtake.launch.session import join, quiet_libraries
from longtake.parallel.mesh import Rendezvous


def main() -> int:
    """Follow rank 0; returns the exit code."""
    parser = argparse.ArgumentParser(description="A worker beside rank 0.")
    parser.add_argument("rendezvous", type=json.loads)
    parser.add_argument("local_rank", type=int)
    asked = parser.parse_args()
    quiet_libraries()
    return join(Rendezvous(**asked.rendezvous), asked.local_rank)


if __name__ == "__main__":
    sys.exit(main())
