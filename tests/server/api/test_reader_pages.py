"""The pages behind the links of SMS and e-mail."""

import re

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from nearcast.errors import Gone
from nearcast.ids import StoreId
from nearcast.world import CouponRules
from server.api.keyring import RateLimit
from server.api.links import Link, Purpose
from server.api.services import Limits
from tests.server.api.conftest import client_of
from tests.server.api.shop import ANNA, NOTHING, OFFER, PROMOTION, Shop

HOUR_MS = 3_600_000


def link(shop: Shop, purpose: Purpose, subject: str = OFFER) -> str:
    expires_ms = shop.clock.now_ms() + HOUR_MS
    token = shop.links.sign(purpose, Link(ANNA, subject, expires_ms, "sms"))
    return f"/{'m' if purpose == 'message' else 'u'}/{token}"


async def test_reading_does_not_apply(api: httpx.AsyncClient, shop: Shop) -> None:
    """GET shows the offer; it mints nothing, and like HEAD it notes nothing: mail scanners follow links."""
    path = link(shop, "message")
    response = await api.get(path)
    assert response.status_code == 200
    assert "Coffee, 15 % off" in response.text
    assert "&lt;b&gt;For you&lt;/b&gt;, Anna" in response.text
    assert '<form method="post">' in response.text
    assert (await api.head(path)).status_code == 200
    assert shop.receipts == []
    assert shop.coupons.code_of(OFFER)[:5] not in response.text


async def test_the_page_says_that_it_is_seen(api: httpx.AsyncClient, shop: Shop) -> None:
    """The page's own POST notes that the offer was opened, and answers nothing; nothing is applied by it."""
    path = f"{link(shop, 'message')}/opened"
    for method in ("GET", "HEAD", "PUT"):
        assert (await api.request(method, path)).status_code == 405
    assert shop.receipts == []
    response = await api.post(path)
    assert (response.status_code, response.content) == (204, b"")
    assert shop.receipts == [(ANNA, OFFER, "opened", "sms", "")]
    assert '<form method="post">' in (await api.get(path.removesuffix("/opened"))).text


