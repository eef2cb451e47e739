"""The gateway as clients see it."""

import asyncio
import contextlib
import json
from typing import Any

import centrifuge
import httpx
import pytest
import websockets
from redis.asyncio import Redis

from channels.gateway import codes
from channels.gateway.server import Gateway
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from nearcast import keys
from nearcast.metrics import CONNECTIONS, DISCONNECTS
from tests.channels.gateway.conftest import StartGateway
from tests.channels.gateway.support import Device, Opened, ScriptedBackend, until

CHANNEL = "customer:c1"


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.mint("c1", "customer", ttl_s=600)


async def test_a_publication_reaches_the_sdk_with_its_offset(
    gateway: Gateway, streams: ChannelStreams, token: str
) -> None:
    """A customer's token subscribes to their own channel; what is published there arrives with data and offset."""
    async with Device(gateway, token) as device:
        await device.ready()
        assert device.said("subscribed") == [("subscribed", CHANNEL, False, False, 0)]
        assert await streams.connected(CHANNEL)
        await streams.publish(CHANNEL, b'{"title": "Half price", "umlaut": "\xc3\xbc"}')
        await streams.publish(CHANNEL, b'{\n  "pretty": [1,\n 2]\n}')
        await until(lambda: len(device.publications) == 2, "both have arrived")
    assert device.publications == [
        (CHANNEL, 1, {"title": "Half price", "umlaut": "ü"}),
        (CHANNEL, 2, {"pretty": [1, 2]}),
    ]


async def test_staff_get_only_the_channels_of_their_token(
    gateway: Gateway, streams: ChannelStreams, tokens: Tokens
) -> None:
    """A staff token subscribes to the store's channel and to no channel of a customer with the same name."""
    staff = tokens.mint("c1", "staff", ttl_s=600, channels=("staff:s1",))
    async with Device(gateway, staff) as device:
        await device.ready()
        await streams.publish(CHANNEL, b'"for the customer"')
        await streams.publish("staff:s1", b'"for staff"')
        await until(lambda: device.publications, "something has arrived")
    assert device.publications == [("staff:s1", 1, "for staff")]


async def test_rpcs_answer_or_say_why_not(gateway: Gateway, token: str) -> None:
    """An rpc returns the backend's JSON; refusals carry HTTP's code and a reason; faults ask to try again."""
    async with Device(gateway, token) as device:
        await device.ready()
        assert (await device.client.rpc("echo", {"a": [1, None]})).data == {"a": [1, None]}
        who = (await device.client.rpc("whoami", {})).data
        assert who.pop("client")
        assert who == {"sub": "c1", "role": "customer", "channels": [CHANNEL]}
        outcomes = {}
        for method in ("gone", "away", "bug"):
            with pytest.raises(centrifuge.ReplyError) as caught:
                await device.client.rpc(method, {})
            outcomes[method] = (caught.value.code, caught.value.message, caught.value.temporary)
    assert outcomes == {
        "gone": (410, "coupon_expired", False),
        "away": (100, "internal server error", True),
        "bug": (100, "internal server error", True),
    }


async def test_replies_carry_the_ids_of_their_commands_in_order(gateway: Gateway, token: str) -> None:
    """Commands of one frame are answered in order, each with its own id, a failing one included."""
    async with Opened(gateway) as raw:
        await raw.send(
            {"id": 7, "connect": {"token": token}},
            {"id": 9, "rpc": {"method": "echo", "data": 1}},
            {"id": 8, "rpc": {"method": "gone"}},
            {"id": 12, "ping": {}},
            {"id": 13, "sub_refresh": {"channel": CHANNEL}},
            {"id": 14, "no_such_command": {}},
        )
        replies = [await raw.receive() for _ in range(6)]
    assert [(reply["id"], *(set(reply) - {"id"})) for reply in replies] == [
        (7, "connect"),
        (9, "rpc"),
        (8, "error"),
        (12, "ping"),
        (13, "error"),
        (14, "error"),
    ]
    assert [replies[4]["error"]["code"], replies[5]["error"]["code"]] == [108, 104]


