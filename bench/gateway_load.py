"""Clients of a gateway, thousands in a process, with the real frames of the Centrifuge protocol (JSON, version 2).

    python -m bench.gateway_load

Reads orders and writes one answer to each, as JSON lines. A group of clients is connected by `Connect`; all that
follows names its group. Every publication's offset must follow the one before it (`gaps`), live or recovered. A
connection that is lost is made anew as the JavaScript SDK does it: after 0.5 to 1 s, then with a doubling, spread
pause, from the last position, at most 5 s for an attempt.

Clients come from several loopback addresses, since one has ports for 28,000 connections only, and a gateway may limit
how many it takes from one.
"""

import array
import asyncio
import contextlib
import ctypes
import os
import random
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

import jwt
import msgspec
import numpy as np

from bench.processes import write
from server.collecting import look_for_garbage_seldom

Manner = Literal["never", "trickle", "vanish"]
MANNERS: tuple[Manner, ...] = ("never", "trickle", "vanish")

_PER_ADDRESS = 900
_ATTEMPT_WITHIN_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
#: Nobody is kept out for so long but by a mistake.
_GIVE_UP_AFTER_S = 180.0
#: Not in `socket`: drops what comes in for this socket as if the network had lost it (Linux).
_SO_ATTACH_FILTER = 26
_TOKEN_VALID_S = 6 * 3_600


class Connect(msgspec.Struct, tag=True):
    """Connect clients `first` to `first + count - 1`, which are customers `c<number>`; answered with `Back`."""

    group: str
    port: int
    first: int
    count: int
    secret: str
    #: Their channels beside their own.
    channels: list[str] = []
    #: Of the process, so that no two use the same addresses: 127.<subnet>.x.y.
    subnet: int = 1
    #: Small receive buffers, for those who will not read.
    narrow: bool = False
    at_once: int = 100


class Cut(msgspec.Struct, tag=True):
    """Break the connections of the first `count` at once, and have them connect again; answered with `Back`."""

    group: str
    count: int


class Misbehave(msgspec.Struct, tag=True):
    """From now on one in three never reads, one reads a byte a second, one is gone without a word; `Counts`."""

    group: str


class Drop(msgspec.Struct, tag=True):
    """Forget the group and its connections; `Counts`."""

    group: str


class Count(msgspec.Struct, tag=True):
    """`Counts`."""

    group: str


class Mark(msgspec.Struct, tag=True):
    """Forget the times of publications; `Counts`."""

    group: str


class Save(msgspec.Struct, tag=True):
    """Write the times of publications since `Mark` to a file (see `Group.save`); `Counts`."""

    group: str
    file: str


Order = Connect | Cut | Misbehave | Drop | Count | Mark | Save


class Back(msgspec.Struct):
    """They are all connected, and subscribed."""

    seconds: float
    attempts: int


class Counts(msgspec.Struct):
    connected: int
    #: Publications, live or recovered.
    received: int
    #: Those whose offset was not the next one.
    gaps: int
    #: Reconnects that the server could not, or would not, fill up.
    unrecovered: int
    #: Connections that ended without our doing.
    lost: int
    #: Of the last publication's frame, header included.
    frame_bytes: int


class _Data(msgspec.Struct):
    #: Of this benchmark's publications; the other two are those of a `Push`.
    at: int = 0
    event: str = ""
    message: str = ""


class _Publication(msgspec.Struct):
    data: _Data
    offset: int = 0


class _Push(msgspec.Struct):
    channel: str = ""
    pub: _Publication | None = None


class _Subscribed(msgspec.Struct):
    epoch: str = ""
    offset: int = 0
    recovered: bool = False
    publications: list[_Publication] = []


class _Connected(msgspec.Struct):
    subs: dict[str, _Subscribed] = {}


class _Error(msgspec.Struct):
    code: int
    message: str = ""


class _Line(msgspec.Struct):
    """One line of what a server sends; none of these is a ping."""

    push: _Push | None = None
    connect: _Connected | None = None
    error: _Error | None = None


class _Position(NamedTuple):
    epoch: str
    offset: int


_DECODE = msgspec.json.Decoder(_Line).decode


