"""Taking an offer back: from the coupon book, from the dispatcher, from devices, from other systems, and in the log.

In this order, so that what is taken back can't be applied, then can't be sent by anybody, then vanishes. Each step may
be repeated, and a crash in between is a repetition. What somebody has opened is not taken out of their hands, and what
they have applied is theirs; but it goes by no further channel.
"""

from typing import Literal, Protocol

import msgspec
from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from channels.push import customer_channel, recall, staff_channel
from channels.states import STEPS, Delivery
from nearcast import keys
from nearcast.errors import InputError, UnreadableState
from nearcast.ids import DecisionId, MessageId
from nearcast.messages import Recall
from nearcast.metrics import RECALLS
from server.announcing import SILENT, Announcer
from server.intake import Intake
from server.receipts import append_receipt
from server.state import StateStore
from server.store import reaching_store

Result = Literal["recalled", "stopped", "opened", "applied", "ended"]

#: How long it is kept how far a message got: longer than any is relevant.
DELIVERY_TTL_S = 2 * 86_400
_DELIVERY = msgspec.json.Decoder(Delivery)

#: KEYS: the delivery. ARGV: the bytes that must be stored ("" for none), the new ones, how long to keep them.
_END = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class Coupons(Protocol):
    """What a recall needs of the coupon book."""

    async def withdraw(self, decision: DecisionId) -> bool:
        """Keep an offer from being applied from now on. False if it has been applied; then nothing changes."""
        ...


class Recaller:
    """Takes messages back. Safe to use from many processes at once, also for one message."""

    def __init__(
        self,
        redis: Redis,
        state: StateStore,
        coupons: Coupons,
        streams: ChannelStreams,
        intake: Intake,
        announcer: Announcer = SILENT,
    ) -> None:
        self._redis = redis
        self._state = state
        self._coupons = coupons
        self._streams = streams
        self._intake = intake
        self._announcer = announcer
        self._end = redis.register_script(_END)

    async def recall(self, entry: Recall, *, read_too: bool = False) -> Result:
        """Take a message back, one that was opened only if `read_too`; what became of it. May be repeated.

        Raises `Unavailable`, and `InputError` if it can't be read how far the message got.
        """
        result = await self._recall(entry, read_too=read_too)
        RECALLS.labels(entry.reason, result).inc()
        return result

    async def _recall(self, entry: Recall, *, read_too: bool) -> Result:
        match None if read_too or entry.kind == "assist" else await self._reaction(entry):
            case "opened":
                await self._settle(entry, taken_back=False)
                return "opened"
            case "erased":
                return "ended"
        if entry.kind == "offer" and not await self._coupons.withdraw(entry.decision) and not read_too:
            await self._settle(entry, taken_back=False)
            return "applied"
        delivery = await self._settle(entry, taken_back=True)
        if delivery.state != "recalled" and not read_too:
            # The dispatcher has its receipt, or will write it.
            return "stopped" if delivery.state == "suppressed" and not delivery.by else "ended"
        channel = customer_channel(entry.customer)
        if entry.kind == "assist" and entry.store is not None:
            channel = staff_channel(entry.store)
        await recall(self._streams, channel, entry.message)
        if entry.kind != "assist":
            await self._announcer.withdrawn(entry.customer, entry.message)
        # Of several reasons the first stands.
        reason = delivery.reason if delivery.state == "recalled" else entry.reason
        await append_receipt(
            self._intake, entry.customer, entry.message, entry.decision, "recalled", delivery.channel, reason
        )
        return "recalled"

    async def _reaction(self, entry: Recall) -> Literal["opened", "erased"] | None:
        """What the customer has done about it, or what became of them."""
        try:
            known = await self._state.read(entry.customer)
        except UnreadableState:
            return None
        if known is None:
            return "erased"
        sent = next((sent for sent in known.customer.messages if sent.message == entry.message), None)
        return "opened" if sent is not None and (sent.answered or sent.status == "dismissed") else None

    async def _settle(self, entry: Recall, *, taken_back: bool) -> Delivery:
        """End the message's way, wherever it is; how far it got then. Not taken back, it only goes by no further
        channel: that ends the wait for an acknowledgement.
        """
        key = keys.delivery(self._state.partition(entry.customer), entry.message)
        while True:
            with reaching_store():
                stored = await self._redis.get(key)
            before = delivery_in(entry.message, stored)
            after = _taken_back(before, entry.reason) if taken_back else _left_alone(before)
            if after is None:
                return before
            with reaching_store():
                ended = await self._end(keys=[key], args=[stored or b"", msgspec.json.encode(after), DELIVERY_TTL_S])
            # Else a dispatcher was quicker: see where it is now.
            if ended:
                return after


def _taken_back(delivery: Delivery, reason: str) -> Delivery | None:
    return delivery.recalled(reason) if "recalled" in STEPS[delivery.state] else None


def _left_alone(delivery: Delivery) -> Delivery | None:
    if delivery.state == "awaiting":
        return delivery.to("sent", channel=delivery.channel, times_ms=delivery.times_ms)
    return delivery.ended("sent", delivery.out, "") if delivery.state == "pending" and delivery.out else None


def delivery_in(message: MessageId, data: bytes | str | None) -> Delivery:
    """How far the dispatcher got with a message, as stored. Raises `InputError`."""
    try:
        return Delivery() if data is None else _DELIVERY.decode(data)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        said = f"how far message {message} got can't be read"
        raise InputError("unreadable_delivery", said) from None
