"""A message whose devices stay silent, in a real server that is killed; and an offer whose last piece is sold."""

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec

from clients.client import Device
from clients.demo.smsbox import Sms, SmsBox
from nearcast.events import Location
from nearcast.messages import Withdraw
from nearcast.world import Stock
from tests.server.town import LNG, WORLD, metres_north
from tests.system.process import Server, eventually
from tests.system.test_serve import shopper

PATIENT = msgspec.structs.replace(WORLD.promotions[0], fall_back_s=3.0)
SOLD_OUT = Stock(store="graben", sku="beans", quantity=0)


async def test_silent_devices_a_kill_and_the_last_piece(tmp_path: Path) -> None:
    """The push is acknowledged by nobody and its dispatcher is killed meanwhile: one SMS, from the next one. Then the
    last piece is sold: the device takes the offer away, and the link in the SMS says so."""
    texts: list[Sms] = []
    withdrawn: list[Withdraw] = []
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(SmsBox("AC1", "token", texts.append, lambda _: None))
        server = await stack.enter_async_context(
            Server(tmp_path, sms_url=provider.url, sms_account="AC1", sms_auth_token="token", sms_from="+43660550000")
        )
        admin = await stack.enter_async_context(server.client())
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        world = msgspec.structs.replace(WORLD, promotions=[PATIENT, *WORLD.promotions[1:]])
        await admin.put_catalogue(msgspec.to_builtins(world))
        await shopper(admin, "ann", "websocket", "sms")
        phone = Device(server.gateway, server.token("ann"), on_withdraw=withdrawn.append)
        await stack.enter_async_context(phone)
        await admin.events([Location(id="near", uid="ann", lat=metres_north(80), lng=LNG, accuracy_m=5.0)])
        push = await anext(aiter(phone))

        async def delivery(*states: str) -> dict[str, Any] | None:
            found = await admin.message("ann", push.message)
            return found if found["state"] in states else None

        await eventually(lambda: delivery("awaiting"))
        await server.kill()
        assert texts == []
        await server.start()
        found = await eventually(lambda: delivery("sent"))
        assert (found["channel"], found["given_up"]) == ("sms", ["websocket"])

        await admin.put_catalogue({"stock": [msgspec.to_builtins(SOLD_OUT)]})
        recalled = await eventually(lambda: delivery("recalled"), within_s=10.0)
        assert recalled["reason"] == "out_of_stock"
        assert len(texts) == 1
        await eventually(lambda: _is(withdrawn, [Withdraw(message=push.message, reason="recalled")]))
        [link] = re.findall(r"https?://\S+", texts[0].body)
        page = await http.get(link)
        assert page.status_code == 410
        assert "taken back" in page.text
        assert (await http.post(link)).status_code == 410


async def _is(found: list[Withdraw], expected: list[Withdraw]) -> bool:
    return found == expected
