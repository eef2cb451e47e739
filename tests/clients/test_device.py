"""A device gets every push once and in order, through breaks, and says what it can't know."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from clients.device import Claim, Coupon, Device, Dropped, Refused
from nearcast.errors import Unavailable
from nearcast.events import Location
from nearcast.messages import Push, Withdraw
from tests.clients.gateway import CHANNEL, ScriptedGateway, push_data, scripted_gateway, until

FIX = Location(id="fix-1", uid="ann", ts=1, lat=48.2, lng=16.37)


@pytest.fixture
async def gateway() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as running:
        yield running


async def take(device: Device, count: int) -> list[Push]:
    """The next `count` pushes."""
    got: list[Push] = []
    async with asyncio.timeout(5):
        async for push in device:
            got.append(push)
            if len(got) == count:
                break
    return got


async def test_pushes_come_in_order_as_they_are_published(gateway: ScriptedGateway) -> None:
    """Also when several share one frame; the token travels in the connect command."""
    async with Device(gateway.url, "token") as device:
        await gateway.publish(1)
        gateway.history += [push_data(2), push_data(3)]
        pushes = [{"push": {"channel": CHANNEL, "pub": {"data": push_data(n), "offset": n}}} for n in (2, 3)]
        await gateway.send(*pushes)
        assert [push.message for push in await take(device, 3)] == ["m1", "m2", "m3"]
        assert gateway.connects[0]["token"] == "token"


async def test_recovers_what_was_missed(gateway: ScriptedGateway) -> None:
    """After a break the device asks from its last offset and epoch, and misses nothing."""
    async with Device(gateway.url, "token") as device:
        await gateway.publish(1)
        await take(device, 1)
        await gateway.drop()
        await until(lambda: not gateway.sockets)
        gateway.history += [push_data(2), push_data(3)]
        assert [push.message for push in await take(device, 2)] == ["m2", "m3"]
        assert gateway.connects[1]["subs"] == {CHANNEL: {"recover": True, "epoch": "a", "offset": 1}}
        assert (device.connects, device.gaps) == (2, 0)


async def test_publications_seen_before_are_not_given_twice(gateway: ScriptedGateway) -> None:
    """A publication that comes again, live or by recovery, is dropped by its offset."""
    async with Device(gateway.url, "token") as device:
        await gateway.publish(1)
        await gateway.send({"push": {"channel": CHANNEL, "pub": {"data": push_data(1), "offset": 1}}})
        await gateway.publish(2)
        assert [push.message for push in await take(device, 2)] == ["m1", "m2"]


@pytest.mark.parametrize("lost", ["trimmed", "epoch"])
async def test_a_gap_is_said(gateway: ScriptedGateway, lost: str) -> None:
    """Where the server can't fill the gap the device counts it, and goes on with what is new."""
    async with Device(gateway.url, "token") as device:
        await gateway.publish(1)
        await take(device, 1)
        if lost == "trimmed":
            gateway.history += [push_data(2), push_data(3)]
            gateway.trimmed = 2
        else:
            gateway.epoch, gateway.history = "b", []
        await gateway.drop()
        await until(lambda: device.connects == 2)
        assert device.gaps == 1
        await gateway.publish(4)
        assert [push.message for push in await take(device, 1)] == ["m4"]


async def test_calls(gateway: ScriptedGateway) -> None:
    """Acks, opens, applies, claims and events are rpcs with the documented data; a send waits for nothing."""
    answers = {
        "apply": {"code": "ABC", "state": "applied", "expires_ms": 9},
        "assist.claim": {"claimed_by": "me", "won": True},
        "ack": {"won": False},
    }
    gateway.answer = lambda method, data: {"rpc": {"data": answers.get(method, {})}}
    async with Device(gateway.url, "token", device="phone-1") as device:
        await gateway.publish(1)
        (push,) = await take(device, 1)
        assert not await device.ack(push)
        await device.open(push)
        await device.dismiss(push)
        assert await device.apply(push) == Coupon("ABC", 9)
        assert await device.claim(push) == Claim("me", won=True)
        await device.close_assist(push, "helped")
        await device.event(FIX)
        await device.send_event(FIX)
        await until(lambda: bool(gateway.sent))
    named = {"message": "m1", "decision": "d1"}
    assert gateway.calls[:6] == [
        ("ack", named | {"device": "phone-1"}),
        ("open", named),
        ("dismiss", named),
        ("apply", {"decision": "d1"}),
        ("assist.claim", {"message": "m1"}),
        ("assist.close", named | {"outcome": "helped"}),
    ]
    method, event = gateway.calls[6]
    assert (method, event["id"], event["type"]) == ("event", "fix-1", "location")
    assert gateway.sent[0]["id"] == "fix-1"


