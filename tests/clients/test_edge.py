"""The offline till against the real API: redeem while the line is down, merge when it is up, whatever crashes."""

import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from clients.edge import EdgeTill, Keys, Refused
from nearcast.coupons import CouponClaims
from nearcast.ids import CustomerId, DecisionId, PromotionId, StoreId
from server.coupon_signing import CouponSigner
from server.coupons import AppliedOffer, Coupon
from tests.server.api.conftest import client_of
from tests.server.api.shop import Shop, key

GRABEN, RING = StoreId("graben"), StoreId("ring")


@pytest.fixture
def shop(redis: Redis) -> Shop:
    """Behind the API."""
    return Shop(redis)


@pytest.fixture
async def api(shop: Shop) -> AsyncIterator[httpx.AsyncClient]:
    """The line, with the till's key."""
    async with client_of(shop) as client:
        client.headers.update(key("pos"))
        yield client


async def apply(shop: Shop, n: int, **terms: object) -> Coupon:
    """A coupon for the Graben store."""
    offer = {
        "customer": CustomerId(f"c-{n}"),
        "decision": DecisionId(f"d-{n}"),
        "promotion": PromotionId(f"p-{n}"),
        "expires_ms": shop.clock.now_ms() + 3_600_000,
        "store": GRABEN,
        **terms,
    }
    return await shop.coupons.apply(AppliedOffer(**offer))


async def taken(api: httpx.AsyncClient, name: str = "b-1", **wanted: object) -> str:
    """The token of a block."""
    response = await api.post("/v1/stores/graben/blocks", json={"id": name, "for_s": 1_800, **wanted})
    assert response.status_code == 200, response.text
    return str(response.json()["token"])


async def keys_of(api: httpx.AsyncClient) -> Keys:
    return Keys((await api.get("/v1/coupons/keys")).content)


