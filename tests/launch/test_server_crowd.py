"""Many clients that say nothing, or take nothing, beside one who does."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack

import httpx2
from tests.launch.served import FakeCentral
from tests.launch.test_server_stream import PROMPT, times


def test_idle_connections_and_slow_readers_hold_up_nobody(
    address: str, fake_central: FakeCentral
) -> None:
    allow_files(2048)
    there = ("127.0.0.1", int(address.rpartition(":")[2]))
    with httpx2.Client(base_url=address, timeout=20) as client, ExitStack() as end:
        whole = client.post("/v1/videos", json=PROMPT).json()["id"]
        fake_central.whole(whole)
        for number in range(500):
            idle = end.enter_context(socket.create_connection(there))
            if number % 2:
                idle.sendall(b"GET /v1/videos HTTP/1.1\r\nHost: loc")
        for _ in range(20):
            slow = end.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(there)
            asked = f"GET /v1/videos/{whole}/content HTTP/1.1\r\nHost: localhost\r\n\r\n"
            slow.sendall(asked.encode())
            assert slow.recv(9) == b"HTTP/1.1 "  # and no more
        id_ = client.post("/v1/videos", json=PROMPT).json()["id"]
        fake_central.begin(id_)
        fake_central.make(id_, 40)
        with client.stream("GET", f"/v1/videos/{id_}/content") as reply:
            fake_central.make(id_, 24)
            fake_central.finish(id_)
            assert len(times(b"".join(reply.iter_bytes()))) == 64


def allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
