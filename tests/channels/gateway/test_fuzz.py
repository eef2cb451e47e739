"""Whatever comes in: the protocol's answer or its close, nobody else's secrets, and a gateway that goes on.

The number of examples is small, for every run. `FUZZ_EXAMPLES=50000` tries that many, other ones each time.
"""

import asyncio
import contextlib
import json
import logging
import os
import struct
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import websockets
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from channels.gateway import codes, protocol
from channels.gateway.backend import Identity
from channels.gateway.publications import Publication
from channels.gateway.server import Gateway
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import Tokens
from nearcast.clock import SystemClock
from nearcast.errors import InputError, NotFound, Unavailable
from tests.channels.gateway.conftest import QUICK
from tests.channels.gateway.support import SECRET, WITHIN_S, Device, Opened, Raw

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
#: Of c2 and their store; no other client may ever see it.
MARKER = "for c2 alone"
LAST_ID = 2**32 - 1

fuzzed = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    ["id", "connect", "subscribe", "unsubscribe", "publish", "history", "presence", "presence_stats", "rpc", "send",
     "refresh", "sub_refresh", "ping", "token", "subs", "channel", "recover", "epoch", "offset", "flag", "limit",
     "since", "reverse", "type", "method", "data"]
)  # fmt: skip
_CHANNELS = (
    st.sampled_from(["customer:c2", "staff:s2", "customer:c1", "store:s1"])
    | st.sampled_from(
        ["zone:z", "", "customer:c1\ncustomer:c2", "store:\x1fk", "customer:c2}", "customer:*", "store:" + "x" * 300]
    )
    | st.text(max_size=12)
)  # fmt: skip
_PLACES = st.fixed_dictionaries(
    {}, optional={"recover": st.booleans(), "epoch": st.text(max_size=8), "offset": st.integers(-1, 2**60)}
)
_TOKENS = st.sampled_from(["mine", "foreign", "expired", "unsigned", "", "x" * 5_000])
_BODIES: dict[str, st.SearchStrategy[Any]] = {
    "connect": st.fixed_dictionaries(
        {"token": _TOKENS}, optional={"subs": st.dictionaries(_CHANNELS, _PLACES, max_size=3), "data": _JSON}
    ),
    "subscribe": st.builds(
        lambda place, channel, flag: {**place, "channel": channel, "flag": flag},
        _PLACES,
        _CHANNELS,
        st.integers(-1, 2**40),
    ),
    "unsubscribe": st.fixed_dictionaries({"channel": _CHANNELS}),
    "publish": st.fixed_dictionaries({"channel": _CHANNELS, "data": _JSON}, optional={"type": st.integers(0, 2)}),
    "history": st.fixed_dictionaries(
        {"channel": _CHANNELS},
        optional={"limit": st.integers(-2, 2**33), "since": _PLACES, "reverse": st.booleans()},
    ),
    "presence": st.fixed_dictionaries({"channel": _CHANNELS}),
    "presence_stats": st.fixed_dictionaries({"channel": _CHANNELS}),
    "rpc": st.fixed_dictionaries({"method": st.sampled_from(["echo", "away", "no"]) | st.text(), "data": _JSON}),
    "send": st.fixed_dictionaries({"data": _JSON}),
    "refresh": st.fixed_dictionaries({"token": _TOKENS}),
    "sub_refresh": st.fixed_dictionaries({"channel": _CHANNELS}),
    "ping": st.just({}),
}
_IDS = st.integers(1, 50) | st.sampled_from([0, -1, 2**32, 1.5, "1", None])
_REAL = st.sampled_from(sorted(_BODIES)).flatmap(
    lambda kind: st.fixed_dictionaries({kind: _BODIES[kind], **({} if kind == "send" else {"id": st.integers(1, 50)})})
)
# Shaped like commands, so that many get past the decoder; and those with something wrong about them.
_ODD = st.dictionaries(
    _FIELDS, _JSON | st.dictionaries(_FIELDS, _JSON | st.dictionaries(st.text(), st.dictionaries(_FIELDS, _JSON)))
) | st.builds(lambda command, number: {**command, "id": number}, _REAL, _IDS)
_LINES = (_REAL | _ODD | _JSON).map(json.dumps)
_FRAMES = (
    st.lists(_REAL.map(json.dumps), min_size=1, max_size=6).map("\n".join)
    | st.lists(_REAL.map(json.dumps), min_size=1, max_size=6).map("\n".join)
    | st.lists(_LINES, min_size=1, max_size=6).map("\n".join)
    | st.text()
    | st.binary().map(lambda data: data.decode("utf-8", "replace"))
    | st.builds(lambda text, end: text[:end], _LINES, st.integers(0, 80))
    | st.integers(1, 5_000).map(lambda depth: '{"id":1,"rpc":{"data":' + "[" * depth)
)


