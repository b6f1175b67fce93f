"""From what an operator wants to a server that runs until it is stopped."""

from __future__ import annotations

import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from longtake.launch.interrupt import SIGNALS
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door, is_loopback
from longtake.launch.server.cameras import Cameras
from longtake.launch.server.keys import KEYS, KeyFile, Limits
from longtake.launch.server.metrics import Metrics
from longtake.launch.server.offers import Offer, make_offers
from longtake.launch.server.quotas import Ledger
from longtake.launch.server.services import OpenJobs, Services
from longtake.launch.server.uploads import Uploads
from longtake.launch.server.watch import Watch
from longtake.scheduler.errors import UserError

if TYPE_CHECKING:
    from longtake.launch.central import Central

logger = logging.getLogger(__name__)

GRACE = 10  # seconds that answers may still take when the server is stopped
MESSAGE = 1 << 22  # bytes of a message of a live session
CONNECTIONS = 4000


@dataclass(frozen=True)
class Wishes:
    """What an operator wants.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        data: the folder of jobs, videos, keys and quotas.
        models: see `offers.make_offers`.
        limits: of everybody together with those of each key.
        max_upload: bytes of a request.
        origins: of pages of other sites that may use this server.
        open: let everybody in, whatever keys there are.
        cameras: live sessions of clients' frames at a time, made on `camera_device`.
    """

    host: str
    port: int
    data: Path
    models: Sequence[str]
    limits: Limits
    max_upload: int
    origins: Sequence[str]
    open: bool
    cameras: int = 0
    camera_device: str = "auto"


class _Server(uvicorn.Server):
    """Ends streams before it waits for them."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.watch.close()
        await super().shutdown(sockets)


def make_door(wishes: Wishes) -> Door:
    """Whom to let in.

    Raises:
        UserError: other machines could reach a server that asks nobody for a key, which was not
            said to be wanted.
    """
    keys = KeyFile(wishes.data / KEYS)
    known = any(key.revoked_at is None for key in keys.all().values())
    if not known and not wishes.open and not is_loopback(wishes.host):
        raise UserError(
            f"at {wishes.host} other machines could use this server without a key: make one with "
            f"`longtake serve keys add NAME --data {wishes.data}`, or say --no-auth"
        )
    return Door(None if wishes.open or not keys.all() else keys, wishes.limits)


def make_services(
    wishes: Wishes, central: Central, door: Door, offers: Mapping[str, Offer]
) -> Services:
    """Everything that the endpoints share."""
    return Services(
        central=central,
        watch=Watch(central),
        door=door,
        offers=offers,
        ledger=Ledger(wishes.data / "quotas.sqlite"),
        uploads=Uploads(wishes.data / "uploads"),
        cameras=Cameras(wishes.cameras, wishes.camera_device, wishes.data / "uploads"),
        metrics=Metrics(central),
        open_jobs=OpenJobs(central),
        origins=tuple(wishes.origins),
        local_only=door.open and is_loopback(wishes.host),
    )


def serve(
    wishes: Wishes, open_central: Callable[[], Central], ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the address.

    What can be refused is, before `open_central` begins to give jobs to workers.

    Raises:
        UserError: it can't listen there, or a model is not here.
    """
    door = make_door(wishes)
    offers = make_offers(wishes.models)
    with (
        _listen(wishes.host, wishes.port) as listening,
        open_central() as central,
        closing(make_services(wishes, central, door, offers)) as services,
    ):
        server = _Server(_config(make_app(services, wishes.max_upload)), services)
        _allow_many_connections()
        host, port = listening.getsockname()[:2]
        ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        with _signals_end_here():
            server.run([listening])


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """The server below raises a signal once more when it has ended; it has had its effect then."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(f"cannot listen at {host}:{port}: {error.strerror}") from error


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        limit_concurrency=CONNECTIONS,
        ws_max_size=MESSAGE,
        ws_per_message_deflate=False,  # videos don't get smaller
    )


def _allow_many_connections() -> None:
    """Each takes a file descriptor, of which shells allow few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 4 * CONNECTIONS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
