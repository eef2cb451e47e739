"""Sockets that do what no SDK does: odd frames, silence, floods, half-closed connections, too many of them."""

import asyncio
import contextlib
import json
import random
import resource
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import httpx
import pytest
from prometheus_client import REGISTRY
from websockets.frames import Close, Frame, Opcode

from channels.gateway import codes
from channels.gateway.client import envelope_of
from channels.gateway.clients import Clients
from channels.gateway.limits import affordable_connections, cut_off_above
from channels.gateway.publications import Publication
from channels.gateway.server import Gateway
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from channels.gateway.transport import Envelope
from channels.gateway.wire import CONNECT_PATH, MAX_ASIDES, MAX_WAITING, Wire
from nearcast.metrics import CONNECTIONS
from tests.channels.gateway.conftest import StartGateway
from tests.channels.gateway.support import WITHIN_S, Device, Opened, ScriptedBackend, until

CHANNEL = "customer:c1"
HANDSHAKE = (
    f"GET {CONNECT_PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


class Socket:
    """A TCP connection that speaks WebSocket by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.tcp = cast("asyncio.Transport", writer.transport)

    async def shake_hands(self, *headers: str) -> int:
        """The status of the answer."""
        self.writer.write((HANDSHAKE + "".join(f"{header}\r\n" for header in headers) + "\r\n").encode())
        return await self.status()

    async def status(self) -> int:
        async with asyncio.timeout(WITHIN_S):
            return int((await self.reader.readuntil(b"\r\n\r\n")).split()[1])

    def send(self, opcode: Opcode, data: bytes, *, fin: bool = True) -> None:
        self.writer.write(Frame(opcode, data, fin).serialize(mask=True))

    def say(self, *commands: object) -> None:
        self.send(Opcode.TEXT, "\n".join(json.dumps(command) for command in commands).encode())

    async def receive(self) -> tuple[int, bytes]:
        """Opcode and data of the next frame."""
        async with asyncio.timeout(WITHIN_S):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                length = int.from_bytes(await self.reader.readexactly(2), "big")
            elif length == 127:
                length = int.from_bytes(await self.reader.readexactly(8), "big")
            return first & 0x0F, await self.reader.readexactly(length)

    async def hear(self) -> Any:
        """The next message other than a ping, of which the first may come at any time."""
        data = b"{}"
        while data == b"{}":
            opcode, data = await self.receive()
            assert opcode == Opcode.TEXT
        return json.loads(data)

    async def closed_with(self) -> int:
        """The code of the close frame, after whatever came before it."""
        while True:
            opcode, data = await self.receive()
            if opcode == Opcode.CLOSE:
                return Close.parse(data).code

    async def ended(self) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


@contextlib.asynccontextmanager
async def connected(gateway: Gateway, source: str = "127.0.0.1") -> AsyncIterator[Socket]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(source, 0))
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[Socket]:
    async with connected(gateway) as sock:
        assert await sock.shake_hands() == 101
        yield sock


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.mint("c1", "customer", ttl_s=600)


def wire_of(gateway: Gateway) -> Wire:
    [wire] = gateway._door.wires
    return wire


async def assert_nothing_is_left(gateway: Gateway) -> None:
    door = gateway._door
    await until(lambda: not door.wires and not door.fallback.open, "the connection has ended")
    assert (len(door.clients), len(door.addresses), door.turnstile._joining) == (0, 0, 0)
    assert not gateway._wheel._slot_of


def masked(first: int, data: bytes = b"") -> bytes:
    """A frame whose first byte says anything at all; with a mask that changes nothing."""
    return bytes([first, 0x80 | len(data)]) + b"\0\0\0\0" + data


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),
        (masked(0xC1, b"{}"), 1002),
        (masked(0x83), 1002),
        (masked(0x8B), 1002),
        (masked(0x09), 1002),
        (b"\x89\xfe\x00\x7e" + b"\0" * 130, 1002),
        (masked(0x80, b"{}"), 1002),
        (masked(0x01, b"{") + masked(0x81, b"}"), 1002),
        (masked(0x01, b"{") + masked(0x88, b"\x03\xe8"), 1002),
        (masked(0x88, b"\x03"), 1002),
        (masked(0x88, b"\x03\xed"), 1002),
        (masked(0x88, b"\x03\xe8\xff"), 1007),
        (masked(0x81, b"\xff"), 1007),
        (masked(0x01, b"\xc3") + masked(0x80, b"("), 1007),
        (masked(0x82, b"{}"), 3501),
        (masked(0x02, b"{") + masked(0x80, b"}"), 3501),
        (masked(0x81), 3501),
    ],
    ids=[
        "no mask",
        "reserved bit",
        "unknown data",
        "unknown control",
        "control in parts",
        "long control",
        "end of nothing",
        "two at a time",
        "close within a message",
        "half a close code",
        "forbidden close code",
        "close reason not UTF-8",
        "not UTF-8",
        "not UTF-8 in parts",
        "binary",
        "binary in parts",
        "empty",
    ],
)
async def test_a_frame_against_the_rules_ends_its_connection_only(
    start_gateway: StartGateway, streams: ChannelStreams, token: str, data: bytes, code: int
) -> None:
    """It is closed with the code of RFC 6455 or of the protocol, and cut off though it never answers that."""
    gateway = await start_gateway(connect_timeout_s=60)
    async with opened(gateway) as healthy:
        healthy.say({"id": 1, "connect": {"token": token}})
        await healthy.hear()
        async with opened(gateway) as hostile:
            hostile.writer.write(data)
            assert await hostile.closed_with() == code
            await until(lambda: len(gateway._door.wires) == 1, "it is cut off")
        await streams.publish(CHANNEL, b"1")
        assert (await healthy.hear())["push"]["pub"]["data"] == 1
    await assert_nothing_is_left(gateway)


async def test_a_message_may_come_in_parts_and_bytes(gateway: Gateway, token: str) -> None:
    """Fragments make one message, a ping between them is answered at once; the network may cut anywhere."""
    async with opened(gateway) as sock:
        command = json.dumps({"id": 1, "connect": {"token": token}, "ü": "ü"}, ensure_ascii=False).encode()
        half = command.index(b"\xc3") + 1
        sock.send(Opcode.TEXT, command[:half], fin=False)
        sock.send(Opcode.PING, b"there?")
        sock.send(Opcode.CONT, b"", fin=False)
        assert await sock.receive() == (Opcode.PONG, b"there?")
        sock.send(Opcode.CONT, command[half:])
        assert "connect" in await sock.hear()
    async with connected(gateway) as sock:
        sock.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HANDSHAKE.encode() + b"\r\n":
            sock.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert await sock.status() == 101
        for byte in Frame(Opcode.TEXT, command).serialize(mask=True):
            sock.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert "connect" in await sock.hear()
    await assert_nothing_is_left(gateway)


async def test_parts_together_may_not_be_too_large(gateway: Gateway, token: str) -> None:
    """64 KiB is the limit of the whole message (1009), however it is cut."""
    async with opened(gateway) as sock:
        sock.send(Opcode.TEXT, b"x" * 40_000, fin=False)
        sock.send(Opcode.CONT, b"x" * 40_000)
        assert await sock.closed_with() == 1009


@pytest.mark.parametrize(
    "aside",
    [
        masked(0x89),
        masked(0x8A),
        masked(0x00),
    ],
    ids=["pings", "pongs", "empty parts"],
)
async def test_a_flood_of_frames_without_a_message_is_cut_off(gateway: Gateway, token: str, aside: bytes) -> None:
    """So many between two messages are allowed, one more is a bad request."""
    begin, end = (masked(0x01), masked(0x80, b"{}")) if aside == masked(0x00) else (b"", masked(0x81, b"{}"))
    asides = aside * (MAX_ASIDES - (2 if begin else 0))
    async with opened(gateway) as sock:
        sock.say({"id": 1, "connect": {"token": token}})
        for _ in range(3):
            sock.writer.write(begin + asides + end)
        sock.say({"id": 2, "ping": {}})
        while (await sock.receive())[1] != b'{"id":2,"ping":{}}':
            pass
        sock.writer.write(begin + asides + aside * 2)
        assert await sock.closed_with() == codes.BAD_REQUEST.code


async def test_a_client_may_say_goodbye(gateway: Gateway, token: str, backend: ScriptedBackend) -> None:
    """Its close frame comes back, the connection ends; what it said before is still carried out."""
    async with opened(gateway) as sock:
        sock.say({"id": 1, "connect": {"token": token}})
        await sock.hear()
        sock.say({"send": {"data": 1}})
        sock.send(Opcode.CLOSE, Close(1000, "bye").serialize())
        assert await sock.closed_with() == 1000
        await sock.ended()
        await until(lambda: backend.events, "its last event has arrived")
    await assert_nothing_is_left(gateway)


@pytest.mark.parametrize("how", ["half-closed", "cut"])
async def test_a_client_that_goes_without_a_word_leaves_nothing(
    gateway: Gateway, token: str, backend: ScriptedBackend, how: str
) -> None:
    """Its command that is running ends first, then it has left; before the handshake there is nothing to leave."""
    before = CONNECTIONS._value.get()
    async with opened(gateway) as sock:
        sock.say({"id": 1, "connect": {"token": token}})
        await sock.hear()
        sock.say({"id": 2, "rpc": {"method": "wait"}})
        await until(lambda: backend.waiting, "the rpc is running")
        if how == "cut":
            sock.writer.transport.abort()
        else:
            sock.writer.write_eof()
            await sock.ended()
        await until(lambda: wire_of(gateway)._lost, "the gateway has noticed")
        assert len(gateway._clients) == 1
        backend.gate.set()
        await assert_nothing_is_left(gateway)
    assert CONNECTIONS._value.get() == before
    async with connected(gateway) as sock:
        sock.writer.write(b"GET /connection/web")
        sock.writer.write_eof()
        await sock.ended()
    await assert_nothing_is_left(gateway)


async def test_a_goodbye_that_nobody_reads_is_cut_off(start_gateway: StartGateway, token: str) -> None:
    """A client that closes, but doesn't take what was sent before, does not stay."""
    gateway = await start_gateway(ping_interval_s=100_000)
    async with opened(gateway) as sock:
        sock.say({"id": 1, "connect": {"token": token}})
        await sock.hear()
        sock.tcp.pause_reading()
        sock.tcp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire = wire_of(gateway)
        while wire._tcp.get_write_buffer_size() == 0:
            wire.send(b'"%b"' % (b"x" * 100_000))
            await asyncio.sleep(0)
        sock.send(Opcode.CLOSE, b"")
        await assert_nothing_is_left(gateway)
        # Nor does the kernel go on with it: the end comes at once, as a reset.
        sock.tcp.resume_reading()
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(WITHIN_S):
                await sock.reader.read()


async def test_a_busy_client_is_not_read(gateway: Gateway, token: str, backend: ScriptedBackend) -> None:
    """While a command runs only a few frames are taken from the socket; all are carried out in order afterwards."""
    async with opened(gateway) as sock:
        sock.say({"id": 1, "connect": {"token": token}})
        await sock.hear()
        sock.say({"id": 2, "rpc": {"method": "wait"}})
        await until(lambda: backend.waiting, "the rpc is running")
        for n in range(50):
            sock.say({"send": {"data": [n, "x" * 20_000]}})
        wire = wire_of(gateway)
        await until(lambda: not wire._tcp.is_reading(), "reading has stopped")
        assert len(wire._frames) == MAX_WAITING
        backend.gate.set()
        await until(lambda: len(backend.events) == 50, "all have arrived")
    assert [data[0] for _, data in backend.events] == list(range(50))


async def test_the_kernel_holds_little_for_a_client(gateway: Gateway) -> None:
    """A socket's send buffer is fixed; Linux says twice of what was asked for."""
    async with opened(gateway):
        size = wire_of(gateway)._tcp.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert size in (64 * 1024, 128 * 1024)


async def test_a_slow_client_gets_the_last_of_each_key(
    start_gateway: StartGateway, streams: ChannelStreams, token: str, redis: Any
) -> None:
    """Far more than its backlog may hold is published by key: the client that reads late gets the last of each key,
    everything without a key, in the order of offsets, and is not closed.
    """
    gateway = await start_gateway(backlog_bytes=600 * 1024, send_buffer_bytes=16 * 1024)
    async with Device(gateway, token) as watcher, opened(gateway) as slow:
        await watcher.ready()
        slow.say({"id": 1, "connect": {"token": token}})
        await slow.hear()
        slow.tcp.pause_reading()
        text = "x" * 8_000
        for n in range(500):
            key = f"shelf{n % 3}" if n % 50 else ""
            await streams.publish(CHANNEL, json.dumps([key, n, text]).encode(), key)
        await watcher.has(500)
        slow.tcp.resume_reading()
        got: list[Any] = []
        while not got or got[-1]["offset"] < 500:
            got.append((await slow.hear())["push"]["pub"])
    assert watcher.offsets == list(range(1, 501))
    offsets = [pub["offset"] for pub in got]
    assert all(one < other for one, other in pairwise(offsets))
    assert len(offsets) < 400
    assert [pub["data"][1] for pub in got if not pub["data"][0]] == list(range(0, 500, 50))
    last = {pub["data"][0]: pub["data"][1] for pub in got}
    assert last == {"": 450, "shelf0": 498, "shelf1": 499, "shelf2": 497}


@pytest.mark.parametrize("seed", range(5))
async def test_conflation_loses_only_what_was_replaced(start_gateway: StartGateway, seed: int) -> None:
    """However the client's reading stops and goes on: nothing without a key is missing, of each key the last is there,
    and nothing overtakes.
    """
    gateway = await start_gateway(send_buffer_bytes=4 * 1024, conflate_bytes=4 * 1024)
    chance = random.Random(seed)
    async with opened(gateway) as sock:
        wire = wire_of(gateway)
        sent, got = [], []

        async def read(count: int) -> None:
            got.extend([tuple(await sock.hear()) for _ in range(count)])

        for n in range(1500):
            key = chance.choice(["", "", "a", "b", "c"])
            sent.append((key, n))
            wire.send_envelope(Envelope(json.dumps([key, n, "x" * chance.randrange(3_000)]).encode(), key))
            assert wire._tcp.get_write_buffer_size() < 4 * 1024 + 3_100
            if chance.random() < 0.02 and len(got) < 20:
                await read(1)
            if chance.random() < 0.01:
                await asyncio.sleep(0)
            if wire.backlog > 100_000:
                await asyncio.wait_for(read_until_free(wire, read), WITHIN_S)
        last = dict(sent)
        wire.send(b'["end",-1]')
        while not got or got[-1][0] != "end":
            await read(1)
    numbers = [n for _, n, *_ in got[:-1]]
    assert numbers == sorted(set(numbers))
    assert [n for key, n, *_ in got if key == ""] == [n for key, n in sent if key == ""]
    assert {key: n for key, n, *_ in got[:-1]} == last
    assert len(got) < len(sent)


async def read_until_free(wire: Wire, read: Callable[[int], Any]) -> None:
    while wire.backlog > 50_000:
        await read(1)


async def test_an_address_may_have_only_so_many(start_gateway: StartGateway, token: str) -> None:
    """One more gets 429 before it has said anything, another address does not, and there is room once one has left."""
    gateway = await start_gateway(connections_per_address=2)
    async with opened(gateway) as first, opened(gateway):
        async with connected(gateway) as third:
            assert await third.status() == 429
            third.writer.write_eof()
            await third.ended()
        async with connected(gateway, "127.0.0.2") as other:
            assert await other.shake_hands() == 101
        first.writer.transport.abort()
        await until(lambda: len(gateway._clients) == 1, "the first and the other have left")
        async with opened(gateway):
            pass
    await assert_nothing_is_left(gateway)


def _refused(status: str, reason: str) -> float:
    labels = {"status": status, "reason": reason}
    return REGISTRY.get_sample_value("nearcast_refused_connections_total", labels) or 0.0


async def test_a_full_node_refuses_more_and_serves_those_it_has(
    start_gateway: StartGateway, tokens: Tokens, token: str
) -> None:
    """One more gets 503 and when to come back before it is a WebSocket, as does one more event stream; /health and who
    is in are answered as ever, and once one has left there is room."""
    gateway = await start_gateway(connections=2, connections_per_address=0)
    before = _refused("503", "full")
    async with opened(gateway) as first, opened(gateway) as second, httpx.AsyncClient(trust_env=False) as http:
        async with connected(gateway) as third:
            third.writer.write((HANDSHAKE + "\r\n").encode())
            head = (await third.reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 503 ")
            assert "\r\nRetry-After: 5\r\n" in head
            third.writer.write_eof()
            await third.ended()
        site = f"http://127.0.0.1:{gateway.port}"
        assert (await http.get(f"{site}/health")).status_code == 200
        asked = json.dumps({"id": 1, "connect": {"token": token}})
        stream = await http.get(f"{site}/connection/sse", params={"cf_connect": asked})
        assert (stream.status_code, stream.headers["retry-after"]) == (503, "5")
        assert _refused("503", "full") == before + 2
        second.say({"id": 1, "connect": {"token": token}})
        assert "connect" in await second.hear()
        first.tcp.abort()
        await until(lambda: len(gateway._clients) == 1, "the first has left")
        async with opened(gateway):
            pass
    await assert_nothing_is_left(gateway)


def _has(gateway: Gateway, count: int, said: bytes) -> bool:
    """Whether the gateway has so many connections, but for one all of the kind that such a request makes them."""
    others = len(gateway._fallback.open)
    plain_http = said.startswith((b"POST", b"GET /health"))
    return len(gateway._door.wires) + others == count and (others == count - 1 or not plain_http)


GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"", None),
        (b"GET /connection/webs", None),
        (b"POST /emulation HTTP/1.1\r\n", None),
        (GET_HEALTH, 200),
        ((HANDSHAKE + "\r\n").encode(), 503),
    ],
)
async def test_who_fills_a_node_and_asks_for_nothing_makes_room(
    start_gateway: StartGateway, said: bytes, answer: int | None
) -> None:
    """Connections of which no request has come, those that stay open after one, and those that were refused take a
    descriptor each: beyond so many the one that is spared for longest is cut off for each that comes. Who is in, and
    who asks for something, is served."""
    gateway = await start_gateway(connections=1, connections_per_address=0)
    room = cut_off_above(1) - 1
    before = _refused("none", "full")
    async with contextlib.AsyncExitStack() as stack:
        inside = await stack.enter_async_context(opened(gateway))
        spare = []
        for count in range(1, room + 1):
            spare.append(await stack.enter_async_context(connected(gateway)))
            spare[-1].writer.write(said)
            if answer is not None:
                assert await spare[-1].status() == answer
            await until(partial(_has, gateway, count + 1, said), "it is there, and what it said has been read")
        for longest in spare[:2]:
            beyond = await stack.enter_async_context(connected(gateway))
            beyond.writer.write(GET_HEALTH)
            assert await beyond.status() == 200
            await longest.ended()
        assert _refused("none", "full") == before + 2
        inside.send(Opcode.PING, b"here")
        assert await inside.receive() == (Opcode.PONG, b"here")
    await assert_nothing_is_left(gateway)


