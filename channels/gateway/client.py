"""One connected client: carries out what its session asks for, one command after the other.

All output goes through `write`, which never waits: a client that doesn't read is closed once its backlog is over the
limit, so it can neither hold up a fan-out nor use up memory. Other clients go on while this one's command is running.
"""

import logging
import math
import uuid
from typing import NamedTuple

import nearcast
from channels.gateway import protocol
from channels.gateway.backend import Backend, Identity
from channels.gateway.codes import (
    BAD_REQUEST,
    EXPIRED,
    INSUFFICIENT_STATE,
    INTERNAL,
    INVALID_TOKEN,
    NO_PONG,
    PERMISSION_DENIED,
    SHUTDOWN,
    SLOW,
    STALE,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    Disconnect,
    ErrorCode,
)
from channels.gateway.hub import Hub, Subscription
from channels.gateway.limits import TokenBucket
from channels.gateway.publications import Publication
from channels.gateway.settings import GatewaySettings
from channels.gateway.tokens import LEEWAY_S, TokenExpired, Tokens, Verified
from channels.gateway.transport import Envelope, Transport
from channels.gateway.wheel import Wheel
from nearcast.clock import Clock
from nearcast.errors import InputError, TooManyRequests, Unauthenticated, Unavailable
from nearcast.metrics import DISCONNECTS, INTAKE

log = logging.getLogger("nearcast.channels.gateway")

VERSION = f"nearcast {nearcast.__version__}"
#: The rpc that carries an event, which counts against the limit of events.
EVENT_METHOD = "event"


def envelope_of(channel: str, publication: Publication) -> Envelope:
    """A publication as every subscriber gets it."""
    return Envelope(protocol.push(channel, publication))


PING = Envelope(protocol.PING)


class Services(NamedTuple):
    """What the clients of one gateway share."""

    settings: GatewaySettings
    tokens: Tokens
    hub: Hub
    backend: Backend
    wheel: Wheel
    clock: Clock


