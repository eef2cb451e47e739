"""Clients without a WebSocket: messages come in a response that does not end, commands go by POST.

A POST may reach another node than the one that holds the response; that node hands it over by the bus. What the
response is made of is here, the HTTP around it is in `fallback`. The client behind it is the same as over a WebSocket.

Each event of an event stream that moves the client on in a channel has an id, which says where it then stands in all
of them. A browser's EventSource sends the last one when it connects again (`Last-Event-ID`) and so misses nothing.
"""

import asyncio
import logging
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from typing import Annotated, Protocol
from urllib.parse import quote, unquote

import msgspec

from channels.gateway import protocol
from channels.gateway.client import Client, Services
from channels.gateway.clients import Clients
from channels.gateway.codes import Disconnect
from channels.gateway.hub import end
from channels.gateway.publications import Position
from channels.gateway.transport import Envelope
from nearcast.errors import NotFound, TooLarge, TooManyRequests

log = logging.getLogger("nearcast.channels.gateway")

#: How many POSTs of one client may wait for the command before them; their bytes are bounded by `backlog_bytes`.
MAX_WAITING = 64

#: Hands a control frame to a node; False if it is not there. Raises `Unavailable`.
Tell = Callable[[str, bytes], Awaitable[bool]]


class Kind(Enum):
    """How messages are set apart."""

    EVENTS = "text/event-stream; charset=utf-8"
    LINES = "application/json"


class Body(Protocol):
    """The response. Nothing here waits or raises."""

    @property
    def is_open(self) -> bool: ...

    @property
    def backlog(self) -> int:
        """Bytes that the client has not taken yet."""
        ...

    def write(self, data: bytes) -> None: ...

    def end(self) -> None:
        """The response is complete: close the connection once it has been taken."""
        ...

    def abort(self) -> None: ...


class BadEventId(ValueError):
    """A `Last-Event-ID` that is none of ours."""


class _Sub(msgspec.Struct):
    epoch: str = ""
    offset: int = 0


class _Pub(msgspec.Struct):
    offset: int = 0


class _Push(msgspec.Struct, omit_defaults=True):
    channel: str = ""
    pub: _Pub | None = None
    subscribe: _Sub | None = None
    unsubscribe: dict[str, msgspec.Raw] | None = None


class _Message(msgspec.Struct, omit_defaults=True):
    id: int = 0
    connect: dict[str, msgspec.Raw] | None = None
    push: _Push | None = None


class _Command(msgspec.Struct):
    id: int
    connect: dict[str, msgspec.Raw]


class Post(msgspec.Struct):
    """What a client posts: commands for its session on a node."""

    session: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    data: str
    node: Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[\w.-]*\Z")] = ""


class _Handed(msgspec.Struct):
    """A control frame between nodes."""

    emulate: Post


_message = msgspec.json.Decoder(_Message)
_command = msgspec.json.Decoder(_Command)
_subs = msgspec.json.Decoder(dict[str, _Sub])
_handed = msgspec.json.Decoder(_Handed)
_encoder = msgspec.json.Encoder()