async def test_replies_find_their_requests(gateway: ScriptedGateway) -> None:
    """Concurrent calls get their own answers, whatever the order of the replies; a cancelled one disturbs nobody."""
    held: list[str] = []
    gateway.answer = lambda method, data: held.append(method)  # type: ignore[func-returns-value]
    async with Device(gateway.url, "token") as device:
        calls = [asyncio.create_task(device.call(f"m{n}", n)) for n in range(4)]
        await until(lambda: len(held) == 4)
        calls[2].cancel()
        # Ids count up from the connect command, which was 1.
        for n in reversed(range(4)):
            await gateway.send({"id": n + 2, "rpc": {"data": n}})
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [results[0], results[1], results[3]] == [b"0", b"1", b"3"]
        assert isinstance(results[2], asyncio.CancelledError)


async def test_a_refusal_carries_its_reason(gateway: ScriptedGateway) -> None:
    """A permanent error is `Refused` with the server's code; a temporary one may be tried again."""
    async with Device(gateway.url, "token") as device:
        gateway.answer = lambda method, data: {"error": {"code": 410, "message": "offer_expired"}}
        with pytest.raises(Refused) as caught:
            await device.call("apply", {})
        assert (caught.value.status, caught.value.reason) == (410, "offer_expired")
        gateway.answer = lambda method, data: {"error": {"code": 100, "message": "later", "temporary": True}}
        with pytest.raises(Unavailable, match="later"):
            await device.call("apply", {})


async def test_a_call_fails_with_its_connection(gateway: ScriptedGateway) -> None:
    """A call whose connection breaks does not hang: it fails as dropped, and works again after reconnecting."""
    gateway.answer = lambda method, data: None
    async with Device(gateway.url, "token") as device:
        call = asyncio.create_task(device.event(FIX))
        await until(lambda: bool(gateway.calls))
        await gateway.drop()
        with pytest.raises(Dropped):
            await call
        await until(lambda: device.connects == 2)
        gateway.answer = lambda method, data: {"rpc": {"data": {}}}
        await device.event(FIX)


async def test_pings_are_answered(gateway: ScriptedGateway) -> None:
    """The server's empty message gets an empty one back."""
    async with Device(gateway.url, "token"):
        await gateway.send({})
        await until(lambda: gateway.pongs == 1)


@pytest.mark.parametrize("way", ["error", "close"])
async def test_a_bad_token_ends_it(gateway: ScriptedGateway, way: str) -> None:
    """A terminal refusal is not retried: it is raised where the device is opened."""
    if way == "error":
        gateway.refuse = {"code": 103, "message": "permission denied"}
    else:
        gateway.close_with = (3500, "invalid token")
    with pytest.raises(Refused):
        async with Device(gateway.url, "bad"):
            pass
    assert len(gateway.connects) == 1


async def test_being_turned_away_later_ends_the_iteration(gateway: ScriptedGateway) -> None:
    """Who is reading pushes learns that no more will come, and why."""
    async with Device(gateway.url, "token") as device:
        await gateway.drop(3502)
        with pytest.raises(Refused):
            await take(device, 1)


async def test_no_server_is_unavailable() -> None:
    """Without a gateway, opening fails after its time, with an error that says so."""
    device = Device("ws://127.0.0.1:1/connection/websocket", "token")
    with pytest.raises(Unavailable):
        await device.open_connection(timeout_s=0.3)
    await device.close()


