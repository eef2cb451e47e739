"""Delivering one message: re-check, choose a channel, hand over, and record what came of it.

The states a message goes through are the table `STEPS`. They are saved before and after every hand-over, so that a
dispatcher that takes over from a dead one knows which channel may have the message already and asks that one again,
under the same key, instead of another.

Rules: every hand-over comes after a fresh re-check (an opt-out holds before the next send); nothing is handed over past
the deadline; a final state is saved first, and its receipt is in the log before `deliver` returns.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import msgspec

from channels.breaker import Breaker
from channels.contract import Channel, Prepared
from channels.patience import Patience
from nearcast import events
from nearcast.clock import Clock
from nearcast.decisions import Reason
from nearcast.errors import DropSend, FallBack, InputError, SendError, Unavailable
from nearcast.messages import Emitted, Message
from nearcast.metrics import EVENT_TO_SEND, SENDS, SUPPRESSED

log = logging.getLogger("nearcast.channels")

State = Literal["pending", "sending", "sent", "suppressed", "failed"]

#: From each state, where a message can go. "sending" names a channel and may go on to itself: the same channel again,
#: or the next one. States that lead nowhere are final.
STEPS: Mapping[State, frozenset[State]] = {
    "pending": frozenset({"sending", "suppressed", "failed"}),
    "sending": frozenset({"sending", "pending", "sent", "suppressed", "failed"}),
    "sent": frozenset(),
    "suppressed": frozenset(),
    "failed": frozenset(),
}


class Delivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a message got. `attempts` counts those on `channel`; `given_up` are the channels that will not do."""

    state: State = "pending"
    channel: events.Channel | None = None
    attempts: int = 0
    given_up: tuple[events.Channel, ...] = ()
    reason: str = ""

    @property
    def final(self) -> bool:
        return not STEPS[self.state]

    def to(
        self, state: State, *, channel: events.Channel | None = None, attempts: int = 0, reason: str = ""
    ) -> "Delivery":
        """The next step. Raises `ValueError` for one that `STEPS` does not have."""
        if state not in STEPS[self.state]:
            raise ValueError(f"a delivery can't go from {self.state} to {state}")
        return Delivery(state=state, channel=channel, attempts=attempts, given_up=self.given_up, reason=reason)

    def without(self, channel: events.Channel) -> "Delivery":
        """This channel will not do: the next one may."""
        return msgspec.structs.replace(self.to("pending"), given_up=(*self.given_up, channel))


class Desk(Protocol):
    """What delivering needs from the server. Every method raises `Unavailable` when its store or log is away."""

    async def prepare(self, message: Message) -> Prepared | Reason:
        """Check the message against the state as it is now: what to send and where, or why not to."""
        ...

    async def receipt(
        self, message: Message, status: events.DeliveryStatus, channel: events.Channel | None, reason: str
    ) -> None:
        """Append a Receipt to the log; it is there when this returns. The same arguments make the same event id."""
        ...

    async def emit(self, entry: Emitted) -> None:
        """Append an event to the log; it is there when this returns."""
        ...

    async def delivery(self, message: Message) -> Delivery:
        """What `save_delivery` last stored for this message; `Delivery()` if nothing was."""
        ...

    async def save_delivery(self, message: Message, delivery: Delivery) -> None:
        """Keep how far the message got, at least for as long as its outbox entry may come back."""
        ...


@dataclass
class _Journey:
    """A message on its way. `interrupted`: a dispatcher died during a hand-over, and it is not known how that ended."""

    message: Message
    delivery: Delivery
    interrupted: bool