class Client:
    """See the module. `take` what it says, in order, and say when it has `left`."""

    def __init__(self, transport: Transport, services: Services) -> None:
        self._transport = transport
        self._services = services
        self._session = protocol.Session()
        self._id = str(uuid.uuid4())
        self._verified: Verified | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._events = TokenBucket(services.settings.events_per_minute, services.clock)
        self._commands = TokenBucket(services.settings.commands_per_minute, services.clock)
        self._next_ping_s = 0.0
        self._pong_by_s: float | None = None
        self.closed = False
        self._busy = False
        self._draining = False
        services.wheel.add(self, services.clock.monotonic_s() + services.settings.connect_timeout_s)

    async def take(self, message: str | bytes) -> None:
        """Carry out one frame of commands."""
        if not isinstance(message, str):
            self.close(BAD_REQUEST)
            return
        self._busy = True
        for effect in self._session.receive(message):
            if not self.closed:
                await self._carry_out(effect)
        self._busy = False
        if self._draining:
            self.close(SHUTDOWN)

    def left(self) -> None:
        """The connection has ended."""
        self._services.wheel.remove(self)
        for subscription in self._subscriptions.values():
            self._services.hub.leave(subscription)
        self._subscriptions.clear()

    def deliver(self, envelope: Envelope) -> None:
        """A publication, without waiting."""
        if self._has_room():
            self._transport.send_envelope(envelope)

    def _write(self, data: bytes) -> None:
        if self._has_room():
            self._transport.send(data)

    def _has_room(self) -> bool:
        if self.closed or not self._transport.is_open:
            return False
        # The backlog may end up over the limit by this one write, so a long recovery always gets through.
        if self._transport.backlog > self._services.settings.backlog_bytes:
            self.close(SLOW)
            return False
        return True

    def lose(self) -> None:
        """There is a hole in a channel: the client is to connect again, and is told there."""
        self.close(INSUFFICIENT_STATE)

    def drain(self) -> None:
        """Close for shutdown, after the command that is running."""
        self._draining = True
        if not self._busy:
            self.close(SHUTDOWN)

    def close(self, disconnect: Disconnect) -> None:
        """Send a close frame, and cut the connection off if the client doesn't answer in time. Does not wait."""
        if self.closed:
            return
        self.closed = True
        DISCONNECTS.labels(str(disconnect.code)).inc()
        self._transport.close(disconnect)
        self._services.wheel.add(self, self._services.clock.monotonic_s() + self._services.settings.close_timeout_s)

    def due(self, now_s: float) -> float | None:
        """The wheel's turn: pings, and everything that ends a connection in time."""
        if self.closed or not self._transport.is_open:
            self._transport.abort()
            return None
        if self._verified is None:
            return self._end(STALE)
        expires_in_s = self._expires_in_s(self._verified)
        if expires_in_s <= 0:
            return self._end(EXPIRED)
        settings = self._services.settings
        if self._pong_by_s is not None and now_s >= self._pong_by_s:
            return self._end(NO_PONG)
        if now_s >= self._next_ping_s:
            self.deliver(PING)
            self._next_ping_s = now_s + settings.ping_interval_s
            if self._pong_by_s is None:
                self._pong_by_s = now_s + settings.pong_timeout_s
        return min(self._next_ping_s, self._pong_by_s or math.inf, now_s + expires_in_s)

    def _end(self, disconnect: Disconnect) -> float:
        self.close(disconnect)
        return self._services.clock.monotonic_s() + self._services.settings.close_timeout_s

    async def _carry_out(self, effect: protocol.Effect) -> None:
        match effect:
            case protocol.Close(disconnect):
                self.close(disconnect)
            case protocol.Pong():
                self._pong_by_s = None
            case protocol.Reply(data):
                self._write(data)
            case protocol.Connect():
                await self._connect(effect)
            case protocol.Send(data):
                await self._send(data)
            case _ if not self._commands.take():
                self._refuse(effect.id, TOO_MANY_REQUESTS)
            case protocol.Rpc():
                await self._rpc(effect)
            case protocol.Subscribe():
                await self._subscribe(effect)
            case protocol.Unsubscribe(number, channel):
                self._leave(channel)
                self._write(protocol.unsubscribed(number))
            case protocol.Refresh():
                self._refresh(effect)

    async def _connect(self, connect: protocol.Connect) -> None:
        verified = self._verify(connect.id, connect.token)
        if verified is None:
            return
        subs = {}
        try:
            for channel in verified.identity.channels:
                since = connect.since.get(channel)
                subscription, found = await self._services.hub.join(channel, self, since)
                self._subscriptions[channel] = subscription
                subs[channel] = (since is not None, found)
        except Unavailable:
            for channel in subs:
                self._leave(channel)
            self._refuse(connect.id, INTERNAL)
            return
        if self.closed:
            return
        settings, now_s = self._services.settings, self._services.clock.monotonic_s()
        self._session.accepted()
        self._verified = verified
        self._next_ping_s = now_s + settings.ping_interval_s
        self._write(
            protocol.connected(
                connect.id,
                client=self._id,
                version=VERSION,
                ttl_s=self._ttl_s(verified),
                ping_s=max(1, round(settings.ping_interval_s)),
                subs=subs,
            )
        )
        self._services.wheel.add(self, min(self._next_ping_s, now_s + self._expires_in_s(verified)))
        for channel in subs:
            self._subscriptions[channel].go_live()

    async def _subscribe(self, subscribe: protocol.Subscribe) -> None:
        channel = subscribe.channel
        if channel not in self._identity.channels:
            self._refuse(subscribe.id, PERMISSION_DENIED)
            return
        try:
            subscription, found = await self._services.hub.join(channel, self, subscribe.since)
        except Unavailable:
            self._refuse(subscribe.id, INTERNAL)
            return
        # The server-side subscription of the channel ends here: the SDK gives its publications to this one now.
        self._leave(channel)
        self._subscriptions[channel] = subscription
        self._write(protocol.subscribed(subscribe.id, subscribe.since is not None, found))
        subscription.go_live()

    async def _rpc(self, rpc: protocol.Rpc) -> None:
        if rpc.method == EVENT_METHOD and not self._events.take():
            INTAKE.labels("rate_limited").inc()
            self._refuse(rpc.id, TOO_MANY_REQUESTS)
            return
        try:
            result = await self._services.backend.rpc(self._identity, rpc.method, rpc.data)
            reply = protocol.rpc_result(rpc.id, result)
        except InputError as problem:
            # Centrifuge leaves codes from 400 to applications, so HTTP's own fit.
            again = isinstance(problem, TooManyRequests)
            self._refuse(rpc.id, ErrorCode(problem.status, problem.reason, temporary=again))
        except Unavailable:
            self._refuse(rpc.id, INTERNAL)
        except Exception:
            log.exception("an rpc failed")
            self._refuse(rpc.id, INTERNAL)
        else:
            self._write(reply)

    async def _send(self, data: bytes) -> None:
        if not self._events.take():
            INTAKE.labels("rate_limited").inc()
            return
        # Nothing can be answered: who needs to know uses the rpc.
        try:
            await self._services.backend.event(self._identity, data)
        except InputError as problem:
            log.debug("a client's event was refused: %s", problem.reason)
        except Unavailable:
            INTAKE.labels("unavailable").inc()
        except Exception:
            log.exception("an event failed")

    def _refresh(self, refresh: protocol.Refresh) -> None:
        verified = self._verify(refresh.id, refresh.token)
        if verified is None:
            return
        if verified.identity.sub != self._identity.sub:
            self.close(INVALID_TOKEN)
            return
        # Role and channels stay as they were at connect: subscriptions don't change under a client.
        self._verified = Verified(self._identity, verified.expires_ms)
        self._services.wheel.add(self, self._services.clock.monotonic_s())
        self._write(protocol.refreshed(refresh.id, self._id, VERSION, self._ttl_s(verified)))

    def _verify(self, number: int, token: str) -> Verified | None:
        try:
            return self._services.tokens.verify(token)
        except TokenExpired:
            self._refuse(number, TOKEN_EXPIRED)
        except Unauthenticated:
            self.close(INVALID_TOKEN)
        return None

    def _leave(self, channel: str) -> None:
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._services.hub.leave(subscription)

    def _refuse(self, number: int, code: ErrorCode) -> None:
        self._write(protocol.error(number, code))

    @property
    def _identity(self) -> Identity:
        if self._verified is None:
            raise RuntimeError("the session lets nothing through before connect was accepted")
        return self._verified.identity

    def _expires_in_s(self, verified: Verified) -> float:
        """Until the connection is closed."""
        return (verified.expires_ms - self._services.clock.now_ms()) / 1000 + LEEWAY_S

    def _ttl_s(self, verified: Verified) -> int:
        """When the client should fetch a new token: a little before the old one ends."""
        left_s = (verified.expires_ms - self._services.clock.now_ms()) / 1000
        return max(1, int(left_s - min(10.0, left_s / 4)))
