"""The tills of all shops: a purchase first redeems the coupons that its customer applied, then goes to nearcast."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from clients.client import Nearcast
from clients.demo.measure import Measure
from clients.demo.patience import insist
from clients.device import Refused
from nearcast.events import IntakeEvent, Purchase
from nearcast.world import Discount


class Till:
    """Knows who holds which codes: a customer shows their phone when they pay."""

    def __init__(self, pos: Nearcast, measure: Measure, hand_over: Callable[[IntakeEvent], Awaitable[None]]) -> None:
        self._pos = pos
        self._measure = measure
        self._hand_over = hand_over
        self._codes: dict[str, list[str]] = {}

    def show(self, customer: str, code: str) -> None:
        """The customer has this code on their phone now."""
        codes = self._codes.setdefault(customer, [])
        if code not in codes:
            codes.append(code)

    async def pay(self, purchase: Purchase) -> int:
        """Redeem and hand over; how many coupons were taken."""
        taken = 0
        for code in self._codes.pop(purchase.customer, []):
            try:
                coupon = await insist(self._pos.validate, code)
                await insist(
                    self._pos.redeem,
                    code,
                    store=purchase.store or "",
                    redemption_id=f"{purchase.event_id}/{code}",
                    revenue_cents=sum(line.amount_cents for line in purchase.items),
                    discount_cents=_off_cents(coupon, purchase),
                )
            except Refused as refusal:
                self._measure.errors[f"redeem_{refusal.reason}"] += 1
            else:
                taken += 1
                self._measure.redeemed += 1
        await self._hand_over(purchase)
        return taken


def _off_cents(coupon: Mapping[str, Any], purchase: Purchase) -> int:
    """What a coupon takes off: of the thing that it is for, if that is in the basket, else of all of it."""
    if coupon.get("discount") is None:
        return 0
    of_thing = [line.amount_cents for line in purchase.items if line.sku == coupon.get("sku")]
    discount = msgspec.convert(coupon["discount"], Discount)
    return discount.off_cents(sum(of_thing or (line.amount_cents for line in purchase.items)))
