"""docs/operations.md: every request that it shows is sent, and every endpoint is shown."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from fastapi.routing import APIWebSocketRoute
from starlette.testclient import TestClient
from tests.launch.served import FPS, MAX_BODY, FakeCentral, services_of
from tests.launch.test_server import picture

from longtake.launch.jobs import Ask
from longtake.launch.server import live
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import KeyFile, Limits

DOCS = Path(__file__).parents[2] / "docs"


def commands() -> Iterator[list[str]]:
    """All of `curl` between the marks, split as a shell does."""
    text = (DOCS / "operations.md").read_text("utf-8")
    marked = text.partition("<!-- requests -->")[2].partition("<!-- end of requests -->")[0]
    for block in re.findall(r"```sh\n(.*?)```", marked, re.DOTALL):
        words = shlex.split(block)
        starts = [index for index, word in enumerate(words) if word == "curl"]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            yield words[start:end]


class Curl:
    """Sends what a command says to a server in this process."""

    def __init__(self, client: TestClient, secret: str, central: FakeCentral, owner: str) -> None:
        self._client, self._central, self._owner = client, central, owner
        self._values = {"$URL": "", "$KEY": secret}

    def run(self, words: list[str]) -> tuple[str, str, int]:
        """Method, address and status."""
        method, address, sent = None, "", dict[str, Any]()
        headers: dict[str, str] = {}
        rest = iter(words[1:])
        for word in rest:
            match word:
                case "-X":
                    method = next(rest)
                case "-H":
                    name, _, value = self._filled(next(rest)).partition(": ")
                    headers[name] = value
                case "-d":
                    sent["content"] = json.dumps(json.loads(next(rest)))
                case "-F":
                    name, _, value = next(rest).partition("=")
                    kind, content = ("files", picture()) if value[0] == "@" else ("data", value)
                    sent.setdefault(kind, {})[name] = content
                case "-o":
                    next(rest)
                case _:
                    address = word
        method = method or ("POST" if sent else "GET")
        filled = self._filled(address.replace("$ID", self._video(method, address)))
        return (
            method,
            address,
            self._client.request(method, filled, headers=headers, **sent).status_code,
        )

    def _filled(self, text: str) -> str:
        for name, value in self._values.items():
            text = text.replace(name, value)
        return text

    def _video(self, method: str, address: str) -> str:
        """One in the state that the request is for."""
        job = self._central.submit(Ask(((0.0, "a circle"),), seconds=1.0), self._owner)
        if address.endswith(("content", "events")):
            self._central.whole(job.id)
        if method == "DELETE":
            self._central.cancel(job.id)
        return job.id


def test_requests_of_the_document_work(fake_central: FakeCentral, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secret = keys.add("alice", Limits())
    (owner,) = keys.all()
    app = make_app(services_of(fake_central, tmp_path, Door(keys, Limits())), MAX_BODY)
    with TestClient(app, "http://localhost") as client:
        curl = Curl(client, secret, fake_central, owner)
        shown = set()
        for words in commands():
            method, address, status = curl.run(words)
            assert status == 200, words
            path = address.removeprefix("$URL").partition("?")[0].replace("$ID", "{video_id}")
            shown.add((method, path.replace("models/tinyworld", "models/{model}")))
        document = client.get("/openapi.json").json()
    there = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert shown == there


@pytest.fixture
def diligent(fake_central: FakeCentral) -> Iterator[None]:
    """Whatever is asked for is made at once."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.01):
            for job in fake_central.store.unfinished():
                fake_central.whole(job.id)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("diligent")
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_programs_of_the_document_work(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "operations.md").read_text("utf-8")
    programs = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    sockets = [each.path for each in live.router.routes if isinstance(each, APIWebSocketRoute)]
    assert sockets and all(path in programs for path in sockets)
    exec(programs.replace("127.0.0.1:8000", address.removeprefix("http://")), {})
    for made, frames in (("circle.mp4", 8 * FPS), ("live.mp4", 4 * FPS)):
        with av.open(made) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames


@pytest.mark.parametrize("where", ["operations.md", "grafana.json"])
def test_every_number_exists(fake_central: FakeCentral, tmp_path: Path, where: str) -> None:
    app = make_app(services_of(fake_central, tmp_path, Door(None, Limits())), MAX_BODY)
    with TestClient(app, "http://localhost") as client:
        client.get("/health")
        told = client.get("/metrics").text
    names = set(re.findall(r"longtake_[a-z_]*[a-z]", (DOCS / where).read_text("utf-8")))
    assert names
    assert {name for name in names if name not in told} == set()
