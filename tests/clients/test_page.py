"""The demo page in real Chromium, fed by a scripted gateway: what people see, press and hear.

The page's own SDK speaks the protocol; nothing of it is replaced.
"""

import mimetypes
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from clients.demo import live
from clients.demo.measure import Measure
from clients.demo.stage import Stage
from clients.simulator import Simulation
from nearcast.reasons import in_words
from tests.clients.gateway import ScriptedGateway, push_data, scripted_gateway, until
from tests.clients.web import Reply, Request, recording_server
from tests.services.browser import ARGUMENTS, chromium

WEB = Path(live.__file__).parent.parent / "web"
POLICY = "default-src 'self'; connect-src 'self' ws:; img-src 'self' data:; base-uri 'none'"

pytestmark = pytest.mark.browser


class Demo(NamedTuple):
    """The open page, the gateway behind it, and everything the browser complained about."""

    page: Page
    gateway: ScriptedGateway
    complaints: list[str]

    async def push(self, number: int, to: str = "phone-0", **changes: Any) -> None:
        now_ms = int(time.time() * 1000)
        data = push_data(number) | {"at_ms": now_ms, "deadline_ms": now_ms + 90_000} | changes
        await self.gateway.send_to(to, data)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all tests; each has a page of its own, which shares nothing with the others."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def demo(stage: Stage, browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Demo]:
    width, height = getattr(request, "param", (1440, 900))
    complaints: list[str] = []
    async with scripted_gateway() as gateway:
        made = live.scene(stage.retailer, stage.people, stage.staffed_store, gateway.url)
        made["phones"] = [phone | {"token": f"phone-{n}"} for n, phone in enumerate(made["phones"])]
        made["staff"]["token"], made["live"]["token"] = "tablet", "live"
        scene = msgspec.json.encode(made)

        def answer(asked: Request) -> Reply:
            name = asked.path.removeprefix("/demo/") or "index.html"
            if name == "scene.json":
                return Reply(200, scene)
            file = WEB / name
            kind = mimetypes.guess_type(name)[0] or "text/plain"
            return Reply(200, file.read_bytes(), kind) if file.is_file() else Reply(404)

        with recording_server(answer=answer, headers={"Content-Security-Policy": POLICY}) as server:
            page = await browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
            await page.goto(f"{server.url}/demo/")
            await until(lambda: len(gateway.by_token) == 5)
            yield Demo(page, gateway, complaints)
            await page.close()
    assert complaints == []


def _answers(method: str, data: Any) -> dict[str, Any]:
    replies = {
        "apply": {"code": "ABCDE12345FGHJK67890", "state": "applied", "expires_ms": 1_790_000_000_000},
        "assist.claim": {"claimed_by": "me", "won": True},
        "assist.close": {"outcome": "helped"},
    }
    return {"rpc": {"data": replies.get(method, {})}}


async def test_a_push_is_shown_acknowledged_opened_and_applied(demo: Demo) -> None:
    """It slides into the right phone, is acknowledged by itself, and gives its code when asked."""
    demo.gateway.answer = _answers
    await demo.push(1, title="Fresh milk here", product="Milk", price_cents=269, discount_cents=40)
    phone = demo.page.locator(".phone").first
    card = phone.locator(".offer")
    await expect(card.get_by_role("heading")).to_have_text("Fresh milk here")
    await expect(card).to_contain_text("$2.29")
    await until(lambda: ("ack", {"message": "m1", "decision": "d1", "device": "phone"}) in demo.gateway.calls)
    assert await demo.page.locator(".phone").nth(1).locator(".offer").count() == 0
    await card.get_by_role("button", name="Open").click()
    await expect(card).to_contain_text("Body")
    await card.get_by_role("button", name="Apply coupon").click()
    await expect(card.locator(".coupon strong")).to_have_text("ABCDE 12345 FGHJK 67890")
    assert [method for method, _ in demo.gateway.calls] == ["ack", "open", "apply"]
    await demo.push(1, kind="withdraw", reason="dismissed")
    await expect(card.locator(".coupon")).to_be_visible()
    await card.get_by_role("button", name="Dismiss").click()
    await expect(card).to_have_count(0)
    assert [method for method, _ in demo.gateway.calls] == ["ack", "open", "apply"]


async def test_dismissed_everywhere(demo: Demo) -> None:
    """Closing an offer that was not taken is told, so that other devices close it, too."""
    await demo.push(1)
    await demo.page.locator(".offer").get_by_role("button", name="Dismiss").click()
    await expect(demo.page.locator(".offer")).to_have_count(0)
    await until(lambda: ("dismiss", {"message": "m1", "decision": "d1"}) in demo.gateway.calls)


async def test_a_refusal_is_said_on_the_card(demo: Demo) -> None:
    """An offer whose time is over says so, and can be tried again."""
    demo.gateway.answer = lambda method, data: (
        {"error": {"code": 410, "message": "offer_expired"}} if method == "apply" else {"rpc": {"data": {}}}
    )
    await demo.push(1)
    card = demo.page.locator(".offer")
    await card.get_by_role("button", name="Apply coupon").click()
    await expect(card.get_by_role("alert")).to_have_text("This offer is over.")
    await expect(card.get_by_role("button", name="Apply coupon")).to_be_enabled()


