"""Plain HTTP on the gateway's port: health, and the way in for networks that block WebSockets.

`GET /connection/sse` and `POST /connection/http_stream` answer with a response that does not end, `POST /emulation`
takes commands for it. h11 reads and writes HTTP/1.1; here are the paths, what a page may ask, and the time limits.

A token may be part of an address: no address is ever logged.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast
from urllib.parse import parse_qs

import h11
import msgspec

from channels.gateway.addresses import Addresses
from channels.gateway.client import Services
from channels.gateway.emulation import NOT_JSON, BadEventId, Emulated, Kind, Post, Sessions, parse_event_id, resume
from channels.gateway.hub import end
from channels.gateway.transport import cut_off
from channels.gateway.turnstile import Turnstile
from nearcast.errors import InputError, Unavailable
from nearcast.metrics import REFUSED

HEALTH_PATH = "/health"
EVENTS_PATH = "/connection/sse"
LINES_PATH = "/connection/http_stream"
POST_PATH = "/emulation"
#: How a request for a WebSocket begins.
WEBSOCKET = b"GET /connection/websocket"
_METHODS = {HEALTH_PATH: "GET", EVENTS_PATH: "GET", LINES_PATH: "POST", POST_PATH: "POST"}

#: How long a connection may stay unused between two requests. Longer than the pings that clients answer by POST.
KEEP_ALIVE_S = 60.0
#: For request line and headers: the address of an event stream holds a token, `Last-Event-ID` up to 32 channels.
MAX_HEAD_BYTES = 16 * 1024
#: Answers that may wait for a client that only asks.
MAX_UNREAD_BYTES = 64 * 1024
#: When to try again, as an HTTP header says it; SDKs have times of their own.
RETRY_AFTER_S = 5
#: After how long an EventSource connects again, by chance between these. SDKs have times of their own.
RETRY_MS = (500, 5_000)

Headers = list[tuple[str, str]]

_post = msgspec.json.Decoder(Post)


class Request(NamedTuple):
    """A request's head."""

    method: str
    path: str
    query: str
    headers: dict[str, str]


class Spare(Protocol):
    """A connection that can be cut off."""

    def abort(self) -> None: ...


class Fallback:
    """Answers what is not a WebSocket. Give it a connection with `answer`; set `draining` before the end."""

    def __init__(self, services: Services, sessions: Sessions, addresses: Addresses, turnstile: Turnstile) -> None:
        self.services = services
        self.sessions = sessions
        self.addresses = addresses
        self.turnstile = turnstile
        self.draining = False
        #: Takes a connection back on which a request for a WebSocket follows others, as proxies do that keep some open.
        self.take_back: Callable[[asyncio.Transport, bytes], None] = _refuse_websocket
        #: Whether the node has more connections than it may have.
        self.is_full: Callable[[], bool] = lambda: False
        self.open: set[HttpConnection] = set()
        #: Who goes first when there is no room: connections that wait for a request to come, or have been refused;
        #: of WebSockets, too. Longest first.
        self.spare: dict[Spare, None] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def answer(self, transport: asyncio.Transport, first: bytes, address: str | None) -> None:
        """Take over a connection on which `first` has been read. `address` is where it has been counted, if it has."""
        connection = HttpConnection(self, address)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(first)

    @property
    def turned_away_because(self) -> str:
        """Why the turnstile lets somebody not in, as the metric says it."""
        return "stopping" if self.draining else "newcomers"

    async def stop(self) -> None:
        """Close what is still open. Clients should have left before."""
        for connection in list(self.open):
            connection.abort()
        await end(list(self.tasks))
        await self.sessions.stop()


def _refuse_websocket(transport: asyncio.Transport, _first: bytes) -> None:
    transport.abort()