async def test_who_comes_to_a_node_that_can_spare_nobody_is_cut_off(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While all that it has are being served; they are, to the end."""
    gateway = await start_gateway(connections=1, connections_per_address=0)
    room = cut_off_above(1)
    before = _refused("none", "full")
    served, handed_in = asyncio.Event(), 0

    async def post(_: object) -> None:
        nonlocal handed_in
        handed_in += 1
        await served.wait()

    monkeypatch.setattr(gateway._sessions, "post", post)
    body = json.dumps({"session": "s", "node": "n", "data": "{}"}).encode()
    async with contextlib.AsyncExitStack() as stack:
        posting = [await stack.enter_async_context(connected(gateway)) for _ in range(room)]
        for each in posting:
            each.writer.write(b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: handed_in == room, "all are being served")
        async with connected(gateway) as beyond:
            await beyond.ended()
        assert _refused("none", "full") == before + 1
        served.set()
        assert [await each.status() for each in posting] == [204] * room
    await assert_nothing_is_left(gateway)


async def test_one_address_cannot_fill_a_node(start_gateway: StartGateway) -> None:
    """It has half of the connections at most, whatever is set: others get in."""
    gateway = await start_gateway(connections=4, connections_per_address=1_000)
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(gateway)) for _ in range(4)]
        assert [await each.status() for each in idle[2:]] == [429] * 2
        for each in idle[2:]:
            each.writer.write_eof()
            await each.ended()
        other = await stack.enter_async_context(connected(gateway, "127.0.0.2"))
        assert await other.shake_hands() == 101
    await assert_nothing_is_left(gateway)


def test_the_limit_of_open_files_leaves_room() -> None:
    """With all connections, and those that are refused, there are descriptors left for store, log and API."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit in (256, 1_024, min(hard, 20_000)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            connections = affordable_connections()
            assert limit // 2 <= connections < cut_off_above(connections) <= limit - 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_behind_a_proxy_each_client_counts_for_itself(start_gateway: StartGateway) -> None:
    """A trusted proxy's word counts, what stands further left in it does not; anybody else's counts for nothing."""
    gateway = await start_gateway(connections_per_address=1, trusted_proxies=("127.0.0.1",))
    async with contextlib.AsyncExitStack() as stack:

        async def arrive(source: str, *headers: str) -> int:
            sock = await stack.enter_async_context(connected(gateway, source))
            return await sock.shake_hands(*headers)

        assert await arrive("127.0.0.1", "X-Forwarded-For: 192.0.2.1") == 101
        assert await arrive("127.0.0.1", "X-Forwarded-For: 192.0.2.2") == 101
        assert await arrive("127.0.0.1", "x-forwarded-for:  9.9.9.9 , 192.0.2.1") == 429
        assert await arrive("127.0.0.1", "X-Forwarded-For: 9.9.9.9", "X-Forwarded-For: 192.0.2.2") == 429
        assert await arrive("127.0.0.2", "X-Forwarded-For: 192.0.2.3") == 101
        assert await arrive("127.0.0.2", "X-Forwarded-For: 192.0.2.4") == 429
    await assert_nothing_is_left(gateway)


async def test_a_storm_waits_at_the_door(start_gateway: StartGateway, token: str) -> None:
    """While as many as allowed are joining, newcomers wait, then get 503; with room again they get in."""
    gateway = await start_gateway(joins_at_once=1, queue_s=0.3)
    gateway._turnstile.join()
    async with opened_later(gateway) as waiting:
        await until(lambda: gateway._turnstile._waiting, "it waits")
        assert await waiting.status() == 503
        waiting.writer.write_eof()
        await waiting.ended()
    async with opened_later(gateway) as waiting:
        await until(lambda: gateway._turnstile._waiting, "it waits")
        gateway._turnstile.joined()
        assert await waiting.status() == 101
    async with opened_later(gateway) as gone:
        assert await gone.status() == 101
    await assert_nothing_is_left(gateway)


async def test_one_who_misbehaves_at_the_door_harms_nobody(start_gateway: StartGateway, token: str) -> None:
    """A head that goes on without end while it waits is refused, once; the queue goes on, and so does the shutdown."""
    gateway = await start_gateway(joins_at_once=1, queue_s=0.3)
    gateway._turnstile.join()
    async with opened_later(gateway) as endless, opened_later(gateway) as patient:
        await until(lambda: len(gateway._turnstile._waiting) == 2, "both wait")
        endless.writer.write(b"x" * 20_000)
        assert await endless.status() == 431
        assert await patient.status() == 503
    gateway._turnstile.joined()
    await assert_nothing_is_left(gateway)


async def test_a_body_names_no_address(start_gateway: StartGateway) -> None:
    """What follows a request's head is not looked at for the address behind a proxy."""
    gateway = await start_gateway(joins_at_once=1, queue_s=0.3, trusted_proxies=("127.0.0.0/8",))
    gateway._turnstile.join()
    async with connected(gateway) as sock:
        sock.writer.write(HANDSHAKE.encode() + b"\r\n" + b"X-Forwarded-For: 192.0.2.9\r\n")
        await until(lambda: gateway._turnstile._waiting, "it waits")
        assert next(iter(gateway._turnstile._waiting))._address == "127.0.0.1"  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def opened_later(gateway: Gateway) -> AsyncIterator[Socket]:
    async with connected(gateway) as sock:
        sock.writer.write(HANDSHAKE.encode() + b"\r\n")
        yield sock


async def test_who_is_in_keeps_nobody_out(
    start_gateway: StartGateway, backend: ScriptedBackend, tokens: Tokens, token: str
) -> None:
    """A slow command in the same frame as `connect` is no reason for the next newcomer to wait."""
    gateway = await start_gateway(joins_at_once=1, queue_s=WITHIN_S)
    async with opened(gateway) as first:
        first.say({"id": 1, "connect": {"token": token}}, {"id": 2, "rpc": {"method": "wait"}})
        await until(lambda: backend.waiting, "the command runs")
        async with opened(gateway) as second:
            second.say({"id": 1, "connect": {"token": tokens.mint("c2", "customer", ttl_s=600)}})
            assert "connect" in await second.hear()
        assert "connect" in await first.hear()
        backend.gate.set()
        assert await first.hear() == {"id": 2, "rpc": {"data": "waited"}}
    await assert_nothing_is_left(gateway)


async def test_everybody_of_a_storm_gets_in(start_gateway: StartGateway, tokens: Tokens) -> None:
    """200 clients at once through a door for a few at a time: all are connected, none is counted as joining after."""
    gateway = await start_gateway(joins_at_once=2, handshakes_per_second=400)

    async def arrive(n: int) -> None:
        async with opened(gateway) as sock:
            sock.say({"id": 1, "connect": {"token": tokens.mint(f"c{n}", "customer", ttl_s=600)}})
            assert "connect" in await sock.hear()

    await asyncio.gather(*(arrive(n) for n in range(200)))
    await assert_nothing_is_left(gateway)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HANDSHAKE + "X: " + "y" * 20_000, 431),
        (HANDSHAKE.replace("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8") + "\r\n", 400),
        (HANDSHAKE.replace("AAAAAAAAAAAAAAAAAAAAAA==", "short") + "\r\n", 400),
        (HANDSHAKE.replace("HTTP/1.1", "HTTP/1.0") + "\r\n", 505),
        (HANDSHAKE.replace("HTTP/1.1", "HTTP/9") + "\r\n", 400),
        (HANDSHAKE + "no header\r\n\r\n", 400),
        (HANDSHAKE + "Origin: https://a.example\r\nOrigin: https://b.example\r\n\r\n", 400),
        (HANDSHAKE + "Sec-WebSocket-Protocol: centrifuge-protobuf\r\n\r\n", 400),
        (f"GET {CONNECT_PATH}/x HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    ],
)
async def test_odd_handshakes_are_refused(gateway: Gateway, head: str, status: int) -> None:
    """Each gets an answer of HTTP, and is cut off if it then stays."""
    async with connected(gateway) as sock:
        sock.writer.write(head.encode())
        assert await sock.status() == status
    await assert_nothing_is_left(gateway)


