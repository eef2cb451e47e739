"""Coupons over HTTP."""

import asyncio
from collections.abc import Callable

import httpx

from tests.server.api.shop import NOTHING, OFFER, Shop, key

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
    assert (seen["code"], seen["state"], seen["discount"]) == (code, "applied", {"percent": 15.0, "amount_cents": None})
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
