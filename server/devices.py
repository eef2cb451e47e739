"""What phones and staff tablets may ask over the gateway, and what they get.

A customer's device speaks for its own customer only, whatever its messages say. A message is shown by the first device
that acknowledges it and withdrawn from the customer's others. An assist alert is claimed by the first who asks, and
closed by them; the others learn who won. All of it may be repeated: the second time changes nothing.
"""

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from channels.gateway.backend import Identity
from channels.gateway.streams import ChannelStreams
from channels.push import customer_channel, withdraw
from nearcast import keys, metrics
from nearcast.errors import Conflict, Forbidden, InputError, NotFound
from nearcast.events import Action, Cart, Consent, Id, Location, Milliseconds, encode
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, Sku, derived_event_id, message_id
from nearcast.messages import Withdraw
from server.desk import Desk, ids_of
from server.intake import prepare
from server.store import reaching_store, text

_ALERT_TTL_S = 86_400
#: As long as a channel keeps what was published once.
_ACKED_TTL_S = 86_400
#: What a device is believed. Anything else would let a phone grant itself purchases or another customer's cart.
_FROM_DEVICES = (Location, Cart, Action, Consent)
#: What only the shop knows of an order.
_NOT_FROM_DEVICES = frozenset({"order_ready", "order_picked_up"})
T = TypeVar("T", bound=msgspec.Struct)


class OfMessage(msgspec.Struct, kw_only=True):
    """`open` and `dismiss`: the message, and the decision it came from."""

    message: Id
    decision: Id


class Shown(OfMessage, kw_only=True):
    """`ack`: and the device's own id, by which it is known after it has connected anew."""

    device: Id | None = None


class Won(msgspec.Struct, kw_only=True):
    """Whether the device that asked was the first, and goes on showing the message."""

    won: bool


M = TypeVar("M", bound=OfMessage)


class OfDecision(msgspec.Struct, kw_only=True):
    """`apply`: the offer whose coupon is wanted."""

    decision: Id


class OfAlert(msgspec.Struct, kw_only=True):
    """`assist.claim`: the alert's message."""

    message: Id


class OfClosing(OfMessage, kw_only=True):
    """`assist.close`: what came of it."""

    outcome: Literal["helped", "not_found", "other"]


class Closed(msgspec.Struct, kw_only=True):
    """How the alert was closed: it stays as it was the first time."""

    outcome: str


class OfProduct(msgspec.Struct, kw_only=True):
    """`wishlist.add` and `wishlist.remove`; an `id` as of an event."""

    sku: Id
    id: Id | None = None


class Wish(msgspec.Struct, kw_only=True):
    """One thing on a wishlist."""

    sku: Sku
    added_ms: Milliseconds


class Wishlist(msgspec.Struct, kw_only=True):
    """What is on a wishlist, the newest first."""

    items: list[Wish]


class Claimed(msgspec.Struct, kw_only=True):
    """Who has the alert, and whether that is the one who asked."""

    claimed_by: str
    won: bool


