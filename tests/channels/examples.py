"""Messages to send, and a desk and an outbox in memory for tests of what the dispatcher does with them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from channels.contract import Outgoing, Prepared
from channels.dispatcher import Delivery, Pending
from nearcast import events
from nearcast.clock import SystemClock
from nearcast.decisions import Reason
from nearcast.errors import Fenced, InputError, Unavailable
from nearcast.ids import CustomerId, DecisionId, EventId, MessageId, PromotionId, Sku, StoreId
from nearcast.messages import Emitted, Message, OutboxEntry, Push, Recall, Released


def a_message(
    number: int = 1,
    *,
    customer: str = "anna",
    deadline_in_s: float = 30.0,
    kind: str = "offer",
    channels: Sequence[events.Channel] = ("websocket", "sms", "email"),
) -> Message:
    now_ms = SystemClock().now_ms()
    return Message(
        id=MessageId(f"{number:032x}"),
        decision=DecisionId(f"d{number}"),
        kind="assist" if kind == "assist" else "offer",
        customer=CustomerId(customer),
        promotion=PromotionId("tea-time"),
        trigger="enter",
        event=EventId(f"e{number}"),
        at_ms=now_ms,
        deadline_ms=now_ms + round(deadline_in_s * 1000),
        coupon_expires_ms=now_ms + 7_200_000,
        channels=list(channels),
        store=StoreId("s1"),
        sku=Sku("tea"),
    )


def outgoing(message: Message | None = None, **changes: str) -> Outgoing:
    message = message or a_message()
    push = Push(
        kind=message.kind,
        message=message.id,
        decision=message.decision,
        title=changes.pop("title", "Tea for less"),
        body=changes.pop("body", "20% off, today only"),
        promotion=message.promotion,
        trigger=message.trigger,
        event=message.event,
        at_ms=message.at_ms,
        deadline_ms=message.deadline_ms,
        store=message.store,
        store_name="Main Street",
    )
    values: dict[str, Any] = {
        "link": f"https://shop.example/m/{message.id}",
        "unsubscribe_link": f"https://shop.example/unsubscribe/{message.id}?token=" + "x" * 120,
        "name": "Anna",
        "phone": "+15550100",
        "email": "anna@example.com",
        **changes,
    }
    return Outgoing(message=message, push=push, **values)


class MemoryDesk:
    """A desk whose answers a test sets, and which remembers what it was told."""

    def __init__(self, *channels: events.Channel) -> None:
        self.channels = channels or ("websocket", "sms", "email")
        #: What `prepare` answers instead, if anything.
        self.stop: Reason | None = None
        self.on_prepare: Callable[[], None] = lambda: None
        self.on_save: Callable[[Delivery], None] = lambda after: None
        #: What `emit` refuses with, if anything.
        self.refusal: InputError | None = None
        #: How many of the next calls of each method find the store away.
        self.away: dict[str, int] = {}
        self.receipts: list[tuple[MessageId, str, str | None, str]] = []
        self.emitted: list[Emitted] = []
        self.recalled: list[Recall] = []
        self.left: list[Released] = []
        #: What was told to other systems: messages that a channel took, and (None) that were recalled.
        self.announced: list[tuple[MessageId, events.Channel | None]] = []
        #: Those of the receipts that are not final.
        self.attempts: list[tuple[MessageId, str, str | None, str]] = []
        self.unsent: list[MessageId] = []
        #: What devices have acknowledged, and how often anybody asked.
        self.acks: set[MessageId] = set()
        self.asked = 0
        #: How many hand-overs are to find that a consent was withdrawn since the re-check.
        self.withdrawn = 0
        self.deliveries: dict[MessageId, list[Delivery]] = {}
        self.prepared = 0
        #: How many of the next saves happen without an answer.
        self.lost_replies = 0

    async def prepare(self, message: Message) -> Prepared | Reason:
        self._reach("prepare")
        self.prepared += 1
        self.on_prepare()
        allowed = tuple(name for name in self.channels if name in message.channels)
        return self.stop or Prepared(outgoing=outgoing(message), channels=allowed)

    async def receipt(
        self,
        message: Message,
        status: events.DeliveryStatus,
        channel: events.Channel | None,
        reason: str,
        *,
        final: bool = True,
        unsent: bool = False,
    ) -> None:
        self._reach("receipt")
        self.receipts.append((message.id, status, channel, reason))
        if not final:
            self.attempts.append((message.id, status, channel, reason))
        if unsent:
            self.unsent.append(message.id)

    async def announce(self, outgoing: Outgoing, channel: events.Channel) -> None:
        self._reach("announce")
        self.announced.append((outgoing.message.id, channel))

    async def announce_recall(self, message: Message) -> None:
        self._reach("announce_recall")
        self.announced.append((message.id, None))

    async def recall(self, entry: Recall) -> None:
        self._reach("recall")
        self.recalled.append(entry)

    async def released(self, entry: Released) -> None:
        self._reach("released")
        self.left.append(entry)

    async def emit(self, entry: Emitted) -> None:
        self._reach("emit")
        if self.refusal is not None:
            raise self.refusal
        self.emitted.append(entry)

    async def delivery(self, message: Message) -> Delivery:
        self._reach("delivery")
        return self.deliveries.get(message.id, [Delivery()])[-1]

    async def begin(
        self, message: Message, entry_id: str, before: Delivery, after: Delivery, prepared: Prepared, lasts_ms: int
    ) -> bool:
        if self.withdrawn:
            self.withdrawn -= 1
            return False
        await self.save_delivery(message, entry_id, before, after)
        return True

    async def acknowledged(self, messages: Sequence[Message]) -> set[MessageId]:
        self._reach("acknowledged")
        self.asked += 1
        return self.acks & {message.id for message in messages}

    async def save_delivery(self, message: Message, entry_id: str, before: Delivery, after: Delivery) -> None:
        self._reach("save_delivery")
        self.on_save(after)
        saved = self.deliveries.setdefault(message.id, [])
        if (saved or [Delivery()])[-1] not in (before, after):
            raise Fenced("another has it")
        saved.append(after)
        if self.lost_replies:
            self.lost_replies -= 1
            raise Unavailable("saved, and nobody heard of it")

    def outcomes(self) -> list[tuple[str, str | None, str]]:
        return [receipt[1:] for receipt in self.receipts]

    def _reach(self, method: str) -> None:
        if self.away.get(method, 0):
            self.away[method] -= 1
            raise Unavailable("away")


class MemoryOutbox:
    """An outbox that gives every entry once, and remembers what was done, in order."""

    def __init__(self, *entries: OutboxEntry) -> None:
        self.waiting = deque(Pending(0, f"{n}-0", entry) for n, entry in enumerate(entries, 1))
        self.finished: list[str] = []
        self.buried: list[tuple[str, str]] = []
        self.released: list[str] = []
        self.largest_read = 0
        self.reads_without_room = 0
        self.away = 0

    async def read(self, max_entries: int, wait_ms: int) -> list[Pending]:
        self._reach()
        if not self.waiting:
            await asyncio.sleep(min(wait_ms, 5) / 1000)
        self.largest_read = max(self.largest_read, max_entries)
        self.reads_without_room += not max_entries
        return [self.waiting.popleft() for _ in range(min(max_entries, len(self.waiting)))]

    async def done(self, pendings: Sequence[Pending]) -> None:
        self._reach()
        self.finished += [pending.entry_id for pending in pendings]

    async def bury(self, pending: Pending, error: InputError) -> None:
        self._reach()
        self.buried.append((pending.entry_id, error.reason))

    def release(self, pending: Pending) -> None:
        self.released.append(pending.entry_id)

    def _reach(self) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("away")


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    """Return once `condition` holds; fail if it does not in time."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come to that in time"
        await asyncio.sleep(0.005)
