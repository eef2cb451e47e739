"""Coupons over HTTP."""

import asyncio
import hashlib
import re
from collections.abc import Callable
from xml.etree import ElementTree

import httpx
import jwt
import numpy
import zxingcpp
from msgspec.structs import replace
from redis.asyncio import Redis

from nearcast.ids import CustomerId, DecisionId, StoreId
from nearcast.world import CouponRules, Discount
from server.blocks import Blocks
from server.coupon_guard import Guard
from server.coupons import AppliedOffer, CouponBook
from tests.server.api.conftest import client_of
from tests.server.api.shop import NOTHING, OFFER, PROMOTION, Shop, key

Check = Callable[[httpx.Response, int], str]


async def applied(api: httpx.AsyncClient) -> str:
    body = {"customer": "anna", "decision": OFFER}
    response = await api.post("/v1/coupons/apply", json=body, headers=key("intake"))
    assert response.status_code == 200, response.text
    return str(response.json()["code"])


async def redeem(api: httpx.AsyncClient, code: str, redemption: str) -> httpx.Response:
    body = {"store": "graben", "redemption_id": redemption}
    return await api.post(f"/v1/coupons/{code}/redeem", json=body, headers=key("pos"))


async def test_apply_validate_redeem(api: httpx.AsyncClient, shop: Shop) -> None:
    """From an offer to a used coupon; the till never learns whose it is; each step leaves its receipt."""
    code = await applied(api)
    assert await applied(api) == code
    typed = f"{code[:5]}-{code[5:10]} {code[10:]}".lower()
    seen = (await api.get(f"/v1/coupons/{typed}", headers=key("pos"))).json()
    assert (seen["code"], seen["state"], seen["discount"]) == (code, "applied", {"percent": 15.0})
    assert seen["expires_ms"] == shop.clock.now_ms() + 7_200_000
    response = await redeem(api, code, "r-1")
    assert (response.status_code, response.json()["state"]) == (200, "redeemed")
    assert "anna" not in response.text
    assert [r[2] for r in shop.receipts] == ["applied", "applied", "redeemed"]
    assert {r[:2] for r in shop.receipts} == {("anna", OFFER)}


async def test_redeemed_once(api: httpx.AsyncClient, problem: Check) -> None:
    """Of 50 tills at the same time one wins; it may repeat itself; after a rollback another may redeem."""
    code = await applied(api)
    answers = await asyncio.gather(*(redeem(api, code, f"r-{i}") for i in range(50)))
    winners = [i for i, response in enumerate(answers) if response.status_code == 200]
    assert len(winners) == 1
    assert {problem(r, 409) for i, r in enumerate(answers) if i not in winners} == {"already_redeemed"}
    mine = f"r-{winners[0]}"
    assert (await redeem(api, code, mine)).status_code == 200
    body = {"redemption_id": mine}
    response = await api.post(f"/v1/coupons/{code}/rollback", json=body, headers=key("pos"))
    assert (response.status_code, response.json()["state"]) == (200, "applied")
    assert problem(await redeem(api, code, mine), 409) == "redemption_rolled_back"
    assert (await redeem(api, code, "r-new")).status_code == 200


async def test_unknown_codes_are_all_alike(api: httpx.AsyncClient, problem: Check) -> None:
    """A code that never was, a malformed one and a strange one give the same answer."""
    answers = []
    for code in ("0" * 20, "ABC", "%00", "ÄÖÜ" * 7, "x" * 500):
        response = await api.get(f"/v1/coupons/{code}", headers=key("pos"))
        assert problem(response, 404) == "unknown_coupon"
        answers.append({k: v for k, v in response.json().items() if k != "instance"})
        assert problem(await redeem(api, code, "r"), 404) == "unknown_coupon"
    assert all(answer == answers[0] for answer in answers)


