"""The states of a message on its way out, and every step between them. Nothing else says where a delivery may go.

| state | what it means | may go on to |
|---|---|---|
| `pending` | not begun, or the last channel will not do | `sending`, `sent`, `suppressed`, `failed`, `recalled` |
| `sending` | being handed to a channel, or to be tried on it again | `sending`, `pending`, `awaiting`, `sent`, `suppressed`, `failed`, `recalled` |
| `awaiting` | devices have it; one of them may acknowledge it | `pending`, `sent`, `recalled` |
| `sent` | a channel has taken it | `recalled` |
| `suppressed` | it was not sent, and will not be | |
| `failed` | no channel will do, or it is not known how a hand-over ended | |
| `recalled` | it was taken back | |

`pending` goes to `sent` where devices had the message, did not acknowledge it in time, and no other channel would do or
was needed any more. Of the last four states the dispatcher has nothing left to do but to write the receipt.
"""  # noqa: E501 a table

from collections.abc import Mapping
from typing import Literal

import msgspec

from nearcast.events import Channel

State = Literal["pending", "sending", "awaiting", "sent", "suppressed", "failed", "recalled"]

#: From each state, where a message can go. "sending" names a channel and may go on to itself: the same channel again,
#: or the next one.
STEPS: Mapping[State, frozenset[State]] = {
    "pending": frozenset({"sending", "sent", "suppressed", "failed", "recalled"}),
    "sending": frozenset({"sending", "pending", "awaiting", "sent", "suppressed", "failed", "recalled"}),
    "awaiting": frozenset({"pending", "sent", "recalled"}),
    "sent": frozenset({"recalled"}),
    "suppressed": frozenset(),
    "failed": frozenset(),
    "recalled": frozenset(),
}

#: Where the dispatcher is done with a message.
FINAL: frozenset[State] = frozenset({"sent", "suppressed", "failed", "recalled"})


class Delivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a message got. `attempts` counts those on `channel`; `given_up` are the channels that will not do.

    `by` is the courier that saved it, so that two couriers never save the same. What is compared with the stored bytes
    is this struct encoded again: fields may be added, with defaults, and not be removed. `times_ms` is the trace of one
    that was handed over, as far as that (`channels.trace.marks`).
    """

    state: State = "pending"
    channel: Channel | None = None
    attempts: int = 0
    given_up: tuple[Channel, ...] = ()
    reason: str = ""
    by: str = ""
    times_ms: tuple[int, ...] = ()
    #: While `awaiting`: when the next channel's turn is.
    due_ms: int = 0
    #: The channel that has the message although it was given up: nobody acknowledged it there in time.
    out: Channel | None = None
    #: An attempt may have gone through, although it was not said to have.
    doubtful: bool = False

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def unsent(self) -> bool:
        """It ended, and nothing of it can have left the house."""
        return self.state in ("suppressed", "failed") and not self.doubtful and self.out is None

    def to(
        self,
        state: State,
        *,
        channel: Channel | None = None,
        attempts: int = 0,
        reason: str = "",
        times_ms: tuple[int, ...] = (),
        due_ms: int = 0,
    ) -> "Delivery":
        """The next step. Raises `ValueError` for one that `STEPS` does not have."""
        if state not in STEPS[self.state]:
            raise ValueError(f"a delivery can't go from {self.state} to {state}")
        return Delivery(
            state=state,
            channel=channel,
            attempts=attempts,
            given_up=self.given_up,
            reason=reason,
            times_ms=times_ms,
            due_ms=due_ms,
            out=self.out,
            doubtful=self.doubtful,
        )

    def ended(self, state: State, channel: Channel | None, reason: str, times_ms: tuple[int, ...] = ()) -> "Delivery":
        """The end. Where a channel has the message all the same it is "sent" by that one, whatever became of others."""
        if self.out is not None and state in ("suppressed", "failed"):
            state, channel = "sent", self.out
        return self.to(state, channel=channel, reason=reason, times_ms=times_ms)

    def without(self, channel: Channel, *, doubtful: bool = False) -> "Delivery":
        """This channel will not do: the next one may. `doubtful`: it may have taken the message for all that."""
        given_up = (*self.given_up, channel)
        return msgspec.structs.replace(self.to("pending"), given_up=given_up, doubtful=self.doubtful or doubtful)

    def unacknowledged(self) -> "Delivery":
        """The devices of its channel have it, and the next channel's turn has come."""
        if self.channel is None:
            raise ValueError("nothing was handed over")
        return msgspec.structs.replace(self.without(self.channel), out=self.channel)

    def recalled(self, reason: str) -> "Delivery":
        """Taken back; one of which nothing can have left the house is suppressed."""
        begun = self.state != "pending" or self.doubtful or self.out is not None
        return self.to("recalled" if begun else "suppressed", channel=self.out or self.channel, reason=reason)
