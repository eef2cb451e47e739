"""Live and recovered publications together: everything, in order, once, or an explicit `recovered: false`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from channels.gateway.hub import Hub, Subscription
from channels.gateway.publications import Position, Publication
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.gateway.transport import Envelope
from nearcast import keys
from nearcast.clock import SystemClock
from nearcast.errors import Unavailable
from tests.channels.gateway.conftest import QUICK, StartGateway
from tests.channels.gateway.support import Device, Opened, ScriptedBackend, until
from tests.services.valkey import ValkeyProcess

CHANNEL = "customer:c1"


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.mint("c1", "customer", ttl_s=600)


async def test_a_reconnect_brings_exactly_what_was_missed(
    gateway: Gateway, streams: ChannelStreams, token: str
) -> None:
    """The TCP connection breaks, 20 are published meanwhile: after the reconnect they are there, in order and once."""
    async with Device(gateway, token) as device:
        await device.ready()
        await streams.publish(CHANNEL, b"1")
        await until(lambda: device.offsets == [1], "the first has arrived")
        device.drop()
        for n in range(2, 22):
            await streams.publish(CHANNEL, b"%d" % n)
        await until(lambda: len(device.publications) == 21, "the missed ones have arrived")
        await streams.publish(CHANNEL, b"22")
        await until(lambda: len(device.publications) == 22, "it goes on live")
    assert device.publications == [(CHANNEL, n, n) for n in range(1, 23)]
    assert device.said("subscribed")[1][2:4] == (True, True)


@pytest.mark.parametrize("loss", ["trimmed", "epoch"])
async def test_what_is_lost_is_said(gateway: Gateway, redis: Redis, token: str, loss: str) -> None:
    """A gap beyond the retained history, and a lost epoch, reach the SDK as recovered: false; nothing old is shown."""
    short = ChannelStreams(redis, "elsewhere", SystemClock(), history_size=3)
    async with Opened(gateway) as raw:
        first = await raw.connect(token)
    sub = first["connect"]["subs"][CHANNEL]
    if loss == "epoch":
        await redis.delete(keys.channel_meta(CHANNEL))
    for n in range(1, 6):
        await short.publish(CHANNEL, b"%d" % n)
    async with Opened(gateway) as raw:
        since = {"recover": True, "epoch": sub["epoch"], "offset": sub["offset"]}
        again = (await raw.connect(token, subs={CHANNEL: since}))["connect"]["subs"][CHANNEL]
        await short.publish(CHANNEL, b"6")
        live = await raw.receive()
    assert again["was_recovering"] is True
    assert again.get("recovered", False) is False
    assert again.get("publications", []) == []
    assert again["offset"] == 5
    assert live["push"]["pub"] == {"data": 6, "offset": 6}


async def test_two_nodes_serve_one_customer(
    start_gateway: StartGateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """A customer's phone and tablet hang on different nodes; each gets everything. Either may recover at the other."""
    one, two = await start_gateway("node-1"), await start_gateway("node-2")
    async with Device(one, token) as phone, Device(two, token) as tablet:
        await phone.ready()
        await tablet.ready()
        for n in range(1, 51):
            await streams.publish(CHANNEL, b"%d" % n)
        await until(lambda: len(phone.offsets) == len(tablet.offsets) == 50, "both have everything")
        assert phone.offsets == tablet.offsets == list(range(1, 51))
        assert await redis.zcard(keys.channel_nodes(CHANNEL)) == 2
        phone.drop()
        phone.client._address = tablet.client._address
        await streams.publish(CHANNEL, b"51")
        await until(lambda: len(phone.offsets) == len(tablet.offsets) == 51, "both have the last")
    assert phone.said("subscribed")[-1][2:4] == (True, True)


async def test_connecting_in_a_storm_of_publications_leaves_no_hole(
    start_gateway: StartGateway, redis: Redis, streams: ChannelStreams, token: str
) -> None:
    """Clients that connect and break off while publications pour in each see every offset, in order, once."""
    gateways = [await start_gateway("node-1"), await start_gateway("node-2")]
    total = 240
    devices = [Device(gateways[n % 2], token) for n in range(6)]
    anchor = (await streams.read(CHANNEL, None)).position

    async def publish() -> None:
        for n in range(1, total + 1):
            await streams.publish(CHANNEL, b"%d" % n)
            await asyncio.sleep(0.002)

    async def live(device: Device, restless: bool) -> None:
        await device.client.connect()
        await device.ready()
        while restless and len(device.publications) < total * 2 // 3:
            enough = len(device.publications) + 8
            await device.has(enough)
            if device.client._conn is not None:
                device.drop()

    publisher = asyncio.create_task(publish())
    await asyncio.gather(*(live(device, n > 1) for n, device in enumerate(devices)))
    await publisher
    for device in devices:
        await device.has_offset(total)
        await device.client.disconnect()
    assert anchor.offset == 0
    for device in devices:
        start = device.said("subscribed")[0][4] + 1
        assert device.offsets == list(range(start, total + 1))


