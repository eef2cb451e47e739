"""One client against its gateway: what it is refused, what ends it, and what it is told."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import centrifuge
import pytest
import websockets
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from channels.gateway import codes, protocol
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens, Verified
from nearcast import keys
from nearcast.clock import ManualClock, SystemClock
from nearcast.errors import Unavailable
from tests.channels.gateway.conftest import QUICK, StartGateway
from tests.channels.gateway.support import SECRET, WITHIN_S, Device, Opened, ScriptedBackend, until
from tests.services.valkey import ValkeyProcess

CHANNEL = "customer:c1"


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.mint("c1", "customer", ttl_s=600)


class SlowStore(ValkeyProcess):
    """A store that is there and, while it sleeps, does not answer."""

    def sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@pytest.fixture
async def slow_store(tmp_path: Path) -> AsyncIterator[SlowStore]:
    store = SlowStore(tmp_path)
    store.start()
    yield store
    store.wake()
    store.stop()


async def test_a_slow_store_does_not_end_a_client_for_good(
    slow_store: SlowStore, tokens: Tokens, backend: ScriptedBackend, token: str
) -> None:
    """While the store is slow a connect gets error 100 and a close after which SDKs return; then they get in."""
    async with Redis.from_url(slow_store.url) as redis, AsyncExitStack() as stopping:
        streams = ChannelStreams(redis, "node-1", SystemClock())
        settings: dict[str, Any] = {**QUICK, "connect_timeout_s": 0.2, "join_timeout_s": 0.3}
        gateway = Gateway(GatewaySettings(**settings), tokens, streams, backend, SystemClock())
        await gateway.start()
        slow_store.sleep()
        stopping.push_async_callback(gateway.stop)
        async with Device(gateway, token) as device, Opened(gateway) as raw:
            refused = await raw.connect(token)
            await raw.assert_closed(codes.CLOSED)
            await until(lambda: len(device.said("error")) > 1, "the SDK has tried again")
            slow_store.wake()
            await device.ready()
            assert device.said("disconnected") == []
    assert refused["error"] == {"code": 100, "message": "internal server error", "temporary": True}


async def test_a_token_in_time_counts_while_the_store_is_slow(
    slow_store: SlowStore, tokens: Tokens, backend: ScriptedBackend, token: str
) -> None:
    """The time for sending a token is over when it comes: its subscriptions have time of their own."""
    async with Redis.from_url(slow_store.url) as redis, AsyncExitStack() as stopping:
        streams = ChannelStreams(redis, "node-1", SystemClock())
        settings: dict[str, Any] = {**QUICK, "connect_timeout_s": 0.2, "join_timeout_s": 30.0}
        gateway = Gateway(GatewaySettings(**settings), tokens, streams, backend, SystemClock())
        await gateway.start()
        slow_store.sleep()
        stopping.push_async_callback(gateway.stop)
        async with Opened(gateway) as raw:
            await raw.send({"id": 1, "connect": {"token": token}})
            await until(lambda: gateway._hub._feeds, "the client is joining")
            async with Opened(gateway) as silent:
                await silent.assert_closed(codes.STALE)
            slow_store.wake()
            assert "connect" in await raw.receive()


async def test_a_refused_connect_ends_the_connection(
    gateway: Gateway, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After error 109 the socket is closed, with a code after which SDKs return, and what came with it is ignored."""
    looked_at: list[str] = []

    def verify(token: str) -> Verified:
        looked_at.append(token)
        return Tokens.verify(tokens, token)

    monkeypatch.setattr(tokens, "verify", verify)
    expired = tokens.mint("c1", "customer", ttl_s=-60)
    async with Opened(gateway) as raw:
        await raw.send(*({"id": n, "connect": {"token": expired}} for n in range(1, 60)))
        refused = await raw.receive()
        with pytest.raises(websockets.ConnectionClosed):
            await raw.receive()
        await raw.assert_closed(codes.CLOSED)
    assert (refused["id"], refused["error"]["code"]) == (1, 109)
    assert looked_at == [expired]


