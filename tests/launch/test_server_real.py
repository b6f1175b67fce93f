"""`longtake serve` as its users meet it: the OpenAI client, a real model, a real browser."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import av
import openai
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

PROMPT = "a large red circle bouncing around slowly on a gray background"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server that makes real videos, and a key for it."""
    data = tmp_path_factory.mktemp("served")
    longtake = [sys.executable, "-P", "-m", "longtake", "serve"]
    made = subprocess.run(
        [*longtake, "keys", "add", "alice", "--data", data],
        capture_output=True,
        text=True,
        check=True,
    )
    with (data / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *longtake,
                "--port",
                "0",
                "--data",
                data,
                "--device",
                "cpu",
                "--cluster",
                "h100x1",
                "--log",
                "json",
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert server.stdout is not None
        told = server.stdout.readline()
        found = re.search(r"http://\S+", told)
        assert found, (data / "log").read_text()
        yield found[0], made.stdout.strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, (data / "log").read_text()


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_client_of_openai_makes_a_video(served: tuple[str, str]) -> None:
    address, key = served
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key)
    video = client.videos.create(
        model="tinyworld",
        prompt=PROMPT,
        seconds="4",
        size="64x64",  # type: ignore[arg-type]  # a size of this model
        extra_body={"seed": 3, "steps": 1},
    )
    assert video.object == "video" and video.status in ("queued", "in_progress")
    done = client.videos.poll(video.id, poll_interval_ms=200)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    content = client.videos.download_content(video.id).read()
    with av.open(io.BytesIO(content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4 * 16
    assert [each.id for each in client.videos.list(limit=1)] == [video.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no video"):
        client.videos.retrieve(video.id)
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="lt_0_0", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.videos.create(prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="seconds"):
        client.videos.create(prompt=PROMPT, seconds="soon")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs a Chromium on the path")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_by_keyboard_alone(served: tuple[str, str], browser: Browser) -> None:
    address, key = served
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()  # asked for without a click
    write(page, key)
    expect(page.get_by_role("dialog")).to_be_hidden()
    reach(page, page.get_by_text("Skip to the prompt"))
    page.keyboard.press("Enter")
    page.keyboard.type(PROMPT)
    reach(page, page.get_by_label("Seconds"))
    page.keyboard.type("60")
    press(page, page.get_by_role("button", name="Show the plan"))
    expect(page.locator("#plan-table")).to_contain_text("one worker", timeout=30_000)
    press(page, page.get_by_role("button", name="Make it"))
    wait_until_it_plays(page)
    expect(page.locator("#stage")).to_contain_text("of 960 frames")  # it is still being made
    reach(page, page.get_by_label("Change the prompt while it runs"))
    write(page, "a small blue square standing still on a pink background")
    expect(page.locator("#switched")).to_contain_text("From second", timeout=30_000)
    expect(page.locator("#cluster tbody")).to_contain_text("cpu0")
    page.set_viewport_size({"width": 360, "height": 740})  # a phone
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    press(page, page.get_by_role("button", name="Cancel"))
    expect(page.locator("#stage")).to_have_text("cancelled", timeout=60_000)
    reach(page, page.get_by_label("Seconds"))
    page.keyboard.press("Control+a")
    write(page, "1")
    expect(page.locator("#stage")).to_contain_text("1 s, 64x64", timeout=60_000)
    with page.expect_download() as download:
        press(page, page.get_by_role("button", name="Download"))
    with av.open(str(download.value.path())) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
    press(page, page.get_by_role("button", name="Delete"))
    expect(page.locator("#watch")).to_be_hidden()
    assert wrong == []


def reach(page: Page, wanted: Locator) -> None:
    """Go there as who has no mouse does."""
    for _ in range(60):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{wanted} can't be reached")


def press(page: Page, button: Locator) -> None:
    reach(page, button)
    page.keyboard.press("Enter")


def write(page: Page, text: str) -> None:
    """Into the field that has the focus, and be done with it."""
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def wait_until_it_plays(page: Page) -> None:
    end = time.monotonic() + 60
    while not page.evaluate("document.querySelector('video').currentTime"):
        assert time.monotonic() < end
        page.wait_for_timeout(100)
