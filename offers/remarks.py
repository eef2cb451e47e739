"""Remarks on promotions: what is allowed and hardly meant. Values and `now` in, findings out.

A remark is sure of what it says, as far as the world that it is given goes: what the world doesn't describe (no stores,
no fences) is not remarked on.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import combinations

from nearcast.events import YEAR_2000_MS
from nearcast.world import Fence, Promotion, Trigger
from offers.gates import PASSING_TRIGGERS, PLACE_TRIGGERS
from offers.worldfile import Finding, WorldFile, minutes_of

#: No store is part of such a moment.
_NOWHERE: frozenset[Trigger] = frozenset({"cart_abandoned", "points_reached"})
_FENCED = PLACE_TRIGGERS | PASSING_TRIGGERS
_FITS: Mapping[Trigger, Callable[[Fence], bool]] = {
    "walk_past": lambda fence: fence.kind == "vicinity",
    "enter": lambda fence: fence.kind in ("store", "department", "shelf"),
    "dwell": lambda _: True,
    "exit": lambda _: True,
    "approach": lambda fence: fence.approach_m is not None,
    "cross": lambda fence: fence.crossings,
}


def promotion_remarks(world: WorldFile, *, now_ms: int, personal_prices: bool) -> list[Finding]:
    """On each promotion alone, then on pairs of them; in the order of the world."""
    found = [
        Finding(promotion.id, path, detail)
        for promotion in world.promotions
        for path, detail in (
            *_when(promotion, world, now_ms),
            *_where(promotion, world),
            *_what(promotion, personal_prices),
            *_worth(promotion),
            *_sending(promotion),
            *_words(promotion),
        )
    ]
    return found + list(_arms(world))


_Remark = tuple[tuple[str | int, ...], str]


def _when(promotion: Promotion, world: WorldFile, now_ms: int) -> Iterator[_Remark]:
    when = promotion.when
    for name, at_ms in (("starts_ms", when.starts_ms), ("ends_ms", when.ends_ms)):
        if at_ms is not None and at_ms < YEAR_2000_MS:
            yield ("when", name), f"is in milliseconds since 1970; {at_ms} would be before the year 2000"
            return
    if when.ends_ms is not None and when.ends_ms <= now_ms:
        ended = datetime.fromtimestamp(when.ends_ms / 1000, UTC).isoformat(timespec="minutes").replace("+00:00", "Z")
        yield ("when", "ends_ms"), f"it is over since {ended}, and never made again"
    if when.hours is None:
        return
    if not when.hours:
        yield ("when", "hours"), "an empty list is no hour at all: it is never made"
        return
    stores = [store for store in world.stores if not promotion.where.stores or store.id in promotion.where.stores]
    hours = minutes_of(tuple(when.hours))
    if when.zone == "store" and stores and promotion.trigger not in _NOWHERE:
        shut = [
            store.hours is not None and not store.special_days and minutes_of(tuple(store.hours)).isdisjoint(hours)
            for store in stores
        ]
        if all(shut):
            yield ("when", "hours"), "none of its stores is open in these hours: it is never made in a store"


def _where(promotion: Promotion, world: WorldFile) -> Iterator[_Remark]:
    where, trigger = promotion.where, promotion.trigger
    if trigger in _NOWHERE and (where.stores or where.fences or where.kinds):
        yield ("where",), f"{trigger} happens in no place: with `where` it is never made"
    if trigger == "near_product":
        if world.products and not any(_stands(promotion, world)):
            yield ("trigger",), "none of its products is on display where it holds: it is never made"
    elif trigger in ("dwell", "exit") and "product" in (where.kinds or ["product"]) and _any_display(world):
        # Displays become fences, too.
        return
    elif trigger in _FENCED and world.fences:
        parents = {fence.id: fence.parent for fence in world.fences}
        if not any(_FITS[trigger](fence) and _is_in(fence, promotion, parents) for fence in world.fences):
            yield ("where",), f"no fence that it fits can have {trigger}: it is never made"


def _any_display(world: WorldFile) -> bool:
    return any(product.displays for product in world.products)


def _stands(promotion: Promotion, world: WorldFile) -> Iterator[bool]:
    what, where = promotion.what, promotion.where
    for product in world.products:
        if (what.skus or what.segments) and product.sku not in what.skus and product.segment not in what.segments:
            continue
        yield any(not where.stores or shown.store in where.stores for shown in product.displays)
        yield any(fence.sku == product.sku for fence in world.fences)


def _is_in(fence: Fence, promotion: Promotion, parents: Mapping[str, str | None]) -> bool:
    where = promotion.where
    around = {fence.id}
    above = fence.parent
    while above is not None and above not in around:
        around.add(above)
        above = parents.get(above)
    return (
        (not where.stores or fence.store in where.stores)
        and (not where.fences or not around.isdisjoint(where.fences))
        and (not where.kinds or fence.kind in where.kinds)
    )


def _what(promotion: Promotion, personal_prices: bool) -> Iterator[_Remark]:
    what, who = promotion.what, promotion.who
    if what.instead is not None:
        if promotion.trigger in _NOWHERE:
            yield ("what", "instead"), f"{promotion.trigger} happens in no store, so nothing is out of stock there"
        elif promotion.trigger not in (
            "near_product",
            "product_view",
            "wishlist_add",
            "qr_scan",
            "wifi_lookup",
        ) and not (what.skus or what.segments or who.in_cart or who.on_wishlist):
            yield ("what", "instead"), "it is about no thing in particular, so nothing can be out of stock"
    if what.price_rule is not None and not personal_prices:
        yield ("what", "price_rule"), "NEARCAST_PERSONAL_PRICES is off here: it is never made"
    if what.discount is not None and promotion.kind == "assist":
        yield ("what", "discount"), "an alert to staff carries no coupon: nobody gets it"
    elif what.discount is not None and promotion.coupon.kind == "none":
        yield ("coupon", "kind"), "without coupons nobody can use the `discount`"


def _worth(promotion: Promotion) -> Iterator[_Remark]:
    discount = promotion.what.discount
    bound = discount.bound_cents if discount is not None else None
    for number, budget in enumerate(promotion.budgets):
        if budget.pieces == 0 or budget.cents == 0:
            yield ("budgets", number), "a budget of 0 lets nothing through: it is never made"
        elif budget.cents is not None and bound is not None and budget.cents < bound:
            said = f"{budget.cents} cents are less than one offer may take off ({bound}): it is never made"
            yield ("budgets", number, "cents"), said
    if promotion.kind == "offer" and promotion.cost_cents >= promotion.value_cents:
        said = f"a redemption brings {promotion.value_cents} cents, a message costs {promotion.cost_cents}"
        yield ("value_cents",), f"{said}: it is never worth it"
    if promotion.holdout == 1:
        yield ("holdout",), "everybody is held out: it is never made"


def _sending(promotion: Promotion) -> Iterator[_Remark]:
    if promotion.what.discount is not None and promotion.coupon_valid_s < promotion.deadline_s:
        said = f"the coupon is over after {promotion.coupon_valid_s:g} s, before the moment is"
        yield ("coupon_valid_s",), f"{said} ({promotion.deadline_s:g} s)"
    fall_back_s = promotion.fall_back_s
    if fall_back_s is not None and len(promotion.channels) > 1 and fall_back_s >= promotion.deadline_s:
        said = f"the moment is over after {promotion.deadline_s:g} s: there is no time for a second channel"
        yield ("fall_back_s",), said


def _words(promotion: Promotion) -> Iterator[_Remark]:
    english = promotion.words["en"]
    spoken = _variables(f"{english.title} {english.body}")
    for locale, words in promotion.words.items():
        missing = spoken - _variables(f"{words.title} {words.body}")
        if missing:
            names = ", ".join(f"`{name}`" for name in sorted(missing))
            yield ("words", locale), f'does not say {names}, which "en" says'


def _variables(text: str) -> set[str]:
    """The first name of each expression: enough to compare two texts; whether templates work is checked elsewhere."""
    found = (part.partition("}}")[0].strip() for part in text.split("{{")[1:])
    return {expression.replace(".", " ").replace("|", " ").split()[0] for expression in found if expression}


def _arms(world: WorldFile) -> Iterator[Finding]:
    tested = [(each, each.experiment) for each in world.promotions if each.experiment is not None]
    for (first, one), (second, other) in combinations(tested, 2):
        if one.name != other.name or one.starts >= other.ends or other.starts >= one.ends:
            continue
        # An arm may be of several promotions; then they are about different occasions.
        if (one.starts, one.ends) != (other.starts, other.ends) or first.trigger == second.trigger:
            said = f"its arm of the experiment {one.name!r} overlaps with that of the promotion {first.id!r}"
            yield Finding(second.id, ("experiment",), said)
