"""Reports over HTTP, and their page in real Chromium, over the real store with counters of our own."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest
import uvicorn
from playwright.async_api import Browser, Page, async_playwright, expect
from redis.asyncio import Redis

from nearcast import keys
from nearcast.world import Promotion, Words
from offers.measure import field_of
from server import settings as settings_module
from server.api.app import create_app
from server.api.reports import FILES
from server.core import Core, open_core
from server.roles import make_desk
from tests.server.replay.installation import KEYS, PARTITIONS, environment
from tests.server.town import WORLD
from tests.services.browser import ARGUMENTS, chromium

WITHIN_S = 20
REPORTS = {"Authorization": "Bearer key-of-reports"}
TABLE, REPORT = "/v1/promotions/report", "/v1/promotions/grind/report"
TODAY = datetime.now(UTC).date()
DAYS = [(TODAY - timedelta(days=ago)).isoformat() for ago in (6, 5, 1)]
ODD = "50 % <b>off</b>/now"
#: Of a promotion, for each of `DAYS` and partition.
COUNTED = {
    "decided": 120, "sent": 100, "delivered": 80, "opened": 40, "applied": 20, "redeemed": 10, "rolled_back": 1,
    "suppressed": 12, "suppressed:left": 12, "revenue_cents": 45_000, "discount_cents": 4_500, "converted": 30,
    "last_touch_cents": 60_000, "linear_cents": 50_000,
    "treated_windows": 90, "treated_bought": 27, "treated_sum": 54_000, "treated_squares": 150_000_000,
    "held_out_windows": 30, "held_out_bought": 5, "held_out_sum": 9_000, "held_out_squares": 22_000_000,
}  # fmt: skip


@pytest.fixture
async def core(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Core]:
    """A server's core with a key for reports, and figures of one promotion that is there, and of one that is gone."""
    for name, value in environment(valkey_url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NEARCAST_API_KEYS", json.dumps(KEYS | {"reports": "key-of-reports"}))
    for place, day in enumerate(DAYS):
        for partition in range(PARTITIONS):
            name = keys.measured_day(partition, day)
            await redis.hset(name, mapping={field_of(what, "grind"): n for what, n in COUNTED.items()})
            await redis.hset(name, field_of("decided", "of last year"), place)
    odd = Promotion(id=ODD, name="", trigger="exit", words={"en": Words(title="x")})
    async with open_core(settings_module.load()) as core:
        odd = msgspec.structs.replace(odd, name=ODD)
        await core.world.put(msgspec.structs.replace(WORLD, promotions=[*WORLD.promotions, odd]))
        yield core


@pytest.fixture
async def api(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(make_desk(core)))
    async with httpx.AsyncClient(transport=transport, base_url="http://api.test", headers=REPORTS) as client:
        yield client


async def get(api: httpx.AsyncClient, path: str, **asked: str) -> dict[str, Any]:
    answer = await api.get(path, params=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_one_promotion(api: httpx.AsyncClient) -> None:
    """Sums over days and partitions, the rates of them, and lift; by day; another range leaves days out."""
    report = await get(api, REPORT)
    assert (report["from"], report["to"]) == ((TODAY - timedelta(days=27)).isoformat(), TODAY.isoformat())
    assert (report["name"], report["kind"], len(report["days"])) == ("At the grinder", "offer", 28)
    steps = {step["step"]: (step["messages"], step["of_decided"], step["of_previous"]) for step in report["funnel"]}
    assert steps["decided"] == (1_440, 1.0, 1.0)
    assert steps["opened"] == (480, 480 / 1_440, 0.5)
    assert report["money"] == {"revenue_cents": 540_000, "discount_cents": 54_000, "effective_discount": 0.1}
    assert report["attribution"]["window_s"] == 7 * 86_400
    assert report["treated"]["rate"] == 0.3
    difference = report["lift"]["difference"]
    assert difference["value"] == pytest.approx(0.3 - 1 / 6)
    assert 0 < difference["low"] < difference["value"] < difference["high"] < 1
    assert report["reasons"] == {"suppressed": {"left": 144}, "recalled": {}}
    assert {day["day"]: day["redeemed"] for day in report["days"] if day["redeemed"]} == dict.fromkeys(DAYS, 40)
    one = await get(api, REPORT, **{"from": DAYS[0], "to": DAYS[0]})
    assert (one["funnel"][0]["messages"], len(one["days"])) == (480, 1)


async def test_all_promotions(api: httpx.AsyncClient) -> None:
    """Those there are, also without figures, and those that are gone and have some."""
    table = await get(api, TABLE)
    rows = {row["promotion"]: row for row in table["promotions"]}
    assert set(rows) == {"abandoned", "welcome", "grind", "help", ODD, "of last year"}
    assert (rows["of last year"]["kind"], rows["of last year"]["funnel"][0]["messages"]) == (None, 12)
    assert rows["help"]["lift"] == {"difference": None, "relative": None, "revenue_cents": None}
    report = await get(api, REPORT)
    assert rows["grind"] == {name: report[name] for name in rows["grind"]}
    gone = await get(api, f"/v1/promotions/{quote('of last year')}/report")
    assert (gone["name"], gone["attribution"]["window_s"]) == ("", None)
    assert (await get(api, f"/v1/promotions/{quote(ODD, safe='')}/report"))["name"] == ODD


async def test_what_is_refused(api: httpx.AsyncClient, problem: Callable[[httpx.Response, int], str]) -> None:
    """A promotion that never was, a range that makes no sense, keys of other roles; an admin may."""
    assert problem(await api.get("/v1/promotions/never/report"), 404) == "unknown_promotion"
    for path in (TABLE, REPORT):
        backwards = {"from": "2026-03-02", "to": "2026-03-01"}
        assert problem(await api.get(path, params=backwards), 400) == "malformed_range"
        assert problem(await api.get(path, params={"from": "2020-03-02"}), 400) == "range_too_large"
        assert problem(await api.get(path, params={"from": "yesterday"}), 422) == "invalid_parameter"
        staff, nobody = {"Authorization": f"Bearer {KEYS['staff']}"}, {"Authorization": "Bearer no"}
        assert problem(await api.get(path, headers=staff), 403) == "forbidden"
        assert problem(await api.get(path, headers=nobody), 401) == "unauthenticated"
        assert (await api.get(path, headers={"Authorization": f"Bearer {KEYS['admin']}"})).status_code == 200
    # A key for reports is good for nothing else, and the demo's ways around keys exist in the demo only.
    assert problem(await api.get("/v1/catalogue/promotions"), 403) == "forbidden"
    assert problem(await api.get("/demo/reports"), 404) == "no_such_route"
    assert problem(await api.get("/reports/app.js"), 404) == "not_found"


async def test_the_page_has_all_its_files(api: httpx.AsyncClient) -> None:
    """What the page and its scripts ask for is served, under a policy that lets nothing in from elsewhere."""
    assert (await api.get("/reports")).headers["location"] == "/reports/"
    for name in ("", *FILES):
        answer = await api.get(f"/reports/{name}", headers={"Authorization": ""})
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page; nothing it does may make the browser complain, but for an answer that refuses a key."""
    complaints: list[str] = []
    page = await browser.new_page(reduced_motion="reduce", timezone_id="UTC")
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    yield page
    await page.close()
    assert [said for said in complaints if "401" not in said] == []


async def _serve(core: Core, *, demo: bool) -> AsyncIterator[str]:
    listening, desk = socket.create_server(("127.0.0.1", 0)), make_desk(core)
    desk.demo = demo
    server = uvicorn.Server(uvicorn.Config(create_app(desk), access_log=False, log_level="warning", lifespan="off"))
    task = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(WITHIN_S):
        while not server.started:
            await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
async def served(core: Core) -> AsyncIterator[str]:
    async for url in _serve(core, demo=False):
        yield url


@pytest.fixture
async def served_demo(core: Core) -> AsyncIterator[str]:
    async for url in _serve(core, demo=True):
        yield url


@pytest.mark.browser
async def test_the_page(page: Page, served: str) -> None:
    """It asks for a key, shows the list, and of the promotion that is chosen the pictures, in words as well."""
    await page.goto(f"{served}/reports/")
    await page.get_by_label("API key").fill("wrong")
    await page.get_by_role("button", name="Show the reports").click()
    await expect(page.get_by_role("alert").first).to_contain_text("That key was not taken")
    await page.get_by_label("API key").fill("key-of-reports")
    await page.keyboard.press("Enter")
    row = page.get_by_role("row").filter(has_text="At the grinder")
    await expect(row.get_by_role("cell")).to_have_text(
        ["1,440", "960", "480", "120", "$5,400.00", "10%", "+13.3 (+8.4 to +17.8)"]
    )
    await expect(page.get_by_role("link", name=ODD)).to_have_count(1)
    assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    await page.get_by_role("link", name="At the grinder").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="At the grinder")).to_be_focused()
    funnel = page.get_by_role("img", name="Messages by how far they got")
    await expect(funnel).to_have_accessible_name(
        "Messages by how far they got: Decided 1,440 · 100%, Sent 1,200 · 83.3%, Delivered 960 · 66.7%, "
        "Opened 480 · 33.3%, Applied 240 · 16.7%, Redeemed 120 · 8.3%"
    )
    await expect(page.locator("#outcomes li")).to_have_text(
        ["144 not sent after all (left 144)", "12 redemptions called off"]
    )
    await expect(page.get_by_role("img", name="Lift in percentage points: +8.4 to +17.8")).to_be_visible()
    assert await page.locator("#redeemed circle").count() == 28
    await page.get_by_text("The same as a table").click()
    await expect(page.locator("#days tbody tr").filter(has_text=DAYS[2])).to_contain_text("$1,800.00")
    # Fewer days, and the key is kept over a reload.
    await page.get_by_label("From").fill(DAYS[1])
    await expect(page.locator("#redeemed circle")).to_have_count(6)
    await page.reload()
    await expect(page.get_by_role("heading", name="At the grinder")).to_be_visible()
    await page.get_by_role("button", name="Forget the key").click()
    await expect(page.get_by_label("API key")).to_be_focused()
    await expect(page.locator("#figures")).to_be_hidden()
    assert await page.evaluate("sessionStorage.length") == 0


@pytest.mark.browser
async def test_the_page_in_the_demo(page: Page, served_demo: str) -> None:
    """It needs no key; a promotion without figures says so; what people named it is text, never markup."""
    await page.set_viewport_size({"width": 375, "height": 700})
    await page.goto(f"{served_demo}/demo/reports.html")
    await page.get_by_role("link", name=ODD).click()
    await expect(page.get_by_role("heading", name=ODD)).to_be_visible()
    await expect(page.locator("#funnel")).to_have_text("No messages on these days.")
    await expect(page.locator("#lift")).to_contain_text("nothing can be said")
    assert await page.evaluate("document.documentElement.scrollWidth") <= 375
    await page.get_by_role("link", name="At the grinder").click()
    await expect(page.locator("#funnel svg")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 375
