"""Short videos by the small model, and what the tests of the outside world look at."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.resources import files
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import av
import pytest
import uvicorn
from tests.launch.served import MAX_BODY, FakeCentral, services_of
from typer.testing import CliRunner, Result

from longtake.launch.api import generate
from longtake.launch.cli import app
from longtake.launch.server.app import make_app
from longtake.launch.server.auth import Door
from longtake.launch.server.keys import Limits

PROMPT = "a large red circle bouncing around slowly on a gray background"
OTHER_PROMPT = "a small blue square standing still on a pink background"

PATIENCE = 240.0  # seconds for what takes some where nothing else runs

Cli = Callable[..., Result]
End = tuple[int, str, str]  # exit code, stdout and stderr
Ranks = Callable[..., tuple[End, End]]


@pytest.fixture
def fake_central(tmp_path: Path) -> Iterator[FakeCentral]:
    """A central scheduler without workers."""
    with FakeCentral(tmp_path / "jobs") as central:
        yield central


@pytest.fixture
def address(fake_central: FakeCentral, tmp_path: Path) -> Iterator[str]:
    """A server on a real socket."""
    served = make_app(services_of(fake_central, tmp_path, Door(None, Limits())), MAX_BODY)
    config = uvicorn.Config(served, port=0, log_level="error", timeout_graceful_shutdown=1)
    server, started = uvicorn.Server(config), threading.Event()
    startup = server.startup

    async def tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def tinyworld() -> Path:
    return Path(str(files("longtake.models"))) / "tinyworld"


@pytest.fixture
def own_model(tinyworld: Path, tmp_path: Path) -> Path:
    """A copy of the small model that a test may break."""
    return shutil.copytree(tinyworld, tmp_path / "own model")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line, in this process and in an empty working directory."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)

    def run(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that have the libraries loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["longtake.launch.api"])
    return context


@pytest.fixture
def ranks(cli: Cli, processes: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """A function: how two ranks end that are given the command line, and the variables of a world
    of two. The first is this process, the second one of its own."""

    def run(*words: str | Path, fresh: Mapping[str, str] | None = None) -> tuple[End, End]:
        """`fresh`: the second starts from nothing, with these variables besides."""
        world = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        own = {**world, "RANK": "1", "LOCAL_RANK": "1", **(fresh or {})}
        for name, value in {**world, "RANK": "0", "LOCAL_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        said = [str(word) for word in words]
        pool: Executor = ThreadPoolExecutor(1)
        if fresh is None:
            pool = ProcessPoolExecutor(1, mp_context=processes)
        with pool:
            second = pool.submit(fork_rank if fresh is None else start_rank, said, own, Path.cwd())
            first = cli(*said)
            return (first.exit_code, first.stdout, first.stderr), second.result(PATIENCE)

    return run


def start_rank(words: Sequence[str], variables: Mapping[str, str], folder: Path) -> End:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "longtake", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


def fork_rank(words: Sequence[str], variables: Mapping[str, str], folder: Path) -> End:
    """In a process that is about to end."""
    os.chdir(folder)
    os.environ.update(variables)
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def request_of_4s() -> dict[str, Any]:
    """A video of six blocks with a switch of prompt, as arguments of `generate`."""
    return {
        "prompt": [(0.0, PROMPT), (2.0, OTHER_PROMPT)],
        "seconds": 4.0,
        "steps": 2,
        "seed": 5,
        "settings": ["strategy.window=9"],  # small enough to roll and to be re-cached
    }


@pytest.fixture(scope="session")
def whole_run(request_of_4s: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of that video, made in one go."""
    out = tmp_path_factory.mktemp("whole") / "video.mp4"
    return generate(**request_of_4s, out=out).run_dir


@pytest.fixture(scope="session")
def read_blocks() -> Callable[[Path], dict[str, str]]:
    """A function: the checksum of each block's file in a run directory."""

    def read(run_dir: Path) -> dict[str, str]:
        blocks = sorted((run_dir / "blocks").glob("*.safetensors"))
        return {block.name: hashlib.sha256(block.read_bytes()).hexdigest() for block in blocks}

    return read


@pytest.fixture(scope="session")
def read_journal() -> Callable[[Path], list[int]]:
    """A function: the block of each line of a run's journal, one for every time it was denoised."""

    def read(run_dir: Path) -> list[int]:
        lines = (run_dir / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["block"] for line in lines]

    return read


@pytest.fixture(scope="session")
def read_video() -> Callable[[Path], tuple[int, float, tuple[int, int]]]:
    """A function: frames, frames per second and (width, height) of a video file."""

    def read(path: Path) -> tuple[int, float, tuple[int, int]]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            count = sum(1 for _ in container.decode(video=0))
            return count, float(stream.average_rate or 0), (stream.width, stream.height)

    return read


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """A function: every file under a folder with its checksum."""

    def take(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
            for path in sorted(folder.rglob("*"))
        }

    return take
