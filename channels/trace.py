"""When a message passed each stage of its way from the event to the device, and what is measured of that.

Times are milliseconds since the epoch, each by the clock of whoever noted it. A stage that ends on another host than it
began on is as exact as the two clocks agree; none is ever negative, and together they are the whole way.
"""

import logging
from collections.abc import Sequence
from itertools import accumulate, pairwise

import msgspec

from nearcast.clock import Clock
from nearcast.ids import MessageId
from nearcast.metrics import DELIVERY_STAGE, EVENT_TO_DEVICE

log = logging.getLogger("nearcast.channels")

#: What a trace begins with, and the stages, in order: the log's, the engine's, the outbox's and the dispatcher's, and
#: of messages to devices the gateway's and the device's.
ARRIVED = "arrived"
STAGES = ("log", "decide", "queue", "dispatch", "socket", "ack")
#: How many messages a gateway remembers to have written, until they are acknowledged.
REMEMBERED = 10_000

_OF_STAGE = {stage: DELIVERY_STAGE.labels(stage) for stage in STAGES}
_UNTIL_SOCKET, _UNTIL_ACK = EVENT_TO_DEVICE.labels("socket"), EVENT_TO_DEVICE.labels("ack")


class Mark(msgspec.Struct, frozen=True):
    """When a stage ended."""

    stage: str
    at_ms: int


def marks(times_ms: Sequence[int]) -> list[Mark]:
    """A message's trace from when it arrived, and the ends of the stages that followed; 0 for one that is not known."""
    known = [(stage, at_ms) for stage, at_ms in zip((ARRIVED, *STAGES), times_ms, strict=False) if at_ms]
    ends_ms = accumulate((at_ms for _, at_ms in known), max)
    return [Mark(stage, at_ms) for (stage, _), at_ms in zip(known, ends_ms, strict=True)]


def count_handed_over(message: MessageId, times_ms: Sequence[int]) -> None:
    """Measure a message that its channel has taken, from its arrival until it was handed over."""
    lengths_ms = [after - before for before, after in pairwise(accumulate(times_ms, max))]
    for stage, length_ms in zip(STAGES, lengths_ms, strict=False):
        _OF_STAGE[stage].observe(length_ms / 1000)
    if lengths_ms and log.isEnabledFor(logging.DEBUG):
        stages = " ".join(f"{stage}_ms={length}" for stage, length in zip(STAGES, lengths_ms, strict=False))
        log.debug("message=%s handed over %s", message, stages)


def note_of(message: MessageId, times_ms: Sequence[int]) -> str:
    """What goes with a publication to the gateways, and no further; "" where times are not known."""
    return f"{message} {times_ms[0]} {max(times_ms)}" if times_ms else ""


class Shown:
    """What this process's gateway has written to sockets, until it is acknowledged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Message → when it arrived, and when it was written.
        self._written: dict[MessageId, tuple[int, int]] = {}

    def written(self, note: str) -> None:
        """The first of a node's sockets has been given a publication with this note."""
        message, *times = note.split(" ")
        arrived_ms, handed_over_ms = map(int, times)
        # A note of an earlier release may say that it was handed over before it arrived.
        at_ms = max(self._clock.now_ms(), arrived_ms, handed_over_ms)
        _OF_STAGE["socket"].observe((at_ms - handed_over_ms) / 1000)
        _UNTIL_SOCKET.observe((at_ms - arrived_ms) / 1000)
        self._written[MessageId(message)] = arrived_ms, at_ms
        if len(self._written) > REMEMBERED:
            del self._written[next(iter(self._written))]
        log.debug("message=%s on a socket socket_ms=%d", message, at_ms - handed_over_ms)

    def times(self, message: MessageId, shown_ms: int) -> str:
        """When it was written (0: not known), and when a device showed it, as `keys.channel_shown` keeps it."""
        _, written_ms = self._written.get(message, (0, 0))
        return f"{written_ms} {shown_ms}"

    def acknowledged(self, message: MessageId, shown_ms: int) -> None:
        """Measure a message that a device showed, and whose times are kept. Counts once a message."""
        arrived_ms, written_ms = self._written.pop(message, (0, 0))
        if written_ms:
            at_ms = max(shown_ms, written_ms)
            _OF_STAGE["ack"].observe((at_ms - written_ms) / 1000)
            _UNTIL_ACK.observe((at_ms - arrived_ms) / 1000)
            log.debug("message=%s acknowledged ack_ms=%d", message, at_ms - written_ms)