class HttpConnection(asyncio.Protocol):
    """One connection: request after request, until one of them gets a response that does not end."""

    def __init__(self, site: Fallback, address: str | None) -> None:
        self._site = site
        self._address = address
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._transport: asyncio.Transport
        self._request: Request | None = None
        self._body = bytearray()
        #: What browsers want to read in every answer to a page of another origin.
        self._cors: Headers = []
        self._waits_for_node = False
        #: What is asked for by who waits to be let in.
        self._newcomer: tuple[Kind, str] | None = None
        self._emulated: Emulated | None = None
        self._idle = False

    # The connection, for asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._site.open.add(self)
        self._limit(self._site.services.settings.connect_timeout_s)

    def connection_lost(self, _error: Exception | None) -> None:
        self._site.turnstile.leave(self)
        if self._emulated is not None:
            self._site.sessions.close(self._emulated)
        self._forget()

    def _forget(self) -> None:
        self._site.open.discard(self)
        self._unlimit()
        if self._address is not None:
            self._site.addresses.leave(self._address)

    def data_received(self, data: bytes) -> None:
        if self._emulated is not None or self._newcomer is not None:
            # Nothing can be answered behind a response that does not end.
            self._transport.abort()
            return
        if self._idle and data.startswith(WEBSOCKET):
            self._forget()
            self._site.take_back(self._transport, data)
            return
        if self._idle:
            self._idle = False
            self._limit(self._site.services.settings.connect_timeout_s)
        self._http.receive_data(data)
        self._turn()

    def pause_writing(self) -> None:
        if self._emulated is not None:
            # Its backlog is its client's to bound.
            self._emulated.stream.pause()
        elif self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._transport.abort()

    def resume_writing(self) -> None:
        if self._emulated is not None:
            self._emulated.stream.resume()

    def due(self, _now_s: float) -> None:
        """The wheel's turn: a request has not come in time."""
        self._transport.abort()

    # A response that does not end, for the client behind it.

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing() and self._http.our_state is h11.SEND_BODY

    @property
    def backlog(self) -> int:
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if self.is_open:
            self._send(h11.Data(data=data))

    def end(self) -> None:
        if self.is_open:
            self._send(h11.EndOfMessage())
            self._transport.close()

    def abort(self) -> None:
        cut_off(self._transport)

    # Requests.

    def _turn(self) -> None:
        while not (self._waits_for_node or self._newcomer or self._emulated or self._transport.is_closing()):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as problem:
                self._refuse(problem.error_status_hint, "This is not HTTP/1.1.")
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._body += event.data
                # Commands are a JSON string within the body, so most quotes in them count twice.
                if len(self._body) > 2 * self._site.services.settings.max_frame_bytes:
                    self._refuse(413, "The commands are too long.")
            elif isinstance(event, h11.EndOfMessage):
                self._carry_out()
                waits = self._waits_for_node or self._newcomer or self._emulated
                if self._http.trailing_data[0] and not waits and not self._transport.is_closing():
                    # Of many requests that came together, one at a time: others want their turn, too.
                    self._transport.pause_reading()
                    asyncio.get_running_loop().call_soon(self._next_turn)
                    return
            elif isinstance(event, h11.ConnectionClosed):
                self._transport.close()
            else:  # More is needed, or nothing may follow.
                return

    def _next_turn(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._turn()

    def _begin(self, event: h11.Request) -> None:
        path, _, query = event.target.decode("ascii").partition("?")
        headers: dict[str, str] = {}
        for name, value in event.headers:
            earlier = headers.get(name.decode("ascii"))
            text = value.decode("latin-1")
            headers[name.decode("ascii")] = text if earlier is None else f"{earlier},{text}"
        self._request = Request(event.method.decode("ascii"), path, query, headers)
        if "transfer-encoding" in headers:
            # Browsers say how much comes, and thousands of tiny pieces would be work.
            self._refuse(411, "Say the length of the body.")
            return
        if self._http.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))

    def _carry_out(self) -> None:
        request = self._request
        if request is None:
            raise RuntimeError("h11 gives a request before its end")
        method = _METHODS.get(request.path)
        origin = request.headers.get("origin")
        if method is None:
            self._answer(404, "There is nothing here.")
        elif origin is not None and origin not in self._site.services.settings.origins:
            self._answer(403, "Pages of this origin may not connect.")
        else:
            if origin is not None:
                self._cors = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
            if request.method == "OPTIONS":
                self._preflight(method)
            elif request.method != method and (request.method, request.path) != ("HEAD", HEALTH_PATH):
                self._answer(405, f"Only {method} is possible here.", [("Allow", f"{method}, OPTIONS")])
            else:
                self._route(request)

    def _route(self, request: Request) -> None:
        if self._site.draining and request.path != POST_PATH:
            self._turn_down(503, "stopping", "This node goes away; another one answers.")
        elif request.path == HEALTH_PATH:
            self._answer(200, "ok")
        elif request.path == POST_PATH:
            self._post()
        elif request.path == EVENTS_PATH:
            self._events(request)
        elif self._header("content-type").startswith("application/octet-stream"):
            self._answer(415, "This server speaks the JSON protocol: turn Protobuf off.")
        else:
            self._stream(Kind.LINES, bytes(self._body))

    def _preflight(self, method: str) -> None:
        allowed = [
            ("Access-Control-Allow-Methods", method),
            ("Access-Control-Allow-Headers", "content-type"),
            ("Access-Control-Max-Age", "86400"),
        ]
        self._answer(204, "", allowed)

    def _events(self, request: Request) -> None:
        try:
            [command] = parse_qs(request.query, encoding="utf-8", errors="strict", max_num_fields=8)["cf_connect"]
            # Browsers send what is not ASCII in a header as UTF-8; ids of ours are ASCII.
            positions = parse_event_id(self._header("last-event-id"))
        except BadEventId:
            self._answer(400, "Last-Event-ID is none of this server's.")
        except (KeyError, ValueError):
            self._answer(400, "cf_connect must be a connect command, once.")
        else:
            self._stream(Kind.EVENTS, (resume(command, positions) if positions else command).encode())

    def _stream(self, kind: Kind, commands: bytes) -> None:
        if len(commands) > self._site.services.settings.max_frame_bytes:
            self._refuse(413, "The commands are too long.")
            return
        try:
            text = commands.decode()
        except UnicodeDecodeError:
            self._answer(400, "The commands are not UTF-8.")
            return
        if self._site.is_full():
            self._turn_down(503, "full", "This node has as many connections as it may have.", close=True)
            return
        if self._address is None:
            peer = str((self._transport.get_extra_info("peername") or ("",))[0])
            address = self._site.addresses.origin(peer, self._header("x-forwarded-for"))
            if not self._site.addresses.enter(address):
                self._turn_down(429, "address", "There are too many connections from this address.")
                return
            self._address = address
        self._unlimit()
        self._newcomer = kind, text
        self._site.turnstile.enter(self)

    def turn_away(self) -> None:
        """There are too many newcomers."""
        self._newcomer = None
        self._turn_down(503, self._site.turned_away_because, "There are too many newcomers.", close=True)

    def admit(self) -> None:
        """Begin the response that does not end."""
        if self._newcomer is None or self._transport.is_closing():
            return
        (kind, commands), self._newcomer = self._newcomer, None
        headers = [
            ("Content-Type", kind.value),
            ("Cache-Control", "private, no-cache, no-store, must-revalidate, max-age=0"),
            ("X-Accel-Buffering", "no"),
            ("Connection", "close"),
        ]
        self._send(h11.Response(status_code=200, headers=[*headers, *self._common()]))
        if kind is Kind.EVENTS:
            # Some proxies hold headers back until the body begins; and a browser's EventSource would come back after
            # the same time for all.
            self._send(h11.Data(data=b"retry: %d\n\n" % random.randint(*RETRY_MS)))  # noqa: S311  # no secret
        conflate_bytes = self._site.services.settings.conflate_bytes
        self._transport.set_write_buffer_limits(conflate_bytes, conflate_bytes // 4)
        self._site.turnstile.join()
        self._emulated = self._site.sessions.open(self, kind, commands, self._site.turnstile.joined)

    def _post(self) -> None:
        try:
            post = _post.decode(self._body)
        except NOT_JSON:
            self._answer(400, "This must be session, node and data.")
            return
        self._waits_for_node = True
        # What arrives meanwhile is the next request.
        self._transport.pause_reading()
        self._unlimit()
        task = asyncio.create_task(self._hand_in(post), name="gateway-post")
        self._site.tasks.add(task)
        task.add_done_callback(self._site.tasks.discard)

    async def _hand_in(self, post: Post) -> None:
        try:
            await self._site.sessions.post(post)
        except InputError as problem:
            status, text = problem.status, problem.detail
        except Unavailable:
            status, text = 503, "The other nodes can't be reached just now."
        else:
            status, text = 204, ""
        self._waits_for_node = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
            if status in (429, 503):
                self._turn_down(status, "post", text)
            else:
                self._answer(status, text)
            self._turn()

    # Answers.

    def _answer(self, status: int, text: str, more: Sequence[tuple[str, str]] = ()) -> None:
        headers = [*self._common(), *more]
        body = f"{text}\n".encode() if text else b""
        if status != 204:
            headers += [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        self._send(h11.Response(status_code=status, headers=headers))
        if body and not (self._request is not None and self._request.method == "HEAD"):
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._request, self._body, self._cors = None, bytearray(), []
            self._idle = True
            self._limit(KEEP_ALIVE_S)
        else:
            self._transport.close()

    def _turn_down(self, status: int, reason: str, text: str, *, close: bool = False) -> None:
        """Answer who may try again, here or elsewhere."""
        REFUSED.labels(str(status), reason).inc()
        more = [("Connection", "close")] if close else []
        self._answer(status, text, [("Retry-After", str(RETRY_AFTER_S)), *more])

    def _refuse(self, status: int, text: str) -> None:
        """Answer what can't be read to its end, and close."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(status, text, [("Connection", "close")])
        else:
            self._transport.abort()

    def _header(self, name: str) -> str:
        return self._request.headers.get(name, "") if self._request is not None else ""

    def _common(self) -> Headers:
        return [("X-Content-Type-Options", "nosniff"), *self._cors]

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _limit(self, within_s: float) -> None:
        """From now on it waits for a request."""
        self._unlimit()
        self._site.spare[self] = None
        self._site.services.wheel.add(self, self._site.services.clock.monotonic_s() + within_s)

    def _unlimit(self) -> None:
        self._site.spare.pop(self, None)
        self._site.services.wheel.remove(self)
