"""Who is let in, and how much they may ask for."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.launch.served import MAX_BODY, FakeCentral, services_of
from typer.testing import Result

from longtake.launch.jobs import Status
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.errors import ApiError
from longtake.launch.server.keys import KEYS, KeyFile, Limits
from longtake.launch.server.offers import make_offers
from longtake.launch.server.quotas import DAY, Ledger, Rates
from longtake.launch.server.serving import Wishes, make_door
from longtake.scheduler.errors import UserError

ASKED = {"prompt": "a red circle", "seconds": 4}


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / KEYS)


@pytest.fixture
def client_with(
    fake_central: FakeCentral, keys: KeyFile, tmp_path: Path
) -> Iterator[Callable[[Limits], TestClient]]:
    """Somebody with a key of such limits."""
    with ExitStack() as end:

        def make(limits: Limits) -> TestClient:
            app = make_app(
                services_of(fake_central, tmp_path, Door(keys, Limits(seconds=100))), MAX_BODY
            )
            headers = {"Authorization": f"Bearer {keys.add('somebody', limits)}"}
            return end.enter_context(TestClient(app, "http://localhost", headers=headers))

        yield make


def test_keys_are_kept_as_hashes(keys: KeyFile, tmp_path: Path) -> None:
    secret = keys.add("alice", Limits(jobs=2))
    kept = (tmp_path / KEYS).read_text()
    assert secret.split("_", 2)[2] not in kept
    assert stat.S_IMODE((tmp_path / KEYS).stat().st_mode) == 0o600
    again = KeyFile(tmp_path / KEYS)  # as another process sees it
    key = again.find(secret)
    assert key is not None and (key.name, key.limits.jobs) == ("alice", 2)
    for wrong in (
        "",
        "lt",
        secret[:-1],
        secret + "x",
        f"lt_{key.id}_",
        "lt_ffffffff_" + secret[12:],
    ):
        assert again.find(wrong) is None
    keys.revoke(key.id)
    assert again.find(secret) is None  # the file is read again


def test_a_damaged_file_lets_nobody_in(keys: KeyFile, tmp_path: Path) -> None:
    (tmp_path / KEYS).write_text("[{}]")
    with pytest.raises(UserError, match="damaged"):
        keys.find("lt_1_2")


def test_the_command_line_keeps_keys(cli: Callable[..., Result], tmp_path: Path) -> None:
    secret = cli("serve", "keys", "add", "bob", "--jobs", "3", "--data", tmp_path).stdout.strip()
    listed = cli("serve", "keys", "list", "--data", tmp_path).stdout
    assert "bob" in listed and "3 videos at a time" in listed and "active" in listed
    id_ = secret.split("_")[1]
    assert "refused from now on" in cli("serve", "keys", "revoke", id_, "--data", tmp_path).stdout
    assert "revoked" in cli("serve", "keys", "list", "--data", tmp_path).stdout
    unknown = cli("serve", "keys", "revoke", "nobody", "--data", tmp_path)
    assert unknown.exit_code == 2 and f"known: {id_}" in unknown.stderr


def test_models_that_are_not_here() -> None:
    with pytest.raises(UserError, match="longtake models"):
        make_offers(["wan2.1-t2v-14b"])
    with pytest.raises(UserError, match="there is no folder at /nowhere"):
        make_offers(["wan2.1-t2v-14b=/nowhere"])


def test_a_server_that_others_reach_needs_keys(tmp_path: Path, keys: KeyFile) -> None:
    def wish(host: str, open_: bool = False) -> Wishes:
        return Wishes(host, 0, tmp_path, [], Limits(), MAX_BODY, (), open_)

    with pytest.raises(UserError, match="--no-auth"):
        make_door(wish("0.0.0.0"))
    assert make_door(wish("127.0.0.1")).open and make_door(wish("0.0.0.0", True)).open
    keys.add("alice", Limits())
    assert not make_door(wish("0.0.0.0")).open and not make_door(wish("127.0.0.1")).open


@pytest.mark.parametrize("sent", [None, "Bearer", "Bearer lt_1_2", "Basic YTpi", "Bearer \xe9"])
def test_nobody_gets_in_without_a_key(
    client_with: Callable[[Limits], TestClient], sent: str | None
) -> None:
    client = client_with(Limits())
    del client.headers["authorization"]
    headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
    for method, path in [
        ("GET", "/v1/videos"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/videos/video_1"),
        ("DELETE", "/v1/videos/video_1"),
        ("POST", "/v1/videos/video_1/cancel"),
        ("GET", "/v1/videos/video_1/content"),
        ("GET", "/v1/videos/video_1/events"),
        ("GET", "/v1/models"),
        ("POST", "/v1/plans"),
        ("GET", "/v1/cluster"),
        ("GET", "/metrics"),
    ]:
        reply = client.request(method, path, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key"), path
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200  # the page asks for the key


def test_videos_of_others_do_not_exist(
    client_with: Callable[[Limits], TestClient], fake_central: FakeCentral, keys: KeyFile
) -> None:
    client = client_with(Limits())
    id_ = client.post("/v1/videos", json=ASKED).json()["id"]
    fake_central.begin(id_)
    other = {"Authorization": f"Bearer {keys.add('other', Limits())}"}
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/content"),
        ("GET", "/events"),
    ]:
        address = f"/v1/videos/{id_}{path}"
        assert client.request(method, address, headers=other).status_code == 404
    assert client.get("/v1/videos", headers=other).json()["data"] == []
    assert client.get("/v1/videos", headers=other, params={"after": id_}).status_code == 404
    assert client.get("/v1/cluster").json()["devices"][0]["video"] == id_
    (device,) = client.get("/v1/cluster", headers=other).json()["devices"]
    assert device["busy"] and device["video"] is None


def test_limits_of_a_key(
    client_with: Callable[[Limits], TestClient], fake_central: FakeCentral
) -> None:
    limits = Limits(jobs=2, seconds=50, seconds_per_day=12, interactive=False)
    client = client_with(limits)

    def refusal(**fields: object) -> tuple[int, str]:
        reply = client.post("/v1/videos", json={**ASKED, **fields})
        return reply.status_code, reply.json()["error"]["code"]

    assert refusal(seconds=51) == (400, "too_long")
    assert refusal(priority="interactive") == (403, "permission_denied")
    made = [client.post("/v1/videos", json=ASKED).json()["id"] for _ in range(2)]
    assert refusal() == (429, "too_many_videos")
    fake_central.set(made[0], status=Status.COMPLETED)
    assert refusal(seconds=5) == (429, "quota_exceeded")  # 8 of 12 s are used
    assert client.post("/v1/videos", json=ASKED).status_code == 200


def test_a_day_forgives_and_a_restart_does_not(tmp_path: Path) -> None:
    now = [0.0]
    limits = Limits(seconds_per_day=10)
    Ledger(tmp_path / "q", lambda: now[0]).note("alice", 10)
    ledger = Ledger(tmp_path / "q", lambda: now[0])
    ledger.check("bob", 10, limits)
    with pytest.raises(ApiError, match="0 s"):
        ledger.check("alice", 1, limits)
    now[0] = DAY + 1
    ledger.check("alice", 10, limits)


def test_requests_of_a_minute() -> None:
    now = [0.0]
    rates, limits = Rates(lambda: now[0]), Limits(requests_per_minute=3)
    for _ in range(3):
        rates.take("alice", limits)
    with pytest.raises(ApiError) as error:
        rates.take("alice", limits)
    assert error.value.headers == {"Retry-After": "20"}
    rates.take("bob", limits)
    now[0] = 20.0
    rates.take("alice", limits)


def test_the_tighter_of_two_limits_holds(keys: KeyFile) -> None:
    door = Door(keys, Limits(jobs=5, seconds=60))
    secret = keys.add("alice", Limits(jobs=9, seconds=30, interactive=False))
    caller = door.caller(f"bearer {secret}")
    assert caller.owner in keys.all()
    assert caller.limits == Limits(jobs=5, seconds=30, interactive=False)