async def test_what_is_withdrawn_is_not_shown(gateway: ScriptedGateway) -> None:
    """A push that nobody has read yet is taken back before anybody does; the app hears of it, and of one it shows."""
    withdrawn: list[Withdraw] = []
    async with Device(gateway.url, "token", on_withdraw=withdrawn.append) as device:
        await gateway.publish(1)
        await take(device, 1)
        await gateway.publish(2)
        await gateway.publish(3)
        for number, reason in ((1, "recalled"), (2, "dismissed")):
            await gateway.say({"kind": "withdraw", "message": f"m{number}", "reason": reason})
        await until(lambda: len(withdrawn) == 2)
        assert [push.message for push in await take(device, 1)] == ["m3"]
    assert [(withdraw.message, withdraw.reason) for withdraw in withdrawn] == [("m1", "recalled"), ("m2", "dismissed")]


async def test_the_first_to_acknowledge_goes_on_showing_it(gateway: ScriptedGateway) -> None:
    """What is withdrawn because this very device shows it stays, also before the reply to its ack has come."""
    withdrawn: list[Withdraw] = []
    async with Device(gateway.url, "token", device="phone-1", on_withdraw=withdrawn.append) as device:
        await gateway.publish(1)
        await gateway.say({"kind": "withdraw", "message": "m1", "reason": "elsewhere", "by": "phone-1"})
        await gateway.publish(2)
        await gateway.say({"kind": "withdraw", "message": "m2", "reason": "elsewhere", "by": "phone-2"})
        await until(lambda: bool(withdrawn))
        assert [push.message for push in await take(device, 1)] == ["m1"]
    assert [withdraw.message for withdraw in withdrawn] == ["m2"]


@pytest.mark.parametrize("data", [{"kind": "poem", "message": "m1"}, {"sold_out": ["4711"]}, ["m1"], "m1", None])
async def test_what_is_no_message_is_left_alone(gateway: ScriptedGateway, data: object) -> None:
    """A publication of a kind that this release doesn't know breaks nothing."""
    async with Device(gateway.url, "token") as device:
        await gateway.say(data)
        await gateway.publish(2)
        assert [push.message for push in await take(device, 1)] == ["m2"]
        assert device.connects == 1


class Issuer:
    """Hands out tokens; what `faults` holds is raised first."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.issued = 0

    async def token(self) -> str:
        if self.faults:
            raise self.faults.pop(0)
        self.issued += 1
        return f"fresh-{self.issued}"


async def test_an_expired_token_is_replaced(gateway: ScriptedGateway) -> None:
    """Refused as expired, the device fetches a token and connects with it; a fault of the issuer is waited for."""
    issuer = Issuer(OSError("the issuer is away"))
    gateway.expired = {"old"}
    async with Device(gateway.url, "old", get_token=issuer.token):
        assert [connect["token"] for connect in gateway.connects] == ["old", "fresh-1"]


@pytest.mark.parametrize("get_token", [None, Issuer(Refused(401, "signed_out")).token])
async def test_no_other_token_to_be_had(gateway: ScriptedGateway, get_token: Callable[[], Awaitable[str]]) -> None:
    """Without a way to get one, or where the app says that there will be none, an expired token is the end."""
    gateway.expired = {"old"}
    with pytest.raises(Refused):
        async with Device(gateway.url, "old", get_token=get_token):
            pass
    assert len(gateway.connects) == 1


async def test_a_token_is_renewed_in_time(gateway: ScriptedGateway) -> None:
    """Before it runs out a new one goes over the open connection, and is the one to connect with from then on."""
    issuer = Issuer()
    gateway.ttl_s = 0.05
    async with Device(gateway.url, "old", get_token=issuer.token) as device:
        await until(lambda: len(gateway.refreshes) == 2)
        assert gateway.refreshes[:2] == ["fresh-1", "fresh-2"]
        assert device.connects == 1
        await gateway.drop()
        await until(lambda: len(gateway.connects) == 2)
        assert gateway.connects[1]["token"].startswith("fresh-")


async def test_leaving_a_channel(gateway: ScriptedGateway) -> None:
    """Unsubscribed by the server, the device asks for nothing of that channel any more."""
    async with Device(gateway.url, "token") as device:
        await gateway.publish(1)
        await take(device, 1)
        await gateway.send(
            {"push": {"channel": CHANNEL, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}}
        )
        await gateway.drop()
        await until(lambda: device.connects == 2)
        assert gateway.connects[1]["subs"] == {}
