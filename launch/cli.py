"""The command line. What is heavy is imported inside the commands, so help is instant."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import longtake
from longtake.launch import cluster_command, foresight, serve, slurm
from longtake.scheduler.errors import UserError

if TYPE_CHECKING:
    from longtake.launch.draft import Draft
    from longtake.launch.run import Run
    from longtake.launch.surroundings import Surroundings

EXIT_USER = 2
EXIT_INTERRUPTED = 130


class _Group(TyperGroup):
    """Mistakes of the user are one line and an exit code, never a trace."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(EXIT_USER) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    help="Minutes of coherent video from a prompt.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(slurm.app, name="slurm")
app.add_typer(cluster_command.app, name="cluster")
app.add_typer(serve.app, name="serve")
app.command()(foresight.plan)
app.command()(foresight.simulate)
app.command()(foresight.calibrate)

Launcher = Annotated[
    str,
    typer.Option(
        metavar="auto|local|torchrun|slurm|ray", help="Who starts the workers; auto: who did."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="A Ray cluster for the workers; else RAY_ADDRESS."),
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Processes of this host that share the work.")
]
Model = Annotated[str, typer.Option(help="A name out of `longtake models`, or a folder.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of configs/; repeatable."),
]
Plan = Annotated[
    str | None,
    typer.Option(
        metavar="auto|fit",
        help="auto: share out the work so that it should be done soonest; fit: by a rule.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="What describes the devices, for --plan; else here.yaml, or their names.",
    ),
]
InputVideo = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Make it from this video, with --strategy stream."),
]
Live = Annotated[
    bool, typer.Option("--live", help="Take its frames at their real rate; tell how late they get.")
]
PromptAt = Annotated[
    list[str] | None,
    typer.Option(metavar="SECONDS=TEXT", help="Another prompt from a second on; repeatable."),
]
FramesDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write every frame as PNG too.")
]
Trace = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Tell Perfetto what all workers did.")
]
RunDir = Annotated[
    Path | None, typer.Option(help="What a resume needs; else OUT with .run, beside it.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell what was predicted beside what it took.")
]
Json = Annotated[bool, typer.Option("--json", help="Tell all as JSON, one object a line.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longtake {longtake.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Tell the version."),
    ] = False,
) -> None:
    pass


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")],
    seconds: Annotated[float | None, typer.Option(help="Length; else the model's own.")] = None,
    out: Annotated[Path, typer.Option(help="The video, an .mp4 file.")] = Path("video.mp4"),
    prompt_at: PromptAt = None,
    seed: Annotated[int | None, typer.Option(help="Another seed is another video.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    model: Model = "tinyworld",
    strategy: Annotated[str | None, typer.Option(help="causal, bidirectional, ...")] = None,
    input_video: InputVideo = None,
    live: Live = False,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of a block.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    workers: Workers = None,
    plan: Plan = None,
    cluster: Cluster = None,
    run_dir: RunDir = None,
    frames: FramesDir = None,
    trace: Trace = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    launcher: Launcher = "auto",
    ray_address: RayAddress = None,
    as_json: Json = False,
    verbose: Verbose = False,
    settings: Settings = None,
) -> None:
    """Make a video, alone or as one of the workers that torchrun or srun started.

    For example: longtake generate "a red circle standing still on a gray background" --seconds 2
    --out circle.mp4
    """
    around = _surroundings(launcher, ray_address)

    def make_run() -> Run:
        from longtake.launch.ask import read_prompt, read_prompts_at, read_settings
        from longtake.launch.draft import make_draft
        from longtake.launch.places import read_places

        kind, world = _kind_of_run(around)
        cues = read_prompt(read_prompts_at(prompt, prompt_at or []))
        composed = read_settings(
            model=model,
            strategy=strategy,
            steps=steps,
            size=size,
            settings=settings or [],
            seconds=seconds,
            seed=seed,
            fps=fps,
            device=device,
            dtype=dtype,
            workers=workers if around is None else around.workers(workers),
            plan=plan,
            cluster=cluster,
            input_video=None if input_video is None else str(input_video),
            live=live or None,
        )
        hosts = kind.hosts(around, composed.parallel.workers)
        draft = make_draft(composed, cues, composed.seconds, hosts)
        return kind.new(draft, read_places(out, run_dir, frames, force), world, trace)

    _take_part(around, make_run, as_json, verbose)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="What `generate` kept: NAME.run.")],
    out: Annotated[
        Path | None, typer.Option(help="The video, for a run that began as a stream.")
    ] = None,
    launcher: Launcher = "auto",
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed.

    For example: longtake resume circle.run
    """
    around = _surroundings(launcher, ray_address)

    def make_run() -> Run:
        kind, world = _kind_of_run(around)
        return kind.kept(run_dir, out, world)

    _take_part(around, make_run, as_json)


def _surroundings(launcher: str = "auto", ray_address: str | None = None) -> Surroundings | None:
    from longtake.launch.surroundings import choose

    return choose(os.environ, launcher, ray_address)


def _kind_of_run(around: Surroundings | None) -> tuple[type[Run], Surroundings | None]:
    """How a run is done, and the world that it is rank 0 of, which a driver of Ray is not."""
    if around is None or around.launcher != "ray":
        from longtake.launch.run import Run

        return Run, around
    from longtake.launch.ray_cluster import join_cluster
    from longtake.launch.ray_run import RayRun

    join_cluster(around.address)
    return RayRun, None


def _take_part(
    around: Surroundings | None, make_run: Callable[[], Run], as_json: bool, verbose: bool = False
) -> None:
    """Rank 0 makes the run and tells of it; the others follow."""
    from longtake.launch.crew import meeting_of
    from longtake.launch.progress import make_display
    from longtake.launch.session import join, quiet_libraries, tell

    quiet_libraries()
    if around is not None and around.rank > 0:
        raise typer.Exit(join(meeting_of(around), around.local_rank))
    raise typer.Exit(tell(make_run, make_display(as_json), around, verbose))


@app.command()
def check(
    model: Model = "tinyworld",
    seconds: Annotated[float | None, typer.Option(help="Length; else the model's own.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT")] = None,
    strategy: Annotated[str | None, typer.Option(help="causal, bidirectional, ...")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    workers: Workers = None,
    plan: Plan = None,
    cluster: Cluster = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell all as one JSON object.")] = False,
    settings: Settings = None,
) -> None:
    """Tell whether a run would work, and how fast its workers are linked; no weight is loaded.

    For example: longtake check --model tinyworld --seconds 60
    """
    from longtake.launch.check import ANY_PROMPT, tell_check
    from longtake.launch.crew import meeting_of
    from longtake.launch.session import join, quiet_libraries

    around = _surroundings()
    if around is not None and around.launcher == "ray":
        around = None  # what is checked are workers of this host

    def compose() -> Draft:
        from longtake.launch.ask import read_settings
        from longtake.launch.draft import make_draft
        from longtake.launch.surroundings import ALL_HERE

        composed = read_settings(
            model=model,
            strategy=strategy,
            steps=None,
            size=size,
            settings=settings or [],
            seconds=seconds,
            device=device,
            dtype=dtype,
            workers=workers if around is None else around.workers(workers),
            plan=plan,
            cluster=cluster,
        )
        hosts = ALL_HERE if around is None else around.hosts
        return make_draft(composed, [ANY_PROMPT], composed.seconds, hosts)

    quiet_libraries()
    if around is not None and around.rank > 0:
        raise typer.Exit(join(meeting_of(around), around.local_rank))
    raise typer.Exit(tell_check(compose, around, as_json))


@app.command("eval")
def evaluate(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    prompt: Annotated[
        str | None, typer.Option(help="Judge by this; else by the run beside the video.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Tell all numbers as JSON.")] = False,
) -> None:
    """Measure how well a video keeps to its prompts, from its pixels alone.

    For example: longtake eval circle.mp4
    """
    from longtake.launch.judge import judge
    from longtake.launch.progress import LineDisplay
    from longtake.launch.session import quiet_libraries, warnings_to
    from longtake.launch.tables import report_table

    quiet_libraries()
    with warnings_to(LineDisplay()):
        report = judge(video, prompt)
    typer.echo(json.dumps(report.to_dict()) if as_json else report_table(report))


@app.command()
def models() -> None:
    """Tell which models there are, where they lie, and how to get those that are not here.

    For example: longtake models
    """
    from longtake.launch.session import quiet_libraries
    from longtake.launch.tables import models_table

    quiet_libraries()
    typer.echo(models_table())


@app.command()
def strategies() -> None:
    """Tell which strategies there are, what each does, and by whom it was found.

    For example: longtake strategies
    """
    from longtake.launch.session import quiet_libraries
    from longtake.launch.tables import strategies_table

    quiet_libraries()
    typer.echo(strategies_table())


def main() -> None:
    """The console script."""
    app()