async def test_a_refused_connection_does_not_stay(start_gateway: StartGateway) -> None:
    """Whoever gets a refusal and goes on sending, is cut off; so is who never ends the head of a request."""
    gateway = await start_gateway(connect_timeout_s=0.2)
    for head in (HANDSHAKE.replace("websocket\r", "other\r") + "\r\n", HANDSHAKE):
        async with connected(gateway) as sock:
            sock.writer.write(head.encode())
            await assert_nothing_is_left(gateway)


async def test_clients_are_sent_away_a_few_at_a_time_newest_first() -> None:
    """Over the window, or as fast as another node takes them; those who leave by themselves meanwhile are not meant."""
    loop = asyncio.get_running_loop()
    drained: list[int] = []
    turns: list[int] = []
    in_turn: list[bool] = []

    class Guest:
        def drain(self) -> None:
            drained.append(guests.index(self))
            if not in_turn:
                in_turn.append(True)
                loop.call_soon(in_turn.clear)
                turns.append(0)
            turns[-1] += 1
            if len(drained) == 20:
                clients.leave(guests[3])  # type: ignore[arg-type]  # a client, as far as it matters here

    guests = [Guest() for _ in range(45)]
    clients = Clients()
    for guest in guests:
        clients.enter(guest)  # type: ignore[arg-type]
    await clients.drain(60)
    assert drained == [n for n in reversed(range(45)) if n != 3]
    assert turns == [5] * 8 + [4]
    turns.clear()
    await clients.drain(0)
    assert turns == [44]
    for n in range(45):
        if n != 3:
            clients.leave(guests[n])  # type: ignore[arg-type]


