"""Live and recovered publications together: everything, in order, once, or an explicit `recovered: false`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from channels.gateway import codes
from channels.gateway.hub import CHECK_PARTS, Hub, Subscription, end, parts
from channels.gateway.publications import Position, Publication, Revoked
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
from tests.services.ports import free_ports
from tests.services.proxy import TcpProxy
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
            await newcomer.assert_closed(codes.CLOSED)
            await asyncio.to_thread(valkey.start)
            position = await streams.publish(CHANNEL, b"2")
            await until(lambda: len(device.offsets) == position.offset, "the second has arrived")
            async with Opened(gateway) as again:
                accepted = await again.connect(token)
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


@pytest.fixture
async def start_hub(redis: Redis) -> AsyncIterator[Callable[..., Hub]]:
    """Starts hubs: `start_hub("node-1")`. They stop with the test."""
    async with AsyncExitStack() as stack:

        def start(node: str = "node-1", **options: Any) -> Hub:
            streams = ChannelStreams(redis, node, SystemClock())
            hub = Hub(streams, lambda _, publication: Envelope(publication.data), **options)
            hub.start()
            stack.push_async_callback(hub.stop)
            return hub

        yield start


async def join(hub: Hub, name: str, *channels: str, pad: Pad | None = None, issued_ms: int = 1) -> list[Subscription]:
    """A client of anna's is subscribed, live."""
    wanted = [(channel, None) for channel in channels or (CHANNEL,)]
    joined = await hub.join_all(wanted, pad or Pad(), client=name, user="anna", issued_ms=issued_ms)
    for subscription, _ in joined:
        subscription.go_live()
    return [subscription for subscription, _ in joined]


async def test_joining_and_leaving_in_a_rush_keeps_the_node_listed(redis: Redis, streams: ChannelStreams) -> None:
    """However joins and leaves of one channel interleave, the node is listed exactly while it has a listener."""
    hub = Hub(ChannelStreams(redis, "node-1", SystemClock()), lambda _, publication: Envelope(publication.data))
    hub.start()

    async def visit(turns: int) -> None:
        for _ in range(turns):
            [(subscription, _)] = await hub.join_all([(CHANNEL, None)], Pad(), client="", user="", issued_ms=0)
            subscription.go_live()
            await asyncio.sleep(0)
            hub.leave(subscription)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(visit(20) for _ in range(3)))
    pad = Pad()
    [(subscription, found)] = await hub.join_all([(CHANNEL, None)], pad, client="", user="", issued_ms=0)
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


async def quiet_hub(start_hub: Callable[..., Hub], streams: ChannelStreams) -> Hub:
    """A hub whose bus is up and which does nothing by itself; the store knows its scripts."""
    heard: list[bytes] = []
    hub = start_hub(control=heard.append, check_every_s=600)
    async with asyncio.timeout(10):
        while not heard:
            await streams.tell("node-1", b"up")
            await asyncio.sleep(0.01)
    await join(hub, "first")
    return hub


async def work(redis: Redis) -> tuple[int, int]:
    """How often scripts ran in the store, and how often it read from a connection."""
    commands, reads = await redis.info("commandstats"), await redis.info("stats")
    return commands.get("cmdstat_evalsha", {"calls": 0})["calls"], reads["total_reads_processed"]


async def test_joining_many_channels_is_one_round_trip(
    redis: Redis, streams: ChannelStreams, start_hub: Callable[..., Hub]
) -> None:
    """A token's 32 channels are joined by 32 scripts, sent together with the question for a logout."""
    hub = await quiet_hub(start_hub, streams)
    before = await work(redis)
    await join(hub, "phone", *(f"store:{n}" for n in range(32)))
    after = await work(redis)
    assert after[0] - before[0] == 32
    assert after[1] - before[1] <= 3, "one for what is asked here, one or two for the joins"


async def test_a_wave_of_joins_goes_together(
    redis: Redis, streams: ChannelStreams, start_hub: Callable[..., Hub]
) -> None:
    """1,000 clients with two channels each: one script a channel, and far fewer round trips than clients."""
    hub = await quiet_hub(start_hub, streams)
    before = await work(redis)
    await asyncio.gather(*(join(hub, f"phone-{n}", f"customer:{n}", "store:1") for n in range(1000)))
    after = await work(redis)
    assert after[0] - before[0] == 2000
    assert after[1] - before[1] < 200
    assert await redis.zcard(keys.channel_nodes("customer:999")) == 1


async def test_presence_follows_who_comes_and_goes(streams: ChannelStreams, start_hub: Callable[..., Hub]) -> None:
    """Over two nodes, also when a client takes its place a second time before it gives up the first, and not at all in
    a store's channel.
    """
    hubs = start_hub("node-1"), start_hub("node-2")
    [phone] = await join(hubs[0], "phone")
    await join(hubs[1], "tablet", CHANNEL, "store:1")

    async def who() -> list[str]:
        return sorted(await streams.presence(CHANNEL))

    assert await who() == ["phone", "tablet"]
    [again] = await join(hubs[0], "phone")
    hubs[0].leave(phone)
    await until(lambda: not hubs[0]._left, "the first place is given up")
    await join(hubs[0], "watch")
    assert await who() == ["phone", "tablet", "watch"]
    hubs[0].leave(again)
    await until(lambda: not hubs[0]._left, "the second place is given up")
    await join(hubs[0], "one more", "staff:1")
    assert await who() == ["tablet", "watch"]
    assert await streams.presence("store:1") == {}
    await hubs[1].stop()
    assert await who() == ["watch"]


