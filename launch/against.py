"""`longtake simulate --against RUN_DIR`: what a run was predicted to take, and what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from longtake.launch.clusters import load_cluster
from longtake.launch.comparison import Comparison, compare, predicted_facts
from longtake.launch.config import settings_from
from longtake.launch.manifest import read_manifest
from longtake.launch.plan import Question, count_steps, item_size, model_spec
from longtake.launch.plan_tables import as_text, bytes_text
from longtake.launch.simulate import Simulated, run_simulation
from longtake.scheduler.cluster import Cluster
from longtake.scheduler.errors import UserError
from longtake.scheduler.request import Cue, Request


def compare_again(run_dir: Path, cluster: Cluster) -> tuple[Simulated, Comparison]:
    """Simulate a finished run on a described cluster, and lay both beside each other.

    Raises:
        UserError: there is no such run, or it did not end in one go; what `run_simulation` raises.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        raise UserError(f"{run_dir} is not the directory of a run: it has no manifest.json")
    run = _whole_run(run_dir, manifest)
    made = run_simulation(_question_of(manifest, cluster))
    return made, compare(predicted_facts(made.prediction, cluster.name), run)


def _whole_run(run_dir: Path, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured, where that is of a whole video."""
    runs = manifest["runs"]
    if len(runs) != 1 or not runs[0]["finished"] or manifest["request"]["seconds"] is None:
        raise UserError(
            f"{run_dir} can't be compared: only a video that was made in one go can, and it was "
            f"{'a stream' if manifest['request']['seconds'] is None else manifest['status']} "
            f"after {len(runs)} {'part' if len(runs) == 1 else 'parts'}"
        )
    found: Mapping[str, Any] = runs[0]
    return found


def _question_of(manifest: Mapping[str, Any], cluster: Cluster) -> Question:
    settings = settings_from(manifest["config"])
    cues = tuple(Cue(cue["at"], cue["text"]) for cue in manifest["cues"])
    request = Request(**{**manifest["request"], "cues": cues})
    itemsize = item_size(settings.dtype, cluster)
    spec = model_spec(settings)
    return Question(settings, request, spec, count_steps(settings), cluster, itemsize)


def tell_comparison(run_dir: Path, cluster: str, as_json: bool) -> None:
    """Compare and tell; errors as of `compare_again`."""
    made, found = compare_again(run_dir, load_cluster(cluster))
    if as_json:
        told = {
            "run": str(run_dir),
            "cluster": made.question.cluster.name,
            "strategy": made.question.settings.strategy.kind,
            "workers": made.plan.degrees.world,
            **found.to_dict(),
        }
        sys.stdout.write(json.dumps(told) + "\n")
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("action")
    for name in ("predicted", "measured", "error"):
        table.add_column(name, justify="right")
    for each in (*found.kinds, found.total):
        error = "-" if each.error is None else f"{each.error:+.1%}"
        table.add_row(each.kind, _seconds(each.predicted), _seconds(each.measured), error)
    sent = (found.sent.predicted, found.sent.measured)
    table.add_row("sent", *("-" if size is None else bytes_text(size) for size in sent), "-")
    kind, cluster_name = made.question.settings.strategy.kind, made.question.cluster.name
    degrees = made.plan.degrees.describe()
    sys.stdout.write(f"{kind} on {cluster_name}, {degrees}\n{as_text(table)}\n")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
