"""The demo's SMS provider speaks Twilio's API: what it accepts, what it refuses, how it signs its callbacks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from clients.demo.smsbox import Sms, SmsBox, signature
from tests.clients.gateway import until
from tests.clients.web import recording_server

FORM = {"To": "+4366055001", "From": "+4366055000", "Body": "Hello http://127.0.0.1/m/x"}


@pytest.fixture
async def received() -> dict[str, list[Sms]]:
    return {"accepted": [], "delivered": []}


@pytest.fixture
async def box(received: dict[str, list[Sms]]) -> AsyncIterator[SmsBox]:
    async with SmsBox("AC1", "secret", received["accepted"].append, received["delivered"].append) as running:
        yield running


async def _post(box: SmsBox, form: dict[str, str], auth: tuple[str, str] = ("AC1", "secret"), path: str = "") -> Any:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(box.url + (path or box.path), data=form, auth=auth)


def test_signature_is_twilios() -> None:
    """The example in the tests of Twilio's own Python library gives the signature that stands there."""
    fields = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    url = "https://mycompany.com/myapp.php?foo=1&bar=2"
    assert signature("12345", url, fields) == "RSOYDt4T1cUTdK1PDd93/VVr8B8="


async def test_a_message_is_accepted_and_reported(box: SmsBox, received: dict[str, list[Sms]]) -> None:
    """201 with a sid; then "sent" and "delivered" reach the callback, each with a valid signature."""
    with recording_server() as server:
        callback = f"{server.url}/v1/callbacks/sms/token"
        answer = await _post(box, FORM | {"StatusCallback": callback})
        assert answer.status_code == 201
        assert answer.json()["sid"].startswith("SM")
        await until(lambda: bool(received["delivered"]))
    assert [request.form["MessageStatus"] for request in server.requests] == ["sent", "delivered"]
    for request in server.requests:
        assert request.headers["X-Twilio-Signature"] == signature("secret", callback, request.form)
        assert request.form["MessageSid"] == answer.json()["sid"]
    assert [sms.to for sms in received["accepted"]] == ["+4366055001"]


async def test_a_repeated_request_is_the_same_message(box: SmsBox, received: dict[str, list[Sms]]) -> None:
    """Under the same key it gets the same answer, and nobody gets a second text; without a key each is a message."""
    async with httpx.AsyncClient(trust_env=False, auth=("AC1", "secret")) as http:
        keyed = [await http.post(box.url + box.path, data=FORM, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert keyed[0].json() == keyed[1].json()
        await until(lambda: len(received["accepted"]) == 1)
        for _ in range(2):
            assert (await http.post(box.url + box.path, data=FORM)).json()["sid"] != keyed[0].json()["sid"]
    await until(lambda: len(received["accepted"]) == 3)


async def test_a_refused_callback_is_not_a_delivery(box: SmsBox, received: dict[str, list[Sms]]) -> None:
    """Delivered counts only what nearcast accepted; a 4xx is not repeated."""
    with recording_server(status=403) as server:
        await _post(box, FORM | {"StatusCallback": f"{server.url}/callback"})
        await until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0)
    assert received["delivered"] == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("form", "auth", "path", "status"),
    [
        (FORM, ("AC1", "wrong"), "", 401),
        (FORM, ("AC1", "secret"), "/2010-04-01/Accounts/AC2/Messages.json", 404),
        ({"To": "+4366055001"}, ("AC1", "secret"), "", 400),
        (FORM | {"Body": "x" * 70_000}, ("AC1", "secret"), "", 413),
    ],
)
async def test_refusals(
    box: SmsBox, received: dict[str, list[Sms]], form: dict[str, str], auth: tuple[str, str], path: str, status: int
) -> None:
    """Bad credentials, another account, missing fields and huge bodies are refused, and nobody is told of a message."""
    assert (await _post(box, form, auth, path)).status_code == status
    assert received["accepted"] == []
