"""Candidates: which promotions, for which things, a moment could lead to.

Only what the moment itself rules out is left out here (another trigger, another place, another product, no such thing
in the cart). Everything else is a gate's business, so that a decision can say why not.

The order is that of promotion ids, then of relevance to the customer. It depends on nothing but the arguments.
"""

from collections.abc import Iterable, Iterator, Sequence

from nearcast.customer import Customer
from nearcast.decisions import Candidate
from nearcast.ids import Sku, StoreId
from nearcast.moments import Moment
from nearcast.world import Promotion, Where
from offers.catalogue import Catalogue

#: How many things of one promotion are considered for one moment: those most relevant to the customer.
MAX_THINGS = 5


def candidates(moment: Moment, customer: Customer, catalogue: Catalogue) -> list[Candidate]:
    """Promotions and things. None at all means that there is nothing to decide: the caller records no decision."""
    return [
        Candidate(promotion=promotion.promotion_id, sku=sku)
        for promotion in catalogue.by_trigger.get(moment.trigger, ())
        if fits(promotion.where, moment)
        for sku in things(promotion, moment, customer, catalogue)
    ]


def stock_wanted(moment: Moment, candidates: Iterable[Candidate]) -> list[tuple[StoreId, Sku]]:
    """The (store, SKU) pairs whose stock the gates will ask for, each once: of all that is not stopped already."""
    store = moment.store
    if store is None:
        return []
    wanted = (candidate.sku for candidate in candidates if candidate.stopped_by is None)
    return list(dict.fromkeys((store, sku) for sku in wanted if sku is not None))


def fits(where: Where, moment: Moment) -> bool:
    """Whether the moment is at a place that the promotion asks for. A fence stands for all the fences in it, too."""
    return (
        (not where.stores or moment.store in where.stores)
        and (not where.fences or moment.fence in where.fences or not set(moment.around).isdisjoint(where.fences))
        and (not where.kinds or moment.fence_kind in where.kinds)
    )


def things(promotion: Promotion, moment: Moment, customer: Customer, catalogue: Catalogue) -> Sequence[Sku | None]:
    """What the promotion would be about, at most MAX_THINGS; [None] if it is about nothing in particular."""
    if moment.sku is not None:
        wanted = is_of(promotion, moment.sku, catalogue) and is_owned(promotion, moment.sku, customer)
        return [moment.sku] if wanted else []
    if not (promotion.what.skus or promotion.what.segments or promotion.who.in_cart or promotion.who.on_wishlist):
        return [None]
    found: dict[Sku, None] = {}
    for sku in _by_relevance(promotion, moment, customer, catalogue):
        if is_owned(promotion, sku, customer):
            found[sku] = None
            if len(found) == MAX_THINGS:
                break
    return list(found)


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


def _by_relevance(promotion: Promotion, moment: Moment, customer: Customer, catalogue: Catalogue) -> Iterator[Sku]:
    """The promotion's things, most relevant first; some come twice.

    First what the customer showed interest in: in the cart, on the wishlist, looked at; the newest first. Then the
    SKUs that the promotion names, then those of its segments; the segments they buy from most come first, and within a
    segment what is on display in the store.
    """
    in_cart = {sku: item.changed_ms for sku, item in customer.cart.items()}
    for interest in (in_cart, customer.wishlist, customer.viewed):
        for sku in sorted(interest, key=lambda sku: (-interest[sku], sku)):
            if is_of(promotion, sku, catalogue):
                yield sku
    if promotion.who.in_cart or promotion.who.on_wishlist:
        return

    def affinity(segment: str | None) -> float:
        history = customer.history.segments.get(segment) if segment is not None else None
        return history.recent.at(moment.at_ms) if history else 0.0

    for named in sorted(promotion.what.skus, key=lambda sku: (-affinity(catalogue.segments.get(sku)), sku)):
        yield Sku(named)
    for segment in sorted(promotion.what.segments, key=lambda segment: (-affinity(segment), segment)):
        yield from catalogue.on_display.get((moment.store or "", segment), ())
        yield from catalogue.skus_of_segment.get(segment, ())
