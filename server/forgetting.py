"""Privacy by decay: positions are forgotten after `POSITIONS_KEPT_MS`, also where nothing happens any more.

Coordinates are in the log (here only if it is in the store; Kafka deletes by itself, `server.log.kafka`), in the dead
letters, and, of people near a fence, in their hot records, which the presence timer clears. This trims the log and cuts
the letters, in the partitions that this process owns. The append-only file holds what was written until the server
writes it anew, which one of ours is told to do every hour.

A record that the engine has not processed is never removed: it is acknowledged, and something must come of it. So after
an outage positions are as old as the outage was long, until the engine has caught up.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from importlib import resources

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from nearcast import keys
from nearcast.clock import Clock
from nearcast.errors import Unavailable
from nearcast.topics import CUSTOMER_TOPICS, LOCATIONS, POSITIONS_KEPT_MS, SENT
from server.dead_letters import DeadLetters, LetterId, Wanted, holds_position
from server.store import reaching_store, text

_POLL_S = 20.0
#: A sweep comes late by so much at most, so what it finds has to be younger by that.
_SPARE_MS = 60_000
#: How often the file of a server of ours is written anew, which costs a fork and one pass over all that it holds.
_FILE_EVERY_S = 3_600.0
#: A longer stream is one of many records in a short time: its blocks are gone soon after their first entries.
_REWRITTEN_AT_MOST = 1_000

logger = logging.getLogger("nearcast.server.forgetting")


class Forgetting:
    """Forgets the positions in the partitions that this process owns.

    `log_in_store`: the log is Valkey Streams. `own_server`: the store's server is ours, and its file our business.
    """

    def __init__(
        self,
        redis: Redis,
        partitions: int,
        owned: Callable[[], frozenset[int]],
        clock: Clock,
        *,
        log_in_store: bool,
        own_server: bool = False,
    ) -> None:
        self._redis = redis
        self._owned = owned
        self._clock = clock
        self._log_in_store = log_in_store
        self._own_server = own_server
        #: Whether anything was removed since the append-only file was last written anew, and when that was.
        self._removed = False
        self._rewritten_s = clock.monotonic_s()
        self._letters = DeadLetters(redis, partitions)
        self._rewrite = redis.register_script(resources.files("server").joinpath("forgetting.lua").read_text())
        #: By partition, the last letter that was old enough, so that the same ones are not read each time.
        self._looked_at: dict[int, str] = {}

    async def run(self) -> None:
        while True:
            try:
                for partition in sorted(self._owned()):
                    await self.sweep(partition)
                if (
                    self._own_server
                    and self._removed
                    and self._clock.monotonic_s() >= self._rewritten_s + _FILE_EVERY_S
                ):
                    await self.rewrite_file()
            except Unavailable as error:
                logger.warning("old positions stay for the moment: %s", error)
            await asyncio.sleep(_POLL_S)

    async def sweep(self, partition: int) -> None:
        """Forget what is too old in one partition."""
        oldest_ms = self._clock.now_ms() - (POSITIONS_KEPT_MS - _SPARE_MS)
        await self._cut_letters(partition, oldest_ms)
        if self._log_in_store:
            await self._trim_log(partition, oldest_ms)

    async def rewrite_file(self) -> None:
        """Have the server begin to write its append-only file anew: what was removed is still in the present one."""
        self._removed, self._rewritten_s = False, self._clock.monotonic_s()
        with reaching_store(), suppress(ResponseError):
            # Refused if it does so already.
            await self._redis.bgrewriteaof()

    async def _cut_letters(self, partition: int, oldest_ms: int) -> None:
        too_old: list[LetterId] = []
        done = self._looked_at.get(partition, "-")
        async for letter in self._letters.every(Wanted(partition=partition), after=done):
            if letter.since_ms < oldest_ms and letter.cut_ms is None and holds_position(letter):
                too_old.append(letter.id)
            if letter.id.buried_ms < oldest_ms:
                done = letter.id.entry
        if too_old:
            stream = keys.dead_letters(partition)
            with reaching_store():
                await self._rewrite(
                    keys=[stream, keys.rewritten(stream)],
                    args=[self._clock.now_ms(), *(letter.entry for letter in too_old)],
                )
            self._removed = True
            logger.info("cut the positions out of %d dead letters in partition %d", len(too_old), partition)
        self._looked_at[partition] = done

    async def _trim_log(self, partition: int, oldest_ms: int) -> None:
        with reaching_store():
            offsets = await self._redis.hgetall(keys.offsets(partition))
        for topic, position in offsets.items():
            if text(topic) in CUSTOMER_TOPICS:
                until = min(_after(text(position)), (oldest_ms, 0))
                await self._trim(keys.log_stream(text(topic), partition), until, rewrite=text(topic) == LOCATIONS)
        # Nobody of ours reads it.
        await self._trim(keys.log_stream(SENT, partition), (oldest_ms, 0), rewrite=False)

    async def _trim(self, stream: str, until: tuple[int, int], *, rewrite: bool) -> None:
        """Remove all before `until`."""
        first = f"{until[0]}-{until[1]}"
        with reaching_store():
            # Whole blocks first, a bounded number in each command, so that nobody waits long for the server.
            while await self._redis.xtrim(stream, minid=first, approximate=True):
                self._removed = True
            trimmed = await self._redis.xtrim(stream, minid=first, approximate=False)
            self._removed |= bool(trimmed)
            if trimmed and rewrite and 0 < await self._redis.xlen(stream) <= _REWRITTEN_AT_MOST:
                await self._rewrite(keys=[stream, keys.rewritten(stream)], args=[0])


def _after(position: str) -> tuple[int, int]:
    """The first id after a stream's entry."""
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0) + 1
