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
    """A customer came into, stayed in, or left a fence. `confidence` is the probability that it is true, 0..1."""

    kind: Literal["enter", "dwell", "exit"]
    fence: Fence
    at_ms: int
    confidence: float


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


def moments_of_transitions(event: EventId, customer: CustomerId, transitions: Iterable[Transition]) -> list[Moment]:
    """The moments that a customer's transitions are worth, in the order given."""
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
            )
        )
    return moments