class AppliedCoupon(msgspec.Struct, kw_only=True):
    """The coupon to show at the till: as a code, or as a QR code with the signed token."""

    code: str
    state: str
    expires_ms: int
    token: str


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
            "dismiss": self._dismiss,
            "apply": self._apply,
            "assist.claim": self._claim,
            "assist.close": self._close,
            "wishlist.add": self._wish,
            "wishlist.remove": self._unwish,
            "wishlist.list": self._wishes,
        }

    async def exists(self, channel: str) -> bool:
        return await self._desk.has_channel(channel)

    async def rpc(self, identity: Identity, method: str, data: bytes) -> bytes:
        call = self._methods.get(method)
        if call is None:
            raise NotFound("unknown_method", f"there is no RPC method {method[:64]!r}")
        answer = await call(identity, data)
        return b"{}" if answer is None else msgspec.json.encode(answer)

    async def event(self, identity: Identity, data: bytes) -> None:
        await self._event(identity, data)

    async def _event(self, identity: Identity, data: bytes) -> Ids:
        try:
            event = _believed(_customer_of(identity), data, self._desk.clock.now_ms())
        except InputError as error:
            metrics.INTAKE.labels(error.reason).inc()
            raise
        return Ids(id=(await self._desk.accept([event]))[0])

    async def _ack(self, identity: Identity, data: bytes) -> Won | None:
        if identity.role == "staff":
            # An alert is about a customer but not for them: what staff did with it is no news of the message to them.
            return None
        seen = _message_in(data, Shown, "customer")
        customer, message = _customer_of(identity), MessageId(seen.message)
        channel, device = customer_channel(customer), seen.device or identity.client
        published = await self._streams.published(channel, message)
        first = device
        if published:
            # The first device's times, as its name: what is there already stays.
            shown, now_ms = self._streams.shown, self._desk.clock.now_ms()
            beside = (keys.channel_shown(channel, message), shown.times(message, now_ms))
            first = await self._first(keys.channel_acked(channel, message), device, _ACKED_TTL_S, beside)
            # Not before the store has it: a device whose ack fails tries again.
            shown.acknowledged(message, now_ms)
        await self._desk.receipt(customer, message, DecisionId(seen.decision), "delivered", "websocket", "")
        if published and first == device:
            await withdraw(self._streams, channel, Withdraw(message=message, reason="elsewhere", by=device))
        return Won(won=first == device)

    async def _open(self, identity: Identity, data: bytes) -> None:
        if identity.role == "staff":
            return
        customer, seen = _customer_of(identity), _message_in(data, OfMessage, "customer")
        message, decision = MessageId(seen.message), DecisionId(seen.decision)
        await self._note_shown(customer, message)
        await self._desk.receipt(customer, message, decision, "opened", "websocket", "")

    async def _dismiss(self, identity: Identity, data: bytes) -> None:
        customer, seen = _customer_of(identity), _message_in(data, OfMessage, "customer")
        message, decision = MessageId(seen.message), DecisionId(seen.decision)
        await self._note_shown(customer, message)
        await self._desk.receipt(customer, message, decision, "dismissed", "websocket", "")
        channel = customer_channel(customer)
        if await self._streams.published(channel, message):
            await withdraw(self._streams, channel, Withdraw(message=message, reason="dismissed"))

    async def _note_shown(self, customer: CustomerId, message: MessageId) -> None:
        """A device shows it, even if its acknowledgement was lost: no other channel is needed."""
        channel = customer_channel(customer)
        if await self._streams.published(channel, message):
            times = self._streams.shown.times(message, self._desk.clock.now_ms())
            with reaching_store():
                await self._redis.set(keys.channel_shown(channel, message), times, nx=True, ex=_ACKED_TTL_S)

    async def _wish(self, identity: Identity, data: bytes) -> Ids:
        return await self._event(identity, _wishing(_customer_of(identity), data, "wishlist_add"))

    async def _unwish(self, identity: Identity, data: bytes) -> Ids:
        return await self._event(identity, _wishing(_customer_of(identity), data, "wishlist_remove"))

    async def _wishes(self, identity: Identity, _: bytes) -> Wishlist:
        known = await self._desk.customer(_customer_of(identity))
        wishlist = known[0].wishlist if known is not None else {}
        newest = sorted(wishlist.items(), key=lambda wish: (-wish[1], wish[0]))
        return Wishlist(items=[Wish(sku=sku, added_ms=added_ms) for sku, added_ms in newest])

    async def _apply(self, identity: Identity, data: bytes) -> AppliedCoupon:
        wanted = _decode(data, OfDecision)
        customer, decision = _customer_of(identity), DecisionId(wanted.decision)
        coupon = await self._desk.apply(customer, decision, "websocket")
        await self._note_shown(customer, message_id(decision, "customer"))
        return AppliedCoupon(
            code=coupon.code,
            state=coupon.state,
            expires_ms=coupon.offer.expires_ms,
            token=self._desk.coupons.token_of(coupon),
        )

    async def _claim(self, identity: Identity, data: bytes) -> Claimed:
        _staff_only(identity)
        message = MessageId(_decode(data, OfAlert).message)
        channel = await self._channel_of_alert(identity, message)
        claimed_by = await self._first(keys.assist(message), identity.sub, _ALERT_TTL_S)
        won = claimed_by == identity.sub
        if won:
            await withdraw(self._streams, channel, Withdraw(message=message, reason="claimed", by=identity.sub))
        return Claimed(claimed_by=claimed_by, won=won)

    async def _close(self, identity: Identity, data: bytes) -> Closed:
        _staff_only(identity)
        closing = _message_in(data, OfClosing, "staff")
        message = MessageId(closing.message)
        channel = await self._channel_of_alert(identity, message)
        with reaching_store():
            claimed_by = await self._redis.get(keys.assist(message))
        if claimed_by is None or text(claimed_by) != identity.sub:
            raise Conflict("not_yours", "an alert is closed by who claimed it")
        outcome = await self._first(keys.assist_outcome(message), closing.outcome, _ALERT_TTL_S)
        if outcome == "helped":
            await self._helped(DecisionId(closing.decision), message)
        await withdraw(self._streams, channel, Withdraw(message=message, reason="closed", by=identity.sub))
        return Closed(outcome=outcome)

    async def _helped(self, decision: DecisionId, alert: MessageId) -> None:
        """Say in the log that staff spoke to the customer, whom the alert names by a handle only."""
        decided = await self._desk.decision_about_anybody(decision)
        # Of someone who is being erased, this would be a new record.
        if decided is not None and not await self._desk.erasing(decided.customer):
            uid, anonymous_id = ids_of(decided.customer)
            event_id = derived_event_id("helped", alert)
            event = Action(id=event_id, uid=uid, anonymous_id=anonymous_id, action="staff_contact", store=decided.store)
            await self._desk.accept([event])

    async def _channel_of_alert(self, identity: Identity, alert: MessageId) -> str:
        for channel in identity.channels:
            if await self._streams.published(channel, alert):
                return channel
        raise NotFound("unknown_alert", "no such alert was sent to this tablet's stores")

    async def _first(self, key: str, value: str, ttl_s: int, beside: tuple[str, str] | None = None) -> str:
        """Who, or what, was the first to be noted under this key; `beside` is another key and value to note."""
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                if beside is not None:
                    pipe.set(*beside, nx=True, ex=ttl_s)
                pipe.set(key, value, nx=True, ex=ttl_s)
                pipe.get(key)
                first = (await pipe.execute())[-1]
        return text(first) if first is not None else value


