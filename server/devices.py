"""What phones and staff tablets may ask over the gateway, and what they get.

A customer's device speaks for its own customer only, whatever its messages say. An assist alert is claimed by the first
who asks; the others learn who won.
"""

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from channels.gateway.backend import Identity
from channels.gateway.streams import ChannelStreams
from nearcast import keys, metrics
from nearcast.errors import Forbidden, InputError, NotFound
from nearcast.events import Action, Cart, Consent, Id, Location
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, message_id
from server.desk import Desk
from server.intake import prepare
from server.store import reaching_store, text

_ALERT_TTL_S = 86_400
#: What a device is believed. Anything else would let a phone grant itself purchases or another customer's cart.
_FROM_DEVICES = (Location, Cart, Action, Consent)
#: What only the shop knows of an order.
_NOT_FROM_DEVICES = frozenset({"order_ready", "order_picked_up"})
T = TypeVar("T", bound=msgspec.Struct)


class OfMessage(msgspec.Struct, kw_only=True):
    """`ack` and `open`: the message, and the decision it came from."""

    message: Id
    decision: Id


class OfDecision(msgspec.Struct, kw_only=True):
    """`apply`: the offer whose coupon is wanted."""

    decision: Id


class OfAlert(msgspec.Struct, kw_only=True):
    """`assist.claim`: the alert's message."""

    message: Id


class Claimed(msgspec.Struct, kw_only=True):
    """Who has the alert, and whether that is the one who asked."""

    claimed_by: str
    won: bool


class AppliedCoupon(msgspec.Struct, kw_only=True):
    """The coupon to show at the till."""

    code: str
    state: str
    expires_ms: int


class Ids(msgspec.Struct, kw_only=True):
    """The id under which an event was accepted."""

    id: EventId


class DeviceBackend:
    """Implements `channels.gateway.backend.Backend`."""

    def __init__(self, desk: Desk, redis: Redis, streams: ChannelStreams) -> None:
        self._desk = desk
        self._redis = redis
        self._streams = streams
        self._methods: dict[str, Callable[[Identity, bytes], Awaitable[msgspec.Struct | None]]] = {
            "event": self._event,
            "ack": self._ack,
            "open": self._open,
            "apply": self._apply,
            "assist.claim": self._claim,
        }

    async def rpc(self, identity: Identity, method: str, data: bytes) -> bytes:
        call = self._methods.get(method)
        if call is None:
            raise NotFound("unknown_method", f"there is no RPC method {method[:64]!r}")
        answer = await call(identity, data)
        return b"{}" if answer is None else msgspec.json.encode(answer)

    async def event(self, identity: Identity, data: bytes) -> None:
        await self._event(identity, data)

    async def _event(self, identity: Identity, data: bytes) -> Ids:
        own = _customer_of(identity)
        try:
            event = prepare(data, self._desk.clock.now_ms())
        except InputError as error:
            metrics.INTAKE.labels(error.reason).inc()
            raise
        if event.customer != own:
            raise Forbidden("not_your_event", "a device may send events of its own customer only", "uid")
        if not isinstance(event, _FROM_DEVICES):
            raise Forbidden(
                "not_from_devices", "purchases, profiles and sign-ins come from the retailer's own systems", "type"
            )
        if isinstance(event, Action) and event.action in _NOT_FROM_DEVICES:
            raise Forbidden("not_from_devices", "what becomes of an order is told by the retailer's systems", "action")
        return Ids(id=(await self._desk.accept([event]))[0])

    async def _ack(self, identity: Identity, data: bytes) -> None:
        await self._seen(identity, data, "delivered")

    async def _open(self, identity: Identity, data: bytes) -> None:
        await self._seen(identity, data, "opened")

    async def _seen(self, identity: Identity, data: bytes, status: Literal["delivered", "opened"]) -> None:
        if identity.role == "staff":
            # An alert is about a customer but not for them: what staff did with it is no news of the message to them.
            return
        seen = _decode(data, OfMessage)
        decision = DecisionId(seen.decision)
        if seen.message != message_id(decision, "customer"):
            raise NotFound("unknown_message", "this message does not belong to this decision")
        await self._desk.receipt(_customer_of(identity), MessageId(seen.message), decision, status, "websocket", "")

    async def _apply(self, identity: Identity, data: bytes) -> AppliedCoupon:
        wanted = _decode(data, OfDecision)
        coupon = await self._desk.apply(_customer_of(identity), DecisionId(wanted.decision), "websocket")
        return AppliedCoupon(code=coupon.code, state=coupon.state, expires_ms=coupon.offer.expires_ms)

    async def _claim(self, identity: Identity, data: bytes) -> Claimed:
        if identity.role != "staff":
            raise Forbidden("staff_only", "only staff can claim an assist alert")
        message = _decode(data, OfAlert).message
        if not any([await self._streams.published(channel, message) for channel in identity.channels]):
            raise NotFound("unknown_alert", "no such alert was sent to this tablet's stores")
        alert = keys.assist(message)
        with reaching_store():
            await self._redis.set(alert, identity.sub, nx=True, ex=_ALERT_TTL_S)
            winner = await self._redis.get(alert)
        claimed_by = text(winner) if winner is not None else identity.sub
        return Claimed(claimed_by=claimed_by, won=claimed_by == identity.sub)


def _customer_of(identity: Identity) -> CustomerId:
    if identity.role != "customer":
        raise Forbidden("customers_only", "only a customer's own device can do this")
    return CustomerId(identity.sub)


def _decode(data: bytes, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("malformed_request", str(error)) from None
