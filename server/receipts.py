"""Receipts: what became of a message, told to the log."""

import hashlib
from typing import TypedDict, Unpack
from urllib.parse import quote

from nearcast.events import Channel, DeliveryStatus, Receipt
from nearcast.ids import ANONYMOUS_PREFIX, CustomerId, DecisionId, MessageId, StoreId, derived_event_id
from server.intake import Intake

_LONGEST_ID = 128


class _More(TypedDict, total=False):
    """What `receipt_of` takes by name."""

    final: bool
    unsent: bool
    redemption_id: str | None
    revenue_cents: int | None
    discount_cents: int | None
    store: StoreId | None


async def append_receipt(
    intake: Intake,
    customer: CustomerId,
    message: MessageId,
    decision: DecisionId,
    status: DeliveryStatus,
    channel: Channel | None,
    reason: str,
    **more: Unpack[_More],
) -> None:
    """Put a `receipt_of` into the log."""
    await intake.append([receipt_of(customer, message, decision, status, channel, reason, **more)])


def receipt_of(
    customer: CustomerId,
    message: MessageId,
    decision: DecisionId,
    status: DeliveryStatus,
    channel: Channel | None,
    reason: str,
    *,
    final: bool = True,
    unsent: bool = False,
    redemption_id: str | None = None,
    revenue_cents: int | None = None,
    discount_cents: int | None = None,
    store: StoreId | None = None,
) -> Receipt:
    """The event. The same arguments make the same one, so repeating it changes nothing.

    The sums are not asked for that: one redemption, or its end, is told once, whatever the till says of it later. Its
    id belongs to a store: with `store` the receipt has `redemption_of` both.
    """
    if store is not None and redemption_id is not None:
        redemption_id = redemption_of(store, redemption_id)
    anonymous = customer.startswith(ANONYMOUS_PREFIX)
    parts = [message, status, channel or "", reason, *([redemption_id] if redemption_id is not None else [])]
    return Receipt(
        id=derived_event_id("receipt" if final else "attempt", *parts),
        uid=None if anonymous else customer,
        anonymous_id=customer.removeprefix(ANONYMOUS_PREFIX) if anonymous else None,
        message=message,
        decision=decision,
        status=status,
        channel=channel,
        reason=reason,
        final=final,
        unsent=unsent,
        redemption_id=redemption_id,
        revenue_cents=revenue_cents,
        discount_cents=discount_cents,
    )


def redemption_of(store: StoreId, redemption_id: str) -> str:
    """What a redemption is called where there are several stores: "store/id", or a hash where that is too long."""
    whole = f"{quote(store, safe='')}/{redemption_id}"
    return whole if len(whole) <= _LONGEST_ID else hashlib.sha256(whole.encode()).hexdigest()