async def test_a_node_that_stops_answers_newcomers_and_sends_clients_away(
    start_gateway: StartGateway, tokens: Tokens, token: str
) -> None:
    """Who was accepted but not let in yet gets 503; clients get 3001, those who don't answer are cut off."""
    gateway = await start_gateway()
    port = gateway.port
    async with connected(gateway) as late, opened(gateway) as silent, Opened(gateway) as polite:
        silent.say({"id": 1, "connect": {"token": token}})
        await silent.hear()
        await polite.connect(tokens.mint("c2", "customer", ttl_s=600))
        late.writer.write(b"GET /connection")
        await until(lambda: len(gateway._door.wires) == 3, "all are accepted")
        stopping = asyncio.create_task(gateway.stop())
        await polite.assert_closed(codes.SHUTDOWN)
        assert await silent.closed_with() == codes.SHUTDOWN.code
        late.writer.write((HANDSHAKE + "\r\n").encode().removeprefix(b"GET /connection"))
        assert await late.status() == 503
        await stopping
        await silent.ended()
    assert not gateway._door.wires
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def test_a_key_is_one_of_its_channel() -> None:
    """The same key in two channels doesn't make their publications replace each other; none stays none."""
    one, other = (envelope_of(channel, Publication(1, b"1", "k")) for channel in ("staff:s1", "staff:s2"))
    assert len({one.key, other.key, ""}) == 3
    assert envelope_of("staff:s1", Publication(1, b"1")).key == ""