@settings(max_examples=EXAMPLES or 100, derandomize=not EXAMPLES)
@given(frames=st.lists(_FRAMES, min_size=1, max_size=3), accepted=st.booleans())
def test_nothing_that_is_sent_raises(frames: list[str], accepted: bool) -> None:
    """Any text gives effects; replies are one line of JSON with an id; a close is a bad request, and the last."""
    session = protocol.Session()
    if accepted:
        session.accepted()
    for frame in frames:
        found = list(session.receive(frame))
        assert found
        for place, effect in enumerate(found):
            if isinstance(effect, protocol.Close):
                assert effect.disconnect == codes.BAD_REQUEST
                assert place == len(found) - 1
            elif isinstance(effect, protocol.Reply):
                assert b"\n" not in effect.data
                assert json.loads(effect.data)["id"] > 0
            elif isinstance(effect, protocol.Subscribe | protocol.Unsubscribe | protocol.History | protocol.Presence):
                json.loads(protocol.push(effect.channel, Publication(1, b"0")))
            elif isinstance(effect, protocol.Rpc | protocol.Send | protocol.Publish):
                json.loads(effect.data)


class Backend:
    """Refuses what it doesn't know, as the real one."""

    async def exists(self, channel: str) -> bool:
        return channel in ("store:s1", "zone:z")

    async def rpc(self, _identity: Identity, method: str, data: bytes) -> bytes:
        match method:
            case "echo":
                return data
            case "away":
                raise Unavailable("the log is away")
        raise NotFound("unknown_method", f"there is no RPC method {method[:64]!r}")

    async def event(self, identity: Identity, data: bytes) -> None:
        if len(data) % 2:
            raise InputError("malformed", "odd")


class Target(NamedTuple):
    """A gateway with a customer connected, whose publications nobody else may see."""

    gateway: Gateway
    streams: ChannelStreams
    victim: Device
    tokens: dict[str, str]
    log: pytest.LogCaptureFixture

    async def is_well(self) -> None:
        """What is published reaches the victim, nothing else did, and nothing failed."""
        position = await self.streams.publish("customer:c2", json.dumps(MARKER).encode())
        await self.victim.has_offset(position.offset)
        assert set(self.victim.publications) == {
            ("customer:c2", offset, MARKER) for offset in range(1, position.offset + 1)
        }
        assert self.victim.said("connecting")[1:] == []
        assert (await self.streams.read("customer:c1", None)).position.offset == 0
        assert (await self.streams.read("staff:s2", None)).position.offset == 1
        failures = [record.getMessage() for record in self.log.records if record.levelno >= logging.ERROR]
        self.log.clear()
        assert failures == []


