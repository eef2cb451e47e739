"""Taking an offer back: from the coupon book, from the dispatcher, from devices, from other systems, and in the log.

In this order, so that what is taken back can't be applied, then can't be sent by anybody, then vanishes. Each step may
be repeated, and a crash in between is a repetition. What somebody has opened is not taken out of their hands, and what
they have applied is theirs; but it goes by no further channel.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec
from redis.asyncio import Redis

from channels.gateway.streams import ChannelStreams
from channels.push import customer_channel, recall, staff_channel
from channels.states import STEPS, Delivery
from nearcast import keys
from nearcast.customer import Customer, SentMessage
from nearcast.errors import InputError, UnreadableState
from nearcast.ids import CustomerId, DecisionId, MessageId
from nearcast.messages import Recall
from nearcast.metrics import RECALLS
from server.announcing import SILENT, Announcer
from server.intake import Intake
from server.receipts import receipt_of
from server.state import StateStore
from server.store import reaching_store
from server.stored import decode_customer

Result = Literal["recalled", "stopped", "opened", "applied", "ended"]

#: How long it is kept how far a message got: longer than any is relevant.
DELIVERY_TTL_S = 2 * 86_400
_DELIVERY = msgspec.json.Decoder(Delivery)

#: KEYS: deliveries of one partition. ARGV: how long to keep them, and of each the bytes that must be stored ("" for
#: none), and the new ones. Returns 1 for each that is stored now, and 0 for the others.
_END = """
local ended = {}
for i, delivery in ipairs(KEYS) do
  ended[i] = 0
  if (redis.call('GET', delivery) or '') == ARGV[2 * i] then
    redis.call('SET', delivery, ARGV[2 * i + 1], 'EX', ARGV[1])
    ended[i] = 1
  end
