"""The topic `customers.promotions`: what was sent to customers, and what was taken back, for other systems.

Each record is in the log before the step that it tells of is recorded, so a crash repeats it and loses none. A
repetition has the same message, kind and channel. What goes to staff is never told, nor is a phone number, an address,
or a name beyond what the texts have.
"""

import msgspec

from nearcast import topics
from nearcast.events import Channel
from nearcast.ids import CustomerId, MessageId
from nearcast.messages import Push, SentPush, SentWithdraw
from server.log.base import Entry, EventLog

_ENCODER = msgspec.json.Encoder()


class Announcer:
    """Writes the topic; without a log nothing is written. Both methods return when the record is in the log.

    They raise `Unavailable`, and may be repeated.
    """

    def __init__(self, log: EventLog | None) -> None:
        self._log = log

    async def sent(self, customer: CustomerId, push: Push, channel: Channel) -> None:
        """A channel has taken a message to a customer."""
        if self._log is not None and push.kind != "assist":
            fields = msgspec.structs.asdict(push) | {"customer": customer, "channel": channel}
            await self._append(self._log, customer, SentPush(**fields))

    async def withdrawn(self, customer: CustomerId, message: MessageId) -> None:
        """A message to a customer has been recalled."""
        if self._log is not None:
            await self._append(self._log, customer, SentWithdraw(message=message, reason="recalled", customer=customer))

    async def _append(self, log: EventLog, customer: CustomerId, record: SentPush | SentWithdraw) -> None:
        await log.append([Entry(topics.SENT, customer, _ENCODER.encode(record))])


#: Where the topic is off.
SILENT = Announcer(None)
