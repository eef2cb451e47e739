"""This node's end of the pub/sub bus: publications in, and word of every time that some may have been missed.

Pub/sub remembers nothing, so each (re)connection may follow a loss: `connected` says so.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio.connection import AbstractConnection
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
    """Calls `receive(channel, epoch, publication)` in the order of arrival, `connected()` before the first of them;
    `control(payload)` for what is said to the node itself.
    """

    def __init__(
        self,
        streams: ChannelStreams,
        receive: Receive,
        connected: Callable[[], None],
        control: Callable[[bytes], None],
    ) -> None:
        self._streams = streams
        self._names = (keys.node_bus(streams.node), keys.node_bus(streams.alias), keys.nodes_bus())
        self._receive = receive
        self._connected = connected
        self._control = control
        self._retry_s = FIRST_RETRY_S
        self._heard = False

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            pool = self._streams.redis.connection_pool
            # RESP 2, because redis-py does more for each message of RESP 3 than we do.
            connection = pool.connection_class(**{**pool.connection_kwargs, "protocol": 2})
            try:
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py does not annotate it
                await self._listen(connection)
            except (RedisError, OSError) as error:
                log.warning("the bus is gone (%s), next try in %.1f s", type(error).__name__, self._retry_s)
            finally:
                await connection.disconnect()
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    async def _listen(self, connection: AbstractConnection) -> None:
        await connection.send_command("SUBSCRIBE", *self._names)
        pinged = False
        while True:
            self._heard = False
            # One timer for all that comes meanwhile: one for each message would cost as much as the message.
            with suppress(TimeoutError):
                async with asyncio.timeout(SILENCE_S):
                    await self._read_forever(connection)
            if pinged and not self._heard:
                raise TimeoutError("the bus does not answer")
            pinged = not self._heard
            if pinged:
                await connection.send_command("PING")

    async def _read_forever(self, connection: AbstractConnection) -> None:
        while True:
            reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            if reply is None:
                # What redis-py makes of a connection that the kernel has given up.
                raise ConnectionError("the connection is lost")
            self._heard = True
            if reply[0] == b"message":
                self._take(reply[2])
            elif reply[0] == b"subscribe" and reply[2] == len(self._names):
                self._retry_s = FIRST_RETRY_S
                self._connected()

    def _take(self, frame: bytes) -> None:
        epoch, offset, named, data = frame.split(b"\n", 3)
        if not named:
            self._control(data)
            return
        channel, _, beside = named.decode().partition("\x1f")
        key, _, note = beside.partition("\x1f")
        self._receive(channel, epoch.decode(), Publication(int(offset), data, key, note))