def masked(payload: bytes) -> bytes:
    """A text frame as a client sends it. The mask is zero: nobody has to be kept from guessing it here."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, 0x80 | size, 0, 0, 0, 0)) + payload
    return b"\x81\xfe" + struct.pack("!HI", size, 0) + payload


_PONG = masked(b"{}")
_HANDSHAKE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def frames(data: bytes, start: int) -> Iterable[tuple[int, int, int]]:
    """Opcode, start and end of the payload, of every whole frame from a server."""
    size = len(data)
    while size - start >= 2:
        first, length = data[start], data[start + 1]
        body = start + 2
        if length >= 126:
            wide = 2 if length == 126 else 8
            if size - body < wide:
                return
            length = int.from_bytes(data[body : body + wide], "big")
            body += wide
        if size - body < length:
            return
        if not first & 0x80:
            raise ValueError("a fragmented message, which this client does not expect")
        yield first & 0x0F, body, body + length
        start = body + length


class Client(asyncio.Protocol):
    """One customer's device. Reads as fast as it can until told otherwise."""

    def __init__(self, group: "Group", token: str, address: str) -> None:
        self._group = group
        self._token = token
        self.address = address
        self.positions: dict[str, _Position] = {}
        self._transport: asyncio.Transport | None = None
        self._sock: socket.socket | None = None
        self._rest = b""
        self._opened = self._asked = False
        self._connected: asyncio.Future[None] | None = None
        self._manner: Manner | None = None

    async def connect(self) -> None:
        """Until it is connected, however many attempts it takes. Raises `RuntimeError` after minutes of them."""
        pause_s, since_s = _FIRST_PAUSE_S, time.monotonic()
        while True:
            self._group.attempts += 1
            try:
                async with asyncio.timeout(_ATTEMPT_WITHIN_S):
                    await self._attempt()
                return
            except (OSError, TimeoutError) as error:
                self.abort()
                if time.monotonic() > since_s + _GIVE_UP_AFTER_S:
                    codes = f"; errors by code: {self._group.errors}" if self._group.errors else ""
                    raise RuntimeError(f"a client can't connect: {error!r}{codes}") from error
            await asyncio.sleep(_FIRST_PAUSE_S + random.uniform(0, pause_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def reconnect(self) -> None:
        await asyncio.sleep(_FIRST_PAUSE_S + random.uniform(0, _FIRST_PAUSE_S))
        await self.connect()

    async def _attempt(self) -> None:
        loop = asyncio.get_running_loop()
        self._connected = loop.create_future()
        self._sock = sock = socket.socket()
        sock.setblocking(False)
        if self._group.narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        try:
            sock.bind((self.address, 0))
            await loop.sock_connect(sock, ("127.0.0.1", self._group.port))
        except BaseException:
            sock.close()
            raise
        await loop.create_connection(lambda: self, sock=sock)
        await self._connected

    def abort(self) -> None:
        """Break the connection, without a word to the server."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    def misbehave(self, manner: Manner) -> None:
        self._manner = manner
        if self._transport is None or self._sock is None:
            return
        self._transport.pause_reading()
        if manner == "vanish":
            vanish(self._sock)

    def nibble(self) -> None:
        """Read one byte."""
        if self._manner == "trickle" and self._sock is not None and self._transport is not None:
            with contextlib.suppress(OSError):
                self._sock.recv(1)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._rest, self._opened, self._asked = b"", False, False
        self._transport.write(_HANDSHAKE)

    def connection_lost(self, _: Exception | None) -> None:
        connected, self._transport, was_there = self._connected, None, self._transport is not None
        if connected is None:
            return
        if not connected.done():
            connected.set_exception(ConnectionResetError("closed before it was connected"))
        elif was_there and not connected.cancelled() and connected.exception() is None and self._manner is None:
            # An attempt that was given up just now, or failed, is followed by another one without us.
            self._group.broke(self)

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if self._rest:
            data = self._rest + data
        done = 0
        if not self._opened:
            done = data.find(b"\r\n\r\n") + 4
            if done < 4:
                self._rest = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self._end()
                return
            self._opened = True
            self._ask()
        for opcode, start, end in frames(data, done):
            if opcode == 1:
                received = self._group.received
                for line in data[start:end].split(b"\n"):
                    self._take(line, now_ns)
                if self._group.received > received:
                    self._group.frame_bytes = end - done
            elif opcode == 8:
                self._end()
                return
            done = end
        self._rest = data[done:]

    def _ask(self) -> None:
        subs = {
            channel: {"recover": True, "epoch": position.epoch, "offset": position.offset}
            for channel, position in self.positions.items()
        }
        connect = {"id": 1, "connect": {"token": self._token, "name": "bench", **({"subs": subs} if subs else {})}}
        assert self._transport is not None
        self._transport.write(masked(msgspec.json.encode(connect)))

    def _take(self, line: bytes, now_ns: int) -> None:
        if line == b"{}":
            if self._transport is not None:
                self._transport.write(_PONG)
            return
        said = _DECODE(line)
        if said.push is not None:
            if said.push.pub is not None:
                self._publication(said.push.channel, said.push.pub)
                if said.push.pub.data.at or said.push.pub.data.event:
                    self._group.note(said.push.pub.data, now_ns)
        elif said.connect is not None:
            for channel, sub in said.connect.subs.items():
                self._subscribed(channel, sub)
            if self._connected is not None and not self._connected.done():
                self._connected.set_result(None)
        elif said.error is not None:
            self._group.errors[said.error.code] = self._group.errors.get(said.error.code, 0) + 1
            self._end()

    def _subscribed(self, channel: str, sub: _Subscribed) -> None:
        before = self.positions.get(channel)
        if before is not None and sub.recovered and sub.epoch == before.epoch:
            for publication in sub.publications:
                self._publication(channel, publication)
            self._group.gaps += self.positions[channel].offset != sub.offset
        else:
            self._group.unrecovered += before is not None
            self.positions[channel] = _Position(sub.epoch, sub.offset)

    def _publication(self, channel: str, publication: _Publication) -> None:
        epoch, offset = self.positions.get(channel, _Position("", 0))
        self._group.gaps += publication.offset != offset + 1
        self.positions[channel] = _Position(epoch, publication.offset)
        self._group.received += 1

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Group:
    """Clients that are told what to do together."""

    def __init__(self, order: Connect) -> None:
        self.port = order.port
        self.narrow = order.narrow
        self.received = self.gaps = self.unrecovered = self.lost = self.attempts = self.frame_bytes = 0
        self.errors: dict[int, int] = {}
        self._away: set[asyncio.Task[None]] = set()
        self._at_ns, self._seen_ns = array.array("q"), array.array("q")
        self._events: list[str] = []
        self._messages: list[str] = []
        now_s = int(time.time())
        self.clients = []
        for place in range(order.count):
            number = order.first + place
            claims = {
                "sub": f"c{number}",
                "role": "customer",
                "channels": [f"customer:c{number}", *order.channels],
                "iat": now_s - 1,
                "exp": now_s + _TOKEN_VALID_S,
            }
            host = 2 + place // _PER_ADDRESS
            address = f"127.{order.subnet}.{host // 250}.{host % 250 + 1}"
            self.clients.append(Client(self, jwt.encode(claims, order.secret, algorithm="HS256"), address))

    async def connect(self, at_once: int) -> Back:
        started, slots = time.monotonic(), asyncio.Semaphore(at_once)

        async def one(client: Client) -> None:
            async with slots:
                await client.connect()

        await asyncio.gather(*map(one, self.clients))
        return Back(time.monotonic() - started, self.attempts)

    async def cut(self, count: int) -> Back:
        started, before = time.monotonic(), self.attempts
        for client in self.clients[:count]:
            client.abort()
        await asyncio.gather(*(client.reconnect() for client in self.clients[:count]))
        while self._away:
            await asyncio.wait(self._away)
        return Back(time.monotonic() - started, self.attempts - before)

    def broke(self, client: Client) -> None:
        """Its connection ended, and not by us."""
        self.lost += 1
        task = asyncio.get_running_loop().create_task(client.reconnect())
        self._away.add(task)
        task.add_done_callback(self._away.discard)

    def misbehave(self) -> None:
        for place, client in enumerate(self.clients):
            client.misbehave(MANNERS[place % len(MANNERS)])
        self._away.add(task := asyncio.get_running_loop().create_task(self._nibble()))
        task.add_done_callback(self._away.discard)

    async def _nibble(self) -> None:
        while True:
            await asyncio.sleep(1)
            for client in self.clients:
                client.nibble()

    def note(self, data: _Data, now_ns: int) -> None:
        self._at_ns.append(data.at)
        self._seen_ns.append(now_ns)
        if data.event:
            self._events.append(data.event)
            self._messages.append(data.message)

    def mark(self) -> None:
        self._at_ns, self._seen_ns = array.array("q"), array.array("q")
        self._events, self._messages = [], []

    def save(self, file: str) -> None:
        """`at_ns` as the publications say, `seen_ns` when each was read, and the events and messages they name."""
        np.savez(
            file,
            at_ns=np.array(self._at_ns, dtype=np.int64),
            seen_ns=np.array(self._seen_ns, dtype=np.int64),
            events=np.array(self._events, dtype=np.str_),
            messages=np.array(self._messages, dtype=np.str_),
        )

    def drop(self) -> None:
        for task in self._away:
            task.cancel()
        for client in self.clients:
            client.abort()

    def counts(self) -> Counts:
        connected = sum(client._transport is not None for client in self.clients)  # noqa: SLF001  # it is our own
        return Counts(connected, self.received, self.gaps, self.unrecovered, self.lost, self.frame_bytes)


def vanish(sock: socket.socket) -> None:
    """From now on the kernel drops every packet for this socket: the peer hears no more of it, not even a reset."""
    # One instruction of the classic packet filter: return 0, keep nothing.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def raise_limit() -> None:
    """As many descriptors as the system lets us have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def answer(groups: dict[str, Group], order: Order) -> Back | Counts:
    if isinstance(order, Connect):
        group = groups[order.group] = Group(order)
        return await group.connect(order.at_once)
    group = groups[order.group]
    match order:
        case Cut(count=count):
            return await group.cut(count)
        case Misbehave():
            group.misbehave()
        case Mark():
            group.mark()
        case Save(file=file):
            group.save(file)
        case Drop():
            group.drop()
            del groups[order.group]
    return group.counts()


async def work() -> None:
    raise_limit()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    groups: dict[str, Group] = {}
    decoder = msgspec.json.Decoder(Order)
    while line := await reader.readline():
        write(await answer(groups, decoder.decode(line)))
    # What is left ends with the process; closing thousands of sockets one by one only takes time.
    os._exit(0)


if __name__ == "__main__":
    # Pauses of ours would be taken for the server's.
    look_for_garbage_seldom()
    asyncio.run(work())
