"""A promotion in plain sentences: for whoever signs it off and doesn't read YAML.

Every sentence is made from the promotion's own fields; nothing is looked up but the names of things in the world.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from nearcast.decisions import Reason
from nearcast.reasons import IN_WORDS
from nearcast.world import Budget, Cap, Discount, OpenHours, Promotion, Trigger
from offers.gates import GATES, PLACE_TRIGGERS, concerns
from offers.worldfile import WorldFile

_OCCASIONS: Mapping[Trigger, str] = {
    "enter": "somebody comes in",
    "dwell": "somebody stays for a while",
    "exit": "somebody leaves",
    "approach": "somebody comes near",
    "cross": "somebody passes through",
    "walk_past": "somebody walks past",
    "near_product": "somebody stands at the product",
    "cart_abandoned": "somebody leaves their online cart alone for a while",
    "app_open": "somebody opens the app",
    "qr_scan": "somebody scans a code",
    "product_view": "somebody looks at a product online",
    "wifi_lookup": "somebody looks something up on the store's Wi-Fi",
    "wishlist_add": "somebody puts a product on their wishlist",
    "help_request": "somebody asks for help",
    "pickup_approaching": "somebody will soon be at the store where their order waits",
    "pickup_arrived": "somebody comes to the store for their order",
    "pickup_wrong_store": "somebody on the way to their order stays in another store",
    "pickup_abandoned": "somebody set out for their order, and doesn't come",
    "order_ready": "an order can be picked up",
    "order_status": "an order goes on",
    "points_reached": "somebody's loyalty points reach the mark",
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_CHANNELS = {"websocket": "the app", "sms": "SMS", "email": "e-mail"}


def tell(promotion: Promotion, world: WorldFile) -> list[tuple[str, list[str]]]:
    """Headings, each with its sentences."""
    parts: list[tuple[str, Iterator[str]]] = [
        ("To whom", _whom(promotion)),
        ("Where", _where(promotion, world)),
        ("When", _when(promotion)),
        ("What", _what(promotion, world)),
        ("How often", _often(promotion)),
        ("Worth", _worth(promotion)),
        ("On its way", _way(promotion)),
    ]
    told = [(heading, list(sentences)) for heading, sentences in parts]
    return [(heading, sentences) for heading, sentences in told if sentences]


def what_stops(promotion: Promotion) -> list[tuple[Reason, str]]:
    """What can keep it from a customer, in the order in which it is asked."""
    return [
        (reason, IN_WORDS[reason])
        for reason, _ in GATES
        if concerns(reason, promotion) or (reason is Reason.BUDGET_EXHAUSTED and promotion.budgets)
    ]


def _whom(promotion: Promotion) -> Iterator[str]:
    conditions = list(_audience(promotion))
    if promotion.kind == "assist":
        yield "To the staff of the store."
        if conditions:
            yield f"About customers who {_and(conditions)}."
        return
    yield f"To customers who {_and(conditions)}." if conditions else "To every customer."
    if promotion.kind == "notice":
        yield "It is about something they asked for, and no marketing."
    if promotion.experiment is not None:
        arm = promotion.experiment
        share = (arm.ends - arm.starts) * 100
        yield f"Only to those of its arm ({share:g} %) of the experiment {arm.name}."
    if promotion.holdout:
        yield f"{promotion.holdout * 100:g} % of them never get it, so that its effect can be measured."


def _audience(promotion: Promotion) -> Iterator[str]:
    who = promotion.who
    if who.groups:
        yield f"are in the group {_or(who.groups)}"
    if who.loyalty:
        yield f"have the loyalty level {_or(who.loyalty)}"
    if who.in_cart:
        yield "have it in their cart"
    if who.on_wishlist:
        yield "have it on their wishlist"
    if who.bought:
        yield f"have bought {_or(who.bought)} before"
    if who.no_purchase_within_s is not None:
        yield f"have bought nothing for {_duration(who.no_purchase_within_s)}"
    for name, values in who.attributes.items():
        yield f"have {name} {_or(values)}"
    if who.min_points is not None:
        yield f"have {who.min_points} loyalty points or more"
    if who.consents:
        yield f"have consented to {_and(who.consents)}"


def _where(promotion: Promotion, world: WorldFile) -> Iterator[str]:
    where = promotion.where
    stores = {store.id: store.name for store in world.stores}
    fences = {fence.id: fence.name for fence in world.fences}
    places = []
    if where.kinds:
        places.append(f"a fence of the kind {_or(where.kinds)}")
    if where.fences:
        places.append(f"the fence {_or([fences.get(each) or each for each in where.fences])} or one within")
    if where.stores:
        places.append(f"the store {_or([stores.get(each) or each for each in where.stores])}")
    yield (
        f"When {_OCCASIONS[promotion.trigger]}: in {', of '.join(places)}."
        if places
        else (f"Whenever {_OCCASIONS[promotion.trigger]}, anywhere.")
    )


def _when(promotion: Promotion) -> Iterator[str]:
    when = promotion.when
    if when.starts_ms is None and when.ends_ms is None:
        yield "From now on, without end."
    else:
        starts = f"From {_time(when.starts_ms)}" if when.starts_ms is not None else "From now on"
        yield f"{starts} {f'until {_time(when.ends_ms)}' if when.ends_ms is not None else 'without end'}."
    if when.hours is not None:
        zone = {"store": "the store's clock", "customer": "the customer's clock"}.get(
            when.zone, f"the clock of {when.zone}"
        )
        yield f"By {zone}: {_hours(when.hours)}."
    if when.statuses:
        yield f"When the order is {_or(when.statuses)}."
    if promotion.kind == "offer":
        held = promotion.in_quiet_hours == "hold"
        yield "In quiet hours it waits, and is decided anew when they are over." if held else "Not in quiet hours."


def _what(promotion: Promotion, world: WorldFile) -> Iterator[str]:
    what = promotion.what
    names = {product.sku: product.name for product in world.products}
    things = [f"{names[sku]} ({sku})" if sku in names else sku for sku in what.skus]
    things += [f"everything of {segment}" for segment in what.segments]
    about = _or(things) if things else ""
    if about:
        yield f"About {about}."
    if what.discount is not None and promotion.coupon.kind == "unique":
        yield f"A coupon takes {_off(what.discount)}, good for {_duration(promotion.coupon_valid_s)}."
    elif what.price_rule is not None:
        rule = what.price_rule
        yield (
            "A price for this customer: what they last paid for such a thing in "
            f"{_duration(rule.within_s)}, at most {rule.most_percent:g} % off."
        )
    else:
        yield "Without a coupon."
    coupon = promotion.coupon
    conditions = [
        *(["together with no other coupon"] if coupon.exclusive else []),
        *([f"not together with another of the group {coupon.group}"] if coupon.group is not None else []),
        *(["in the store of the offer only"] if coupon.this_store else []),
        *([f"for purchases from {_money(coupon.min_purchase_cents)} on"] if coupon.min_purchase_cents else []),
    ]
    if conditions:
        yield f"The coupon can be used {_and(conditions)}."
    if what.instead == "elsewhere":
        yield f"Only where the store has none left: then at the nearest store within {what.within_m:g} m that has it."
    elif what.instead == "alternative":
        yield "Only where the store has none left: then another thing of its kind that the store has."


def _often(promotion: Promotion) -> Iterator[str]:
    for cap in promotion.caps:
        yield f"At most {_cap(cap)} to one customer."
    if not promotion.caps:
        yield "As often as it happens, within what holds for all promotions together."
    for budget in promotion.budgets:
        yield f"In all at most {_budget(budget)}."


def _worth(promotion: Promotion) -> Iterator[str]:
    if promotion.kind == "offer":
        yield f"A redemption brings {_money(promotion.value_cents)}; a message costs {_money(promotion.cost_cents)}."
        yield f"A purchase within {_duration(promotion.attribution_s)} counts as brought about by it."


def _way(promotion: Promotion) -> Iterator[str]:
    channels = [_CHANNELS.get(channel, channel) for channel in promotion.channels]
    yield f"By {', else by '.join(channels)}." if promotion.kind != "assist" else "To the store's tablets."
    yield f"Sent within {_duration(promotion.deadline_s)} of the moment, or not at all."
    if promotion.kind != "assist" and len(channels) > 1 and promotion.channels[0] == "websocket":
        if promotion.fall_back_s is None:
            yield "If no device acknowledges it, nothing follows."
        else:
            yield f"If no device acknowledges it for {_duration(promotion.fall_back_s)}, it goes by {channels[1]}."
    if promotion.trigger in PLACE_TRIGGERS and promotion.kind == "offer":
        yield "Taken back if they leave before they have opened it."
    yield f"Written in {_and(sorted(promotion.words))}."


def _cap(cap: Cap) -> str:
    # "In any day" could be taken for a calendar day.
    rolling = "24 hours" if cap.period_s == 86_400 else _duration(cap.period_s or 0)
    period = f"in any {rolling}" if cap.period_s is not None else f"in a calendar {cap.period}"
    narrowed = [
        *([f"by {_or([_CHANNELS.get(each, each) for each in cap.channels])}"] if cap.channels else []),
        *([f"of those tagged {_or(cap.tags)}"] if cap.tags else []),
    ]
    return " ".join(["once" if cap.count == 1 else f"{cap.count} times", *narrowed, period])


def _budget(budget: Budget) -> str:
    amounts = [
        *([f"{budget.pieces:,} offers"] if budget.pieces is not None else []),
        *([f"{_money(budget.cents)} of discount"] if budget.cents is not None else []),
    ]
    per = "" if budget.per == "promotion" else f" for each {budget.per}"
    return f"{_and(amounts)}{per}{'' if budget.period == 'all' else f' in a calendar {budget.period}'}"


def _off(discount: Discount) -> str:
    if discount.amount_cents is not None:
        return f"{_money(discount.amount_cents)} off"
    most = f", {_money(discount.most_cents)} at most" if discount.most_cents is not None else ""
    return f"{discount.percent:g} % off{most}"


def _hours(hours: Sequence[OpenHours]) -> str:
    told = [f"{_DAYS[each.weekday]} {_clock(each.opens)}\u2013{_clock(each.closes)}" for each in hours]
    return ", ".join(told) or "never"


def _clock(minute: int) -> str:
    return f"{minute // 60}:{minute % 60:02}"


def _duration(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length and seconds % length == 0:
            count = seconds / length
            return f"{count:g} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:g} second{'' if seconds == 1 else 's'}"


def _money(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(sep=" ", timespec="minutes").replace("+00:00", " UTC")


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


def _and(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
