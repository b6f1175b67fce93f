"""Videos that are shown while they are made: over HTTP, over a WebSocket, and across a fault."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.launch.served import FPS, MAX_BODY, FakeCentral, services_of
from tests.launch.test_server import SLOPE

from longtake.launch.api import stream
from longtake.launch.camera import decode, write
from longtake.launch.jobs import Ask, Status
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import KeyFile, Limits
from longtake.runtime.fragments import GrowingVideo
from longtake.scheduler.errors import UserError

LIVE = "ws://localhost/v1/live"
PROMPT = {"prompt": "a red circle", "seconds": 4}


def times(data: bytes) -> list[int]:
    """Of the frames in a file, in units of its time base."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.pts or 0 for frame in container.decode(video=0)]


def whole_frames(data: bytes, folder: Path) -> int:
    """How many frames are in the whole fragments of what has come."""
    (folder / "come").write_bytes(data)
    growing = GrowingVideo(folder / "come", full=1)
    growing.take(enough=len(data) + 1)
    growing.close()
    return growing.frames


def test_a_video_plays_while_it_is_made(
    address: str, fake_central: FakeCentral, tmp_path: Path
) -> None:
    with httpx2.Client(base_url=address, timeout=20) as client:
        id_ = client.post("/v1/videos", json=PROMPT).json()["id"]
        fake_central.begin(id_)
        fake_central.make(id_, 40)
        taken = bytearray()
        with client.stream("GET", f"/v1/videos/{id_}/content") as reply:
            assert reply.headers["content-type"] == "video/mp4"
            assert "content-length" not in reply.headers
            pieces = reply.iter_bytes()
            while whole_frames(taken, tmp_path) < 16:
                taken += next(pieces)  # 24 more frames are still to be made
            fake_central.interrupt(id_)
            fake_central.begin(id_)
            fake_central.make(id_, 64)
            while whole_frames(taken, tmp_path) <= 40:
                taken += next(pieces)
            fake_central.finish(id_)
            for piece in pieces:
                taken += piece
    assert len(times(bytes(taken))) == 64


@pytest.mark.parametrize("end", ["cancelled", "deleted"])
def test_who_gets_less_than_all_sees_it(address: str, fake_central: FakeCentral, end: str) -> None:
    with httpx2.Client(base_url=address, timeout=20) as client:
        id_ = client.post("/v1/videos", json=PROMPT).json()["id"]
        fake_central.begin(id_)
        fake_central.make(id_, 40)
        with (
            pytest.raises(httpx2.RemoteProtocolError),
            client.stream("GET", f"/v1/videos/{id_}/content") as reply,
        ):
            pieces = reply.iter_bytes()
            next(pieces)
            fake_central.cancel(id_)
            if end == "deleted":
                fake_central.delete(id_)
            for _ in pieces:
                pass
        assert client.get("/health").status_code == 200


@pytest.fixture
def session(fake_central: FakeCentral, tmp_path: Path) -> Iterator[TestClient]:
    app = make_app(services_of(fake_central, tmp_path, Door(None, Limits(seconds=60))), MAX_BODY)
    with TestClient(app, "http://localhost") as client:
        yield client


def test_a_live_session(session: TestClient, fake_central: FakeCentral) -> None:
    with session.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "session.start", **PROMPT})
        video = socket.receive_json()["video"]
        assert video["priority"] == "interactive"
        socket.send_json({"type": "prompt.switch", "prompt": "a blue square"})
        assert socket.receive_json() == {"type": "prompt.switched", "from_second": 1.5}
        socket.send_json({"type": "prompt.switch", "prompt": ""})
        assert socket.receive_json()["error"]["param"] == "prompt"
        socket.send_text("[]")
        assert socket.receive_json()["type"] == "error"
        socket.send_bytes(b"a frame")
        assert "camera" in socket.receive_json()["error"]["message"]
        fake_central.whole(video["id"])
        taken = bytearray()
        while "session.ended" not in (message := socket.receive()).get("text", ""):
            taken += message.get("bytes", b"")
        assert '"completed"' in message["text"]
    assert len(times(bytes(taken))) == 64


def test_a_session_ends_with_its_client(session: TestClient, fake_central: FakeCentral) -> None:
    with session.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "session.start", **PROMPT})
        gone = socket.receive_json()["video"]["id"]
    with session.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "session.start", **PROMPT})
        stopped = socket.receive_json()["video"]["id"]
        socket.send_json({"type": "session.stop"})
        assert socket.receive_json()["video"]["status"] == "cancelled"
    for id_ in (gone, stopped):
        fake_central.changed(id_, 1, 20)  # after it was made
        assert fake_central.get(id_).status is Status.CANCELLED


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "JSON"),
        ('{"type": "session.stop"}', "session.start"),
        ('{"type": "session.start"}', "prompt"),
        ('{"type": "session.start", "prompt": "a", "seconds": 61}', "60 s"),
        ('{"type": "session.start", "prompt": "refuse"}', "<file>"),
    ],
)
def test_sessions_that_are_refused(session: TestClient, message: str, words: str) -> None:
    with session.websocket_connect(LIVE) as socket:
        socket.send_text(message)
        told = socket.receive_json()
        assert told["type"] == "error" and words in told["error"]["message"]