class Courier:
    """Takes messages to their end. Safe to use from many tasks, one message each; `slots` bounds the hand-overs."""

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
        self._slots = asyncio.Semaphore(slots)
        self._attempts_per_channel = attempts_per_channel
        self._send_timeout_s = send_timeout_s

    async def deliver(self, message: Message) -> None:
        """Bring the message to a final state and its receipt into the log. Raises `Stopping`."""
        delivery = await self._patience.insist("a delivery", partial(self._desk.delivery, message))
        journey = _Journey(message, delivery, interrupted=delivery.state == "sending")
        faults = 0
        while not journey.delivery.final:
            try:
                async with self._slots:
                    wait_s = await self._step(journey)
                faults = 0
            except Unavailable as error:
                faults += 1
                wait_s = self._patience.backoff_s(faults)
                log.warning("message %s has to wait: %s", message.id, error)
            if wait_s and not journey.delivery.final:
                left_s = (message.deadline_ms - self._clock.now_ms()) / 1000
                await self._patience.pause(min(wait_s, max(0.0, left_s)))
        await self._receipt(journey, journey.delivery.state, journey.delivery.channel, journey.delivery.reason)

    async def _step(self, journey: _Journey) -> float:
        """Re-check, and make at most one attempt; how long to wait before the next step, in seconds."""
        if self._too_late(journey):
            return await self._suppress(journey, Reason.TOO_LATE)
        try:
            prepared = await self._desk.prepare(journey.message)
        except InputError as error:
            log.warning("message %s can't be written: %s", journey.message.id, error)
            return await self._settle(journey, "failed", None, error.reason)
        if isinstance(prepared, Reason):
            return await self._suppress(journey, prepared)
        if self._too_late(journey):
            return await self._suppress(journey, Reason.TOO_LATE)

        left = [name for name in prepared.channels if name in self._channels and name not in journey.delivery.given_up]
        begun = journey.delivery.channel if journey.delivery.state == "sending" else None
        if journey.interrupted and begun is not None:
            if begun not in left:
                # It may have gone out on a channel that is not allowed any more; another one could say it twice.
                return await self._settle(journey, "failed", begun, "interrupted")
            left = [begun]
        if not left:
            return await self._suppress(journey, Reason.UNREACHABLE)
        ready = [name for name in left if not self._breakers[name].wait_s]
        if not ready:
            return min(self._breakers[name].wait_s for name in left)
        return await self._attempt(journey, begun if begun in ready else ready[0], prepared)

    async def _attempt(self, journey: _Journey, name: events.Channel, prepared: Prepared) -> float:
        before = journey.delivery
        repeated = before.state == "sending" and before.channel == name
        attempts = before.attempts + 1 if repeated else 1
        sending = before.to("sending", channel=name, attempts=attempts)
        await self._desk.save_delivery(journey.message, sending)
        journey.delivery = sending
        handed_over_ms = self._clock.now_ms()
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self._channels[name].send(replace(prepared.outgoing, repeated=repeated))
        except FallBack as error:
            return await self._give_up(journey, name, "fall_back", error)
        except DropSend as error:
            SENDS.labels(name, "dropped").inc()
            self._breakers[name].worked()
            return await self._settle(journey, "failed", name, str(error))
        except Exception as error:
            self._breakers[name].failed()
            if not isinstance(error, SendError | Unavailable | TimeoutError):
                log.exception("channel %s broke on message %s", name, journey.message.id)
            if attempts >= self._attempts_per_channel:
                return await self._give_up(journey, name, "retry", error)
            SENDS.labels(name, "retry").inc()
            journey.interrupted = False
            await self._receipt(journey, "failed", name, _why(error))
            return self._patience.backoff_s(attempts)
        SENDS.labels(name, "sent").inc()
        EVENT_TO_SEND.labels(name).observe(max(0, handed_over_ms - journey.message.at_ms) / 1000)
        self._breakers[name].worked()
        return await self._settle(journey, "sent", name, "")

    async def _give_up(self, journey: _Journey, name: events.Channel, status: str, error: Exception) -> float:
        SENDS.labels(name, status).inc()
        if isinstance(error, FallBack):
            self._breakers[name].worked()
        journey.interrupted = False
        journey.delivery = journey.delivery.without(name)
        await self._receipt(journey, "failed", name, _why(error))
        await self._desk.save_delivery(journey.message, journey.delivery)
        return 0.0

    async def _suppress(self, journey: _Journey, reason: Reason) -> float:
        SUPPRESSED.labels(reason).inc()
        return await self._settle(journey, "suppressed", None, reason)

    async def _settle(self, journey: _Journey, state: State, name: events.Channel | None, reason: str) -> float:
        journey.delivery = journey.delivery.to(state, channel=name, reason=reason)
        save = partial(self._desk.save_delivery, journey.message, journey.delivery)
        await self._patience.insist("saving a delivery", save)
        return 0.0

    async def _receipt(self, journey: _Journey, state: State, name: events.Channel | None, reason: str) -> None:
        if state == "pending" or state == "sending":
            raise ValueError(f"{state} is not an outcome")
        append = partial(self._desk.receipt, journey.message, state, name, reason)
        await self._patience.insist("a receipt", append)

    def _too_late(self, journey: _Journey) -> bool:
        return self._clock.now_ms() >= journey.message.deadline_ms


def _why(error: Exception) -> str:
    """What a receipt says of a failed attempt: never more than the error's own words."""
    return (str(error) or type(error).__name__)[:200]
