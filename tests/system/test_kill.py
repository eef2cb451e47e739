"""SIGKILL in the middle of the work, several times: everything acknowledged counts once, every coupon is one coupon.

The driver keeps its own record of what nearcast acknowledged and of what arrived at the devices, the SMS provider and
the till, and compares it with what nearcast says afterwards.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clients.client import Coupon, Device, Nearcast, Refused
from clients.demo.patience import insist
from clients.demo.smsbox import Sms, SmsBox
from nearcast.events import Cart, Consent, Event, Line, Location, Profile, Purchase
from tests.server.town import LNG, WORLD, metres_north
from tests.system.process import Server, decisions, eventually
from tests.system.test_serve import DOCUMENT

PEOPLE = [f"p{n:02d}" for n in range(12)]
TEXTED = PEOPLE[9:]
ROUNDS = 30


class Outside:
    """What happened, as seen from outside of nearcast."""

    def __init__(self) -> None:
        self.purchases: Counter[str] = Counter()
        self.pushes: dict[str, list[str]] = {uid: [] for uid in PEOPLE}
        self.codes: dict[str, str] = {}
        self.texts: list[Sms] = []


@asynccontextmanager
async def phones(server: Server, seen: Outside) -> AsyncIterator[dict[str, Device]]:
    """A phone per person who isn't texted; each notes what it gets and applies the coupon."""
    async with AsyncExitStack() as stack:
        devices = {
            uid: await stack.enter_async_context(Device(server.gateway, server.token(uid)))
            for uid in PEOPLE
            if uid not in TEXTED
        }

        async def hold(uid: str, device: Device) -> None:
            async for push in device:
                seen.pushes[uid].append(push.message)
                await insist(device.ack, push)
                seen.codes[push.decision] = (await insist(device.apply, push)).code

        tasks = [asyncio.create_task(hold(uid, device), name=f"phone {uid}") for uid, device in devices.items()]
        yield devices
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def shop(nearcast: Nearcast, seen: Outside, uid: str, chance: random.Random) -> None:
    """One person's day: purchases all along, and once a walk past the store with beans in the cart."""
    walk = chance.randrange(5, ROUNDS - 5)
    for n in range(ROUNDS):
        bought: list[Event] = [Purchase(id=f"{uid}-buy-{n}", uid=uid, items=[Line(sku="grinder", amount_cents=100)])]
        if n == walk:
            bought.append(Location(id=f"{uid}-walk", uid=uid, lat=metres_north(80), lng=LNG, accuracy_m=5.0))
        receipt = await insist(nearcast.events, bought)
        assert receipt.accepted == len(bought)
        seen.purchases[uid] += 1
        await asyncio.sleep(chance.uniform(0.05, 0.3))


async def test_killed_again_and_again(tmp_path: Path) -> None:
    """Four kills at random moments: no purchase lost or counted twice, one offer each, one code per offer, one SMS."""
    assert WORLD.promotions[0].id == "abandoned"
    seen, chance = Outside(), random.Random(11)
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(SmsBox("AC1", "token", seen.texts.append, lambda _: None))
        server = await stack.enter_async_context(
            Server(tmp_path, sms_url=provider.url, sms_account="AC1", sms_auth_token="token", sms_from="+43660550000")
        )
        admin, till = [await stack.enter_async_context(server.client(role)) for role in ("admin", "pos")]
        await admin.put_catalogue(DOCUMENT)
        await _sign_up(admin)
        await stack.enter_async_context(phones(server, seen))
        days = [asyncio.create_task(shop(admin, seen, uid, random.Random(uid)), name=f"day {uid}") for uid in PEOPLE]
        for _ in range(4):
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            await server.kill()
            await server.start()
        await asyncio.gather(*days)

        for uid in PEOPLE:
            state = await eventually(lambda uid=uid: _bought(admin, uid, seen.purchases[uid]))
            assert len(state["messages"]) == 1, "one walk past the store is one offer"
        await eventually(lambda: _all_reached(seen))
        offered = {uid: await decisions(server, uid) for uid in PEOPLE}
        assert {uid: [made["outcome"] for made in found] for uid, found in offered.items()} == {
            uid: ["offer"] for uid in PEOPLE
        }
        assert all(len(messages) == 1 for uid, messages in seen.pushes.items() if uid not in TEXTED)
        assert Counter(text.to for text in seen.texts) == {_number(uid): 1 for uid in TEXTED}
        codes = {uid: await _apply(server, uid, offered[uid][0]["id"]) for uid in PEOPLE}
        assert len(set(codes.values())) == len(PEOPLE)
        for uid in PEOPLE:
            if uid not in TEXTED:
                assert seen.codes[offered[uid][0]["id"]] == codes[uid], "the same code before and after the kills"
        for code in codes.values():
            await till.redeem(code, store="graben", redemption_id=f"r-{code}")
            with pytest.raises(Refused, match="already_redeemed"):
                await till.redeem(code, store="graben", redemption_id=f"again-{code}")


async def _sign_up(admin: Nearcast) -> None:
    events: list[Event] = []
    for uid in PEOPLE:
        scope = "sms" if uid in TEXTED else "websocket"
        events += [
            Consent(id=f"{uid}-c", uid=uid, scope=scope, granted=True),  # type: ignore[arg-type]
            Profile(id=f"{uid}-p", uid=uid, phone=_number(uid)),
            Cart(id=f"{uid}-cart", uid=uid, action="add", sku="beans"),
        ]
    assert (await admin.events(events)).accepted == len(events)
    for uid in PEOPLE:
        await eventually(lambda uid=uid: _has_cart(admin, uid))


async def _has_cart(admin: Nearcast, uid: str) -> bool:
    try:
        customer = (await admin.customer(uid))["customer"]
    except Refused:
        return False
    return bool(customer["cart"] and customer["consents"] and customer["phone"])


async def _bought(admin: Nearcast, uid: str, purchases: int) -> dict[str, Any] | None:
    """The customer, once as many purchases count as were acknowledged. More than that never is right."""
    customer: dict[str, Any] = (await admin.customer(uid))["customer"]
    assert customer["history"]["baskets"] <= purchases
    done = customer["history"]["baskets"] == purchases and customer["messages"]
    return customer if done else None


async def _all_reached(seen: Outside) -> bool:
    reached = sum(bool(messages) for messages in seen.pushes.values()) + len({text.to for text in seen.texts})
    return reached == len(PEOPLE) and len(seen.codes) == len(PEOPLE) - len(TEXTED)


async def _apply(server: Server, uid: str, decision: str) -> str:
    async with Device(server.gateway, server.token(uid)) as device:
        return msgspec.json.decode(await device.call("apply", {"decision": decision}), type=Coupon).code


def _number(uid: str) -> str:
    return f"+4366055500{uid[1:]}"