async def test_a_slow_rpc_holds_up_nobody_else(gateway: Gateway, tokens: Tokens, backend: ScriptedBackend) -> None:
    """While one client's rpc is running, another client's are answered."""
    async with Opened(gateway) as one, Opened(gateway) as other:
        await one.connect(tokens.mint("c1", "customer", ttl_s=600))
        await other.connect(tokens.mint("c2", "customer", ttl_s=600))
        await one.send({"id": 2, "rpc": {"method": "wait"}})
        await other.send({"id": 2, "rpc": {"method": "echo", "data": 5}})
        assert await other.receive() == {"id": 2, "rpc": {"data": 5}}
        backend.gate.set()
        assert await one.receive() == {"id": 2, "rpc": {"data": "waited"}}


async def test_sends_reach_the_backend_in_order(gateway: Gateway, token: str, backend: ScriptedBackend) -> None:
    """Sends are handed over in order with the sender's identity; one that can't be taken doesn't disturb the rest."""
    async with Opened(gateway) as raw:
        await raw.connect(token)
        await raw.send({"send": {"data": 1}}, {"send": {"data": "away"}}, {"send": {"data": 2}})
        await until(lambda: len(backend.events) == 2, "the events are there")
    assert [(identity.sub, data) for identity, data in backend.events] == [("c1", 1), ("c1", 2)]


async def test_events_over_the_limit_are_refused(
    start_gateway: StartGateway, token: str, backend: ScriptedBackend
) -> None:
    """Past the limit an event rpc gets error 111 (temporary) and a send is dropped; other rpcs go on."""
    gateway = await start_gateway(events_per_minute=3)
    async with Opened(gateway) as raw:
        await raw.connect(token)
        await raw.send(*({"send": {"data": n}} for n in range(5)))
        await raw.send({"id": 2, "rpc": {"method": "event", "data": {}}}, {"id": 3, "rpc": {"method": "echo"}})
        refused, answered = await raw.receive(), await raw.receive()
    assert refused["error"] == {"code": 111, "message": "too many requests", "temporary": True}
    assert answered == {"id": 3, "rpc": {"data": None}}
    assert [data for _, data in backend.events] == [0, 1, 2]


async def test_subscribing_is_allowed_to_channels_of_the_token_only(
    gateway: Gateway, streams: ChannelStreams, token: str
) -> None:
    """A client-side subscription recovers and goes on live; a channel of somebody else is refused with 103."""
    first = await streams.publish(CHANNEL, b'"missed"')
    async with Opened(gateway) as raw:
        await raw.connect(token)
        since = {"recover": True, "epoch": first.epoch, "offset": 0}
        await raw.send({"id": 2, "subscribe": {"channel": CHANNEL, **since}})
        reply = await raw.receive()
        await raw.send({"id": 3, "subscribe": {"channel": "customer:c2"}})
        denied = await raw.receive()
        await streams.publish(CHANNEL, b'"live"')
        live = await raw.receive()
        await raw.send({"id": 4, "unsubscribe": {"channel": CHANNEL}})
        assert await raw.receive() == {"id": 4, "unsubscribe": {}}
    assert reply["subscribe"]["recovered"] is True
    assert reply["subscribe"]["publications"] == [{"data": "missed", "offset": 1}]
    assert denied["error"]["code"] == 103
    assert live == {"push": {"channel": CHANNEL, "pub": {"data": "live", "offset": 2}}}


async def test_the_sdk_subscribes_itself(gateway: Gateway, streams: ChannelStreams, token: str) -> None:
    """The SDK's own subscription to the personal channel works beside the server-side one, each publication once."""
    got: list[tuple[int, Any]] = []

    class Listener(centrifuge.SubscriptionEventHandler):
        async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
            got.append((ctx.pub.offset, ctx.pub.data))

    async with Device(gateway, token) as device:
        await device.ready()
        subscription = device.client.new_subscription(CHANNEL, Listener())
        await subscription.subscribe()
        await subscription.ready(5)
        for n in range(3):
            await streams.publish(CHANNEL, json.dumps(n).encode())
        await until(lambda: len(got) == 3, "all have arrived")
    assert got == [(1, 0), (2, 1), (3, 2)]
    assert device.publications == []


async def test_pings_are_answered_by_the_sdk(start_gateway: StartGateway, token: str) -> None:
    """A client that answers pings stays; one that doesn't is closed with 3012."""
    gateway = await start_gateway(ping_interval_s=0.1, pong_timeout_s=0.3)
    async with Device(gateway, token) as device, Opened(gateway) as silent:
        await silent.connect(token)
        await silent.assert_closed(codes.NO_PONG)
        await device.ready()
        assert device.said("connecting")[1:] == []


