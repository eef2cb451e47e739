"""What devices may ask: their own customer's affairs, and alerts of their own stores."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from channels.delivery import Delivery
from channels.gateway.backend import Identity
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.trace import ARRIVED, STAGES
from clients.device import Device, Refused
from models.registry import FixedModels
from nearcast import keys, metrics, topics
from nearcast.clock import SystemClock
from nearcast.customer import Customer, SentMessage
from nearcast.decisions import Decision
from nearcast.errors import Conflict, Forbidden, InputError, NotFound, Recalled, Unavailable
from nearcast.events import Channel, Consent, Location, Receipt, decode
from nearcast.ids import CustomerId, DecisionId, EventId, PromotionId, Sku, StoreId, message_id, partition_of
from nearcast.messages import Push, Withdraw
from nearcast.moments import Moment
from offers.policy import Policy
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.desk import Desk
from server.devices import DeviceBackend
from server.intake import Intake
from server.log.streams import StreamsLog
from server.model_registry import ModelRegistry
from server.state import StateStore
from server.stored import encode_customer
from server.world import WorldStore
from tests.clients.gateway import until
from tests.server.rig import PARTITIONS
from tests.server.town import WORLD

ANN = Identity("ann", "customer", ("customer:ann",))
TABLET = Identity("eve", "staff", ("staff:graben",))
SECRET = b"x" * 32
TOM = Identity("tom", "staff", ("staff:graben",))


@pytest.fixture
async def desk(redis: Redis, valkey_url: str) -> AsyncIterator[Desk]:
    clock = SystemClock()
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    yield Desk(
        redis=redis,
        state=StateStore(redis, PARTITIONS),
        world=WorldStore(redis),
        intake=Intake(log, clock),
        log=log,
        coupons=CouponBook(redis, b"secret", clock),
        opt_outs=OptOuts(redis, PARTITIONS),
        streams=ChannelStreams(redis, "node", clock),
        tokens=Tokens(SECRET, clock),
        keyring=KeyRing([]),
        links=LinkSigner(b"secret"),
        models=ModelRegistry(redis, SystemClock()),
        live_models=FixedModels(),
        policy=Policy(),
        clock=clock,
        public_url="http://shop.example",
        sms_auth_token="",
        demo=False,
        web_root=Path(),
    )
    await log.stop()


@pytest.fixture
def backend(redis: Redis, desk: Desk) -> DeviceBackend:
    """At the desk."""
    return DeviceBackend(desk, redis, ChannelStreams(redis, "node", SystemClock()))


async def logged(redis: Redis, topic: str) -> list[Any]:
    """What the log holds of a topic."""
    found = []
    async for key in redis.scan_iter(match=f"*:{topic}"):
        for position, fields in await redis.xrange(key):
            found.append(decode(topic, fields[b"v"], position=position.decode(), arrived_ms=9_999_999_999_999))
    return found


async def test_events_of_ones_own(backend: DeviceBackend, redis: Redis) -> None:
    """A phone's fix is in the log when the rpc answers, with the id that it was given."""
    answer = await backend.rpc(ANN, "event", b'{"type":"location","uid":"ann","lat":1,"lng":2}')
    (event,) = await logged(redis, topics.LOCATIONS)
    assert isinstance(event, Location)
    assert msgspec.json.decode(answer) == {"id": event.id}
    await backend.event(ANN, b'{"type":"location","uid":"ann","lat":1,"lng":3}')
    assert len(await logged(redis, topics.LOCATIONS)) == 2
    await backend.rpc(ANN, "event", b'{"type":"action","uid":"ann","action":"pickup_start","order":"o","store":"s"}')
    await backend.rpc(ANN, "event", b'{"type":"action","uid":"ann","action":"pickup_cancel","order":"o"}')
    assert [event.action for event in await logged(redis, topics.ACTIONS)] == ["pickup_start", "pickup_cancel"]