async def test_a_refresh_with_an_expired_token_leads_to_another_one(gateway: Gateway, tokens: Tokens) -> None:
    """An SDK whose refresh brings an expired token is closed with 3005, fetches another and goes on."""
    fetched: list[str] = []

    async def fetch() -> str:
        # The first one from a cache that is not cleared in time.
        fetched.append(tokens.mint("c1", "customer", ttl_s=600 if fetched else -60))
        return fetched[-1]

    async with Device(gateway, tokens.mint("c1", "customer", ttl_s=1), get_token=fetch) as device:
        await device.ready()
        await until(lambda: len(device.said("connected")) == 2, "the SDK is back")
        assert device.said("disconnected") == []
    assert device.said("connecting")[1] == ("connecting", 3005, "connection expired")
    assert len(fetched) >= 2


@pytest.mark.parametrize("line", ["{}", '{"id":1,"ping":{}}', '{"id":1,"nothing":{}}', '{"send":{"data":1}}'])
async def test_a_flood_of_any_kind_is_cut_off(start_gateway: StartGateway, token: str, line: str) -> None:
    """Lines beyond the limit end the connection, whatever they are; a little over it does not."""
    gateway = await start_gateway(commands_per_minute=100, commands_over_limit=30)
    async with Opened(gateway) as raw:
        await raw.connect(token)
        for _ in range(2):
            await raw.connection.send("\n".join([line] * protocol.MAX_COMMANDS))
        await raw.send({"id": 999, "ping": {}})
        while (await raw.receive())["id"] != 999:
            pass
        await raw.connection.send("\n".join([line] * protocol.MAX_COMMANDS))
        await raw.assert_closed(codes.FLOODING)


async def test_a_client_that_leaves_while_it_connects_leaves_nothing_behind(
    slow_store: SlowStore, tokens: Tokens, backend: ScriptedBackend, token: str
) -> None:
    """A socket that breaks while its connect waits for the store is subscribed to nothing once the store answers."""
    async with Redis.from_url(slow_store.url) as redis, AsyncExitStack() as stopping:
        streams = ChannelStreams(redis, "node-1", SystemClock())
        gateway = Gateway(GatewaySettings(**QUICK), tokens, streams, backend, SystemClock())  # type: ignore[arg-type]
        await gateway.start()
        stopping.push_async_callback(gateway.stop)
        await streams.publish(CHANNEL, b"0")
        slow_store.sleep()
        async with Opened(gateway) as raw:
            await raw.send({"id": 1, "connect": {"token": token}})
            await until(lambda: gateway._hub._feeds, "the client is joining")
            raw.connection.transport.abort()
        await until(lambda: not len(gateway._clients), "the client has left")
        slow_store.wake()
        await until(lambda: not gateway._hub._feeds, "its channel is left")
        assert not await streams.connected(CHANNEL)
        assert gateway._users._connections == {}


