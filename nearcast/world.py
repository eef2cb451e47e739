"""The world's vocabulary: stores, fences, products and promotions as the retailer describes them.

These are the shapes on the wire (catalogue topics, admin API, files), validated when they are decoded. `geofence`
compiles fences into an index and `offers` compiles promotions into rules; neither changes what stands here.
"""

import datetime
import math
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from nearcast.events import YEAR_2000_MS, Cents, Channel, ConsentScope, Id, Milliseconds, Text
from nearcast.ids import FenceId, PromotionId, StoreId

Latitude = Annotated[float, msgspec.Meta(ge=-90, le=90)]
Longitude = Annotated[float, msgspec.Meta(ge=-180, le=180)]
Metres = Annotated[float, msgspec.Meta(gt=0, le=100_000)]
#: Minutes since local midnight; 1440 is the end of the day.
Minute = Annotated[int, msgspec.Meta(ge=0, le=1440)]

FenceKind = Literal["vicinity", "store", "department", "shelf", "product"]
Trigger = Literal[
    "enter",  # came into a store, department or shelf fence
    "dwell",  # stayed in one for its dwell time
    "exit",  # left one
    "approach",  # came near one, within its `approach_m`
    "cross",  # went through one between two fixes
    "walk_past",  # came into the vicinity of a store
    "near_product",  # came within the radius of a product's display position
    "cart_abandoned",  # left the online cart alone for a while
    "app_open",
    "qr_scan",
    "product_view",
    "wifi_lookup",
    "wishlist_add",
    "help_request",
    "pickup_approaching",  # will soon be at the store where their order is
    "pickup_arrived",  # came to it
    "pickup_wrong_store",  # on the way to it, stays in another store
    "pickup_abandoned",  # set out for it, and doesn't come
    "order_ready",  # an order can be picked up
    "order_status",  # an order goes on: packed, shipped, delayed …
    "points_reached",  # the loyalty points rose to `who.min_points` or past it
]
PICKUP_TRIGGERS: frozenset[Trigger] = frozenset(
    {"pickup_approaching", "pickup_arrived", "pickup_wrong_store", "pickup_abandoned"}
)

#: Three feet: how near to a display position counts as standing at the product.
PRODUCT_RADIUS_M = 0.9144


class Circle(msgspec.Struct, tag="Circle", frozen=True, forbid_unknown_fields=True):
    """A disc on the Earth's surface; `center` is longitude, latitude in degrees, as in GeoJSON."""

    center: tuple[Longitude, Latitude]
    radius_m: Metres


class Polygon(msgspec.Struct, tag="Polygon", frozen=True, forbid_unknown_fields=True):
    """A GeoJSON polygon: closed rings of longitude, latitude; the first is the shell, the others are holes."""

    coordinates: list[list[tuple[Longitude, Latitude]]]


class MultiPolygon(msgspec.Struct, tag="MultiPolygon", frozen=True, forbid_unknown_fields=True):
    """Several GeoJSON polygons that are one fence."""

    coordinates: list[list[list[tuple[Longitude, Latitude]]]]


class Corridor(msgspec.Struct, tag="LineString", frozen=True, forbid_unknown_fields=True):
    """A GeoJSON line with room around it (a footpath, a queue, a pick-up lane): all within `buffer_m` of the line."""

    coordinates: list[tuple[Longitude, Latitude]]
    buffer_m: Metres


Geometry = Circle | Polygon | MultiPolygon | Corridor


class OpenHours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One window a week. `weekday` 0 is Monday; `closes` before or at `opens` means the next day."""

    #: 0 is Monday.
    weekday: Annotated[int, msgspec.Meta(ge=0, le=6)]
    #: Minutes since local midnight.
    opens: Minute
    #: Minutes since local midnight; before or at `opens`: on the next day.
    closes: Minute


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A window of one day, by the local clock; `closes` before or at `opens` means the next day."""

    opens: Minute
    closes: Minute


class SpecialDay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A date with hours of its own, in place of the week's: a holiday (no windows: closed), a long Saturday."""

    date: datetime.date
    windows: list[Window] = []


