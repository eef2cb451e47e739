"""One connected client: carries out what its session asks for, one command after the other.

All output goes through `write`, which never waits: a client that doesn't read is closed once its backlog is over the
limit, so it can neither hold up a fan-out nor use up memory. Other clients go on while this one's command is running.
"""

import logging
import math
import random
import sys
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

import nearcast
from channels.gateway import protocol
from channels.gateway.backend import Backend, Identity
from channels.gateway.codes import (
    BAD_REQUEST,
    CLOSED,
    EXPIRED,
    FLOODING,
    INSUFFICIENT_STATE,
    INTERNAL,
    INVALID_TOKEN,
    LIMIT_EXCEEDED,
    MALFORMED,
    NO_PONG,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    SERVER_UNSUBSCRIBED,
    SHUTDOWN,
    SLOW,
    STALE,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    UNKNOWN_CHANNEL,
    UNRECOVERABLE,
    Disconnect,
    ErrorCode,
)
from channels.gateway.hub import Hub, Subscription
from channels.gateway.limits import TokenBucket
from channels.gateway.permissions import allowed
from channels.gateway.publications import Position, Publication, Recovered, Revoked, Unrecoverable
from channels.gateway.settings import GatewaySettings
from channels.gateway.streams import ChannelStreams
from channels.gateway.tokens import LEEWAY_S, TokenExpired, Tokens, Verified
from channels.gateway.transport import Envelope, Transport
from channels.gateway.users import User, Users
from channels.gateway.wheel import Wheel
from nearcast.clock import Clock
from nearcast.errors import InputError, TooManyRequests, Unauthenticated, Unavailable
from nearcast.metrics import DISCONNECTS, INTAKE

log = logging.getLogger("nearcast.channels.gateway")

VERSION = f"nearcast {nearcast.__version__}"
#: The rpcs that carry an event, which count against the limit of events.
EVENT_METHODS = frozenset({"event", "wishlist.add", "wishlist.remove"})
#: What one client may publish to others at a time: each listener is sent it, and history keeps it.
MAX_PUBLISHED_BYTES = 16 * 1024


def envelope_of(channel: str, publication: Publication) -> Envelope:
    """A publication as every subscriber gets it."""
    # Another channel's key is another key.
    key = f"{channel}\x1f{publication.key}" if publication.key else ""
    return Envelope(protocol.push(channel, publication), key, publication.note)


PING = Envelope(protocol.PING)


class Services(NamedTuple):
    """What the clients of one gateway share."""

    settings: GatewaySettings
    tokens: Tokens
    hub: Hub
    streams: ChannelStreams
    users: Users
    backend: Backend
    wheel: Wheel
    clock: Clock


