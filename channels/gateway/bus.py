"""This node's end of the pub/sub bus: publications in, and word of every time that some may have been missed.

Pub/sub remembers nothing, so each (re)connection may follow a loss. redis-py reconnects and subscribes again by itself,
silently but for a fresh "subscribe" confirmation: that confirmation is what `connected` is called for.
"""

import asyncio
import logging
from collections.abc import Callable

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from channels.gateway.publications import Publication
from channels.gateway.streams import ChannelStreams
from nearcast import keys

log = logging.getLogger("nearcast.channels.gateway")

#: After this long in silence the bus is pinged; after twice as long it is given up and opened anew.
SILENCE_S = 10.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 5.0

Receive = Callable[[str, str, Publication], None]


class Bus:
    """Calls `receive(channel, epoch, publication)` in the order of arrival, `connected()` before the first of them."""

    def __init__(self, streams: ChannelStreams, receive: Receive, connected: Callable[[], None]) -> None:
        self._streams = streams
        self._receive = receive
        self._connected = connected
        self._retry_s = FIRST_RETRY_S

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            pubsub = self._streams.redis.pubsub()
            try:
                await pubsub.subscribe(keys.node_bus(self._streams.node))
                await self._listen(pubsub)
            except (RedisError, OSError) as error:
                log.warning("the bus is gone (%s), next try in %.1f s", type(error).__name__, self._retry_s)
            finally:
                await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py does not annotate it
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    async def _listen(self, pubsub: PubSub) -> None:
        pinged = False
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=False, timeout=SILENCE_S)
            if message is None:
                if pinged:
                    raise TimeoutError("the bus does not answer")
                await pubsub.ping()
                pinged = True
                continue
            pinged = False
            if message["type"] == "message":
                epoch, offset, channel, data = message["data"].split(b"\n", 3)
                self._receive(channel.decode(), epoch.decode(), Publication(int(offset), data))
            elif message["type"] == "subscribe":
                self._retry_s = FIRST_RETRY_S
                self._connected()