async def test_who_was_logged_out_does_not_come_in(streams: ChannelStreams, start_hub: Callable[..., Hub]) -> None:
    """With a token of the time before, or of the same moment; nothing is left behind, and a new token is good."""
    hub = start_hub()
    await streams.revoke("anna", 5_000)
    for issued_ms in (4_000, 5_000):
        with pytest.raises(Revoked):
            await join(hub, "phone", issued_ms=issued_ms)
    await until(lambda: not hub._feeds, "the channel is left")
    assert not await streams.connected(CHANNEL)
    assert await streams.presence(CHANNEL) == {}
    await join(hub, "phone", issued_ms=6_000)
    assert await streams.connected(CHANNEL)


async def test_joins_that_are_given_up_leave_nothing_behind(
    streams: ChannelStreams, start_hub: Callable[..., Hub]
) -> None:
    """Cancelled at any point, some of many."""
    hub = start_hub()
    joins = [asyncio.create_task(join(hub, f"phone-{n}", f"customer:{n}", "staff:1")) for n in range(200)]
    for n, task in enumerate(joins):
        if n % 20 == 0:
            await asyncio.sleep(0)
        if n % 2:
            task.cancel()
    done = await asyncio.gather(*joins, return_exceptions=True)
    stayed = [n for n, outcome in enumerate(done) if isinstance(outcome, list)]
    assert set(range(0, 200, 2)) <= set(stayed)
    await until(lambda: len(hub._feeds) == len(stayed) + 1 and not hub._left, "the rest is left")
    # Whoever comes now comes after all that.
    await join(hub, "last", "staff:2")
    assert sorted(await streams.presence("staff:1")) == sorted(f"phone-{n}" for n in stayed)
    for n in range(200):
        assert await streams.connected(f"customer:{n}") == (n in stayed), n


async def test_nobody_waits_for_a_hub_that_has_stopped(start_hub: Callable[..., Hub], streams: ChannelStreams) -> None:
    """Who is about to join when it stops is refused or comes in; who comes later is refused. The node signs off."""
    hub = start_hub()
    joining = [asyncio.create_task(join(hub, f"phone-{n}")) for n in range(200)]
    await asyncio.sleep(0)
    await hub.stop()
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*joining, return_exceptions=True)
        with pytest.raises(Unavailable):
            await join(hub, "late")
    assert {type(end) for end in ends} <= {list, Unavailable}
    assert not await streams.connected(CHANNEL)
    assert await streams.presence(CHANNEL) == {}


async def test_a_node_that_dies_is_dropped_at_the_first_publication(
    streams: ChannelStreams, start_hub: Callable[..., Hub], redis: Redis
) -> None:
    """It has no time to sign off; the publication reaches the others, and then nobody counts on it any more."""
    dying, other, pad = start_hub("node-1"), start_hub("node-2"), Pad()
    [_] = await join(dying, "phone")
    [tablet] = await join(other, "tablet", pad=pad)
    await end(dying._tasks)
    assert await redis.zcard(keys.channel_nodes(CHANNEL)) == 2
    await streams.publish(CHANNEL, b"1")
    await until(lambda: pad.frames == [b"1"], "it has arrived")
    assert await redis.zrange(keys.channel_nodes(CHANNEL), 0, -1) == [b"node-2"]
    other.leave(tablet)
    await until(lambda: not other._feeds, "the channel is left")
    assert not await streams.connected(CHANNEL)


async def test_nodes_are_told_what_is_meant_for_them(streams: ChannelStreams, start_hub: Callable[..., Hub]) -> None:
    """By name and alias to one, a logout to all, in order with the publications."""
    told: dict[str, list[bytes]] = {"node-1": [], "node-2": []}
    hubs = [start_hub(node, control=heard.append) for node, heard in told.items()]
    await asyncio.gather(*(join(hub, "phone") for hub in hubs))
    alias = hubs[0]._streams.alias
    assert alias not in ("node-1", hubs[1]._streams.alias)
    assert await streams.tell("node-1", b"by name")
    assert await streams.tell(alias, b"by\nalias")
    assert not await streams.tell("node-3", b"nobody")
    await streams.disconnect("anna", 3503, "force disconnect")
    await until(lambda: all(each[-1:] == told["node-2"][-1:] != [] for each in told.values()), "all have heard it")
    assert told["node-1"][:2] == [b"by name", b"by\nalias"]
    assert told["node-2"] == told["node-1"][2:]