@pytest.fixture
async def target(redis: Any, tokens: Tokens, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Target]:
    clock = SystemClock()
    streams = ChannelStreams(redis, "node-1", clock)
    gateway = Gateway(GatewaySettings(**QUICK), tokens, streams, Backend(), clock)  # type: ignore[arg-type]
    await gateway.start()
    ways = {
        "mine": tokens.mint("c1", "customer", ttl_s=86_400),
        "foreign": Tokens(bytes(reversed(SECRET)), clock).mint("c2", "customer", ttl_s=86_400),
        "expired": tokens.mint("c2", "customer", ttl_s=-60),
        "unsigned": tokens.mint("c2", "customer", ttl_s=86_400).rsplit(".", 1)[0] + ".",
    }
    await streams.publish("staff:s2", json.dumps(MARKER).encode())
    async with Device(gateway, tokens.mint("c2", "customer", ttl_s=86_400)) as victim:
        await victim.ready()
        yield Target(gateway, streams, victim, ways, caplog)
    await gateway.stop()


@fuzzed
@given(frames=st.lists(_FRAMES | st.binary(max_size=8), max_size=5), connected=st.booleans() | st.just(True))
@example(frames=['{"id":1,"subscribe":{"channel":"customer:c2"}}'], connected=True)
@example(frames=['{"id":1,"history":{"channel":"staff:s2","limit":-1}}'], connected=True)
@example(frames=['{"id":1,"publish":{"channel":"staff:s2","data":1}}'], connected=True)
@example(frames=['{"id":1,"connect":{"token": "foreign","subs":{"customer:c2":{"recover":true}}}}'], connected=False)
async def test_no_command_harms_anybody(target: Target, frames: list[str | bytes], connected: bool) -> None:
    """Each reply has the id of a command, each error and close a known code; no push but of what a client may hear."""
    async with Opened(target.gateway) as raw:
        if connected:
            assert "connect" in await raw.connect(target.tokens["mine"])
        try:
            for frame in frames:
                for name, token in target.tokens.items():
                    if isinstance(frame, str):
                        frame = frame.replace(f'"token": "{name}"', f'"token": "{token}"')
                await raw.connection.send(frame)
            await _read_all(raw)
            # Whoever subscribed to what is not theirs would get this, too.
            await target.is_well()
            await _read_all(raw)
        except websockets.ConnectionClosed:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await _read(raw)
            assert (raw.connection.close_code, raw.connection.close_reason) in codes.DISCONNECTS
            await target.is_well()


async def _read_all(raw: Raw) -> None:
    """Check everything that comes up to the answer of one more command."""
    await raw.send({"id": LAST_ID, "ping": {}})
    while await _read(raw) != LAST_ID:
        pass


async def _read(raw: Raw) -> int:
    """Check the next message; its id."""
    text = await asyncio.wait_for(raw.connection.recv(), WITHIN_S)
    assert isinstance(text, str)
    assert MARKER not in text
    return _checked(json.loads(text))


def _checked(message: dict[str, Any]) -> int:
    """The id of a message that is as it should be."""
    if not message:
        return 0
    if "push" in message:
        assert message["push"]["channel"].startswith(("customer:c1", "store:", "zone:"))
        return 0
    assert len(message) == 2
    if "error" in message:
        code = message["error"]["code"]
        assert code in {error.code for error in codes.ERRORS} or 400 <= code < 500
        assert message["error"].get("temporary", False) == (code in {100, 111})
    assert 1 <= message["id"] <= LAST_ID
    return int(message["id"])


_HANDSHAKE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


def _websocket_frame(first: int, second: int, extended: int, payload: bytes) -> bytes:
    """A frame whose header may say anything of what follows."""
    length = second & 127
    if length == 126:
        return bytes((first, second)) + struct.pack(">H", extended & 0xFFFF) + b"mask" + payload
    if length == 127:
        return bytes((first, second)) + struct.pack(">Q", extended) + b"mask" + payload
    return bytes((first, second)) + b"mask" + payload


def _good_frame(opcode: int, payload: bytes, fin: bool) -> bytes:
    """A frame that is as it should be, but for the order in which it comes."""
    mask = b"\x01\x02\x03\x04"
    masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
    return bytes((opcode | (128 if fin else 0), 128 | len(payload))) + mask + masked