@pytest.mark.parametrize(
    ("identity", "body", "reason"),
    [
        (ANN, b'{"type":"location","uid":"bob","lat":1,"lng":2}', "not_your_event"),
        (ANN, b'{"type":"identify","uid":"ann","anonymous_id":"d7"}', "not_your_event"),
        (ANN, b'{"type":"purchase","uid":"ann","items":[{"sku":"s"}]}', "not_from_devices"),
        (ANN, b'{"type":"profile","uid":"ann","loyalty":"gold"}', "not_from_devices"),
        (ANN, b'{"type":"action","uid":"ann","action":"order_ready","order":"o","store":"s"}', "not_from_devices"),
        (ANN, b'{"type":"action","uid":"ann","action":"order_picked_up","order":"o"}', "not_from_devices"),
        (ANN, b'{"type":"action","uid":"ann","action":"pickup_start","store":"s"}', "malformed_event"),
        (ANN, b'{"type":"action","uid":"ann","action":"pickup_start","order":"o"}', "malformed_event"),
        (ANN, b'{"type":"receipt","uid":"ann","message":"m","decision":"d","status":"redeemed"}', "malformed_event"),
        (ANN, b"nonsense", "malformed_event"),
        (TABLET, b'{"type":"location","uid":"ann","lat":1,"lng":2}', "customers_only"),
    ],
)
async def test_events_that_are_not_believed(
    backend: DeviceBackend, redis: Redis, identity: Identity, body: bytes, reason: str
) -> None:
    """Nobody speaks for another customer, and no phone grants itself purchases or a status."""
    with pytest.raises(InputError) as refused:
        await backend.rpc(identity, "event", body)
    assert refused.value.reason == reason
    assert [await logged(redis, topic) for topic in topics.CUSTOMER_TOPICS] == [[], [], [], [], []]


async def test_a_withdrawal_from_the_phone_holds_at_once(backend: DeviceBackend, redis: Redis) -> None:
    """Consent withdrawn on the phone is noted beside the state before the answer, by our clock, and is in the log."""
    before_ms = SystemClock().now_ms()
    await backend.rpc(ANN, "event", b'{"type":"consent","uid":"ann","scope":"all","granted":false,"ts":1700000000000}')
    (event,) = await logged(redis, topics.ACTIONS)
    assert isinstance(event, Consent)
    (key,) = await redis.keys("*opt-outs")
    note = msgspec.json.decode(await redis.hget(key, "ann") or b"")
    assert before_ms <= note["all"] <= SystemClock().now_ms()


def named(decision: str, audience: str = "customer", **more: str) -> bytes:
    """The message that a decision sent, and the decision, as devices name them."""
    return msgspec.json.encode({"message": message_id(DecisionId(decision), audience), "decision": decision, **more})


async def published(redis: Redis, channel: str, decision: str, audience: str = "customer") -> None:
    """The message that a decision sends is in the channel."""
    streams = ChannelStreams(redis, "dispatcher", SystemClock())
    await streams.publish_once(channel, message_id(DecisionId(decision), audience), b'{"kind":"offer"}')


async def channel_of(redis: Redis, channel: str) -> list[dict[str, str]]:
    """What a device gets that connects for the first time, were it to ask for everything."""
    found, _ = await ChannelStreams(redis, "reader", SystemClock()).history(channel, -1, None, reverse=False)
    return [msgspec.json.decode(publication.data) for publication in found]


async def test_acks(backend: DeviceBackend, redis: Redis) -> None:
    """ack and open become receipts of the device's own customer; a message must belong to its decision."""
    await backend.rpc(ANN, "ack", named("0" * 32))
    await backend.rpc(ANN, "open", named("0" * 32))
    receipts = await logged(redis, topics.FEEDBACK)
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert [(receipt.uid, receipt.status) for receipt in receipts] == [("ann", "delivered"), ("ann", "opened")]
    for method in ("ack", "open", "dismiss"):
        with pytest.raises(NotFound):
            await backend.rpc(ANN, method, b'{"message":"other","decision":"d"}')
    for method in ("ack", "open", "dismiss", "apply", "assist.claim", "assist.close", "wishlist.add"):
        with pytest.raises(InputError):
            await backend.rpc(ANN, method, b"[]")


