"""Channels in the state store: a bounded, expiring stream of publications each, and who is listening.

A channel's offsets count up by one; publish is one script, so offsets, history and the notice to the listening nodes
can't come apart. What was lost is always said: a position that history can't continue from reads as not recovered.
Each node that has a subscriber keeps a sign of life in the channel's set of nodes; one that falls silent is dropped.

Any process may publish and read with one of these. Publications reach this node's sockets through `hub.Hub`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from channels.gateway.protocol import single_line
from channels.gateway.publications import Position, Publication, Recovered
from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import Unavailable

DAY_S = 86_400
#: A node without a sign of life for this long no longer counts as listening.
NODE_DEAD_AFTER_MS = 90_000
#: How many commands may be under way at once, so that a wave of reconnects can't use up the client's connections.
MAX_CONCURRENT = 32


class ChannelStreams:
    """Publish to channels, read them, and say which this node listens to. `node` names this process."""

    def __init__(
        self, redis: Redis, node: str, clock: Clock, *, history_size: int = 256, history_ttl_s: int = DAY_S
    ) -> None:
        self.redis = redis
        self.node = node
        self.history_size = history_size
        self._clock = clock
        self._history_ttl_s = history_ttl_s
        self._publish = redis.register_script(_script("publish.lua"))
        self._read = redis.register_script(_script("read.lua"))
        self._attend = redis.register_script(_script("attend.lua"))
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)

    async def publish(self, channel: str, data: bytes) -> Position:
        """Append JSON `data` and tell the nodes that listen.

        Where a command is retried or raises `Unavailable`, it may have happened any number of times: what must arrive
        exactly once goes through `publish_once`.
        """
        return await self._append(channel, data, [])

    async def publish_once(self, channel: str, key: str, data: bytes) -> Position:
        """Like `publish`, once per `key`: repeated within the history's time it tells the nodes again, appends nothing,
        and returns the first position.
        """
        return await self._append(channel, data, [keys.channel_once(channel, key)])

    async def published(self, channel: str, key: str) -> bool:
        """True if `publish_once` did publish under this key, within the history's time."""
        async with self._store():
            return bool(await self.redis.exists(keys.channel_once(channel, key)))

    async def read(self, channel: str, since: Position | None) -> Recovered:
        """What followed `since`; without it only where the channel stands."""
        epoch, offset = since or ("", 0)
        args: list[str | int] = [epoch, offset, _new_epoch(), self._history_ttl_s]
        async with self._store():
            found = await self._read(keys=[keys.channel_stream(channel), keys.channel_meta(channel)], args=args)
        top, recovered, datas = _position(found[0], found[1]), bool(found[2]), found[3]
        publications = [Publication(offset + place, bytes(data)) for place, data in enumerate(datas, start=1)]
        return Recovered(publications, recovered, top)

    async def connected(self, channel: str) -> bool:
        """True if some node has a subscriber.

        It lags: by 90 s for a node that died, by the pong timeout for a phone that vanished.
        """
        async with self._store():
            living = await self.redis.zcount(keys.channel_nodes(channel), self._dead_before_ms(), "+inf")
        return int(living) > 0

    async def attend(self, channels: Sequence[tuple[str, Position | None]]) -> list[Position]:
        """Say that this node listens to channels, and up to where it has delivered each; where each stands now."""
        now_ms, nodes_ttl_s = self._clock.now_ms(), 2 * NODE_DEAD_AFTER_MS // 1000
        async with self._store(), self.redis.pipeline(transaction=False) as pipe:
            for channel, known in channels:
                epoch, offset = known or ("", 0)
                await self._attend(
                    keys=[keys.channel_stream(channel), keys.channel_meta(channel), keys.channel_nodes(channel)],
                    args=[
                        self.node,
                        now_ms,
                        self._dead_before_ms(),
                        _new_epoch(),
                        self._history_ttl_s,
                        nodes_ttl_s,
                        epoch,
                        offset,
                    ],
                    client=pipe,
                )
            return [_position(epoch, offset) for epoch, offset in await pipe.execute()]

    async def dismiss(self, channels: Sequence[str]) -> None:
        """Say that this node no longer listens to channels."""
        async with self._store(), self.redis.pipeline(transaction=False) as pipe:
            for channel in channels:
                pipe.zrem(keys.channel_nodes(channel), self.node)
            await pipe.execute()

    async def _append(self, channel: str, data: bytes, once: list[str]) -> Position:
        key_names = [keys.channel_stream(channel), keys.channel_meta(channel), keys.channel_nodes(channel), *once]
        args: list[str | bytes | int] = [
            channel,
            single_line(data),
            self.history_size,
            self._history_ttl_s,
            self._clock.now_ms(),
            self._dead_before_ms(),
            _new_epoch(),
            keys.node_bus(""),
        ]
        async with self._store():
            epoch, offset = await self._publish(keys=key_names, args=args)
        return _position(epoch, offset)

    def _dead_before_ms(self) -> int:
        return self._clock.now_ms() - NODE_DEAD_AFTER_MS

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[None]:
        async with self._slots:
            try:
                yield
            except (RedisError, OSError) as error:
                raise Unavailable(f"the state store can't be reached: {type(error).__name__}") from error


def _script(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _new_epoch() -> str:
    return secrets.token_hex(4)


def _position(epoch: bytes, offset: bytes) -> Position:
    return Position(epoch.decode(), int(offset))