async def test_too_many_say_that_they_see_it(redis: Redis) -> None:
    """A link's holder can't flood the log: what is over the limit is refused; the offer itself can still be had."""
    shop = Shop(redis, limits=Limits(rate=RateLimit(per_s=0.5, burst=3)))
    path = link(shop, "message")
    async with client_of(shop) as api:
        answers = [await api.post(f"{path}/opened") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [204, 204, 204, 429]
        assert answers[-1].headers["retry-after"] == "2"
        assert (await api.get(path)).status_code == 200
        assert (await api.post(path)).status_code == 200
    assert [receipt[2] for receipt in shop.receipts] == ["opened"] * 3 + ["applied"]


async def test_applying_shows_the_code(api: httpx.AsyncClient, shop: Shop) -> None:
    """POST applies, as often as one likes; from then on the page shows the code, until it is used."""
    path = link(shop, "message")
    code = shop.coupons.code_of(OFFER)
    for method in ("POST", "POST", "GET"):
        text = (await api.request(method, path)).text
        assert f"{code[:5]}-{code[5:10]}-{code[10:15]}-{code[15:]}" in text
        assert '<form method="post">' not in text
    assert [r[2:4] for r in shop.receipts] == [("applied", "sms"), ("applied", "sms")]
    await shop.coupons.redeem(code, StoreId("graben"), "r-1")
    assert "You have used this coupon" in (await api.get(path)).text


async def test_a_notice(api: httpx.AsyncClient, shop: Shop) -> None:
    """Its link shows what it says, and notes that it was seen; there is nothing to apply. Taken back, it says so."""
    shop.decided[OFFER] = msgspec.structs.replace(shop.decided[OFFER], outcome="notice")
    path = link(shop, "message")
    response = await api.get(path)
    assert response.status_code == 200
    assert "<h1>Coffee, 15 % off</h1>" in response.text
    assert "<form" not in response.text
    assert (await api.post(path)).status_code == 404
    assert (await api.post(f"{path}/opened")).status_code == 204
    assert shop.receipts == [(ANNA, OFFER, "opened", "sms", "")]
    shop.state = "recalled"
    response = await api.get(path)
    assert (response.status_code, "message has been taken back" in response.text) == (410, True)


async def test_an_offer_without_a_coupon(api: httpx.AsyncClient, shop: Shop) -> None:
    """It is shown, and there is nothing to apply."""
    shop.promotions[PROMOTION.promotion_id] = msgspec.structs.replace(PROMOTION, coupon=CouponRules(kind="none"))
    path = link(shop, "message")
    response = await api.get(path)
    assert response.status_code == 200
    assert "Coffee, 15 % off" in response.text
    assert "<form" not in response.text
    assert (await api.post(path)).status_code == 409


async def test_a_recalled_offer_says_so(api: httpx.AsyncClient, shop: Shop) -> None:
    """The link of an SMS that can't be unsent: no offer any more, and nothing to apply; nor is it said to be opened."""
    path = link(shop, "message")
    shop.state = "recalled"
    assert await shop.coupons.withdraw(OFFER)
    for method in ("GET", "POST"):
        response = await api.request(method, path)
        assert response.status_code == 410
        assert "taken back" in response.text
        assert "Coffee" not in response.text
        assert "<form" not in response.text
    assert shop.receipts == []


async def test_a_recall_does_not_take_an_applied_coupon(api: httpx.AsyncClient, shop: Shop) -> None:
    """It is theirs: the page goes on showing the code."""
    path = link(shop, "message")
    await api.post(path)
    shop.state = "recalled"
    assert not await shop.coupons.withdraw(OFFER)
    assert shop.coupons.code_of(OFFER)[:5] in (await api.get(path)).text


async def test_scripts_run_by_nonce_only(api: httpx.AsyncClient, shop: Shop) -> None:
    """The policy allows the page's own style and script, by a nonce that is new each time, and no other source."""
    path = link(shop, "message")
    nonces = set()
    for _ in range(2):
        response = await api.post(path)
        policy = response.headers["content-security-policy"]
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
        assert re.findall(r"<(?:style|script)[^>]*>", response.text) == [
            f'<style nonce="{nonce}">',
            f'<script nonce="{nonce}">',
        ]
        assert "unsafe" not in policy
        assert "connect-src" not in policy
        nonces.add(nonce)
    assert len(nonces) == 2
    policy = (await api.get(link(shop, "unsubscribe", "sms"))).headers["content-security-policy"]
    assert "connect-src" not in policy


async def test_an_offer_may_reach_nothing_but_its_own_host(api: httpx.AsyncClient, shop: Shop) -> None:
    """The page of an offer that is still to be applied says that it is seen, to where it came from and nobody else."""
    response = await api.get(link(shop, "message"))
    assert "connect-src 'self';" in response.headers["content-security-policy"]
    assert "http" not in response.text.split("<main", 1)[1]


async def test_bad_links(api: httpx.AsyncClient, shop: Shop) -> None:
    """Forged, expired and mixed-up links, and offers that are no more, are pages that say so, and change nothing."""
    good = link(shop, "message")
    unsubscribe = link(shop, "unsubscribe", "sms")
    for method in ("GET", "POST"):
        for path in (
            good[:-1] + ("A" if good[-1] != "A" else "Q"),
            "/m/x",
            "/m/%00%FF",
            unsubscribe.replace("/u/", "/m/"),
        ):
            response = await api.request(method, path)
            assert response.status_code == 404
            assert "This link is not valid" in response.text
            if method == "POST" and path.startswith("/m/"):
                assert (await api.post(f"{path}/opened")).status_code == 404
        assert (await api.request(method, good.replace("/m/", "/u/"))).status_code == 404
        assert (await api.request(method, link(shop, "message", NOTHING))).status_code == 404
    shop.clock.advance(HOUR_MS)
    for path in (good, f"{good}/opened", unsubscribe):
        response = await api.post(path)
        assert response.status_code == 410
        assert "Too late" in response.text
    assert (shop.receipts, shop.consents) == ([], [])


async def test_log_away(api: httpx.AsyncClient, shop: Shop) -> None:
    """With the log away the offer can still be read; what can't be recorded asks to try again."""
    shop.away = True
    assert (await api.get(link(shop, "message"))).status_code == 200
    for path in (link(shop, "message"), f"{link(shop, 'message')}/opened", link(shop, "unsubscribe", "email")):
        response = await api.post(path)
        assert response.status_code == 503
        assert "try again" in response.text
        assert response.headers["retry-after"]


async def test_unsubscribing(api: httpx.AsyncClient, shop: Shop) -> None:
    """GET asks; the one-click POST of RFC 8058 withdraws the link's scope; the second button withdraws all."""
    path = link(shop, "unsubscribe", "email")
    assert "e-mails" in (await api.get(path)).text
    assert shop.consents == []
    response = await api.post(path, data={"List-Unsubscribe": "One-Click"})
    assert (response.status_code, shop.consents) == (200, [(ANNA, "email", False)])
    assert "We will not send you e-mails any more." in response.text
    response = await api.post(path, data={"scope": "all"})
    assert shop.consents[1] == (ANNA, "all", False)
    await api.post(path, content=b"\xff\x00&scope=everything&=;")
    assert shop.consents[2] == (ANNA, "email", False)


async def test_apply_after_the_coupons_end(api: httpx.AsyncClient, shop: Shop) -> None:
    """A link may outlive its coupon; then applying is too late."""
    token = shop.links.sign("message", Link(ANNA, OFFER, shop.clock.now_ms() + 24 * HOUR_MS))
    shop.clock.advance(3 * HOUR_MS)
    response = await api.post(f"/m/{token}")
    assert response.status_code == 410
    assert "The coupon&#39;s time is over." in response.text
    with pytest.raises(Gone):
        shop.links.verify("message", token, shop.clock.now_ms() + 24 * HOUR_MS)


async def test_promotion_taken_away(api: httpx.AsyncClient, shop: Shop) -> None:
    """Without its promotion an offer is over; a coupon that was applied before can still be shown at the till."""
    path = link(shop, "message")
    promotions, shop.promotions = shop.promotions, {}
    for method in ("GET", "POST"):
        assert (await api.request(method, path)).status_code == 410
    shop.promotions = promotions
    await api.post(path)
    shop.promotions = {}
    for method in ("GET", "POST"):
        response = await api.request(method, path)
        assert "Your coupon" in response.text
        assert shop.coupons.code_of(OFFER)[:5] in response.text