async def test_a_connection_ends_with_its_token(start_gateway: StartGateway, redis: Redis, tokens: Tokens) -> None:
    """A connection is closed with 3005 when its token has run out, unless the client refreshed it."""
    gateway = await start_gateway()
    dying = tokens.mint("c1", "customer", ttl_s=-4)
    async with Opened(gateway) as stays, Opened(gateway) as ends, Opened(gateway) as cheats:
        for raw in (stays, ends, cheats):
            await raw.connect(dying)
        await stays.send({"id": 2, "refresh": {"token": tokens.mint("c1", "customer", ttl_s=600)}})
        reply = await stays.receive()
        await cheats.send({"id": 2, "refresh": {"token": tokens.mint("c2", "customer", ttl_s=600)}})
        await cheats.assert_closed(codes.INVALID_TOKEN)
        await ends.assert_closed(codes.EXPIRED)
        await stays.send({"id": 3, "ping": {}})
        assert await stays.receive() == {"id": 3, "ping": {}}
    assert reply["refresh"]["expires"] is True
    assert 580 <= reply["refresh"]["ttl"] <= 600


async def test_the_sdk_fetches_a_new_token_when_the_old_one_has_expired(gateway: Gateway, tokens: Tokens) -> None:
    """An expired token is answered with error 109; the SDK then asks the app for another and connects."""

    async def fetch() -> str:
        return tokens.mint("c1", "customer", ttl_s=600)

    async with Device(gateway, tokens.mint("c1", "customer", ttl_s=-60), get_token=fetch) as device:
        await device.ready()
    assert "109" in device.said("error")[0][2] or "token expired" in device.said("error")[0][2]


async def test_a_bad_token_ends_the_sdk_for_good(gateway: Gateway) -> None:
    """A token signed by somebody else is refused with 3500, and the SDK doesn't come back."""
    async with Device(gateway, "no.such.token") as device:
        await until(lambda: device.said("disconnected"), "the SDK gives up")
    assert device.said("disconnected") == [("disconnected", 3500, "invalid token")]


async def test_a_client_without_a_token_in_time_is_closed(start_gateway: StartGateway) -> None:
    """A socket that says nothing is closed with 3502."""
    gateway = await start_gateway(connect_timeout_s=0.2)
    async with Opened(gateway) as raw:
        await raw.assert_closed(codes.STALE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "garbage",
        "[]",
        "null",
        "{}x",
        '{"id":1}',
        '{"id":-1,"connect":{}}',
        '{"id":1,"rpc":{"method":"echo"}}',
        "{}",
        '{"send":{"data":1}}',
        "[" * 60_000,
        '{"id":1,"connect":' + '{"subs":' * 5_000,
        '{"id":1,"connect":{"token":5}}',
    ],
    ids=lambda text: text[:20] or "empty",
)
async def test_garbage_is_a_bad_request(gateway: Gateway, text: str) -> None:
    """What is not a connect command first, is closed with 3501."""
    async with Opened(gateway) as raw:
        await raw.connection.send(text)
        await raw.assert_closed(codes.BAD_REQUEST)


async def test_no_frame_harms_the_gateway(gateway: Gateway, streams: ChannelStreams, token: str) -> None:
    """A binary frame, a second connect and broken UTF-8 close only the connection that they came on."""
    async with Device(gateway, token) as healthy:
        await healthy.ready()
        async with Opened(gateway) as raw:
            await raw.connection.send(b"\x01\x02")
            await raw.assert_closed(codes.BAD_REQUEST)
        async with Opened(gateway) as raw:
            await raw.connect(token)
            await raw.send({"id": 2, "connect": {"token": token}})
            await raw.assert_closed(codes.BAD_REQUEST)
        async with Opened(gateway) as raw:
            await raw.connection.send(b"\xff\xfe", text=True)
            assert (await raw.closed_with())[0] == 1007
        await streams.publish(CHANNEL, b"1")
        await until(lambda: healthy.publications, "the healthy client still gets its publications")


