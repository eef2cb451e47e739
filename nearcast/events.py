"""Events: what happens to one customer, as it stands on the wire and in the log.

JSON objects, discriminated by `type`. On a topic that carries one type only (locations, carts, purchases) `type` may
be left out. Field names of common location feeds are accepted: `long`, `lng` or `lon`; `accuracy` or `accuracy_m`.
Fields that nearcast does not know are ignored, so that a producer can send more than we read.

Validation is strict: a wrong type, an out-of-range coordinate, NaN or an over-long string raises `InputError` and
becomes HTTP 400 or a dead letter; nothing is guessed or repaired.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

from nearcast import topics
from nearcast.errors import InputError
from nearcast.ids import (
    ANONYMOUS_PREFIX,
    CustomerId,
    EventId,
    FenceId,
    Sku,
    StoreId,
    customer_id,
    derived_event_id,
)

MAX_BODY_BYTES = 256 * 1024
MAX_BATCH_EVENTS = 1_000
MAX_EVENT_BYTES = 64 * 1024
#: What nearcast writes itself may be larger: a `Stitch` with all that a visitor can gather takes up to 230 KiB.
MAX_FEEDBACK_BYTES = 256 * 1024
#: How many pieces of one thing an event can tell of, and a cart can hold.
MAX_QUANTITY = 100_000
#: How far ahead of its arrival in the log an event's own time may be (device clocks run fast).
MAX_AHEAD_MS = 60_000
#: Nothing is older: a smaller `ts` is a mistake of units.
YEAR_2000_MS = 946_684_800_000
#: The accuracy of a fix that doesn't tell its own, in metres.
STREET_GPS_M = 25.0
#: How many lines one purchase may carry.
MAX_LINES = 1_000
#: Actions that are about a way to a store to pick an order up.
PICKUP_ACTIONS = frozenset({"order_ready", "pickup_start", "pickup_cancel", "order_picked_up"})

# No control characters: ids are joined, logged and used in keys.
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f{}]+\Z")]
#: Leaves room for the prefix that makes a customer id of it.
AnonymousId = Annotated[str, msgspec.Meta(min_length=1, max_length=120, pattern=r"^[^\x00-\x1f\x7f{}]+\Z")]
#: An id without its pattern, which is matched in Python.
_PlainId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=512)]
Quantity = Annotated[int, msgspec.Meta(ge=0, le=MAX_QUANTITY)]
Cents = Annotated[int, msgspec.Meta(ge=0, le=10_000_000_000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=9_999_999_999_999)]
Channel = Literal["websocket", "sms", "email"]
ConsentScope = Literal["all", "location", "websocket", "sms", "email"]
DeliveryStatus = Literal[
    "sent",
    "delivered",
    "opened",
    "dismissed",
    "applied",
    "redeemed",
    "rolled_back",  # a redemption was called off, or what was bought came back
    "failed",
    "suppressed",
    "recalled",
    "expired",
]


class Event(msgspec.Struct, kw_only=True, tag_field="type", omit_defaults=True):
    """What every event has: an id (made from its place in the log if missing), a customer and a time.

    `ts` is the event's own time in milliseconds since the Unix epoch; 0 means "when it reached the log".
    """

    id: Id | None = None
    uid: Id | None = None
    anonymous_id: AnonymousId | None = None
    ts: Milliseconds = 0

    @property
    def customer(self) -> CustomerId:
        """The customer whose state this event changes; also the key of its log record."""
        uid = self.uid
        return CustomerId(uid) if uid else customer_id(uid, self.anonymous_id)

    @property
    def event_id(self) -> EventId:
        """The id, which `decode` and intake have made sure of."""
        if self.id is None:
            raise ValueError("this event has no id yet")
        return EventId(self.id)


class _Strict(Event, kw_only=True):
    """An event that is checked as it is made: all but fixes."""

    def __post_init__(self) -> None:
        _check_identity(self)


def _check_identity(event: Event) -> None:
    """Every event is about somebody."""
    if event.uid is None and event.anonymous_id is None:
        raise ValueError("an event needs `uid` or `anonymous_id`")
    if event.uid is not None and event.uid.startswith(ANONYMOUS_PREFIX):
        raise ValueError(f"a `uid` can't start with {ANONYMOUS_PREFIX!r}: that marks anonymous visitors")


class Location(Event, kw_only=True, tag="location", gc=False):
    """A position fix. `accuracy_m` is the radius of 68 % confidence in metres, as devices report it; a feed that
    doesn't say is treated as ordinary street GPS. `zones` are what else tells where the device is: ids of fences (as
    the app's own geofencing reports them), of beacons, of access points and of printed codes; with them a fix may do
    without coordinates.

    Nearly all events are fixes, so what can be told of all their fields at once is not asked of each: the decoders
    below see to the ids, and to the other spellings of longitude and accuracy.
    """

    id: _PlainId | None = None
    uid: _PlainId | None = None
    anonymous_id: _PlainId | None = None
    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)] = math.nan
    lng: Annotated[float, msgspec.Meta(ge=-180, le=180)] = math.nan
    long: Annotated[float, msgspec.Meta(ge=-180, le=180)] | None = None
    lon: Annotated[float, msgspec.Meta(ge=-180, le=180)] | None = None
    accuracy_m: Annotated[float, msgspec.Meta(ge=0, le=100_000)] = STREET_GPS_M
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=100_000)] | None = None
    source: Literal["gps", "wifi", "beacon", "qr", "app"] = "gps"
    zones: Annotated[list[_PlainId], msgspec.Meta(max_length=32)] = []
    #: The storey, as the device knows it; 0 is street level.
    floor: Annotated[int, msgspec.Meta(ge=-50, le=200)] | None = None
    #: The device says that its position is made up (Android's "mock location").
    mock: bool = False


class Cart(_Strict, kw_only=True, tag="cart"):
    """A change of the customer's (online) cart. `quantity` is the new amount for "set", the change otherwise."""

    action: Literal["add", "remove", "set", "clear", "order"]
    sku: Id | None = None
    quantity: Quantity = 1
    price_cents: Cents | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action in ("add", "remove", "set") and self.sku is None:
            raise ValueError(f"a cart event with action {self.action!r} needs `sku`")


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of a purchase: what was paid in all for `quantity` pieces, and what coupons took off."""

    sku: Id
    quantity: Quantity = 1
    amount_cents: Cents = 0
    coupon_cents: Cents = 0


class Purchase(_Strict, kw_only=True, tag="purchase"):
    """A finished purchase: the receipt of a till or of the web shop."""

    items: Annotated[list[Line], msgspec.Meta(min_length=1, max_length=MAX_LINES)]
    store: Id | None = None
    online: bool = False


class Action(_Strict, kw_only=True, tag="action"):
    """Something the customer did, or a member of staff did for them."""

    action: Literal[
        "app_open",
        "qr_scan",
        "product_view",
        "wifi_lookup",
        "wishlist_add",
        "wishlist_remove",
        "help_request",
        "staff_contact",
        "order_ready",  # an order can be picked up at `store`: the shop says so
        "pickup_start",  # the customer sets out to pick it up
        "pickup_cancel",  # they don't come after all
        "order_picked_up",  # they have it: the shop says so
        "order_status",  # an order goes on: the shop says how, in `status`
    ]
    sku: Id | None = None
    store: Id | None = None
    fence: Id | None = None
    #: Of a pickup: the order; how long before they are there the store wants to know (0: not at all), in seconds; and
    #: after how long nobody waits for them any more. None: as it was, or as `geofence.trips` says.
    order: Id | None = None
    status: Id | None = None
    notice_s: Annotated[int, msgspec.Meta(ge=0, le=3_600)] | None = None
    within_s: Annotated[int, msgspec.Meta(ge=60, le=86_400)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action in ("product_view", "wishlist_add", "wishlist_remove") and self.sku is None:
            raise ValueError(f"an action {self.action!r} needs `sku`")
        if self.action in PICKUP_ACTIONS and self.order is None:
            raise ValueError(f"an action {self.action!r} needs `order`")
        if self.action == "order_status" and (self.order is None or self.status is None):
            raise ValueError("an action 'order_status' needs `order` and `status`")
        if self.action in ("order_ready", "pickup_start") and self.store is None:
            raise ValueError(f"an action {self.action!r} needs `store`")


class Identify(_Strict, kw_only=True, tag="identify"):
    """Sign-in: the anonymous visitor turns out to be `uid`. Travels with the anonymous customer's events."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uid is None or self.anonymous_id is None:
            raise ValueError("an identify event needs both `uid` and `anonymous_id`")

    @property
    def customer(self) -> CustomerId:
        return customer_id(None, self.anonymous_id)