_EVENT_ID_PART = re.compile(r"([\w.~:%/-]+)=(\w*):(\d{1,16})", re.ASCII)
#: What decoding raises for bytes that are not what they should be.
NOT_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Stream:
    """A `Transport` over a response. Adds to the reply to `connect` where the client's POSTs have to go.

    Between `pause` and `resume` publications wait here; one with a key replaces an earlier one of the same key.
    """

    __slots__ = (
        "_body",
        "_connected",
        "_held",
        "_held_bytes",
        "_joined",
        "_kind",
        "_node",
        "_positions",
        "_session",
    )

    def __init__(self, body: Body, kind: Kind, session: str, node: str, joined: Callable[[], None]) -> None:
        self._body = body
        self._kind = kind
        self._session = session
        self._node = node
        self._connected = False
        self._positions: dict[str, Position] = {}
        self._joined: Callable[[], None] | None = joined
        # By key, or by number; None while the body has room.
        self._held: dict[str | int, Envelope] | None = None
        self._held_bytes = 0

    def pause(self) -> None:
        """The client is slow."""
        self._held = {}

    def resume(self) -> None:
        """What the body had to write is nearly written."""
        held, self._held, self._held_bytes = self._held, None, 0
        for envelope in (held or {}).values():
            self.send_envelope(envelope)

    @property
    def is_open(self) -> bool:
        return self._body.is_open

    @property
    def backlog(self) -> int:
        return self._body.backlog + self._held_bytes

    def joined(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            joined()

    def send(self, json: bytes) -> None:
        if not self._connected:
            json = self._complete(json)
        self.send_envelope(Envelope(json))

    def send_envelope(self, envelope: Envelope) -> None:
        if self._held is None:
            self._write(envelope)
            return
        # No two that don't replace each other may have the same key: their number only ever grows.
        key = envelope.key or len(self._held)
        replaced = self._held.pop(key, None)
        self._held[key] = envelope
        self._held_bytes += len(envelope.json) - (len(replaced.json) if replaced is not None else 0)

    def _write(self, envelope: Envelope) -> None:
        if self._kind is Kind.LINES:
            self._body.write(envelope.json + b"\n")
        else:
            self._body.write(self._event_id(envelope.json) + envelope.event)

    def close(self, disconnect: Disconnect) -> None:
        held, self._held, self._held_bytes = self._held, None, 0
        for envelope in (held or {}).values():
            self._write(envelope)
        # A WebSocket says this in its close frame.
        self._write(Envelope(protocol.disconnected(disconnect)))
        self._body.end()

    def abort(self) -> None:
        self._body.abort()

    def _complete(self, json: bytes) -> bytes:
        reply = _message.decode(json)
        if reply.connect is None:
            return json
        self._connected = True
        reply.connect["session"] = msgspec.Raw(_encoder.encode(self._session))
        reply.connect["node"] = msgspec.Raw(_encoder.encode(self._node))
        return _encoder.encode(reply)

    def _event_id(self, json: bytes) -> bytes:
        """The line with the id of an event that moves the client on; nothing for the others."""
        message, positions = _message.decode(json), self._positions
        push = message.push
        if message.connect is not None:
            subs = _subs.decode(message.connect.get("subs", b"{}"))
            positions.update({channel: Position(sub.epoch, sub.offset) for channel, sub in subs.items()})
        elif push is None:
            return b""
        elif push.pub is not None and push.channel in positions:
            positions[push.channel] = Position(positions[push.channel].epoch, push.pub.offset)
        elif push.subscribe is not None:
            positions[push.channel] = Position(push.subscribe.epoch, push.subscribe.offset)
        elif push.unsubscribe is not None:
            positions.pop(push.channel, None)
        else:
            return b""
        return b"id: %b\n" % event_id(positions).encode()


def event_id(positions: dict[str, Position]) -> str:
    """Where a client stands: `customer:c1=5f3a:17&store:s1=09bc:4`, names percent-encoded."""
    return "&".join(f"{quote(name, safe=':')}={epoch}:{offset}" for name, (epoch, offset) in positions.items())


def parse_event_id(text: str) -> dict[str, Position]:
    """The reverse of `event_id`. Raises `BadEventId`."""
    positions = {}
    for part in text.split("&") if text else ():
        match = _EVENT_ID_PART.fullmatch(part)
        if match is None:
            raise BadEventId(text)
        positions[unquote(match[1])] = Position(match[2], int(match[3]))
    return positions


def resume(command: str, positions: dict[str, Position]) -> str:
    """A connect command that recovers from `positions`, whatever it said itself about those channels."""
    try:
        connect = _command.decode(command)
        subs = msgspec.json.decode(connect.connect.get("subs", b"{}"), type=dict[str, msgspec.Raw])
    except NOT_JSON:
        return command  # The session says what is wrong with it.
    for channel, (epoch, offset) in positions.items():
        subs[channel] = msgspec.Raw(_encoder.encode({"recover": True, "epoch": epoch, "offset": offset}))
    connect.connect["subs"] = msgspec.Raw(_encoder.encode(subs))
    return _encoder.encode(connect).decode()


class Emulated:
    """One client, and the commands that it posted. A task lives only while some wait."""

    def __init__(self, secret: str, client: Client, stream: Stream, body: Body, max_bytes: int) -> None:
        self.secret = secret
        self.client = client
        self.stream = stream
        self._body = body
        self._max_bytes = max_bytes
        self._waiting: deque[str] = deque()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    def take(self, commands: str, tasks: set[asyncio.Task[None]]) -> None:
        """Carry commands out after those before. Raises `TooManyRequests` if too many wait."""
        if self._waiting and (len(self._waiting) >= MAX_WAITING or self._bytes + len(commands) > self._max_bytes):
            raise TooManyRequests("too_many_requests", "too many commands wait for the one before them")
        self._waiting.append(commands)
        self._bytes += len(commands)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="gateway-emulated")
            tasks.add(self._task)
            self._task.add_done_callback(tasks.discard)

    def left(self) -> None:
        """The response has ended."""
        self._waiting.clear()
        self.client.left()

    async def _work(self) -> None:
        try:
            while self._waiting:
                commands = self._waiting.popleft()
                self._bytes -= len(commands)
                await self.client.take(commands)
                self.stream.joined()
        except Exception:
            log.exception("a client's command failed")
            self._body.abort()
        finally:
            self._task = None
            self.stream.joined()