end
return ended
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
        [result] = await self.recall_all([entry], read_too=read_too)
        if isinstance(result, InputError):
            raise result
        return result

    async def recall_all(self, entries: Sequence[Recall], *, read_too: bool = False) -> list[Result | InputError]:
        """The same of many messages, step by step together; what `recall` would raise of one stands in its place."""
        left = await self._left_to_customers(entries, read_too=read_too)
        begun = [(entry, whose is None) for entry, whose in zip(entries, left, strict=True) if whose != "ended"]
        settled = iter(await self._settle(begun))
        results: list[Result | InputError] = []
        out: list[tuple[Recall, Delivery]] = []
        for entry, whose in zip(entries, left, strict=True):
            end = None if whose == "ended" else next(settled)
            if isinstance(end, InputError):
                results.append(end)
                continue
            if end is None or whose is not None:
                result: Result = whose or "ended"
            elif end.delivery.unsent and not read_too:
                # The dispatcher has its receipt, or will write it.
                result = "ended" if end.delivery.by else "stopped"
            else:
                result = "recalled"
                out.append((entry, end.delivery))
            results.append(result)
            if end is None or end.by_us or result not in ("recalled", "stopped"):
                RECALLS.labels(entry.reason, result).inc()
        await self._take_away(out, read_too=read_too)
        return results

    async def _take_away(self, out: Sequence[tuple[Recall, Delivery]], *, read_too: bool) -> None:
        """From devices, and from other systems; and tell the log."""
        await asyncio.gather(*(recall(self._streams, _channel_of(entry), entry.message) for entry, _ in out))
        people = [entry for entry, _ in out if entry.kind != "assist"]
        await asyncio.gather(*(self._announcer.withdrawn(entry.customer, entry.message) for entry in people))
        await self._intake.append(
            [
                receipt_of(
                    entry.customer,
                    entry.message,
                    entry.decision,
                    "recalled",
                    delivery.channel,
                    # Of several reasons the first stands.
                    delivery.reason if delivery.state == "recalled" else entry.reason,
                )
                for entry, delivery in out
                # Else it ended before, as not sent, and its receipt says that.
                if delivery.state == "recalled" or read_too
            ]
        )

    async def _left_to_customers(
        self, entries: Sequence[Recall], *, read_too: bool
    ) -> list[Literal["opened", "applied", "ended"] | None]:
        """Why a message is not taken back, if it isn't. The coupons of the others can't be applied from now on."""
        reactions = [None] * len(entries) if read_too else await self._reactions(entries)
        offers = [
            entry
            for entry, reaction in zip(entries, reactions, strict=True)
            if reaction is None and entry.kind == "offer"
        ]
        withdrawn = await asyncio.gather(*(self._coupons.withdraw(entry.decision) for entry in offers))
        applied = {entry.message for entry, gone in zip(offers, withdrawn, strict=True) if not gone and not read_too}
        return [
            "applied" if entry.message in applied else reaction
            for entry, reaction in zip(entries, reactions, strict=True)
        ]

    async def _reactions(self, entries: Sequence[Recall]) -> list[Literal["opened", "ended"] | None]:
        """Which messages were opened (or dismissed), and of which the customer has been erased since."""
        people: dict[int, set[CustomerId]] = {}
        for entry in entries:
            if entry.kind != "assist":
                people.setdefault(self._state.partition(entry.customer), set()).add(entry.customer)
        wanted = {partition: list(some) for partition, some in people.items()}
        found = await self._state.fetch({partition: ([], some) for partition, some in wanted.items()})
        known: dict[CustomerId, Mapping[MessageId, SentMessage] | None] = {}
        for partition, some in wanted.items():
            for customer, data in zip(some, found[partition][1], strict=True):
                try:
                    record = decode_customer(customer, data)
                except UnreadableState:
                    known[customer] = {}
                else:
                    erased = record == Customer(id=customer)
                    known[customer] = None if erased else {sent.message: sent for sent in record.messages}
        return [_reaction(entry, known) for entry in entries]

    async def _settle(self, wanted: Sequence[tuple[Recall, bool]]) -> list["_End | InputError"]:
        """End the way of each message, wherever it is. One that is not to be taken back only goes by no further
        channel: that ends the wait for an acknowledgement.
        """
        ends: dict[int, _End | InputError] = {}
        while len(ends) < len(wanted):
            todo: dict[int, list[int]] = {}
            for place, (entry, _) in enumerate(wanted):
                if place not in ends:
                    todo.setdefault(self._state.partition(entry.customer), []).append(place)
            for partition, places in todo.items():
                ends |= await self._settle_some(partition, {place: wanted[place] for place in places})
        return [ends[place] for place in range(len(wanted))]

    async def _settle_some(
        self, partition: int, wanted: Mapping[int, tuple[Recall, bool]]
    ) -> dict[int, "_End | InputError"]:
        """Try it; those that a dispatcher was quicker with are missing."""
        ends: dict[int, _End | InputError] = {}
        names = {place: keys.delivery(partition, entry.message) for place, (entry, _) in wanted.items()}
        with reaching_store():
            found = await self._redis.mget(list(names.values()))
        steps: dict[int, Delivery] = {}
        args: list[bytes | str | int] = [DELIVERY_TTL_S]
        for (place, (entry, take_back)), stored in zip(wanted.items(), found, strict=True):
            try:
                before = delivery_in(entry.message, stored)
            except InputError as error:
                ends[place] = error
                continue
            after = _taken_back(before, entry.reason) if take_back else _left_alone(before)
            if after is None:
                ends[place] = _End(before, by_us=False)
            else:
                steps[place] = after
                args += [stored or b"", msgspec.json.encode(after)]
        if steps:
            with reaching_store():
                ended = await self._end(keys=[names[place] for place in steps], args=args)
            ends |= {
                place: _End(steps[place], by_us=True) for place, is_ours in zip(steps, ended, strict=True) if is_ours
            }
        return ends


class _End(NamedTuple):
    """How far a message got in the end, and whether it was this recall that ended its way."""

    delivery: Delivery
    by_us: bool


def _channel_of(entry: Recall) -> str:
    if entry.kind == "assist" and entry.store is not None:
        return staff_channel(entry.store)
    return customer_channel(entry.customer)


def _reaction(
    entry: Recall, known: Mapping[CustomerId, Mapping[MessageId, SentMessage] | None]
) -> Literal["opened", "ended"] | None:
    if entry.kind == "assist":
        return None
    messages = known[entry.customer]
    if messages is None:
        return "ended"
    sent = messages.get(entry.message)
    return "opened" if sent is not None and (sent.answered or sent.status == "dismissed") else None


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