class Consent(_Strict, kw_only=True, tag="consent"):
    """The customer grants or withdraws consent. Withdrawing "all" is an opt-out: nothing is done any more."""

    scope: ConsentScope
    granted: bool


class Profile(_Strict, kw_only=True, tag="profile"):
    """What the retailer knows of a customer. A field left out stays as it was."""

    name: Text | None = None
    email: Annotated[str, msgspec.Meta(max_length=254, pattern=r"^[^@\s]+@[^@\s]+\Z")] | None = None
    phone: Annotated[str, msgspec.Meta(pattern=r"^\+[1-9][0-9]{5,14}\Z")] | None = None
    locale: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    time_zone: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    loyalty: Annotated[str, msgspec.Meta(max_length=32)] | None = None
    groups: Annotated[list[Id], msgspec.Meta(max_length=64)] | None = None
    #: Replaces all attributes.
    attributes: Annotated[dict[Id, Text], msgspec.Meta(max_length=64)] | None = None
    #: Loyalty points: the balance. Its rise is a moment ("points_reached").
    points: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None


class Receipt(_Strict, kw_only=True, tag="receipt"):
    """What became of a message: written by the dispatcher, the gateway, provider callbacks and the till."""

    message: Id
    decision: Id
    status: DeliveryStatus
    channel: Channel | None = None
    reason: Text = ""
    #: False for an attempt that failed while the message goes on, by this channel or the next one.
    final: bool = True
    #: Suppressed or failed, and nothing of it can have left the house: what it took of budgets goes back.
    unsent: bool = False
    #: Of "redeemed" and "rolled_back": the till's redemption, after its store ("graben/…"); what was paid for the
    #: purchase before the discount, and the discount, as far as the till says.
    redemption_id: Id | None = None
    revenue_cents: Cents | None = None
    discount_cents: Cents | None = None