_WIRE = st.lists(
    st.builds(
        _websocket_frame,
        st.integers(0, 255),
        st.integers(0, 255),
        st.integers(0, 2**64 - 1) | st.integers(0, 200),
        st.binary(max_size=200),
    )
    | st.builds(
        _good_frame,
        st.sampled_from([0, 1, 2, 8, 9, 10]),
        st.binary(max_size=125) | _LINES.map(lambda line: line.encode()[:125]),
        st.booleans(),
    )
    | st.binary(max_size=64),
    max_size=6,
).map(b"".join)
_HEADERS = st.lists(
    st.sampled_from(
        [b"Origin: https://evil.example", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999",
         b"Transfer-Encoding: chunked", b"Connection: close", b"Upgrade: websocket", b"Content-Type: application/json",
         b"Sec-WebSocket-Version: 8", b"Last-Event-ID: 5", b"X-Forwarded-For: 1, 2", b" folded", b"no colon",
         b"Sec-WebSocket-Protocol: centrifuge-json", b"Sec-WebSocket-Extensions: permessage-deflate", b"Host: y"]
    )
    | st.binary(max_size=24),
    max_size=5,
).map(b"\r\n".join)  # fmt: skip
_REQUESTS = st.builds(
    lambda method, path, version, headers, body: (
        method + b" " + path + b" " + version + b"\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body
    ),
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"HEAD", b"PUT", b"get", b""]) | st.binary(max_size=5),
    st.sampled_from(
        [b"/connection/websocket", b"/connection/sse", b"/connection/sse?cf_connect=%7B%7D", b"/connection/http_stream",
         b"/connection/sse?cf_connect", b"/emulation", b"/health", b"/", b"*", b"http://x/health", b"/../etc/passwd"]
    )
    | st.binary(max_size=20),
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP"]),
    _HEADERS,
    st.sampled_from([b'{"session":"x","node":"","data":"{}"}', b'{"id":1,"connect":{}}', b"5\r\nhello\r\n0\r\n\r\n"])
    | st.binary(max_size=40),
)  # fmt: skip


@fuzzed
@given(
    sent=_WIRE.map(lambda frames: _HANDSHAKE + b"\r\n" + frames)
    | st.builds(lambda headers, frames: _HANDSHAKE + headers + b"\r\n\r\n" + frames, _HEADERS, _WIRE)
    | _REQUESTS
    | st.lists(_REQUESTS, max_size=3).map(b"".join)
    | st.binary(),
    cuts=st.lists(st.integers(1, 400), max_size=3),
)
# What is refused, and behind it a close, in one piece.
@example(sent=_HANDSHAKE + b"\r\n" + _good_frame(2, b"x", True) + _good_frame(8, b"", True), cuts=[])
@example(sent=b"! ! HTTP/0.0\n!:\nTransfer-Encoding:\n\n", cuts=[])
async def test_no_bytes_harm_anybody(target: Target, sent: bytes, cuts: list[int]) -> None:
    """Any bytes, in any pieces, get an HTTP answer that blames them, a close, or nothing; then the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", target.gateway.port)
    received = b""
    with contextlib.suppress(OSError):
        start = 0
        for end in [*sorted(cuts), len(sent)]:
            writer.write(sent[start : max(start, end)])
            await writer.drain()
            # The other end gets a turn, so that the pieces arrive as such.
            await asyncio.sleep(0)
            start = max(start, end)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), WITHIN_S)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    assert MARKER.encode() not in received
    # 501 is the answer to an unknown transfer coding.
    assert not received.startswith(b"HTTP/1.1 5") or received.startswith(b"HTTP/1.1 501 ")
    assert received == b"" or received.startswith(b"HTTP/1.1 ")
    await target.is_well()
