"""Which partitions a worker reads when Valkey Streams are the log: membership by heartbeat, ownership by lease.

Every member works out the same deal (sorted members, round robin over the partitions) from the same sorted set, so no
leader is needed; the leases see to it that a partition changes hands only when its last holder gave it back or stopped
renewing. Time on the server is the server's; here it is monotonic, and counted from before the request was sent, so a
worker drops its partitions no later than the server does.

One task keeps the leases; `assignment` may be called at any time and never waits.
"""

import asyncio
import contextlib
import logging
import uuid

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from nearcast import keys
from nearcast.clock import Clock
from nearcast.metrics import TASK_FAILURES

_BEATS_PER_SESSION = 10

# All with the member in ARGV[1] and the session time-out in ms in ARGV[2].
_SHOW_UP = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 'renewed'
elseif holder then
  return 'denied'
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'taken'
"""
_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"

logger = logging.getLogger("nearcast.server.log.leases")


async def forget_predecessors(redis: Redis) -> None:
    """Drop all memberships and leases: for a store's only user at start, who knows that their holders are dead.

    Without it, a restart after a crash would wait until the leases run out.
    """
    for pattern in (keys.log_members("*"), keys.log_owner("*") + ":*"):
        found = [key async for key in redis.scan_iter(match=pattern)]
        if found:
            await redis.delete(*found)


class Leases:
    """One member's share of the partitions of a group."""

    def __init__(
        self, url: str, group: str, partitions: int, session_timeout_ms: int, clock: Clock, member: str = ""
    ) -> None:
        self._group = group
        self._partitions = partitions
        self._timeout_ms = session_timeout_ms
        self._clock = clock
        self._member = member or uuid.uuid4().hex
        #: A member with a name of its own will be back: it leaves its place and its leases to themselves.
        self._returns = bool(member)
        self._generation = 0
        self._held: frozenset[int] = frozenset()
        self._valid_until_s = 0.0
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # A request may not take so long that the leases run out meanwhile; the next beat is the retry.
        self._redis = Redis.from_url(
            url, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=session_timeout_ms / 3000
        )
        self._show_up = self._redis.register_script(_SHOW_UP)
        self._take = self._redis.register_script(_TAKE)
        self._give_back = self._redis.register_script(_GIVE_BACK)

    async def start(self) -> None:
        """Join; RedisError when the server is away."""
        await self._beat()
        self._task = asyncio.create_task(self._keep(), name=f"log-leases-{self._group}")

    async def stop(self) -> None:
        """Leave, and give everything back if the server can be reached."""
        await self._stop_keeping()
        held = self._held
        self._hold(frozenset())
        if not self._returns:
            with contextlib.suppress(RedisError):
                await self._release(held)
                await self._redis.zrem(keys.log_members(self._group), self._member)
        await self._redis.aclose()

    async def restart(self) -> None:
        """Drop everything held and the connections, and join again; RedisError when the server is away."""
        await self._redis.connection_pool.disconnect()
        await self._stop_keeping()
        self._stopping.clear()
        self._hold(frozenset())
        try:
            await self._beat()
        finally:
            self._task = asyncio.create_task(self._keep(), name=f"log-leases-{self._group}")

    def assignment(self) -> tuple[int, frozenset[int]]:
        """The generation, and the partitions whose leases are ours for sure."""
        if self._clock.monotonic_s() >= self._valid_until_s:
            self._hold(frozenset())
        return self._generation, self._held

    async def _stop_keeping(self) -> None:
        # Not by cancelling: redis-py can swallow a cancellation that comes while it reads an answer.
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _keep(self) -> None:
        while not await self._pause():
            try:
                await self._beat()
            except RedisError as error:
                logger.warning("could not renew the leases of %d partitions: %r", len(self._held), error)
            except Exception:  # the keeper must outlive a fault, or the partitions would be lost for good
                logger.exception("could not renew leases")
                TASK_FAILURES.labels("log-leases").inc()

    async def _pause(self) -> bool:
        """Wait for the next beat; whether to stop instead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_ms / 1000 / _BEATS_PER_SESSION):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _beat(self) -> None:
        began_s = self._clock.monotonic_s()
        members = await self._show_up(keys=[keys.log_members(self._group)], args=[self._member, self._timeout_ms])
        deal = frozenset(range(sorted(members).index(self._member), self._partitions, len(members)))
        _, held = self.assignment()
        if not held <= deal:
            self._hold(held & deal)
            await self._release(held - deal)
        wanted = sorted(deal)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for partition in wanted:
                await self._take(keys=[self._lease(partition)], args=[self._member, self._timeout_ms], client=pipeline)
            results = dict(zip(wanted, await pipeline.execute(), strict=True))
        if any(results[partition] != "renewed" for partition in self._held):
            # It was free for a while: another may have had it, so it counts as dealt out anew.
            self._hold(frozenset())
        self._valid_until_s = began_s + self._timeout_ms / 1000
        self._hold(frozenset(partition for partition, result in results.items() if result != "denied"))

    async def _release(self, partitions: frozenset[int]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for partition in sorted(partitions):
                await self._give_back(keys=[self._lease(partition)], args=[self._member], client=pipeline)
            await pipeline.execute()

    def _hold(self, partitions: frozenset[int]) -> None:
        if partitions != self._held:
            self._held = partitions
            self._generation += 1

    def _lease(self, partition: int) -> str:
        return f"{keys.log_owner(partition)}:{self._group}"
