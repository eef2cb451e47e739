"""Delivering one message: re-check, choose a channel, hand over, and record what came of it.

The states a message goes through are the table in `channels.states`. They are saved before and after every hand-over,
so that a dispatcher that takes over from a dead one knows which channel may have the message already and asks that one
again, under the same key, instead of another.

Rules: every hand-over comes after a fresh re-check, and begins only if no consent was withdrawn since; nothing is
handed over past the deadline; a final state is saved first, and its receipt is in the log before `deliver` returns.
Every save names the state it goes on from, and every receipt comes after a save: a dispatcher that slept while another
took the message over is refused (`Fenced`), and sends and reports nothing more. So is one that holds an entry which its
store has lost: the log brings the message back in a new one, and what this one would say of it is not true then. A
recall ends a message in the same way, whoever has it: what is handed over next is refused, and its end is reported.
What ends as not sent, but may have reached a device before, is taken away from there.

A push that has to be acknowledged is not waited for here: `deliver` says when to look again.

Each channel has hand-over slots of its own, so one that hangs holds up only its own messages.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import msgspec

from channels.breaker import Breaker
from channels.contract import Channel, Outgoing, Prepared
from channels.patience import Patience
from channels.states import Delivery, State
from channels.trace import count_handed_over
from nearcast import events
from nearcast.clock import Clock
from nearcast.decisions import Reason
from nearcast.errors import DropSend, FallBack, Fenced, InputError, Recalled, SendError, Unavailable
from nearcast.ids import MessageId
from nearcast.messages import Emitted, Message, Recall, Released
from nearcast.metrics import EVENT_TO_SEND, FALL_BACKS, SENDS, SUPPRESSED

log = logging.getLogger("nearcast.channels")

#: A hand-over must follow its save within this time. It is well below the silence after which entries are taken over.
_FRESH_S = 5.0

#: Why a message went on from devices that had it.
UNACKNOWLEDGED = "unacknowledged"


class Desk(Protocol):
    """What delivering needs from the server. Every method raises `Unavailable` when its store or log is away."""

    async def prepare(self, message: Message) -> Prepared | Reason:
        """Check the message against the state as it is now: what to send and where, or why not to."""
        ...

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
        """Append a Receipt to the log; it is there when this returns. The same arguments make the same event id.
        `final` is False for an attempt of a message that goes on; `unsent` says that nothing has left the house."""
        ...

    async def announce(self, outgoing: Outgoing, channel: events.Channel) -> None:
        """Tell other systems that a channel has taken the message, if they want to know. May be repeated."""
        ...

    async def announce_recall(self, message: Message) -> None:
        """Tell other systems that a message was recalled, if they want to know. May be repeated."""
        ...

    async def recall(self, entry: Recall) -> None:
        """Take a message back that has been handed over, unless somebody has opened it."""
        ...

    async def released(self, entry: Released) -> None:
        """Free the coupons that were reserved for a customer as long as they were in a store."""
        ...

    async def emit(self, entry: Emitted) -> None:
        """Append an event to the log; it is there when this returns."""
        ...

    async def delivery(self, message: Message) -> Delivery:
        """What `save_delivery` last stored for this message; `Delivery()` if nothing was.

        Raises `InputError` if it can't be read.
        """
        ...

    async def begin(
        self,
        message: Message,
        entry_id: str,
        before: Delivery,
        after: Delivery,
        prepared: Prepared,
        lasts_ms: int,
    ) -> bool:
        """`save_delivery` before a hand-over, which is over in `lasts_ms`; until the next save it is under way.

        False, and nothing is saved, if the customer withdrew a consent since it was `prepared`, in the same step.
        """
        ...

    async def save_delivery(self, message: Message, entry_id: str, before: Delivery, after: Delivery) -> None:
        """Keep how far the message got, at least for as long as its outbox entry may come back.

        Only if `before` is what is stored (or `after`: a repeated save changes nothing) and the entry is in the outbox
        still, in one step; else `Fenced`. Either way no hand-over of `after.by` is under way any more.
        """
        ...

    async def acknowledged(self, messages: Sequence[Message]) -> set[MessageId]:
        """Which of these a device has acknowledged."""
        ...


@dataclass
class _Journey:
    """A message on its way. `interrupted`: a dispatcher died during a hand-over, and it is not known how that ended.

    `allowed` are the channels that the last re-check allowed, at first those of the promotion. `times_ms` is the trace
    until the dispatcher had it, if it is known.
    """

    message: Message
    entry_id: str
    delivery: Delivery
    interrupted: bool
    allowed: tuple[events.Channel, ...]
    times_ms: tuple[int, ...]

    @property
    def begun(self) -> events.Channel | None:
        return self.delivery.channel if self.delivery.state == "sending" else None


class _TakenBack(Exception):
    """A recall has ended the message meanwhile; `journey.delivery` says how."""


class Courier:
    """Takes messages to their end. Safe to use from many tasks, one message each.

    `slots` bounds the hand-overs of each channel.
    """

    def __init__(
        self,
        desk: Desk,
        channels: Mapping[events.Channel, Channel],
        breakers: Mapping[events.Channel, Breaker],
        clock: Clock,
        patience: Patience,
        *,
        slots: int,
        attempts_per_channel: int,
        send_timeout_s: float,
    ) -> None:
        self._desk = desk
        self._channels = channels
        self._breakers = breakers
        self._clock = clock
        self._patience = patience
        # None: of messages that no channel is left for, and that only have to be ended.
        self._slots = {name: asyncio.Semaphore(slots) for name in (*channels, None)}
        self._name = secrets.token_hex(8)
        self._attempts_per_channel = attempts_per_channel
        self._send_timeout_s = send_timeout_s

    async def deliver(
        self,
        message: Message,
        entry_id: str,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        times_ms: tuple[int, ...] = (),
    ) -> int | None:
        """Bring the message of an outbox entry to a final state and its receipt into the log. Returns None then.

        Or returns when to come again (ms): at the latest, for devices have the message and may acknowledge it.

        Raises `Stopping`, `Fenced` when another dispatcher goes on with the message or its entry is gone, and
        `InputError` when what is stored about it can't be read. `waiting` is entered for as long as the message waits
        for a channel. `times_ms` are those of its `Pending`, and when the dispatcher had it; () if they are not known.
        """
        delivery = await self._patience.insist("a delivery", partial(self._desk.delivery, message))
        interrupted = delivery.state == "sending"
        journey = _Journey(message, entry_id, delivery, interrupted, tuple(message.channels), times_ms)
        faults = 0
        while not journey.delivery.final:
            if journey.delivery.state == "awaiting":
                due_ms = await self._patience.insist("an acknowledgement", partial(self._look_again, journey))
                if due_ms:
                    return due_ms
                continue
            wanted, wait_s = self._choose(journey)
            if wait_s and not self._too_late(journey):
                with waiting():
                    await self._pause(journey, wait_s)
                continue
            with waiting():
                await self._slots[wanted].acquire()
            try:
                wait_s = await self._step(journey, wanted)
                faults = 0
            except _TakenBack:
                break
            except Unavailable as error:
                faults += 1
                log.warning("message %s has to wait: %s", message.id, error)
                wait_s = 0.0
            finally:
                self._slots[wanted].release()
            if faults:
                await self._pause(journey, self._patience.backoff_s(faults))
            elif wait_s:
                with waiting():
                    await self._pause(journey, wait_s)
        await self._receipt(journey)
        return None

    async def _look_again(self, journey: _Journey) -> int:
        """Whether a device has acknowledged it; if none has in time, the next channel may have it. When to come again,
        or 0 if it goes on."""
        delivery = journey.delivery
        try:
            if await self._desk.acknowledged([journey.message]) or self._too_late(journey):
                await self._save(journey, delivery.to("sent", channel=delivery.channel, times_ms=delivery.times_ms))
            elif self._clock.now_ms() < delivery.due_ms:
                return delivery.due_ms
            else:
                await self._save(journey, delivery.unacknowledged())
        except _TakenBack:
            return 0
        if not journey.delivery.final and delivery.channel is not None:
            FALL_BACKS.labels(delivery.channel).inc()
            await self._attempted(journey, "failed", delivery.channel, UNACKNOWLEDGED)
        return 0

    def _left(self, journey: _Journey) -> list[events.Channel]:
        """The channels that may still bring the message, in order of preference."""
        left = [name for name in journey.allowed if name in self._channels and name not in journey.delivery.given_up]
        return [name for name in left if name == journey.begun] if journey.interrupted else left

    def _choose(self, journey: _Journey) -> tuple[events.Channel | None, float]:
        """The channel to use next, or None if none is left; and how long it is to be left alone, in seconds."""
        left = self._left(journey)
        if not left:
            return None, 0.0
        waits_s = {name: self._breakers[name].wait_s for name in left}
        ready = [name for name in left if not waits_s[name]]
        if not ready:
            name = min(left, key=lambda each: waits_s[each])
            return name, self._patience.spread_s(waits_s[name])
        return journey.begun if journey.begun in ready else ready[0], 0.0

    async def _step(self, journey: _Journey, wanted: events.Channel | None) -> float:
        """Re-check, and make at most one attempt; how long to wait for a channel before the next step, in seconds.

        The caller holds a slot of `wanted`. If it is to be another channel now, nothing is sent yet.
        """
        if self._too_late(journey):
            return await self._suppress(journey, Reason.TOO_LATE)
        # It may have opened while this one waited for its slot.
        wait_s = self._choose(journey)[1]
        if wait_s:
            return wait_s
        try:
            prepared = await self._desk.prepare(journey.message)
        except InputError as error:
            log.warning("message %s can't be written: %s", journey.message.id, error)
            return await self._settle(journey, "failed", None, error.reason)
        if isinstance(prepared, Reason):
            return await self._suppress(journey, prepared)
        if self._too_late(journey):
            return await self._suppress(journey, Reason.TOO_LATE)

        journey.allowed = prepared.channels
        if journey.delivery.out is not None and await self._desk.acknowledged([journey.message]):
            # Somebody has it in front of them after all.
            return await self._settle(journey, "sent", journey.delivery.out, "")
        name, wait_s = self._choose(journey)
        if name is None and journey.interrupted:
            # It may have gone out on a channel that is not allowed any more; another one could say it twice.
            return await self._settle(journey, "failed", journey.begun, "interrupted")
        if name is None:
            return await self._suppress(journey, Reason.UNREACHABLE)
        if wait_s or name != wanted:
            return wait_s
        return await self._attempt(journey, name, prepared)

    async def _attempt(self, journey: _Journey, name: events.Channel, prepared: Prepared) -> float:
        self._breakers[name].begin()
        repeated = journey.begun == name
        attempts = journey.delivery.attempts + 1 if repeated else 1
        began_s, limit_s = self._clock.monotonic_s(), self._limit_s(journey, name)
        after = journey.delivery.to("sending", channel=name, attempts=attempts)
        if not await self._save(journey, after, prepared, round(1000 * (_FRESH_S + limit_s))):
            # A consent was withdrawn just now. The next step finds out which.
            return 0.0
        if self._clock.monotonic_s() - began_s > _FRESH_S:
            # We stood still; others may have the message by now. The next step finds out.
            return 0.0
        handed_over_ms = self._clock.now_ms()
        times_ms = (*journey.times_ms, handed_over_ms) if journey.times_ms else ()
        try:
            async with asyncio.timeout(limit_s):
                await self._channels[name].send(replace(prepared.outgoing, repeated=repeated, times_ms=times_ms))
        except FallBack as error:
            self._breakers[name].worked()
            return await self._give_up(journey, name, "fall_back", error, doubtful=False)
        except Recalled as error:
            SENDS.labels(name, "dropped").inc()
            self._breakers[name].worked()
            return await self._suppress(journey, str(error))
        except DropSend as error:
            SENDS.labels(name, "dropped").inc()
            self._breakers[name].worked()
            return await self._settle(journey, "failed", name, str(error))
        except Exception as error:
            self._breakers[name].failed()
            if not isinstance(error, SendError | Unavailable | TimeoutError):
                log.exception("channel %s broke on message %s", name, journey.message.id)
            if self._should_move_on(journey, name, attempts):
                return await self._give_up(journey, name, "retry", error, doubtful=True)
            SENDS.labels(name, "retry").inc()
            why = _why(error)
            after = journey.delivery.to("sending", channel=name, attempts=attempts, reason=why)
            await self._insist(journey, msgspec.structs.replace(after, doubtful=True))
            journey.interrupted = False
            await self._attempted(journey, "failed", name, why)
            return self._patience.backoff_s(attempts)
        SENDS.labels(name, "sent").inc()
        EVENT_TO_SEND.labels(name).observe(max(0, handed_over_ms - journey.message.at_ms) / 1000)
        count_handed_over(journey.message.id, times_ms)
        self._breakers[name].worked()
        # Before the state says that it was handed over: a dispatcher that dies in between leaves the hand-over, and
        # this, to be repeated.
        await self._patience.insist("an announcement", partial(self._desk.announce, prepared.outgoing, name))
        return await self._handed_over(journey, name, handed_over_ms, times_ms)

    async def _handed_over(
        self, journey: _Journey, name: events.Channel, handed_over_ms: int, times_ms: tuple[int, ...]
    ) -> float:
        """A channel has it: that is all, or a device has to acknowledge it before the next channel's turn comes."""
        journey.interrupted = False
        due_ms = self._due_ms(journey, name, handed_over_ms)
        if due_ms:
            after = journey.delivery.to("awaiting", channel=name, times_ms=times_ms, due_ms=due_ms)
        else:
            after = journey.delivery.ended("sent", name, "", times_ms)
        try:
            await self._insist(journey, after)
        except _TakenBack:
            # It did go out before it was taken back.
            append = partial(self._desk.receipt, journey.message, "sent", name, "")
            await self._patience.insist("a receipt", append)
            raise
        if due_ms:
            await self._attempted(journey, "sent", name, "")
        return 0.0

    def _due_ms(self, journey: _Journey, name: events.Channel, handed_over_ms: int) -> int:
        """When the next channel's turn is if no device has acknowledged the message by then; 0: never.

        Devices have the time that the message gives them from the hand-over on, however late that is.
        """
        message = journey.message
        others = [other for other in self._left(journey) if other != name]
        if name != "websocket" or not message.fall_back_ms or not others:
            return 0
        due_ms = handed_over_ms + max(0, message.fall_back_ms - message.at_ms)
        return due_ms if due_ms < message.deadline_ms else 0

    def _should_move_on(self, journey: _Journey, name: events.Channel, attempts: int) -> bool:
        """Whether to leave a channel that fails to the next one. The last one is tried until the deadline."""
        if all(other == name for other in self._left(journey)):
            return False
        message = journey.message
        half_over = self._clock.now_ms() - message.at_ms > (message.deadline_ms - message.at_ms) / 2
        return half_over or attempts >= self._attempts_per_channel

    def _limit_s(self, journey: _Journey, name: events.Channel) -> float:
        """How long a hand-over may take; where another channel is left, it gets half of the time that remains."""
        if all(other == name for other in self._left(journey)):
            return self._send_timeout_s
        left_s = (journey.message.deadline_ms - self._clock.now_ms()) / 1000
        return min(self._send_timeout_s, max(1.0, left_s / 2))

    async def _give_up(
        self, journey: _Journey, name: events.Channel, status: str, error: Exception, *, doubtful: bool
    ) -> float:
        SENDS.labels(name, status).inc()
        await self._insist(journey, journey.delivery.without(name, doubtful=doubtful))
        journey.interrupted = False
        await self._attempted(journey, "failed", name, _why(error))
        return 0.0

    async def _suppress(self, journey: _Journey, reason: str) -> float:
        await self._settle(journey, "suppressed", None, reason)
        if journey.delivery.state == "suppressed":
            SUPPRESSED.labels(reason).inc()
        return 0.0

    async def _settle(self, journey: _Journey, state: State, name: events.Channel | None, reason: str) -> float:
        await self._insist(journey, journey.delivery.ended(state, name, reason))
        return 0.0

    async def _insist(self, journey: _Journey, after: Delivery) -> None:
        await self._patience.insist("saving a delivery", partial(self._save, journey, after))

    async def _save(
        self, journey: _Journey, after: Delivery, prepared: Prepared | None = None, lasts_ms: int = 0
    ) -> bool:
        """Save the next step, with `prepared` just before a hand-over. False if a consent was withdrawn since.

        Raises `_TakenBack`, and what `Desk.save_delivery` does.
        """
        # What an attempt of a dispatcher that died came to is not known.
        after = msgspec.structs.replace(after, by=self._name, doubtful=after.doubtful or journey.interrupted)
        message, entry_id = journey.message, journey.entry_id

        async def save(before: Delivery) -> bool:
            if prepared is not None:
                return await self._desk.begin(message, entry_id, before, after, prepared, lasts_ms)
            await self._desk.save_delivery(message, entry_id, before, after)
            return True

        try:
            saved = await save(journey.delivery)
        except Fenced:
            stored = await self._desk.delivery(message)
            if stored.final and not stored.by:
                # No courier ended it: a recall did.
                journey.delivery = stored
                raise _TakenBack from None
            # It may be our own save that is in the way: it happened, and its reply was lost.
            if stored.by != self._name or stored.final:
                raise
            saved = await save(stored)
        if saved:
            journey.delivery = after
        return saved

    async def _pause(self, journey: _Journey, wait_s: float) -> None:
        """Wait, and not past the deadline."""
        left_s = (journey.message.deadline_ms - self._clock.now_ms()) / 1000
        await self._patience.pause(min(wait_s, max(0.0, left_s)))

    async def _receipt(self, journey: _Journey) -> None:
        delivery = journey.delivery
        if delivery.state == "pending" or delivery.state == "sending" or delivery.state == "awaiting":
            raise ValueError(f"{delivery.state} is not an outcome")
        if delivery.state in ("suppressed", "failed") and delivery.doubtful and _may_be_on_devices(journey.message):
            await self._patience.insist("a recall", partial(self._desk.recall, _recall_of(journey.message, delivery)))
        if delivery.state == "recalled":
            # Whoever recalled it may have told of that before we told that it was handed over.
            announce = partial(self._desk.announce_recall, journey.message)
            await self._patience.insist("an announcement", announce)
        append = partial(
            self._desk.receipt,
            journey.message,
            delivery.state,
            delivery.channel,
            delivery.reason,
            unsent=delivery.unsent,
        )
        await self._patience.insist("a receipt", append)

    async def _attempted(
        self, journey: _Journey, status: events.DeliveryStatus, name: events.Channel, why: str
    ) -> None:
        append = partial(self._desk.receipt, journey.message, status, name, why, final=False)
        await self._patience.insist("a receipt", append)

    def _too_late(self, journey: _Journey) -> bool:
        return self._clock.now_ms() >= journey.message.deadline_ms


def _may_be_on_devices(message: Message) -> bool:
    return message.kind == "assist" or "websocket" in message.channels


def _recall_of(message: Message, delivery: Delivery) -> Recall:
    """To take away what ended as not sent, but may be on a device."""
    return Recall(
        message=message.id,
        decision=message.decision,
        customer=message.customer,
        kind=message.kind,
        reason=delivery.reason,
        store=message.store,
    )


def _why(error: Exception) -> str:
    """What a receipt says of a failed attempt: never more than the error's own words."""
    return (str(error) or type(error).__name__)[:200]