@pytest.mark.parametrize("size", [65 * 1024, 100 * 1024 * 1024])
async def test_a_frame_that_is_too_large_is_not_read(start_gateway: StartGateway, size: int) -> None:
    """A frame over 64 KiB is refused by its header (1009), however much follows; the client is cut off."""
    gateway = await start_gateway(connect_timeout_s=0.5)
    before = codes_closed(codes.Disconnect(1009, ""))
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x81\xff" + size.to_bytes(8, "big") + b"mask")
    chunk = b"x" * 65536
    with contextlib.suppress(ConnectionError):
        for _ in range(size // len(chunk)):
            writer.write(chunk)
            await writer.drain()
        answer = await reader.read(4)
        assert int.from_bytes(answer[2:4], "big") == 1009
    await until(lambda: gateway_clients(gateway) == 0, "the client is cut off")
    writer.close()
    assert codes_closed(codes.Disconnect(1009, "")) == before + 1


async def test_http_and_origins(start_gateway: StartGateway, token: str) -> None:
    """/health answers HTTP; pages of unknown origin and Protobuf clients are refused, known pages and apps are not."""
    gateway = await start_gateway(origins=("https://shop.example",))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", trust_env=False) as http:
        assert (await http.get("/health")).text == "ok\n"
        assert (await http.get("/")).status_code == 404
        assert (await http.get("/connection/websocket")).status_code == 426
    for options in ({"origin": "https://shop.example.evil"}, {"subprotocols": ["centrifuge-protobuf"]}):
        with pytest.raises(websockets.InvalidStatus):
            async with Opened(gateway, **options):
                pass
    for options in ({"origin": "https://shop.example"}, {}, {"subprotocols": ["centrifuge-json"]}):
        async with Opened(gateway, **options) as raw:
            assert "connect" in await raw.connect(token)


async def test_a_slow_client_is_closed_and_holds_up_nobody(
    start_gateway: StartGateway, streams: ChannelStreams, token: str
) -> None:
    """A client that stops reading is closed (3008) once its backlog is full; others get every publication."""
    gateway = await start_gateway(backlog_bytes=64 * 1024)
    before = codes_closed(codes.SLOW)
    async with Device(gateway, token) as healthy, Opened(gateway) as slow:
        await healthy.ready()
        await slow.connect(token)
        slow.connection.transport.pause_reading()
        count, large = 0, json.dumps("x" * 60_000).encode()
        while codes_closed(codes.SLOW) == before:
            await streams.publish(CHANNEL, large)
            count += 1
            await until(lambda: len(healthy.publications) == count, "the healthy client has it")  # noqa: B023
            assert count < 1000
        await until(lambda: gateway_clients(gateway) == 1, "the slow client is cut off")
        await streams.publish(CHANNEL, b'"after"')
        await until(lambda: len(healthy.publications) == count + 1, "the healthy client goes on")
    assert healthy.offsets == list(range(1, count + 2))


async def test_shutdown_lets_commands_end_and_sends_clients_elsewhere(
    start_gateway: StartGateway, streams: ChannelStreams, redis: Redis, token: str, backend: ScriptedBackend
) -> None:
    """On stop a running rpc is still answered, then every client is closed with 3001; the node signs off."""
    gateway = await start_gateway()
    async with Opened(gateway) as busy, Opened(gateway) as idle:
        await busy.connect(token)
        await idle.connect(token)
        await busy.send({"id": 2, "rpc": {"method": "wait"}})
        await until(lambda: backend.waiting, "the rpc is running")
        stopping = asyncio.create_task(gateway.stop())
        await idle.assert_closed(codes.SHUTDOWN)
        backend.gate.set()
        assert await busy.receive() == {"id": 2, "rpc": {"data": "waited"}}
        await busy.assert_closed(codes.SHUTDOWN)
        await stopping
    assert not await streams.connected(CHANNEL)
    assert await redis.zcard(keys.channel_nodes(CHANNEL)) == 0


async def test_connections_are_counted(gateway: Gateway, token: str) -> None:
    """The gauge of open connections rises and falls with them."""
    before = CONNECTIONS._value.get()
    async with Opened(gateway) as raw:
        await raw.connect(token)
        assert CONNECTIONS._value.get() == before + 1
    await until(lambda: CONNECTIONS._value.get() == before, "it is down again")


def codes_closed(disconnect: codes.Disconnect) -> float:
    return float(DISCONNECTS.labels(str(disconnect.code))._value.get())


def gateway_clients(gateway: Gateway) -> int:
    return len(gateway._clients)
