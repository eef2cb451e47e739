"""The SMS provider's callbacks."""

from collections.abc import Callable

import httpx

from server.api.links import Link
from tests.server.api.shop import ANNA, OFFER, Shop, key, provider_signature

Check = Callable[[httpx.Response, int], str]


def path_of(shop: Shop) -> str:
    token = shop.links.sign("sms_status", Link(ANNA, OFFER, shop.clock.now_ms() + 1_000, "sms"))
    return f"/v1/callbacks/sms/{token}"


async def call(api: httpx.AsyncClient, path: str, form: dict[str, str], signature: str | None = None) -> httpx.Response:
    signature = provider_signature(f"https://offers.example{path}", form) if signature is None else signature
    return await api.post(path, data=form, headers={"X-Twilio-Signature": signature})


async def test_status_becomes_a_receipt(api: httpx.AsyncClient, shop: Shop) -> None:
    """Delivered and failed become receipts, with the provider's code; steps on the way are acknowledged only."""
    path = path_of(shop)
    for form in (
        {"MessageStatus": "queued", "MessageSid": "SM1"},
        {"MessageStatus": "delivered", "MessageSid": "SM1", "To": "+15550100"},
        {"MessageStatus": "undelivered", "ErrorCode": "30003", "ErrorMessage": ""},
    ):
        assert (await call(api, path, form)).status_code == 204
    assert shop.receipts == [(ANNA, OFFER, "delivered", "sms", ""), (ANNA, OFFER, "failed", "sms", "30003")]


async def test_unproven_callbacks(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """A wrong signature, an old or forged link, a changed form, or no provider: refused, without a receipt."""
    path, form = path_of(shop), {"MessageStatus": "delivered"}
    assert problem(await call(api, path, form, signature="bm8="), 403) == "bad_signature"
    assert problem(await call(api, path, form, signature=""), 403) == "bad_signature"
    right = provider_signature(f"https://offers.example{path}", form)
    assert problem(await call(api, path, form | {"MessageStatus": "failed"}, signature=right), 403) == "bad_signature"
    assert problem(await call(api, "/v1/callbacks/sms/nonsense", form), 404) == "unknown_link"
    many = "&".join(f"f{i}=1" for i in range(200))
    assert problem(await api.post(path, content=many), 400) == "malformed_form"
    assert problem(await api.post(path, content=b"\xff=1"), 400) == "malformed_form"
    shop.sms_auth_token = ""
    assert problem(await call(api, path, form), 404) == "no_such_route"
    shop.clock.advance(1_000)
    shop.sms_auth_token = "x"
    assert problem(await call(api, path, form), 410) == "link_expired"
    assert shop.receipts == []


async def test_log_away_is_repeated(api: httpx.AsyncClient, shop: Shop, problem: Check) -> None:
    """With the log away the provider gets 503 and calls again."""
    shop.away = True
    assert problem(await call(api, path_of(shop), {"MessageStatus": "delivered"}), 503) == "unavailable"
    assert (await api.post(path_of(shop), headers=key("admin"))).status_code == 403
