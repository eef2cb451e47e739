"""The page of an offer in real Chromium: when it says that it was opened, and when it doesn't."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import uvicorn
import zxingcpp
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect
from redis.asyncio import Redis

from server.api.app import create_app
from server.api.links import Link
from tests.server.api.shop import ANNA, OFFER, Shop
from tests.services.browser import ARGUMENTS, chromium

pytestmark = pytest.mark.browser

WITHIN_S = 20
HOUR_MS = 3_600_000
#: Chromium shows every page of a test; this one can be told that it is in the background.
BACKGROUND = """
let shown = false;
Object.defineProperty(document, "visibilityState", { get: () => (shown ? "visible" : "hidden") });
window.showPage = (now) => { shown = now; document.dispatchEvent(new Event("visibilitychange")); };
"""


class Served(NamedTuple):
    """The API as it is served, and the link of a message."""

    shop: Shop
    link: str

    @property
    def said(self) -> list[str]:
        """The receipts that came of it."""
        return [status for _, _, status, _, _ in self.shop.receipts]

    async def until(self, *said: str) -> None:
        async with asyncio.timeout(WITHIN_S):
            while self.said != list(said):
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def served(redis: Redis) -> AsyncIterator[Served]:
    shop = Shop(redis)
    token = shop.links.sign("message", Link(ANNA, OFFER, shop.clock.now_ms() + HOUR_MS, "email"))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(shop), access_log=False, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(WITHIN_S):
        while not server.started:
            await asyncio.sleep(0.01)
    yield Served(shop, f"http://127.0.0.1:{listening.getsockname()[1]}/m/{token}")
    server.should_exit = True
    await task


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page whose time stands still; nothing it does may make the browser complain."""
    complaints: list[str] = []
    page = await browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    await page.clock.install(time=0)
    await page.clock.pause_at(1_000)
    yield page
    await page.close()
    assert complaints == []


async def answered(page: Page, served: Served) -> None:
    """Wait for an answer to a request that the page makes now: one that it made before has come by then."""
    await page.evaluate("fetch(location.pathname)")
    assert served.said == []


async def test_seen_for_a_second(page: Page, served: Served) -> None:
    """It is opened when it was seen for a second, said once, by the channel that brought the link; then applied."""
    await page.goto(served.link)
    await page.clock.run_for(990)
    await answered(page, served)
    await page.clock.run_for(20)
    await served.until("opened")
    assert served.shop.receipts == [(ANNA, OFFER, "opened", "email", "")]
    await page.clock.run_for(10_000)
    await page.get_by_role("button", name="Apply").click()
    await expect(page.locator("#code")).to_be_visible()
    assert served.said == ["opened", "applied"]


async def test_the_qr_code_as_a_scanner_sees_it(page: Page, served: Served) -> None:
    """What is drawn on a dark phone's screen is the coupon's token, read by ZXing from a picture of the page."""
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size({"width": 360, "height": 640})
    await page.goto(served.link)
    await page.get_by_role("button", name="Apply").click()
    await expect(page.get_by_role("img", name="QR code")).to_be_visible()
    picture = Image.open(io.BytesIO(await page.screenshot(full_page=True)))
    (found,) = zxingcpp.read_barcodes(picture)
    coupons = served.shop.coupons
    assert found.text == coupons.token_of(await coupons.validate(coupons.code_of(OFFER)))


@pytest.mark.parametrize("sign", ["key", "pointer", "scroll"])
async def test_a_touch_is_enough(page: Page, served: Served, sign: str) -> None:
    """Whoever touches it at once has seen it."""
    await page.set_viewport_size({"width": 320, "height": 200})
    await page.goto(served.link)
    await answered(page, served)
    if sign == "key":
        await page.keyboard.press("Tab")
    elif sign == "pointer":
        await page.get_by_role("heading").click()
    else:
        await page.mouse.wheel(0, 50)
    await served.until("opened")


async def test_in_the_background(page: Page, served: Served) -> None:
    """A page that nobody looks at says nothing, however long; a glance is too short; then it is looked at."""
    await page.add_init_script(BACKGROUND)
    await page.goto(served.link)
    await page.clock.run_for(60_000)
    await answered(page, served)
    await page.evaluate("showPage(true)")
    await page.clock.run_for(500)
    await page.evaluate("showPage(false)")
    await page.clock.run_for(60_000)
    await answered(page, served)
    await page.evaluate("showPage(true)")
    await page.clock.run_for(1_000)
    await served.until("opened")


async def test_without_scripts(browser: Browser, served: Served) -> None:
    """Nothing is said of opening; the offer can be applied all the same, and that is said."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(served.link)
    assert served.said == []
    await page.get_by_role("button", name="Apply").click()
    await expect(page.locator("#code")).to_be_visible()
    assert served.said == ["applied"]
    await context.close()
