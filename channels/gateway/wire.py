"""One socket: the door where it is decided what it speaks, and the WebSocket behind it.

The rules of a WebSocket are `websockets`' own (its sans-I/O protocol); this is the I/O around them, for `websockets`'
server needs twice the memory. A wire has no task while its client is silent. What its client says is carried out one
frame after the other; while some wait, the socket is not read.

Nothing here waits for a client that doesn't read. What it has not taken is counted, and its `Client` closes it when it
is too much; before that, publications with a key replace each other while they wait.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

from websockets.datastructures import MultipleValuesError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol, Side, State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from channels.gateway.addresses import Addresses
from channels.gateway.client import Client, Services
from channels.gateway.clients import Clients
from channels.gateway.codes import BAD_REQUEST, SLOW, Disconnect
from channels.gateway.fallback import RETRY_AFTER_S, Fallback
from channels.gateway.hub import end
from channels.gateway.limits import cut_off_above
from channels.gateway.transport import Envelope, cut_off, frame
from channels.gateway.turnstile import Turnstile
from nearcast.metrics import DISCONNECTS, REFUSED

log = logging.getLogger("nearcast.channels.gateway")
# Below INFO websockets logs whole frames, which carry tokens and personal data; INFO is two lines per connection.
_socket_log = logging.getLogger("nearcast.channels.gateway.sockets")
_socket_log.setLevel(logging.WARNING)

CONNECT_PATH = "/connection/websocket"
_DOOR = f"GET {CONNECT_PATH}".encode()
_END_OF_HEAD = b"\r\n\r\n"
_FORWARDED = re.compile(rb"^x-forwarded-for:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_PROTOBUF = "centrifuge-protobuf"
_JSON = Subprotocol("centrifuge-json")

#: Read at a time; bounds how long one socket can keep the others waiting.
READ_BYTES = 16 * 1024
MAX_HEAD_BYTES = 16 * 1024
#: Frames of one client that may wait for the command before them.
MAX_WAITING = 4
#: Control frames and fragments between two messages. A client's own pings come twice between two of its pongs.
MAX_ASIDES = 64


class Door:
    """What the wires of one gateway share."""

    def __init__(
        self, services: Services, clients: Clients, addresses: Addresses, turnstile: Turnstile, fallback: Fallback
    ) -> None:
        self.services = services
        self.clients = clients
        self.addresses = addresses
        self.turnstile = turnstile
        self.fallback = fallback
        self.origins = [None, *map(Origin, services.settings.origins)]
        self.wires: set[Wire] = set()
        # What is read is copied out at once, so one buffer serves all.
        self.buffer = memoryview(bytearray(READ_BYTES))
        fallback.take_back = self.take_back
        fallback.is_full = self.is_full
        self._limit = services.settings.connections

    def is_full(self, limit: int = 0) -> bool:
        """Whether there are more connections now than the node may have, or than another limit."""
        return self._limit > 0 and len(self.wires) + len(self.fallback.open) > (limit or self._limit)

    def is_overrun(self) -> bool:
        """Whether there are so many connections that one more would take the descriptors that others need."""
        return self.is_full(cut_off_above(self._limit))

    def make_room(self) -> bool:
        """Cut off one that can be spared; False if none can."""
        spare = self.fallback.spare
        if not spare:
            return False
        longest = next(iter(spare))
        del spare[longest]
        longest.abort()
        return True

    def take_back(self, tcp: asyncio.Transport, first: bytes) -> None:
        """A WebSocket is asked for on a connection that had another protocol, of which it is free now."""
        wire = Wire(self)
        tcp.set_protocol(wire)
        wire.connection_made(tcp)
        wire.read(first)

    async def close(self) -> None:
        """Cut off who is still here, and end what they still run."""
        for wire in self.wires:
            wire.abort()
        await end([wire.task for wire in self.wires if wire.task is not None])
        # Sockets are closed at the loop's next turn.
        await asyncio.sleep(0)
        await self.clients.left(1.0)


class _Handshake(ServerProtocol):
    """Says who may come in."""

    def answer(self, request: Request) -> Response:
        try:
            offered = request.headers.get("Sec-WebSocket-Protocol", "")
        except MultipleValuesError:
            offered = ""
        if _PROTOBUF in offered:
            return self.reject(HTTPStatus.BAD_REQUEST, "This server speaks the JSON protocol: turn Protobuf off.\n")
        return self.accept(request)

    def select_subprotocol(self, subprotocols: Sequence[Subprotocol]) -> Subprotocol | None:
        """JSON needs no subprotocol; it is named only to clients that offer it."""
        return _JSON if _JSON in subprotocols else None


class Wire(asyncio.BufferedProtocol):
    """A `Transport` over a socket of its own."""

    __slots__ = (
        "_address",
        "_asides",
        "_client",
        "_door",
        "_frames",
        "_head",
        "_held",
        "_held_bytes",
        "_joining",
        "_lost",
        "_open",
        "_parts",
        "_rules",
        "_tcp",
        "task",
    )
    _tcp: asyncio.Transport

    def __init__(self, door: Door) -> None:
        self._door = door
        # The beginning of what it sends, until that is answered.
        self._head: bytearray | None = bytearray()
        self._address: str | None = None
        self._rules: Protocol | None = None
        self._client: Client | None = None
        self._open = False
        self._lost = False
        # Whether the answer to its first frame, the connect, is still to come.
        self._joining = True
        self._frames: list[str] = []
        self.task: asyncio.Task[None] | None = None
        self._parts: bytearray | None = None
        self._asides = 0
        # What waits behind the socket's own buffer, by key; None while that has room.
        self._held: dict[str | int, bytes] | None = None
        self._held_bytes = 0

    # The socket, as asyncio sees it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast("asyncio.Transport", transport)
        settings = self._door.services.settings
        self._tcp.set_write_buffer_limits(settings.conflate_bytes, settings.conflate_bytes // 4)
        self._door.wires.add(self)
        if self._door.is_overrun():
            REFUSED.labels("none", "full").inc()
            if not self._door.make_room():
                self._head = None
                cut_off(self._tcp)
                return
        self._door.fallback.spare[self] = None
        self._cut_off_after(settings.connect_timeout_s)
        if not self._door.addresses.is_proxy(self._peer):
            self._enter(self._peer)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 asyncio's signature
        return self._door.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.read(bytes(self._door.buffer[:nbytes]))

    def read(self, data: bytes) -> None:
        """Something has come."""
        if self._rules is not None:
            self._receive(self._rules, data)
        elif self._head is not None:
            self._read_head(self._head, data)
        # What comes after a refusal is thrown away: closing at once would take the answer from the client.

    def eof_received(self) -> None:
        if self._rules is not None:
            self._rules.receive_eof()
            self._flush(self._rules)

    def pause_writing(self) -> None:
        self._held = {}

    def resume_writing(self) -> None:
        held, self._held, self._held_bytes = self._held, None, 0
        for key, data in (held or {}).items():
            # Those without a key are numbered anew.
            self._write(data, key if isinstance(key, str) else "")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 asyncio's signature
        self._open = False
        self._lost = True
        self._door.fallback.spare.pop(self, None)
        self._door.services.wheel.remove(self)
        self._door.turnstile.leave(self)
        if self._address is not None:
            self._door.addresses.leave(self._address)
        if self.task is None:
            self._leave()

    def due(self, now_s: float) -> None:  # noqa: ARG002 the wheel's signature
        """The head of a request, or the end of a connection, has taken too long."""
        cut_off(self._tcp)

    # The door.

    def _read_head(self, head: bytearray, data: bytes) -> None:
        waits = _END_OF_HEAD in head
        head += data
        if not _may_ask_for_websocket(head):
            self._hand_over(head)
        elif len(head) > MAX_HEAD_BYTES:
            self._door.turnstile.leave(self)
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request")
        elif not waits and _END_OF_HEAD in head:
            self._queue(head)

    def _hand_over(self, head: bytearray) -> None:
        """This socket is no WebSocket's: another protocol takes its place."""
        self._head = None
        self._door.wires.discard(self)
        self._door.fallback.spare.pop(self, None)
        self._door.services.wheel.remove(self)
        self._door.fallback.answer(self._tcp, bytes(head), self._address)

    def _queue(self, head: bytearray) -> None:
        self._door.fallback.spare.pop(self, None)
        if self._door.is_full():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "full")
            return
        if self._address is None:
            forwarded = b",".join(_FORWARDED.findall(head.partition(_END_OF_HEAD)[0])).decode("latin-1")
            if not self._enter(self._door.addresses.origin(self._peer, forwarded)):
                return
        self._door.turnstile.enter(self)

    def admit(self) -> None:
        """Answer the handshake."""
        if self._head is None:
            return
        head, _, rest = bytes(self._head).partition(_END_OF_HEAD)
        self._head = None
        settings = self._door.services.settings
        handshake = _Handshake(origins=self._door.origins, logger=_socket_log)
        handshake.receive_data(head + _END_OF_HEAD)
        requests = handshake.events_received()
        if not requests:
            self._refuse(HTTPStatus.BAD_REQUEST, "request")
            return
        handshake.send_response(handshake.answer(cast("Request", requests[0])))
        self._send_all(handshake.data_to_send())
        if handshake.state is not State.OPEN:
            self._door.fallback.spare[self] = None
            return
        # Rules that begin here don't keep the request.
        self._rules = Protocol(Side.SERVER, max_size=settings.max_frame_bytes, logger=_socket_log)
        self._door.services.wheel.remove(self)
        self._open = True
        self._client = Client(self, self._door.services)
        self._door.clients.enter(self._client)
        if rest:
            self._receive(self._rules, rest)

    def turn_away(self) -> None:
        if self._head is not None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, self._door.fallback.turned_away_because)

    def _enter(self, address: str) -> bool:
        if not self._door.addresses.enter(address):
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, "address")
            return False
        self._address = address
        return True

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        REFUSED.labels(str(status.value), reason).inc()
        # Who then stays is cut off when the time for the head of a request is up.
        self._head = None
        self._door.fallback.spare[self] = None
        self._send_all([_response(status), b""])

    # What the client says.

    def _receive(self, rules: Protocol, data: bytes) -> None:
        rules.receive_data(data)
        for event in rules.events_received():
            self._take(rules, cast("Frame", event))
        self._flush(rules)
        if self._client is not None and self.backlog > self._door.services.settings.backlog_bytes:
            self._client.close(SLOW)

    def _take(self, rules: Protocol, part: Frame) -> None:
        if self._client is None or self._client.closed:
            return
        if part.opcode is Opcode.TEXT and part.fin:
            self._asides = 0
            self._say(rules, part.data)
            return
        self._asides += 1
        if part.opcode is Opcode.BINARY or self._asides > MAX_ASIDES:
            self._client.close(BAD_REQUEST)
        elif part.opcode is Opcode.TEXT:
            self._parts = bytearray(part.data)
        elif part.opcode is Opcode.CONT and self._parts is not None:
            self._parts += part.data
            if part.fin:
                whole, self._parts, self._asides = self._parts, None, 0
                self._say(rules, whole)

    def _say(self, rules: Protocol, data: bytes | bytearray | memoryview) -> None:
        try:
            text = bytes(data).decode()
        except UnicodeDecodeError:
            rules.fail(CloseCode.INVALID_DATA, "not UTF-8")
            return
        self._frames.append(text)
        if self.task is None:
            self._work()
        elif len(self._frames) >= MAX_WAITING:
            self._tcp.pause_reading()

    def _work(self) -> None:
        if self._client is None:
            return
        if self._joining:
            self._door.turnstile.join()
        self.task = asyncio.get_running_loop().create_task(self._carry_out(self._client), name="gateway-client")
        self.task.add_done_callback(self._worked)

    async def _carry_out(self, client: Client) -> None:
        while self._frames:
            text = self._frames.pop(0)
            if len(self._frames) < MAX_WAITING:
                self._tcp.resume_reading()
            await client.take(text)
            self.joined()

    def _worked(self, task: asyncio.Task[None]) -> None:
        self.task = None
        self.joined()
        if task.cancelled():
            self._frames.clear()
        elif (problem := task.exception()) is not None:
            log.error("a client's command failed", exc_info=problem)
            self._frames.clear()
            if self._rules is not None and self._open:
                self._rules.fail(CloseCode.INTERNAL_ERROR)
                self._flush(self._rules)
        if self._frames:
            self._work()
        elif self._lost:
            self._leave()

    # What the client is told: `Transport`.

    @property
    def is_open(self) -> bool:
        return self._open and not self._tcp.is_closing()

    @property
    def backlog(self) -> int:
        return self._tcp.get_write_buffer_size() + self._held_bytes

    def joined(self) -> None:
        if self._joining:
            self._joining = False
            self._door.turnstile.joined()

    def send(self, json: bytes) -> None:
        self._write(frame(json), "")

    def send_envelope(self, envelope: Envelope) -> None:
        self._write(envelope.websocket, envelope.key)

    def close(self, disconnect: Disconnect) -> None:
        # The rules may be closing already, by something that came in together with what is refused here.
        if self._rules is not None and self._open and self._rules.state is State.OPEN:
            self._send_all([*(self._held or {}).values()])
            self._rules.send_close(disconnect.code, disconnect.reason)
            self._flush(self._rules)

    def abort(self) -> None:
        cut_off(self._tcp)

    def _write(self, data: bytes, key: str | int) -> None:
        if not self._open:
            return
        if self._held is None:
            self._tcp.write(data)
            return
        # No two that don't replace each other may have the same key: their number only ever grows.
        key = key or len(self._held)
        self._held_bytes += len(data) - len(self._held.pop(key, b""))
        self._held[key] = data

    def _flush(self, rules: Protocol) -> None:
        """Send what the rules answered by themselves, and notice that they have ended the connection."""
        writes = rules.data_to_send()
        if self._open and rules.state is not State.OPEN:
            self._open = False
            self._held, self._held_bytes = None, 0
            self._cut_off_after(self._door.services.settings.close_timeout_s)
            if rules.close_sent is not None and rules.close_rcvd is None:
                self._count_close(rules.close_sent.code)
        self._send_all(writes)
        if rules.close_rcvd is not None:
            self._tcp.close()

    def _send_all(self, writes: Sequence[bytes]) -> None:
        for data in writes:
            if data:
                self._tcp.write(data)
            elif not self._tcp.is_closing():
                self._tcp.write_eof()

    def _count_close(self, code: int) -> None:
        """A frame that is too large, text that is not UTF-8. What the client's own rules close, they count."""
        if self._client is not None and not self._client.closed:
            DISCONNECTS.labels(str(code)).inc()

    # The end.

    def _cut_off_after(self, seconds: float) -> None:
        wheel, clock = self._door.services.wheel, self._door.services.clock
        wheel.add(self, clock.monotonic_s() + seconds)

    def _leave(self) -> None:
        self._door.wires.discard(self)
        client, self._client = self._client, None
        if client is not None:
            client.left()
            self._door.clients.leave(client)

    @property
    def _peer(self) -> str:
        return str((self._tcp.get_extra_info("peername") or ("",))[0])


def _may_ask_for_websocket(head: bytearray) -> bool:
    """Whether this is, or can still become, a request for `CONNECT_PATH`."""
    return _DOOR.startswith(head[: len(_DOOR)]) and head[len(_DOOR) : len(_DOOR) + 1] in b" ?"


_SAID = {
    HTTPStatus.BAD_REQUEST: "This is no HTTP request.",
    HTTPStatus.TOO_MANY_REQUESTS: "There are too many connections from this address.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The head of the request is too long.",
    HTTPStatus.SERVICE_UNAVAILABLE: "This node is full, has too many newcomers, or is going away: try again.",
}


def _response(status: HTTPStatus) -> bytes:
    body = f"{_SAID[status]}\n"
    later = f"Retry-After: {RETRY_AFTER_S}\r\n" if status is HTTPStatus.SERVICE_UNAVAILABLE else ""
    return (
        f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n{later}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()
