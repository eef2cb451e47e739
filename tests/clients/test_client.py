"""The HTTP client says what went wrong: refused, or worth another try."""

import json

import msgspec
import pytest

from clients.client import Nearcast, Receipt, Refused, Rejected
from nearcast.errors import Unavailable
from nearcast.events import Location
from tests.clients.web import Reply, Request, recording_server

FIX = Location(id="fix-1", uid="ann", ts=1, lat=48.2, lng=16.37)


async def test_a_batch_goes_out_whole_and_its_receipt_comes_back() -> None:
    """The key is a bearer token; rejected events keep their place and reason."""
    body = {
        "accepted": 1,
        "ids": ["fix-1", None],
        "rejected": [{"index": 1, "reason": "malformed_event", "detail": "no"}],
    }
    with recording_server(answer=lambda _: Reply(200, json.dumps(body).encode())) as server:
        async with Nearcast(server.url, "the key") as nearcast:
            receipt = await nearcast.events([FIX, FIX])
    assert receipt == Receipt(1, [Rejected(1, "malformed_event", "no")])
    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer the key"
    assert msgspec.json.decode(request.body, type=list[Location]) == [FIX, FIX]


async def test_calls_go_where_the_api_is() -> None:
    """Consent, redemption and catalogue use the documented methods, paths and fields."""
    with recording_server() as server:
        async with Nearcast(server.url, "key") as nearcast:
            await nearcast.put_catalogue({"stores": []})
            await nearcast.set_consent("ann", "sms", granted=False)
            await nearcast.redeem("CODE", store="s1", redemption_id="r1")
            await nearcast.validate("CODE")
            await nearcast.erase("ann")
    seen = [(request.method, request.path, request.body) for request in server.requests]
    assert seen == [
        ("PUT", "/v1/catalogue", b'{"stores":[]}'),
        ("PUT", "/v1/customers/ann/consents", b'{"scope":"sms","granted":false}'),
        ("POST", "/v1/coupons/CODE/redeem", b'{"store":"s1","redemption_id":"r1"}'),
        ("GET", "/v1/coupons/CODE", b""),
        ("DELETE", "/v1/customers/ann", b""),
    ]


async def test_a_problem_is_refused_with_its_reason() -> None:
    """A 4xx raises `Refused` with the problem's reason, or "unknown" where the body is no problem."""
    replies = iter([Reply(409, b'{"reason":"already_redeemed","detail":"by another till"}'), Reply(404, b"nope")])

    def answer(_: Request) -> Reply:
        return next(replies)

    with recording_server(answer=answer) as server:
        async with Nearcast(server.url, "key") as nearcast:
            with pytest.raises(Refused, match="by another till") as caught:
                await nearcast.redeem("CODE", store="s1", redemption_id="r2")
            assert (caught.value.status, caught.value.reason) == (409, "already_redeemed")
            with pytest.raises(Refused) as caught:
                await nearcast.validate("CODE")
            assert caught.value.reason == "unknown"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_may_work_later_is_unavailable(status: int) -> None:
    """Overload and server faults can be tried again."""
    with recording_server(status=status) as server:
        async with Nearcast(server.url, "key") as nearcast:
            with pytest.raises(Unavailable, match=str(status)):
                await nearcast.events([FIX])
            assert not await nearcast.ready()


async def test_nobody_there_is_unavailable() -> None:
    """So is a server that can't be reached."""
    async with Nearcast("http://127.0.0.1:1", "key") as nearcast:
        with pytest.raises(Unavailable):
            await nearcast.events([FIX])
        assert not await nearcast.ready()
