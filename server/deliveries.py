"""The dispatcher's desk: what delivering a message needs from state, world and log; and what is told of it later."""

import asyncio
from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from channels.contract import Outgoing, Prepared
from channels.delivery import Delivery, State
from channels.gateway.streams import ChannelStreams
from channels.push import customer_channel, recall, staff_channel
from channels.trace import Mark, marks
from nearcast import keys
from nearcast.clock import Clock
from nearcast.customer import SentMessage
from nearcast.decisions import Reason
from nearcast.errors import Fenced, InputError, Unavailable, UnreadableState
from nearcast.events import Channel, DeliveryStatus, Receipt
from nearcast.ids import ANONYMOUS_PREFIX, CustomerId, DecisionId, MessageId, derived_event_id
from nearcast.messages import Emitted, Message, Recall
from offers.policy import Policy
from offers.recheck import allowed_channels, recheck
from server.api.links import Link, LinkSigner
from server.compose import compose
from server.consents import OptOuts, bring_in
from server.intake import Intake
from server.log.base import Entry, EventLog
from server.state import StateStore
from server.store import reaching_store, text
from server.world import WorldStore

#: Longer than any message is relevant; after that nobody asks how far it got.
_DELIVERY_TTL_S = 2 * 86_400
_UNSUBSCRIBE_VALID_MS = 30 * 86_400_000
_DELIVERY = msgspec.json.Decoder(Delivery)

#: KEYS: the delivery, the outbox. ARGV: the bytes that must be stored ("" for none), the new ones, how long to keep
#: them, and the entry that must be in the outbox: a store that lost it has lost the commit that made the decision.
#: 1 if the new ones are stored now: by this call, or by an earlier one whose reply was lost.
_SAVE = """
if #redis.call('XRANGE', KEYS[2], ARGV[4], ARGV[4]) == 0 then
  return 0
end
local stored = redis.call('GET', KEYS[1]) or ''
if stored ~= ARGV[1] and stored ~= ARGV[2] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


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
    delivery = _decoded(sent.message, stored)
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
        streams: ChannelStreams,
        log: EventLog,
        intake: Intake,
        links: LinkSigner,
        policy: Policy,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._redis = redis
        self._save = redis.register_script(_SAVE)
        self._state = state
        self._world = world
        self._opt_outs = opt_outs
        self._streams = streams
        self._log = log
        self._intake = intake
        self._links = links
        self._policy = policy
        self._public_url = public_url
        self._clock = clock

    async def prepare(self, message: Message) -> Prepared | Reason:
        """Re-check the message against what is true now; what to send and on which channels, or why not to."""
        partition = self._state.partition(message.customer)
        try:
            # The note before the state: an erasure takes both in one step, so a note that is gone by then has left a
            # state that is gone, too.
            noted, stock = await asyncio.gather(self._opt_outs.noted(message.customer), self._stock(message))
            [(customer, presence)] = await self._state.load(partition, [message.customer])
        except UnreadableState:
            # Until its deadline the message waits for a release that can, or for somebody to mend it. Unnamed: this is
            # logged.
            raise Unavailable("the record of a message's customer can't be read") from None
        bring_in(noted, customer)
        world = self._world.current
        stopped = recheck(message, customer, presence, world.catalogue, stock, self._policy, self._clock.now_ms())
        if stopped is not None:
            return stopped
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
        )

    async def receipt(
        self,
        message: Message,
        status: DeliveryStatus,
        channel: Channel | None,
        reason: str,
        *,
        final: bool = True,
    ) -> None:
        await append_receipt(
            self._intake, message.customer, message.id, message.decision, status, channel, reason, final=final
        )

    async def recall(self, entry: Recall) -> None:
        channel = customer_channel(entry.customer)
        if entry.kind == "assist" and entry.store is not None:
            channel = staff_channel(entry.store)
        await recall(self._streams, channel, entry.message)
        await append_receipt(
            self._intake, entry.customer, entry.message, entry.decision, "recalled", None, entry.reason
        )

    async def emit(self, entry: Emitted) -> None:
        await self._log.append([Entry(entry.topic, entry.key, bytes(entry.value))])

    async def delivery(self, message: Message) -> Delivery:
        with reaching_store():
            data = await self._redis.get(self._key(message))
        return _decoded(message.id, data)

    async def save_delivery(self, message: Message, entry_id: str, before: Delivery, after: Delivery) -> None:
        expected = b"" if before == Delivery() else msgspec.json.encode(before)
        # A message stands in the outbox of its customer's partition.
        outbox = keys.outbox(self._state.partition(message.customer))
        with reaching_store():
            saved = await self._save(
                keys=[self._key(message), outbox],
                args=[expected, msgspec.json.encode(after), _DELIVERY_TTL_S, entry_id],
            )
        if not saved:
            raise Fenced(f"message {message.id} is with another dispatcher, or its outbox entry is gone")

    async def _stock(self, message: Message) -> int | None:
        if message.store is None or message.sku is None:
            return None
        pair = (message.store, message.sku)
        return (await self._world.stock([pair])).get(pair)

    def _key(self, message: Message) -> str:
        return keys.delivery(self._state.partition(message.customer), message.id)

    def _message_link(self, message: Message) -> str:
        link = Link(message.customer, message.decision, message.coupon_expires_ms)
        return f"{self._public_url}/m/{self._links.sign('message', link)}"

    def _unsubscribe_link(self, message: Message) -> str:
        link = Link(message.customer, "email", message.at_ms + _UNSUBSCRIBE_VALID_MS, "email")
        return f"{self._public_url}/u/{self._links.sign('unsubscribe', link)}"


def _decoded(message: MessageId, data: bytes | str | None) -> Delivery:
    try:
        return Delivery() if data is None else _DELIVERY.decode(data)
    except (UnicodeDecodeError, msgspec.MsgspecError):
        said = f"how far message {message} got can't be read"
        raise InputError("unreadable_delivery", said) from None


async def append_receipt(
    intake: Intake,
    customer: CustomerId,
    message: MessageId,
    decision: DecisionId,
    status: DeliveryStatus,
    channel: Channel | None,
    reason: str,
    *,
    final: bool = True,
) -> None:
    """Put a receipt into the log. The same arguments make the same event, so repeating it changes nothing."""
    anonymous = customer.startswith(ANONYMOUS_PREFIX)
    await intake.append(
        [
            Receipt(
                id=derived_event_id("receipt" if final else "attempt", message, status, channel or "", reason),
                uid=None if anonymous else customer,
                anonymous_id=customer.removeprefix(ANONYMOUS_PREFIX) if anonymous else None,
                message=message,
                decision=decision,
                status=status,
                channel=channel,
                reason=reason,
                final=final,
            )
        ]
    )
