"""Writing a message out: from what was decided to what a device shows. Values in, value out."""

import hashlib
from dataclasses import replace

from channels.templates import Named, facts_of, render, with_pickup
from nearcast.customer import Customer
from nearcast.ids import CustomerId
from nearcast.messages import Message, Push
from offers.catalogue import Catalogue


def handle_of(customer: CustomerId) -> str:
    """What staff see instead of an id: short, the same all day and in every store, and no way back to the person."""
    return hashlib.blake2b(customer.encode(), digest_size=2, person=b"staff-handle").hexdigest()


def compose(message: Message, customer: Customer, catalogue: Catalogue, fence_name: str) -> Push:
    """The message as a device gets it. The promotion must still exist (the re-check has made sure)."""
    promotion = catalogue.promotions[message.promotion]
    product = catalogue.products.get(message.sku) if message.sku is not None else None
    store = catalogue.stores.get(message.store) if message.store is not None else None
    missing = catalogue.products.get(message.instead_of) if message.instead_of is not None else None
    displays = product.displays if product else []
    aisle = next((each.aisle for each in displays if each.store == message.store and each.aisle), "")
    # As decided, which may be a price for this customer. Messages from before it was noted have none.
    discount = message.discount or promotion.what.discount
    for_staff = message.kind == "assist"
    locale = "en" if for_staff else customer.locale or "en"
    name = handle_of(customer.id) if for_staff else customer.name
    facts = replace(
        facts_of(product, store, discount, name, locale),
        order=message.order,
        status=message.status,
        instead_of=Named(missing.name, missing.variant) if missing else Named(),
        aisle=aisle,
    )
    pickup = message.pickup
    if pickup is not None:
        facts = with_pickup(facts, pickup, catalogue.stores.get(pickup.store), message.at_ms)
    words = render(promotion, locale, facts)
    return Push(
        kind=message.kind,
        message=message.id,
        decision=message.decision,
        title=words.title,
        body=words.body,
        promotion=message.promotion,
        trigger=message.trigger,
        event=message.event,
        at_ms=message.at_ms,
        deadline_ms=message.deadline_ms,
        store=message.store,
        store_name=store.name if store else "",
        sku=message.sku,
        product=product.name if product else "",
        price_cents=product.price_cents if product else None,
        discount_cents=discount.off_cents(product.price_cents) if discount and product else None,
        fence=message.fence,
        fence_name=fence_name,
        customer=handle_of(customer.id) if for_staff else "",
        order=pickup.order if pickup else message.order,
        eta_ms=(pickup.eta_ms or None) if pickup else None,
        status=message.status,
        instead_of=missing.name if missing else "",
        aisle=aisle,
    )
