"""The API: what it answers, whom it lets in, and what it never tells."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from tests.launch.served import FPS, MAX_BODY, FakeCentral, noise, services_of

from longtake.launch.jobs import Status
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import Limits
from longtake.runtime.video import Mp4Writer

PROMPT = "a large red circle bouncing around slowly on a gray background"


@pytest.fixture
def client(fake_central: FakeCentral, tmp_path: Path) -> Iterator[TestClient]:
    """Somebody at a server that asks for no key."""
    app = make_app(services_of(fake_central, tmp_path, Door(None, Limits(seconds=100))), MAX_BODY)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as client:
        yield client


def create(client: TestClient, **fields: Any) -> dict[str, Any]:
    reply = client.post("/v1/videos", json={"prompt": PROMPT, **fields})
    assert reply.status_code == 200, reply.text
    video: dict[str, Any] = reply.json()
    return video


def test_a_video_is_what_was_asked(client: TestClient, fake_central: FakeCentral) -> None:
    timeline = [{"at": 0, "text": "one"}, {"at": 2, "text": "two"}]
    asked = {
        "prompts": timeline,
        "seconds": "4",
        "size": "64x64",
        "seed": 7,
        "strategy": "causal",
        "steps": 2,
        "guidance": 2.0,
        "negative_prompt": "blur",
        "priority": "interactive",
        "deadline": 60,
        "settings": {"strategy.window": 9},
    }
    video = client.post("/v1/videos", json=asked).json()
    assert video["object"] == "video" and video["status"] == "queued"
    assert (video["seconds"], video["size"], video["model"]) == ("4", "64x64", "tinyworld")
    assert video["prompts"] == timeline and video["prompt"] == "one"
    ask = fake_central.get(video["id"]).ask
    assert ask.prompt == ((0.0, "one"), (2.0, "two"))
    assert (ask.seed, ask.steps, ask.guidance, ask.negative) == (7, 2, 2.0, "blur")
    assert ask.settings == ("strategy.window=9",)
    assert client.get(f"/v1/videos/{video['id']}").json() == video


def test_pages_of_videos(client: TestClient) -> None:
    made = [create(client)["id"] for _ in range(5)]
    first = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == made[:2:-1]
    assert first["has_more"] and first["last_id"] == made[3]
    rest = client.get("/v1/videos", params={"after": first["last_id"]}).json()
    assert [video["id"] for video in rest["data"]] == made[2::-1]
    assert not rest["has_more"]
    oldest = client.get("/v1/videos", params={"limit": 1, "order": "asc"}).json()
    assert oldest["data"][0]["id"] == made[0]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({}, 400, "either prompt or prompts"),
        ({"prompt": "a", "prompts": [{"at": 0, "text": "b"}]}, 400, "either prompt or prompts"),
        ({"prompt": "a", "model": "/etc/passwd"}, 400, "model"),
        ({"prompt": "a", "model": "sora-2"}, 404, "this server has: tinyworld"),
        ({"prompt": "a", "out": "/tmp/x.mp4"}, 400, "out: Extra inputs"),
        ({"prompt": "a", "settings": {"model.folder": "/etc"}}, 400, "legal is strategy.NAME"),
        ({"prompt": "a", "settings": {"strategy.kind": "dual"}}, 400, "legal is strategy.NAME"),
        ({"prompt": "a", "strategy": "magic"}, 400, "unknown strategy"),
        ({"prompt": "a", "seconds": "soon"}, 400, "seconds"),
        ({"prompt": "a", "seconds": 101}, 400, "may be 100 s long"),
        ({"prompt": "a", "input_reference": {"image_url": "http://x/y.png"}}, 400, "data URL"),
        ({"prompt": "\ud800"}, 400, "prompt"),
        ({"prompt": "a", "\ud800": 1}, 400, "valid string"),
    ],
)
def test_what_is_wrong_is_told(
    client: TestClient, fields: dict[str, Any], status: int, words: str
) -> None:
    reply = client.post(
        "/v1/videos", content=json.dumps(fields), headers={"Content-Type": "application/json"}
    )
    error = reply.json()["error"]
    assert reply.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert words in error["message"]


@pytest.mark.parametrize("body", ["{", "[]", "1", '{"prompt": 1e999}', "[" * 100_000, "\xff"])
def test_bodies_that_are_none(client: TestClient, body: str) -> None:
    reply = client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"


def test_no_path_and_no_trace_is_told(client: TestClient, fake_central: FakeCentral) -> None:
    refused = client.post("/v1/videos", json={"prompt": "refuse"})
    assert refused.json()["error"]["message"] == "no weights at <file>, or elsewhere"
    crashed = client.post("/v1/videos", json={"prompt": "crash"})
    assert crashed.status_code == 500 and "srv" not in crashed.text
    assert crashed.headers["x-request-id"] in crashed.text
    id_ = create(client)["id"]
    fake_central.set(id_, status=Status.FAILED, error="/srv/run/lock is in use")
    assert client.get(f"/v1/videos/{id_}").json()["error"]["message"] == "<file> is in use"


def test_a_full_disk_is_no_mistake_of_anybody(client: TestClient) -> None:
    refused = client.post("/v1/videos", json={"prompt": "full"})
    assert refused.status_code == 503 and refused.headers["retry-after"] == "30"
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "unavailable")
    assert error["message"].startswith("the disk of the server is full")


def test_what_does_not_exist(client: TestClient) -> None:
    for method, path in [
        ("GET", "/v1/videos/video_1"),
        ("DELETE", f"/v1/videos/{'video_' + '0' * 32}"),
        ("GET", "/v1/videos/video_1/content"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1/models/none"),
        ("GET", "/../../etc/passwd"),
        ("GET", "/%2e%2e/app.py"),
    ]:
        reply = client.request(method, path)
        assert (reply.status_code, set(reply.json())) == (404, {"error"}), path
    assert client.put("/v1/videos").status_code == 405


def test_cancel_and_delete(client: TestClient) -> None:
    id_ = create(client)["id"]
    conflict = client.delete(f"/v1/videos/{id_}")
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "conflict")
    assert client.post(f"/v1/videos/{id_}/cancel").json()["status"] == "cancelled"
    assert client.get(f"/v1/videos/{id_}/content").status_code == 404
    gone = client.delete(f"/v1/videos/{id_}").json()
    assert gone == {"id": id_, "object": "video.deleted", "deleted": True}
    assert client.get(f"/v1/videos/{id_}").status_code == 404


def test_ranges_of_a_video(client: TestClient, fake_central: FakeCentral) -> None:
    id_ = create(client)["id"]
    address = f"/v1/videos/{id_}/content"
    waiting = client.get(address)
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "video_not_ready")
    whole = Path(fake_central.whole(id_).video).read_bytes()
    assert client.get(address).content == whole
    part = client.get(address, headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole)}"
    assert client.get(address, headers={"Range": "bytes=-10"}).content == whole[-10:]
    assert client.get(address, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    for bad in ("bytes=9-1", "lines=1-2", "bytes=a-b"):
        assert client.get(address, headers={"Range": bad}).status_code == 400
    assert client.get(address, params={"variant": "thumbnail"}).status_code == 400


def test_the_prompt_is_switched(client: TestClient, fake_central: FakeCentral) -> None:
    id_ = create(client)["id"]
    reply = client.post(f"/v1/videos/{id_}/prompt", json={"prompt": "another"})
    assert reply.json() == {"id": id_, "object": "video.prompt", "from_second": 1.5}
    assert client.post(f"/v1/videos/{id_}/prompt", json={"prompt": " "}).status_code == 400
    fake_central.whole(id_)
    assert client.post(f"/v1/videos/{id_}/prompt", json={"prompt": "b"}).status_code == 409


def test_models_and_plans(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["size"], model["fps"]) == ("tinyworld", "64x64", 16)
    assert client.get("/v1/models/tinyworld").json() == model
    plan = client.post("/v1/plans", json={"prompt": PROMPT, "seconds": 9})
    assert plan.json() == {"plans": [], "asked": 9.0}
    assert client.post("/v1/plans", json={"prompt": PROMPT, "seconds": 900}).status_code == 400


def test_health_and_metrics(client: TestClient, fake_central: FakeCentral) -> None:
    assert client.get("/health").json() == {"status": "ok", "problems": []}
    fake_central.problems = ("worker cpu:1 is lost, see /var/log/x",)
    sick = client.get("/health")
    assert sick.status_code == 503
    assert sick.json()["problems"] == ["worker cpu:1 is lost, see <file>"]
    told = client.get("/metrics").text
    for line in (
        "longtake_seconds_per_video_second 0.5",
        'longtake_stage_seconds_total{stage="denoise"} 3.0',
        "longtake_queue_age_seconds 1.5",
        "longtake_faults_survived_total 2.0",
        'longtake_exposed_communication_seconds_total{device="cpu:0"} 0.25',
        'longtake_link_bytes_total{source="cpu:0",target="cpu:1"} 4096.0',
        'longtake_cache_bytes{device="cpu:0",state="free"} 70.0',
        'longtake_devices{state="lost"} 1.0',
        'longtake_http_requests_total{method="GET",route="/health",status="503"} 1.0',
        "longtake_healthy 0.0",
    ):
        assert line in told.splitlines()


SLOPE = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


def picture() -> bytes:
    held = io.BytesIO()
    Image.fromarray(SLOPE).save(held, "PNG")
    return held.getvalue()


def film(folder: Path) -> bytes:
    writer = Mp4Writer(folder / "film.mp4", fps=FPS, height=64, width=64)
    writer.write(noise(0, 32))
    writer.close()
    return (folder / "film.mp4").read_bytes()


def test_inputs_by_form_and_by_data_url(
    client: TestClient, fake_central: FakeCentral, tmp_path: Path
) -> None:
    sent = film(tmp_path)
    form = {"prompt": PROMPT, "settings": '{"strategy.window": 9}'}
    file = {"input_reference": ("../../x.sh", sent, "image/png")}
    video = client.post("/v1/videos", data=form, files=file).json()
    assert fake_central.inputs == [sent]
    ask = fake_central.get(video["id"]).ask
    assert (ask.strategy, ask.seconds) == ("stream", 2.0)
    assert "x.sh" not in str(ask.input_video)
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    create(client, seconds=3, input_reference={"image_url": url})
    with av.open(io.BytesIO(fake_central.inputs[1])) as still:
        frames = [frame.to_ndarray(format="rgb24") for frame in still.decode(video=0)]
    assert len(frames) == 3  # one a second
    assert np.abs(frames[2].astype(int) - SLOPE[..., None]).mean() < 4
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"#!/bin/sh\nrm -rf /", picture()[:40], b"\x00\x00\x00\x18ftypmp42" + bytes(99)],
    ids=["empty", "script", "cut", "no video"],
)
def test_inputs_that_are_none(client: TestClient, data: bytes) -> None:
    reply = client.post(
        "/v1/videos",
        data={"prompt": PROMPT},
        files={"input_reference": ("a.mp4", data, "video/mp4")},
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "input_reference"


def test_large_requests_are_refused(client: TestClient) -> None:
    for body in ({"json": {"prompt": "a" * MAX_BODY}}, {"files": {"x": bytes(2 * MAX_BODY)}}):
        reply = client.post("/v1/videos", **body)  # type: ignore[arg-type]
        assert (reply.status_code, set(reply.json())) == (413, {"error"})


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    body = {"json": {"prompt": PROMPT}}
    foreign = client.post("/v1/videos", headers={"Origin": "https://evil.example"}, **body)
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_refused")
    own = client.post("/v1/videos", headers={"Origin": "http://localhost"}, **body)
    assert own.status_code == 200
    rebound = client.get("/v1/videos", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_refused")
    assert "access-control-allow-origin" not in foreign.headers


def test_events_tell_all_that_happens(client: TestClient, fake_central: FakeCentral) -> None:
    id_ = create(client)["id"]
    fake_central.begin(id_)
    threading.Timer(0.3, lambda: (fake_central.make(id_, 64), fake_central.finish(id_))).start()
    with client.stream("GET", f"/v1/videos/{id_}/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        told = "".join(reply.iter_text()).split("\n\n")
    kinds = [part.splitlines()[0].removeprefix("event: ") for part in told if part]
    kinds = [kind for kind in kinds if kind != "video"]
    assert kinds == ["created", "started", "block", "completed"]
    assert json.loads(told[-2].split("data: ")[1])["status"] == "completed"