def _believed(own: CustomerId, data: bytes, now_ms: int) -> Location | Cart | Action | Consent:
    """The event that a device of this customer sent. Raises `InputError`."""
    event = prepare(data, now_ms)
    if event.customer != own:
        raise Forbidden("not_your_event", "a device may send events of its own customer only", "uid")
    if not isinstance(event, _FROM_DEVICES):
        raise Forbidden(
            "not_from_devices", "purchases, profiles and sign-ins come from the retailer's own systems", "type"
        )
    if isinstance(event, Action) and event.action in _NOT_FROM_DEVICES:
        raise Forbidden("not_from_devices", "what becomes of an order is told by the retailer's systems", "action")
    return event


def _wishing(customer: CustomerId, data: bytes, action: Literal["wishlist_add", "wishlist_remove"]) -> bytes:
    wanted = _decode(data, OfProduct)
    uid, anonymous_id = ids_of(customer)
    return encode(Action(id=wanted.id, uid=uid, anonymous_id=anonymous_id, action=action, sku=wanted.sku))


def _message_in(data: bytes, wanted: type[M], audience: Literal["customer", "staff"]) -> M:
    """Raises `NotFound` for a message that its decision didn't send to this audience."""
    named = _decode(data, wanted)
    if named.message != message_id(DecisionId(named.decision), audience):
        raise NotFound("unknown_message", "this message does not belong to this decision")
    return named


def _staff_only(identity: Identity) -> None:
    if identity.role != "staff":
        raise Forbidden("staff_only", "assist alerts are for staff")


def _customer_of(identity: Identity) -> CustomerId:
    if identity.role != "customer":
        raise Forbidden("customers_only", "only a customer's own device can do this")
    return CustomerId(identity.sub)


def _decode(data: bytes, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("malformed_request", str(error)) from None