async def test_a_day_offline(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """While it is out a coupon is redeemed at its tills only; merged, the book and the receipts know of it; closed, the
    rest is free.
    """
    sold, kept = await apply(shop, 1), await apply(shop, 2)
    token = await taken(api)
    assert sold.code not in token
    for store in (GRABEN, RING):
        body = {"store": store, "redemption_id": "online"}
        response = await api.post(f"/v1/coupons/{sold.code}/redeem", json=body)
        assert (response.status_code, response.json()["reason"]) == (409, "in_block")
    with EdgeTill(tmp_path / "till", token, await keys_of(api), shop.clock) as till:
        till.redeem(sold.code.lower(), "r-1", revenue_cents=900, discount_cents=90)
        with pytest.raises(Refused, match="another redemption"):
            till.redeem(sold.code, "r-2")
        assert [verdict.verdict for verdict in await till.merge(api, close=True)] == ["redeemed"]
        assert till.waiting == []
    now = await shop.coupons.validate(sold.code)
    assert (now.state, now.redeemed_store, now.redemption_id, now.revenue_cents) == ("redeemed", GRABEN, "r-1", 900)
    assert [(status, told.redemption_id, told.discount_cents) for status, told in shop.redemptions] == [
        ("redeemed", "r-1", 90)
    ]
    assert (await shop.coupons.redeem(kept.code, RING, "online")).state == "redeemed"


async def test_a_late_merge(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """A block that was never merged is free after its grace; a merge after that records what is still there to be
    recorded, and says which coupon was redeemed elsewhere.
    """
    lost, late = await apply(shop, 1), await apply(shop, 2)
    with EdgeTill(tmp_path / "till", await taken(api), await keys_of(api), shop.clock) as till:
        till.redeem(lost.code, "r-1")
        till.redeem(late.code, "r-2")
        shop.clock.advance(1_800_000 + 900_000)
        await shop.coupons.redeem(lost.code, RING, "elsewhere")
        shop.clock.advance(3_600_000)
        assert [verdict.verdict for verdict in await till.merge(api)] == ["already_redeemed", "redeemed"]
    assert (await shop.coupons.validate(lost.code)).redeemed_store == RING


async def test_what_a_till_refuses(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """Coupons that aren't in the block, forged tokens, terms that aren't met, and anything once the block is over."""
    alone, small = await apply(shop, 1, exclusive=True), await apply(shop, 2, min_purchase_cents=500)
    short = await apply(shop, 3, expires_ms=shop.clock.now_ms() + 60_000)
    token, keys = await taken(api), await keys_of(api)
    other = await apply(shop, 4)
    forged = CouponSigner(b"another secret").sign("nearcast-coupon", _claims(small))
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:

        def refusal(typed: str, redemption: str, revenue_cents: int | None = None) -> str:
            with pytest.raises(Refused) as refused:
                till.redeem(typed, redemption, revenue_cents=revenue_cents)
            return refused.value.reason

        assert [refusal(typed, "r-1") for typed in (other.code, forged, "0" * 20, token)] == ["unknown_coupon"] * 4
        assert refusal(small.code, "r-1", 499) == "below_minimum"
        till.redeem(shop.coupons.token_of(small), "r-1", revenue_cents=500)
        assert refusal(alone.code, "r-1") == "not_combinable"
        till.call_off(small.code, "r-1")
        assert refusal(small.code, "r-1") == "redemption_rolled_back"
        till.redeem(alone.code, "r-1")
        shop.clock.advance(60_000)
        assert refusal(short.code, "r-3") == "coupon_expired"
        shop.clock.advance(1_800_000)
        assert refusal(small.code, "r-4") == "block_over"
        with pytest.raises(OSError, match="temporarily unavailable"):
            EdgeTill(tmp_path / "till", token, keys, shop.clock)
        await till.merge(api)
        with pytest.raises(Refused) as merged:
            till.call_off(alone.code, "r-1")
        assert merged.value.reason == "merged"
    with pytest.raises(Refused) as forgery:
        EdgeTill(tmp_path / "new", jwt.encode({}, "k" * 32, headers={"typ": "nearcast-block"}), keys, shop.clock)
    assert forgery.value.reason == "unknown_coupon"


def _claims(coupon: Coupon) -> CouponClaims:
    return CouponClaims(code=coupon.code, promotion=coupon.offer.promotion, exp=coupon.offer.expires_ms // 1000)


_WRITES = st.lists(
    st.tuples(st.sampled_from(["redeem", "redeem", "redeem", "call off"]), st.integers(0, 2), st.integers(0, 2)),
    max_size=10,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_WRITES, cut=st.integers(0, 10_000))
async def test_killed_at_any_byte(
    api: httpx.AsyncClient, shop: Shop, redis: Redis, tmp_path: Path, steps: list[tuple[str, int, int]], cut: int
) -> None:
    """Whatever byte of the journal was the last that reached the disk: a till that reads it goes on from the last whole
    line, never redeems a coupon for two purchases, and what it merges is what its book says.
    """
    await redis.flushdb()
    coupons = [await apply(shop, n) for n in range(3)]
    token, keys = await taken(api), await keys_of(api)
    journal = tmp_path / "till"
    journal.unlink(missing_ok=True)
    with EdgeTill(journal, token, keys, shop.clock) as till:
        for what, coupon, redemption in steps:
            _do(till, what, coupons[coupon].code, f"r-{redemption}")
    whole = journal.read_bytes()
    journal.write_bytes(whole[: min(cut, len(whole))])
    # An oracle of its own: the lines that are whole.
    expected: dict[str, str] = {}
    for line in journal.read_bytes().split(b"\n")[:-1]:
        said = json.loads(line)
        if said["what"] == "redeemed":
            expected[said["redemption"]["code"]] = said["redemption"]["redemption_id"]
        elif said["what"] == "called off":
            del expected[said["redemption"]["code"]]
    with EdgeTill(journal, token, keys, shop.clock) as till:
        assert {made.code: made.redemption_id for made in till.waiting} == expected
        for coupon in coupons:
            _do(till, "redeem", coupon.code, "r-last")
            expected.setdefault(coupon.code, "r-last")
        assert {verdict.verdict for verdict in await till.merge(api)} == {"redeemed"}
    with EdgeTill(journal, token, keys, shop.clock) as till:
        assert till.waiting == []
    now = [await shop.coupons.validate(coupon.code) for coupon in coupons]
    assert {coupon.code: coupon.redemption_id for coupon in now} == expected


def _do(till: EdgeTill, what: str, code: str, redemption: str) -> None:
    with contextlib.suppress(Refused):
        if what == "redeem":
            till.redeem(code, redemption)
        else:
            till.call_off(code, redemption)


async def test_a_merge_cut_short(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """The line breaks after the server has merged and before it could say so: merged again, nothing changes."""
    coupon = await apply(shop, 1)

    async def break_off(response: httpx.Response) -> None:
        raise httpx.ReadError("the line broke")

    token, keys = await taken(api), await keys_of(api)
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:
        till.redeem(coupon.code, "r-1")
        api.event_hooks = {"response": [break_off]}
        with pytest.raises(httpx.ReadError):
            await till.merge(api)
        api.event_hooks = {}
    assert (await shop.coupons.validate(coupon.code)).state == "redeemed"
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:
        with pytest.raises(Refused, match="merged"):
            till.call_off(coupon.code, "r-1")
        assert [verdict.verdict for verdict in await till.merge(api)] == ["redeemed"]


async def test_the_journal_is_on_disk(
    api: httpx.AsyncClient, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is synced before anything is redeemed, and each redemption before it is said."""
    coupon = await apply(shop, 1)
    token, keys = await taken(api), await keys_of(api)
    synced: list[str] = []
    sync = os.fsync

    def seen(handle: int) -> None:
        sync(handle)
        synced.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "journal")

    monkeypatch.setattr(os, "fsync", seen)
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:
        assert synced[0] == "folder"
        before = len(synced)
        till.redeem(coupon.code, "r-1")
        assert synced[before:] == ["journal"]


async def test_closed(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """A till that has given its block back redeems nothing more by it, and doesn't get it again: its coupons may be
    redeemed anywhere.
    """
    sold, kept = await apply(shop, 1), await apply(shop, 2)
    token, keys = await taken(api), await keys_of(api)
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:
        till.redeem(sold.code, "r-1")
        await till.merge(api, close=True)
    with EdgeTill(tmp_path / "till", token, keys, shop.clock) as till:
        with pytest.raises(Refused) as over:
            till.redeem(kept.code, "r-2")
        assert over.value.reason == "block_over"
        assert till.redeem(sold.code, "r-1").promotion == "p-1"
        assert await till.merge(api, close=True) == []
    again = await api.post("/v1/stores/graben/blocks", json={"id": "b-1", "for_s": 1_800})
    assert (again.status_code, again.json()["reason"]) == (409, "block_closed")


async def test_fetched_again(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """A block that was fetched again, without what was merged, goes on with its journal: a repeated redemption is the
    same success, and an exclusive coupon stays alone in its purchase.
    """
    alone, other = await apply(shop, 1, exclusive=True), await apply(shop, 2)
    keys = await keys_of(api)
    with EdgeTill(tmp_path / "till", await taken(api), keys, shop.clock) as till:
        till.redeem(alone.code, "r-1")
        await till.merge(api)
    with EdgeTill(tmp_path / "till", await taken(api), keys, shop.clock) as till:
        assert till.redeem(alone.code, "r-1").exclusive
        for code, redemption, reason in (
            (other.code, "r-1", "not_combinable"),
            (alone.code, "r-2", "already_redeemed"),
        ):
            with pytest.raises(Refused) as refused:
                till.redeem(code, redemption)
            assert refused.value.reason == reason
        till.redeem(other.code, "r-2")


async def test_the_next_block_before_the_merge(api: httpx.AsyncClient, shop: Shop, tmp_path: Path) -> None:
    """What the old block's till redeemed is not lost though its coupon is in the next one by now; the book has one
    redemption, and both tills know which.
    """
    coupon = await apply(shop, 1, expires_ms=shop.clock.now_ms() + 36_000_000)
    keys = await keys_of(api)
    with EdgeTill(tmp_path / "old", await taken(api, "b-1"), keys, shop.clock) as old:
        old.redeem(coupon.code, "r-1")
        shop.clock.advance(7_200_000)
        with EdgeTill(tmp_path / "new", await taken(api, "b-2"), keys, shop.clock) as new:
            new.redeem(coupon.code, "r-2")
            assert [verdict.verdict for verdict in await old.merge(api, close=True)] == ["redeemed"]
            assert [verdict.verdict for verdict in await new.merge(api, close=True)] == ["already_redeemed"]
    assert (await shop.coupons.validate(coupon.code)).redemption_id == "r-1"
