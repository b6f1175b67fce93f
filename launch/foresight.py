"""The commands that tell of runs before they are run: `plan` and `simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longtake.scheduler.errors import UserError

Cluster = Annotated[
    str, typer.Option(help="A name out of configs/cluster, or a .yaml file of that form.")
]
PromptAt = Annotated[
    list[str] | None,
    typer.Option(metavar="SECONDS=TEXT", help="Another prompt from a second on; repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of configs/; repeatable."),
]
Model = Annotated[str, typer.Option(help="A name out of `longtake models`, or a folder.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps of a block.")]
Draw = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw who does what when, as .svg or .png.")
]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="The same for Perfetto.")]
Validate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Compare with published figures instead.")
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="RUN_DIR", help="Compare with a finished run instead: NAME.run."),
]
ANY_PROMPT = "anything"


def plan(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")] = ANY_PROMPT,
    seconds: Annotated[float | None, typer.Option(help="Length; else the model's own.")] = None,
    model: Model = "tinyworld",
    cluster: Cluster = "h100x8",
    goal: Annotated[
        str, typer.Option(metavar="latency|throughput|first-frame|memory|energy")
    ] = "latency",
    label: Annotated[
        str | None, typer.Option(help="exact: no strategy that computes something else.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="The whole video by then.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Only this one; repeatable. Else all that suit the model."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Exactly so many; else as many as are best.")
    ] = None,
    best: Annotated[int, typer.Option(metavar="N", help="How many plans to tell.")] = 5,
    prompt_at: PromptAt = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT")] = None,
    steps: Steps = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell all as one JSON object.")] = False,
    settings: Settings = None,
) -> None:
    """Tell which plan to take on a cluster, what it will cost, and why others are impossible.

    For example: longtake plan "a lighthouse in a storm" --seconds 6 --model self-forcing
    --cluster h100x1
    """
    from longtake.launch.ask import read_prompt, read_prompts_at
    from longtake.launch.plan import read_question, tell_plan
    from longtake.scheduler.planner import Goal, Wish

    if goal not in list(Goal):
        raise UserError(f"unknown goal {goal!r}; known: {', '.join(Goal)}")
    question = read_question(
        read_prompt(read_prompts_at(prompt, prompt_at or [])),
        cluster=cluster,
        model=model,
        seconds=seconds,
        size=size,
        strategy=None,
        steps=steps,
        settings=settings or [],
    )
    there = len(question.cluster.devices)
    if workers is not None and not 1 <= workers <= there:
        raise UserError(
            f"{question.cluster.name} has 1 to {there} devices for workers, not {workers}"
        )
    wish = Wish(
        Goal(goal),
        label,
        deadline,
        best,
        workers=workers,
        degrees=question.settings.parallel.degrees,
    )
    raise typer.Exit(tell_plan(question, strategy or [], wish, as_json))


def simulate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")] = ANY_PROMPT,
    seconds: Annotated[float | None, typer.Option(help="Length; else the model's own.")] = None,
    model: Model = "tinyworld",
    cluster: Cluster = "h100x8",
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Else all devices of the cluster.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="causal, bidirectional, ...")] = None,
    prompt_at: PromptAt = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT")] = None,
    steps: Steps = None,
    draw: Draw = None,
    trace: Trace = None,
    jitter: Annotated[
        float, typer.Option(help="Spread of how long workers take; 0.05 is about 5 %.")
    ] = 0.0,
    straggler: Annotated[
        list[str] | None, typer.Option(metavar="RANK=FACTOR", help="A slow worker; repeatable.")
    ] = None,
    lose: Annotated[
        list[str] | None,
        typer.Option(metavar="SECONDS[=RANK]", help="A worker is lost then; repeatable."),
    ] = None,
    restart: Annotated[float, typer.Option(help="Seconds until all are there again.")] = 60.0,
    chance: Annotated[int, typer.Option(help="Another number draws other delays.")] = 0,
    validate: Validate = None,
    against: Against = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell all as JSON.")] = False,
    settings: Settings = None,
) -> None:
    """Tell what a run would take on a cluster, without running it; no weight is needed.

    For example: longtake simulate --seconds 6 --model self-forcing --cluster h100x8
    --draw gantt.svg
    """
    if against is not None:
        from longtake.launch.against import tell_comparison

        tell_comparison(against, cluster, as_json)
        return
    if validate is not None:
        from longtake.launch.validate import validate as compare

        typer.echo(compare(validate, as_json))
        return
    from longtake.launch.ask import read_prompt, read_prompts_at
    from longtake.launch.plan import read_question
    from longtake.launch.simulate import read_conditions, tell_simulation

    conditions = read_conditions(chance, jitter, straggler or [], lose or [], restart)
    question = read_question(
        read_prompt(read_prompts_at(prompt, prompt_at or [])),
        cluster=cluster,
        model=model,
        seconds=seconds,
        size=size,
        strategy=strategy,
        steps=steps,
        settings=settings or [],
        workers=workers,
        all_devices=workers is None,
    )
    tell_simulation(question, conditions, draw, trace, as_json)


def calibrate(
    out: Annotated[Path, typer.Option(help="The cluster, a .yaml file.")] = Path("here.yaml"),
    workers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes that share this machine.")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    model: Annotated[
        str, typer.Option(help="Measure in the shape of this model, out of `longtake models`.")
    ] = "tinyworld",
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="RUN_DIR",
            help="Measure nothing, but correct --cluster by a run that was made on it; repeatable.",
        ),
    ] = None,
    cluster: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="What --from corrects.")
    ] = "here.yaml",
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell all as one JSON object.")] = False,
) -> None:
    """Measure this machine, and describe it in a file that --cluster takes; half a minute.

    For example: longtake calibrate --device cpu --out here.yaml
    """
    from longtake.launch.calibrate import tell_calibration, tell_correction
    from longtake.launch.session import quiet_libraries

    quiet_libraries()
    if runs:
        tell_correction(runs, cluster, out, force, as_json)
        return
    tell_calibration(out, model, workers, device, force, as_json)
