"""Transitions and moments: what the place tracker and the fold notice.

A transition is about a customer and a fence. A moment is something that may be worth acting on; promotions name its
trigger.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

from nearcast.ids import CustomerId, EventId, FenceId, Sku, StoreId
from nearcast.world import Fence, Trigger


class Transition(msgspec.Struct, frozen=True):
    """A customer came into, stayed in, left, approached or went through a fence. `confidence` is the probability that
    it is true, 0..1.
    """

    kind: Literal["enter", "dwell", "exit", "approach", "cross"]
    fence: Fence
    at_ms: int
    confidence: float
    #: Why there is one without a fix that shows it: "silent", "deleted", "expired", "changed", "closed"; "": a fix did.
    reason: str = ""
    #: The fences around `fence`, inner ones first.
    around: tuple[FenceId, ...] = ()


class Pickup(msgspec.Struct, frozen=True, omit_defaults=True):
    """The pickup that a moment is about. `store` is where the order is, which is not always where the customer is."""

    order: str
    store: StoreId
    #: When they are expected; 0 if it isn't known.
    eta_ms: int = 0
    #: Why it was abandoned: "cancelled", "expired" or "away".
    reason: str = ""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One customer, one trigger, one place and one time.

    `subject` tells apart several moments of one trigger that come from one event (the fence or the SKU).
    """

    event: EventId
    customer: CustomerId
    trigger: Trigger
    at_ms: int
    subject: str
    store: StoreId | None = None
    fence: FenceId | None = None
    fence_kind: str | None = None
    sku: Sku | None = None
    confidence: float = 1.0
    #: The fences around `fence`, inner ones first: what is promised for a department holds at its shelves.
    around: tuple[FenceId, ...] = ()
    #: How likely it is that the device lies about where it is, 0..1.
    doubt: float = 0.0
    pickup: Pickup | None = None
    #: Of an order: which, and its status.
    order: str = ""
    status: str = ""
    #: Loyalty points before and after.
    points: tuple[int, int] | None = None
    #: It was held over quiet hours since then; 0: it was not.
    held_since_ms: int = 0


def moments_of_transitions(
    event: EventId, customer: CustomerId, transitions: Iterable[Transition], doubt: float = 0.0
) -> list[Moment]:
    """The moments that a customer's transitions are worth, in the order given; `doubt` is that of their position."""
    moments = []
    for transition in transitions:
        fence = transition.fence
        trigger: Trigger = transition.kind
        if transition.kind == "enter" and fence.kind == "vicinity":
            trigger = "walk_past"
        elif transition.kind == "enter" and fence.kind == "product":
            trigger = "near_product"
        moments.append(
            Moment(
                event=event,
                customer=customer,
                trigger=trigger,
                at_ms=transition.at_ms,
                subject=fence.id,
                store=fence.store_id,
                fence=fence.fence_id,
                fence_kind=fence.kind,
                sku=Sku(fence.sku) if fence.sku is not None else None,
                confidence=transition.confidence,
                around=transition.around,
                doubt=doubt,
            )
        )
    return moments