class Sessions:
    """This node's clients without a WebSocket, by the secret that their POSTs name them with.

    `tell` reaches other nodes, which call `hand_over` with what it brings.
    """

    def __init__(self, services: Services, clients: Clients, node: str, tell: Tell) -> None:
        self._services = services
        self._clients = clients
        self._node = node
        self._tell = tell
        self._by_secret: dict[str, Emulated] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, body: Body, kind: Kind, commands: str, joined: Callable[[], None]) -> Emulated:
        """A client whose first commands these are; `close` it when the response has ended. `joined` is called once the
        `connect` has been carried out.
        """
        secret = secrets.token_urlsafe(16)
        stream = Stream(body, kind, secret, self._node, joined)
        client = Client(stream, self._services)
        emulated = Emulated(secret, client, stream, body, self._services.settings.backlog_bytes)
        self._by_secret[secret] = emulated
        self._clients.enter(client)
        emulated.take(commands, self._tasks)
        return emulated

    def close(self, emulated: Emulated) -> None:
        """The response has ended."""
        del self._by_secret[emulated.secret]
        emulated.left()
        self._clients.leave(emulated.client)

    async def post(self, post: Post) -> None:
        """Carry out what a client posted, wherever its response is.

        Raises `TooLarge`, `TooManyRequests`, `NotFound` (the session has ended) or `Unavailable`.
        """
        if len(post.data) > self._services.settings.max_frame_bytes:
            raise TooLarge("too_large", "the commands are too long")
        if post.node in ("", self._node):
            self._take(post)
        elif not await self._tell(post.node, _encoder.encode(_Handed(post))):
            raise NotFound("unknown_session", "the session's node is gone")

    def hand_over(self, frame: bytes) -> bool:
        """A control frame from another node. False if it is not about a session."""
        try:
            handed = _handed.decode(frame)
        except NOT_JSON:
            return False
        # Whoever posted it has their answer already: an SDK tries again when the reply does not come.
        with suppress(NotFound, TooManyRequests):
            self._take(handed.emulate)
        return True

    async def stop(self) -> None:
        """End the commands that still run. The clients should have left before."""
        await end(list(self._tasks))

    def _take(self, post: Post) -> None:
        emulated = self._by_secret.get(post.session)
        if emulated is None or emulated.client.closed:
            raise NotFound("unknown_session", "the session has ended")
        emulated.take(post.data, self._tasks)
