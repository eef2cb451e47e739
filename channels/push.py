"""The WebSocket channel: publishes a message to the customer's, or the store staff's, gateway channel.

Publishing is idempotent by message id. It knows the gateway only through `Publisher`.
"""

from typing import Protocol

import msgspec

from channels.contract import Outgoing
from nearcast import events
from nearcast.errors import DropSend, FallBack, RetrySend, Unavailable

_ENCODER = msgspec.json.Encoder()


class Publisher(Protocol):
    """Appends to gateway channels and knows who is listening."""

    async def publish_once(self, channel: str, key: str, data: bytes) -> object:
        """Publish `data`; a second call with the same `key` changes nothing. Raises `Unavailable`."""
        ...

    async def connected(self, channel: str) -> bool:
        """Whether any device is subscribed to `channel` now. Raises `Unavailable`."""
        ...


class PushChannel:
    """Offers reach a customer who is connected now; assists count as sent once published, whoever is on shift."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    @property
    def name(self) -> events.Channel:
        return "websocket"

    async def send(self, outgoing: Outgoing) -> str:
        message = outgoing.message
        try:
            if message.kind == "assist":
                if message.store is None:
                    raise DropSend("an assist without a store reaches no staff")
                channel = f"staff:{message.store}"
            else:
                channel = f"customer:{message.customer}"
                # A repeated send may be published already. Publishing again is harmless; falling back could say the
                # same thing twice.
                if not outgoing.repeated and not await self._publisher.connected(channel):
                    raise FallBack("no device is connected")
            await self._publisher.publish_once(channel, message.id, _ENCODER.encode(outgoing.push))
        except Unavailable as error:
            raise RetrySend("the gateway's store is away") from error
        return ""

    async def close(self) -> None:
        """The publisher belongs to whoever made it."""
