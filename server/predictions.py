"""What a customer will likely want next, as asked for over HTTP: from their state and the world at that moment."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from models.channel_choice import Asked, best_first
from models.features.channel import USUAL
from models.next_best import predictions
from models.registry import Models
from nearcast.customer import Customer
from nearcast.events import Channel
from nearcast.ids import Sku, StoreId
from offers.catalogue import Catalogue

#: How many things of one segment are looked up in the store's stock.
_THINGS = 50
ReadStock = Callable[[Iterable[tuple[StoreId, Sku]]], Awaitable[Mapping[tuple[StoreId, Sku], int]]]


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """A thing of a segment that the store has."""

    sku: Sku
    name: str
    price_cents: int
    stock: int


class NextProduct(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that the customer will buy from within a week with this probability, as this model says.

    `product` is null if no store was named, or if it has nothing of the segment.
    """

    segment: str
    probability: float
    model: str
    product: Suggestion | None


class NextChannel(msgspec.Struct, frozen=True, kw_only=True):
    """The customer will react to a message that comes by this channel with this probability, as this model says."""

    channel: Channel
    probability: float
    model: str


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """Likeliest first."""

    products: list[NextProduct]
    channels: list[NextChannel]


async def predict(
    customer: Customer,
    catalogue: Catalogue,
    models: Models,
    read_stock: ReadStock,
    at_ms: int,
    *,
    store: StoreId | None,
    top: int,
) -> Predictions:
    """The `top` segments, and the channels that the customer consents to; nothing of somebody who opted out of all."""
    if customer.opted_out:
        return Predictions(products=[], channels=[])
    found = predictions(customer, catalogue.skus_of_segment, models.serving("buy_next"), at_ms, top)
    agreed = [channel for channel in USUAL if customer.consented(channel)]
    (ways,) = best_first([Asked(customer, agreed, at_ms)], models.serving("channel"))
    chosen = {} if store is None else await _in_stock(customer, catalogue, read_stock, store, [one[0] for one in found])
    return Predictions(
        products=[
            NextProduct(segment=segment, probability=probability, model=model, product=chosen.get(segment))
            for segment, probability, model in found
        ],
        channels=[NextChannel(channel=way.channel, probability=way.probability, model=way.model) for way in ways],
    )


async def _in_stock(
    customer: Customer, catalogue: Catalogue, read_stock: ReadStock, store: StoreId, segments: Sequence[str]
) -> dict[str, Suggestion]:
    """By segment, the best thing of it that the store has; nothing of one of which it has none."""
    things = {segment: _things(customer, catalogue, segment, store) for segment in segments}
    stock = await read_stock((store, sku) for skus in things.values() for sku in skus)
    found = {}
    for segment, skus in things.items():
        sku = next((sku for sku in skus if stock.get((store, sku), 0) > 0), None)
        if sku is not None:
            product = catalogue.products[sku]
            found[segment] = Suggestion(
                sku=sku, name=product.name, price_cents=product.price_cents, stock=stock[store, sku]
            )
    return found


def _things(customer: Customer, catalogue: Catalogue, segment: str, store: StoreId) -> list[Sku]:
    """What to suggest of a segment and isn't in the cart, best first: wished for, looked at, on display there, any."""

    def ordered() -> Iterator[Sku]:
        for interest in (customer.wishlist, customer.viewed):
            for sku in sorted(interest, key=lambda sku: (-interest[sku], sku)):
                if catalogue.segments.get(sku) == segment:
                    yield sku
        yield from catalogue.on_display.get((store, segment), ())
        yield from catalogue.skus_of_segment.get(segment, ())

    found: dict[Sku, None] = {}
    for sku in ordered():
        if sku not in customer.cart:
            found[sku] = None
            if len(found) == _THINGS:
                break
    return list(found)
