"""Messages: what leaves the outbox, and what a device receives.

The outbox holds `OutboxEntry` values, committed together with the state that led to them; nothing is sent from
anywhere else. `Push` is the JSON that phones and staff tablets get in a publication's `data`, `Withdraw` what takes it
back.
"""

from typing import Literal

import msgspec

from nearcast.events import Channel
from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, MessageId, PromotionId, Sku, StoreId
from nearcast.moments import Pickup
from nearcast.world import Discount, MessageKind, Trigger


class Message(msgspec.Struct, kw_only=True, omit_defaults=True, tag="message"):
    """One message to one customer ("offer", "notice") or to a store's staff ("assist").

    It is true until `deadline_ms`. What must still hold when it is sent: the customer is inside `fence` (if set), and
    `sku` is in stock at `store` (if both are set).
    """

    id: MessageId
    decision: DecisionId
    kind: MessageKind
    customer: CustomerId
    promotion: PromotionId
    trigger: Trigger
    event: EventId
    #: Event time of the moment, and when the last point of relevance is.
    at_ms: int
    deadline_ms: int
    coupon_expires_ms: int
    channels: list[Channel]
    store: StoreId | None = None
    fence: FenceId | None = None
    sku: Sku | None = None
    pickup: Pickup | None = None
    #: A push that nobody has acknowledged by then is followed by the next channel; 0: never.
    fall_back_ms: int = 0
    #: As decided.
    discount: Discount | None = None
    instead_of: Sku | None = None
    order: str = ""
    status: str = ""


class Emitted(msgspec.Struct, kw_only=True, tag="emitted"):
    """An event that nearcast writes back to the log (for example to another customer's partition)."""

    topic: str
    key: str
    value: msgspec.Raw


class Recall(msgspec.Struct, kw_only=True, omit_defaults=True, tag="recall"):
    """A message whose moment is over: taken back, unless somebody has opened it already.

    Follows its message in the outbox of the same partition, at any distance.
    """

    message: MessageId
    decision: DecisionId
    customer: CustomerId
    kind: MessageKind
    reason: str
    #: Of an alert: whose staff it went to.
    store: StoreId | None = None


class Released(msgspec.Struct, kw_only=True, tag="released"):
    """A customer left a store: coupons that were reserved for them as long as they are in it are free again."""

    customer: CustomerId
    store: StoreId
    #: When they left: what was reserved later is of another visit. 0, of earlier releases: any time.
    at_ms: int = 0


OutboxEntry = Message | Emitted | Recall | Released

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[OutboxEntry] = msgspec.json.Decoder(OutboxEntry)


def encode_outbox(entry: OutboxEntry) -> bytes:
    return _ENCODER.encode(entry)


def decode_outbox(data: bytes) -> OutboxEntry:
    return _DECODER.decode(data)


class Push(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message as a device gets it. Texts are final; ids are for `ack`, `open` and `apply`.

    For staff (`kind` "assist") `customer` is a short handle, never a name or contact point.
    """

    kind: MessageKind
    message: MessageId
    decision: DecisionId
    title: str
    body: str
    promotion: PromotionId
    trigger: Trigger
    event: EventId
    at_ms: int
    deadline_ms: int
    store: StoreId | None = None
    store_name: str = ""
    sku: Sku | None = None
    product: str = ""
    price_cents: int | None = None
    discount_cents: int | None = None
    fence: FenceId | None = None
    fence_name: str = ""
    customer: str = ""
    #: Of a pickup or an order: the order; when the customer is expected, if that is known; how the order stands.
    order: str = ""
    eta_ms: int | None = None
    status: str = ""
    #: What is out of stock, if this is about something else, or about another store.
    instead_of: str = ""
    #: Where the product stands in the store.
    aisle: str = ""


#: Another device of the customer shows it · the retailer takes it back · the customer closed it on one of their devices
#: · a member of staff goes · the alert is done with.
WithdrawReason = Literal["elsewhere", "recalled", "dismissed", "claimed", "closed"]


class Withdraw(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="withdraw"):
    """A message that a device shows no longer; one that it never had is ignored.

    `by` is who withdrew it: the device that shows it ("elsewhere"), or the member of staff ("claimed", "closed").
    """

    message: MessageId
    reason: WithdrawReason
    by: str = ""


class SentPush(Push, kw_only=True, omit_defaults=True):
    """A record of the topic `customers.promotions`: what was sent to a customer, the `customer` it went to (their id),
    and the `channel` that took it."""

    channel: Channel


class SentWithdraw(Withdraw, frozen=True, kw_only=True, omit_defaults=True):
    """A record of the topic `customers.promotions`: a message that was sent to a customer has been taken back."""

    customer: CustomerId


class _Kind(msgspec.Struct):
    kind: str = ""


_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_push = msgspec.json.Decoder(Push).decode
_decode_withdraw = msgspec.json.Decoder(Withdraw).decode


def decode_publication(data: bytes | msgspec.Raw) -> Push | Withdraw:
    """What a publication on a customer's or a staff channel says. Raises `msgspec.MsgspecError`."""
    return _decode_withdraw(data) if _decode_kind(data).kind == "withdraw" else _decode_push(data)