class Timer(_Strict, kw_only=True, tag="timer"):
    """A timer that came due; valid only if the customer still waits for exactly this one."""

    kind: Id
    due_ms: Milliseconds


class Stitch(_Strict, kw_only=True, tag="stitch"):
    """The context an anonymous visitor had gathered, on its way to the customer they turned out to be."""

    #: Pieces and price. No bound: carts from before there was one are taken over, too.
    cart: dict[Sku, tuple[Annotated[int, msgspec.Meta(ge=0)], Cents | None]] = {}
    wishlist: dict[Sku, Milliseconds] = {}
    viewed: dict[Sku, Milliseconds] = {}


class Erase(_Strict, kw_only=True, tag="erase"):
    """The customer's data must go: state, messages, history, and the anonymous records signed in to them."""

    #: Those of the anonymous records for which whoever writes this writes an event of their own.
    visitors: list[AnonymousId] = []


AnyEvent = (
    Location | Cart | Purchase | Action | Identify | Consent | Profile | Receipt | Timer | Stitch | Erase
)  # what the log may carry
IntakeEvent = Location | Cart | Purchase | Action | Identify | Consent | Profile  # what the outside may send

TOPIC_OF: dict[type[Event], str] = {
    Location: topics.LOCATIONS,
    Cart: topics.CARTS,
    Purchase: topics.PURCHASES,
    Action: topics.ACTIONS,
    Identify: topics.ACTIONS,
    Consent: topics.ACTIONS,
    Profile: topics.ACTIONS,
    Erase: topics.ACTIONS,
    Receipt: topics.FEEDBACK,
    Timer: topics.FEEDBACK,
    Stitch: topics.FEEDBACK,
}

_DECODE: dict[str, Callable[[bytes], AnyEvent]] = {
    topics.LOCATIONS: msgspec.json.Decoder(Location).decode,
    topics.CARTS: msgspec.json.Decoder(Cart).decode,
    topics.PURCHASES: msgspec.json.Decoder(Purchase).decode,
    topics.ACTIONS: msgspec.json.Decoder(Action | Identify | Consent | Profile | Erase).decode,
    topics.FEEDBACK: msgspec.json.Decoder(Receipt | Timer | Stitch).decode,
}
#: What ids may not contain, and what might hide it in JSON (which carries no other control characters as they are).
_ODD = b"\\\x7f{}"
_INTAKE: msgspec.json.Decoder[IntakeEvent] = msgspec.json.Decoder(IntakeEvent)
_BATCH = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


def decode(topic: str, value: bytes, *, position: str, arrived_ms: int) -> AnyEvent:
    """The event that a log record holds.

    `position` (unique per record, of its topic) becomes the id of an event that has none; `arrived_ms` is when the
    record reached the log: the time of an event that has none, and the bound for one that claims to come from the
    future.

    Raises `InputError` with the reason for the dead letter.
    """
    event = decode_record(topic, value, arrived_ms)
    if event.id is None:
        event.id = derived_event_id(topic, position)
    return event