async def test_a_subscription_that_must_recover_says_so(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """With the SDKs' flag a lost position is error 112 and no subscription; the SDK then asks the app for its state."""
    places: list[centrifuge.StreamPosition] = []
    got: list[int] = []

    async def load(_channel: str) -> centrifuge.StreamPosition:
        position = (await streams.read(CHANNEL, None)).position
        places.append(centrifuge.StreamPosition(offset=position.offset, epoch=position.epoch))
        return places[-1]

    class Listener(centrifuge.SubscriptionEventHandler):
        async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
            got.append(ctx.pub.data)

    async with Device(gateway, token) as device, Opened(gateway) as raw:
        await device.ready()
        subscription = device.client.new_subscription(CHANNEL, Listener(), get_state=load)
        await subscription.subscribe()
        await subscription.ready(5)
        await streams.publish(CHANNEL, b"1")
        await until(lambda: got == [1], "the first is there")
        device.drop()
        await redis.delete(keys.channel_meta(CHANNEL))
        await streams.publish(CHANNEL, b"2")
        await until(lambda: len(places) == 2, "the app was asked for its state again")
        await subscription.ready(5)
        await streams.publish(CHANNEL, b"3")
        await until(lambda: got[-1] == 3, "it goes on live")

        await raw.connect(token)
        await raw.send({"id": 2, "unsubscribe": {"channel": CHANNEL}})
        await raw.receive()
        lost = {"channel": CHANNEL, "recover": True, "epoch": "another", "offset": 1}
        await raw.send({"id": 3, "subscribe": {**lost, "flag": 2}})
        refused = await raw.receive()
        await streams.publish(CHANNEL, b"4")
        await raw.send({"id": 4, "subscribe": {**lost, "flag": 1}})
        accepted = await raw.receive()
    assert places[1].epoch != places[0].epoch
    assert refused["error"] == {"code": 112, "message": "unrecoverable position"}
    assert accepted["subscribe"]["was_recovering"] is True
    assert "recovered" not in accepted["subscribe"]


async def test_everybody_may_listen_to_public_channels(
    start_gateway: StartGateway, streams: ChannelStreams, token: str
) -> None:
    """Anybody may subscribe to some stores and zones; over the number error 106; to leave one makes room."""
    gateway = await start_gateway(subscriptions=2)
    async with Opened(gateway) as raw:
        await raw.connect(token)
        await raw.send(
            {"id": 2, "subscribe": {"channel": "store:s1"}},
            {"id": 3, "subscribe": {"channel": "zone:z1"}},
            {"id": 4, "subscribe": {"channel": CHANNEL}},
            {"id": 5, "subscribe": {"channel": "store:s2"}},
            {"id": 6, "unsubscribe": {"channel": "zone:z1"}},
            {"id": 7, "subscribe": {"channel": "store:s2"}},
            {"id": 8, "subscribe": {"channel": "staff:s1"}},
        )
        replies = [await raw.receive() for _ in range(7)]
        await streams.publish("zone:z1", b"1")
        await streams.publish("store:s2", b"2", key="price")
        live = await raw.receive()
    outcomes = [reply["error"]["code"] if "error" in reply else (set(reply) - {"id"}).pop() for reply in replies]
    assert outcomes == ["subscribe", "subscribe", "subscribe", 106, "unsubscribe", "subscribe", 103]
    assert live == {"push": {"channel": "store:s2", "pub": {"data": 2, "offset": 1, "tags": {"key": "price"}}}}


async def test_made_up_channels_take_no_room(gateway: Gateway, redis: Redis, token: str) -> None:
    """A store or zone that there is not is refused (102), and leaves nothing behind in the store."""
    async with Opened(gateway) as raw:
        await raw.connect(token)
        for number, channel in enumerate(("store:nowhere", "zone:nowhere"), 2):
            for command in ("subscribe", "history"):
                await raw.send({"id": number, command: {"channel": channel}})
                assert (await raw.receive())["error"] == {"code": 102, "message": "unknown channel"}
        assert [key async for key in redis.scan_iter(match="*nowhere*")] == []
        await raw.send({"id": 9, "subscribe": {"channel": "store:somewhere"}})
        assert "subscribe" in await raw.receive()
        assert [key async for key in redis.scan_iter(match="*somewhere*")] != []


async def test_the_note_of_a_publication_is_for_the_node_alone(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, token: str
) -> None:
    """Clients get none of it, live or from the history. The first socket that is written to counts, also where the word
    of the publication went lost and the node catches up."""
    counted = "nearcast_event_to_device_seconds_count", {"until": "socket"}
    before = REGISTRY.get_sample_value(*counted) or 0.0
    async with Opened(gateway) as raw, Opened(gateway) as other:
        for each in (raw, other):
            await each.connect(token)
        await streams.publish_once(CHANNEL, "m1", b'{"n":1}', "m1 1 2")
        for each in (raw, other):
            assert await each.receive() == {"push": {"channel": CHANNEL, "pub": {"data": {"n": 1}, "offset": 1}}}
        assert REGISTRY.get_sample_value(*counted) == before + 1
        await redis.delete(keys.channel_nodes(CHANNEL))
        await streams.publish_once(CHANNEL, "m2", b'{"n":2}', "m2 1 2")
        gateway._hub._unsettle(CHANNEL)
        for each in (raw, other):
            assert await each.receive() == {"push": {"channel": CHANNEL, "pub": {"data": {"n": 2}, "offset": 2}}}
        assert REGISTRY.get_sample_value(*counted) == before + 2
        await raw.send({"id": 2, "history": {"channel": CHANNEL, "limit": -1}})
        kept = (await raw.receive())["history"]["publications"]
    assert kept == [{"data": {"n": 1}, "offset": 1}, {"data": {"n": 2}, "offset": 2}]


class _Publisher:
    """Publishes what the subscription that is there gets at once, and 3 and 4 while another one joins the channel:
    before its answer is read from the store and after."""

    def __init__(self, gateway: Gateway, streams: ChannelStreams, monkeypatch: pytest.MonkeyPatch) -> None:
        self._hub = gateway._hub
        self._streams = streams
        self._monkeypatch = monkeypatch

    async def publish(self, data: bytes) -> None:
        at = await self._streams.publish(CHANNEL, data)
        feed = self._hub._feeds[CHANNEL]
        await until(lambda: feed.position == at, "the subscription that is there has got it")

    async def begin(self) -> str:
        """The epoch."""
        for data in (b"1", b"2"):
            await self.publish(data)
        join_all = self._hub.join_all

        async def slowly(*asked: Any, **more: Any) -> Any:
            self._monkeypatch.setattr(self._hub, "join_all", join_all)
            await self.publish(b"3")
            try:
                return await join_all(*asked, **more)
            finally:
                await self.publish(b"4")

        self._monkeypatch.setattr(self._hub, "join_all", slowly)
        position = self._hub._feeds[CHANNEL].position
        assert position is not None
        return position.epoch


@pytest.mark.parametrize("recovering", [False, True])
async def test_a_subscription_of_the_sdk_has_no_hole(
    gateway: Gateway, streams: ChannelStreams, token: str, monkeypatch: pytest.MonkeyPatch, recovering: bool
) -> None:
    """To a channel of the client's token: what follows the position that it is told, or asked for, it gets, in order
    and once. Before the answer the SDK gives everything to the client's own handler."""
    publisher = _Publisher(gateway, streams, monkeypatch)
    offsets: list[int] = []
    told: list[tuple[int, bool]] = []

    class Events(centrifuge.SubscriptionEventHandler):
        async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
            offsets.append(ctx.pub.offset)

        async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
            assert ctx.stream_position is not None
            told.append((ctx.stream_position.offset, ctx.recovered))

    async with Device(gateway, token) as device:
        await device.ready()
        epoch = await publisher.begin()

        async def state(_: object) -> centrifuge.StreamPosition:
            return centrifuge.StreamPosition(offset=1, epoch=epoch)

        options = {"get_state": state} if recovering else {}
        subscription = device.client.new_subscription(CHANNEL, Events(), **options)
        await subscription.subscribe()
        await subscription.ready(WITHIN_S)
        await streams.publish(CHANNEL, b"5")
        await until(lambda: offsets[-1:] == [5], "the last one has arrived")
    assert told == [(3, recovering)]
    assert offsets == ([2, 3, 4, 5] if recovering else [4, 5])
    assert device.offsets == ([1, 2] if recovering else [1, 2, 3])


async def test_a_channel_that_may_exist_is_one_to_ask_for_again(
    gateway: Gateway, backend: ScriptedBackend, token: str
) -> None:
    """100 while what there is can't be told, which SDKs try again; 102 would be their last word."""
    backend.knows_channels = False
    async with Opened(gateway) as raw:
        await raw.connect(token)
        for command in ("subscribe", "history"):
            await raw.send({"id": 2, command: {"channel": "store:s1"}})
            assert (await raw.receive())["error"]["code"] == 100
        backend.knows_channels = True
        await raw.send({"id": 3, "subscribe": {"channel": "store:s1"}})
        assert "subscribe" in await raw.receive()


@pytest.mark.parametrize("since", [None, 1])
async def test_a_channel_that_a_client_has_already_comes_once(
    gateway: Gateway, streams: ChannelStreams, token: str, monkeypatch: pytest.MonkeyPatch, since: int | None
) -> None:
    """What is published while a client subscribes to a channel of its token reaches it once, before the answer is read
    from the store and after; what it asks for again it gets besides."""
    publisher = _Publisher(gateway, streams, monkeypatch)
    async with Opened(gateway) as raw:
        await raw.connect(token)
        epoch = await publisher.begin()
        recovery = {} if since is None else {"recover": True, "epoch": epoch, "offset": since}
        await raw.send({"id": 2, "subscribe": {"channel": CHANNEL, **recovery}})
        await until(lambda: gateway._hub._feeds[CHANNEL].position == (epoch, 4), "all has been published")
        await streams.publish(CHANNEL, b"5")
        messages: list[Any] = []
        while not messages or messages[-1].get("push", {}).get("pub", {}).get("offset") != 5:
            messages.append(await raw.receive())
        await raw.send({"id": 3, "unsubscribe": {"channel": CHANNEL}})
        assert await raw.receive() == {"id": 3, "unsubscribe": {}}
    pushed = [message["push"]["pub"]["offset"] for message in messages if "push" in message]
    [answer] = [message["subscribe"] for message in messages if "subscribe" in message]
    assert pushed == ([1, 2, 3, 4, 5] if since is None else [1, 2, 4, 5])
    assert [pub["offset"] for pub in answer.get("publications", [])] == ([] if since is None else [2, 3])


@pytest.mark.parametrize("strict", [False, True])
async def test_what_cannot_be_recovered_takes_nothing_from_the_subscription_that_was_there(
    gateway: Gateway, streams: ChannelStreams, token: str, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """Whether the new one is refused for it or begins with `recovered: false`: each publication comes once."""
    publisher = _Publisher(gateway, streams, monkeypatch)
    async with Opened(gateway) as raw:
        await raw.connect(token)
        await publisher.begin()
        since = {"recover": True, "epoch": "gone", "offset": 1, "flag": 2 if strict else 0}
        await raw.send({"id": 2, "subscribe": {"channel": CHANNEL, **since}})
        messages = [await raw.receive() for _ in range(5)]
    answer = next(message for message in messages if "push" not in message)
    assert answer["error"]["code"] == 112 if strict else not answer["subscribe"].get("recovered")
    assert [message["push"]["pub"]["offset"] for message in messages if "push" in message] == [1, 2, 3, 4]


async def test_a_store_that_is_away_takes_nothing_from_the_subscription_that_was_there(
    gateway: Gateway, streams: ChannelStreams, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that can't be joined just now is one to ask for again; meanwhile it is as before."""
    publisher = _Publisher(gateway, streams, monkeypatch)

    async def away(*_: object) -> None:
        raise Unavailable("the store is away")

    async with Opened(gateway) as raw:
        await raw.connect(token)
        await publisher.begin()
        with monkeypatch.context() as patched:
            patched.setattr(gateway._hub._streams, "attend", away)
            await raw.send({"id": 2, "subscribe": {"channel": CHANNEL}})
            messages = [await raw.receive() for _ in range(5)]
    assert [message["error"]["code"] for message in messages if "error" in message] == [100]
    assert [message["push"]["pub"]["offset"] for message in messages if "push" in message] == [1, 2, 3, 4]


async def test_staff_publish_to_their_store(start_gateway: StartGateway, tokens: Tokens, token: str) -> None:
    """A tablet reaches its store's other tablets. Who may not, gets 103; what is too much for them, 106; over the limit
    of events, 111.
    """
    gateway = await start_gateway(events_per_minute=2)
    tablet = tokens.mint("ann", "staff", ttl_s=600, channels=("staff:s1",))
    async with Device(gateway, tablet) as device, Device(gateway, tablet) as other, Device(gateway, token) as phone:
        for each in (device, other, phone):
            await each.ready()
        await device.client.publish("staff:s1", {"kind": "note", "text": "till 3"})
        await until(lambda: other.publications and device.publications, "it has arrived")
        outcomes = []
        for who, channel, data in (
            (device, "staff:s2", 1),
            (device, "store:s1", 1),
            (phone, CHANNEL, 1),
            (phone, "store:s1", 1),
            (device, "staff:s1", "x" * 20_000),
            (device, "staff:s1", 2),
            (device, "staff:s1", 3),
        ):
            try:
                await who.client.publish(channel, data)
                outcomes.append(0)
            except centrifuge.ReplyError as error:
                outcomes.append(error.code)
        await other.has(2)
    assert outcomes == [103, 103, 103, 103, 106, 0, 111]
    assert other.publications == [("staff:s1", 1, {"kind": "note", "text": "till 3"}), ("staff:s1", 2, 2)]


async def test_what_others_could_not_read_is_not_published(
    gateway: Gateway, streams: ChannelStreams, tokens: Tokens
) -> None:
    """A number of more digits than decoders take would end the listeners' SDKs: error 107."""
    async with Opened(gateway) as raw:
        await raw.connect(tokens.mint("ann", "staff", ttl_s=600, channels=("staff:s1",)))
        await raw.connection.send('{"id":2,"publish":{"channel":"staff:s1","data":' + "1" * 5_000 + "}}")
        assert (await raw.receive())["error"] == {"code": 107, "message": "bad request"}
    assert (await streams.read("staff:s1", None)).position.offset == 0


async def test_history_is_read_by_those_who_may_listen(gateway: Gateway, streams: ChannelStreams, token: str) -> None:
    """The last ones, those after a position, or only where the channel stands; 112 for a position that is lost."""
    for n in range(1, 6):
        await streams.publish(CHANNEL, b"%d" % n)
    async with Device(gateway, token) as device:
        await device.ready()
        history = device.client.history
        top = await history(CHANNEL, limit=0)
        assert (top.publications, top.offset) == ([], 5)
        everything = await history(CHANNEL, limit=-1)
        newest = await history(CHANNEL, limit=2, reverse=True)
        after = await history(CHANNEL, limit=2, since=centrifuge.StreamPosition(offset=2, epoch=top.epoch))
        found = [[(pub.offset, pub.data) for pub in part.publications] for part in (everything, newest, after)]
        assert found == [[(n, n) for n in range(1, 6)], [(5, 5), (4, 4)], [(3, 3), (4, 4)]]
        outcomes = []
        for channel, epoch in ((CHANNEL, "another"), ("customer:c2", top.epoch), ("staff:s1", top.epoch)):
            with pytest.raises(centrifuge.ReplyError) as caught:
                await history(channel, limit=-1, since=centrifuge.StreamPosition(offset=2, epoch=epoch))
            outcomes.append(caught.value.code)
    assert outcomes == [112, 103, 103]


async def test_presence_names_the_devices_of_a_customer(gateway: Gateway, tokens: Tokens, token: str) -> None:
    """A customer sees their own devices, staff their store's; nobody sees who listens to a public channel."""
    async with Device(gateway, token) as phone, Opened(gateway) as tablet:
        await phone.ready()
        second = (await tablet.connect(token))["connect"]["client"]
        await tablet.send({"id": 2, "subscribe": {"channel": "store:s1"}})
        await tablet.receive()
        clients = (await phone.client.presence(CHANNEL)).clients
        assert second in clients
        assert {info.user for info in clients.values()} == {"c1"}
        stats = await phone.client.presence_stats(CHANNEL)
        assert (len(clients), stats.num_clients, stats.num_users) == (2, 2, 1)
        outcomes = []
        for channel in ("customer:c2", "staff:s1", "store:s1", "zone:z1"):
            with pytest.raises(centrifuge.ReplyError) as caught:
                await phone.client.presence(channel)
            outcomes.append(caught.value.code)
        await tablet.connection.close()
        async with asyncio.timeout(10):
            while (await phone.client.presence_stats(CHANNEL)).num_clients == 2:
                await asyncio.sleep(0.01)
    assert outcomes == [103, 103, 108, 108]


async def test_a_refresh_changes_what_a_client_listens_to(
    gateway: Gateway, streams: ChannelStreams, tokens: Tokens
) -> None:
    """Channels that a new token adds are joined, those it lacks are left; SDKs are told, and the rest goes on."""

    class Tablet(Device):
        async def on_unsubscribed(self, ctx: centrifuge.ServerUnsubscribedContext) -> None:
            self.log.append(("unsubscribed", ctx.channel))

    async def fetch() -> str:
        return tokens.mint("ann", "staff", ttl_s=600, channels=("staff:s1", "staff:s3"))

    first = tokens.mint("ann", "staff", ttl_s=1, channels=("staff:s1", "staff:s2"))
    async with Tablet(gateway, first, get_token=fetch) as tablet:
        await tablet.ready()
        await until(lambda: tablet.said("unsubscribed"), "the tablet has left")
        await until(lambda: len(tablet.said("subscribed")) == 3, "the tablet has joined")
        for channel in ("staff:s2", "staff:s1", "staff:s3"):
            await streams.publish(channel, b"1")
        await tablet.has(2)
        await until(lambda: "staff:s2" not in gateway._hub._feeds, "nobody here listens to the one that was left")
    assert tablet.said("unsubscribed") == [("unsubscribed", "staff:s2")]
    assert tablet.said("subscribed")[2][1] == "staff:s3"
    assert tablet.publications == [("staff:s1", 1, 1), ("staff:s3", 1, 1)]
    assert tablet.said("connecting")[1:] == []


async def test_a_refresh_is_for_the_same_user(gateway: Gateway, tokens: Tokens, token: str) -> None:
    """A token of another user, or of the same name in another role, ends the connection for good."""
    for other in (
        tokens.mint("c2", "customer", ttl_s=600),
        tokens.mint("c1", "staff", ttl_s=600, channels=("staff:s1",)),
        "no.such.token",
    ):
        async with Opened(gateway) as raw:
            await raw.connect(token)
            await raw.send({"id": 2, "refresh": {"token": other}})
            await raw.assert_closed(codes.INVALID_TOKEN)


async def test_a_user_has_so_many_connections(start_gateway: StartGateway, tokens: Tokens, token: str) -> None:
    """The oldest connection goes, for good, when there are too many of one user; nobody else's does."""
    gateway = await start_gateway(connections_per_user=2)
    async with Device(gateway, token) as oldest:
        await oldest.ready()
        async with Opened(gateway) as staff, Opened(gateway) as second, Opened(gateway) as third:
            await staff.connect(tokens.mint("c1", "staff", ttl_s=600, channels=("staff:s1",)))
            await second.connect(token)
            assert oldest.said("disconnected") == []
            await third.connect(token)
            await until(lambda: oldest.said("disconnected"), "the oldest is gone")
            for raw in (staff, second, third):
                await raw.send({"id": 9, "ping": {}})
                assert await raw.receive() == {"id": 9, "ping": {}}
    assert oldest.said("disconnected") == [("disconnected", 3504, "connection limit")]
    await until(lambda: gateway._users._connections == {}, "nobody is left")


async def test_a_logout_ends_every_connection_of_the_customer(
    start_gateway: StartGateway, streams: ChannelStreams, tokens: Tokens, token: str
) -> None:
    """Every node closes the customer's devices, for good; tokens from before are refused, and later ones are not."""
    one, two = await start_gateway("node-1"), await start_gateway("node-2")
    staff = tokens.mint("c1", "staff", ttl_s=600, channels=("staff:s1",))
    async with Device(one, token) as phone, Device(two, token) as tablet, Device(one, staff) as colleague:
        for each in (phone, tablet, colleague):
            await each.ready()
        await streams.revoke("c1", SystemClock().now_ms())
        await streams.disconnect("c1", *codes.FORCED)
        for each in (phone, tablet):
            await until(lambda: each.said("disconnected"), "the customer's devices are gone")  # noqa: B023
            assert each.said("disconnected") == [("disconnected", 3503, "force disconnect")]
        assert colleague.said("disconnected") == []
        async with Opened(one) as raw:
            assert (await raw.connect(staff))["connect"]
        async with Opened(two) as raw:
            assert (await raw.connect(token))["error"]["code"] == 109
        later = Tokens(SECRET, ManualClock(SystemClock().now_ms() + 2_000)).mint("c1", "customer", ttl_s=600)
        async with Opened(two) as raw:
            assert (await raw.connect(later))["connect"]


async def test_a_logout_ends_a_connection_that_is_just_being_made(
    slow_store: SlowStore, tokens: Tokens, backend: ScriptedBackend, token: str
) -> None:
    """The word of a logout that comes while a connect waits for the store is not lost."""
    async with Redis.from_url(slow_store.url) as redis, AsyncExitStack() as stopping:
        streams = ChannelStreams(redis, "node-1", SystemClock())
        gateway = Gateway(GatewaySettings(**QUICK), tokens, streams, backend, SystemClock())  # type: ignore[arg-type]
        await gateway.start()
        stopping.push_async_callback(gateway.stop)
        slow_store.sleep()
        async with Opened(gateway) as raw:
            await raw.send({"id": 1, "connect": {"token": token}})
            await until(lambda: gateway._hub._feeds, "the client is joining")
            gateway._control(b'{"disconnect":{"user":"c1","code":3503,"reason":"force disconnect"}}')
            await raw.assert_closed(codes.FORCED)
        slow_store.wake()
        await until(lambda: not gateway._hub._feeds, "its channel is left")
        assert gateway._users._connections == {}


async def test_a_logout_reaches_who_subscribes_or_refreshes(
    gateway: Gateway, streams: ChannelStreams, redis: Redis, tokens: Tokens, token: str
) -> None:
    """Where the word of a logout went lost, the connection ends with the next thing that it asks of the store; when it
    comes back it hears that it needs another token.
    """
    wider = tokens.mint("c1", "customer", ttl_s=600, channels=("demo:live",))
    for command in ({"subscribe": {"channel": "store:s1"}}, {"refresh": {"token": wider}}):
        async with Opened(gateway) as raw:
            await raw.connect(token)
            await streams.revoke("c1", SystemClock().now_ms())
            await raw.send({"id": 2, **command})
            await raw.assert_closed(codes.EXPIRED)
        await redis.delete(keys.revoked("c1"))