async def test_the_first_device_shows_it(backend: DeviceBackend, redis: Redis) -> None:
    """The first to acknowledge wins, also when it asks again; the message gives way to a withdrawal for the others."""
    await published(redis, "customer:ann", "d1")
    phone, watch = ANN._replace(client="c-phone"), ANN._replace(client="c-watch")
    for _ in range(2):
        assert await backend.rpc(phone, "ack", named("d1")) == b'{"won":true}'
    assert await backend.rpc(watch, "ack", named("d1")) == b'{"won":false}'
    message = message_id(DecisionId("d1"), "customer")
    assert await channel_of(redis, "customer:ann") == [
        {"kind": "withdraw", "message": message, "reason": "elsewhere", "by": "c-phone"}
    ]
    assert {receipt.status for receipt in await logged(redis, topics.FEEDBACK)} == {"delivered"}


async def test_an_ack_that_is_tried_again_keeps_its_times(
    backend: DeviceBackend, desk: Desk, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store was away the first time, the second tells when the message was written, and counts."""
    customer, message = CustomerId("ann"), message_id(DecisionId("d1"), "customer")
    await decided(redis, customer, "d1")
    await published(redis, "customer:ann", "d1")
    delivery = Delivery(state="sent", channel="websocket", times_ms=(1, 2, 3, 4, 5))
    await redis.set(keys.delivery(partition_of(customer, PARTITIONS), message), msgspec.json.encode(delivery))
    backend._streams.shown.written(f"{message} 1 2")
    counted = "nearcast_event_to_device_seconds_count", {"until": "ack"}
    before = REGISTRY.get_sample_value(*counted) or 0.0
    with monkeypatch.context() as patched:

        async def away(*_: object) -> None:
            raise Unavailable("the store is away")

        patched.setattr(backend, "_first", away)
        with pytest.raises(Unavailable):
            await backend.rpc(ANN, "ack", named("d1"))
    assert REGISTRY.get_sample_value(*counted) == before
    for _ in range(2):
        await backend.rpc(ANN, "ack", named("d1"))
    assert REGISTRY.get_sample_value(*counted) == before + 1
    stages = [mark.stage for mark in (await desk.delivery(customer, message)).trace]
    assert stages == [ARRIVED, *STAGES]


@pytest.mark.parametrize("channel", ["websocket", "sms"])
async def test_a_trace_is_of_the_channel_that_took_the_message(
    backend: DeviceBackend, desk: Desk, redis: Redis, channel: Channel
) -> None:
    """A push that was given up may be on a device all the same: what became of it is no part of the SMS's way."""
    customer, message = CustomerId("ann"), message_id(DecisionId("d1"), "customer")
    await decided(redis, customer, "d1")
    await published(redis, "customer:ann", "d1")
    delivery = Delivery(state="sent", channel=channel, times_ms=(1, 2, 3, 4, 5))
    await redis.set(keys.delivery(partition_of(customer, PARTITIONS), message), msgspec.json.encode(delivery))
    backend._streams.shown.written(f"{message} 1 2")
    await backend.rpc(ANN, "ack", named("d1"))
    stages = [mark.stage for mark in (await desk.delivery(customer, message)).trace]
    assert stages == [ARRIVED, *(STAGES if channel == "websocket" else STAGES[:4])]


async def test_a_device_that_connected_anew(backend: DeviceBackend, redis: Redis) -> None:
    """By the id that it gives itself a device is known again, whatever its connection is called now."""
    await published(redis, "customer:ann", "d1")
    mine = named("d1", device="phone-1")
    assert await backend.rpc(ANN._replace(client="c-1"), "ack", mine) == b'{"won":true}'
    assert await backend.rpc(ANN._replace(client="c-2"), "ack", mine) == b'{"won":true}'
    assert await backend.rpc(ANN._replace(client="c-1"), "ack", named("d1")) == b'{"won":false}'


async def test_many_devices_at_once(backend: DeviceBackend, redis: Redis) -> None:
    """Whoever asks at the same time, one wins, and the withdrawal names that one."""
    await published(redis, "customer:ann", "d1")
    devices = [ANN._replace(client=f"c-{number}") for number in range(8)]
    answers = await asyncio.gather(*(backend.rpc(device, "ack", named("d1")) for device in devices))
    (winner,) = [device.client for device, answer in zip(devices, answers, strict=True) if answer == b'{"won":true}']
    assert [told["by"] for told in await channel_of(redis, "customer:ann")] == [winner]


async def test_dismissed(backend: DeviceBackend, redis: Redis) -> None:
    """Closed by the customer, a message goes from all of their devices, also from the one that won it."""
    await published(redis, "customer:ann", "d1")
    await backend.rpc(ANN, "ack", named("d1", device="phone"))
    for _ in range(2):
        assert await backend.rpc(ANN, "dismiss", named("d1")) == b"{}"
    assert [told["reason"] for told in await channel_of(redis, "customer:ann")] == ["elsewhere", "dismissed"]
    assert [receipt.status for receipt in await logged(redis, topics.FEEDBACK)][:2] == ["delivered", "dismissed"]
    with pytest.raises(Forbidden):
        await backend.rpc(TABLET, "dismiss", named("d1"))


async def test_wishlists(backend: DeviceBackend, redis: Redis) -> None:
    """Adding and removing are events like any other; the list is as the engine last wrote it, the newest first."""
    answer = msgspec.json.decode(await backend.rpc(ANN, "wishlist.add", b'{"sku":"4711","id":"w-1"}'))
    assert answer == {"id": "w-1"}
    await backend.rpc(ANN, "wishlist.remove", b'{"sku":"4712"}')
    await backend.rpc(Identity("anon:d7", "customer", ()), "wishlist.add", b'{"sku":"4713"}')
    assert sorted((event.action, event.sku, event.customer) for event in await logged(redis, topics.ACTIONS)) == [
        ("wishlist_add", "4711", "ann"),
        ("wishlist_add", "4713", "anon:d7"),
        ("wishlist_remove", "4712", "ann"),
    ]
    assert await backend.rpc(ANN, "wishlist.list", b"null") == b'{"items":[]}'
    record = Customer(id=CustomerId("ann"), wishlist={Sku("4711"): 5, Sku("4712"): 9})
    await redis.set(keys.customer(partition_of("ann", PARTITIONS), "ann"), encode_customer(record))
    assert msgspec.json.decode(await backend.rpc(ANN, "wishlist.list", b"{}")) == {
        "items": [{"sku": "4712", "added_ms": 9}, {"sku": "4711", "added_ms": 5}]
    }
    for method in ("wishlist.add", "wishlist.remove", "wishlist.list"):
        with pytest.raises(Forbidden):
            await backend.rpc(TABLET, method, b'{"sku":"4711"}')


async def test_refused_events_are_counted(backend: DeviceBackend) -> None:
    """What a device may not say shows in the metric, by its reason."""
    refused = metrics.INTAKE.labels("not_your_event")
    before = refused._value.get()
    with pytest.raises(Forbidden):
        await backend.rpc(ANN, "event", b'{"type":"location","uid":"bob","lat":1,"lng":2}')
    assert refused._value.get() == before + 1


async def test_somebody_elses_offer(backend: DeviceBackend) -> None:
    """Applying a decision that is unknown, or about another customer, finds nothing."""
    with pytest.raises(NotFound) as refused:
        await backend.rpc(ANN, "apply", b'{"decision":"d1"}')
    assert refused.value.reason == "unknown_decision"
    with pytest.raises(NotFound, match="no RPC method"):
        await backend.rpc(ANN, "drop.table", b"{}")


async def test_claims(backend: DeviceBackend, redis: Redis) -> None:
    """The first tablet wins, also when asked again; tablets of other stores and phones can't claim at all."""
    await published(redis, "staff:graben", "d1", "staff")
    alert = message_id(DecisionId("d1"), "staff")
    claim = msgspec.json.encode({"message": alert})
    for _ in range(2):
        assert msgspec.json.decode(await backend.rpc(TABLET, "assist.claim", claim)) == {
            "claimed_by": "eve",
            "won": True,
        }
    assert msgspec.json.decode(await backend.rpc(TOM, "assist.claim", claim)) == {"claimed_by": "eve", "won": False}
    assert await channel_of(redis, "staff:graben") == [
        {"kind": "withdraw", "message": alert, "reason": "claimed", "by": "eve"}
    ]
    with pytest.raises(NotFound):
        await backend.rpc(Identity("kim", "staff", ("staff:dom",)), "assist.claim", claim)
    with pytest.raises(NotFound):
        await backend.rpc(TABLET, "assist.claim", b'{"message":"alert-2"}')
    with pytest.raises(Forbidden):
        await backend.rpc(ANN, "assist.claim", claim)


@pytest.mark.parametrize("person", ["ann", "anon:d7"])
async def test_an_alert_is_closed(backend: DeviceBackend, redis: Redis, person: str) -> None:
    """By who claimed it, once. Helped, the log says of the customer that staff spoke to them, wherever their records
    are; the first outcome stands."""
    await published(redis, "staff:graben", "d1", "staff")
    await decided(redis, CustomerId(person), "d1")
    alert = message_id(DecisionId("d1"), "staff")
    helped = named("d1", "staff", outcome="helped")
    with pytest.raises(Conflict) as refused:
        await backend.rpc(TABLET, "assist.close", helped)
    assert refused.value.reason == "not_yours"
    await backend.rpc(TABLET, "assist.claim", msgspec.json.encode({"message": alert}))
    with pytest.raises(Conflict):
        await backend.rpc(TOM, "assist.close", helped)
    assert await logged(redis, topics.ACTIONS) == []
    for outcome in ("helped", "other"):
        answer = await backend.rpc(TABLET, "assist.close", named("d1", "staff", outcome=outcome))
        assert answer == b'{"outcome":"helped"}'
    first, again = await logged(redis, topics.ACTIONS)
    assert (first.action, first.customer, first.store) == ("staff_contact", person, "graben")
    assert first.id == again.id, "the engine knows the second one by its id"
    assert [told["reason"] for told in await channel_of(redis, "staff:graben")] == ["claimed", "closed"]


async def test_who_is_being_erased_is_not_written_of_again(backend: DeviceBackend, redis: Redis) -> None:
    """An alert about them can still be closed; the log says nothing of it."""
    await published(redis, "staff:graben", "d1", "staff")
    await decided(redis, CustomerId("ann"), "d1")
    await backend.rpc(TABLET, "assist.claim", msgspec.json.encode({"message": message_id(DecisionId("d1"), "staff")}))
    await redis.hset(keys.erasures(partition_of(CustomerId("ann"), PARTITIONS)), "ann", "asked")
    assert await backend.rpc(TABLET, "assist.close", named("d1", "staff", outcome="helped")) == b'{"outcome":"helped"}'
    assert await logged(redis, topics.ACTIONS) == []


@pytest.mark.parametrize("outcome", ["not_found", "other"])
async def test_nobody_was_helped(backend: DeviceBackend, redis: Redis, outcome: str) -> None:
    """An alert that came to nothing says nothing of the customer."""
    await published(redis, "staff:graben", "d1", "staff")
    await decided(redis, CustomerId("ann"), "d1")
    alert = msgspec.json.encode({"message": message_id(DecisionId("d1"), "staff")})
    await backend.rpc(TABLET, "assist.claim", alert)
    await backend.rpc(TABLET, "assist.close", named("d1", "staff", outcome=outcome))
    assert await logged(redis, topics.ACTIONS) == []
    with pytest.raises(InputError):
        await backend.rpc(TABLET, "assist.close", named("d1", "staff", outcome="bored"))
    with pytest.raises(Forbidden):
        await backend.rpc(ANN, "assist.close", named("d1", "staff", outcome=outcome))


async def decided(redis: Redis, customer: CustomerId, decision: str) -> None:
    """An assist was decided for a customer, who has record of it."""
    home = partition_of(customer, PARTITIONS)
    store = StoreId("graben")
    moment = Moment(event=EventId("e"), customer=customer, trigger="dwell", at_ms=1, subject="shelf", store=store)
    made = Decision(
        id=DecisionId(decision),
        moment=moment,
        outcome="assist",
        at_ms=1,
        deadline_ms=2,
        candidates=[],
        rules_version="r",
        model_version="m",
        promotion=PromotionId("help"),
        store=store,
    )
    record = Customer(id=customer)
    for audience in ("customer", "staff"):
        message = message_id(DecisionId(decision), audience)
        record.messages.append(SentMessage(message, DecisionId(decision), PromotionId("help"), 1))
    await redis.set(keys.decision(home, decision), msgspec.json.encode(made))
    await redis.set(keys.customer(home, customer), encode_customer(record))


@pytest.fixture
async def gateway_url(redis: Redis, desk: Desk, backend: DeviceBackend) -> AsyncIterator[str]:
    """A real gateway in front of the desk."""
    clock = SystemClock()
    streams = ChannelStreams(redis, "gateway", clock)
    gateway = Gateway(GatewaySettings(port=0), Tokens(SECRET, clock), streams, backend, clock)
    await gateway.start()
    yield f"ws://127.0.0.1:{gateway.port}/connection/websocket"
    await gateway.stop()


def token_of(desk: Desk, customer: str) -> str:
    return desk.mint_token(customer, "customer", [], 60)


async def test_siblings(gateway_url: str, desk: Desk, redis: Redis) -> None:
    """Of two devices the first keeps the message, the other is told; one that was away gets it never."""
    streams, token = ChannelStreams(redis, "dispatcher", SystemClock()), token_of(desk, "ann")
    message, told = message_id(DecisionId("d1"), "customer"), list[Withdraw]()
    push = Push(
        kind="offer",
        message=message,
        decision=DecisionId("d1"),
        title="Tea",
        body="",
        promotion=PromotionId("tea"),
        trigger="enter",
        event=EventId("e"),
        at_ms=1,
        deadline_ms=2,
    )
    async with AsyncExitStack() as stack:
        phone, watch, tablet = [
            await stack.enter_async_context(Device(gateway_url, token, device=name, on_withdraw=told.append))
            for name in ("phone", "watch", "tablet")
        ]
        await tablet.close()
        await streams.publish_once("customer:ann", message, msgspec.json.encode(push))
        assert [await anext(aiter(device)) for device in (phone, watch)] == [push, push]
        assert await phone.ack(push)
        assert not await watch.ack(push)
        await until(lambda: bool(told))
        assert told == [Withdraw(message=message, reason="elsewhere", by="phone")]
        await tablet.open_connection()
        await until(lambda: len(told) == 2)
        await phone.dismiss(push)
        await until(lambda: len(told) == 5)
        await tablet.close()
        assert [push async for push in tablet] == []


async def test_logout(gateway_url: str, desk: Desk) -> None:
    """Every device of the customer is put out at once, and their tokens are worth nothing; nobody else's."""
    old = token_of(desk, "ann")
    async with (
        Device(gateway_url, old) as phone,
        Device(gateway_url, old) as watch,
        Device(gateway_url, token_of(desk, "bob")) as other,
        Device(gateway_url, desk.mint_token("ann", "staff", ["staff:graben"], 60)) as namesake,
    ):
        await desk.logout(CustomerId("ann"))
        for device in (phone, watch):
            with pytest.raises(Refused) as refused:
                await anext(aiter(device))
            assert refused.value.status == 3503
        with pytest.raises(Refused) as refused:
            await Device(gateway_url, old).open_connection()
        assert refused.value.reason == "token expired"
        await other.call("wishlist.list", None)
        with pytest.raises(Refused, match="customers_only"):
            await namesake.call("wishlist.list", None)
        assert (other.connects, namesake.connects) == (1, 1)


async def test_a_new_token_after_logout(gateway_url: str, desk: Desk) -> None:
    """Signed in again, the customer is let in; a token of the very second of the logout may have to be fetched anew."""
    await desk.logout(CustomerId("ann"))

    async def get_token() -> str:
        return token_of(desk, "ann")

    async with Device(gateway_url, await get_token(), get_token=get_token) as device:
        assert await device.call("wishlist.list", None) == b'{"items":[]}'


async def test_an_erased_customer_is_put_out(gateway_url: str, desk: Desk) -> None:
    """With the erasure their connections end; they don't come back by the same token."""
    token = token_of(desk, "ann")
    async with Device(gateway_url, token) as device:
        await desk.erase(CustomerId("ann"))
        with pytest.raises(Refused) as refused:
            await anext(aiter(device))
        assert refused.value.status == 3503
    with pytest.raises(Refused):
        await Device(gateway_url, token).open_connection()


async def test_public_news(gateway_url: str, desk: Desk, redis: Redis) -> None:
    """What is published to a store's channel is there for who asks, once for each key given for that."""
    for _ in range(2):
        place = await desk.publish("store:graben", b'{"text":"bread"}', once="bread")
    assert place[1] == 1
    await desk.publish("store:graben", b'{"text":"rolls"}', key="shelf")
    assert await channel_of(redis, "store:graben") == [{"text": "bread"}, {"text": "rolls"}]


async def test_public_channels_are_those_of_the_world(backend: DeviceBackend, desk: Desk) -> None:
    """Of its stores and zones, as they are now."""
    assert not await backend.exists("store:graben")
    await desk.put_world(WORLD)
    assert await backend.exists("store:graben")
    assert await backend.exists("zone:near")
    assert not await backend.exists("store:near")
    assert not await backend.exists("zone:graben")


async def test_a_store_that_another_process_has_just_added(backend: DeviceBackend, redis: Redis) -> None:
    """Whoever has heard of it may subscribe to its channel at once, on any node."""
    assert not await backend.exists("store:graben")
    await WorldStore(redis).put(WORLD)
    assert await backend.exists("store:graben")


async def test_public_channels_of_a_world_that_cannot_be_read(backend: DeviceBackend, redis: Redis) -> None:
    """A node that has never had it can't say of any channel that there is none; once it is mended, it can."""
    world = WorldStore(redis)
    await world.put(WORLD)
    await redis.hset(keys.world("promotion"), "p", b'{"of":"another release"}')
    await redis.incr(keys.world_version())
    for channel in ("store:graben", "zone:near", "store:nowhere"):
        with pytest.raises(Unavailable):
            await backend.exists(channel)
    await world.remove("promotion", "p")
    assert await backend.exists("store:graben")
    assert not await backend.exists("store:nowhere")
    # A node that has had it goes on with what it knows.
    await redis.hset(keys.world("promotion"), "p", b'{"of":"another release"}')
    await redis.incr(keys.world_version())
    with pytest.raises(Unavailable):
        await backend.exists("store:nowhere")
    assert await backend.exists("store:graben")


@pytest.mark.parametrize(("audience", "channel"), [("customer", "customer:ann"), ("staff", "staff:graben")])
async def test_recalled(desk: Desk, redis: Redis, audience: str, channel: str) -> None:
    """A message that is recalled is in no stream any more, and the log says so; nobody else's can be."""
    ann = CustomerId("ann")
    await decided(redis, ann, "d1")
    await published(redis, channel, "d1", audience)
    message = message_id(DecisionId("d1"), audience)
    for _ in range(2):
        await desk.recall(ann, message)
    told = await channel_of(redis, channel)
    assert {(one["message"], one["reason"]) for one in told} == {(message, "recalled")}
    receipts = await logged(redis, topics.FEEDBACK)
    assert {(receipt.message, receipt.status) for receipt in receipts} == {(message, "recalled")}
    with pytest.raises(NotFound):
        await desk.recall(CustomerId("bob"), message)


async def test_recalled_before_it_was_sent(desk: Desk, redis: Redis) -> None:
    """After it was recalled a message can't be published any more."""
    await decided(redis, CustomerId("ann"), "d1")
    await desk.recall(CustomerId("ann"), message_id(DecisionId("d1"), "customer"))
    with pytest.raises(Recalled):
        await published(redis, "customer:ann", "d1")
    assert {one["kind"] for one in await channel_of(redis, "customer:ann")} == {"withdraw"}


async def test_recalled_after_it_was_shown(backend: DeviceBackend, desk: Desk, redis: Redis) -> None:
    """The device that won the message is told, too."""
    await decided(redis, CustomerId("ann"), "d1")
    await published(redis, "customer:ann", "d1")
    await backend.rpc(ANN, "ack", named("d1", device="phone"))
    await desk.recall(CustomerId("ann"), message_id(DecisionId("d1"), "customer"))
    assert [one["reason"] for one in await channel_of(redis, "customer:ann")] == ["elsewhere", "recalled"]
