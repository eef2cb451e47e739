"""The demo as a person sees it: one command, one page in a real browser, and a server that may be killed meanwhile."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from clients.demo.driver import Driver, Options
from tests.services.browser import ARGUMENTS, chromium


async def test_headless_run() -> None:
    """It ends by itself with exit code 0; its last line counts every stage of the path, and nothing went wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEARCAST_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "clients.demo", "--seconds", "10", "--headless",
        cwd=Path(__file__).parents[2], env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    lines = out.decode().splitlines()
    assert sum(line.startswith("Open http://127.0.0.1:") for line in lines) == 1
    counted = json.loads(lines[-1])
    assert counted["events_in"] > 1_000
    assert counted["transitions"] > 0
    assert counted["decisions"]["offer"] > 0
    pushes = counted["pushes"]
    assert set(pushes) == {"websocket", "sms", "email"}
    for channel, reached in pushes.items():
        assert reached["sent"] >= reached["delivered"] >= reached["opened"] >= 0, channel
        assert reached["delivered"] > 0, channel
    # What reached people is no more than what was decided.
    decided = sum(counted["decisions"].get(kind, 0) for kind in ("offer", "notice", "assist"))
    assert sum(reached["sent"] for reached in pushes.values()) <= decided
    assert counted["coupons"]["applied"] > 0
    latency = counted["event_to_device_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert counted["dead_letters"] == 0
    assert counted["errors"] == 0, counted["errors_by_kind"]


async def test_a_killed_demo_leaves_nothing_and_continues(tmp_path: Path) -> None:
    """SIGKILL of the demo itself takes the server along; started again on the same data, it goes on, until Ctrl-C."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEARCAST_")}

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "clients.demo", "--headless", "--data-dir", str(tmp_path / "data")),
            *("--seconds", "120"),
            cwd=Path(__file__).parents[2], env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def until_pushed(demo: asyncio.subprocess.Process) -> None:
        assert demo.stdout is not None
        assert demo.stderr is not None
        async with asyncio.timeout(120):
            while not re.search(rb"pushes [1-9]", line := await demo.stdout.readline()):
                assert line, (await demo.stderr.read()).decode()

    first = await start()
    await until_pushed(first)
    first.kill()
    await first.wait()
    second = await start()
    # As long as it takes: after a fixed time, a busy machine has delivered nothing yet.
    await until_pushed(second)
    second.send_signal(signal.SIGINT)
    async with asyncio.timeout(90):
        out, err = await second.communicate()
    assert second.returncode == 0, out.decode() + err.decode()
    counted = json.loads(out.decode().splitlines()[-1])
    assert counted["errors"] == 0, counted["errors_by_kind"]
    assert counted["pushes"]["websocket"]["delivered"] > 0


@contextlib.asynccontextmanager
async def page_of(url: str, troubles: list[str]) -> AsyncIterator[Page]:
    """The page in headless Chromium; whatever its console calls an error ends up in `troubles`."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        await page.goto(url)
        yield page
        await browser.close()


@pytest.mark.browser
async def test_the_page_and_a_kill(tmp_path: Path) -> None:
    """Coupons arrive on the phones and can be applied; the server is killed and comes back; the page goes on.

    In the end nobody got anything twice, nothing was refused, and no event was left unaccepted.
    """
    urls: asyncio.Queue[str] = asyncio.Queue()
    driver = Driver(
        Options(tmp_path / "data", seconds=None),
        lambda line: urls.put_nowait(line.removeprefix("Open ")) if line.startswith("Open ") else None,
    )
    demo = asyncio.create_task(driver.run(), name="the demo")
    try:
        async with asyncio.timeout(90):
            url = await urls.get()
        troubles: list[str] = []
        async with page_of(url, troubles) as page:
            await expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=20_000)
            await expect(page.locator(".phone")).to_have_count(3)
            await _apply_a_coupon(page)
            await expect(page.locator("#alerts .alert").first).to_be_visible(timeout=60_000)
            # What led to nothing stands there with its reason in words.
            await expect(page.locator("#why li strong").first).to_have_text(re.compile(r"\w+ .*\."), timeout=60_000)
            await expect(page.locator("#reasons button").first).to_be_visible()
            assert troubles == []

            before = await page.locator(".phone .offer").count()
            await driver.restart_server()
            await expect(page.locator("#status")).to_have_attribute("data-state", "live", timeout=30_000)
            await page.wait_for_function(
                "before => document.querySelectorAll('.phone .offer').length > before", arg=before, timeout=90_000
            )
            # Losing the connection is what the kill was for; anything else the page complains of is a fault.
            assert [text for text in troubles if "WebSocket" not in text and "ERR_CONNECTION" not in text] == []
            offers = [await card.inner_text() for card in await page.locator(".phone .offer").all()]
            assert all(offers)
    finally:
        driver.stop()
        async with asyncio.timeout(60):
            counted = await demo
    assert counted["errors"] == 0, counted["errors_by_kind"]
    assert counted["duplicates"] == {"websocket": 0, "sms": 0, "email": 0}
    assert counted["pushes"]["websocket"]["delivered"] == counted["pushes"]["websocket"]["sent"]


async def _apply_a_coupon(page: Page) -> None:
    """Press the button of the first offer that comes; the code stands on the card, long enough not to be guessed."""
    apply = page.get_by_role("button", name="Apply coupon").first
    await apply.click(timeout=60_000)
    code = page.locator(".offer .coupon strong").first
    await expect(code).to_be_visible(timeout=10_000)
    assert len((await code.inner_text()).replace(" ", "")) == 20