def test_a_session_needs_a_key(fake_central: FakeCentral, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secret = keys.add("alice", Limits())
    app = make_app(services_of(fake_central, tmp_path, Door(keys, Limits())), MAX_BODY)
    with TestClient(app, "http://localhost") as client:
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"type": "session.start", **PROMPT})
            assert socket.receive_json()["error"]["code"] == "invalid_api_key"
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"type": "session.start", "key": secret, **PROMPT})
            started = socket.receive_json()
            assert fake_central.get(started["video"]["id"]).owner in keys.all()
        assert fake_central.get(started["video"]["id"]).ask == Ask(
            prompt=((0.0, "a red circle"),), seconds=4.0
        )


FILMS = {seed: np.roll(SLOPE, 8 * seed, 1) for seed in (1, 2)}  # what the cameras see at first
FILM = 45  # frames, whole blocks
ROOM: dict[str, Any] = {"steps": 2, "size": "32x32"}
START = {
    "type": "session.start",
    "input": "camera",
    "prompt": "a red circle",
    "latency": 60,
    **ROOM,
}


def seen(seed: int, number: int) -> np.ndarray:
    """A frame, (32, 32, 3) uint8, of a picture that moves."""
    return np.roll(FILMS[seed], number, 0)[:32, :32, None].repeat(3, 2)


@pytest.fixture
def filming(fake_central: FakeCentral, tmp_path: Path) -> Iterator[TestClient]:
    door = Door(None, Limits(seconds=60))
    services = services_of(fake_central, tmp_path, door, cameras=2, camera_device="cpu")
    with TestClient(make_app(services, MAX_BODY), "http://localhost") as client:
        yield client
        assert services.cameras.free == 2
    assert list((tmp_path / "uploads").iterdir()) == []


@contextmanager
def begun(filming: TestClient, seed: int) -> Iterator[Any]:
    with filming.websocket_connect(LIVE) as socket:
        socket.send_json({**START, "seed": seed})
        assert socket.receive_json() == {"type": "session.started", "fps": FPS}
        yield socket


def refusal(filming: TestClient, asked: dict[str, Any]) -> dict[str, Any]:
    with filming.websocket_connect(LIVE) as socket:
        socket.send_json({**START, **asked})
        told: dict[str, Any] = socket.receive_json()["error"]
        return told


def film(sockets: Mapping[int, Any]) -> None:
    """All send a frame, and all the next one."""
    for number, (seed, socket) in product(range(FILM), sockets.items()):
        held = io.BytesIO()
        Image.fromarray(seen(seed, number)).save(held, "PNG")
        socket.send_bytes(held.getvalue())
    for socket in sockets.values():
        socket.send_json({"type": "session.stop"})


def take(socket: Any) -> tuple[bytes, dict[str, Any]]:
    """The video, and what was told at its end."""
    taken = bytearray()
    while "session.ended" not in (message := socket.receive()).get("text", ""):
        taken += message.get("bytes", b"")
    return bytes(taken), json.loads(message["text"])


def test_sessions_with_cameras_share_launches_and_are_as_alone(
    filming: TestClient, tmp_path: Path
) -> None:
    with begun(filming, 1) as one:
        assert "can't be kept" in refusal(filming, {"latency": 0.01})["message"]
        with begun(filming, 2) as other:
            assert refusal(filming, {})["code"] == "too_many_sessions"
            one.send_json({"type": "prompt.switch", "prompt": ""})
            assert "prompt" in one.receive_json()["error"]["message"]
            film({1: one, 2: other})
            made = {1: take(one), 2: take(other)}
    assert made[1][1]["shared"] == made[2][1]["shared"] >= 2
    for seed, (video, told) in made.items():
        assert told["launches"] >= told["shared"]
        assert (told["live"]["frames"], told["live"]["late"]) == (FILM, 0)
        pictures, out = (seen(seed, number) for number in range(FILM)), tmp_path / f"{seed}.mp4"
        alone = stream("a red circle", seed=seed, input_video=pictures, strategy="stream", **ROOM)
        with alone as frames:
            write(frames, FPS, out)
        mine, true = pictures_of(video), pictures_of(out.read_bytes())
        assert mine.shape == true.shape == (FILM, 32, 32, 3)
        assert np.abs(mine - true).max() <= 3  # to rounding, through a codec
    assert np.abs(pictures_of(made[1][0]) - pictures_of(made[2][0])).max() > 30


def pictures_of(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(int)


def test_frames_that_are_none() -> None:
    with pytest.raises(UserError, match="damaged"):
        decode(b"GIF89a")


def test_a_server_without_cameras_says_so(session: TestClient) -> None:
    with session.websocket_connect(LIVE) as socket:
        socket.send_json({"type": "session.start", "input": "camera", **PROMPT})
        assert socket.receive_json()["error"]["code"] == "no_cameras"