def decode_record(topic: str, value: bytes, arrived_ms: int) -> AnyEvent:
    """`decode` for the engine, which sees all events: leaves one that has no id without."""
    if len(value) > MAX_EVENT_BYTES:
        _check_size(topic, len(value))
    try:
        event = _DECODE[topic](value)
        if isinstance(event, Location):
            _complete(event, value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("malformed_event", str(error), topic) from None
    if event.ts < YEAR_2000_MS:
        check_time(event.ts)
        event.ts = arrived_ms
    elif event.ts > arrived_ms + MAX_AHEAD_MS:
        raise InputError(
            "event_from_the_future", f"`ts` is {event.ts - arrived_ms} ms after its arrival; {MAX_AHEAD_MS} are allowed"
        )
    if event.__class__ is Consent:
        # A phone whose clock runs fast must not give a consent that outlives a later withdrawal.
        event.ts = min(event.ts, arrived_ms)
    return event


def _check_size(topic: str, size: int) -> None:
    most = MAX_FEEDBACK_BYTES if topic == topics.FEEDBACK else MAX_EVENT_BYTES
    if size > most:
        raise InputError("event_too_large", f"an event may have {most} bytes, this one has {size}")


def decode_intake(value: bytes | msgspec.Raw) -> IntakeEvent:
    """One event as HTTP and WebSocket clients send it (`type` required). Raises `InputError`."""
    try:
        event = _INTAKE.decode(value)
        if isinstance(event, Location):
            _complete(event, bytes(value))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("malformed_event", str(error)) from None
    return event


def _complete(fix: Location, value: bytes) -> None:
    """See to what `Location` leaves to its decoders. Raises `ValueError`."""
    if fix.uid is None or fix.anonymous_id is not None or fix.uid[:5] == ANONYMOUS_PREFIX:
        _check_identity(fix)
    # A flat object without escapes: its only odd characters are the braces around it, or one of its strings has one.
    if fix.anonymous_id is not None or len(value) - len(value.translate(None, _ODD)) != 2:
        # As any other event's would be.
        msgspec.convert({"id": fix.id, "uid": fix.uid, "anonymous_id": fix.anonymous_id}, Event)
    if fix.lat != fix.lat:
        _without_coordinates(fix)
    elif fix.lng != fix.lng or fix.long is not None or fix.lon is not None:
        longitudes = [given for given in (fix.lng, fix.long, fix.lon) if given is not None and given == given]
        if len(longitudes) != 1:
            raise ValueError("a location needs exactly one of `lng`, `long` and `lon`")
        fix.lng, fix.long, fix.lon = longitudes[0], None, None
    if fix.accuracy is not None:
        if fix.accuracy_m == STREET_GPS_M:
            fix.accuracy_m = fix.accuracy
        fix.accuracy = None


def _without_coordinates(fix: Location) -> None:
    if not fix.zones:
        raise ValueError("a location needs `lat` and `lng`, or `zones`")
    if fix.lng == fix.lng or fix.long is not None or fix.lon is not None:
        raise ValueError("a location has both `lat` and a longitude, or neither")


def check_time(ts: int) -> None:
    """Refuse a time that was given in seconds. Raises `InputError`; 0 stands for "not given"."""
    if 0 < ts < YEAR_2000_MS:
        raise InputError(
            "malformed_event", f"`ts` is in milliseconds since 1970; {ts} would be before the year 2000", "ts"
        )


def split_batch(body: bytes) -> Sequence[msgspec.Raw]:
    """The events of a JSON array, each still undecoded so that one bad event doesn't spoil the rest."""
    try:
        batch = _BATCH.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("malformed_batch", str(error)) from None
    if len(batch) > MAX_BATCH_EVENTS:
        raise InputError("batch_too_large", f"a batch may hold {MAX_BATCH_EVENTS} events, this one has {len(batch)}")
    return batch


def encode(event: Event) -> bytes:
    """The event as JSON, for the log."""
    return _ENCODER.encode(event)


def store_of(event: Purchase | Action) -> StoreId | None:
    return StoreId(event.store) if event.store is not None else None


def sku_of(event: Cart | Action) -> Sku | None:
    return Sku(event.sku) if event.sku is not None else None


def fence_of(event: Action) -> FenceId | None:
    return FenceId(event.fence) if event.fence is not None else None