async def test_only_own_offers(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Somebody else's decision, one without an offer and an unknown one are all "no such offer"."""
    for customer, decision in (("bob", OFFER), ("anna", NOTHING), ("anna", "nope")):
        body = {"customer": customer, "decision": decision}
        response = await api.post("/v1/coupons/apply", json=body, headers=key("intake"))
        assert problem(response, 404) == "unknown_decision"
    assert shop.receipts == []


async def test_too_late(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """After its end a coupon can't be applied; one applied before is seen as expired and can't be redeemed."""
    code = await applied(api)
    shop.clock.advance(7_200_000)
    assert (await api.get(f"/v1/coupons/{code}", headers=key("pos"))).json()["state"] == "expired"
    assert problem(await redeem(api, code, "r-1"), 410) == "coupon_expired"


async def test_promotion_taken_away(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """An offer whose promotion is gone can't be applied any more; a coupon that was applied stays good."""
    body = {"customer": "anna", "decision": OFFER}
    promotions, shop.promotions = shop.promotions, {}
    response = await api.post("/v1/coupons/apply", json=body, headers=key("intake"))
    assert problem(response, 410) == "promotion_ended"
    shop.promotions = promotions
    code = await applied(api)
    shop.promotions = {}
    assert await applied(api) == code


async def test_receipt_is_not_lost(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """With the log away the till gets 503 and repeats; the coupon is redeemed once and the receipt is written."""
    code = await applied(api)
    shop.away = True
    assert problem(await redeem(api, code, "r-1"), 503) == "unavailable"
    shop.away = False
    assert (await redeem(api, code, "r-1")).status_code == 200
    assert [r[2] for r in shop.receipts] == ["applied", "redeemed"]


async def test_reserve_release_and_roll_back(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """As docs/coupons.md tells it: reserved, taken by nobody else, redeemed with sums, called off, redeemed anew."""
    code = await applied(api)
    path = f"/v1/coupons/{code}"
    purchase = {"store": "graben", "redemption_id": "r-1"}

    async def post(step: str, **body: object) -> httpx.Response:
        return await api.post(f"{path}/{step}", json=body, headers=key("pos"))

    reserved = (await post("reserve", **purchase, hold_s=60)).json()
    assert (reserved["state"], reserved["held_until_ms"]) == ("reserved", shop.clock.now_ms() + 60_000)
    assert problem(await redeem(api, code, "r-2"), 409) == "reserved"
    assert (await post("release", **purchase)).json()["state"] == "applied"
    assert (await post("reserve", **purchase, while_in_store=True)).json()["while_in_store"] is True
    sums = {"revenue_cents": 2_490, "discount_cents": 374}
    redeemed = (await post("redeem", **purchase, **sums)).json()
    assert {name: redeemed[name] for name in sums} == sums
    for _ in range(2):
        assert (await post("rollback", **purchase)).json()["state"] == "applied"
    assert problem(await post("redeem", **purchase), 409) == "redemption_rolled_back"
    assert (await post("redeem", store="graben", redemption_id="r-2")).status_code == 200
    told = [(status, each.redemption_id, each.revenue_cents, each.discount_cents) for status, each in shop.redemptions]
    assert told == [
        ("redeemed", "r-1", 2_490, 374),
        ("rolled_back", "r-1", 2_490, 374),
        ("rolled_back", "r-1", 2_490, 374),
        ("redeemed", "r-2", None, None),
    ]


async def test_called_off_before_it_was_redeemed(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """There is no receipt of what never was."""
    code = await applied(api)
    response = await api.post(f"/v1/coupons/{code}/rollback", json={"redemption_id": "r-1"}, headers=key("pos"))
    assert response.status_code == 200
    assert problem(await redeem(api, code, "r-1"), 409) == "redemption_rolled_back"
    assert [receipt[2] for receipt in shop.receipts] == ["applied"]


async def test_the_qr_code(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """The app gets a token and its image; the token is good wherever a code is; a used coupon has no image."""
    body = {"customer": "anna", "decision": OFFER}
    coupon = (await api.post("/v1/coupons/apply", json=body, headers=key("intake"))).json()
    token = coupon["token"]
    image = await api.get(f"/v1/coupons/{coupon['code']}/qr", headers=key("intake"))
    assert image.headers["content-type"] == "image/svg+xml"
    assert read_svg(image.text) == token
    jwks = jwt.PyJWKSet.from_json((await api.get("/v1/coupons/keys")).text)
    verified = jwt.decode(token, jwks[jwt.get_unverified_header(token)["kid"]], ["EdDSA"], {"verify_exp": False})
    assert (verified["code"], verified["exp"]) == (coupon["code"], (shop.clock.now_ms() + 7_200_000) // 1000)
    seen = await api.get(f"/v1/coupons/{token}", headers=key("pos"))
    assert (seen.json()["code"], "token" in seen.json()) == (coupon["code"], False)
    assert (await redeem(api, token, "r-1")).json()["state"] == "redeemed"
    assert problem(await api.get(f"/v1/coupons/{token}/qr", headers=key("intake")), 409) == "already_redeemed"
    forged = token[:-6] + ("AAAAAA" if token[-6:] != "AAAAAA" else "BBBBBB")
    assert problem(await api.get(f"/v1/coupons/{forged}", headers=key("pos")), 404) == "unknown_coupon"


def read_svg(svg: str) -> str:
    """The text of a QR code, drawn from its SVG and read by ZXing."""
    root = ElementTree.fromstring(svg)
    side = int(root.attrib["viewBox"].split()[2])
    lines = root.findall("{http://www.w3.org/2000/svg}path")[-1].attrib["d"]
    image = numpy.full((side, side), 255, dtype=numpy.uint8)
    x = y = 0.0
    for command, numbers in re.findall(r"([Mmh])([^Mmh]*)", lines):
        steps = [float(number) for number in numbers.replace("-", " -").split()]
        if command == "h":
            image[int(y), int(x) : int(x + steps[0])] = 0
            x += steps[0]
        elif command == "m":
            x, y = x + steps[0], y + steps[1]
        else:
            x, y = steps
    (found,) = zxingcpp.read_barcodes(image.repeat(4, 0).repeat(4, 1))
    return str(found.text)


async def test_an_offer_without_a_coupon(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """There is nothing to apply; one that was applied before stays good."""
    body = {"customer": "anna", "decision": OFFER}
    promotions = shop.promotions
    shop.promotions = {PROMOTION.promotion_id: replace(PROMOTION, coupon=CouponRules(kind="none"))}
    response = await api.post("/v1/coupons/apply", json=body, headers=key("intake"))
    assert problem(response, 409) == "no_coupon"
    shop.promotions = promotions
    code = await applied(api)
    shop.promotions = {PROMOTION.promotion_id: replace(PROMOTION, coupon=CouponRules(kind="none"))}
    assert await applied(api) == code


async def test_terms_are_those_of_the_offer(api: httpx.AsyncClient, shop: Shop) -> None:
    """What the decision says of the discount goes before the promotion; later changes change nothing."""
    rules = CouponRules(exclusive=True, group="drinks", this_store=True, min_purchase_cents=500)
    shop.promotions = {PROMOTION.promotion_id: replace(PROMOTION, coupon=rules)}
    shop.decided[OFFER].discount = Discount(amount_cents=120)
    code = await applied(api)
    shop.promotions = {PROMOTION.promotion_id: PROMOTION}
    assert await applied(api) == code
    seen = (await api.get(f"/v1/coupons/{code}", headers=key("pos"))).json()
    assert seen["discount"] == {"amount_cents": 120}
    terms = (seen["exclusive"], seen["group"], seen["this_store"], seen["min_purchase_cents"])
    assert terms == (True, "drinks", True, 500)


async def test_a_recalled_offer(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """It can't be applied, and its would-be code is as unknown as any."""
    assert await shop.coupons.withdraw(OFFER)
    body = {"customer": "anna", "decision": OFFER}
    response = await api.post("/v1/coupons/apply", json=body, headers=key("intake"))
    assert problem(response, 410) == "offer_recalled"
    assert problem(await redeem(api, shop.coupons.code_of(OFFER), "r-1"), 404) == "unknown_coupon"


async def test_locked_out(redis: Redis, problem: Check) -> None:
    """Too many unknown codes with one key at one store: 429 with when to come back; other stores go on."""
    shop = Shop(redis)
    places = {"graben": (48.2, 16.4), "ring": (48.2, 16.4)}
    shop.coupons = CouponBook(redis, b"s", shop.clock, guard=Guard(most_unknown=3), places=lambda s: places.get(s))
    async with client_of(shop) as api:
        for n in range(3):
            assert problem(await redeem(api, f"{n:020}", "r"), 404) == "unknown_coupon"
        locked = await redeem(api, "3" * 20, "r")
        assert problem(locked, 429) == "too_many_unknown_codes"
        assert locked.headers["retry-after"] == "600"
        body = {"store": "ring", "redemption_id": "r"}
        other = await api.post(f"/v1/coupons/{'3' * 20}/redeem", json=body, headers=key("pos"))
        assert problem(other, 404) == "unknown_coupon"


async def test_blocks(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """Taken twice it is the same block; online its coupons go by its id; merged twice, nothing is redeemed twice."""
    code = await applied(api)
    path = "/v1/stores/graben/blocks"
    wanted = {"id": "b-1", "for_s": 600}
    first, again = [(await api.post(path, json=wanted, headers=key("pos"))).json() for _ in range(2)]
    assert first == again
    (entry,) = first["block"]["coupons"]
    assert entry["hash"] == hashlib.sha256(code.encode()).hexdigest()
    assert code not in str(first)
    elsewhere = await api.post("/v1/stores/ring/blocks", json=wanted, headers=key("pos"))
    assert problem(elsewhere, 409) == "other_store"
    assert problem(await redeem(api, code, "r-1"), 409) == "in_block"
    body = {"store": "graben", "redemption_id": "r-1", "block": "b-1"}
    assert (await api.post(f"/v1/coupons/{code}/redeem", json=body, headers=key("pos"))).status_code == 200
    made = {"code": code, "redemption_id": "r-2", "at_ms": shop.clock.now_ms()}
    merge = {"redemptions": [made, made | {"redemption_id": "r-1"}, made | {"code": "0" * 20}], "close": True}
    for _ in range(2):
        merged = await api.post("/v1/blocks/b-1/merge", json=merge, headers=key("pos"))
        verdicts = [verdict["verdict"] for verdict in merged.json()["verdicts"]]
        assert verdicts == ["already_redeemed", "redeemed", "not_in_block"]
    assert problem(await api.post("/v1/blocks/b-2/merge", json=merge, headers=key("pos")), 404) == "unknown_block"
    assert {(status, each.redemption_id) for status, each in shop.redemptions} == {("redeemed", "r-1")}


async def test_purchases_of_other_stores(api: httpx.AsyncClient, shop: Shop) -> None:
    """A till learns the id and the sums of its own store's purchase; of another one's that there was one, and where."""
    code = await applied(api)
    path = f"/v1/coupons/{code}"
    purchase = {"store": "graben", "redemption_id": "r-1"}
    own = {"redemption_id", "revenue_cents", "discount_cents"}

    async def seen(store: str | None) -> tuple[str, set[str]]:
        answer = (await api.get(path, params={"store": store} if store else {}, headers=key("pos"))).json()
        return answer["state"], own & set(answer)

    await api.post(f"{path}/reserve", json=purchase, headers=key("pos"))
    assert [await seen(store) for store in ("graben", "ring", None)] == [
        ("reserved", {"redemption_id"}),
        ("reserved", set()),
        ("reserved", set()),
    ]
    sums = {"revenue_cents": 2_490, "discount_cents": 374}
    await api.post(f"{path}/redeem", json=purchase | sums, headers=key("pos"))
    assert [await seen(store) for store in ("graben", "ring", None)] == [
        ("redeemed", own),
        ("redeemed", set()),
        ("redeemed", set()),
    ]
    body = {"customer": "anna", "decision": OFFER}
    again = (await api.post("/v1/coupons/apply", json=body, headers=key("intake"))).json()
    assert (again["redeemed_store"], own & set(again)) == ("graben", set())


async def test_a_block_of_somebody_erased(redis: Redis) -> None:
    """A merge of coupons that are no more locks nobody out, however often it is repeated; the rest is merged."""
    shop = Shop(redis)
    shop.coupons = CouponBook(redis, b"s", shop.clock, guard=Guard(most_unknown=3))
    shop.blocks = Blocks(redis, shop.coupons, shop.clock)
    offers = [
        AppliedOffer(
            customer=CustomerId("bob" if n else "anna"),
            decision=DecisionId(f"d-{n}"),
            promotion=PROMOTION.promotion_id,
            expires_ms=shop.clock.now_ms() + 3_600_000,
            store=StoreId("graben"),
        )
        for n in range(6)
    ]
    coupons = [await shop.coupons.apply(offer) for offer in offers]
    async with client_of(shop) as api:
        wanted = {"id": "b-1", "for_s": 600}
        await api.post("/v1/stores/graben/blocks", json=wanted, headers=key("pos"))
        await shop.coupons.forget(CustomerId("bob"))
        made = [{"code": each.code, "redemption_id": "r", "at_ms": shop.clock.now_ms()} for each in coupons[::-1]]
        for _ in range(3):
            merged = await api.post("/v1/blocks/b-1/merge", json={"redemptions": made}, headers=key("pos"))
            assert merged.status_code == 200
            verdicts = [verdict["verdict"] for verdict in merged.json()["verdicts"]]
            assert verdicts == ["not_in_block"] * 5 + ["redeemed"]


async def test_a_rollback_told_late(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """With the log away as a redemption is called off: repeated, with the store or without, the receipt is written."""
    code = await applied(api)
    assert (await redeem(api, code, "r-1")).status_code == 200
    shop.away = True
    body = {"redemption_id": "r-1", "store": "graben"}
    assert problem(await api.post(f"/v1/coupons/{code}/rollback", json=body, headers=key("pos")), 503) == "unavailable"
    shop.away = False
    del body["store"]
    assert (await api.post(f"/v1/coupons/{code}/rollback", json=body, headers=key("pos"))).status_code == 200
    assert [(status, each.store) for status, each in shop.redemptions] == [
        ("redeemed", "graben"),
        ("rolled_back", "graben"),
    ]
