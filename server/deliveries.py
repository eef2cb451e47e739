"""The dispatcher's desk: what delivering a message needs from state, world and log; and what is told of it later."""

import asyncio
from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from channels.contract import Outgoing, Prepared
from channels.push import customer_channel
from channels.states import Delivery, State
from channels.trace import Mark, marks
from nearcast import keys
from nearcast.clock import Clock
from nearcast.customer import SentMessage
from nearcast.decisions import Reason
from nearcast.errors import Fenced, Unavailable, UnreadableState
from nearcast.events import Channel, DeliveryStatus
from nearcast.ids import CustomerId, DecisionId, MessageId
from nearcast.messages import Emitted, Message, Recall, Released
from offers.policy import Policy
from offers.recheck import allowed_channels, recheck
from server.announcing import SILENT, Announcer
from server.api.links import Link, LinkSigner
from server.compose import compose
from server.consents import OptOuts, bring_in, scopes_in
from server.coupons import CouponBook
from server.intake import Intake
from server.log.base import Entry, EventLog
from server.recalls import DELIVERY_TTL_S, Recaller, delivery_in
from server.receipts import append_receipt
from server.situations import situation_of
from server.state import StateStore
from server.store import NOW_MS, reaching_store, text
from server.world import World, WorldStore

_UNSUBSCRIBE_VALID_MS = 30 * 86_400_000
#: What a message is stopped for because of what the world says of promotions and stores.
_OF_THE_WORLD = (Reason.PROMOTION_ENDED, Reason.STORE_CLOSED, Reason.OUTSIDE_HOURS)

#: What both scripts below begin with. KEYS: the delivery, the outbox, the hand-overs under way to the customer. ARGV:
#: the bytes that must be stored ("" for none), the new ones, how long to keep them, the entry that must be in the
#: outbox (a store that lost it has lost the commit that made the decision), and the name of this hand-over. They return
#: 1 if the new bytes are stored now, by this call or by an earlier one whose reply was lost; 0 if something else is.
_IF_STILL_OURS = """
local stored = redis.call('GET', KEYS[1]) or ''
if #redis.call('XRANGE', KEYS[2], ARGV[4], ARGV[4]) == 0 or (stored ~= ARGV[1] and stored ~= ARGV[2]) then
  return 0
end
"""
#: Before a hand-over. KEYS besides: the notes of withdrawn consents. ARGV besides: how long it takes at most (ms), the
#: customer, and what was noted of them when the message was checked. -1 if something else is noted now.
_BEGIN = (
    NOW_MS
    + _IF_STILL_OURS
    + """
if (redis.call('HGET', KEYS[4], ARGV[7]) or '') ~= ARGV[8] then
  return -1
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('ZADD', KEYS[3], string.format('%.0f', now_ms() + ARGV[6]), ARGV[5])
redis.call('EXPIRE', KEYS[3], 120)
return 1
"""
)
#: At any other time. KEYS besides: the live situations, and the offers of this one. ARGV besides: the situation ("" if
#: it is not to be noted), the decision, and its deadline.
_SAVE = (
    "redis.call('ZREM', KEYS[3], ARGV[5])"
    + _IF_STILL_OURS
    + """
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
if ARGV[6] ~= '' then
  redis.call('ZADD', KEYS[4], 'GT', ARGV[8], ARGV[6])
  redis.call('ZADD', KEYS[5], ARGV[8], ARGV[7])
  redis.call('EXPIRE', KEYS[4], ARGV[3])
  redis.call('EXPIRE', KEYS[5], ARGV[3])
end
return 1
"""
)


class Report(msgspec.Struct, kw_only=True):
    """What became of a message: by the receipts (`status`), and as far as the dispatcher got.

    `trace` is empty for one that was not sent, or more than two days ago.
    """

    message: MessageId
    decision: DecisionId
    status: DeliveryStatus | None
    state: State
    channel: Channel | None
    given_up: Sequence[Channel]
    reason: str
    trace: list[Mark]


