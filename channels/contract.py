"""What a delivery channel is: one contract for all of them.

`send` hands one message over and returns once the provider has taken it; it holds no queue and never retries by
itself. What it raises says what happens next: `RetrySend` (same channel, later), `FallBack` (the next channel),
`DropSend` (no channel will do). It may be called again for a message that was taken already, after a crash or a
time-out, and must then hand it over under the same key (the message id), so that a provider that honours the key holds
one message.
"""

import unicodedata
from dataclasses import dataclass
from typing import Protocol

from nearcast import events
from nearcast.messages import Message, Push


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A message ready to be sent: its final texts and whom it goes to.

    `link` is the absolute URL of the message's own page, `unsubscribe_link` that of the one-click opt-out. A contact
    point that is not known is "". `repeated` says that an earlier attempt on this channel may have gone through.
    `times_ms` is the trace until now (`channels.trace.marks`), if it is known.
    """

    message: Message
    push: Push
    link: str
    unsubscribe_link: str = ""
    name: str = ""
    phone: str = ""
    email: str = ""
    locale: str = "en"
    repeated: bool = False
    times_ms: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the re-check before a send gives: the message, and the channels allowed right now in order of preference.

    `noted` is what was noted of withdrawn consents then.
    """

    outgoing: Outgoing
    channels: tuple[events.Channel, ...]
    noted: bytes = b""


class Channel(Protocol):
    """One way to reach a customer or a store's staff. Safe to use from many tasks at once."""

    @property
    def name(self) -> events.Channel: ...

    async def send(self, outgoing: Outgoing) -> str:
        """Hand the message over; the provider's id for it, or "". Raises a `SendError`."""
        ...

    async def close(self) -> None:
        """Let go of connections; nothing is sent afterwards."""
        ...


def one_line(text: str) -> str:
    """`text` without line breaks, control and invisible format characters, runs of white space made one space.

    Names and rendered texts come from outside; on one line they can't add headers to a mail or lines to a message.
    """
    kept = "".join(" " if _breaks(char) else char for char in text.encode("utf-8", "replace").decode())
    return " ".join(kept.split())


def _breaks(char: str) -> bool:
    # Zero-width joiner and variation selectors stay: they hold emoji and some scripts together.
    return (
        unicodedata.category(char) in ("Cc", "Zl", "Zp")
        or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )
