"""Candidates: which promotions, for which things, a moment could lead to.

Only what the moment itself rules out is left out here (another trigger, another place, another product, no such thing
in the cart). Everything else is a gate's business, so that a decision can say why not.

The order is that of promotion ids, then of relevance to the customer. It depends on nothing but the arguments.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from nearcast.customer import Customer
from nearcast.decisions import Candidate
from nearcast.hours import store_is_open
from nearcast.ids import Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Promotion, Where
from offers.catalogue import Catalogue, Goods, remember
from offers.once import once
from offers.prices import price_for

#: How many things of one promotion are considered for one moment: those most relevant to the customer.
MAX_THINGS = 5
#: How many other stores are asked for a thing that is out of stock: the nearest that are open.
MAX_STORES = 8


def candidates(moment: Moment, customer: Customer, catalogue: Catalogue) -> list[Candidate]:
    """Promotions and things. None at all means that there is nothing to decide: the caller records no decision."""
    reach = catalogue.reach.get(moment.trigger)
    if reach is None:
        return []
    relevance = Relevance(moment, customer, catalogue)
    found = []
    for promotion in reach.promotions(moment, customer, catalogue.segments):
        if suits(promotion, moment):
            promotion_id = promotion.promotion_id
            skus = things(promotion, moment, customer, catalogue, relevance)
            found += [Candidate(promotion=promotion_id, sku=sku) for sku in skus]
    return found


def stock_wanted(moment: Moment, candidates: Iterable[Candidate], catalogue: Catalogue) -> list[tuple[StoreId, Sku]]:
    """The (store, SKU) pairs whose stock the gates will ask for, each once: of all that is not stopped already."""
    store = moment.store
    if store is None:
        return []
    wanted: dict[tuple[StoreId, Sku], None] = {}
    others: dict[float, list[StoreId]] = {}
    for candidate in candidates:
        sku = candidate.sku
        if sku is None or candidate.stopped_by is not None:
            continue
        wanted[store, sku] = None
        what = catalogue.promotions[candidate.promotion].what
        if what.instead == "elsewhere":
            if what.within_m not in others:
                others[what.within_m] = open_stores_around(store, what.within_m, moment.at_ms, catalogue)
            wanted.update(((other, sku), None) for other in others[what.within_m])
        elif what.instead == "alternative":
            wanted.update(((store, other), None) for other in catalogue.alike(store, sku))
    return list(wanted)


def settled(
    candidate: Candidate,
    moment: Moment,
    customer: Customer,
    catalogue: Catalogue,
    stock: Mapping[tuple[StoreId, Sku], int],
) -> Candidate:
    """The candidate with what only the stock can tell: which other store has the thing, or what to take instead of it;
    and with a price for this customer, if the promotion makes one.

    Where there is none of these, it stays without: the gates will see.
    """
    sku, what = candidate.sku, catalogue.promotions[candidate.promotion].what
    if sku is None or (what.instead is None and what.price_rule is None):
        return candidate
    store = moment.store
    if what.instead is not None and store is not None and stock.get((store, sku), 0) <= 0:
        if what.instead == "elsewhere":
            stores = open_stores_around(store, what.within_m, moment.at_ms, catalogue)
            has_it = next((other for other in stores if stock.get((other, sku), 0) > 0), None)
            candidate = replace(candidate, store=has_it)
        else:
            alike = next((other for other in catalogue.alike(store, sku) if stock.get((store, other), 0) > 0), None)
            if alike is not None:
                candidate = replace(candidate, sku=alike, instead_of=sku)
    product = catalogue.products.get(candidate.sku or sku)
    if what.price_rule is not None and product is not None:
        candidate = replace(candidate, price=price_for(what.price_rule, product, customer, moment.at_ms))
    return candidate


def open_stores_around(store: StoreId, within_m: float, at_ms: int, catalogue: Catalogue) -> list[StoreId]:
    """The nearest MAX_STORES that are open, the nearest first."""
    found: list[StoreId] = []
    for metres, other in catalogue.neighbours(store):
        if metres > within_m or len(found) == MAX_STORES:
            break
        if store_is_open(other, at_ms):
            found.append(other.store_id)
    return found


def suits(promotion: Promotion, moment: Moment) -> bool:
    """Whether the moment, of the promotion's trigger, is one that it asks for, whoever it is and whatever about."""
    return (
        fits(promotion.where, moment)
        and (promotion.trigger != "points_reached" or crosses_points(promotion, moment))
        and has_status(promotion, moment)
    )


def fits(where: Where, moment: Moment) -> bool:
    """Whether the moment is at a place that the promotion asks for. A fence stands for all the fences in it, too."""
    return (
        (not where.stores or moment.store in where.stores)
        and (not where.fences or moment.fence in where.fences or not set(moment.around).isdisjoint(where.fences))
        and (not where.kinds or moment.fence_kind in where.kinds)
    )


def crosses_points(promotion: Promotion, moment: Moment) -> bool:
    """Whether the points rose from below the promotion's threshold to it, or past it."""
    before, after = moment.points or (0, 0)
    return before < (promotion.who.min_points or 0) <= after


def has_status(promotion: Promotion, moment: Moment) -> bool:
    """Of "order_status": whether it is one of the statuses that the promotion names, if it names any."""
    return not promotion.when.statuses or moment.status in promotion.when.statuses


class Relevance:
    """How relevant things are to the customer at a moment; worked out once for all promotions."""

    def __init__(self, moment: Moment, customer: Customer, catalogue: Catalogue) -> None:
        self._at_ms = moment.at_ms
        self._customer = customer
        self._bought = customer.history.segments.keys()
        self._segments = catalogue.segments

    @once
    def shown(self) -> list[Sku]:
        """What the customer showed interest in: in the cart, on the wishlist, looked at; the newest of each first."""
        customer = self._customer
        in_cart = {sku: item.changed_ms for sku, item in customer.cart.items()}
        return [
            sku
            for interest in (in_cart, customer.wishlist, customer.viewed)
            for sku in sorted(interest, key=lambda sku: (-interest[sku], sku))
        ]

    @once
    def _places(self) -> dict[str, list[int]]:
        """Where in `shown` a thing, or those of a segment, are; by their names."""
        places: dict[str, list[int]] = {}
        for place, sku in enumerate(self.shown):
            for name in {sku, self._segments.get(sku, sku)}:
                places.setdefault(name, []).append(place)
        return places

    @once
    def _names(self) -> set[str]:
        """The things of `shown`, and their segments."""
        customer = self._customer
        skus = {*customer.cart, *customer.wishlist, *customer.viewed}
        return {*skus, *[self._segments.get(sku, sku) for sku in skus]}

    def is_none_in(self, goods: Goods) -> bool:
        """Whether the customer showed no interest in any of it, nor ever bought anything like it."""
        return self._names.isdisjoint(goods.names) and self._bought.isdisjoint(goods.segments)

    def shown_of(self, names: Iterable[str]) -> Sequence[Sku]:
        """Those of `shown` that are one of these things, or of one of these segments."""
        if self._names.isdisjoint(names):
            return ()
        places = self._places
        found = {place for name in names if name in places for place in places[name]}
        return [self.shown[place] for place in sorted(found)]

    def segments(self, names: Sequence[str]) -> Sequence[str]:
        """Segments: those first that the customer buys most from, then by name."""
        bought = self._customer.history.segments
        return _ranked(names, {name: self._affinity(name) for name in names if name in bought})

    def skus(self, names: Sequence[str]) -> Sequence[str]:
        """Things: those of the segments first that the customer buys most from, then by SKU."""
        bought, segments = self._customer.history.segments, self._segments
        return _ranked(names, {name: self._affinity(segments[name]) for name in names if segments.get(name) in bought})

    def _affinity(self, segment: str) -> float:
        return self._customer.history.segments[segment].recent.at(self._at_ms)


def _ranked(names: Sequence[str], affinities: Mapping[str, float]) -> Sequence[str]:
    if not affinities:
        return sorted(names) if len(names) > 1 else names
    return sorted(names, key=lambda name: (-affinities.get(name, 0.0), name))


def things(
    promotion: Promotion, moment: Moment, customer: Customer, catalogue: Catalogue, relevance: Relevance | None = None
) -> Sequence[Sku | None]:
    """What the promotion would be about, at most MAX_THINGS; [None] if it is about nothing in particular.

    Most relevant first: what the customer showed interest in; then the SKUs that the promotion names, then those of its
    segments. The segments they buy from most come first, and within a segment what is on display in the store.
    `relevance` is for whoever asks about several promotions.
    """
    what, who = promotion.what, promotion.who
    if what.instead is not None and moment.store is None:
        return []
    if moment.sku is not None:
        wanted = is_of(promotion, moment.sku, catalogue) and is_owned(promotion, moment.sku, customer)
        return [moment.sku] if wanted else []
    if not (what.skus or what.segments or who.in_cart or who.on_wishlist):
        return [None] if what.instead is None else []
    if relevance is None:
        relevance = Relevance(moment, customer, catalogue)
    if who.in_cart or who.on_wishlist:
        # Without names it is about all of it.
        shown = relevance.shown_of(names) if (names := (*what.skus, *what.segments)) else relevance.shown
        owned = [sku for sku in shown if is_of(promotion, sku, catalogue) and is_owned(promotion, sku, customer)]
        return list(dict.fromkeys(owned))[:MAX_THINGS]
    goods = goods_of(promotion, moment.store, catalogue)
    return (
        goods.things if relevance.is_none_in(goods) else _most_relevant(promotion, moment.store, catalogue, relevance)
    )


def goods_of(promotion: Promotion, store: StoreId | None, catalogue: Catalogue) -> Goods:
    """What a promotion that names things is about; worked out once for each version of the catalogue."""
    what = promotion.what
    # Where things are displayed matters for segments only.
    place = (promotion.id, store if what.segments else None)
    known = catalogue.goods.get(place)
    if known is None:
        of_skus = [catalogue.segments[sku] for sku in what.skus if sku in catalogue.segments]
        known = Goods(
            names=frozenset((*what.skus, *what.segments)),
            segments=frozenset((*what.segments, *of_skus)),
            things=tuple(_most_relevant(promotion, store, catalogue, None)),
        )
        remember(catalogue.goods, place, known)
    return known


def _most_relevant(
    promotion: Promotion, store: StoreId | None, catalogue: Catalogue, relevance: Relevance | None
) -> list[Sku]:
    """The things of a promotion that names some; without `relevance`, for nobody in particular."""
    what = promotion.what
    shown: Sequence[Sku] = ()
    skus: Sequence[str] = sorted(what.skus)
    segments: Sequence[str] = sorted(what.segments)
    if relevance is not None:
        # A thing can have the name of a segment.
        shown = [sku for sku in relevance.shown_of((*skus, *segments)) if is_of(promotion, sku, catalogue)]
        skus, segments = relevance.skus(skus), relevance.segments(segments)
    found: dict[str, None] = dict.fromkeys((*shown, *skus))
    for segment in segments:
        if len(found) >= MAX_THINGS:
            break
        # All of a small segment, and enough of a large one: those that are there already give no more.
        for group in (
            catalogue.on_display.get((store or "", segment), ()),
            catalogue.skus_of_segment.get(segment, ()),
        ):
            found.update(dict.fromkeys(group[: MAX_THINGS + len(found)]))
    return [Sku(sku) for sku in list(found)[:MAX_THINGS]]


def is_of(promotion: Promotion, sku: Sku, catalogue: Catalogue) -> bool:
    """True if the promotion is for this thing, whoever has it."""
    what = promotion.what
    if not what.skus and not what.segments:
        return True
    return sku in what.skus or catalogue.segments.get(sku) in what.segments


def is_owned(promotion: Promotion, sku: Sku, customer: Customer) -> bool:
    """True if the thing is in the cart and on the wishlist, as far as the promotion asks for it."""
    who = promotion.who
    return (not who.in_cart or sku in customer.cart) and (not who.on_wishlist or sku in customer.wishlist)