def _check_special_days(special_days: list[SpecialDay]) -> None:
    dates = [special.date for special in special_days]
    for day in dates:
        if dates.count(day) > 1:
            raise ValueError(f"`special_days` has {day} twice")


def check_zone(field: str, name: str) -> None:
    """Raises `ValueError` if it is not an IANA time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"`{field}` {name!r} is not an IANA time zone") from None


class Store(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A shop. No `hours` means always open, but for `special_days`."""

    #: Unique among the stores.
    id: Id
    name: Text
    lat: Latitude
    lng: Longitude
    #: IANA time zone: its hours, and with them quiet hours and calendar days, go by it.
    time_zone: str = "UTC"
    #: When it is open; left out: always; []: never.
    hours: list[OpenHours] | None = None
    #: Dates with hours of their own, in place of the week's.
    special_days: list[SpecialDay] = []

    def __post_init__(self) -> None:
        check_zone("time_zone", self.time_zone)
        _check_special_days(self.special_days)

    @property
    def store_id(self) -> StoreId:
        return StoreId(self.id)


class FenceProperties(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a fence but where it is. `sku` belongs to fences of kind "product" only.

    What is None is as in the fence around this one (`parent`), and so on up; then as `geofence.rules` says.
    """

    id: Id
    store: Id
    kind: FenceKind
    name: Text = ""
    parent: Id | None = None
    sku: Id | None = None
    #: The storey, 0 at street level; None where it is unknown or makes no difference.
    floor: Annotated[int, msgspec.Meta(ge=-50, le=200)] | None = None
    dwell_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    #: How far outside a fix must be before it counts as having left; damps the jitter at the edge.
    exit_margin_m: Annotated[float, msgspec.Meta(ge=0, le=1_000)] | None = None
    #: An enter (exit) needs so many fixes in a row that say so, over at least so long.
    enter_fixes: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    enter_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] | None = None
    exit_fixes: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    exit_s: Annotated[float, msgspec.Meta(ge=0, le=3_600)] | None = None
    #: Coming this near, from outside, is an approach. Not inherited; None: nobody asks.
    approach_m: Metres | None = None
    #: Going through between two fixes, without one inside, is a cross. Not inherited.
    crossings: bool = False
    #: When it is in use, by the store's clock: outside of its hours nothing happens in it. None at the top: always.
    hours: list[OpenHours] | None = None
    #: Dates with hours of their own, in place of the week's. None at the top: those of the store, as far as there are
    #: `hours` that they can take from.
    special_days: list[SpecialDay] | None = None
    #: In force from then (included) until then (excluded), in ms since the Unix epoch.
    valid_from_ms: Milliseconds | None = None
    valid_until_ms: Milliseconds | None = None
    #: What proves that somebody is here: ids of beacons, of Wi-Fi access points, and of printed codes.
    beacons: list[Id] = []
    access_points: list[Id] = []
    codes: list[Id] = []

    def __post_init__(self) -> None:
        if (self.kind == "product") != (self.sku is not None):
            raise ValueError('`sku` belongs to fences of kind "product", and every one of them needs it')
        _check_special_days(self.special_days or [])
        for name, at_ms in (("valid_from_ms", self.valid_from_ms), ("valid_until_ms", self.valid_until_ms)):
            if at_ms is not None and at_ms < YEAR_2000_MS:
                raise ValueError(f"`{name}` is in milliseconds since 1970; {at_ms} would be before the year 2000")
        if self.valid_from_ms and self.valid_until_ms and self.valid_until_ms <= self.valid_from_ms:
            raise ValueError("`valid_until_ms` is not after `valid_from_ms`")


class Fence(FenceProperties, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place that matters."""

    geometry: Geometry

    @property
    def fence_id(self) -> FenceId:
        return FenceId(self.id)

    @property
    def store_id(self) -> StoreId:
        return StoreId(self.store)


class Display(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a product stands in a store; becomes a fence of kind "product"."""

    store: Id
    lat: Latitude
    lng: Longitude
    radius_m: Metres = PRODUCT_RADIUS_M
    #: Named to people who look for it.
    aisle: Text = ""
    #: The fence around it: a shelf, a department, the store. What holds there holds here.
    parent: Id | None = None
    floor: Annotated[int, msgspec.Meta(ge=-50, le=200)] | None = None
    beacons: list[Id] = []


class Product(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A thing for sale. `segment` is the product group that promotions and affinities speak of."""

    #: Unique among the products.
    sku: Id
    name: Text
    #: The product group.
    segment: Id
    variant: Text = ""
    #: The regular price; 0: not known.
    price_cents: Cents = 0
    #: Where it stands, in which stores.
    displays: list[Display] = []


class Stock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many pieces of a product a store has now."""

    store: Id
    sku: Id
    #: In pieces.
    quantity: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class Discount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the coupon takes off: a share of the price, `most_cents` at most, or a fixed amount."""

    #: This share of the price, in percent.
    percent: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    #: This much, in cents.
    amount_cents: Annotated[int, msgspec.Meta(gt=0)] | None = None
    #: With `percent`: never more than this, in cents.
    most_cents: Annotated[int, msgspec.Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.amount_cents is None):
            raise ValueError("a discount has either `percent` or `amount_cents`")
        if self.percent is None and self.most_cents is not None:
            raise ValueError("`most_cents` bounds a `percent`; an `amount_cents` is what it is")

    def off_cents(self, price_cents: int) -> int:
        """What it takes off a price, in cents; never more than the price."""
        if self.percent is not None:
            off_cents = math.floor(price_cents * self.percent / 100)
            return min(price_cents, off_cents if self.most_cents is None else min(off_cents, self.most_cents))
        return min(price_cents, self.amount_cents or 0)

    @property
    def bound_cents(self) -> int | None:
        """What it takes off at most, whatever the price; None: no bound."""
        return self.amount_cents if self.percent is None else self.most_cents


class PriceRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A price made for one customer: what they last paid for a thing of this segment, within bounds.

    Made only where `NEARCAST_PERSONAL_PRICES` allows it, and recorded with every figure that it came from.
    """

    #: Never more than this off the list price, whatever they paid before.
    most_percent: Annotated[float, msgspec.Meta(gt=0, le=100)]
    #: Purchases that are longer ago say nothing.
    within_s: Annotated[int, msgspec.Meta(ge=1, le=10 * 366 * 86_400)] = 2 * 366 * 86_400


class Who(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The audience. An empty list asks for nothing; several conditions must all hold."""

    #: In one of these groups of their profile.
    groups: list[Id] = []
    #: At one of these loyalty levels.
    loyalty: list[Id] = []
    #: The customer has a thing of the promotion in their abandoned or active cart.
    in_cart: bool = False
    #: The customer has a thing of the promotion on their wishlist.
    on_wishlist: bool = False
    #: They have bought something of one of these product segments before.
    bought: list[Id] = []
    #: They have bought nothing for so long.
    no_purchase_within_s: Annotated[int, msgspec.Meta(ge=1, le=10 * 366 * 86_400)] | None = None
    #: Of their profile: each named attribute has one of the values.
    attributes: dict[Id, list[Text]] = {}
    #: They have so many loyalty points, at least.
    min_points: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: They have consented to all of these.
    consents: list[ConsentScope] = []


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The places. Empty lists mean anywhere that the trigger can happen."""

    #: In one of these stores.
    stores: list[Id] = []
    #: In one of these fences, or in a fence within.
    fences: list[Id] = []
    #: In a fence of one of these kinds.
    kinds: list[FenceKind] = []


class What(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The things on offer: by SKU or by product segment; both empty means anything in the shop."""

    #: These things.
    skus: list[Id] = []
    #: All things of these product groups.
    segments: list[Id] = []
    #: What the coupon takes off; without one it is a message only.
    discount: Discount | None = None
    #: In place of `discount`.
    price_rule: PriceRule | None = None
    #: Only where the thing is out of stock at the moment's store: then it is offered at the nearest store that has it
    #: ("elsewhere"), or another thing of its segment that this store has ("alternative").
    instead: Literal["elsewhere", "alternative"] | None = None
    #: How far "elsewhere" may be.
    within_m: Metres = 10_000.0

    def __post_init__(self) -> None:
        if self.discount is not None and self.price_rule is not None:
            raise ValueError("`what` has either a `discount` or a `price_rule`")


class When(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The campaign's window, in milliseconds since the Unix epoch (start included, end excluded), and its hours.

    `hours` are by the clock of `zone`: "store" (the moment's), "customer" (their profile's), or an IANA name; where
    neither is known, UTC.
    """

    #: From then on, in ms since the Unix epoch.
    starts_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: Until before then, in ms since the Unix epoch.
    ends_ms: Annotated[int, msgspec.Meta(ge=0)] | None = None
    #: Only in these hours of the week.
    hours: list[OpenHours] | None = None
    #: Whose clock `hours` go by: "store", "customer", or an IANA time zone.
    zone: str = "store"
    #: With trigger "order_status": the statuses that it is about; empty: all.
    statuses: list[Id] = []

    def __post_init__(self) -> None:
        if self.zone not in ("store", "customer"):
            check_zone("zone", self.zone)


#: A calendar period by the customer's clock: from midnight, from Monday's midnight, from that of the month's first.
Calendar = Literal["day", "week", "month"]


class Cap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """At most `count` messages to one customer in any `period_s` seconds, or in one calendar `period`.

    `tags` and `channels` narrow down what is counted and what is stopped: to promotions with one of the tags, to
    messages by one of the channels. A promotion's own caps count its own messages only.
    """

    #: So many messages at most.
    count: Annotated[int, msgspec.Meta(ge=1)]
    #: In any so many seconds.
    period_s: Annotated[int, msgspec.Meta(ge=1, le=366 * 86_400)] | None = None
    #: Or in each calendar day, week or month, by the customer's clock.
    period: Calendar | None = None
    #: Only messages by these channels are counted and stopped.
    channels: list[Channel] = []
    #: Only promotions with one of these tags are counted and stopped.
    tags: list[Id] = []

    def __post_init__(self) -> None:
        if (self.period_s is None) == (self.period is None):
            raise ValueError("a cap has either `period_s` (seconds) or `period` (day, week or month)")


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much a promotion may give away: so many offers, or so many cents of discount, at most.

    Counted apart for each store or customer if `per` says so, and anew in each `period` (of the store's clock per
    store, else UTC).
    """

    #: So many offers.
    pieces: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    #: So many cents of discount.
    cents: Annotated[int, msgspec.Meta(ge=0, le=10**12)] | None = None
    #: In all, for each store, or for each customer.
    per: Literal["promotion", "store", "customer"] = "promotion"
    #: Once for all, or anew in each calendar day, week or month.
    period: Literal["all", "day", "week", "month"] = "all"

    def __post_init__(self) -> None:
        if self.pieces is None and self.cents is None:
            raise ValueError("a budget has `pieces`, `cents`, or both")


class CouponRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the promotion's coupons are good for, beyond the discount."""

    #: "none": a message without a coupon; there is nothing to apply.
    kind: Literal["unique", "none"] = "unique"
    #: Not together with any other coupon in one purchase.
    exclusive: bool = False
    #: Not together with another coupon of the same group in one purchase.
    group: Id | None = None
    #: Redeemable at the offer's store only.
    this_store: bool = False
    #: For purchases of this much before discounts, where the till says how much it is.
    min_purchase_cents: Cents = 0


#: A part of a whole, 0 to 1.
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arm of an A/B test: the customers whose place in the experiment, 0..1, is from `from` to below `to`.

    A customer's place is fixed by their id and the experiment's name, so promotions with the same name share it out.
    """

    #: Promotions with the same name share the customers out.
    name: Id
    #: Where the arm begins, included; 0 is the first customer. In a file it is `from`.
    starts: Share = msgspec.field(name="from")
    #: Where the arm ends, excluded; 1 takes in the last customer. In a file it is `to`.
    ends: Share = msgspec.field(name="to")

    def __post_init__(self) -> None:
        if self.ends <= self.starts:
            raise ValueError("`to` is not above `from`")


class Words(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message in one locale: Jinja templates over `product`, `store`, `discount`, `price`, `customer`, `aisle`,
    `instead_of`; of an order also `order` and `status`, of a pickup `pickup_store` and `minutes`.
    """

    #: The first line; a Jinja template.
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
    #: The rest; a Jinja template.
    body: Annotated[str, msgspec.Meta(max_length=480)] = ""


#: What a message is: see `Promotion.kind`.
MessageKind = Literal["offer", "assist", "notice"]


class Promotion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to say to whom, where and when; and what it is worth. See docs/reference/promotions.md."""

    #: Unique among the promotions; stands in decisions, reports and coupons.
    id: Id
    #: For people; customers don't see it.
    name: Text
    #: What has to happen.
    trigger: Trigger
    #: "offer": to the customer; "notice": to the customer about something they asked for (an order), which is no
    #: marketing; "assist": to the store's staff.
    kind: MessageKind = "offer"
    #: For caps that count several promotions together.
    tags: list[Id] = []
    #: To whom.
    who: Who = Who()
    #: In which places.
    where: Where = Where()
    #: About which things, and what is off.
    what: What = What()
    #: In which weeks and hours.
    when: When = When()
    #: What one redemption is worth to the retailer after the discount: the margin that it brings.
    value_cents: Cents = 100
    #: What one message costs, redeemed or not: the SMS, say.
    cost_cents: Cents = 0
    #: This share of the customers is never made this offer, so that its effect can be measured.
    holdout: Share = 0.0
    #: Only the customers of this arm see it.
    experiment: Experiment | None = None
    #: How long the moment lasts: a message not sent by then is not sent at all.
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 300.0
    #: How long the coupon can be redeemed after it was offered.
    coupon_valid_s: Annotated[float, msgspec.Meta(gt=0, le=366 * 86_400)] = 7_200.0
    #: What its coupons are good for.
    coupon: CouponRules = CouponRules()
    #: How much it may give away; all must have something left.
    budgets: list[Budget] = []
    #: A push that no device has acknowledged for so long is followed by the next channel. None: never.
    fall_back_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = 15.0
    #: What becomes of a moment in quiet hours: nothing, or it is decided anew when they are over.
    in_quiet_hours: Literal["drop", "hold"] = "drop"
    #: A purchase within this time counts as brought about by the message.
    attribution_s: Annotated[int, msgspec.Meta(ge=1, le=90 * 86_400)] = 7 * 86_400
    #: How often one customer gets it; all must have room.
    caps: list[Cap] = msgspec.field(default_factory=lambda: [Cap(count=1, period_s=86_400)])
    #: Allowed channels, in order of preference where the customer can be reached on several.
    channels: Annotated[list[Channel], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["websocket", "sms", "email"]
    )
    #: By locale ("en", "de-AT"); "en" is the fall-back and must be there.
    words: dict[str, Words]

    def __post_init__(self) -> None:
        if "en" not in self.words:
            raise ValueError('`words` needs an "en" entry: it is the fall-back for every other locale')
        if self.when.starts_ms and self.when.ends_ms and self.when.ends_ms <= self.when.starts_ms:
            raise ValueError("`when` ends before it starts")
        if self.kind != "offer" and self.holdout:
            raise ValueError("nobody is held out of alerts and notices: `holdout` belongs to offers")
        if self.kind != "offer" and self.budgets:
            raise ValueError("`budgets` belong to offers")
        if self.trigger == "points_reached" and self.who.min_points is None:
            raise ValueError('the trigger "points_reached" needs `who.min_points`')
        if self.when.statuses and self.trigger != "order_status":
            raise ValueError('`when.statuses` belongs to the trigger "order_status"')
        kinds = [(budget.per, budget.period) for budget in self.budgets]
        if len(set(kinds)) < len(kinds):
            raise ValueError("two `budgets` have the same `per` and `period`")
        discount = self.what.discount
        if any(budget.cents is not None for budget in self.budgets) and (
            discount is None or discount.bound_cents is None
        ):
            raise ValueError(
                "a budget in `cents` needs a `discount` with a bound: `amount_cents`, or `percent` with `most_cents`"
            )

    @property
    def promotion_id(self) -> PromotionId:
        return PromotionId(self.id)