class Client:
    """See the module. `take` what it says, in order, and say when it has `left`."""

    __slots__ = (
        "_busy",
        "_commands",
        "_connecting",
        "_draining",
        "_events",
        "_id",
        "_next_ping_s",
        "_pong_by_s",
        "_services",
        "_session",
        "_subscriptions",
        "_transport",
        "_user",
        "_verified",
        "closed",
    )

    def __init__(self, transport: Transport, services: Services) -> None:
        self._transport = transport
        self._services = services
        self._session = protocol.Session()
        self._id = str(uuid.uuid4())
        # The id of the connect command that waits for its answer.
        self._connecting = 0
        self._verified: Verified | None = None
        self._user: User | None = None
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
        try:
            for effect in self._session.receive(message):
                if self.closed:
                    break
                await self._carry_out(effect)
        finally:
            self._busy = False
        if self._draining:
            self.close(SHUTDOWN)

    def left(self) -> None:
        """The connection has ended. What a `take` that still runs has joined by then, it lets go of."""
        self.closed = True
        self._services.wheel.remove(self)
        for channel in list(self._subscriptions):
            self._leave(channel)
        if self._user is not None:
            self._services.users.remove(self._user, self)

    def deliver(self, envelope: Envelope) -> None:
        """A publication, without waiting."""
        if self._has_room():
            self._transport.send_envelope(envelope)
            if envelope.note:
                note, envelope.note = envelope.note, ""
                self._services.streams.shown.written(note)

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
            if not self._connecting:
                return self._end(STALE)
            # The store is slow, which is no fault of the client's: it is to try again.
            self._refuse(self._connecting, INTERNAL)
            return self._end(CLOSED)
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
        left = self._commands.spend()
        if left < -self._services.settings.commands_over_limit:
            self.close(FLOODING)
            return
        match effect:
            case protocol.Close(disconnect):
                self.close(disconnect)
            case protocol.Pong():
                self._pong_by_s = None
            case protocol.Reply(data):
                self._write(data)
            case protocol.Connect():
                await self._connect(effect)
                # What else is in the frame may take its time.
                self._transport.joined()
            case protocol.Send(data):
                await self._send(data, limited=left < 0)
            case _ if left < 0:
                self._refuse(effect.id, TOO_MANY_REQUESTS)
            case _:
                try:
                    await self._answer(effect)
                except Unavailable:
                    self._refuse(effect.id, INTERNAL)
                except Revoked:
                    # As for an expired token: when it connects again, the client hears that it needs another one.
                    self.close(EXPIRED)

    async def _answer(self, request: protocol.Request) -> None:
        """Raises `Unavailable` or `Revoked`."""
        match request:
            case protocol.Rpc():
                await self._rpc(request)
            case protocol.Subscribe():
                await self._subscribe(request)
            case protocol.Unsubscribe(number, channel):
                self._leave(channel)
                self._write(protocol.unsubscribed(number))
            case protocol.Publish():
                await self._publish(request)
            case protocol.History():
                await self._history(request)
            case protocol.Presence():
                await self._presence(request)
            case protocol.Refresh():
                await self._refresh(request)

    async def _connect(self, connect: protocol.Connect) -> None:
        """A connect that is refused ends the connection: what else came with it is for nobody."""
        services, settings = self._services, self._services.settings
        self._connecting = connect.id
        services.wheel.add(self, services.clock.monotonic_s() + settings.join_timeout_s)
        try:
            verified = self._verify(connect.token)
            # Before the store is asked whether the user was logged out: a logout after its answer must end this, too.
            user = self._user = _user(verified.identity)
            services.users.add(user, self)
            places = [(channel, connect.since.get(channel)) for channel in verified.identity.channels]
            joined = await self._join(verified, places)
        except (TokenExpired, Revoked):
            # For an SDK that is the reason to fetch another one.
            self._refuse(connect.id, TOKEN_EXPIRED)
            self.close(CLOSED)
            return
        except Unauthenticated:
            self.close(INVALID_TOKEN)
            return
        except Unavailable:
            self._refuse(connect.id, INTERNAL)
            self.close(CLOSED)
            return
        if joined is None:
            return
        now_s = services.clock.monotonic_s()
        self._session.accepted()
        self._verified = verified
        services.users.make_room(user)
        # Those who come together, as after a restart, are not to be pinged together for ever.
        self._next_ping_s = now_s + settings.ping_interval_s * random.random()  # noqa: S311  # no secret
        self._write(
            protocol.connected(
                connect.id,
                client=self._id,
                version=VERSION,
                ttl_s=self._ttl_s(verified),
                ping_s=max(1, round(settings.ping_interval_s)),
                subs={
                    place.channel: (since is not None, found)
                    for (_, since), (place, found) in zip(places, joined, strict=True)
                },
            )
        )
        services.wheel.add(self, min(self._next_ping_s, now_s + self._expires_in_s(verified)))
        self._go_live(joined)

    async def _join(
        self, verified: Verified, places: Sequence[tuple[str, Position | None]]
    ) -> list[tuple[Subscription, Recovered]] | None:
        """Subscriptions that wait for `_go_live`, or None if the client was closed meanwhile.

        Raises `Unavailable` or `Revoked`; nothing is joined then.
        """
        identity, hub = verified.identity, self._services.hub
        joined = await hub.join_all(
            places,
            self,
            client=self._id,
            user=identity.sub,
            # Only customers are logged out; a member of staff may have a customer's name.
            issued_ms=verified.issued_ms if identity.role == "customer" else sys.maxsize,
        )
        if not self.closed:
            return joined
        for subscription, _ in joined:
            hub.leave(subscription)
        return None

    def _go_live(self, joined: Sequence[tuple[Subscription, Recovered]]) -> None:
        for subscription, _ in joined:
            self._leave(subscription.channel)
            self._subscriptions[subscription.channel] = subscription
        for subscription, _ in joined:
            subscription.go_live()

    async def _subscribe(self, subscribe: protocol.Subscribe) -> None:
        number, channel, since = subscribe.id, subscribe.channel, subscribe.since
        identity = self._identity
        if (refusal := await self._refusal(channel, "subscribe")) is not None:
            self._refuse(number, refusal)
            return
        if channel not in self._subscriptions and channel not in identity.channels:
            public = sum(other not in identity.channels for other in self._subscriptions)
            if public >= self._services.settings.subscriptions:
                self._refuse(number, LIMIT_EXCEEDED)
                return
        before = self._subscriptions.get(channel)
        if before is not None:
            # Until its answer the new subscription gets nothing in some SDKs: each publication is to come by one of the
            # two, before the answer or after it.
            before.hold()
        try:
            joined = await self._join(self._accepted, [(channel, since)])
        except BaseException:
            if before is not None:
                before.go_live()
            raise
        if joined is None:
            return
        [(subscription, found)] = joined
        if subscribe.strict and since is not None and not found.recovered:
            self._services.hub.leave(subscription)
            if before is not None:
                before.go_live()
            self._refuse(number, UNRECOVERABLE)
            return
        if before is not None and not found.recovered:
            # The answer brings nothing from before the position that it names.
            before.give(found.position.offset)
        # A server-side subscription of the channel ends here: the SDK gives its publications to this one now.
        self._write(protocol.subscribed(number, since is not None, found))
        self._go_live(joined)

    async def _refusal(self, channel: str, action: Literal["subscribe", "history"]) -> ErrorCode | None:
        """Why the client may not listen to a channel, if it may not. Raises `Unavailable`."""
        if not allowed(self._identity, channel, action):
            return PERMISSION_DENIED
        own = channel in self._identity.channels
        return None if own or await self._services.backend.exists(channel) else UNKNOWN_CHANNEL

    async def _publish(self, publish: protocol.Publish) -> None:
        number = publish.id
        if not allowed(self._identity, publish.channel, "publish"):
            self._refuse(number, PERMISSION_DENIED)
        elif len(publish.data) > MAX_PUBLISHED_BYTES:
            self._refuse(number, LIMIT_EXCEEDED)
        elif not _readable(publish.data):
            self._refuse(number, MALFORMED)
        elif not self._events.take():
            self._refuse(number, TOO_MANY_REQUESTS)
        else:
            await self._services.streams.publish(publish.channel, publish.data)
            self._write(protocol.published(number))

    async def _history(self, history: protocol.History) -> None:
        number, channel, limit, since, reverse = history
        if (refusal := await self._refusal(channel, "history")) is not None:
            self._refuse(number, refusal)
            return
        try:
            publications, top = await self._services.streams.history(channel, limit, since, reverse)
        except Unrecoverable:
            self._refuse(number, UNRECOVERABLE)
        else:
            self._write(protocol.history(number, publications, top))

    async def _presence(self, presence: protocol.Presence) -> None:
        number, channel, counted = presence
        if not allowed(self._identity, channel, "presence"):
            # Of a channel that the client may listen to it may know that this is not to be had.
            listens = allowed(self._identity, channel, "subscribe")
            self._refuse(number, NOT_AVAILABLE if listens else PERMISSION_DENIED)
            return
        listeners = await self._services.streams.presence(channel)
        self._write((protocol.presence_stats if counted else protocol.presence)(number, listeners))

    async def _rpc(self, rpc: protocol.Rpc) -> None:
        if rpc.method in EVENT_METHODS and not self._events.take():
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
            raise
        except Exception:
            log.exception("an rpc failed")
            self._refuse(rpc.id, INTERNAL)
        else:
            self._write(reply)

    async def _send(self, data: bytes, *, limited: bool) -> None:
        if limited or not self._events.take():
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

    async def _refresh(self, refresh: protocol.Refresh) -> None:
        """Channels that the new token has not are left, those that it adds are joined; the client is told of both."""
        old = self._identity
        try:
            verified = self._verify(refresh.token)
        except TokenExpired:
            # An error would end SDKs for good. A client that connects again hears there that it needs another token.
            self.close(EXPIRED)
            return
        except Unauthenticated:
            self.close(INVALID_TOKEN)
            return
        new = verified.identity
        if _user(new) != self._user:
            self.close(INVALID_TOKEN)
            return
        added = [channel for channel in new.channels if channel not in old.channels]
        joined = await self._join(
            verified, [(channel, None) for channel in added if channel not in self._subscriptions]
        )
        if joined is None:
            return
        self._verified = verified
        self._services.wheel.add(self, self._services.clock.monotonic_s())
        self._write(protocol.refreshed(refresh.id, self._id, VERSION, self._ttl_s(verified)))
        for channel in [channel for channel in self._subscriptions if not allowed(new, channel, "subscribe")]:
            self._leave(channel)
            self._write(protocol.left(channel, SERVER_UNSUBSCRIBED))
        for subscription, found in joined:
            self._write(protocol.joined(subscription.channel, found))
        self._go_live(joined)

    def _verify(self, token: str) -> Verified:
        """Raises `Unauthenticated`."""
        verified = self._services.tokens.verify(token)
        return verified._replace(identity=verified.identity._replace(client=self._id))

    def _leave(self, channel: str) -> None:
        subscription = self._subscriptions.pop(channel, None)
        if subscription is not None:
            self._services.hub.leave(subscription)

    def _refuse(self, number: int, code: ErrorCode) -> None:
        self._write(protocol.error(number, code))

    @property
    def _accepted(self) -> Verified:
        if self._verified is None:
            raise RuntimeError("the session lets nothing through before connect was accepted")
        return self._verified

    @property
    def _identity(self) -> Identity:
        return self._accepted.identity

    def _expires_in_s(self, verified: Verified) -> float:
        """Until the connection is closed."""
        return (verified.expires_ms - self._services.clock.now_ms()) / 1000 + LEEWAY_S

    def _ttl_s(self, verified: Verified) -> int:
        """When the client should fetch a new token: a little before the old one ends."""
        left_s = (verified.expires_ms - self._services.clock.now_ms()) / 1000
        return max(1, int(left_s - min(10.0, left_s / 4)))


def _user(identity: Identity) -> User:
    return User(identity.role, identity.sub)


def _readable(data: bytes) -> bool:
    """Whether every listener can decode it: numbers of thousands of digits, for example, are JSON that few can."""
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True