async def test_every_feed_is_checked_without_a_reason(
    streams: ChannelStreams, start_hub: Callable[..., Hub], redis: Redis
) -> None:
    """A node that the store has forgotten, and what it missed thereby, is found by the check alone."""
    hub, pads = start_hub(check_every_s=0.3), [Pad() for _ in range(70)]
    await asyncio.gather(*(join(hub, "phone", f"customer:{n}", pad=pad) for n, pad in enumerate(pads)))
    for n in range(70):
        await redis.delete(keys.channel_nodes(f"customer:{n}"))
        await streams.publish(f"customer:{n}", b"%d" % n)
    await until(lambda: [pad.frames for pad in pads] == [[b"%d" % n] for n in range(70)], "all have arrived")
    assert await redis.zcard(keys.channel_nodes("customer:69")) == 1


async def test_a_bus_that_falls_silent_is_opened_anew(
    redis: Redis, valkey_url: str, streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection stays open and carries nothing: the node notices, listens again and fetches what it missed."""
    monkeypatch.setattr("channels.gateway.bus.SILENCE_S", 0.2)
    [port], store = free_ports(1), urlsplit(valkey_url)
    proxy = TcpProxy(port, store.port or 6379)
    pad, heard = Pad(), list[bytes]()
    await proxy.start()
    async with Redis.from_url(store._replace(netloc=f"127.0.0.1:{port}").geturl(), socket_timeout=1) as client:
        cut_off = ChannelStreams(client, "node-1", SystemClock())
        hub = Hub(cut_off, lambda _, publication: Envelope(publication.data), heard.append)
        hub.start()
        await join(hub, "phone", pad=pad)
        while not heard:
            await streams.tell("node-1", b"up")
            await asyncio.sleep(0.01)
        proxy.hang()
        await streams.publish(CHANNEL, b"1")
        await until(lambda: pad.frames == [b"1"], "it has arrived")
        await streams.publish(CHANNEL, b"2")
        await until(lambda: pad.frames == [b"1", b"2"], "the next has arrived")
        await hub.stop()
    await proxy.stop()


async def test_a_bus_with_nothing_to_carry_stays(
    redis: Redis, start_hub: Callable[..., Hub], streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pinged, and its connection is kept."""
    monkeypatch.setattr("channels.gateway.bus.SILENCE_S", 0.05)
    await quiet_hub(start_hub, streams)

    async def pings() -> int:
        found = await redis.info("commandstats")
        return int(found.get("cmdstat_ping", {"calls": 0})["calls"])

    buses = [client["id"] for client in await redis.client_list("pubsub")]
    wanted = await pings() + 5
    async with asyncio.timeout(10):
        while await pings() < wanted:
            await asyncio.sleep(0.02)
    assert [client["id"] for client in await redis.client_list("pubsub")] == buses


def test_a_check_is_spread() -> None:
    """Every channel once, and never many at a time."""
    for count in (0, 1, 29, 30, 31, 10_000):
        channels = [str(n) for n in range(count)]
        found = parts(channels, CHECK_PARTS)
        assert len(found) == CHECK_PARTS
        assert [channel for part in found for channel in part] == channels
        assert max(map(len, found)) <= count // CHECK_PARTS + 1


async def test_an_epoch_that_begins_while_somebody_joins_is_told(
    redis: Redis, start_hub: Callable[..., Hub], streams: ChannelStreams
) -> None:
    """What came in under the old epoch meanwhile is not taken for a part of the new one: the client starts over."""
    hub, pads = start_hub(), [Pad(), Pad()]
    await streams.publish(CHANNEL, b"1")
    await join(hub, "phone", pad=pads[0])
    old = (await streams.read(CHANNEL, None)).position
    await redis.delete(keys.channel_meta(CHANNEL))
    joining = asyncio.create_task(join(hub, "tablet", pad=pads[1]))
    await asyncio.sleep(0)
    hub._receive(CHANNEL, old.epoch, Publication(2, b"2"))
    await joining
    await until(lambda: pads[0].frames == [b"2", b"lost"], "the other client starts over as well")
    assert pads[1].frames == [b"lost"]


async def test_a_feed_stands_where_it_caught_up_to(
    start_hub: Callable[..., Hub], streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was withdrawn while the bus was deaf is passed over, and what follows is no new hole."""
    hub, pad, deaf = start_hub(), Pad(), asyncio.Lock()
    settle = hub._settle

    async def settle_unless_deaf() -> None:
        async with deaf:
            await settle()

    monkeypatch.setattr(hub, "_settle", settle_unless_deaf)
    await join(hub, "phone", pad=pad)
    await streams.publish_once(CHANNEL, "m1", b"offer")
    await until(lambda: pad.frames == [b"offer"], "the offer is there")
    async with deaf:
        await streams.redis.zrem(keys.channel_nodes(CHANNEL), "node-1")
        await streams.publish_once(CHANNEL, "m2", b"second offer")
        await streams.withdraw(CHANNEL, "m2", b"withdrawn")
    hub._unsettle(CHANNEL)
    await until(lambda: pad.frames[1:] == [b"withdrawn"], "the withdrawal is there")
    await streams.publish(CHANNEL, b"next")
    await until(lambda: pad.frames[2:] == [b"next"], "the next is there")
