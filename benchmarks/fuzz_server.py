"""Throws requests of all kinds at a real server, and sees that it stays well and says nothing.

Starts `longtake serve` on a free port of this machine, with one worker and tinyworld. Then, at the
same time: idle connections, readers that take a video byte by byte, and fuzzed requests, made from
the addresses that the server has, out of a seed; after them as many live sessions as are asked
for, of fuzzed messages. No answer may be a 5xx, break a session off or tell a path or a trace, and
videos must go on being made meanwhile.

    python benchmarks/fuzz_server.py --requests 10000 --sessions 500 --idle 500 --seed 0
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

PROMPT = "a large red circle bouncing around slowly on a gray background"
LEAK = re.compile(r'Traceback|File "|site-packages|(?<![\w<.])/(?:tmp|usr|home|root|work)/')
SLOW_READERS = 10
AT_ONCE = 8
HEARD = 1.0  # seconds that a session is listened to
PATIENCE: dict[str, Any] = {"open_timeout": 60, "close_timeout": 60}  # the machine is busy
BROKEN = (1006, 1011)  # closed without a word, or by an error inside the server
PATHS = [
    "/v1/videos", "/v1/videos/{id}", "/v1/videos/{id}/content", "/v1/videos/{id}/prompt",
    "/v1/videos/{id}/cancel", "/v1/videos/{id}/events", "/v1/models", "/v1/models/tinyworld",
    "/v1/plans", "/v1/cluster", "/health", "/metrics", "/openapi.json", "/", "/page.js", "/v1/live",
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/videos/%00", "/v1/videos//content",
]  # fmt: skip
LEGAL = [
    ("POST", "/v1/videos"), ("POST", "/v1/videos"), ("POST", "/v1/videos"), ("GET", "/v1/videos"),
    ("GET", "/v1/videos/{id}"), ("GET", "/v1/videos/{id}/content"), ("POST", "/v1/plans"),
    ("GET", "/v1/videos/{id}/events"), ("POST", "/v1/videos/{id}/prompt"), ("GET", "/metrics"),
    ("POST", "/v1/videos/{id}/cancel"), ("DELETE", "/v1/videos/{id}"), ("GET", "/v1/cluster"),
]  # fmt: skip
METHODS = ["GET", "GET", "POST", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"]
FIELDS = [
    "prompt", "prompts", "model", "seconds", "size", "fps", "seed", "strategy", "steps", "guidance",
    "negative_prompt", "settings", "priority", "deadline", "input_reference", "out", "folder", "",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**63, 2**200, 1e308, -0.0, "", " ", "a", PROMPT, "\x00", "\ud800",
    "../../x", "/etc/passwd", "64x64", "1x1", "9999x9999", "tinyworld", "stream", "dual", "batch",
    "NaN", "1", "0.5", "8", [], {}, [{}], [{"at": 0, "text": "a"}], [{"at": -1, "text": ""}],
    {"strategy.window": -5}, {"strategy.window": [1]}, {"model.folder": "/etc"}, "interactive",
    {"image_url": "data:image/png;base64,AAAA"}, {"image_url": "file:///etc/passwd"}, "x" * 5000,
]  # fmt: skip
HEADERS = [
    ("Range", "bytes=0-0"), ("Range", "bytes=9-1"), ("Range", "x" * 300), ("Last-Event-ID", "-1"),
    ("Content-Type", "text/plain"), ("Content-Type", "multipart/form-data"), ("Accept", "\x7f"),
    ("Content-Type", "multipart/form-data; boundary=x"), ("Origin", "https://evil.example"),
    ("Host", "evil.example"), ("Authorization", "Bearer x"), ("Last-Event-ID", "x"),
    ("Expect", "100-continue"), ("X-Forwarded-For", "1.2.3.4"), ("Content-Encoding", "gzip"),
]  # fmt: skip


class Fuzz:
    """One request after the other, out of a seed."""

    def __init__(self, seed: int, ids: list[str]) -> None:
        self._random, self._ids = random.Random(seed), ids

    def request(self) -> dict[str, Any]:
        """Arguments of a request."""
        pick = self._random
        method, path = pick.choice(METHODS), pick.choice(PATHS)
        if pick.random() < 0.8:
            method, path = pick.choice(LEGAL)
        path = path.replace("{id}", pick.choice([*self._ids, "video_x", "%F0"]))
        if pick.random() < 0.2:
            value = str(pick.choice(VALUES))[:90].encode("utf-8", "replace")
            path += f"?{pick.choice(['limit', 'after', 'order', 'variant'])}={quote(value)}"
        made: dict[str, Any] = {"method": method, "url": path}
        headers = dict(pick.sample(HEADERS, pick.choice([0, 0, 0, 1, 2])))
        if made["method"] in ("POST", "PUT", "PATCH"):
            made |= self._body(headers)
        return {**made, "headers": headers}

    def messages(self) -> list[str | bytes]:
        """What a live session is sent."""
        pick = self._random
        start = {"type": "session.start", "prompt": PROMPT, "seconds": pick.choice([0.5, 2])}
        made: list[str | bytes] = []
        for number in range(pick.randrange(1, 5)):
            fields = {pick.choice(FIELDS): pick.choice(VALUES) for _ in range(pick.randrange(4))}
            if number == 0 and pick.random() < 0.7:
                fields = {**start, **fields} if pick.random() < 0.5 else {**fields, **start}
            else:
                kinds = ["session.start", "session.stop", "prompt.switch", "x", None, [], "prompt"]
                fields["type"] = pick.choice(kinds)
            if pick.random() < 0.2:
                fields |= {
                    "input": pick.choice(["camera", "x", None]),
                    "latency": pick.choice(VALUES),
                }
            text = json.dumps(fields)
            cut = text[: pick.randrange(len(text))]
            made.append(pick.choice([text, text, text, text, cut, pick.randbytes(50), "[" * 9999]))
        return made

    def _body(self, headers: dict[str, str]) -> dict[str, Any]:
        pick = self._random
        kind = pick.choice(["fields", "fields", "fields", "form", "bytes", "deep", "cut"])
        fields = {pick.choice(FIELDS): pick.choice(VALUES) for _ in range(pick.randrange(6))}
        if kind == "form":
            texts = {name: str(value)[:99] for name, value in fields.items() if name}
            data = {n: v.encode("utf-8", "replace").decode() for n, v in texts.items()}
            file = pick.randbytes(pick.randrange(2000))
            headers.pop("Content-Type", None)
            return {"data": data, "files": {pick.choice(["input_reference", "x"]): file}}
        headers.setdefault("Content-Type", "application/json")
        if kind == "bytes":
            return {"content": pick.randbytes(pick.randrange(300))}
        if kind == "deep":
            return {"content": b"[" * pick.randrange(100_000)}
        text = json.dumps(fields).encode()
        return {"content": text[: pick.randrange(len(text))] if kind == "cut" else text}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server and the header that lets one in."""
    longtake = [sys.executable, "-P", "-m", "longtake", "serve"]
    add = [*longtake, "keys", "add", "fuzz", "--jobs", "4", "--data", str(folder)]
    key = subprocess.run(add, capture_output=True, text=True, check=True).stdout.strip()
    with (folder / "log").open("w") as log:
        command = [*longtake, "--port", "0", "--data", str(folder), "--max-seconds", "20"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address, (folder / "log").read_text()
            yield address[0], {"Authorization": f"Bearer {key}"}
        finally:
            server.send_signal(signal.SIGTERM)
            if server.wait(90) != 0:
                raise SystemExit(f"the server ended with {server.returncode}")


async def idle(address: str, count: int) -> list[asyncio.StreamWriter]:
    """Connections that say nothing, or half a request."""
    port = int(address.rpartition(":")[2])
    writers = []
    for number in range(count):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        if number % 2:
            writer.write(b"GET /v1/videos HTTP/1.1\r\nHost: loc")
        writers.append(writer)
    return writers


async def read_slowly(client: httpx2.AsyncClient, id_: str) -> None:
    """Take a video some bytes a second until cancelled."""
    async with client.stream("GET", f"/v1/videos/{id_}/content") as reply:
        async for _ in reply.aiter_raw(16):
            await asyncio.sleep(1)


async def make(client: httpx2.AsyncClient, seconds: float) -> float:
    """Make a video and wait for it; returns how long that took."""
    start = time.monotonic()
    fields = {"prompt": PROMPT, "seconds": seconds, "priority": "interactive"}
    while (reply := await client.post("/v1/videos", json=fields)).status_code == 429:
        await asyncio.sleep(0.5)
    id_ = reply.json()["id"]
    while (status := (await client.get(f"/v1/videos/{id_}")).json()["status"]) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() - start > 300:
            raise SystemExit(f"a video that should have been made is {status}")
        await asyncio.sleep(0.5)
    return time.monotonic() - start


async def send_all(client: httpx2.AsyncClient, fuzz: Fuzz, count: int) -> Counter[str]:
    """Send the requests, some at once; what was wrong ends the program."""
    seen: Counter[str] = Counter()
    left = iter(range(count))

    async def send() -> None:
        for _ in left:
            wanted = fuzz.request()
            try:
                async with client.stream(**wanted) as reply:
                    text = ""
                    async for piece in reply.aiter_text():
                        text += piece
                        if len(text) > 10_000:
                            break
            except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, ValueError) as error:
                seen[type(error).__name__] += 1
                continue
            seen[str(reply.status_code)] += 1
            told = text + str(reply.headers)
            served = reply.headers.get("content-type", "").startswith(("text/html", "text/java"))
            if reply.status_code >= 500 or (LEAK.search(told) and not served):
                raise SystemExit(f"{wanted}\nwas answered {reply.status_code}: {told[:2000]}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(send())
    return seen


async def talk_all(address: str, headers: dict[str, str], fuzz: Fuzz, count: int) -> Counter[str]:
    """Live sessions, some at once; as `send_all`."""
    seen: Counter[str] = Counter()
    left = iter(range(count))

    async def talk() -> None:
        for _ in left:
            messages, told = fuzz.messages(), ""
            url = f"{address.replace('http', 'ws', 1)}/v1/live"
            async with connect(url, additional_headers=headers, **PATIENCE) as socket:
                with suppress(ConnectionClosed, TimeoutError):
                    for message in messages:
                        await socket.send(message)
                    async with asyncio.timeout(HEARD):
                        async for piece in socket:
                            told += piece if isinstance(piece, str) else ""
            seen[f"closed with {socket.close_code}"] += 1
            seen["refusals"] += told.count('"error"')
            if socket.close_code in BROKEN or LEAK.search(told):
                raise SystemExit(f"{messages}\nwas answered {socket.close_code}: {told[:2000]}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(talk())
    return seen


async def run(address: str, headers: dict[str, str], asked: argparse.Namespace) -> dict[str, Any]:
    """The whole of it; returns what was measured."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=address, headers=headers, timeout=60, limits=limits
    ) as client:
        await make(client, 1)  # starts the worker, and loads the model
        alone = await make(client, 4)
        whole, _ = (await client.get("/v1/videos")).json()["data"]
        silent = await idle(address, asked.idle)
        slow = [asyncio.create_task(read_slowly(client, whole["id"])) for _ in range(SLOW_READERS)]
        beside = await make(client, 4)
        start = time.monotonic()
        fuzz = Fuzz(asked.seed, [whole["id"], "video_" + "0" * 32])
        seen = await send_all(client, fuzz, asked.requests)
        took = time.monotonic() - start
        live = await talk_all(address, headers, fuzz, asked.sessions)
        for video in (await client.get("/v1/videos?limit=100")).json()["data"]:
            if video["status"] in ("queued", "in_progress"):
                await client.post(f"/v1/videos/{video['id']}/cancel")
        after = await make(client, 4)
        for task in slow:
            task.cancel()
        for writer in silent:
            writer.close()
        well = (await client.get("/health")).status_code == 200
    return {
        "seed": asked.seed,
        "requests": asked.requests,
        "requests_per_second": round(asked.requests / took, 1),
        "answers": dict(seen.most_common()),
        "sessions": asked.sessions,
        "their_ends": dict(live.most_common()),
        "idle": asked.idle,
        "slow_readers": SLOW_READERS,
        "seconds_for_a_video": {
            "alone": round(alone, 1),
            "beside idle and slow": round(beside, 1),
            "after": round(after, 1),
        },
        "healthy": well,
    }


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (address, headers):
        print(json.dumps(asyncio.run(run(address, headers, asked)), indent=1))


if __name__ == "__main__":
    main()