async def test_text_is_never_markup(demo: Demo) -> None:
    """A title with markup in it is shown as it is."""
    await demo.push(1, title="<img src=x onerror=alert(1)>")
    await expect(demo.page.locator(".offer h3")).to_have_text("<img src=x onerror=alert(1)>")


async def test_the_same_message_is_shown_once_and_can_be_withdrawn(demo: Demo) -> None:
    """A repeated publication adds no card; a withdrawal takes the card away, unless it is this phone that shows it."""
    await demo.push(1)
    await demo.push(1)
    await demo.push(2)
    await expect(demo.page.locator(".offer")).to_have_count(2)
    await demo.push(1, kind="withdraw", reason="elsewhere", by="phone")
    await demo.push(2, kind="withdraw", reason="recalled")
    await expect(demo.page.locator(".offer h3")).to_have_text(["Title 1"])
    await demo.push(1, kind="withdraw", reason="elsewhere", by="watch")
    await expect(demo.page.locator(".offer")).to_have_count(0)


async def test_another_device_was_first(demo: Demo) -> None:
    """Told so in the answer to its acknowledgement, the phone shows the message no more."""
    demo.gateway.answer = lambda method, data: {"rpc": {"data": {"won": data["message"] == "m1"}}}
    await demo.push(1)
    await demo.push(2)
    await until(lambda: len(demo.gateway.calls) == 2)
    await expect(demo.page.locator(".offer h3")).to_have_text(["Title 1"])


async def test_staff_claim_an_alert(demo: Demo) -> None:
    """The tablet shows where help is wanted; "I'll go" claims it."""
    demo.gateway.answer = _answers
    await demo.push(
        1, to="tablet", kind="assist", title="Customer asks for help", store_name="Rochusmarkt", customer="d0ce"
    )
    alert = demo.page.locator(".alert")
    await expect(alert).to_contain_text("Shopper d0ce")
    await alert.get_by_role("button").click()
    await expect(alert).to_contain_text("re on it")
    assert ("assist.claim", {"message": "m1"}) in demo.gateway.calls
    await demo.push(1, to="tablet", kind="withdraw", reason="claimed", by="me")
    await expect(alert).to_contain_text("re on it")
    await alert.get_by_role("button", name="Helped").click()
    await expect(alert).to_have_count(0)
    assert ("assist.close", {"message": "m1", "decision": "d1", "outcome": "helped"}) in demo.gateway.calls


async def test_what_colleagues_do_shows_on_the_tablet(demo: Demo) -> None:
    """An alert that a colleague took says so and can't be taken; one that is done with, or recalled, goes."""
    for number in (1, 2):
        await demo.push(number, to="tablet", kind="assist", store_name="Rochusmarkt")
    alerts = demo.page.locator(".alert")
    await demo.push(1, to="tablet", kind="withdraw", reason="claimed", by="tom")
    await expect(alerts.last).to_contain_text("A colleague goes")
    await expect(alerts.last.get_by_role("button")).to_have_count(0)
    await expect(alerts.first.get_by_role("button")).to_have_count(1)
    await demo.push(1, to="tablet", kind="withdraw", reason="closed", by="tom")
    await expect(alerts).to_have_count(1)
    await demo.push(2, to="tablet", kind="withdraw", reason="recalled")
    await expect(alerts).to_have_count(0)


async def test_counters_news_and_dots(demo: Demo, stage: Stage) -> None:
    """The live feed fills the counters and the list, says where the phones are, and paints on the map."""
    simulation = Simulation(stage.retailer, stage.walks, start_ms=1, seed=7)
    simulation.step(10_000)
    measure = Measure()
    measure.events_in = 1234
    phones = {person.uid: number for number, person in enumerate(stage.people[:3])}
    news = [{"at_ms": 1, "kind": "till", "text": "Anna pays"}]
    await demo.gateway.send_to("live", live.moving(simulation.dots(), phones, measure.summary(), news))
    await expect(demo.page.locator("#counters")).to_contain_text("1,234")
    await expect(demo.page.locator("#news li")).to_contain_text("Anna pays")
    await expect(demo.page.locator(".phone .where").first).to_contain_text("Rochusmarkt")
    painted = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    assert await demo.page.locator("#city").evaluate(painted) > 10
    assert await demo.page.locator("#floor").evaluate(painted) > 10


def _footfall(store: str, inside: int | None) -> dict[str, Any]:
    """What the API says of a shop with so many people in it, and too few at the shelf."""
    zones = [
        {"fence": f"{store}/building", "name": "Rochusmarkt", "kind": "store", "people": inside, "withheld": None},
        {"fence": f"{store}/dairy", "name": "", "kind": "department", "people": None, "withheld": "fewer than 5"},
    ]
    zones[0]["withheld"] = "fewer than 5" if inside is None else None
    return {store: {"store": store, "k": 5, "zones": zones}}


