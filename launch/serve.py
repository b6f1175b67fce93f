"""`longtake serve`: videos over HTTP, and the keys of those who may ask for them."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longtake.scheduler.errors import UserError

if TYPE_CHECKING:
    from longtake.launch.central import Central
    from longtake.launch.fleet import Fleet
    from longtake.launch.server.keys import KeyFile

HERE = Path("longtake-data")
MIB = 1 << 20

app = typer.Typer(
    invoke_without_command=True,
    help="""Serve videos over HTTP: an API in the style of OpenAI's, and a page. What is not done at
    Ctrl-C goes on with the next start.

    For example: longtake serve --workers 2 --port 8000""",
)
keys = typer.Typer(no_args_is_help=True, help="API keys; a server that runs takes up changes.")
app.add_typer(keys, name="keys")

Data = Annotated[Path, typer.Option(metavar="DIR", help="Where jobs, videos and keys are kept.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=FOLDER[,CHECKPOINT]]", help="A model to serve; else all. Repeatable."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="GPUs of this host, or shares of its cores.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="auto|HOST:PORT", help="All devices of this Ray cluster instead."),
]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="What the devices are, to foretell what runs take."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="A site whose pages may use this server; repeatable."),
]
Cameras = Annotated[
    int, typer.Option(metavar="N", help="Live sessions of clients' own frames, at a time.")
]
CameraDevice = Annotated[
    str, typer.Option(metavar="DEVICE", help="Kept for them: auto, cpu, cuda or cuda:N.")
]


@app.callback()
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    data: Data = HERE,
    model: Models = None,
    device: Device = "auto",
    workers: Workers = None,
    ray_address: RayAddress = None,
    cluster: Cluster = None,
    max_seconds: Annotated[float, typer.Option(help="Length of a video, at most.")] = 600.0,
    max_upload: Annotated[int, typer.Option(metavar="MIB", help="A request, at most.")] = 64,
    origin: Origins = None,
    cameras: Cameras = 0,
    camera_device: CameraDevice = "auto",
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in.")] = False,
    log: Annotated[str, typer.Option(metavar="text|json", help="Form of the log.")] = "text",
) -> None:
    """Serve until Ctrl-C."""
    if ctx.invoked_subcommand is not None:
        return
    try:
        from longtake.launch.server.keys import Limits
        from longtake.launch.server.serving import Wishes
        from longtake.launch.server.serving import serve as run
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; add it with: pip install 'longtake[serve]'"
        ) from error
    if ray_address is not None and (workers is not None or device != "auto"):
        raise UserError("--ray-address takes all of a cluster, --workers and --device this host")
    _begin_log(log)
    wishes = Wishes(
        host=host,
        port=port,
        data=data,
        models=model or [],
        limits=Limits(seconds=max_seconds),
        max_upload=max_upload * MIB,
        origins=origin or [],
        open=no_auth,
        cameras=cameras,
        camera_device=camera_device,
    )

    def open_central() -> Central:
        return _open_central(data, device, workers, ray_address, cluster, log)

    run(wishes, open_central, lambda address: typer.echo(f"serving at {address}"))


@keys.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    data: Data = HERE,
    jobs: Annotated[int | None, typer.Option(help="Videos at a time.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length of a video.")] = None,
    seconds_per_day: Annotated[float | None, typer.Option(help="Of all its videos.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Of any kind.")] = None,
    batch_only: Annotated[
        bool, typer.Option("--batch-only", help="It may not go before others.")
    ] = False,
) -> None:
    """Make a key, and tell it for the only time.

    For example: longtake serve keys add alice --jobs 4 --seconds-per-day 3600
    """
    from longtake.launch.server.keys import Limits

    limits = Limits(jobs, seconds, seconds_per_day, requests_per_minute, not batch_only)
    typer.echo(_keys(data).add(name, limits))


@keys.command("list")
def list_keys(data: Data = HERE) -> None:
    """Tell which keys there are.

    For example: longtake serve keys list
    """
    for key in _keys(data).all().values():
        made = time.strftime("%Y-%m-%d", time.localtime(key.created_at))
        state = "active " if key.revoked_at is None else "revoked"
        typer.echo(f"{key.id}  {state}  {made}  {key.name}  ({key.limits.describe()})")


@keys.command("revoke")
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="Out of `longtake serve keys list`.")],
    data: Data = HERE,
) -> None:
    """Refuse a key from now on; its videos stay.

    For example: longtake serve keys revoke 1f2e3d4c
    """
    key = _keys(data).revoke(id_)
    typer.echo(f"{key.id} ({key.name}) is refused from now on")


def _keys(data: Path) -> KeyFile:
    from longtake.launch.server.keys import KEYS, KeyFile

    return KeyFile(data / KEYS)


def _begin_log(form: str) -> None:
    from longtake.launch.logs import FORMATS, log_to
    from longtake.launch.session import quiet_libraries

    if form not in FORMATS:
        raise UserError(f"--log must be one of {', '.join(FORMATS)}; got {form!r}")
    quiet_libraries()
    log_to(sys.stderr, form)
    logging.getLogger("uvicorn").handlers = logging.getLogger("longtake").handlers


def _open_central(
    data: Path,
    device: str,
    workers: int | None,
    ray_address: str | None,
    cluster: str | None,
    log: str,
) -> Central:
    from longtake.launch.central import Central
    from longtake.launch.job_store import JobStore
    from longtake.launch.local_fleet import LocalFleet

    fleet: Fleet
    if ray_address is None:
        fleet = LocalFleet(data / "logs", device, workers, log_format=log)
    else:
        from longtake.launch.ray_fleet import RayFleet

        fleet = RayFleet(data / "logs", ray_address, log_format=log)
    return Central(JobStore(data / "jobs.sqlite"), fleet, data / "videos", cluster)
