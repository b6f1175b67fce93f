"""`longtake calibrate --from RUN_DIR`: let runs that were made correct a described cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from longtake.launch.against import compare_again
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.errors import UserError

FORWARDS = ("denoise", "commit", "recache")
ROUNDS = 12  # of correcting by half: what decodes and what denoises slow each other down


def learn(cluster: Cluster, run_dirs: Sequence[Path]) -> Cluster:
    """The cluster with devices as slow, or as fast, as these runs show them, on the average.

    Links stay as they are: what a worker waits for is as often another worker.

    Raises:
        UserError: one of them is no run that was made in one go, or what it needs is not here.
    """
    for _ in range(ROUNDS):
        found = [compare_again(run_dir, cluster)[1] for run_dir in run_dirs]
        forward = [ratio for each in found if (ratio := each.ratio(*FORWARDS))]
        decode = [ratio for each in found if (ratio := each.ratio("decode"))]
        if not forward or not decode:
            raise UserError("these runs tell nothing of denoising and decoding")
        slower = geometric_mean(forward) ** 0.5, geometric_mean(decode) ** 0.5
        nodes = (replace(node, device=node.device.slowed(*slower)) for node in cluster.nodes)
        cluster = replace(cluster, nodes=tuple(nodes))
    return cluster