async def test_a_skipped_offset_is_fetched_before_what_follows(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """A publication that this node was not told of is read from the stream when the next one shows the gap."""
    async with Device(gateway, token) as device:
        await device.ready()
        await redis.zrem(keys.channel_nodes(CHANNEL), "node-1")
        await streams.publish(CHANNEL, b"1")
        await streams.publish(CHANNEL, b"2")
        await redis.zadd(keys.channel_nodes(CHANNEL), {"node-1": SystemClock().now_ms()})
        await streams.publish(CHANNEL, b"3")
        await until(lambda: len(device.offsets) == 3, "all have arrived")
    assert device.offsets == [1, 2, 3]


async def test_losing_the_bus_loses_nothing(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """The store cuts the node's bus connection again and again in a run of publications: all arrive, in order."""
    async with Device(gateway, token) as device:
        await device.ready()
        for n in range(1, 61):
            if n % 20 == 0:
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await streams.publish(CHANNEL, b"%d" % n)
        await until(lambda: len(device.offsets) == 60, "all have arrived")
        assert device.said("connecting")[1:] == []
    assert device.offsets == list(range(1, 61))


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyProcess]:
    process = ValkeyProcess(tmp_path)
    process.start()
    yield process
    process.stop()


async def test_the_store_may_die_and_come_back(
    valkey: ValkeyProcess, tokens: Tokens, backend: ScriptedBackend, token: str
) -> None:
    """SIGKILL for the store: connected clients stay, new ones are asked to try again, and then everything goes on."""
    async with Redis.from_url(valkey.url) as client, AsyncExitStack() as stopping:
        streams = ChannelStreams(client, "node-1", SystemClock())
        gateway = Gateway(GatewaySettings(**QUICK), tokens, streams, backend, SystemClock())  # type: ignore[arg-type]
        await gateway.start()
        stopping.push_async_callback(gateway.stop)
        async with Device(gateway, token) as device, Opened(gateway) as newcomer:
            await device.ready()
            await streams.publish(CHANNEL, b"1")
            await until(lambda: device.offsets == [1], "the first has arrived")
            valkey.kill()
            with pytest.raises(Unavailable):
                await streams.publish(CHANNEL, b"0")
            refused = await newcomer.connect(token)
            assert refused["error"]["code"] == 100
            assert refused["error"]["temporary"] is True
            await asyncio.to_thread(valkey.start)
            position = await streams.publish(CHANNEL, b"2")
            await until(lambda: len(device.offsets) == position.offset, "the second has arrived")
            accepted = await newcomer.connect(token)
            assert accepted["connect"]["subs"][CHANNEL]["offset"] == position.offset
            assert device.said("connecting")[1:] == []
        assert device.publications[-1] == (CHANNEL, 2, 2)


async def test_a_hole_under_a_live_client_makes_it_start_over(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """When the channel's past vanishes while a client is connected, it is reconnected and told recovered: false."""
    async with Device(gateway, token) as device:
        await device.ready()
        for n in range(1, 4):
            await streams.publish(CHANNEL, b"%d" % n)
        await until(lambda: len(device.offsets) == 3, "all have arrived")
        await redis.delete(keys.channel_meta(CHANNEL), keys.channel_stream(CHANNEL))
        await streams.publish(CHANNEL, b"4")
        await until(lambda: len(device.said("subscribed")) == 2, "the client has connected again")
        await streams.publish(CHANNEL, b"5")
        await until(lambda: len(device.offsets) > 3, "it goes on live")
    assert device.said("connecting")[1][1:] == (3010, "insufficient state")
    assert device.said("subscribed")[1][2:] == (True, False, 1)
    assert device.publications[3:] == [(CHANNEL, 2, 5)]


class Pad:
    """A listener that writes down what it is given."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def deliver(self, envelope: Envelope) -> None:
        self.frames.append(envelope.json)

    def lose(self) -> None:
        self.frames.append(b"lost")


async def test_joining_and_leaving_in_a_rush_keeps_the_node_listed(redis: Redis, streams: ChannelStreams) -> None:
    """However joins and leaves of one channel interleave, the node is listed exactly while it has a listener."""
    hub = Hub(ChannelStreams(redis, "node-1", SystemClock()), lambda _, publication: Envelope(publication.data))
    hub.start()

    async def visit(turns: int) -> None:
        for _ in range(turns):
            subscription, _found = await hub.join(CHANNEL, Pad(), None)
            subscription.go_live()
            await asyncio.sleep(0)
            hub.leave(subscription)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(visit(20) for _ in range(3)))
    pad = Pad()
    subscription, found = await hub.join(CHANNEL, pad, None)
    subscription.go_live()
    assert await streams.connected(CHANNEL)
    await streams.publish(CHANNEL, b"here")
    await until(lambda: pad.frames == [b"here"], "the publication is there")
    assert found.position.offset == 0
    hub.leave(subscription)
    await until(lambda: not hub._feeds, "the channel is left")
    assert not await streams.connected(CHANNEL)
    await hub.stop()


def test_a_listener_goes_live_after_what_it_has() -> None:
    """What came in while history was read is delivered afterwards, without what the history already held."""
    pad = Pad()
    subscription = Subscription(CHANNEL, pad)
    for publication in (Publication(4, b"4"), Publication(5, b"5"), Publication(6, b"6")):
        subscription.deliver(publication.offset, Envelope(publication.data))
    assert pad.frames == []
    subscription.start_at(Position("e", 5))
    subscription.go_live()
    subscription.deliver(6, Envelope(b"6"))
    subscription.deliver(7, Envelope(b"7"))
    assert pad.frames == [b"6", b"7"]


def test_a_flood_while_joining_ends_in_starting_over() -> None:
    """More than a history's worth of publications during one join are not held in memory without bound."""
    pad = Pad()
    subscription = Subscription(CHANNEL, pad)
    for offset in range(1, 1000):
        subscription.deliver(offset, Envelope(b"x"))
    subscription.go_live()
    assert pad.frames == [b"lost"]
