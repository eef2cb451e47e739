"""What offers that are out depend on, beside their customers: one situation stands for all offers that share it.

The dispatcher notes the situation of each offer it hands over, so that watching the world costs what there are
situations, not messages (`server.sweeper`).
"""

import msgspec

from nearcast.ids import CustomerId, DecisionId, EventId, FenceId, MessageId, PromotionId, Sku, StoreId
from nearcast.messages import Message
from nearcast.world import Trigger


class Situation(msgspec.Struct, frozen=True, array_like=True):
    """Promotion, trigger and place, and the thing."""

    promotion: PromotionId
    trigger: Trigger
    store: StoreId | None = None
    fence: FenceId | None = None
    sku: Sku | None = None

    def message(self, deadline_ms: int) -> Message:
        """A message that stands for all of this situation."""
        return Message(
            id=MessageId(""),
            decision=DecisionId(""),
            kind="offer",
            customer=CustomerId(""),
            promotion=self.promotion,
            trigger=self.trigger,
            event=EventId(""),
            at_ms=0,
            deadline_ms=deadline_ms,
            coupon_expires_ms=deadline_ms,
            channels=[],
            store=self.store,
            fence=self.fence,
            sku=self.sku,
        )


_DECODE = msgspec.json.Decoder(Situation).decode


def situation_of(message: Message) -> str:
    """The situation as it is noted; "" for messages that stay true whatever becomes of the world: those to staff, and
    about what the customer asked for."""
    if message.kind != "offer":
        return ""
    situation = Situation(message.promotion, message.trigger, message.store, message.fence, message.sku)
    return msgspec.json.encode(situation).decode()


def situation_in(noted: str) -> Situation:
    """Raises `msgspec.MsgspecError`."""
    return _DECODE(noted)
