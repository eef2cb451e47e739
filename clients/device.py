"""A device's connection to the gateway: pushes in, acknowledgements and events out.

It speaks the Centrifuge client protocol (JSON, version 2) with server-side subscriptions, and keeps itself connected:
after a break it waits (exponentially longer, with jitter), connects again and asks for what it missed by each
channel's epoch and offset. Pushes come in order; a push that was seen already is not given twice, and one that is
withdrawn before anybody read it not at all. Where the server can't fill a gap `gaps` counts it, and the missed messages
don't come. One task owns the socket; calls wait for their own replies, and fail with `Dropped` when the connection
breaks under them. With `get_token` the connection outlives its token: a new one is fetched before the old one ends.
"""

import asyncio
import itertools
import logging
import random
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from nearcast.errors import NearcastError, Unavailable
from nearcast.events import Event
from nearcast.messages import Push, Withdraw, decode_publication

log = logging.getLogger("nearcast.clients")

#: Close codes after which connecting again is pointless (Centrifuge: 3500-3999 and 4500-4999 are terminal).
_TERMINAL = (range(3500, 4000), range(4500, 5000))
#: The token has run out: with another one it works (Centrifuge).
_TOKEN_EXPIRED = 109
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_REPLY_S = 10.0
#: After so long a new token that could not be had, or was not taken, is asked for again.
_RENEW_AGAIN_S = 1.0
#: Pushes that wait for the reader; more means that nobody reads, and the oldest are dropped.
_MAX_WAITING = 1_000


class Refused(NearcastError):
    """The server said no; repeating won't help. `reason` is the problem's stable code."""

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail


class Dropped(Unavailable):
    """The connection broke before the reply came: the call may or may not have happened. Calls are idempotent."""


class Coupon(msgspec.Struct, frozen=True):
    """What `apply` gives: show `code` at the till until `expires_ms`."""

    code: str
    expires_ms: int


class Claim(msgspec.Struct, frozen=True):
    """Who goes to the customer; `won` if it is this device."""

    claimed_by: str
    won: bool


class _Acknowledged(msgspec.Struct):
    won: bool = True


class _Publication(msgspec.Struct):
    data: msgspec.Raw
    offset: int = 0


class _Subscribed(msgspec.Struct):
    """A server-side subscription, in the reply to connect or pushed later."""

    epoch: str = ""
    offset: int = 0
    recoverable: bool = False
    recovered: bool = False
    was_recovering: bool = False
    publications: list[_Publication] = []


class _Connected(msgspec.Struct):
    client: str = ""
    #: Seconds until another token is wanted; 0: never.
    ttl: float = 0.0
    ping: float = 0.0
    pong: bool = False
    subs: dict[str, _Subscribed] = {}


class _Refreshed(msgspec.Struct):
    ttl: float = 0.0


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    temporary: bool = False


class _Result(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Disconnect(msgspec.Struct):
    code: int = 0
    reason: str = ""


class _Pushed(msgspec.Struct):
    channel: str = ""
    pub: _Publication | None = None
    subscribe: _Subscribed | None = None
    unsubscribe: _Disconnect | None = None
    disconnect: _Disconnect | None = None


class _Reply(msgspec.Struct):
    """One message from the server; with nothing in it, it is a ping."""

    id: int = 0
    error: _Error | None = None
    connect: _Connected | None = None
    rpc: _Result | None = None
    refresh: _Refreshed | None = None
    push: _Pushed | None = None


class _Position(msgspec.Struct):
    epoch: str
    offset: int


_decode_reply = msgspec.json.Decoder(_Reply).decode


class Device:
    """One phone or tablet. Use as an async context manager; iterate for pushes until it is closed.

    `device` is its own id, by which it knows that it was the first to acknowledge a message; give the same one after a
    restart of the app. `get_token` fetches a token; what it raises is tried again, but for `Refused`.
    `on_push`, if given, is called with each raw publication (channel, data) instead of queueing a `Push`. `on_withdraw`
    is called for a message that must not be shown any more, whether or not it ever was.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        name: str = "python",
        device: str | None = None,
        get_token: Callable[[], Awaitable[str]] | None = None,
        on_push: Callable[[str, bytes], None] | None = None,
        on_withdraw: Callable[[Withdraw], None] | None = None,
    ) -> None:
        self.gaps = 0
        self.connects = 0
        self.device = device or secrets.token_hex(8)
        self._url = url
        self._token = token
        self._get_token = get_token
        self._token_expired = False
        self._ttl_s = 0.0
        self._name = name
        self._on_push = on_push
        self._on_withdraw = on_withdraw
        self._socket: ClientConnection | None = None
        self._pings: tuple[float, bool] = (0.0, False)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[_Reply]] = {}
        self._positions: dict[str, _Position] = {}
        self._pushes: deque[Push] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._ready = asyncio.Event()
        self._refused: Refused | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.open_connection()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    async def open_connection(self, timeout_s: float = 10.0) -> None:
        """Connect, and stay connected until `close`. Raises `Refused` for a bad token, `Unavailable` after the time."""
        self._ended, self._refused = False, None
        self._task = asyncio.create_task(self._run(), name=f"device {self._name}")
        await self.wait_connected(timeout_s)

    async def wait_connected(self, timeout_s: float = 10.0) -> None:
        """Until the connection stands (again). Raises like `open_connection`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.connected and self._refused is None:
                    await self._ready.wait()
        except TimeoutError:
            raise Unavailable(f"no connection to the gateway within {timeout_s} s") from None
        if self._refused is not None:
            raise self._refused

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._end()

    async def __aiter__(self) -> AsyncIterator[Push]:
        """Pushes as they come. Ends with `close`; raises `Refused` if the server turned the device away for good."""
        while self._pushes or not self._ended:
            if self._pushes:
                yield self._pushes.popleft()
            else:
                self._news.clear()
                await self._news.wait()
        if self._refused is not None:
            raise self._refused

    async def event(self, event: Event) -> None:
        """Hand one event over; when this returns it is durable in the log."""
        await self.call("event", msgspec.Raw(msgspec.json.encode(event)))

    async def send_event(self, event: Event) -> None:
        """Hand one event over without waiting for a reply: cheap, and lost if the connection is just breaking."""
        await self._write({"send": {"data": msgspec.Raw(msgspec.json.encode(event))}})

    async def ack(self, push: Push) -> bool:
        """Say that the device shows the push. False if another device of the customer was first: show it no more."""
        named = {"message": push.message, "decision": push.decision, "device": self.device}
        return msgspec.json.decode(await self.call("ack", named), type=_Acknowledged).won

    async def open(self, push: Push) -> None:
        """Say that the customer looked at it."""
        await self.call("open", {"message": push.message, "decision": push.decision})

    async def dismiss(self, push: Push) -> None:
        """Say that the customer closed it: their other devices close it, too."""
        await self.call("dismiss", {"message": push.message, "decision": push.decision})

    async def apply(self, push: Push) -> Coupon:
        """Take the offer. The same code again on a second call."""
        return msgspec.json.decode(await self.call("apply", {"decision": push.decision}), type=Coupon)

    async def claim(self, push: Push) -> Claim:
        """Staff: "I'll go". Exactly one device wins."""
        return msgspec.json.decode(await self.call("assist.claim", {"message": push.message}), type=Claim)

    async def close_assist(self, push: Push, outcome: Literal["helped", "not_found", "other"]) -> None:
        """Staff: the alert that this device claimed is done with."""
        named = {"message": push.message, "decision": push.decision, "outcome": outcome}
        await self.call("assist.close", named)

    async def call(self, method: str, data: object) -> bytes:
        """One RPC; its data as JSON. Raises `Refused`, `Dropped` or `Unavailable`."""
        reply = await self._ask(method, {"rpc": {"method": method, "data": data}})
        return bytes(reply.rpc.data) if reply.rpc is not None else b"null"

    async def _ask(self, what: str, command: dict[str, Any]) -> _Reply:
        number = next(self._ids)
        future: asyncio.Future[_Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._write({"id": number, **command})
            async with asyncio.timeout(_REPLY_S):
                reply = await future
        except TimeoutError:
            raise Unavailable(f"no reply to {what} within {_REPLY_S} s") from None
        finally:
            self._waiting.pop(number, None)
        if reply.error is not None:
            if reply.error.temporary:
                raise Unavailable(f"{what}: {reply.error.message}")
            raise Refused(reply.error.code, reply.error.message)
        return reply

    async def _write(self, command: dict[str, Any]) -> None:
        if self._socket is None or not self.connected:
            raise Dropped("not connected")
        try:
            await self._socket.send(msgspec.json.encode(command).decode())
        except WebSocketException as error:
            raise Dropped(str(error)) from error

    async def _run(self) -> None:
        """Connect, read until it breaks, wait, again; until cancelled or turned away."""
        wait_s = _SHORTEST_WAIT_S
        while True:
            try:
                if self._token_expired and self._get_token is not None:
                    self._token = await self._new_token(self._get_token)
                    self._token_expired = False
                async with connect(
                    self._url, compression=None, ping_interval=None, open_timeout=_REPLY_S, close_timeout=1, proxy=None
                ) as socket:
                    self._socket = socket
                    await self._greet(socket)
                    wait_s = _SHORTEST_WAIT_S
                    await self._stay(socket)
            except Refused as refusal:
                self._refused = refusal
                self._end()
                self._ready.set()
                return
            except (WebSocketException, InvalidHandshake, OSError, TimeoutError, Unavailable):
                pass
            finally:
                self._lose()
            # Full jitter: devices that lost one gateway must not come back in step.
            await asyncio.sleep(random.uniform(_SHORTEST_WAIT_S, wait_s) if wait_s > _SHORTEST_WAIT_S else wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    async def _new_token(self, get_token: Callable[[], Awaitable[str]]) -> str:
        """Raises `Refused`, or `Unavailable` for whatever else keeps the app from giving one."""
        try:
            return await get_token()
        except Refused:
            raise
        except Exception as error:
            log.warning("get_token failed: %s", type(error).__name__)
            raise Unavailable("there is no new token yet") from error

    async def _stay(self, socket: ClientConnection) -> None:
        """Read until it breaks; renew the token meanwhile."""
        renewal = asyncio.create_task(self._renew(), name=f"device {self._name}: token")
        try:
            await self._read(socket)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)

    async def _renew(self) -> None:
        ttl_s = self._ttl_s
        while ttl_s and self._get_token is not None:
            await asyncio.sleep(ttl_s)
            try:
                self._token = await self._new_token(self._get_token)
                reply = await self._ask("refresh", {"refresh": {"token": self._token}})
            except (Refused, Unavailable):
                # If it goes on like this the server closes the connection, and the next one begins with a new token.
                ttl_s = _RENEW_AGAIN_S
            else:
                ttl_s = reply.refresh.ttl if reply.refresh is not None else 0.0

    async def _greet(self, socket: ClientConnection) -> None:
        subs = {
            channel: {"recover": True, "epoch": position.epoch, "offset": position.offset}
            for channel, position in self._positions.items()
        }
        number = next(self._ids)
        command = {"id": number, "connect": {"token": self._token, "name": self._name, "subs": subs}}
        await socket.send(msgspec.json.encode(command).decode())
        async with asyncio.timeout(_REPLY_S):
            while True:
                for reply in await self._receive(socket):
                    if reply.id != number:
                        continue
                    if reply.error is not None:
                        self._token_expired = reply.error.code == _TOKEN_EXPIRED
                        if reply.error.temporary or (self._token_expired and self._get_token is not None):
                            raise Unavailable(reply.error.message)
                        raise Refused(reply.error.code, reply.error.message)
                    self._greeted(reply.connect or _Connected())
                    return

    def _greeted(self, connected: _Connected) -> None:
        self._pings = (connected.ping, connected.pong)
        self._ttl_s = connected.ttl
        for channel, subscribed in connected.subs.items():
            self._subscribed(channel, subscribed)
        self.connects += 1
        self._ready.set()

    def _subscribed(self, channel: str, subscribed: _Subscribed) -> None:
        known = self._positions.get(channel)
        if known is not None and not subscribed.recovered:
            self.gaps += 1
        if known is None or known.epoch != subscribed.epoch or not subscribed.recovered:
            # Everything from here on is new; what recovery brings comes on top.
            self._positions[channel] = _Position(subscribed.epoch, subscribed.offset - len(subscribed.publications))
        for publication in subscribed.publications:
            self._published(channel, publication)
        self._positions[channel].offset = max(self._positions[channel].offset, subscribed.offset)

    def _published(self, channel: str, publication: _Publication) -> None:
        position = self._positions.get(channel)
        if position is not None and publication.offset:
            if publication.offset <= position.offset:
                return
            position.offset = publication.offset
        if self._on_push is not None:
            self._on_push(channel, bytes(publication.data))
            return
        try:
            what = decode_publication(publication.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # A kind of later days, or a publication that is no message (`store:`, `zone:`): for `on_push`.
            return
        if isinstance(what, Withdraw):
            self._withdrawn(what)
            return
        if len(self._pushes) == _MAX_WAITING:
            self._pushes.popleft()
            self.gaps += 1
        self._pushes.append(what)
        self._news.set()

    def _withdrawn(self, withdraw: Withdraw) -> None:
        if withdraw.reason == "elsewhere" and withdraw.by == self.device:
            # This is the device that shows it.
            return
        self._pushes = deque(push for push in self._pushes if push.message != withdraw.message)
        if self._on_withdraw is not None:
            self._on_withdraw(withdraw)

    async def _read(self, socket: ClientConnection) -> None:
        ping_s, pong = self._pings
        while True:
            # The server pings; silence for longer than that means that the link is dead.
            async with asyncio.timeout(ping_s + _REPLY_S if ping_s else None):
                replies = await self._receive(socket)
            for reply in replies:
                if reply.id:
                    future = self._waiting.get(reply.id)
                    if future is not None and not future.done():
                        future.set_result(reply)
                elif reply.push is not None:
                    self._handle(reply.push)
                elif pong:
                    await socket.send("{}")

    async def _receive(self, socket: ClientConnection) -> list[_Reply]:
        """The messages of one frame. A terminal close raises `Refused`."""
        try:
            frame = await socket.recv(decode=False)
        except WebSocketException:
            code, reason = socket.close_code or 0, socket.close_reason or ""
            if any(code in codes for codes in _TERMINAL):
                raise Refused(code, reason or "disconnected") from None
            raise
        return [_decode_reply(line) for line in frame.splitlines() if line]

    def _handle(self, pushed: _Pushed) -> None:
        if pushed.pub is not None:
            self._published(pushed.channel, pushed.pub)
        elif pushed.subscribe is not None:
            self._subscribed(pushed.channel, pushed.subscribe)
        elif pushed.unsubscribe is not None:
            self._positions.pop(pushed.channel, None)
        elif pushed.disconnect is not None and any(pushed.disconnect.code in codes for codes in _TERMINAL):
            raise Refused(pushed.disconnect.code, pushed.disconnect.reason)

    def _lose(self) -> None:
        self._socket = None
        self._ready.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Dropped("the connection broke"))

    def _end(self) -> None:
        self._ended = True
        self._news.set()
