"""The WebSocket channel: publishes a message to the customer's gateway channel, or an alert to the store staff's, or
withdraws it.

Publishing is idempotent by message id, withdrawing by message and reason. What it knows of the gateway is `Publisher`.
"""

from typing import Protocol

import msgspec

from channels.contract import Outgoing
from channels.trace import note_of
from nearcast import events
from nearcast.errors import DropSend, FallBack, RetrySend, Unavailable
from nearcast.ids import CustomerId, MessageId, StoreId
from nearcast.messages import Message, Withdraw

_ENCODER = msgspec.json.Encoder()


class Publisher(Protocol):
    """Appends to gateway channels and knows who is listening."""

    async def publish_once(self, channel: str, key: str, data: bytes, note: str = "") -> object:
        """Publish `data`; a second call with the same `key` changes nothing. Raises `Unavailable`, and `Recalled` after
        `recall`. `note` is not told to clients.
        """
        ...

    async def withdraw(self, channel: str, key: str, data: bytes, reason: str) -> bool:
        """Take back what was published under `key`, and publish `data`, once per reason. Raises `Unavailable`."""
        ...

    async def recall(self, channel: str, key: str, data: bytes) -> None:
        """`withdraw`, also of what is not published yet: it won't be. Raises `Unavailable`."""
        ...

    async def publish_if_heard(self, channel: str, key: str, data: bytes, note: str = "") -> bool:
        """`publish_once` if any device is subscribed to `channel` now; False if none is. Raises what that raises."""
        ...


def customer_channel(customer: CustomerId) -> str:
    """Where a customer's devices listen."""
    return f"customer:{customer}"


def staff_channel(store: StoreId) -> str:
    """Where a store's tablets listen."""
    return f"staff:{store}"


async def withdraw(publisher: Publisher, channel: str, what: Withdraw) -> None:
    """Have every device take a message away that was published on `channel`. Raises `Unavailable`; may be repeated."""
    await publisher.withdraw(channel, what.message, _ENCODER.encode(what), what.reason)


async def recall(publisher: Publisher, channel: str, message: MessageId) -> None:
    """Withdraw a message, or keep it from being published if it has not been yet. Raises `Unavailable`."""
    await publisher.recall(channel, message, _ENCODER.encode(Withdraw(message=message, reason="recalled")))


class PushChannel:
    """Offers and notices reach a customer who is connected now; assists count as sent once published, whoever is on
    shift."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def name(self) -> events.Channel:
        return "websocket"

    async def send(self, outgoing: Outgoing) -> str:
        message = outgoing.message
        try:
            channel, data = _channel_of(message), _ENCODER.encode(outgoing.push)
            note = note_of(message.id, outgoing.times_ms)
            # A repeated send may be published already. Publishing again is harmless; falling back could say the same
            # thing twice.
            if message.kind == "assist" or outgoing.repeated:
                await self._publisher.publish_once(channel, message.id, data, note)
            elif not await self._publisher.publish_if_heard(channel, message.id, data, note):
                raise FallBack("no device is connected")
        except Unavailable as error:
            raise RetrySend("the gateway's store is away") from error
        return ""

    async def recall(self, message: Message) -> None:
        """Take a message back from every device, now or when it connects again. Raises `RetrySend` or `DropSend`."""
        try:
            await recall(self._publisher, _channel_of(message), message.id)
        except Unavailable as error:
            raise RetrySend("the gateway's store is away") from error

    async def close(self) -> None:
        """The publisher belongs to whoever made it."""


def _channel_of(message: Message) -> str:
    if message.kind != "assist":
        return customer_channel(message.customer)
    if message.store is None:
        raise DropSend("an assist without a store reaches no staff")
    return staff_channel(message.store)
