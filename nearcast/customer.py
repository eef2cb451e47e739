"""What is known of one customer: the value that the engine folds events into.

Two records per customer, so that a plain position fix reads and rewrites tens of bytes and not the whole profile:
`Customer` (cold: profile, cart, history, messages) and `Presence` (hot: where they are). `server.stored` says how they
are stored, and in which version. All times are event time in milliseconds since the Unix epoch.

None of these can be part of a reference cycle, and an engine keeps hundreds of thousands: `gc=False` spares the garbage
collector from walking them.
"""

import math

import msgspec

from nearcast.events import Channel, DeliveryStatus
from nearcast.ids import CustomerId, DecisionId, FenceId, MessageId, PromotionId, Sku, StoreId

#: Halving time of the "recent" counters: four weeks, one shopping month.
HALF_LIFE_MS = 28 * 86_400_000
#: How many event ids a customer remembers to recognise duplicates, and how many messages for caps.
SEEN_EVENTS = 64
KEPT_MESSAGES = 200
#: Sign-ins are remembered apart from other events, so that the context of a visitor can't be taken over twice.
KEPT_STITCHES = 32
KEPT_VIEWS = 16
#: How many anonymous ids a customer is remembered to have had.
KEPT_VISITORS = 32
#: How many things a cart or a wishlist can hold; the oldest go first.
KEPT_THINGS = 200


class Decayed(msgspec.Struct, array_like=True, gc=False):
    """An exponentially decaying sum; the order in which amounts arrive does not matter."""

    value: float = 0.0
    at_ms: int = 0

    def add(self, amount: float, at_ms: int) -> None:
        if at_ms >= self.at_ms:
            self.value = self.at(at_ms) + amount
            self.at_ms = at_ms
        else:
            self.value += amount * math.exp2((at_ms - self.at_ms) / HALF_LIFE_MS)

    def at(self, now_ms: int) -> float:
        """The sum as it stands at `now_ms`; before its last change it counts as it was then."""
        return self.value * math.exp2(min(0, self.at_ms - now_ms) / HALF_LIFE_MS)


class CartItem(msgspec.Struct, array_like=True, gc=False):
    """A thing in the online cart."""

    quantity: int
    price_cents: int | None
    changed_ms: int


class SegmentHistory(msgspec.Struct, array_like=True, gc=False):
    """Purchases in one product segment."""

    baskets: int = 0
    spend_cents: int = 0
    last_ms: int = 0
    last_price_cents: int = 0
    recent: Decayed = msgspec.field(default_factory=Decayed)
    #: Lines on which a coupon took something off; most segments never have one.
    coupons: Decayed | None = None


class History(msgspec.Struct, gc=False):
    """All purchases, summarised."""

    baskets: int = 0
    lines: int = 0
    spend_cents: int = 0
    coupon_cents: int = 0
    #: Baskets in which a coupon took something off.
    coupon_baskets: int = 0
    first_ms: int = 0
    last_ms: int = 0
    recent_baskets: Decayed = msgspec.field(default_factory=Decayed)
    recent_spend: Decayed = msgspec.field(default_factory=Decayed)
    segments: dict[str, SegmentHistory] = {}


#: With these statuses a message reached nobody, and counts for no cap. "expired" is none of them: nobody has reported
#: anything, and a report may still come.
UNSEEN: frozenset[DeliveryStatus | None] = frozenset({"failed", "suppressed"})


#: With these statuses somebody reacted to a message. To dismiss it is none: that says no.
REACTED: frozenset[DeliveryStatus | None] = frozenset({"opened", "applied", "redeemed"})


class SentMessage(msgspec.Struct, array_like=True, gc=False):
    """A message decided for this customer, for caps and for the record of what came of it."""

    message: MessageId
    decision: DecisionId
    promotion: PromotionId
    at_ms: int
    status: DeliveryStatus | None = None
    channel: Channel | None = None
    #: When it stops being relevant; 0 for messages from before this was kept.
    deadline_ms: int = 0
    #: It went to staff, and so says nothing of what the customer likes.
    is_alert: bool = False
    #: They did react, whatever came after that.
    reacted: bool = False
    #: Where it holds, what it is about, and by which channels it may go; empty for messages from before this was kept.
    store: StoreId | None = None
    fence: FenceId | None = None
    sku: Sku | None = None
    channels: list[Channel] = []
    tags: list[str] = []
    #: What it took of budgets, as (pool, pieces, cents), until it is clear that nothing was sent.
    charges: list[tuple[str, int, int]] = []
    #: How far it ever got on the way sent (1), delivered, opened, applied, redeemed (5).
    reached: int = 0
    #: While redeemed, the till's redemption; and those that were called off.
    redemption: str = ""
    called_off: list[str] = []
    #: "offer", "notice" or "assist"; "" for messages from before this was kept.
    kind: str = ""
    #: What the redemption brought and took off, in cents.
    revenue_cents: int = 0
    discount_cents: int = 0
    #: The channels that it was handed over by, as far as was heard; more than one after a fall-back.
    on: list[Channel] = []
    #: Redemptions that were heard of before the one ahead of them was called off: id, revenue and discount.
    next_redemptions: list[tuple[str, int, int]] = []

    @property
    def may_be_on(self) -> set[Channel]:
        """The channels it went by; while nothing is known of that, those it may go by."""
        known = {*self.on, *([self.channel] if self.channel is not None else [])}
        return known or set(self.channels)

    @property
    def answered(self) -> bool:
        """Whether the customer reacted to it; records from before `reacted` was kept have the newest status only."""
        return self.reacted or self.status in REACTED


class Exposure(msgspec.Struct, array_like=True, gc=False):
    """An offer that was made to the customer, or would have been; purchases are attributed to it until `until_ms`."""

    decision: DecisionId
    promotion: PromotionId
    at_ms: int
    until_ms: int
    #: The customer was held out of it: it was not made.
    held_out: bool = False
    #: They bought since: counted once.
    converted: bool = False
    sku: Sku | None = None
    #: It is one of those whose arms are compared; and what was paid since for the promotion's things, in cents.
    compared: bool = True
    revenue_cents: int = 0


class ChannelHistory(msgspec.Struct, array_like=True, gc=False):
    """What became of the messages of one channel: how many were handed over, and how many of these led to a reaction.

    Each counts from the time of the receipt that said so.
    """

    sent: Decayed = msgspec.field(default_factory=Decayed)
    reacted: Decayed = msgspec.field(default_factory=Decayed)