async def report_of(redis: Redis, partition: int, customer: CustomerId, sent: SentMessage) -> Report:
    """What is known of a message to a customer of the partition. Raises `InputError` if that can't be read."""
    with reaching_store():
        stored = await redis.get(keys.delivery(partition, sent.message))
        shown = await redis.get(keys.channel_shown(customer_channel(customer), sent.message))
    delivery = delivery_in(sent.message, stored)
    ends_ms: list[int] = []
    # A push whose hand-over failed may be on a device all the same, and an SMS was sent then: a trace is of one way.
    if shown is not None and delivery.channel == "websocket":
        ends_ms = [int(at_ms) for at_ms in text(shown).split()]
    return Report(
        message=sent.message,
        decision=sent.decision,
        status=sent.status,
        state=delivery.state,
        channel=delivery.channel,
        given_up=delivery.given_up,
        reason=delivery.reason,
        trace=marks([*delivery.times_ms, *ends_ms]) if delivery.times_ms else [],
    )


class DeliveryDesk:
    """Implements `channels.delivery.Desk`."""

    def __init__(
        self,
        *,
        redis: Redis,
        state: StateStore,
        world: WorldStore,
        opt_outs: OptOuts,
        coupons: CouponBook,
        recaller: Recaller,
        log: EventLog,
        intake: Intake,
        links: LinkSigner,
        policy: Policy,
        public_url: str,
        clock: Clock,
        announcer: Announcer = SILENT,
    ) -> None:
        self._redis = redis
        self._begin = redis.register_script(_BEGIN)
        self._save = redis.register_script(_SAVE)
        self._state = state
        self._world = world
        self._opt_outs = opt_outs
        self._coupons = coupons
        self._recaller = recaller
        self._log = log
        self._intake = intake
        self._links = links
        self._policy = policy
        self._public_url = public_url
        self._clock = clock
        self._announcer = announcer

    async def prepare(self, message: Message) -> Prepared | Reason:
        """Re-check the message against what is true now; what to send and on which channels, or why not to."""
        partition = self._state.partition(message.customer)
        try:
            # The note before the state: an erasure takes both in one step, so a note that is gone by then has left a
            # state that is gone, too.
            note, stock = await asyncio.gather(self._opt_outs.note_of(message.customer), self._stock(message))
            [(customer, presence)] = await self._state.load(partition, [message.customer])
        except UnreadableState:
            # Until its deadline the message waits for a release that can, or for somebody to mend it. Unnamed: this is
            # logged.
            raise Unavailable("the record of a message's customer can't be read") from None
        bring_in(scopes_in(note), customer)

        def still(world: World) -> Reason | None:
            return recheck(message, customer, presence, world.catalogue, stock, self._policy, self._clock.now_ms())

        stopped = still(self._world.current)
        if stopped in _OF_THE_WORLD:
            # The engine may have decided by a newer world than this process has.
            await self._world.refresh()
            stopped = still(self._world.current)
        if stopped is not None:
            return stopped
        world = self._world.current
        fence = world.fences.by_id.get(message.fence) if message.fence is not None else None
        return Prepared(
            outgoing=Outgoing(
                message=message,
                push=compose(message, customer, world.catalogue, fence.name if fence else ""),
                link=self._message_link(message),
                unsubscribe_link=self._unsubscribe_link(message),
                name=customer.name,
                phone=customer.phone,
                email=customer.email,
                locale=customer.locale or "en",
            ),
            channels=tuple(allowed_channels(message, customer)),
            noted=note,
        )

    async def receipt(
        self,
        message: Message,
        status: DeliveryStatus,
        channel: Channel | None,
        reason: str,
        *,
        final: bool = True,
        unsent: bool = False,
    ) -> None:
        await append_receipt(
            self._intake,
            message.customer,
            message.id,
            message.decision,
            status,
            channel,
            reason,
            final=final,
            unsent=unsent,
        )

    async def announce(self, outgoing: Outgoing, channel: Channel) -> None:
        await self._announcer.sent(outgoing.message.customer, outgoing.push, channel)

    async def announce_recall(self, message: Message) -> None:
        if message.kind != "assist":
            await self._announcer.withdrawn(message.customer, message.id)

    async def recall(self, entry: Recall) -> None:
        await self._recaller.recall(entry)

    async def released(self, entry: Released) -> None:
        await self._coupons.left_store(entry.customer, entry.store, entry.at_ms or self._clock.now_ms())

    async def emit(self, entry: Emitted) -> None:
        await self._log.append([Entry(entry.topic, entry.key, bytes(entry.value))])

    async def delivery(self, message: Message) -> Delivery:
        with reaching_store():
            data = await self._redis.get(self._key(message))
        return delivery_in(message.id, data)

    async def begin(
        self,
        message: Message,
        entry_id: str,
        before: Delivery,
        after: Delivery,
        prepared: Prepared,
        lasts_ms: int,
    ) -> bool:
        partition = self._state.partition(message.customer)
        with reaching_store():
            saved = await self._begin(
                keys=[*self._keys_of(partition, message), keys.opt_outs(partition)],
                args=[*_step(message, entry_id, before, after), lasts_ms, message.customer, prepared.noted],
            )
        _refuse_if_lost(saved, message)
        return bool(saved == 1)

    async def save_delivery(self, message: Message, entry_id: str, before: Delivery, after: Delivery) -> None:
        partition = self._state.partition(message.customer)
        situation = situation_of(message) if after.state in ("awaiting", "sent") else ""
        with reaching_store():
            saved = await self._save(
                keys=[
                    *self._keys_of(partition, message),
                    keys.live(partition),
                    keys.live_of(partition, situation),
                ],
                args=[*_step(message, entry_id, before, after), situation, message.decision, message.deadline_ms],
            )
        _refuse_if_lost(saved, message)

    async def acknowledged(self, messages: Sequence[Message]) -> set[MessageId]:
        with reaching_store():
            async with self._redis.pipeline(transaction=False) as pipe:
                for message in messages:
                    channel = customer_channel(message.customer)
                    pipe.exists(keys.channel_acked(channel, message.id), keys.channel_shown(channel, message.id))
                found = await pipe.execute()
        return {message.id for message, known in zip(messages, found, strict=True) if known}

    async def _stock(self, message: Message) -> int | None:
        if message.store is None or message.sku is None:
            return None
        pair = (message.store, message.sku)
        return (await self._world.stock([pair])).get(pair)

    def _key(self, message: Message) -> str:
        return keys.delivery(self._state.partition(message.customer), message.id)

    def _keys_of(self, partition: int, message: Message) -> list[str]:
        # A message stands in the outbox of its customer's partition.
        delivery, outbox = keys.delivery(partition, message.id), keys.outbox(partition)
        return [delivery, outbox, keys.handing_over(partition, message.customer)]

    def _message_link(self, message: Message) -> str:
        link = Link(message.customer, message.decision, message.coupon_expires_ms)
        return f"{self._public_url}/m/{self._links.sign('message', link)}"

    def _unsubscribe_link(self, message: Message) -> str:
        link = Link(message.customer, "email", message.at_ms + _UNSUBSCRIBE_VALID_MS, "email")
        return f"{self._public_url}/u/{self._links.sign('unsubscribe', link)}"


def _step(message: Message, entry_id: str, before: Delivery, after: Delivery) -> list[str | bytes | int]:
    """The first arguments of the scripts that save a step."""
    expected = b"" if before == Delivery() else msgspec.json.encode(before)
    return [expected, msgspec.json.encode(after), DELIVERY_TTL_S, entry_id, f"{message.id}\x1f{after.by}"]


def _refuse_if_lost(saved: int, message: Message) -> None:
    if not saved:
        raise Fenced(f"message {message.id} is with another dispatcher, or its outbox entry is gone")