@pytest.mark.parametrize("demo", [(360, 740), (1440, 900)], indirect=True)
async def test_footfall_of_the_chosen_shop(demo: Demo, stage: Stage) -> None:
    """Numbers with bars, too few said in words, and another shop by the keyboard; the list can be reached and named."""
    here, there = (stage.retailer.shops[at].store.id for at in (0, 1))
    both = _footfall(here, 15) | _footfall(there, None)
    await demo.gateway.send_to("live", live.moving([], {}, Measure().summary(), [], both))
    rows = demo.page.get_by_role("list", name="Footfall, now").get_by_role("listitem")
    await expect(rows).to_have_text(["Rochusmarkt15", f"{here}/dairyfewer than 5"])
    assert await rows.first.locator("i").evaluate("bar => bar.style.getPropertyValue('--share')") == "1"
    await expect(demo.page.locator("#footfall-note")).to_contain_text("multiples of 5")
    await demo.page.locator("#shop").focus()
    await demo.page.keyboard.press("ArrowDown")
    await expect(rows.first).to_have_text("Rochusmarktfewer than 5")
    await demo.page.keyboard.press("Tab")
    assert await demo.page.evaluate("document.activeElement.id") == "footfall"


def _why(number: int, reason: str, **changes: Any) -> dict[str, Any]:
    line = {"at_ms": number, "customer": "Anna", "trigger": "walk_past", "store": "Rochusmarkt", "what": "Not made"}
    return line | {"promotion": f"Deal {number}", "reason": reason, "words": in_words(reason)} | changes


@pytest.mark.parametrize("demo", [(360, 740), (1440, 900)], indirect=True)
async def test_why_not_in_words(demo: Demo) -> None:
    """Counts by reason and the latest lines; by the keyboard only those of one reason, and again all of them.

    The focus stays while counts rise, and a message without anything new changes nothing.
    """

    async def tell(counts: dict[str, int], *lines: dict[str, Any]) -> None:
        reasons = [{"reason": reason, "words": in_words(reason), "count": n} for reason, n in counts.items()]
        told = {"reasons": reasons, "lines": list(lines)}
        await demo.gateway.send_to("live", live.moving([], {}, Measure().summary(), [], why_not=told))

    lines = [
        _why(2, "left", what="Taken back"),
        _why(1, "capped", promotion="<b>Deal</b>"),
    ]
    await tell({"capped": 1_200, "left": 1}, *lines)
    rows = demo.page.locator("#why").get_by_role("listitem")
    await expect(rows).to_have_count(2)
    await expect(rows.nth(0)).to_contain_text("Taken back")
    await expect(rows.nth(1)).to_contain_text("Anna · walking past, Rochusmarkt")
    await expect(rows.nth(1)).to_contain_text("<b>Deal</b>: The customer has had this promotion often enough.")
    await expect(demo.page.locator("#why-total")).to_have_text("1,201 so far")
    left = demo.page.get_by_role("button", name="1 The customer has left.")
    await left.focus()
    await demo.page.keyboard.press("Enter")
    await expect(rows).to_have_count(1)
    await expect(left).to_have_attribute("aria-pressed", "true")
    await tell({"capped": 1_300, "left": 2}, _why(3, "capped"), *lines)
    await expect(demo.page.locator("#why-total")).to_have_text("1,302 so far")
    await expect(rows).to_have_count(1)
    assert await demo.page.evaluate("document.activeElement.textContent") == "2The customer has left."
    await demo.gateway.send_to("live", live.moving([], {}, Measure().summary(), []))
    await demo.page.keyboard.press("Space")
    await expect(rows).to_have_count(3)
    await demo.page.keyboard.press("Tab")
    assert await demo.page.evaluate("document.activeElement.id") == "why"
    width = await demo.page.evaluate("document.documentElement.scrollWidth")
    assert width <= await demo.page.evaluate("window.innerWidth")


async def test_a_notice_has_nothing_to_apply(demo: Demo) -> None:
    """It is shown and can be opened; there is no coupon."""
    await demo.push(1, kind="notice", trigger="order_status", title="Order A-1 is on its way")
    card = demo.page.locator(".offer")
    await expect(card).to_contain_text("Your order")
    await expect(card.get_by_role("button", name="Apply coupon")).to_have_count(0)
    await card.get_by_role("button", name="Open").click()
    await until(lambda: [method for method, _ in demo.gateway.calls] == ["ack", "open"])


@pytest.mark.parametrize("demo", [(360, 740), (820, 1100), (1440, 900)], indirect=True)
async def test_nothing_sticks_out_sideways(demo: Demo) -> None:
    """From a small phone to a desktop the page never scrolls sideways, and every button can be reached by key."""
    await demo.push(1)
    await expect(demo.page.locator(".offer")).to_have_count(1)
    width = await demo.page.evaluate("document.documentElement.scrollWidth")
    assert width <= await demo.page.evaluate("window.innerWidth")
    await demo.page.get_by_role("button", name="Apply coupon").focus()
    await demo.page.keyboard.press("Tab")
    assert await demo.page.evaluate("document.activeElement.textContent") == "Open"