class Customer(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The cold record. A customer who has never been heard of is `Customer(id=...)`."""

    id: CustomerId
    name: str = ""
    email: str = ""
    phone: str = ""
    locale: str = ""
    time_zone: str = ""
    loyalty: str = ""
    groups: list[str] = []
    attributes: dict[str, str] = {}
    #: Loyalty points, if they were ever told.
    points: int = 0
    points_known: bool = False
    #: Consent by scope, with the time it was given or withdrawn. A scope that is missing was never asked for.
    consents: dict[str, tuple[bool, int]] = {}
    cart: dict[Sku, CartItem] = {}
    cart_changed_ms: int = 0
    #: When the cart was last emptied as a whole: what was put in before that is gone, even if it is heard of later.
    cart_cleared_ms: int = 0
    cart_abandoned: bool = False
    wishlist: dict[Sku, int] = {}
    viewed: dict[Sku, int] = {}
    history: History = msgspec.field(default_factory=History)
    messages: list[SentMessage] = []
    exposures: list[Exposure] = []
    #: Moments that wait for the end of quiet hours, as JSON of `nearcast.moments.Moment`, with when that is.
    held: list[tuple[int, bytes]] = []
    redemptions: int = 0
    channels: dict[Channel, ChannelHistory] = {}
    last_staff_contact_ms: int = 0
    #: Timers waiting for this customer: kind → due time.
    timers: dict[str, int] = {}
    #: Anonymous ids under which the customer was known before signing in, newest last; erased with the customer.
    visitors: list[str] = []
    #: 64-bit hashes of the last event ids, oldest first.
    seen: list[int] = []
    #: The same of sign-ins whose context was taken over.
    stitched: list[int] = []

    def consented(self, scope: str) -> bool:
        """True if consent for `scope` was given and neither it nor "all" has been withdrawn since."""
        return self.consents.get(scope, (False, 0))[0] and not self.opted_out

    @property
    def opted_out(self) -> bool:
        """True if the customer withdrew consent to everything."""
        return not self.consents.get("all", (True, 0))[0]

    @property
    def location_allowed(self) -> bool:
        """True unless the customer opted out or withdrew consent to location: only then may fixes be used."""
        return not self.opted_out and self.consents.get("location", (True, 0))[0]


class Stay(msgspec.Struct, array_like=True, gc=False):
    """Being inside one fence."""

    entered_ms: int
    last_inside_ms: int
    dwelled: bool = False
    #: Whether the stay is in the live footfall, and so is to be taken out of it.
    counted: bool = False
    #: How sure it was that they came in, 0..1.
    confidence: float = 1.0


class Pending(msgspec.Struct, array_like=True, gc=False):
    """What fixes have said of coming into one fence, or of leaving it: see `geofence.tracker`.

    An attempt is a run of fixes that together say so; when there is none, `fixes` is 0. Depths are in standard
    deviations of the fix's error, from the edge to the side where the customer would be after the transition.
    """

    #: The first attempt, and the newest fix of any.
    since_ms: int
    seen_ms: int
    #: Of the attempt: its first fix, how many there are, the sum of their depths, and the newest three of those.
    first_ms: int = 0
    fixes: int = 0
    depths: float = 0.0
    recent: list[float] = []


class Nearby(msgspec.Struct, array_like=True, gc=False):
    """What is kept of someone who is in or near a fence, and goes when they are nowhere again.

    The one place where coordinates are kept: those of the newest fix, for as long as it can say anything of the next
    one. A fix without coordinates leaves none.
    """

    lat: float
    lng: float
    at_ms: int
    #: False: the newest fix had no coordinates, and `lat` and `lng` are 0.
    located: bool = True
    #: Fences that were approached, with the time.
    approached: dict[FenceId, int] = {}
    #: Fences that are on the way to be entered, or left.
    entering: dict[FenceId, Pending] = {}
    leaving: dict[FenceId, Pending] = {}
    #: Where they were in the last three quarters of a minute: time, latitude and longitude, at most seven.
    trail: list[tuple[int, float, float]] = []
    #: How good the newest fix was, in metres; below 0 if it isn't known, or if a sign told more than its position.
    accuracy_m: float = -1.0


class Trip(msgspec.Struct, array_like=True, gc=False):
    """A way to a store to pick an order up; `geofence.trips` says how it goes. Holds distances, no coordinates."""

    order: str
    store: StoreId
    #: When the state began.
    since_ms: int
    #: "waiting" (for the customer to set out), then "on_the_way", "approaching", "arrived".
    state: str = "waiting"
    #: When they are expected, as of the last fix; 0 if it isn't known.
    eta_ms: int = 0
    #: When the state ends by itself.
    until_ms: int = 0
    #: The shop said that the order is ready; the customer said that they are coming.
    ready: bool = False
    announced: bool = False
    #: What is asked for: `Action.notice_s` and `.within_s`.
    notice_ms: int = 0
    within_ms: int = 0
    #: As of the last fix: how far it is, in metres (-1: no fix yet), when that was, and how fast they come.
    distance_m: int = -1
    seen_ms: int = 0
    speed_mps: float = 0.0
    #: How far they were at most (waiting) or at least (on the way) in this state, and when.
    turn_m: int = -1
    turn_ms: int = 0
    #: They were told that they are in a wrong store.
    astray: bool = False


class Presence(msgspec.Struct, array_like=True, gc=False):
    """The hot record: where the customer is.

    It repeats from the cold record what a fix has to ask first, so that a fix needs no other record.
    """

    #: Time of the newest fix; an older one is stale and changes nothing.
    last_ms: int = 0
    inside: dict[FenceId, Stay] = {}
    #: `Customer.location_allowed` as of the last change of a consent.
    allowed: bool = True
    #: When the timer for what happens to stays without a further fix is due; 0 if none is set.
    timer_ms: int = 0
    nearby: Nearby | None = None
    trips: list[Trip] = []
    #: How unlikely the way to the newest fix is, 0..1; and its H3 cell (resolution 7, 5 km²), 0 if unknown.
    doubt: float = 0.0
    cell: int = 0
