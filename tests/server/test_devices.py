"""What devices may ask: their own customer's affairs, and alerts of their own stores."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from channels.gateway.backend import Identity
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from nearcast import topics
from nearcast.clock import SystemClock
from nearcast.errors import Forbidden, InputError, NotFound
from nearcast.events import Consent, Location, Receipt, decode
from nearcast.ids import DecisionId, message_id
from offers.policy import Policy
from server.api.keyring import KeyRing
from server.api.links import LinkSigner
from server.consents import OptOuts
from server.coupons import CouponBook
from server.desk import Desk
from server.devices import DeviceBackend
from server.intake import Intake
from server.log.streams import StreamsLog
from server.state import StateStore
from server.world import WorldStore
from tests.server.rig import PARTITIONS

ANN = Identity("ann", "customer", ("customer:ann",))
TABLET = Identity("eve", "staff", ("staff:graben",))


@pytest.fixture
async def backend(redis: Redis, valkey_url: str) -> AsyncIterator[DeviceBackend]:
    clock = SystemClock()
    log = StreamsLog(valkey_url, PARTITIONS)
    await log.start()
    streams = ChannelStreams(redis, "node", clock)
    desk = Desk(
        redis=redis,
        state=StateStore(redis, PARTITIONS),
        world=WorldStore(redis),
        intake=Intake(log, clock),
        log=log,
        coupons=CouponBook(redis, b"secret", clock),
        opt_outs=OptOuts(redis, PARTITIONS),
        streams=streams,
        tokens=Tokens(b"x" * 32, clock),
        keyring=KeyRing([]),
        links=LinkSigner(b"secret"),
        policy=Policy(),
        clock=clock,
        public_url="http://shop.example",
        sms_auth_token="",
        demo=False,
        web_root=Path(),
    )
    yield DeviceBackend(desk, redis, streams)
    await log.stop()


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


async def test_acks(backend: DeviceBackend, redis: Redis) -> None:
    """ack and open become receipts of the device's own customer; a message must belong to its decision."""
    decision = DecisionId("0" * 32)
    seen = msgspec.json.encode({"message": message_id(decision, "customer"), "decision": decision})
    await backend.rpc(ANN, "ack", seen)
    await backend.rpc(ANN, "open", seen)
    receipts = await logged(redis, topics.FEEDBACK)
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert [(receipt.uid, receipt.status) for receipt in receipts] == [("ann", "delivered"), ("ann", "opened")]
    with pytest.raises(NotFound):
        await backend.rpc(ANN, "ack", b'{"message":"other","decision":"d"}')
    for method in ("ack", "open", "apply", "assist.claim"):
        with pytest.raises(InputError):
            await backend.rpc(ANN, method, b"[]")


async def test_somebody_elses_offer(backend: DeviceBackend) -> None:
    """Applying a decision that is unknown, or about another customer, finds nothing."""
    with pytest.raises(NotFound) as refused:
        await backend.rpc(ANN, "apply", b'{"decision":"d1"}')
    assert refused.value.reason == "unknown_decision"
    with pytest.raises(NotFound, match="no RPC method"):
        await backend.rpc(ANN, "drop.table", b"{}")


async def test_claims(backend: DeviceBackend, redis: Redis) -> None:
    """The first tablet wins, also when asked again; tablets of other stores and phones can't claim at all."""
    streams = ChannelStreams(redis, "dispatcher", SystemClock())
    await streams.publish_once("staff:graben", "alert-1", b"{}")
    claim = b'{"message":"alert-1"}'
    for _ in range(2):
        assert msgspec.json.decode(await backend.rpc(TABLET, "assist.claim", claim)) == {
            "claimed_by": "eve",
            "won": True,
        }
    late = Identity("tom", "staff", ("staff:graben",))
    assert msgspec.json.decode(await backend.rpc(late, "assist.claim", claim)) == {"claimed_by": "eve", "won": False}
    with pytest.raises(NotFound):
        await backend.rpc(Identity("kim", "staff", ("staff:dom",)), "assist.claim", claim)
    with pytest.raises(NotFound):
        await backend.rpc(TABLET, "assist.claim", b'{"message":"alert-2"}')
    with pytest.raises(Forbidden):
        await backend.rpc(ANN, "assist.claim", claim)
