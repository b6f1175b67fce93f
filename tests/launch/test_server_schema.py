"""The OpenAPI document is true: requests made up from it are answered as it says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.launch.served import MAX_BODY, FakeCentral, services_of

from longtake.launch.jobs import Ask
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import KeyFile, Limits

LEAKS = (b"/tmp", b"/usr/", b"/home", b"/root", b"site-packages", b"Traceback", b'File "')


class World:
    """A server, a key for it, and a video that is always there."""

    def __init__(self, central: FakeCentral, secret: str, owner: str) -> None:
        self.central, self.owner = central, owner
        self.headers = {"Host": "localhost", "Authorization": f"Bearer {secret}"}

    def video(self) -> str:
        for job in self.central.list(self.owner):
            if job.status.ended:
                return job.id
        job = self.central.submit(Ask(((0.0, "a circle"),), seconds=1.0), self.owner)
        return self.central.whole(job.id).id


@pytest.mark.parametrize("mode", GenerationMode)
def test_answers_are_as_documented(tmp_path: Path, mode: GenerationMode) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    secret = keys.add("alice", Limits())
    (owner,) = keys.all()
    with FakeCentral(tmp_path / "jobs") as central:
        app = make_app(services_of(central, tmp_path, Door(keys, Limits())), MAX_BODY)
        world = World(central, secret, owner)
        document = schemathesis.openapi.from_asgi("/openapi.json", app, headers=world.headers)
        for operation in document.get_all_operations():
            ask_all_sorts(operation.ok(), mode, world)


def ask_all_sorts(operation: APIOperation, mode: GenerationMode, world: World) -> None:
    @settings(
        max_examples=4,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), booleans())
    def ask(case: schemathesis.Case, there: bool) -> None:
        legal = mode is GenerationMode.POSITIVE
        if there and legal and "video_id" in case.path_parameters:
            case.path_parameters["video_id"] = world.video()
        answer = case.call(headers=world.headers)
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])
        assert not any(leak in answer.content for leak in LEAKS)

    with suppress(Unsatisfiable):  # nothing can be wrong with a request that has no parts
        ask()
